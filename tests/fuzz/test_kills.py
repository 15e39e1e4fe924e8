"""Jobs killed with SIGKILL at random moments and run again: they end as one that was never killed, to the last bit.

`python -m pytest tests/fuzz/test_kills.py -m slow -s` does over a hundred kills and prints how many of each job. The
moments are drawn from MMEDEXPERT_FUZZ, 0 where it is not set.
"""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

from mmedexpert_jax import lora, models
from mmedexpert_jax.runtime.metrics import is_clock
from tests.fuzz import forked
from tests.mmedexpert.test_factory import raw_cases

SEED = int(os.environ.get("MMEDEXPERT_FUZZ", "0"))
PATIENCE = 10.0  # seconds of work within which SIGTERM saves
TRAIN = (
    *("steps=4", "checkpoint_every=1", "lora.rank=2", "max_new_tokens=40", "eval.every=2", "eval.batch_size=8"),
    *("lr=0.1", "eval.limit=4"),
)
GBA = (
    *TRAIN,
    "max_new_tokens=6",
    "num_samples=2",
    "prompts_per_step=2",
    "samples_every=1",
    "packing=2",
    "micro_batch=1",
)
JOBS: dict[str, tuple[str, ...]] = {
    "dsa": (*TRAIN, "specialty=AM", "batch_size=1", "accumulation=2"),
    "gba": (*GBA, "zero_variance=refill", "refill_rounds=2", "rewards.length=1.0"),
    "merge": ("experts={adapter},b={adapter}", "density=0.5"),
    "evaluate": ("num_samples=2", "temperature=1.0", "max_new_tokens=6", "batch_size=2"),
    "dataset": ("stages=collect,trace,build", "data.path={raw}", "teacher.max_tokens=24", "teacher.batch_size=2",
                "max_rejected=1.0"),
}  # fmt: skip
OUTCOMES = ("export", "samples", "answers", "table.md")  # what a job leaves behind


PRELOADED = [
    *("mmedexpert_jax.launch.jobs", "mmedexpert_jax.sft", "mmedexpert_jax.gba", "mmedexpert_jax.medeval"),
    *("mmedexpert_jax.merging", "mmedexpert_jax.mmedexpert", "mmedexpert_jax.train.learner", "mmedexpert_jax.models"),
    *("mmedexpert_jax.launch.held_out", "mmedexpert_jax.runtime.report", "transformers", "tests.fuzz.forked"),
]


class Started(NamedTuple):
    """A job's process, and the file of its stderr."""

    process: Any
    errors: Path


@pytest.fixture(scope="module")
def start(tiny_checkpoint, tiny_cases, tmp_path_factory):
    """Starts a job in a folder of its own; runs share compiled programs on disk."""
    shared = tmp_path_factory.mktemp("shared")
    params = models.load_policy(tiny_checkpoint)[1]
    deltas = jax.tree.map(lambda f: f + 0.02, lora.init(jax.random.key(0), params, rank=2, alpha=4, targets="text"))
    lora.save_peft(shared / "adapter", deltas, tiny_checkpoint)
    raw = raw_cases(shared / "raw.jsonl", 8)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # of the fork server, which starts with the first
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)

    def begin(job: str, workdir: Path) -> Started:
        fields = [f"model.path={tiny_checkpoint}", f"workdir={workdir}"]
        fields += [] if job in ("merge", "dataset") else [f"data.path={tiny_cases}"]
        fields += [field.format(adapter=shared / "adapter", raw=raw) for field in JOBS[job]]
        arguments = [f"--config=configs/{job}.py", *(f"--config.{field}" for field in fields)]
        errors = workdir.with_name(f"{workdir.name}.errors")
        process = processes.Process(target=forked.run, args=(arguments, str(errors)))
        process.start()
        return Started(process, errors)

    return begin


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """What a job leaves that is never killed, and the seconds of a second run of its kind (programs compiled)."""
    found: dict[str, tuple[dict, float]] = {}

    def of(job: str) -> tuple[dict, float]:
        if job not in found:
            for _ in range(2):
                folder, began = tmp_path_factory.mktemp(job) / "run", time.monotonic()
                finish(start(job, folder))
            found[job] = outcome(folder), time.monotonic() - began
        return found[job]

    return of


def finish(started: Started) -> None:
    started.process.join()
    assert started.process.exitcode == 0, started.errors.read_text()[-2000:]


def outcome(run: Path) -> dict:
    """Bytes of what a run leaves, and its metrics less those that tell the time."""
    places = [place for name in OUTCOMES for place in (run / name, *(run / name).rglob("*")) if place.is_file()]
    found: dict = {
        place.relative_to(run).as_posix(): place.read_bytes().replace(str(run).encode(), b"RUN") for place in places
    }
    if (run / "metrics.jsonl").exists():
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        found["metrics"] = [{name: value for name, value in row.items() if not is_clock(name)} for row in rows]
    return found


def killed(job: str, kills: int, start, whole, folder: Path) -> int:
    """Kills a job so many times, at moments drawn over the seconds that it takes, and compares. Returns the kills."""
    rng, run, done = random.Random(f"{SEED}/{job}/{folder.name}"), folder / "run", 0
    expected, seconds = whole(job)
    for _ in range(kills):
        process = start(job, run).process
        process.join(rng.uniform(0.2, 1.0) * seconds)
        process.kill()
        process.join()
        done += process.exitcode == -signal.SIGKILL
    finish(start(job, run))
    found = outcome(run)
    assert found.keys() == expected.keys()
    differ = [name for name in expected if found[name] != expected[name]]
    assert not differ, (job, differ)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_killed_job_ends_as_one_that_was_not(job, start, whole, tmp_path):
    killed(job, 2, start, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("round", range(5))
@pytest.mark.parametrize("job", JOBS)
def test_a_job_killed_again_and_again(job, round, start, whole, tmp_path, capsys):
    kills = killed(job, 5, start, whole, tmp_path)
    with capsys.disabled():
        print(f"\n{job}: {kills} kills, bit-identical", end="")


@pytest.mark.slow
@pytest.mark.parametrize("job", ["dsa", "gba", "evaluate"])
def test_sigterm_saves_within_seconds(job, start, whole, tmp_path):
    """Wherever it comes, once the run has begun; the resumed run ends as one that was left alone."""
    expected, seconds = whole(job)
    for share in (0.5, 0.7, 0.9):
        run = tmp_path / f"{share}"
        started = start(job, run)
        started.process.join(share * seconds)
        started.process.terminate()
        began = time.monotonic()
        started.process.join()
        assert started.process.exitcode in (0, 143, -signal.SIGTERM), started.errors.read_text()[-500:]
        assert time.monotonic() - began < PATIENCE
        finish(start(job, run))
        assert outcome(run) == expected
