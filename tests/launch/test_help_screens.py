"""Golden screens of help and of one-line errors at 80 and 120 columns: screens/<name>_<columns>.txt.

`SCREENS=write python -m pytest tests/launch/test_help_screens.py` writes them anew, to be read before they are kept.
"""

import os
import sys
from pathlib import Path

import pytest

from tests.terminal import EMULATORS, screen

SCREENS = Path(__file__).with_name("screens")
SCRIPT = """
import sys
from mmedexpert_jax.launch import console
for line in sys.argv[1:]:
    print(f"$ mmedexpert {line}", flush=True)
    print(f"[{console.main(line.split())}]", flush=True)
"""
TYPED = {
    "help": ["--help", "ask --help"],
    "errors": [
        *("gab", "gba:nano", "gba learning_rate=1e-5", "gba lr=-1", "gba steps=ten", "gba objective=ppo"),
        *("gba data.path=no/such/folder --plan", "ask model.path=no/such/model question=Why?"),
        *("evaluate benchmarks=medxpert --plan", "merge experts=AM --plan", "compare runs/none", "completion tcsh"),
        *("new-data", "check-data no/such/folder", "convert-data no/such.json my_cases"),
    ],
}


@pytest.mark.parametrize("emulator", EMULATORS)
@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", TYPED)
def test_what_a_terminal_shows(name, columns, emulator):
    command = [sys.executable, "-c", SCRIPT, *TYPED[name]]
    shown = "\n".join(screen(emulator, command, columns, 180, PYTHONUTF8="1", LC_ALL="C.UTF-8")) + "\n"
    file = SCREENS / f"{name}_{columns}.txt"
    if os.environ.get("SCREENS") == "write":
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")
    assert "Traceback" not in shown and "[1]" not in shown
