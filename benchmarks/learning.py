"""Does GBA learn, and would anything rise? Several seeds of configs/gba.py, and the same with shuffled rewards.

    python benchmarks/learning.py --seeds 0 1 2
    python benchmarks/learning.py --seeds 0 1 2 3 4 --rewards sum,gated,gdpo   # against the default
    python benchmarks/learning.py --seeds 0 1 2 3 4 --ahead      # and with rollouts drawn a step ahead of their update

Each run is the README's command in a process of its own, without its held-out evaluations of other settings: the base
and every policy are then scored here on the test split, sampled at temperature 1, as they were trained, and greedily.
Prints a table and one JSON line, which holds the curves too (docs/figures.py draws them). A run that is already
finished in its folder is read, not repeated.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax

import mmedexpert_jax as mx
from mmedexpert_jax.medeval.evaluate import Evaluation, compare_evaluations
from mmedexpert_jax.runtime import metrics

ACCURACY = "rewards/accuracy/mean"
# Form that weighs as much as accuracy, so that a right answer without reasoning ties with a wrong one in full form; the
# same where it counts only for right answers; with each reward normalised by itself; that at the default weights, and
# where form counts only for right answers.
_EVEN = ["--config.rewards.format=0.5", "--config.rewards.structure=0.5"]
REWARDS = {
    "sum": _EVEN,
    "gated": [*_EVEN, "--config.rewards.gated=True"],
    "gdpo_even": [*_EVEN, "--config.objective=gdpo"],
    "gdpo": ["--config.objective=gdpo"],
    "gdpo_gated": [*_EVEN, "--config.rewards.gated=True", "--config.objective=gdpo"],
}
DECODING = {"sampled": 1.0, "greedy": 0.0}  # temperature of the held-out answers
GROUPS = {  # name -> (prefix of its folders, what it sets)
    "GBA": ("gba", []),
    "shuffled rewards": ("shuffled", ["--config.rewards.shuffle=True"]),
    "GBA, a step ahead": ("ahead", ["--config.rollout_ahead=1", "--config.importance_cap=2"]),
}


@dataclass(frozen=True)
class Trained:
    """One finished run: wall seconds with compilation, mean accuracy reward of its first and last tenth of steps."""

    folder: Path
    seed: int
    seconds: float
    first: float
    last: float


def train(folder: Path, seed: int, extra: list[str]) -> Trained:
    """Runs one training in `folder`, unless it is there, and reads what it left."""
    command = [sys.executable, "-m", "mmedexpert_jax.launch", "--config=configs/gba.py"]
    command += [f"--config.workdir={folder}", f"--config.seed={seed}", *extra]
    folder.mkdir(parents=True, exist_ok=True)
    clock = folder / "wall_seconds"
    if not clock.exists():
        began = time.perf_counter()
        subprocess.run(command, check=True)
        clock.write_text(f"{time.perf_counter() - began:.1f}")
    summary = json.loads((folder / "STATUS.json").read_text())["summary"]
    seconds = float(clock.read_text())
    return Trained(folder, seed, seconds, summary[f"{ACCURACY}/first_tenth"], summary[f"{ACCURACY}/last_tenth"])


def curve(folder: Path) -> list[dict]:
    """Accuracy while training and held out by step, which is what the learning curve is drawn from."""
    kept = ("step", ACCURACY, "eval/accuracy")
    return [{key: round(row[key], 6) for key in kept if key in row} for row in metrics.read(folder)]


def held_out(source: str, rows: Path) -> dict[str, Evaluation]:
    """The test split answered by a model under each decoding, prompts without guideline; rows are kept beside it."""
    found = {}
    for name, temperature in DECODING.items():
        file = rows / f"test-{name}.jsonl"
        if not file.exists():
            model, params = mx.load_model(source)
            processor, cases = mx.load_processor("mini"), mx.data.load_cases("mini", "test")
            settings = {"temperature": temperature, "max_new_tokens": 96, "key": jax.random.key(0)}
            mx.medeval.evaluate(model, params, processor, cases, **settings).write(file)
        found[name] = Evaluation.read(file)
    return found


def summarise(runs: list[Trained], base: dict[str, Evaluation], after: list[dict[str, Evaluation]]) -> dict:
    """Rewards over the seeds, and the paired held-out gains; the seeds of an item are kept together."""
    count = len(runs)
    figures: dict = {
        "runs": count,
        "reward_first": sum(run.first for run in runs) / count,
        "reward_last": sum(run.last for run in runs) / count,
        "seconds": max(run.seconds for run in runs),
    }
    for name in DECODING:
        gain = compare_evaluations([base[name]] * count, [evaluations[name] for evaluations in after])
        figures[name] = {"gain": gain.difference, "low": gain.low, "high": gain.high, "items": gain.items}
    return figures


def main() -> None:
    """Trains, scores, prints the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ahead", action="store_true", help="also with rollout_ahead=1")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    parser.add_argument("--rewards", default="", help=f"some of {','.join(REWARDS)}, beside GBA")
    arguments, extra = parser.parse_known_args()
    variants = [name for name in arguments.rewards.split(",") if name]
    if unknown := sorted({*variants} - {*REWARDS}):
        parser.error(f"--rewards: {', '.join(unknown)}: choose among {', '.join(REWARDS)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    base = held_out("mini", arguments.folder)
    before = {name: evaluation.accuracy()["accuracy"] for name, evaluation in base.items()}
    print(f"base model on the test split: sampled {before['sampled']:.3f}, greedy {before['greedy']:.3f}\n")
    print("| run | seed | accuracy reward, first tenth | last tenth | held out, sampled | greedy | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    result: dict = {"base": before, "runs": []}
    policies: dict = {}
    groups = dict(list(GROUPS.items())[: 3 if arguments.ahead else 2])
    for group, (prefix, settings) in (groups | {name: (name, REWARDS[name]) for name in variants}).items():
        runs = [train(arguments.folder / f"{prefix}-{seed}", seed, settings + extra) for seed in arguments.seeds]
        policies[group] = [held_out(str(run.folder), run.folder) for run in runs]
        for run, after in zip(runs, policies[group], strict=True):
            sampled, greedy = (after[name].accuracy()["accuracy"] for name in DECODING)
            cells = f"{run.first:.3f} | {run.last:.3f} | {sampled:.3f} | {greedy:.3f} | {run.seconds:.0f}"
            print(f"| {group} | {run.seed} | {cells} |", flush=True)
            facts = {"seed": run.seed, "first": run.first, "last": run.last, "sampled": sampled, "greedy": greedy}
            result["runs"].append({"group": group, **facts, "seconds": run.seconds, "curve": curve(run.folder)})
        result[group] = summarise(runs, base, policies[group])
    print()
    for name in DECODING:
        for group in policies:
            figures = result[group][name]
            print(f"{group}, {name}: gain {figures['gain']:+.3f} [{figures['low']:+.3f}, {figures['high']:+.3f}]")
        control, gba = ([evaluations[name] for evaluations in policies[g]] for g in ("shuffled rewards", "GBA"))
        beyond = compare_evaluations(control, gba)
        result[f"GBA beyond shuffled, {name}"] = {"gain": beyond.difference, "low": beyond.low, "high": beyond.high}
        for variant in variants:
            pair = [[evaluations[name] for evaluations in policies[group]] for group in ("GBA", variant)]
            gain = compare_evaluations(*pair)
            result[f"{variant} beyond GBA, {name}"] = {"gain": gain.difference, "low": gain.low, "high": gain.high}
            print(f"{variant} beyond GBA, {name}: {gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
        print(f"GBA beyond shuffled rewards, {name}: {beyond.difference:+.3f} [{beyond.low:+.3f}, {beyond.high:+.3f}]")
    facts = {"benchmark": "learning", "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps(facts | result))


if __name__ == "__main__":
    main()
