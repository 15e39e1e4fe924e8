"""The dataset job against a loopback teacher: survived misbehaviour and kills, built, reviewed, trained from."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmedexpert_jax.data import SPECIALTIES, load_cases
from mmedexpert_jax.errors import ConfigError, DataError, RemoteError
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.launch.job_plan import describe
from mmedexpert_jax.launch.jobs import run_job
from mmedexpert_jax.mmedexpert import dataset_build, dataset_job, filters
from mmedexpert_jax.mmedexpert.factory_store import FILE, Store
from mmedexpert_jax.mmedexpert.record import Check, RawCase, Trace
from mmedexpert_jax.remote import Answers
from tests.mmedexpert.fake_teacher import answer
from tests.remote.loopback import FAULTS, Loopback, Misbehaviour

KEY = "sk-very-secret-0123456789"
MISBEHAVING = Misbehaviour(share=0.25, in_a_row=3, filtered=0.01, rejected=0.01, retry_after=0.01)
INSERT = """INSERT INTO review_events (time, reviewer, role, trace_id, kind, value, seconds, client_id)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
TOPICS = ("angina and heart failure", "a brain tumour", "migraine", "colon cancer", "asthma", "hearing loss")


def raw_cases(path: Path, count: int) -> Path:
    """Cases that differ in a word or two of each five."""
    lines = []
    for i in range(count):
        age = 3 + i % 80
        text = f"A {age}-year-old patient {i} has {TOPICS[i % 6]} with sign {i * 7} since day {i * 3}."
        row = {"id": f"own-{i}", "question": f"{text} What is the most likely diagnosis?", "answer": "ABC"[i % 3]}
        row |= {
            "options": {"A": "First disease", "B": "Second disease", "C": "Third disease"},
            "licence": "CC0",
            "redistributable": i % 5 > 0,
        }
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """(server, fields) -> config of a run on 60 cases (or `cases`) in tmp_path/run."""
    monkeypatch.setenv("TEACHER_KEY", KEY)

    def make(server: Loopback, cases: int = 60, workdir: str = "run", **fields):
        path = tmp_path / f"raw-{cases}.jsonl"
        return load_config("configs/dataset.py:endpoint", overrides(server, path, cases, tmp_path / workdir) | fields)

    return make


def overrides(server: Loopback, path: Path, cases: int, workdir: Path) -> dict:
    return {
        "workdir": str(workdir),
        "data.path": str(path if path.exists() else raw_cases(path, cases)),
        "benchmarks": (),
        "candidates": 3,
        "words": (5, 100),
        "teacher.url": server.url,
        "teacher.model": "practice",
        "teacher.key_env": "TEACHER_KEY",
        "teacher.retry_wait": 0.01,
        "teacher.timeout": 4.0,
        "teacher.max_tokens": 200,
        "teacher.price_input": 1.0,
        "teacher.price_output": 10.0,
    }


def built(run: Path) -> dict[str, str]:
    """Hashes of all that was built, by name."""
    files = (path for path in (run / "export").rglob("*") if path.is_file())
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, _key):
    """A finished run of 60 cases with a well-behaved teacher, and the server's counts."""
    folder = tmp_path_factory.mktemp("finished")
    with Loopback(answer, key=KEY) as server:
        config = load_config("configs/dataset.py:endpoint", overrides(server, folder / "raw.jsonl", 60, folder / "run"))
        run_job(config)
    return folder / "run", server


@pytest.fixture(scope="module")
def _key():
    os.environ["TEACHER_KEY"] = KEY
    yield
    del os.environ["TEACHER_KEY"]


def survives(dataset, cases: int, **fields) -> None:
    """A misbehaving server changes the history and nothing else."""
    with Loopback(answer, MISBEHAVING, key=KEY) as server:
        config = dataset(server, cases, **{"candidates": 1, "teacher.concurrency": 64} | fields)
        run_job(config)
        asked = dict(server.asked)
        assert server.failed.keys() == {*FAULTS, "filtered", "rejected"}
        assert max(asked.values()) > MISBEHAVING.in_a_row  # one of them failed as often as any does
        store = Store(Path(config.workdir) / FILE)
        traces = list(store.traces(passed=None))
        given_up = cases - len(traces)
        assert given_up <= 0.03 * cases  # those that get a 400 always, and nothing else
        assert len(traces) == server.answered.total() + sum(t.check.reasons[:1] == ("no-answer-came",) for t in traces)
        assert max(server.answered.values()) == 1  # nothing that was answered was asked again
        assert max(asked.values()) <= config.teacher.max_attempts
        run_job(config)  # every stored answer is there: only what was refused is asked again
        again = {content for content, count in server.asked.items() if count > asked.get(content, 0)}
        assert len(again) == given_up and not again & set(server.answered)


def test_cases_survive_a_server_that_misbehaves_in_every_way(dataset):
    survives(dataset, 150)


@pytest.mark.slow
def test_ten_thousand_cases_survive_a_misbehaving_server(dataset):
    survives(dataset, 10_000, **{"teacher.timeout": 10.0})


def test_misbehaviour_leaves_no_trace_in_the_data_set(dataset, tmp_path):
    wrong = Misbehaviour(share=0.4, in_a_row=3, retry_after=0.01)
    with Loopback(answer, key=KEY) as good, Loopback(answer, wrong, key=KEY) as bad:
        run_job(dataset(good, workdir="good", **{"stages": ("collect", "trace", "build")}))
        run_job(dataset(bad, workdir="bad", **{"stages": ("collect", "trace", "build")}))
    assert built(tmp_path / "good") == built(tmp_path / "bad")
    assert bad.asked.total() > bad.answered.total() == good.answered.total()


def killed(tmp_path: Path, kills: int, cases: int) -> None:
    """A run killed at random moments ends with the bytes of one that was not, and pays nothing twice but what flew."""
    random_ = random.Random(0)
    slow = Misbehaviour(share=0.1, in_a_row=2, retry_after=0.01)
    with Loopback(answer, slow, latency=0.03, key=KEY) as server:
        fields = overrides(server, tmp_path / "raw.jsonl", cases, tmp_path / "whole") | {"teacher.concurrency": 8}
        run_job(load_config("configs/dataset.py:endpoint", fields))
        server.asked.clear(), server.answered.clear()
        (tmp_path / "fields.json").write_text(json.dumps(fields | {"workdir": str(tmp_path / "cut")}))
        command = [sys.executable, "-m", "mmedexpert_jax.launch", "--config=configs/dataset.py:endpoint"]
        command.append(f"--overrides={tmp_path / 'fields.json'}")
        environment = os.environ | {"TEACHER_KEY": KEY}
        for _ in range(kills):
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before, deadline = server.asked.total(), time.monotonic() + 60
            target = before + random_.randint(0, 2 * cases // kills)
            while process.poll() is None and server.asked.total() < target and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(random_.random() * 0.2)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    assert built(tmp_path / "cut") == built(tmp_path / "whole")
    in_flight = 8 * kills
    assert server.answered.total() <= Answers(tmp_path / "whole" / FILE).totals()["answered"] + in_flight


def test_a_killed_run_ends_with_the_same_bytes(tmp_path, _key):
    killed(tmp_path, kills=2, cases=40)


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_with_the_same_bytes(tmp_path, _key):
    killed(tmp_path, kills=20, cases=200)


def test_training_reads_what_was_built(finished):
    run, _ = finished
    cases = [case for split in ("train", "dev", "test") for case in load_cases(run / "export" / "dataset", split)]
    assert len({case.id for case in cases}) == len(cases) > 30
    for case in cases:
        passed = filters.check(
            f"<think>{case.trace}</think><answer>{case.answer}</answer>", as_record(case), case.paradigm
        )
        assert passed.passed and case.paradigm in case.paradigms
    found = {case.specialty for case in cases}
    assert found == set(SPECIALTIES)
    for name in found:
        assert load_cases(run / "export" / "dataset", "train", specialty=name)


def as_record(case):
    from mmedexpert_jax.mmedexpert.record import RawCase

    return RawCase(case.id, case.question, case.options, case.answer)


def test_datasets_loads_every_specialty(finished, tmp_path):
    import datasets

    folder = finished[0] / "export" / "dataset"
    for name in ("all", *SPECIALTIES):
        loaded = datasets.load_dataset(str(folder), name, cache_dir=str(tmp_path))
        assert all(row["specialty"] == name for row in loaded["train"]) or name == "all"
        assert isinstance(loaded["train"].features["images"].feature, datasets.Image)


def test_restricted_rows_stay_out_of_what_is_public(finished):
    run, _ = finished
    public = [json.loads(line) for line in (run / "export" / "rejected.jsonl").read_text().splitlines()]
    assert not public
    manifest = json.loads((run / "export" / "dataset" / "manifest.json").read_text())
    opened = json.loads((run / "export" / "public" / "manifest.json").read_text())
    rows = {
        name: sum(part["all"] for part in made["rows"].values())
        for name, made in (("all", manifest), ("public", opened))
    }
    import pyarrow.parquet as parquet

    tables = [parquet.read_table(file).to_pylist() for file in (run / "export" / "public").glob("*.parquet")]
    assert 0 < rows["public"] < rows["all"] and all(row["redistributable"] for table in tables for row in table)
    assert sum(map(len, tables)) == rows["public"]
    of = {
        folder: {
            row["id"]: file.stem
            for file in (run / "export" / folder).glob("*.parquet")
            for row in parquet.read_table(file).to_pylist()
        }
        for folder in ("dataset", "public")
    }
    assert of["public"].items() <= of["dataset"].items()  # a case of train here is none of test there


def test_restricted_rows_are_public_only_where_that_is_asked(dataset, tmp_path):
    with Loopback(answer, key=KEY) as server:
        run_job(dataset(server, stages=("collect", "trace")))
        for asked in (False, True):
            run_job(dataset(server, stages=("build",), include_restricted=asked))
            manifests = [tmp_path / "run" / "export" / name / "manifest.json" for name in ("dataset", "public")]
            everything, public = (json.loads(path.read_text())["files"] for path in manifests)
            assert (public == everything) == asked
    card = (tmp_path / "run" / "export" / "public" / "README.md").read_text()
    assert "| plain | CC0 | no |" in card and "| plain | CC0 | yes |" in card


@pytest.mark.parametrize(("mode", "kept_out"), [("report", True), ("redact", False)])
def test_rows_that_may_identify_a_person_are_not_public(dataset, tmp_path, capsys, mode, kept_out):
    path = raw_cases(tmp_path / "raw-60.jsonl", 60)  # that the fixture takes
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[::2]:
        row["question"] = "Mrs. Alice Example was seen on 2023-04-05. " + row["question"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Loopback(answer, key=KEY) as server:
        run_job(dataset(server, **{"include_restricted": True, "data.privacy": mode}))
    import pyarrow.parquet as parquet

    texts = {
        name: [
            row["question"]
            for file in (tmp_path / "run" / "export" / name).glob("*.parquet")
            for row in parquet.read_table(file).to_pylist()
        ]
        for name in ("dataset", "public")
    }
    assert not any("Alice" in text for text in texts["public"]) and texts["public"]
    assert (len(texts["public"]) < len(texts["dataset"])) == kept_out
    assert ("may identify a person; collect with" in capsys.readouterr().out) == kept_out


def test_the_manifest_holds_hashes_and_the_card_the_funnel(finished):
    folder = finished[0] / "export" / "dataset"
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, sha in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha
    last = manifest["funnel"][-1]
    stages = ("raw", "traced", "matched", "passed", "reviewed", "built")
    assert last["raw"] == 60 >= last["traced"] >= last["matched"] >= last["passed"] >= last["built"] > 0
    cells = manifest["funnel"][:-1]
    assert len({(cell["modality"], cell["paradigm"], cell["specialty"]) for cell in cells}) == len(cells) > 4
    assert {cell["specialty"] for cell in cells} == set(SPECIALTIES)
    assert all(sum(cell[stage] for cell in cells) == last[stage] for stage in stages)
    card = (folder / "README.md").read_text()
    assert "No trace has been reviewed" in card and "| all | 60 |" in card and "<!--" not in card


def test_the_key_is_written_nowhere(finished):
    run, _ = finished
    assert not [path for path in run.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_report_says_what_luck_would_give(finished):
    text = (finished[0] / "table.md").read_text()
    assert "by luck alone" in text
    totals = Answers(finished[0] / FILE).totals()
    assert f"{totals['answered']} candidates" in text and f"{totals['answered'] / 3:.0f} would (33.3%)" in text


def test_each_stage_runs_alone_and_early_stop_saves_requests(dataset, tmp_path):
    with Loopback(answer, key=KEY) as server:
        with pytest.raises(ConfigError, match="holds no cases"):
            run_job(dataset(server, stages=("trace",)))
        for stage in ("collect", "trace", "filter", "judge", "build"):
            run_job(dataset(server, stages=(stage,)))
        run_job(dataset(server, workdir="whole"))
    assert built(tmp_path / "run") == built(tmp_path / "whole")
    store = Store(tmp_path / "run" / FILE)
    for case_id in {trace.case.id for trace in store.traces(passed=None)}:
        passes = [t.check.passed for t in store.traces(passed=None) if t.case.id == case_id]
        assert not any(passes[:-1]) and (passes[-1] or len(passes) == 3)


def test_people_decide_what_is_built_and_their_verdicts_survive_fresh(dataset, tmp_path):
    with Loopback(answer, key=KEY) as server:
        run_job(dataset(server))
        store = Store(tmp_path / "run" / FILE)
        accepted, edited, rejected, spoiled, disputed = list(store.traces())[:5]
        text = edited.text.replace("(1) ", "(1) Plainly put: ", 1)
        for trace, kind, new, name in (
            (accepted, "accept", None, "anna"),
            (edited, "edit", text, "anna"),
            (rejected, "reject", None, "anna"),
            (spoiled, "edit", "(1) Nothing of the kind.", "anna"),
            (disputed, "accept", None, "anna"),
            (disputed, "reject", None, "ben"),
        ):
            value = json.dumps({"kind": kind, "text": new, "reasons": [], "note": "", "rubric": {}})
            row = ("2026-01-01T00:00:00", name, "reviewer", trace.id, "verdict", value, 1.0, f"{name}-{trace.id}")
            store.write(lambda db, values=row: db.execute(INSERT, values))
        asked = server.asked.total()
        run_job(dataset(server, stages=("build",), reviewed="accepted"))
        folder = tmp_path / "run" / "export" / "dataset"
        rows = {case.id: case for file in folder.glob("*.parquet") for case in load_cases(file, "")}
        assert set(rows) == {f"{t.case.id}.{t.paradigm}" for t in (accepted, edited)}
        assert rows[f"{edited.case.id}.{edited.paradigm}"].trace == text
        run_job(dataset(server, fresh=True))
        ids = {file: [case.id for case in load_cases(file, "")] for file in folder.glob("*.parquet")}
        left_out = {f"{trace.case.id}.{trace.paradigm}" for trace in (rejected, disputed)}
        assert not left_out & {id for part in ids.values() for id in part}
        assert len(ids) == 3 and server.asked.total() == asked


def test_a_judge_scores_and_decides_nothing(dataset, tmp_path):
    def both(body):
        text = body["messages"][-1]["content"]
        if "Criteria" not in text:
            return answer(body)
        codes = [line.partition(":")[0] for line in text.partition("Criteria\n")[2].splitlines()]
        return json.dumps({code: code != "facts" for code in codes})

    with Loopback(both, key=KEY) as server:
        judge = {"judge.kind": "chat", "judge.url": server.url, "judge.model": "j", "judge.key_env": "TEACHER_KEY"}
        run_job(dataset(server, **judge))
    traces = list(Store(tmp_path / "run" / FILE).traces())
    assert all(0 < trace.judge.score < 1 and dict(trace.judge.criteria)["facts"] is False for trace in traces)
    assert all(trace.check.passed for trace in traces)


def test_the_teacher_votes_on_specialties_and_a_third_vote_breaks_a_tie(dataset, tmp_path):
    def votes(body):  # the first two differ on every third case
        number = int(re.search(r"patient (\d+)", str(body["messages"]))[1])
        return "D" if body["seed"] == 0 and number % 3 == 0 else "C"

    with Loopback(votes, key=KEY) as server:
        run_job(dataset(server, votes=True, stages=("collect",)))
    assert server.asked.total() == 60 * 2 + 20
    assert {(r.specialty, r.specialty_by) for r in Store(tmp_path / "run" / FILE).cases()} == {("BS", "votes")}


def test_a_spent_budget_stops_and_a_higher_one_goes_on(dataset, tmp_path):
    with Loopback(answer, key=KEY) as server:
        with pytest.raises(RemoteError, match="budget"):
            run_job(dataset(server, **{"teacher.budget": 0.05}))
        spent = Answers(tmp_path / "run" / FILE).spent()
        assert 0.03 < spent <= 0.05
        run_job(dataset(server, **{"teacher.budget": 50.0}))
        assert max(server.answered.values()) == 1


def test_the_batch_api_builds_the_same_data_set(dataset, tmp_path):
    with Loopback(answer, key=KEY) as server:
        run_job(dataset(server, workdir="chat"))
        run_job(dataset(server, workdir="batch", **{"teacher.kind": "batch"}))
    assert built(tmp_path / "chat") == built(tmp_path / "batch")
    chat, batch = (Answers(tmp_path / name / FILE).spent() for name in ("chat", "batch"))
    assert batch == pytest.approx(chat / 2)


def test_a_plan_counts_and_prices_without_asking_or_writing(dataset, tmp_path):
    with Loopback(answer, key=KEY) as server:
        text = describe(dataset(server))
    assert not server.asked and not (tmp_path / "run").exists()
    assert "60 to 180 (3 candidates at most)" in text and "12 not to be passed on" in text and "about $" in text


def test_files_that_are_mostly_refused_stop_the_run_and_list_why(dataset, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"x": 1}\n' * 3)
    said = (
        r"3 of 3 raw rows were refused, 3 of them as unknown-shape, such as row 1 of bad\.jsonl: it has x; .*question"
    )
    with Loopback(answer, key=KEY) as server, pytest.raises(DataError, match=said):
        run_job(dataset(server, **{"data.path": str(path)}))
    listed = (tmp_path / "run" / "export" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in listed] == [1, 2, 3]


def test_cases_of_a_test_set_are_dropped_and_stand_in_a_table(dataset, tmp_path, capsys):
    with Loopback(answer, key=KEY) as server:
        config = dataset(server, stages=("collect", "trace", "build"))
        leak = json.loads((tmp_path / "raw-60.jsonl").read_text().splitlines()[7])
        item = leak | {
            "question": leak["question"].replace("What is the most likely", "Which is his"),
            "specialty": "AM",
        }
        folder = tmp_path / "tests" / "mmedexpert_mini"
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_text(json.dumps(item | {"paradigm": "", "trace": ""}))
        config.benchmarks = (f"all={tmp_path / 'tests'}",)
        run_job(config)
    export = tmp_path / "run" / "export"
    pairs = (export / "contamination.csv").read_text().splitlines()
    assert len(pairs) == 2 and pairs[1].endswith("drop") and "mmedexpert_mini,own-7" in pairs[1]
    [rejected] = [json.loads(line) for line in (export / "rejected.jsonl").read_text().splitlines()]
    assert rejected["reason"] == "contaminated" and rejected["content"]["question"] == leak["question"]
    assert (rejected["file"], rejected["row"]) == ("raw-60.jsonl", 8)
    assert len(Store(tmp_path / "run" / FILE).cases()) == 59
    manifest = json.loads((export / "dataset" / "manifest.json").read_text())
    assert manifest["compared"]["mmedexpert_mini"] == 1 and manifest["compared"]["pathvqa"] == 0
    assert "| pathvqa | not at hand |" in (export / "dataset" / "README.md").read_text()
    out = capsys.readouterr().out
    assert "held against mmedexpert_mini (1 items): 1 cases dropped" in out and "not held against" in out


@pytest.mark.parametrize(
    ("field", "code", "words"),
    [
        ("data.path=typo.jsonl", 3, "config.data.path: no such file or directory: typo.jsonl"),
        ("teacher.url=", 2, "needs url and model"),
        ("teacher.model=", 2, "no model is named"),
        ("teacher.key_env=NO_SUCH_KEY", 2, "NO_SUCH_KEY is not set"),
    ],
)
def test_a_mistake_leaves_no_run_behind_for_its_mend_to_meet(tmp_path, capsys, monkeypatch, field, code, words):
    monkeypatch.chdir(tmp_path)
    raw_cases(tmp_path / "raw.jsonl", 3)
    fields = ["data.path=raw.jsonl", "teacher.url=http://localhost:9/v1", "teacher.model=m", "teacher.key_env=", field]
    assert main(["--config=configs/dataset.py:endpoint", *(f"--config.{one}" for one in fields)]) == code
    assert words in capsys.readouterr().err and not Path("runs").exists()


def test_where_nothing_can_be_built_the_run_says_why(dataset, tmp_path):
    with Loopback(lambda body: "I do not know.", key=KEY) as server:
        said = r"none of 60 candidates passed stage 1, 60 of them malformed; take a teacher .* see .*table\.md"
        with pytest.raises(DataError, match=said):
            run_job(dataset(server, candidates=1))
    assert "| unreadable-answer | 60 |" in (tmp_path / "run" / "table.md").read_text()
    assert (tmp_path / "run" / "report.html").exists() and not (tmp_path / "run" / "export" / "dataset").exists()


def test_people_who_have_accepted_nothing_are_told(dataset):
    with Loopback(answer, key=KEY) as server, pytest.raises(DataError, match="people have accepted none of the"):
        run_job(dataset(server, reviewed="accepted"))


def test_files_with_cases_are_readable_by_their_owner_alone(finished):
    files = [path for path in finished[0].rglob("*") if path.suffix in (".sqlite", ".parquet", ".jsonl", ".csv")]
    assert len(files) > 5 and all(path.stat().st_mode & 0o077 == 0 for path in files if path.name != "metrics.jsonl")


def test_traces_that_wait_for_people_are_told_apart_from_rejected_ones(finished):
    store = Store(finished[0] / FILE)
    traces = list(store.traces())[:7]
    store.close()
    waits = {trace.id: "open" for trace in traces[:6]} | {traces[6].id: "conflict"}
    said = dataset_job.nothing(traces, "accepted", waits)
    assert "accepted none of the 7 traces that passed stage 1: 6 wait for a second reviewer and 1 waits for an" in said
    assert dataset_job.nothing(traces, "any", {}) == "people have rejected all 7 traces that passed stage 1"


def test_the_documented_stand_in_passes_the_endpoint_presets_own_bounds(dataset):
    with Loopback(answer, key=KEY) as server:
        words = load_config("configs/dataset.py:endpoint").words
        config = dataset(server, 10, words=words, candidates=4)
        run_job(config)
    store = Store(Path(config.workdir) / FILE)
    assert len({trace.case.id for trace in store.traces()}) == 10


def test_bounds_of_stage_one_can_be_changed_afterwards(dataset, tmp_path):
    with Loopback(answer, key=KEY) as server:
        run_job(dataset(server, stages=("collect", "trace")))
        asked, store = server.asked.total(), Store(tmp_path / "run" / FILE)
        before, told = len(list(store.traces())), sorted((tmp_path / "run" / "export").iterdir())
        run_job(dataset(server, stages=("filter",), words=(60, 100), fresh=True))
        assert told and sorted((tmp_path / "run" / "export").iterdir()) == told  # what collecting wrote
        assert server.asked.total() == asked and 0 < len(list(store.traces())) < before


def test_the_live_line_has_rate_spend_projection_and_time_left(dataset, capsys):
    with Loopback(answer, key=KEY) as server:
        run_job(dataset(server, stages=("collect", "trace")))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("traces ")]
    form = r"traces \d+/60  requests/s [\d.]+  \$ 0\.\d{4}  of about \$ 0\.\d\d  ETA \d+:\d\d:\d\d"
    assert len(lines) > 5 and all(re.fullmatch(form, line) for line in lines)


def test_only_what_may_be_passed_on_is_pushed(monkeypatch, tmp_path):
    calls = []

    class Api:
        def create_repo(self, *args, **kwargs):
            assert kwargs["private"]  # where it is new; one that is there keeps what its owner chose
            calls.append(args)

        def upload_folder(self, folder_path, **kwargs):
            calls.append(folder_path)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(ConfigError, match="no row may be passed on"):
        dataset_build.push(tmp_path, "me/set")
    (tmp_path / "train.parquet").touch()
    dataset_build.push(tmp_path, "me/set")
    assert calls == [("me/set",), tmp_path]


@pytest.mark.parametrize(
    ("question", "trace", "named"),
    [
        ("What is it?", "(1) Crystals. (2) Gout.", False),
        ("Mrs. Alice Example was seen on 2023-04-05. What is it?", "(1) Crystals. (2) Gout.", True),
        ("[name] was seen on [date]. What is it?", "(1) Crystals. (2) Gout.", False),  # redacted before
        ("What is it?", "(1) Mrs. Alice Example has crystals. (2) Gout.", True),
    ],
)
def test_a_row_that_may_identify_a_person_is_known_by_its_texts(question, trace, named):
    case = RawCase("x-1", question, ("gout", "sepsis"), "A", redistributable=True, flags=("identifying:name",))
    one = dataset_build.Built(SimpleNamespace(case=case), trace, "none")
    assert dataset_build.identifies(one) == named


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ("/home/dr.smith/st-mary/model", "model"),
        ("~/m", "m"),
        ("Qwen/Qwen2-VL-2B", "Qwen/Qwen2-VL-2B"),
        ("a/b/c", "a/b/c"),
    ],
)
def test_a_row_names_its_teacher_and_no_place_of_this_machine(teacher, told):
    case = RawCase("x-1", "What is it?", ("gout", "sepsis"), "A", "AM")
    trace = Trace("t", case, "analytical", "(1) x.", "", teacher, 0, "r", Check(True, "A"))
    assert dataset_build.Built(trace, "(1) x.", "none").row()["teacher"] == told


@pytest.mark.slow
def test_the_embedded_cases_become_a_data_set_that_dsa_and_gba_train_from(tmp_path):
    config = load_config("configs/dataset.py", {"workdir": str(tmp_path / "run")})
    run_job(config)
    cases = [
        c for split in ("train", "dev", "test") for c in load_cases(tmp_path / "run" / "export" / "dataset", split)
    ]
    assert len(cases) > 100 and {case.specialty for case in cases} == set(SPECIALTIES)
    assert {case.modality for case in cases} == {"text", "image"}
    trained = {"data.path": f"{config.workdir}/export/dataset", "steps": 1, "eval.limit": 8}
    small = {"prompts_per_step": 2, "num_samples": 2, "max_new_tokens": 16}
    for job, fields in (("dsa", {"specialty": "BS"}), ("gba", small)):
        run_job(load_config(f"configs/{job}.py", trained | fields | {"workdir": str(tmp_path / job)}))
        status = json.loads((tmp_path / job / "STATUS.json").read_text())
        assert status["state"] == "done" and status["step"] == 1
        assert list((tmp_path / job / "export" / "adapter").glob("*.safetensors"))
