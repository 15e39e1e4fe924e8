"""Jobs killed with SIGKILL at random moments and run again: they end as one that was never killed, to the last bit.

`python -m pytest tests/fuzz/test_kills.py -m slow -n0 -s` does over a hundred kills and prints how many of each
job. The moments are drawn over the CPU seconds of a job, from MMEDEXPERT_FUZZ, 0 where it is not set.
"""

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx2 as httpx
import jax
import pytest

from mmedexpert_jax import lora, models
from mmedexpert_jax.mmedexpert.factory_store import FILE, Store
from mmedexpert_jax.mmedexpert.review.events import since
from mmedexpert_jax.remote import Answers
from mmedexpert_jax.runtime.files import MARKER
from mmedexpert_jax.runtime.metrics import is_clock
from tests.fuzz.forked import STARTED, Forked, start
from tests.mmedexpert.fake_teacher import answer
from tests.mmedexpert.test_factory import raw_cases
from tests.remote.loopback import Loopback

SEED = int(os.environ.get("MMEDEXPERT_FUZZ", "0"))
PATIENCE = 10.0  # seconds of work within which SIGTERM saves
AGAIN = 6  # kills of one run, before it is left alone
OUTCOMES = ("export", "samples", "answers")  # folders with what a job leaves behind, of a run or of its stages


class Job(NamedTuple):
    """How a job is killed: fields of its config, kills in the slow and in the default tier, processes, devices."""

    fields: tuple[str, ...]
    kills: int
    few: int = 0
    config: str = ""  # empty: the job's own name
    processes: int = 1
    devices: int = 1


TRAIN = ("steps=4", "checkpoint_every=1", "lora.rank=2", "eval.every=2", "eval.batch_size=8", "lr=0.1", "eval.limit=4")
GBA = (
    *(*TRAIN, "eval.every=-1", "num_samples=2", "prompts_per_step=2", "max_new_tokens=6", "samples_every=1"),
    *("micro_batch=1", "rewards.length=1.0"),
)
SPREAD = ("prompts_per_step=4", "mesh.fsdp=2", "shard=full", "packing=1")
SHORT = tuple(f"{stage}.{field}" for stage in ("dsa", "gba") for field in TRAIN[:3])
STAGES = (
    *(*SHORT, "dsa.steps=1", "gba.steps=1", "dsa.max_new_tokens=40", "gba.num_samples=2", "gba.prompts_per_step=2"),
    *("gba.max_new_tokens=4", "evaluate.max_new_tokens=2", "limit=4", "evaluate.batch_size=4"),
)
ENDPOINTS = ("model.path=endpoint:m", "endpoint.url={url}", "endpoint.concurrency=2")
TEACHER = ("candidates=3", "words=5,100", "benchmarks=", "teacher.url={url}", "teacher.model=practice")
JOBS = {
    "dsa": Job((*TRAIN, "max_new_tokens=40", "specialty=AM", "batch_size=1", "accumulation=2"), 8, 1),
    "gba, packed": Job((*GBA, "packing=2"), 7, 1, "gba"),
    "gba, refilled": Job((*GBA, "packing=1", "zero_variance=refill", "refill_rounds=2"), 3, 0, "gba"),
    "gba, sharded": Job((*GBA, *SPREAD), 3, 0, "gba", devices=2),
    "gba, two processes": Job((*GBA, *SPREAD), 2, 0, "gba", processes=2),
    "merge": Job(("experts={adapter},b={adapter}", "density=0.5"), 15, 2),
    "evaluate": Job(("num_samples=2", "temperature=1.0", "max_new_tokens=6", "batch_size=2"), 3, 1),
    "evaluate, endpoint": Job(ENDPOINTS, 13, 1, "evaluate"),
    "dataset": Job((*TEACHER, "teacher.key_env=", "teacher.concurrency=2"), 14, 1, "dataset:endpoint"),
    "export": Job(("model.path={adapter}",), 14, 1),
    "review": Job((), 16, 2),
    "serve": Job(("max_new_tokens=6", "max_prompt_length=128", "rows=2", "adapters=expert={adapter}"), 2),
    "pipeline": Job(STAGES, 2),
    "ablation": Job((*STAGES, "rows=AM,GBA", "seeds=0,1", "diversity.questions=1", "questions=4"), 1),
}  # fmt: skip
SERVERS = ("review", "serve")
READS = {"dataset": "raw", "evaluate, endpoint": "asked", "merge": "", "serve": ""}  # the data of a job; else the cases
CHEAP = ("merge", "dataset")  # whose disks the default tests fill


def _slow(job: str) -> tuple:
    return () if job in CHEAP else (pytest.mark.slow,)


class World(NamedTuple):
    """What the jobs read: places by name, and the server that stands for a paid one."""

    places: dict[str, str]
    paid: Loopback


def said(body: dict) -> str:
    """An answer to a request for a trace; of an evaluation, to a question."""
    try:
        return answer(body)
    except StopIteration:  # no paradigm is asked for
        return "<answer>A</answer>"


def distinct(cases: Path, folder: Path) -> Path:
    """The cases with questions that differ: what is asked twice in the same words is paid once."""
    folder.mkdir()
    for file in cases.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [row | {"question": f"Her age is {30 + i}. {row['question']}"} for i, row in enumerate(rows)]
        (folder / file.name).write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def world(tiny_checkpoint, tiny_cases, tmp_path_factory) -> Iterator[World]:
    shared = tmp_path_factory.mktemp("shared")
    params = models.load_policy(tiny_checkpoint)[1]
    deltas = jax.tree.map(lambda f: f + 0.02, lora.init(jax.random.key(0), params, rank=2, alpha=4, targets="text"))
    lora.save_peft(shared / "adapter", deltas, tiny_checkpoint)
    places = {"model": tiny_checkpoint, "cases": tiny_cases, "adapter": str(shared / "adapter")}
    places["raw"] = str(raw_cases(shared / "raw.jsonl", 8))
    places["asked"] = str(distinct(Path(tiny_cases), shared / "asked"))
    with Loopback(said, latency=0.05) as paid:
        yield World(places | {"url": paid.url}, paid)
    while STARTED:  # a test that failed may have left its job or server running
        STARTED.pop().kill()


def begin(job: str, run: Path, world: World, room: int = 0) -> Forked:
    """The job's command, running in the folder `run`; `room` as in `forked.start`."""
    settings, data = JOBS[job], READS.get(job, "cases")
    fields = [f"workdir={run}", *(["model.path={model}"] if job not in ("dataset", "review") else [])]
    fields += [f"data.path={{{data}}}"] if data else []
    fields += ["port=0"] if job in SERVERS else []
    words = [f"--config.{field.format(**world.places)}" for field in (*fields, *settings.fields)]
    config = settings.config or job
    name, _, preset = config.partition(":")
    command = [f"--config=configs/{name}.py{':' if preset else ''}{preset}", *words]
    return start(command, run.with_name(f"{run.name}.output"), settings.processes, settings.devices, room)


def outcome(run: Path) -> dict:
    """Bytes of what a run and its stages leave, and metrics less those that tell the time."""
    places = [place for name in OUTCOMES for folder in run.rglob(name) for place in folder.rglob("*")]
    found: dict = {}
    for place in (place for place in places if place.is_file() and not place.name.startswith("attempts.sqlite")):
        # a question's key holds the place of an adapter's base
        content: Any = re.sub(rb'"key": "\w+"', b"", place.read_bytes().replace(str(run).encode(), b"RUN"))
        if place.name == "ablation.json":
            content = {name: value for name, value in json.loads(content).items() if name not in ("seconds", "costs")}
        order = "answers" in place.parts  # of an endpoint, which answers as it likes
        found[place.relative_to(run).as_posix()] = sorted(content.splitlines()) if order else content
    for place in run.rglob("metrics.jsonl"):
        rows = map(json.loads, place.read_text().splitlines())
        plain = [{name: value for name, value in row.items() if not is_clock(name)} for row in rows]
        found[place.relative_to(run).as_posix()] = plain
    assert found, "nothing to compare"
    return found


def assert_same(job: str, run: Path, expected: dict) -> None:
    found = outcome(run)
    assert found.keys() == expected.keys(), (job, found.keys() ^ expected.keys())
    differ = [name for name in expected if found[name] != expected[name]]
    assert not differ, (job, differ)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Callable[[str], tuple[dict, float]]:
    """What a job leaves that is never killed, and the work of it: two undisturbed runs end alike."""
    known: dict[str, tuple[dict, float]] = {}

    def of(job: str) -> tuple[dict, float]:
        if job not in known:
            for turn in range(2 if job in ("merge", "evaluate", "export", "dataset") else 1):
                run, work = tmp_path_factory.mktemp("whole") / "run", 0.0
                forked = begin(job, run, world)
                while forked.alive():
                    work = max(work, forked.work())
                    time.sleep(0.1)
                forked.finish()
                if turn:
                    assert_same(job, run, known[job][0])
                known[job] = outcome(run), work
        return known[job]

    return of


def settled(server: Loopback) -> int:
    """Answers that a server has given, to the last that was on its way when its client was killed."""
    count = -1
    while count != server.answered.total():
        count = server.answered.total()
        time.sleep(0.2)  # four times the server's latency
    return count


def stored(job: str, run: Path) -> int:
    """Answers of a paid server that a run has stored."""
    file = {"dataset": run / FILE, "evaluate, endpoint": run / "answers" / "m" / "attempts.sqlite"}[job]
    if not file.exists():
        return 0
    answers = Answers(file)
    count = int(answers.read("SELECT COUNT(*) FROM answers")[0][0])
    answers.close()
    return count


def killed(job: str, kills: int, world: World, whole: Callable, folder: Path) -> int:
    """Kills a job so many times and compares what it ends with. Returns the runs that were compared."""
    rng, done, runs = random.Random(f"{SEED}/{job}/{kills}"), 0, 0
    expected, work = whole(job)
    paid = job in ("dataset", "evaluate, endpoint")
    while done < kills:
        run, before, lost = folder / f"run-{runs}", world.paid.answered.total(), 0
        for _ in range(min(AGAIN, kills - done)):
            forked = begin(job, run, world)
            if not forked.works(rng.uniform(0.0, 0.8) * work) or not forked.kill():
                break
            done += 1
            if paid:  # what was in flight, or came and was not yet stored, is lost: at most one a place in flight
                now = settled(world.paid) - before - stored(job, run)
                assert lost <= now <= lost + 2, (job, lost, now)
                lost = now
        else:
            forked = begin(job, run, world)
        forked.finish()
        assert_same(job, run, expected)
        if paid:
            kept = stored(job, run)
            assert kept > 1, "nothing that could be paid twice"
            assert settled(world.paid) - before == kept + lost, "a stored answer was paid again"
        runs += 1
    return runs


@pytest.mark.parametrize("job", [job for job in JOBS if JOBS[job].few and job not in SERVERS])
def test_a_killed_job_ends_as_one_that_was_not(job, world, whole, tmp_path):
    killed(job, JOBS[job].few, world, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("job", [job for job in JOBS if job not in SERVERS])
def test_a_job_killed_again_and_again(job, world, whole, tmp_path, capsys):
    runs = killed(job, JOBS[job].kills, world, whole, tmp_path)
    with capsys.disabled():
        print(f"\n| {job} | {JOBS[job].kills} kills | {runs} of {runs} runs bit-identical |", end="", flush=True)


# -- servers -----------------------------------------------------------------------------------------------------------
def reviewed(client: httpx.Client, token: str, number: int, traces: list[str]) -> Any:
    """Sends the events of one verdict, under ids that are the same whenever they are sent."""
    headers = {"authorization": f"Bearer {token}"}
    if not traces:
        traces += sorted(item["id"] for item in client.get("/api/queue?count=10", headers=headers).json()["items"])
    sent = [
        {"id": f"{kind}-{number}", "trace": traces[number % len(traces)], "kind": kind, "value": value, "seconds": 1.0}
        for kind, value in (("note", {"text": f"note {number}"}), ("verdict", {"kind": "accept"}))
    ]
    results = client.post("/api/events", json={"events": sent}, headers=headers).json()["results"]
    assert {one["result"] for one in results} <= {"stored", "known"}, results
    return number


def answered(client: httpx.Client, token: str, number: int, traces: list[str]) -> Any:
    """The text of a seeded answer."""
    body = {"messages": [{"role": "user", "content": f"Is {number} high?"}], "seed": number, "max_tokens": 6}
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


ASKED = {"review": reviewed, "serve": answered}


def ready(forked: Forked) -> tuple[str, str]:
    """Address and token of a server, once it says them."""
    while forked.alive():
        said = forked.output.read_text() if forked.output.exists() else ""
        found = re.findall(r"http://(127\.0\.0\.1:\d+)(?:/#token=(\w+))?.*\n(?:every action|$)", said)
        if found:
            return f"http://{found[-1][0]}", found[-1][1]
        time.sleep(0.1)
    raise AssertionError(forked.output.read_text()[-2000:])


def served(job: str, kills: int, world: World, run: Path) -> list:
    """What a client gets that asks one thing after the other, again and again until it is answered."""
    rng, results, asked = random.Random(f"{SEED}/{job}"), [], 2 * max(kills, 4)
    traces: list[str] = []
    moments = sorted(rng.sample(range(asked), kills))
    output = run.with_name(f"{run.name}.output")
    forked = begin(job, run, world)
    address, token = ready(forked)
    for number in range(asked):
        kill = None
        if number in moments:
            kill = threading.Timer(rng.uniform(0, 0.05), forked.kill)
            kill.start()
        while len(results) == number:
            with suppress(httpx.TransportError), httpx.Client(base_url=address, timeout=120) as client:
                results.append(ASKED[job](client, token, number, traces))
            if kill:
                kill.join()
                kill = None
                output.unlink()
                forked = begin(job, run, world)
                address, token = ready(forked)
    forked.send(signal.SIGTERM)
    forked.ended()
    return results


def trail(run: Path) -> list:
    """The events of a review, less their times."""
    store = Store(run / "review.sqlite")
    events = [(e.client_id, e.reviewer, e.trace_id, e.kind, e.value) for e in since(store)]
    store.close()
    return events


def killed_server(job: str, kills: int, world: World, folder: Path) -> None:
    expected, found = (served(job, count, world, folder / name) for name, count in (("whole", 0), ("cut", kills)))
    assert found[: len(expected)] == expected
    if job == "review":
        events = trail(folder / "cut")
        assert [event[0] for event in events if event[1]] == [f"{k}-{n}" for n in found for k in ("note", "verdict")]


def test_a_review_killed_while_it_is_asked_loses_nothing(world, tmp_path):
    killed_server("review", JOBS["review"].few, world, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("job", SERVERS)
def test_a_server_killed_while_it_is_asked(job, world, tmp_path, capsys):
    killed_server(job, JOBS[job].kills, world, tmp_path)
    with capsys.disabled():
        print(f"\n| {job} | {JOBS[job].kills} kills | every answer and event once |", end="", flush=True)


# -- disks -------------------------------------------------------------------------------------------------------------
def full(job: str, tries: int, world: World, whole: Callable, folder: Path) -> None:
    """The disk is full at a byte drawn at random: one line, exit code 4, and the run goes on when there is room."""
    rng, run = random.Random(f"{SEED}/{job}/full"), folder / "run"
    expected, _ = whole(job)
    for _ in range(tries):
        room = int(600 * 200 ** rng.random())  # of 600 bytes, for the line itself, to 120 kB
        forked = begin(job, run, world, room)
        codes, said = set(forked.ended()), forked.output.read_text()
        assert codes <= {0, 4} and "Traceback" not in said, (room, codes, said[-2000:])
        if codes == {0}:
            break
        assert re.match("error: .*(cannot write|cannot be written)|process", said.splitlines()[-1]), said[-500:]
        forked.output.unlink()
    else:
        begin(job, run, world).finish()
    assert_same(job, run, expected)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder as on a disk that has turned read-only: nothing in it can be opened for writing, renamed or made."""
    mount = subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def read_only_disk(job: str, world: World, whole: Callable, folder: Path) -> None:
    """The disk turns read-only at a random moment: one line, exit code 4, as at the next start; what is whole stays."""
    rng, run = random.Random(f"{SEED}/{job}/read-only"), folder / "run"
    expected, work = whole(job)
    forked = begin(job, run, world)
    while forked.alive() and not (run / MARKER).exists():
        time.sleep(0.01)
    assert forked.works(rng.uniform(0.0, 0.5) * work), "it ended before"
    with read_only(run):
        for _ in range(2):
            codes, said = set(forked.ended()), forked.output.read_text()
            assert codes == {4} and "Traceback" not in said, (codes, said[-2000:])
            assert said.splitlines()[-1].startswith(("error: ", "process")), said[-500:]
            forked = begin(job, run, world)
        forked.ended()
    forked = begin(job, run, world)
    forked.finish()
    assert_same(job, run, expected)


def lost(job: str, world: World, whole: Callable, folder: Path) -> None:
    """A file of a run that was killed is gone: the run ends as one that lost nothing, or with one line."""
    rng, run = random.Random(f"{SEED}/{job}/lost"), folder / "run"
    expected, work = whole(job)
    forked = begin(job, run, world)
    if forked.works(rng.uniform(0.6, 1.0) * work):
        forked.kill()
    forked.ended()
    left = sorted(place for place in run.rglob("*") if place.is_file() and place.name != ".lock")
    gone = rng.choice(left)
    gone.unlink()
    forked.output.unlink()
    forked = begin(job, run, world)
    codes, said = set(forked.ended()), forked.output.read_text()
    assert codes <= {0, 2, 3, 4} and "Traceback" not in said, (gone, codes, said[-2000:])
    if codes == {0} and not (gone.suffix == ".jsonl" or "tb" in gone.parts):  # rows of steps that are not made again
        found = outcome(run)
        differ = [name for name in expected if name in found and found[name] != expected[name]]
        assert not differ, (job, gone, differ)


@pytest.mark.parametrize("job", [pytest.param(job, marks=_slow(job)) for job in JOBS if job not in SERVERS])
def test_a_disk_that_is_full_at_any_byte(job, world, whole, tmp_path):
    full(job, 3, world, whole, tmp_path)


@pytest.mark.parametrize("job", [pytest.param(job, marks=_slow(job)) for job in JOBS if job not in SERVERS])
def test_a_disk_that_turns_read_only(job, world, whole, tmp_path):
    read_only_disk(job, world, whole, tmp_path)


@pytest.mark.parametrize("job", [pytest.param(job, marks=_slow(job)) for job in JOBS if job not in SERVERS])
def test_a_file_that_is_lost(job, world, whole, tmp_path):
    lost(job, world, whole, tmp_path)


# -- SIGTERM -----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("job", [job for job in JOBS if job not in SERVERS])
def test_sigterm_saves_within_seconds(job, world, whole, tmp_path):
    """Wherever it comes; the resumed run ends as one that was left alone."""
    expected, work = whole(job)
    rng, run = random.Random(f"{SEED}/{job}/term"), tmp_path / "run"
    for _ in range(2):
        forked = begin(job, run, world)
        if not forked.works(rng.uniform(0.3, 1.0) * work):
            break
        at = last = forked.work()
        forked.send(signal.SIGTERM)
        while forked.alive():
            last = max(last, forked.work())
            time.sleep(0.01)
        codes = forked.ended()
        assert set(codes) <= {0, 143, -signal.SIGTERM}, (codes, forked.output.read_text()[-500:])
        assert last - at < PATIENCE * len(codes)
        if not any(codes):
            break
    else:
        begin(job, run, world).finish()
    assert_same(job, run, expected)
