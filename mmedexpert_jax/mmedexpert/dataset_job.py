"""The job `dataset` (section 3): collect, trace, filter, judge, build. Each stage reads what those before it left."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmedexpert_jax import border
from mmedexpert_jax.answers import lettered
from mmedexpert_jax.data.case import SPLITS
from mmedexpert_jax.errors import ConfigError, DataError, stop_if
from mmedexpert_jax.mmedexpert import (
    dataset_build,
    dataset_card,
    decontamination,
    eligibility,
    filters,
    funnel,
    trace_judge,
    trace_synthesis,
)
from mmedexpert_jax.mmedexpert.collection import collect
from mmedexpert_jax.mmedexpert.dataset_build import Built
from mmedexpert_jax.mmedexpert.factory_store import FILE, Store, private
from mmedexpert_jax.mmedexpert.local_teacher import Teacher
from mmedexpert_jax.mmedexpert.record import RawCase, Trace
from mmedexpert_jax.mmedexpert.review import verdicts, waiting
from mmedexpert_jax.mmedexpert.trace_synthesis import Tally, TraceSettings
from mmedexpert_jax.remote import Answers
from mmedexpert_jax.report.text_tables import markdown
from mmedexpert_jax.rounding import cdiv
from mmedexpert_jax.runtime import Run, files, report

STAGES = ("collect", "trace", "filter", "judge", "build")
SAMPLES = 200  # traces that the report shows

MakeTeacher = Callable[[ConfigDict, Answers], tuple[str, Teacher]]


def run(config: ConfigDict, run: Run, make_teacher: MakeTeacher) -> None:
    """Carries out `config.stages` in their order.

    Args:
        run: the open run; `factory.sqlite` in it survives `fresh`, so that neither answers nor verdicts are lost.
        make_teacher: (config group, store of answers) -> name and teacher; launch/ makes it.
    """
    with private(), contextlib.closing(Factory(config, run, make_teacher)) as factory:
        for stage in (name for name in STAGES if name in config.stages):
            stop_if(run.interrupted, f"stopped before {stage}; the same command resumes")
            getattr(factory, stage)()
        if "build" not in config.stages:
            run.finish(run.summary)


class Factory:
    """One run: its config, its stores, and whom it may ask."""

    def __init__(self, config: ConfigDict, run: Run, make_teacher: MakeTeacher):
        """`make_teacher` makes a teacher from a config group with `kind`, and gives it a name."""
        self.config, self.run, self._make_teacher = config, run, make_teacher
        self.store = Store(run.path / FILE)
        self.answers = Answers(Path(config.answers).expanduser() if config.answers else run.path / FILE)
        self.export = run.path / "export"

    def close(self) -> None:
        """Closes the stores."""
        self.answers.close()
        self.store.close()

    def collect(self) -> None:
        """The cases of all sources, cleaned and stratified, in the store."""
        voter = self._make_teacher(self.config.teacher, self.answers)[1] if self.config.votes else None
        found = collect(self.config, self.export, self.store, voter)
        print(f"collected {self.store.count_cases()} cases, refused {len(found.rejected)} rows", flush=True)

    def trace(self) -> None:
        """The candidates of every case, with stage 1's check of each."""
        name, teacher = self._make_teacher(self.config.teacher, self.answers)
        settings, pairs = TraceSettings.from_config(self.config, name), self.pairs()
        self.store.clear_traces()
        self.store.put_fact("teacher", name)
        figures = getattr(teacher, "figures", None)  # rate and spend, which an endpoint's client counts
        with self.run.progress(len(pairs), label="traces") as progress:

            def shown(count: int) -> None:
                progress.update(count, figures(len(pairs) - count) if figures else {})

            tally = trace_synthesis.synthesise(pairs, teacher, self.store, settings, shown)
        print(chance_line(tally), flush=True)
        if tally.given_up:
            counts = ", ".join(f"{count} requests ({reason})" for reason, count in tally.given_up.items())
            print(f"{counts}: given up; the same command tries them again", flush=True)

    def filter(self) -> None:
        """Checks all stored candidates again, as the settings now are."""
        words = TraceSettings.from_config(self.config).words
        every, changed, passed = list(self.store.traces(passed=None)), [], 0
        for trace in every:
            reply = self.answers.get(trace.request)
            finish = reply.finish if reply else "stop"
            check = filters.check(trace.response, trace.case, trace.paradigm, words, finish)
            passed += check.passed
            if check != trace.check:
                changed.append(replace(trace, check=check))
        self.store.put_traces(changed)
        print(f"stage 1: {passed} of {len(every)} candidates pass", flush=True)

    def judge(self) -> None:
        """Has what passed judged, where a judge is named."""
        if not self.config.judge.kind:
            print("judge: none is named (config.judge.kind), the review is in random order", flush=True)
            return
        name, teacher = self._make_teacher(self.config.judge, self.answers)
        passed = list(self.store.traces())
        read = trace_judge.judge(passed, teacher, name, self.store)
        print(f"judge: {read} of {len(passed)} traces have a score, which orders the review", flush=True)

    def build(self) -> None:
        """The data set, its card and manifest, the report."""
        settings = TraceSettings.from_config(self.config, self.store.fact("teacher") or "")
        reviewed = self.config.reviewed
        every, said = list(self.store.traces(passed=None)), verdicts(self.store)
        open_still = waiting(self.store)
        decided = [trace for trace in every if trace.check.passed and trace.id not in open_still]
        chosen = dataset_build.choose(decided, said, reviewed, settings.words)
        rows = funnel.funnel(self.pairs(), every, said, chosen)
        if chosen:
            self._write(chosen, rows, settings)
        self._report(rows, every)
        if not chosen:
            why = nothing(every, reviewed, open_still)
            raise DataError(f"{self.store.path}: {why}; see {self.run.path / 'table.md'}")

    def pairs(self) -> list[tuple[RawCase, str]]:
        """Cases and designated paradigms. Raises ConfigError before the first stage."""
        records = self.store.cases()
        if not records:
            raise ConfigError(f"{self.store.path} holds no cases: run --config.stages=collect first, or all stages")
        return eligibility.assign(records, self.config.paradigm_policy, self.config.seed)

    def _write(self, chosen: Sequence[Built], rows: list[dict], settings: TraceSettings) -> None:
        """export/dataset with all rows, export/public without those that may not be passed on, or may identify a
        person."""
        config = self.config
        whole = dataset_build.split(chosen, config.dev_share, config.test_share, config.seed)
        free = [one for one in chosen if one.trace.case.redistributable or config.include_restricted]
        named = [one for one in free if dataset_build.identifies(one)]
        passed_on = {one.trace.id for one in free} - {one.trace.id for one in named}
        public = {}
        for name, built in whole.items():  # not split anew, where a case of train might come to test
            if kept := [one for one in built if one.trace.id in passed_on]:
                public[name] = kept
        for folder, splits in (("dataset", whole), ("public", public)):
            path = self.export / folder
            with files.writing(path), files.replacing(path) as target:
                hashes = dataset_build.write(target, splits)
                facts = {name: self.store.fact(name) or {} for name in ("sources", "compared")}
                made = dataset_card.manifest(splits, hashes, facts, settings, rows, config.reviewed)
                border.write_json(target / "manifest.json", made)
                card = dataset_card.write(splits, hashes, made, self.store.fact("collection") or [])
                files.write_text(target / "README.md", card)
        sizes = {name: len(built) for name, built in whole.items()}
        listed = ", ".join(f"{name} {count}" for name, count in sizes.items())
        left_out = len(chosen) - sum(map(len, public.values()))
        print(f"built {len(chosen)} rows ({listed}) in {self.export / 'dataset'}; {left_out} kept out of public")
        if named:
            print(
                f"{len(named)} of those may identify a person; collect with config.data.privacy=redact, or mend their "
                "texts",
                flush=True,
            )
        if missing := [name for name in SPLITS if name not in sizes]:
            print(f"too few cases for {' and '.join(missing)}: train with --config.eval.every=-1", flush=True)
        if config.push_to:
            dataset_build.push(self.export / "public", config.push_to)

    def _report(self, rows: list[dict], every: list) -> None:
        """table.md, samples/ and report.html, also where nothing could be built."""
        tally = Tally()
        for trace in every:
            trace_synthesis.count(tally, trace)
        shown = [_sample(trace) for trace in every[:: max(1, cdiv(len(every), SAMPLES))]]
        self.run.table("traces", 0, shown)
        tables = {
            "Cases left after each stage": funnel.margins(rows),
            "Why candidates failed": [{"reason": k, "candidates": n} for k, n in tally.reasons.most_common()],
            "Collection": self.store.fact("collection") or [],
            "Held against test sets": decontamination.table(self.store.fact("compared") or {}),
            "Attempts": [self.answers.totals()],
            "Answered by": served(self.answers),
        }
        text = "\n".join(f"## {title}\n\n{markdown(table)}" for title, table in tables.items())
        files.write_text(self.run.path / "table.md", f"{text}\n{chance_line(tally)}\n")
        if rows[-1]["built"]:
            self.run.finish({"rows": rows[-1], "luck": chance_line(tally), "dataset": str(self.export / "dataset")})
        report.report_run(self.run.path, [report.Table(title, table) for title, table in tables.items()])
        print(markdown(tables["Cases left after each stage"]) + chance_line(tally), flush=True)


def nothing(every: Sequence[Trace], reviewed: str, waits: Mapping[str, str]) -> str:
    """The reason why no trace can be built, and the fix; `waits` as `review.waiting` gives it."""
    passed = [trace for trace in every if trace.check.passed]
    states = Counter(waits[trace.id] for trace in passed if trace.id in waits)
    needs = {"open": "for a second reviewer", "conflict": "for an adjudicator, since reviewers differ"}
    wait = " and ".join(
        f"{states[state]} {'wait' if states[state] > 1 else 'waits'} {needs[state]}" for state in states
    )
    if passed and reviewed == "accepted":
        return (
            f"people have accepted none of the {len(passed)} traces that passed stage 1{wait and f': {wait}'}; review "
            "them (configs/review.py; config.overlap and config.raters say how many see each), or build with "
            "config.reviewed=any"
        )
    if passed:
        return f"people have rejected all {len(passed)} traces that passed stage 1{wait and f', but {wait}'}"
    reasons = Counter(trace.check.reasons[0].partition(":")[0] for trace in every).most_common(1)
    why = "".join(f", {count} of them {reason}" for reason, count in reasons)
    return (
        f"none of {len(every)} candidates passed stage 1{why}; take a teacher that knows more "
        '(configs/dataset.py:endpoint; "mini" knows the embedded cases alone) or more config.candidates'
    )


def chance_line(tally: Tally) -> str:
    """Candidates that match the key, beside those that a blind choice would match."""
    if not tally.asked:
        return "no candidate was answered"
    return (
        f"{tally.asked} candidates: {tally.matched} match the key ({tally.matched / tally.asked:.1%}); by luck alone "
        f"{tally.by_luck:.0f} would ({tally.by_luck / tally.asked:.1%}); {tally.passed} pass stage 1"
    )


def served(answers: Answers) -> list[dict[str, Any]]:
    """Models that answered and settings that the server refused, as rows of a table."""
    return [
        {
            "model that answered": model or "not said",
            "settings refused": ", ".join(left_out) or "none",
            "answers": count,
        }
        for model, left_out, count in answers.served()
    ]


def _sample(trace: Any) -> dict[str, Any]:
    """A candidate as the report's browser shows it."""
    case = trace.case
    options = "\n".join(lettered(case.options))
    return {
        "id": trace.id,
        "correct": trace.check.passed,
        "specialty": trace.specialty,
        "subspecialty": case.task,
        "paradigm": trace.paradigm,
        "key": case.answer,
        "read": trace.check.answer,
        "reasons": ", ".join(trace.check.reasons),
        "images": [picture.picture() for picture in case.images],
        "question": f"{case.question}\n{options}",
        "completion": trace.response,
    }
