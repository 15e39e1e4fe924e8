"""Progress on a terminal, in a file, and into a pipe whose reader has gone."""

import contextlib
import io
import os
import re

import pytest

from mmedexpert_jax.runtime.progress import Compiling, Progress, describe, doing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream, total=100, start=0) -> None:
    with Progress(total, start, "gba", stream) as progress:
        for step in range(start + 1, total + 1):
            progress.update(step, {"reward": step / total, "kl": None, "completions/mean_length": 84.2})


def test_plain_lines_now_and_then():
    stream = io.StringIO()
    run(stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("gba 1/100  reward 0.010  length 84  ETA 0:00:0")
    assert lines[-1] == "gba 100/100  reward 1.000  length 84  ETA 0:00:00"
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


def test_a_resumed_run_says_where():
    stream = io.StringIO()
    run(stream, total=500, start=498)
    assert stream.getvalue().splitlines()[:2] == [
        "gba: resuming at step 498/500",
        "gba 499/500  reward 0.998  length 84  ETA 0:00:00",
    ]


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    run(stream, total=3)
    assert "3/3" in stream.getvalue() and "reward 1.000" in stream.getvalue() and "ETA" in stream.getvalue()


METRICS = {"loss": 0.001, "reward": 1.74, "rewards/accuracy/mean": 0.5, "kl": 0.0012, "tokens_per_second": 1310.4}


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("colour", [True, False])
def test_a_narrow_terminal_keeps_label_step_bar_and_eta(monkeypatch, width, colour):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with Progress(400, 0, "gba-mini", stream) as progress:
        for step in (1, 2, 3):
            progress.update(step, METRICS)
    frames = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    last = [frame for frame in frames if "3/400" in frame][-1].rstrip()
    assert re.match(r"gba-mini \S{12}\s+3/400 0:00:0\d ETA 0:0\d:\d\d( |$)", last), last
    assert "..." not in last and "…" not in last and len(last) <= width
    assert ("tokens/s 1310" in last) == (width >= 120)
    assert width < 80 or "waiting for the first" in stream.getvalue()
    assert colour == bool(re.search("\x1b\\[[0-9;]*3[0-9]", stream.getvalue()))


def test_the_eta_does_not_count_the_compilation(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress(11, 0, "gba", io.StringIO())
    for step, moment in ((1, 100.0), (2, 101.0), (3, 102.0)):
        clock[0] = moment
        progress.update(step)
    assert progress.eta(3) == "0:00:08"


def test_the_eta_does_not_count_a_later_compilation(monkeypatch):
    """What JAX reports of its compiler is taken off: an evaluation's program does not lengthen what is left."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    compiling = Compiling()
    monkeypatch.setattr("mmedexpert_jax.runtime.progress.COMPILING", compiling)
    progress = Progress(11, 0, "gba", io.StringIO())
    for step, moment in ((1, 10.0), (2, 11.0)):
        clock[0] = moment
        progress.update(step)
    compiling._begin(Compiling.BEGINS)
    clock[0] = 61.0
    assert compiling.now() == 50.0
    compiling._end(Compiling.ENDS, 50.0)
    clock[0] = 62.0
    progress.update(3)
    assert progress.eta(3) == "0:00:08" and compiling.since == 0.0


def test_jax_tells_of_its_compiler():
    import jax

    compiling = Compiling()
    compiling.listen()
    jax.jit(lambda x: x * 41 + 3)(1.0)
    assert 0 < compiling.seconds == compiling.now() and not compiling.since


def test_phases_are_plain_lines_elsewhere(capsys):
    with doing("loading mini"):
        pass
    stream = io.StringIO()
    with Progress(2, 0, "gba", stream) as progress, progress.doing("compiling"):
        pass
    assert capsys.readouterr().err == "loading mini ...\n" and stream.getvalue() == "gba: compiling\n"


def test_a_reader_that_goes_away_does_not_stop_the_run():
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    run(stream)
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_names_shown():
    values = {"rewards/accuracy/mean": 0.5, "accuracy": 0.9, "kl": 0.00123, "loss": -0.5, "tokens_per_second": 1310.4}
    assert describe(values) == "loss -0.500  accuracy 0.500  KL 0.0012  tokens/s 1310"
