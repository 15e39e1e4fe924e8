"""Runs notebooks and stores what they show: `python docs/notebooks.py notebooks/3_merging.ipynb` (without names, all).

Each runs in a folder of its own, as a reader would run it, and only what a reader looks at is kept: text and pictures,
without progress, clocks and paths of this machine.
"""

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
CLOCKS = re.compile(r" in \d+:\d\d:\d\d(, \d+:\d\d:\d\d of it compiling)?")  # of this machine, as busy as it was
LINES = 40  # of a text that is kept; a plan of several jobs has more


def store(path: Path) -> None:
    """Runs one notebook and writes it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}}).execute()
        for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
            cell.metadata.pop("execution", None)  # moments
            cell.outputs = [clean(output, folder) for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def clean(output: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """One output, its texts without the folder and without what is beyond LINES."""
    if "text" in output:
        output.text = shortened(output.text.replace(f"{folder}/", "").replace(f"{ROOT}/", ""))
    return output


def shortened(text: str) -> str:
    """A text's first lines, and the number of those left out."""
    lines = [CLOCKS.sub("", line).rstrip() for line in re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", text).splitlines()]
    more = [f"... {len(lines) - LINES} more lines"] if len(lines) > LINES else []
    return "\n".join([*lines[:LINES], *more]) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(map(str, (ROOT / "notebooks").glob("*.ipynb"))):
        store(Path(name))
        print(name, flush=True)
