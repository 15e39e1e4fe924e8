"""The job `evaluate` (section 5): models on benchmarks, their answers, rows, tables and report."""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from ml_collections import ConfigDict

from mmedexpert_jax.answers import lettered
from mmedexpert_jax.data import benchmarks
from mmedexpert_jax.data.benchmarks import Benchmark
from mmedexpert_jax.data.benchmarks.registry import entry_parts
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError, DataError, RemoteError
from mmedexpert_jax.medeval import conditions
from mmedexpert_jax.medeval.ask import Asker, questions
from mmedexpert_jax.medeval.backends import Backend
from mmedexpert_jax.medeval.backends.choose import generation, open_backend
from mmedexpert_jax.medeval.controls import variants
from mmedexpert_jax.medeval.evaluate import Evaluation, judged
from mmedexpert_jax.medeval.finish import finish
from mmedexpert_jax.medeval.identifiers import sendable, sendable_requests
from mmedexpert_jax.medeval.results import Result, slug
from mmedexpert_jax.medeval.store import AnswerLog
from mmedexpert_jax.medeval.systems import Target, parse
from mmedexpert_jax.remote.protocol import host_of
from mmedexpert_jax.rounding import cdiv
from mmedexpert_jax.runtime import Run, files

SAMPLES = 100  # answers that a training run shows of an evaluation
MINI = "mmedexpert_mini"  # the benchmark that reads data.path and split


def run(config: ConfigDict, run: Run) -> None:
    """Asks `model.path` and every model of `compare` every question of every benchmark, and says how they differ.

    Answers are stored as they come, so that a run that was stopped asks none of them again. With `processes` above 1
    only this process's share is asked; a run of one process with the same folder of answers then makes the tables. It
    alone asks endpoints and the judge, so that their limits, budget and stored answers are those of one process.

    Raises:
        ConfigError: a name twice, an unknown benchmark, system, prompt or scorer.
        DataError: a benchmark's files, a model, or a question that a model cannot take.
        RemoteError: the hub or an endpoint.
        Interrupted: a signal came.
    """
    targets, results = answer(config, run)
    if config.processes > 1:
        found = [one for result in results.values() for one in result.evaluations.items()]
        answered = {t.name: sum(len(one.rows) for name, one in found if name == t.name) for t in targets}
        run.finish({"answers": answered})
        print(f"process {config.process} of {config.processes} has its answers; a run of one process makes the tables")
        return
    requests = _requests(_folder(config, run), targets)
    styles = {target.name: target.style(config.prompt) for target in targets}
    asked = conditions.table(config, targets, styles, results, requests)
    finish(config, run, targets, results, requests, asked)


def answer(config: ConfigDict, run: Run) -> tuple[list[Target], dict[str, Result]]:
    """The models, and by benchmark what they answered, or this process's share of it; raises what `run` does."""
    targets = models(config)
    for name in config.controls:
        variants((), name)  # refuses an unknown one before any work
    folder = _folder(config, run)
    if config.get("fresh") and config.processes == 1 and not config.answers:
        shutil.rmtree(folder, ignore_errors=True)
    loaded = load(config, partial(print, flush=True))
    rubric = [key for key, benchmark in loaded.items() if any(item.kind == "rubric" for item in benchmark.items)]
    if rubric and not config.judge.model:
        raise ConfigError(f"{rubric[0]} is graded by a judge: set config.judge.model and config.judge.url")
    results = {key: Result(benchmark, {}) for key, benchmark in loaded.items()}
    for target in targets:
        if config.processes > 1 and target.kind == "endpoint":
            print(f"{target.name}: an endpoint is asked by one process, which makes the tables", flush=True)
            continue
        with contextlib.closing(open_backend(config, target, folder / slug(target.name), run)) as backend:
            for key, result in results.items():
                _measure(config, run, backend, target, key, result, folder)
    return targets, results


def _measure(
    config: ConfigDict, run: Run, backend: Backend, target: Target, key: str, result: Result, folder: Path
) -> None:
    """Puts into `result` what one model answers to one benchmark and to its controls, judged."""
    whole = result.benchmark.items
    items = whole
    if target.kind == "endpoint":
        place = _findings_path(run, f"{target.name}-{key}")
        items = sendable(whole, f"{target.name} ({key})", config.privacy, place)
        result.kept_back[target.name] = len(whole) - len(items)
        if not items:
            raise DataError(
                f"config.privacy={config.privacy} keeps all {len(whole)} questions of "
                f"{key} from {target.name}; take out what may identify a person, or choose another mode"
            )
    made = [one for name in config.controls for one in variants(items, name, config.rotations, config.seed)]
    groups = [items, *(control.items for control in made)]
    found = _ask(config, run, backend, target, key, groups, folder / slug(target.name) / slug(key))
    asked = [key, *(f"{key}, {control.name}" for control in made)]
    plain, *changed = (
        _judge(config, run, target, name, evaluation, group, folder)
        for name, evaluation, group in zip(asked, found, groups, strict=True)
    )
    result.evaluations[target.name] = plain
    result.controls[target.name] = [
        replace(control, evaluation=evaluation) for control, evaluation in zip(made, changed, strict=True)
    ]


def models(config: ConfigDict) -> list[Target]:
    """The models to evaluate, the reference first.

    Raises:
        ConfigError: a name twice, also as a file's, an unknown system, or top_k for an endpoint, whose protocol has no
            such field.
    """
    named: dict[str, Target] = {}
    for entry in (config.model.path, *config.get("compare", ())):
        target = parse(entry, config.endpoint.url)
        if target.name in named:
            raise ConfigError(f"two models are called {target.name!r}: give names as name=path")
        if target.kind == "endpoint" and config.temperature > 0 and config.top_k > 0:
            raise ConfigError(f"config.top_k: {target.name} is an endpoint, which takes none; set 0, or use top_p")
        named[target.name] = target
    _refuse_one_file("models", named)
    served = [target for target in named.values() if target.kind == "endpoint"]
    owner = host_of(config.endpoint.url or (served[0].url if served else ""))
    for target in served:  # a key is a secret between two
        if target.key_env is None:
            own = config.endpoint.key_env if host_of(target.url) == owner else ""
            named[target.name] = replace(target, key_env=own)
    return list(named.values())


def _refuse_one_file(what: str, names: Iterable[str]) -> None:
    """Raises ConfigError where the files of two names, or of none, would be one: "a/b" and "a-b"."""
    by_file: dict[str, str] = {}
    for name in names:
        file = slug(name)
        if not file:
            raise ConfigError(f"{what}: no file can be called {name!r}; give a name with letters as name=path")
        if file in by_file:
            raise ConfigError(f"{what} {by_file[file]!r} and {name!r} would share files; give other names")
        by_file[file] = name


def load(config: ConfigDict, say: Callable[[str], None] = print) -> dict[str, Benchmark]:
    """The benchmarks by their entry's name, subset and split; `say` takes what was counted in each."""
    loaded = {}
    for entry in config.benchmarks:
        key = entry.partition("=")[0]
        name, subset, split, source = entry_parts(entry)
        if name == MINI:
            source = source or ("" if config.data.path == "mini" else config.data.path)
            split = split or config.split
        if key in loaded:
            raise ConfigError(f"config.benchmarks names {key} twice; evaluate its other files in a run of their own")
        loaded[key] = benchmarks.load(
            name,
            source,
            split=split,
            subset=subset,
            limit=config.limit,
            seed=config.seed,
            skip_broken=config.skip_broken,
        )
        say(benchmarks.describe(loaded[key]))
    if not loaded:
        raise ConfigError("config.benchmarks is empty; name at least one")
    _refuse_one_file("benchmarks", loaded)
    return loaded


def sample_rows(evaluation: Evaluation, items: Sequence[Case]) -> list[dict]:
    """Up to SAMPLES answers at even distances, with question, options and images, to be read."""
    by_id = {item.id: item for item in items}
    stride = max(1, cdiv(len(evaluation.rows), SAMPLES))
    rows = []
    for row in evaluation.rows[::stride]:
        item = by_id[row.id]
        options = "\n".join(lettered(item.options))
        shown = {"id": row.id, "correct": row.right, "key": row.answer, "read": row.said, "tokens": row.tokens}
        shown |= dict(row.labels) | {"images": [image.picture() for image in item.images]}
        rows.append(shown | {"question": f"{item.question}\n{options}", "completion": row.response})
    return rows


def _folder(config: ConfigDict, run: Run) -> Path:
    """The folder of stored answers; processes that share the work stand beside each other in one folder.

    That folder is marked as the run that will make the tables, so that it may be opened although answers stand in it.
    """
    shared = run.path.parent
    apart = not config.answers and config.processes > 1 and run.path.name.startswith("process-")
    if apart and not files.is_run(shared):
        files.mark(shared, "run", job="evaluate")
    return answers_folder(config, run.path)


def answers_folder(config: ConfigDict, run: Path) -> Path:
    """The folder of a run's stored answers, or `config.answers`; of several processes beside their folders."""
    return Path(config.answers or (run if config.processes == 1 else run.parent) / "answers").expanduser()


def _requests(folder: Path, targets: Sequence[Target]) -> list[dict[str, str]]:
    """A row for each endpoint of a model, and then for the judge's, of what all runs that share the folder of answers
    asked of it: totals, models that the server says have answered, settings that it refused, so that it was asked
    without them, and the share of its answers that are refusals."""
    from mmedexpert_jax import remote

    paths = {t.name: folder / slug(t.name) / "attempts.sqlite" for t in targets if t.kind == "endpoint"}
    rows = []
    for name, path in {**paths, "judge": folder / "judge.sqlite"}.items():
        if not path.is_file():
            continue
        with contextlib.closing(remote.Answers(path)) as history:
            totals = {key: f"{value:,.{4 if key == 'cost' else 0}f}" for key, value in history.totals().items()}
            served, declined = history.served(), history.refused()
        models = dict.fromkeys(model for model, _, _ in served if model)
        settings = sorted({setting for _, left_out, _ in served for setting in left_out})
        rows.append(
            {"model": name}
            | totals
            | {
                "answered as": ", ".join(models) or "not said",
                "settings refused": ", ".join(settings) or "none",
                "answers refused": f"{declined} of {sum(count for *_, count in served)}",
            }
        )
    return rows


def _ask(
    config: ConfigDict,
    run: Run,
    backend: Backend,
    target: Target,
    key: str,
    groups: Sequence[Sequence[Case]],
    folder: Path,
) -> list[Evaluation]:
    """This process's share of the items of each group, asked and judged; `folder` keeps the answers.

    All groups are asked in one pass: rows of the engine never wait for the last answer of a group, and a question that
    stands in several, such as a text question beside its blind control, is asked once.
    """
    built = [questions(items, target.style(config.prompt), config.paradigm or None) for items in groups]
    asked = [question for group in built for question in group]
    refused: list[str] = []
    with AnswerLog(folder, config.process) as answers, run.progress(len(asked), label=f"{target.name}, {key}") as bar:
        if answers.broken:
            print(f"{folder}: {answers.broken} broken lines left out; their questions are asked again", flush=True)
        number, of = config.process, config.processes
        asker = Asker(backend, answers, generation(config), config.num_samples, number, of, bar.update)
        if config.skip_broken:
            asker.refuse = lambda name, error: refused.append(str(error))
        found = asker.ask(asked)
    if refused:
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        print(f"{target.name}: {len(refused)} questions of {key} left out: {'; '.join(refused[:3])}{more}", flush=True)
    if refused and not found and config.processes == 1:
        raise DataError(f"{target.name}: all {len(refused)} questions of {key} were refused, the first: {refused[0]}")
    evaluations, start = [], 0
    for group in built:
        answered = [found[place] for place in range(start, start + len(group)) if place in found]
        rows = [
            judged(one.case, one.replies, form=one.form, paradigm=one.paradigm, scorer=config.scorer, first=one.first)
            for one in answered
        ]
        evaluations.append(Evaluation(tuple(chain.from_iterable(rows))))
        start += len(group)
    return evaluations


def _judge(
    config: ConfigDict, run: Run, target: Target, key: str, found: Evaluation, cases: Sequence[Case], folder: Path
) -> Evaluation:
    """The evaluation with the verdicts and grades of config.judge, where one is named; they are stored in `folder`."""
    if not config.judge.model or not found.rows or config.processes > 1:
        return found
    from mmedexpert_jax import remote
    from mmedexpert_jax.medeval import rubric_judge
    from mmedexpert_jax.medeval.judge import judge
    from mmedexpert_jax.remote.protocol import endpoint

    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(remote.Answers(folder / "judge.sqlite")) as history:
        client = remote.Client(endpoint(config.judge, temperature=0.0), history, run.interrupted)
        allowed = partial(
            sendable_requests,
            receiver=f"the judge ({key}, {target.name})",
            mode=config.privacy,
            table=_findings_path(run, f"judge-{target.name}-{key}"),
        )
        items = {case.id: case for case in cases}
        say = partial(print, f"{target.name}, {key}:", flush=True)
        judged = judge(client, items, found, config.judge.what, allowed, say)
        graded = rubric_judge.grade(client, items, judged, allowed)
        if not graded.rows:
            raise RemoteError(
                f"{config.judge.model} graded none of {len(found.rows)} answers of {target.name} to {key}: its replies "
                'hold no {"criteria_met": true or false}, or config.privacy kept them back; take another judge'
            )
        if lost := len(found.rows) - len(graded.rows):
            print(f"{target.name}: {lost} answers of {key} left out: the judge did not grade them", flush=True)
        return graded


def _findings_path(run: Run, name: str) -> Path:
    """The file in which a run says what may identify a person in what it sends."""
    return run.path / "export" / "privacy" / f"{slug(name)}.csv"
