"""Progress on a terminal, in a file, and into a pipe whose reader has gone."""

import contextlib
import io
import os

from mmedexpert_jax.runtime.progress import Progress, describe


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
