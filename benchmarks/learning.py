"""Does GBA learn, and would anything rise? Several seeds of configs/gba.py, and the same with shuffled rewards.

    python benchmarks/learning.py --seeds 0 1 2

Each run is the README's command in a process of its own. Prints a table and one JSON line; with `--picture` draws
the learning curve. A run that is already finished in its folder is read, not repeated.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

from mmedexpert_jax.medeval.evaluate import Evaluation, compare_evaluations
from mmedexpert_jax.runtime.plots import learning_curve

ACCURACY = "rewards/accuracy/mean"


def train(folder: Path, seed: int, shuffle: bool, extra: list[str]) -> dict:
    """Runs one training in `folder` and reads what it left; times are wall seconds, compilation included."""
    command = [sys.executable, "-m", "mmedexpert_jax.launch", "--config=configs/gba.py"]
    command += [f"--config.workdir={folder}", f"--config.seed={seed}", f"--config.rewards.shuffle={shuffle}", *extra]
    clock = folder / "wall_seconds"
    if not clock.exists():
        began = time.perf_counter()
        subprocess.run(command, check=True)
        clock.write_text(f"{time.perf_counter() - began:.1f}")
    summary = json.loads((folder / "STATUS.json").read_text())["summary"]
    rows = sorted((folder / "export" / "rows").glob("step-*.jsonl"))
    return {
        "seed": seed,
        "shuffled": shuffle,
        "seconds": float(clock.read_text()),
        "reward_first": summary[f"{ACCURACY}/first_tenth"],
        "reward_last": summary[f"{ACCURACY}/last_tenth"],
        "before": Evaluation.read(rows[0]),
        "after": Evaluation.read(rows[-1]),
    }


def summarise(runs: list[dict]) -> dict:
    """Reward of the first and last tenth, and the paired held-out gain; the seeds of an item stay together."""
    gain = compare_evaluations([run["before"] for run in runs], [run["after"] for run in runs])
    return {
        "runs": len(runs),
        "reward_first": sum(run["reward_first"] for run in runs) / len(runs),
        "reward_last": sum(run["reward_last"] for run in runs) / len(runs),
        "gain": gain.difference,
        "low": gain.low,
        "high": gain.high,
        "items": gain.items,
        "seconds": max(run["seconds"] for run in runs),
    }


def main() -> None:
    """Trains, prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    parser.add_argument("--picture", type=Path, help="where to draw the learning curve of the seeds")
    arguments, extra = parser.parse_known_args()
    runs = {name: [] for name in ("GBA", "shuffled rewards")}
    print("| run | seed | accuracy reward, first tenth | last tenth | held out before | after | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, done in runs.items():
        for seed in arguments.seeds:
            shuffle = name != "GBA"
            folder = arguments.folder / f"{'shuffled' if shuffle else 'gba'}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            done.append(run := train(folder, seed, shuffle, extra))
            before, after = (run[side].accuracy()["accuracy"] for side in ("before", "after"))
            print(
                f"| {name} | {seed} | {run['reward_first']:.3f} | {run['reward_last']:.3f} | {before:.3f} | "
                f"{after:.3f} | {run['seconds']:.0f} |",
                flush=True,
            )
    result = {name: summarise(done) for name, done in runs.items()}
    for name, figures in result.items():
        print(
            f"{name}: held-out gain {figures['gain']:+.3f}, "
            f"95 % interval [{figures['low']:+.3f}, {figures['high']:+.3f}]"
        )
    if arguments.picture:
        folders = {"GBA": "gba", "shuffled rewards": "shuffled"}
        curves = {name: [arguments.folder / f"{f}-{seed}" for seed in arguments.seeds] for name, f in folders.items()}
        learning_curve(curves, arguments.picture)
    print(
        json.dumps(
            {"benchmark": "learning", "machine": platform.machine(), "python": platform.python_version()} | result
        )
    )


if __name__ == "__main__":
    main()
