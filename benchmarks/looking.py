"""Does the model look? GBA over several seeds of configs/gba.py, scored by modality, and with exchanged pictures.

    python benchmarks/looking.py --seeds 0 1 2
    python benchmarks/looking.py --seeds 0 1 2 --model runs/pretrain-mini    # weights of configs/pretrain.py instead

Each run is the README's command in a process of its own. The base and every policy answer the test split, sampled at
temperature 1 as in training, and then, as a control, its cases with a picture after each got that of another case: who
looks falls to chance there. Prints a table and one JSON line, which holds the curves by modality too (docs/figures.py
draws them). What is already finished in its folder is read, not repeated.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import jax
from learning import train

import mmedexpert_jax as mx
from mmedexpert_jax.data import Case
from mmedexpert_jax.data.benchmarks import from_case
from mmedexpert_jax.medeval import controls
from mmedexpert_jax.medeval.evaluate import Evaluation, compare_evaluations
from mmedexpert_jax.runtime import metrics

BLIND = "other_image"  # name of the control
SIDES = {"text": ("plain", "text"), "image": ("plain", "image"), BLIND: (BLIND, "image")}  # (answers, modality)


def answers(source: str, folder: Path) -> dict[str, Evaluation]:
    """A model's answers to the test split, and to its cases with another's picture; the rows are kept in `folder`."""
    cases = mx.data.load_cases("mini", "test")
    found = {}
    for name, asked in (("plain", cases), (BLIND, exchanged(cases))):
        file = folder / f"looking-{name}.jsonl"
        if not file.exists():
            model, params = mx.load_model(source)
            settings = {"temperature": 1.0, "max_new_tokens": 96, "key": jax.random.key(0)}
            mx.medeval.evaluate(model, params, mx.load_processor("mini"), asked, **settings).write(file)
        found[name] = Evaluation.read(file)
    return found


def exchanged(cases: list[Case]) -> list[Case]:
    """The cases with a picture, each with that of another."""
    (exchange,) = controls.variants([from_case(case) for case in cases], BLIND)
    pictures = {item.id: item.images for item in exchange.items}
    return [replace(case, images=pictures[case.id]) for case in cases if case.id in pictures]


def by_modality(base: dict[str, Evaluation], after: list[dict[str, Evaluation]]) -> dict:
    """Accuracies before and after and the paired gain, the seeds of an item kept together."""
    figures = {}
    for side, (kind, modality) in SIDES.items():
        before = base[kind].only("modality", modality)
        trained = [policy[kind].only("modality", modality) for policy in after]
        gain = compare_evaluations([before] * len(trained), trained)
        start = before.accuracy()["accuracy"]
        figures[side] = {"before": start, "after": start + gain.difference, "items": gain.items}
        figures[side] |= {"gain": gain.difference, "low": gain.low, "high": gain.high}
        figures[side]["by_seed"] = [policy.accuracy()["accuracy"] for policy in trained]
    return figures


def curve(folder: Path) -> list[dict]:
    """Accuracies by modality, while training and held out, by step."""
    names = [
        f"{prefix}{m}{end}"
        for m in ("text", "image")
        for prefix, end in (("modalities/", "/accuracy"), ("eval/accuracy/", ""))
    ]
    return [{key: round(row[key], 6) for key in ("step", *names) if key in row} for row in metrics.read(folder)]


def main() -> None:
    """Trains, scores, prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"))
    parser.add_argument("--model", default="mini", help="what GBA starts from; another has a folder of its own inside")
    arguments, extra = parser.parse_known_args()
    folder = arguments.folder if arguments.model == "mini" else arguments.folder / Path(arguments.model).name
    folder.mkdir(parents=True, exist_ok=True)
    base = answers(arguments.model, folder)
    extra = [f"--config.model.path={arguments.model}", *extra]
    runs = [train(folder / f"gba-{seed}", seed, extra) for seed in arguments.seeds]
    found = by_modality(base, [answers(str(run.folder), run.folder) for run in runs])
    print("| cases, sampled | items | before | after | gain |\n| --- | --- | --- | --- | --- |")
    for side, row in found.items():
        ends = f"{row['before']:.3f} | {row['after']:.3f} | {row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        print(f"| {side} | {row['items']} | {ends} |")
    curves = [curve(run.folder) for run in runs]
    seconds = [run.seconds for run in runs]
    print(json.dumps({"benchmark": "looking", "modalities": found, "seconds": seconds, "curves": curves}))


if __name__ == "__main__":
    main()
