"""The first notebook runs from top to bottom, as a person would run it, with two steps of training."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def test_five_minutes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("STEPS", "2")
    notebook = nbformat.read(NOTEBOOKS / "five_minutes.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "run" / "report.html").exists()
