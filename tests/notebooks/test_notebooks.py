"""The notebooks run from top to bottom on the embedded default, in a kernel of their own, with little work to do.

Settings are put into a cell behind the one tagged "parameters", as papermill does it.
"""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRAIN = {"steps": 1, "max_new_tokens": 24, "lora.rank": 2}
GBA = TRAIN | {"prompts_per_step": 2, "num_samples": 2}
DSA = TRAIN | {"batch_size": 2, "accumulation": 1, "max_new_tokens": 128}
EVALUATION = {"limit": 8, "evaluate.max_new_tokens": 16, "evaluate.batch_size": 8}
QUICK = {
    "1_whole_paper": {
        "FIELDS": EVALUATION
        | {f"dsa.{key}": value for key, value in DSA.items()}
        | {f"gba.{key}": value for key, value in GBA.items()}
    },
    "2_hub_checkpoint": {
        "PRESET": "mini",
        "MODEL": "mini",
        "SHARED": {"eval.limit": 8},
        "DSA": DSA | {"specialty": "AM"},
        "GBA": GBA,
    },
    "3_merging": {
        "DSA": DSA,
        "DENSITIES": (0.1, 0.5),
        "MERGE": {"max_new_tokens": 16, "eval.limit": 8, "eval.batch_size": 8, "max_prompt_length": 512},
    },
    "4_own_cases": {"FIELDS": {"limit": 60, "candidates": 2}},
    "5_evaluation": {"GBA": GBA, "FIELDS": {"limit": 16, "max_new_tokens": 24, "batch_size": 16}},
    "6_reward": {"GBA": GBA},
    "7_dicom": {"GBA": GBA},
}


def run(path: Path, folder: Path, monkeypatch) -> nbformat.NotebookNode:
    """The executed notebook, which worked in `folder`."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(path, as_version=4)
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    names = {"WORK": str(folder / "work")} | QUICK[path.stem]
    if path.stem == "4_own_cases":
        names["CASES"] = str(folder / "own.jsonl")
    source = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("text", "") + output.get("data", {}).get("text/markdown", "") for output in outputs]
    return "\n".join(texts)


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_whole_paper(tmp_path, monkeypatch):
    path = ROOT / "notebooks" / "1_whole_paper.ipynb"
    done = run(path, tmp_path, monkeypatch)
    assert "| final |" in printed(done) and pictures(done) >= 3
    assert (tmp_path / "work" / "paper" / "final" / "merge_report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs_and_goes_on_where_it_was(path, tmp_path, monkeypatch):
    first = run(path, tmp_path, monkeypatch)
    assert "is already finished" not in printed(first)
    again = printed(run(path, tmp_path, monkeypatch))
    looking = ("4_own_cases", "5_evaluation")  # jobs that look at what is there
    assert "is already finished" in again or path.stem in looking


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean_short_and_alike(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored = str([cell.outputs for cell in code])  # by docs/notebooks.py
    assert (
        not re.search(r"/(work|tmp|home|root|Users)/|[A-Z]:\\\\Users|'name': 'stderr'", stored)
        and len(stored) < 400_000
    )
    assert len(notebook.cells) <= 22 and sum(len(cell.source.splitlines()) for cell in code) <= 110
    for cell in code:
        ast.parse(cell.source)  # plain Python: no magics, which a script could not run
        assert "input(" not in cell.source and "getpass" not in cell.source
    parameters, setup = (cell.source for cell in code[:2])
    assert "SOURCE = " in parameters and "WORK = " in parameters and "jax" in parameters
    assert "google.colab" in setup and "pip" in setup
    everything = "\n".join(cell.source for cell in code)
    assert "jax.devices()" in everything and ("brief(" in everything or "describe(" in everything)
    assert "not for clinical use" in notebook.cells[0].source.lower() or "for clinical use" in notebook.cells[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_viewer_sees_what_a_run_gave(path):
    """Outputs stored by docs/notebooks.py: text and a picture, of all cells run in order."""
    notebook = nbformat.read(path, as_version=4)
    run = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert run == list(range(1, len(run) + 1)) and pictures(notebook) >= 1 and "done: runs/" in printed(notebook)
    assert not re.search(r"\d:\d\d:\d\d", printed(notebook)) and path.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("stem", "given", "planned"),
    [
        ("3_merging", {}, {"update": 1, "merge": 1, "sweep": 1}),
        ("3_merging", {"EXPERTS": {"AM": "runs/am", "BS": "runs/bs"}}, {"update": 0, "merge": 1, "sweep": 1}),
        ("5_evaluation", {}, {"update": 1, "sampling": 1}),
        ("5_evaluation", {"MODELS": {"policy": "runs/policy"}}, {"update": 0, "sampling": 1}),
    ],
)
def test_the_memory_of_every_job_is_checked(stem, given, planned, tmp_path, capsys):
    parameters, _, check, *_ = (
        cell.source
        for cell in nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
        if cell.cell_type == "code"
    )
    names: dict = {}
    exec(parameters, names)
    exec(check, names | given | {"WORK": str(tmp_path)})
    lines = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert {name: lines.count(name) for name in planned} == planned


def test_a_source_that_pip_cannot_install_is_said_in_one_line(tmp_path, monkeypatch):
    """Colab's case: the folder above the notebook is no repository."""
    cells = [nbformat.read(path, as_version=4).cells for path in NOTEBOOKS]
    (setup,) = {next(cell.source for cell in notebook if "google.colab" in cell.source) for notebook in cells}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=rf"^pip cannot install '{tmp_path}': .*SOURCE.*$"):
        exec(compile(setup, "setup", "exec"), {"SOURCE": str(tmp_path), "PINNED": []})


@pytest.mark.parametrize("name", ["mmedexpert_jax-0.1.0-py3-none-any.whl", "mmedexpert_jax-0.1.0-py3-none-any (1).whl"])
@pytest.mark.parametrize("kept", [False, True])
def test_colab_asks_for_the_wheel_once(kept, name, tmp_path, monkeypatch, capsys):
    """Without a repository above it: the wheel of the Drive, else the one that is chosen, which then lies there under
    a name that pip takes."""
    cells = nbformat.read(NOTEBOOKS[0], as_version=4).cells
    setup = next(cell.source for cell in cells if "google.colab" in cell.source)
    wheel, asked, installed = "mmedexpert_jax-0.1.0-py3-none-any.whl", [], []
    drive = types.SimpleNamespace(mount=lambda place: None)
    files = types.SimpleNamespace(upload=lambda: asked.append(1) or {name: b"wheel"})
    colab = types.ModuleType("google.colab")
    colab.drive, colab.files = drive, files
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = types.SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: installed.append(command) or done)
    folder = tmp_path / "mmedexpert"
    if kept:
        folder.mkdir()
        (folder / wheel).write_bytes(b"wheel")
    setup = setup.replace("/content/drive/MyDrive/mmedexpert", str(folder))
    exec(compile(setup, "setup", "exec"), {"SOURCE": "..", "PINNED": []})
    assert len(asked) == (not kept) and installed[0][-1] == str(folder / wheel)
    assert (folder / wheel).read_bytes() == b"wheel"
    assert f"{folder / wheel} is installed; to take another" in capsys.readouterr().out


def test_every_notebook_is_tried():
    assert set(QUICK) == {path.stem for path in NOTEBOOKS}
