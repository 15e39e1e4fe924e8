"""Golden screens of the live lines at 80 and 120 columns, in an emulated terminal and in tmux where there is one."""

import subprocess
import sys

import pytest

from tests.terminal import EMULATORS, coloured, screen, steady

SCRIPT = """
import os, sys, time
from mmedexpert_jax.runtime import progress
METRICS = {"loss": 0.001, "reward": 1.74, "rewards/accuracy/mean": 0.5, "kl": 0.0012, "tokens_per_second": 1310.4}
print("gba (preset mini) in runs/gba-mini", flush=True)
with progress.doing("loading mini"):
    pass
with progress.Progress(400, 0, "gba") as outer:
    with progress.Progress(320, 0, "dev split at step 0") as inner:
        inner.update(320)
    for step in range(1, 208):
        outer.update(step, METRICS)
    print("a line that is printed meanwhile", flush=True)  # os._exit below flushes nothing
    inner = progress.Progress(320, 0, "dev split at step 207").__enter__()
    if sys.argv[1] == "compiling":
        progress.COMPILING.since = time.monotonic()
    elif sys.argv[1] == "answering":
        inner.update(64)
    progress.SCREEN.refresh()
    os._exit(0)  # a screen in the middle of a run
"""
COMMAND = [sys.executable, "-c", SCRIPT]
ABOVE = """\
gba (preset mini) in runs/gba-mini
loading mini 0:00:00
dev split at step 0: 320/320 in 0:00:00
a line that is printed meanwhile
"""
ANSWERING = {
    80: """\
gba ━━━━━━────── 207/400 0:00:00 ETA 0:00:00  loss 0.001  reward 1.740
dev split at step 207 ━━──────────  64/320 0:00:00 ETA 0:00:00""",
    120: """\
gba ━━━━━━────── 207/400 0:00:00 ETA 0:00:00  loss 0.001  reward 1.740  accuracy 0.500  KL 0.0012  tokens/s 1310
dev split at step 207 ━━──────────  64/320 0:00:00 ETA 0:00:00""",
}


@pytest.mark.parametrize("emulator", EMULATORS)
@pytest.mark.parametrize("columns", ANSWERING)
def test_the_lines_of_a_training_and_its_evaluation(emulator, columns):
    shown = screen(emulator, [*COMMAND, "answering"], columns, PYTHONUTF8="1", LC_ALL="C.UTF-8")
    assert steady(shown) == ABOVE + ANSWERING[columns]


@pytest.mark.parametrize("emulator", EMULATORS)
def test_what_is_compiled_has_its_time(emulator):
    shown = steady(screen(emulator, [*COMMAND, "compiling"], 80, PYTHONUTF8="1", LC_ALL="C.UTF-8")).splitlines()
    assert shown[-1] == "dev split at step 207 ────────────   0/320 0:00:00  compiling 0:00:00"


def test_no_color_and_pipes():
    command = [*COMMAND, "answering"]
    assert coloured(command, NO_COLOR="") and not coloured(command, NO_COLOR="1")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "gba (preset mini) in runs/gba-mini\na line that is printed meanwhile\n"
    assert "\x1b" not in done.stderr and "gba 200/400  loss 0.001" in done.stderr
    dumb = screen("pyte", command, 80, TERM="dumb", LC_ALL="C.UTF-8")
    assert "dev split at step 0 320/320  ETA 0:00:00" in steady(dumb)
