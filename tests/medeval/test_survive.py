"""A run that is killed at random, as a process: nothing is lost, and only what was in flight is asked again."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from mmedexpert_jax.medeval.evaluate import Evaluation
from tests.remote.loopback import Loopback

CONCURRENCY = 4
OPTIONS = (
    "--config=configs/evaluate.py",
    "--config.split=train",
    f"--config.endpoint.concurrency={CONCURRENCY}",
    "--config.report_items=10",
)


def start(server, folder, items):
    fields = [f"--config.model.path=served=endpoint:m@{server.url}", f"--config.limit={items}"]
    command = [sys.executable, "-m", "mmedexpert_jax.launch", *OPTIONS, *fields, f"--config.workdir={folder}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def survive(folder, items, kills):
    """Kills the run `kills` times somewhere between two answers, then lets it end."""
    rng = random.Random(0)
    with Loopback(lambda body: "<answer>A</answer>", latency=0.002) as server:
        for kill in range(kills):
            until = server.asked.total() + rng.randint(1, max(2, items // kills - CONCURRENCY))
            run = start(server, folder, items)
            while server.asked.total() < until and run.poll() is None:
                time.sleep(0.005)
            assert run.poll() is None, f"ended before kill {kill}: {run.stderr.read()[-2000:]}"
            run.send_signal(signal.SIGKILL)
            run.communicate()
        run = start(server, folder, items)
        _, errors = run.communicate(timeout=600)
        assert run.returncode == 0, errors[-2000:]
        assert len(server.asked) == items
        repeated = server.asked.total() - items
    assert 0 <= repeated <= kills * CONCURRENCY
    rows = Evaluation.read(folder / "export" / "rows" / "mmedexpert-mini" / "served.jsonl").rows
    assert len({row.id for row in rows}) == items and {row.said for row in rows} == {"A"}


def test_a_run_that_is_killed_once(tmp_path):
    survive(tmp_path / "run", 60, 1)


@pytest.mark.slow
def test_two_thousand_items_killed_ten_times(tmp_path):
    survive(tmp_path / "run", 2000, 10)
