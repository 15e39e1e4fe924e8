"""Every merging method over trained experts: four of DSA and the vector of GBA, seed by seed, on all held-out cases.

    python benchmarks/merge_methods.py --seeds 0 1 2 3 4             # trains what is missing, merges, answers, prints
    python benchmarks/merge_methods.py --seeds 0 --methods ties,dots # some rows; the two references always come along
    python benchmarks/merge_methods.py --preset smollm2 --seeds 0 --origins start --expert-steps 8 --steps 2 \
        --limit 32 --methods ties-median,average,dots               # a look: some twenty CPU minutes, not some days

A seed's experts are those of the pipeline: `dsa` on each specialty, their TIES merge, `gba` from there; the RL vector
is what GBA changed (`rl_origin=start`), or stands over the base, as in section 4.3. Each is trained once, by the jobs,
in --folder, and each answered row is kept there: the same command goes on after a kill. Prints a table with
95 % intervals, bootstrapped over items with the seeds of an item kept together, and one JSON line.
"""

import argparse
import hashlib
import itertools
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

import mmedexpert_jax as mx
from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.launch.jobs import run_job
from mmedexpert_jax.medeval.evaluate import Evaluation, compare_evaluations
from mmedexpert_jax.medeval.stats import bootstrap
from mmedexpert_jax.merging import METHODS as TABLE
from mmedexpert_jax.merging import Interference
from mmedexpert_jax.merging.fisher import with_fisher
from mmedexpert_jax.merging.merge import merge_in_memory
from mmedexpert_jax.merging.merge_job import recipe_of
from mmedexpert_jax.merging.merge_recipe import opened
from mmedexpert_jax.models.tree import flatten, nest

SUM = {"scale": 0.4}  # of added task vectors: what their authors recommend untuned (Yadav et al. 2023)
METHODS = {
    "task_arithmetic": SUM,
    "ties": {},
    **{
        f"ties, {unit}": {"method": "ties", "normalize_vectors": unit}
        for unit in ("tensor", "module", "global", "median")
    },
    "task_arithmetic, tensor": {"method": "task_arithmetic", "normalize_vectors": "tensor"} | SUM,
    "average": {},
    "dots": SUM,
    "fisher": {},
    "sar": {},
    "slerp": {},
    "core, ties": {"method": "ties", "space": "core"},
    "knots, ties": {"method": "ties", "space": "knots"},
    "tsv_m": {},
    "iso_c": {},
    "wudi": {},
    "optmerge": {},
    "magnitude_prune": SUM,
    "dare_linear": SUM,
    "dare_ties": {},
    "della": {},
    "breadcrumbs_ties": {},
    "model_stock": {},
    "multislerp": {},
    "karcher": {},
    "sce": {},
    "ram": {},
    "ramplus": {},
}
REFERENCES = ("task_arithmetic", "ties")
ORIGINS = ("start", "base")


def train(folder: Path, seed: int, options: argparse.Namespace) -> None:
    """The experts of one seed, by the jobs; a finished one is left alone."""

    def job(name: str, path: str, **fields: object) -> str:
        given = {"seed": seed, "workdir": str(folder / path), **fields}
        run_job(mx.load_config(f"configs/{name}.py:{options.preset}", overrides=given))
        return str(folder / path)

    silent, length = {"eval.every": -1}, {"epochs": options.epochs}
    if options.expert_steps:
        length["steps"] = options.expert_steps
    experts = tuple(job("dsa", f"dsa/{name}", specialty=name, **length, **silent) for name in SPECIALTIES)
    merged = job("merge", "merged", experts=experts)
    job("gba", "gba", steps=options.steps, **{"model.path": merged}, **silent)


class Answers:
    """The answers of merged models to the test split, each made once."""

    def __init__(self, preset: str, limit: int):
        self.preset, (self.model, self.base) = preset, mx.load_model(preset)
        self.processor, self.cases = mx.load_processor(preset), mx.data.load_cases("mini", "test", limit=limit)

    def of(self, folder: Path, label: str, origin: str, seed: int) -> tuple[Evaluation, dict[str, float]]:
        """Of one merge, and what its report says of the RL vector."""
        fields = {"method": label.partition(",")[0]} | METHODS[label]
        mark = hashlib.sha256(json.dumps([fields, origin, len(self.cases)], sort_keys=True).encode()).hexdigest()[:8]
        rows = folder / "rows" / f"{label.replace(', ', '-')}-{origin}-{mark}.jsonl"
        facts = rows.with_suffix(".json")
        if not (rows.exists() and facts.exists()):
            began = time.process_time()
            params, report = self.merged(folder, fields, origin, seed)
            seconds = time.process_time() - began
            rows.parent.mkdir(exist_ok=True)
            self.answer(params, rows)
            rates = report.rates()
            found = {key: rates[key]["RL"] for key in ("along", "won", "length") if key in rates}
            facts.write_text(json.dumps(found | {"seconds": seconds}))
        return Evaluation.read(rows), json.loads(facts.read_text())

    def merged(self, folder: Path, fields: dict, origin: str, seed: int) -> tuple[dict, Interference]:
        """A merge over the base, in memory, and its report."""
        experts = (*(f"{name}={folder}/dsa/{name}" for name in SPECIALTIES), f"RL={folder}/gba")
        changes = {"experts": experts, "rl_origin": origin, "seed": seed, **fields}
        config = mx.load_config(f"configs/merge.py:{self.preset}", overrides=changes)
        recipe = recipe_of(config)
        if TABLE[recipe.parameters.method].by_fisher:
            cases = mx.data.load_cases(self.preset, "dev", limit=config.fisher_prompts)
            recipe = with_fisher(recipe, folder / f"fisher-{origin}", cases)
        merged, report = merge_in_memory(opened(recipe, flatten(self.base)), flatten(self.base))
        return nest(merged), report

    def answer(self, params: dict, rows: Path) -> Evaluation:
        """Greedy answers to all cases, written to a file."""
        settings = {"max_new_tokens": 96 if self.preset == "mini" else 128, "key": jax.random.key(0)}
        found = mx.medeval.evaluate(self.model, params, self.processor, self.cases, batch_size=128, **settings)
        found.write(rows)
        return found

    def alone(self, folder: Path, name: str, source: str) -> Evaluation:
        """Of an unmerged model."""
        rows = folder / "rows" / f"{name}-{len(self.cases)}.jsonl"
        rows.parent.mkdir(parents=True, exist_ok=True)
        return Evaluation.read(rows) if rows.exists() else self.answer(mx.load_model(source)[1], rows)


def figure(values: np.ndarray) -> str:
    """Mean over seeds and items with the bootstrap's interval over items, percent."""
    low, high = bootstrap(values.mean(0))
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def paired(reference: list[Evaluation], found: list[Evaluation]) -> str:
    gain = compare_evaluations(reference, found)
    return f"{100 * gain.difference:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def outcomes(found: list[Evaluation]) -> np.ndarray:
    """[seeds, items]."""
    return np.array([[np.mean(values) for values in one.outcomes().values()] for one in found])


def table(
    rows: dict[str, list[Evaluation]], facts: dict[str, list[dict[str, float]]], references: list[str]
) -> list[dict]:
    """A line for each row; differences are paired with the references, item by item."""
    lines = []
    for name, found in rows.items():
        line = {"merge": name, "accuracy": figure(outcomes(found))}
        for reference in references:
            line[f"minus {reference}"] = "" if name == reference else paired(rows[reference], found)
        known = facts.get(name, [])
        for key, title in (("length", "RL's length to the others'"), ("along", "cosine to RL"), ("seconds", "CPU s")):
            values = [one[key] for one in known if key in one]
            line[title] = f"{np.mean(values):.2f}" if values else ""
        lines.append(line)
    return lines


def main() -> None:
    """Trains, merges, answers, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--preset", choices=("mini", "smollm2"), default="mini")
    parser.add_argument("--methods", default=",".join(name.replace(", ", "-") for name in METHODS))
    parser.add_argument("--origins", default=",".join(ORIGINS), help="of the RL vector: start, base")
    parser.add_argument("--epochs", type=float, default=3.0, help="of DSA; appendix B")
    parser.add_argument("--expert-steps", type=int, default=0, help="of DSA in the place of epochs; 0: as the preset")
    parser.add_argument("--steps", type=int, default=24, help="of GBA; as configs/ablation.py:mini")
    parser.add_argument("--limit", type=int, default=0, help="cases of the test split; 0: all")
    parser.add_argument("--folder", type=Path, default=Path("runs/merge-methods"))
    options = parser.parse_args()
    asked = options.methods.split(",")
    labels = [label for label in METHODS if label.replace(", ", "-") in asked or label in REFERENCES]
    root, answers = (options.folder / options.preset).resolve(), Answers(options.preset, options.limit)
    rows: dict[str, list[Evaluation]] = {"base": [answers.alone(root, "base", options.preset)] * len(options.seeds)}
    facts: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        folder = root / f"seed-{seed}"
        train(folder, seed, options)
        for origin, label in itertools.product(options.origins.split(","), labels):
            found, said = answers.of(folder, label, origin, seed)
            rows.setdefault(f"{label} ({origin})", []).append(found)
            facts.setdefault(f"{label} ({origin})", []).append(said)
            print(f"seed {seed}, {label} ({origin}): {figure(outcomes([found]))}", file=sys.stderr, flush=True)
        for name, part in (("four experts, TIES", "merged"), ("GBA from there", "gba")):
            rows.setdefault(name, []).append(answers.alone(folder, part, str(folder / part)))
    references = [f"{label} ({options.origins.split(',')[0]})" for label in REFERENCES]
    lines = table(rows, facts, references)
    print(f"{options.preset}, seeds {', '.join(map(str, options.seeds))}, {len(answers.cases)} cases, greedy\n")
    print("| " + " | ".join(lines[0]) + " |\n|" + " --- |" * len(lines[0]))
    print("\n".join("| " + " | ".join(line.values()) + " |" for line in lines))
    print(json.dumps({"benchmark": "merge_methods", "preset": options.preset, "seeds": options.seeds, "rows": lines}))


if __name__ == "__main__":
    main()
