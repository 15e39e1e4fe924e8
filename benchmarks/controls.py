"""Cost of an evaluation's controls: the embedded cases with all of them, as a multiple of the plain run.

    python benchmarks/controls.py            # the embedded model and its 1,280 test cases
    python benchmarks/controls.py --limit 256

Each side is the command itself in a process of its own, compilation and tables included. Processor seconds are given
beside the clock's, since other work on a machine slows the clock alone. Prints both and one JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

ALL = "blank,other_image,question_only,shuffle,pairs"


def run(limit: int, *extra: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor that the command takes. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mmedexpert_jax.launch", "--config=configs/evaluate.py"]
        command += [f"--config.workdir={folder}/run", f"--config.limit={limit}", *extra]
        began, before = time.perf_counter(), os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return time.perf_counter() - began, used


def main() -> None:
    """Prints a line for each side and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=0, help="cases; 0: all 1,280")
    limit = parser.parse_args().limit
    sides = {}
    for name, extra in (("plain", ()), ("with all controls", (f"--config.controls={ALL}",))):
        sides[name] = run(limit, *extra)
        print(f"{name:18} {sides[name][0]:8.1f} s   {sides[name][1]:8.1f} s of the processor", flush=True)
    plain, controlled = sides.values()
    ratios = {"clock": controlled[0] / plain[0], "processor": controlled[1] / plain[1]}
    print(json.dumps({"plain": plain, "controls": controlled, "ratio": ratios}))


if __name__ == "__main__":
    main()
