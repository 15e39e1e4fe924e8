"""Damaged inputs of every surface: each ends in one line with a documented exit code, or in a right success.

`python -m pytest tests/fuzz -m slow -s` tries 3,000 and prints the table of docs/reliability.md. A failure names the
surface, the number of the input and what was damaged; `MMEDEXPERT_FUZZ=<seed>` draws others.
"""

import contextlib
import os
import random
from pathlib import Path

import pytest

from mmedexpert_jax.launch import cli
from tests.fuzz.surfaces import SURFACES, Kit, Trial

SEED = int(os.environ.get("MMEDEXPERT_FUZZ", "0"))
QUICK, LONG = 21, 200  # inputs of a surface: 315 and 3,000 in all
EXIT_CODES = (2, 3, 4, 5)


@pytest.fixture(scope="module")
def kit(tiny_checkpoint, tiny_cases, tmp_path_factory):
    return Kit(Path(tiny_checkpoint), Path(tiny_cases), tmp_path_factory.mktemp("kit"))


def verdict(trial: Trial, capsys) -> str:
    """What is bad about how a trial ended; empty: it is good."""
    capsys.readouterr()
    try:
        result = trial.call()
    except Exception as error:
        said, code = cli.explain(error)
        return f"exit {code}: {said}" if code not in EXIT_CODES or "\n" in said or len(said) > 1000 else ""
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    errors = capsys.readouterr().err
    if "Traceback" in errors:
        return f"a traceback: {errors[-300:]}"
    if isinstance(result, int) and result:
        last = errors.strip().splitlines()[-1] if errors.strip() else ""
        good = result in EXIT_CODES and last.startswith("error: ") and len(last) < 1000
        return "" if good else f"exit {result}: {errors[-300:]}"
    if not trial.right(result):
        return f"a wrong result: {getattr(result, 'status_code', '')} {getattr(result, 'text', result)!r:.200}"
    return "accepted in silence" if trial.wrong else ""


def bad(surface: str, seed: int, count: int, kit: Kit, folder: Path, capsys, monkeypatch) -> list[str]:
    """The bad endings of `count` inputs."""
    found = []
    for number in range(count):
        place = folder / f"{number}"
        place.mkdir()
        monkeypatch.chdir(place)
        rng = random.Random(f"{surface}/{seed}/{number}")
        trial = SURFACES[surface](rng, kit, place)
        if said := verdict(trial, capsys):
            found.append(f"input {number}: {trial.what!a:.160} -> {said!a:.300}")
    return found


@pytest.mark.parametrize("surface", SURFACES)
def test_a_damaged_input_is_one_line_or_a_right_success(surface, kit, tmp_path, capsys, monkeypatch):
    found = bad(surface, SEED, QUICK, kit, tmp_path, capsys, monkeypatch)
    with contextlib.suppress(OSError), capsys.disabled():
        print(f"\n{surface}: {QUICK} inputs of seed {SEED}, {QUICK - len(found)} good", end="")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("surface", SURFACES)
def test_many_damaged_inputs(surface, kit, tmp_path, capsys, monkeypatch):
    found = bad(surface, SEED + 1, LONG, kit, tmp_path, capsys, monkeypatch)
    with contextlib.suppress(OSError), capsys.disabled():
        print(f"\n| {surface} | {LONG} | {LONG - len(found)} |", end="")
    assert not found, "\n" + "\n".join(found)
