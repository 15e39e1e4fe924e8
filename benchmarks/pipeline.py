"""The paper from data to table on the embedded set: `configs/pipeline.py` in a process of its own, timed.

    python benchmarks/pipeline.py

Prints the pipeline's table and one JSON line. A run that is already finished in its folder is read, not repeated.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path


def rows(table: str) -> list[dict[str, str]]:
    """The rows of a Markdown table."""
    head, _, *lines = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def main() -> None:
    """Runs the pipeline and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/pipeline-benchmark"))
    arguments, extra = parser.parse_known_args()
    clock = arguments.folder / "wall_seconds"
    if not clock.exists():
        began = time.perf_counter()
        command = [sys.executable, "-m", "mmedexpert_jax.launch", "--config=configs/pipeline.py"]
        subprocess.run([*command, f"--config.workdir={arguments.folder}", *extra], check=True)
        clock.write_text(f"{time.perf_counter() - began:.1f}")
    table = (arguments.folder / "table.md").read_text()
    print(table)
    print(json.dumps({"benchmark": "pipeline", "seconds": float(clock.read_text()), "rows": rows(table)}))


if __name__ == "__main__":
    main()
