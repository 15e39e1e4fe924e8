"""Does GBA learn, and would anything rise? Several seeds of configs/gba.py, and the same with shuffled rewards.

    python benchmarks/learning.py --seeds 0 1 2
    python benchmarks/learning.py --seeds 0 1 2 3 4 --against sum,gated,gdpo     # other rewards, against the default
    python benchmarks/learning.py --seeds 0 1 2 3 4 --against ahead,grpo     # rollouts a step ahead; the paper's rival
    python benchmarks/learning.py --seeds 0 1 2 3 4 --against bare,grpo      # what of the rival's lead is the reward
    python benchmarks/learning.py --seeds 0 1 2 --against grpo,rloo,papo     # the rival's kin, each also against it
    python benchmarks/learning.py --seeds 0 1 2 --against slower,faster      # the rate

Each run is the README's command in a process of its own, without its held-out evaluations of other settings: the base
and every policy are then scored here on the test split, sampled at temperature 1, as they were trained, and greedily.
Prints a table and one JSON line, which holds the curves too (docs/figures.py draws them). A run that is already
finished in its folder is read, not repeated. Settings are compared with the default, and with the first of `--against`.
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
# Form that weighs as much as accuracy, so that a right answer without reasoning ties with a wrong one in full form.
_EVEN = ["--config.rewards.format=0.5", "--config.rewards.structure=0.5"]
_GATED, _GDPO = "--config.rewards.gated=True", "--config.objective=gdpo"
VARIANTS = {  # name -> what it is, what it sets
    "shuffled": ("shuffled rewards", ["--config.rewards.shuffle=True"]),
    "sum": ("format and structure weigh 0.5", _EVEN),
    "gated": ("0.5, for right answers only", [*_EVEN, _GATED]),
    "gdpo_even": ("0.5, each reward normalised by itself", [*_EVEN, _GDPO]),
    "gdpo_gated": ("0.5, for right answers only, each normalised by itself", [*_EVEN, _GATED, _GDPO]),
    "gdpo": ("each reward normalised by itself", [_GDPO]),
    "ahead": ("rollouts a step ahead", ["--config.rollout_ahead=1", "--config.importance_cap=2"]),
    "bare": ("no reward for structure", ["--config.rewards.structure=0.0"]),
    "grpo": ("GRPO", ["--config.objective=grpo"]),
    "dr_grpo": ("Dr. GRPO", ["--config.objective=dr_grpo"]),
    "dapo": ("DAPO", ["--config.objective=dapo"]),
    "gspo": ("GSPO", ["--config.objective=gspo"]),
    "sapo": ("SAPO", ["--config.objective=sapo"]),
    "cispo": ("CISPO", ["--config.objective=cispo"]),
    "rloo": ("RLOO", ["--config.objective=rloo"]),
    "reinforce_pp": ("REINFORCE++", ["--config.objective=reinforce_pp"]),
    "papo": ("PAPO", ["--config.objective=papo"]),
    "drpo": ("DRPO", ["--config.objective=drpo"]),
    "batch": ("advantages scaled over the batch", ["--config.advantage_scale=batch"]),
    "entropy": ("an entropy bonus of 0.001", ["--config.entropy_coef=0.001"]),
    "reference": ("the reference made anew every 16 steps", ["--config.ref_every=16"]),
    "weighted": ("advantages weighted by specialty", ["--config.advantage_weights=specialty"]),
    "slower": ("half the learning rate", ["--config.lr=7.5e-4"]),
    "faster": ("twice the learning rate", ["--config.lr=3e-3"]),
}
DECODING = {"sampled": 1.0, "greedy": 0.0}  # temperature of the held-out answers


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


def paired(one: list[dict[str, Evaluation]], other: list[dict[str, Evaluation]], kind: str) -> dict[str, float]:
    """Accuracy of the policies `other` over `one` under a decoding, paired; the seeds of an item are kept together."""
    gain = compare_evaluations([found[kind] for found in one], [found[kind] for found in other])
    return {"gain": gain.difference, "low": gain.low, "high": gain.high}


def main() -> None:
    """Trains, scores, prints the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    parser.add_argument("--against", default="shuffled", help=f"some of {','.join(VARIANTS)}")
    arguments, extra = parser.parse_known_args()
    against = arguments.against.split(",")
    if unknown := sorted({*against} - {*VARIANTS}):
        parser.error(f"--against: {', '.join(unknown)}: choose among {', '.join(VARIANTS)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    base = held_out("mini", arguments.folder)
    before = {name: evaluation.accuracy()["accuracy"] for name, evaluation in base.items()}
    print(f"base model on the test split: sampled {before['sampled']:.3f}, greedy {before['greedy']:.3f}\n")
    print("| run | seed | accuracy reward, first tenth | last tenth | held out, sampled | greedy | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    result: dict = {"base": before, "runs": []}
    policies: dict = {}
    for prefix, (group, settings) in ({"gba": ("GBA", [])} | {name: VARIANTS[name] for name in against}).items():
        runs = [train(arguments.folder / f"{prefix}-{seed}", seed, settings + extra) for seed in arguments.seeds]
        policies[prefix] = [held_out(str(run.folder), run.folder) for run in runs]
        for run, after in zip(runs, policies[prefix], strict=True):
            sampled, greedy = (after[name].accuracy()["accuracy"] for name in DECODING)
            cells = f"{run.first:.3f} | {run.last:.3f} | {sampled:.3f} | {greedy:.3f} | {run.seconds:.0f}"
            print(f"| {group} | {run.seed} | {cells} |", flush=True)
            facts = {"seed": run.seed, "first": run.first, "last": run.last, "sampled": sampled, "greedy": greedy}
            result["runs"].append({"group": group, **facts, "seconds": run.seconds, "curve": curve(run.folder)})
        result[group] = summarise(runs, base, policies[prefix])
    print()
    for kind in DECODING:
        for group in dict.fromkeys(run["group"] for run in result["runs"]):
            figures = result[group][kind]
            print(f"{group}, {kind}: gain {figures['gain']:+.3f} [{figures['low']:+.3f}, {figures['high']:+.3f}]")
        for name in against:
            beyond = result[f"GBA beyond {name}, {kind}"] = paired(policies[name], policies["gba"], kind)
            print(f"GBA beyond {name}, {kind}: {beyond['gain']:+.3f} [{beyond['low']:+.3f}, {beyond['high']:+.3f}]")
    result["pairs"] = {}
    first, *others = against
    for name in others:
        gains = {kind: paired(policies[first], policies[name], kind) for kind in DECODING}
        result["pairs"][f"{name} over {first}"] = gains
        for kind, gain in gains.items():
            print(f"{name} over {first}, {kind}: {gain['gain']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]")
    facts = {"benchmark": "learning", "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps(facts | result))


if __name__ == "__main__":
    main()
