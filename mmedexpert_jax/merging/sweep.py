"""Densities x scales of one merge in one pass over the data: what each would do, before any model is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.blockwise import Merge, parallel
from mmedexpert_jax.merging.interference import Interference, add
from mmedexpert_jax.merging.merge_recipe import output_dtype
from mmedexpert_jax.merging.methods import Fitted
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.merging.threshold import Bound

Score = Callable[..., dict[str, float]]  # (density, scale), or (density, scale, weights by expert)
_STEP, _GROW, _SHRINK = 0.5, 1.3, 0.9  # of a search: standard deviation of log weights, and how it changes
_LEAST, _MOST = 0.05, 4.0  # weights that are tried


@dataclass(frozen=True)
class Sweep:
    """The measures of a grid of settings."""

    # one per density and scale: `density`, `scale`, `norm` (of the update), `kept mass`, `sign conflict`, `wanted by
    # two or more`, `cancellation`, and what a score gave
    rows: list[dict[str, Any]]

    def best(self) -> dict[str, Any] | None:
        """The row with the highest `accuracy`, the first of equals; None where nothing was scored.

        `looks` counts what it was chosen among; `low of all`, `high of all`: its 95 % interval if every look counts
        (Bonferroni: z of 1 - 0.025 / looks in the place of 1.96, about the accuracy).
        """
        scored = [row for row in self.rows if "accuracy" in row]
        best = max(scored, key=lambda row: row["accuracy"], default=None)
        if best is None:
            return None
        found = best | {"looks": len(scored)}
        wider = NormalDist().inv_cdf(1 - 0.025 / len(scored)) / NormalDist().inv_cdf(0.975)
        for end in ("low", "high"):
            if end in best:
                bound = best["accuracy"] + wider * (best[end] - best["accuracy"])
                found[f"{end} of all"] = float(np.clip(bound, 0, 1))
        return found


def sentence(best: Mapping[str, Any]) -> str:
    """A row of `Sweep.best` in words: what was chosen, its interval, and the one that counts all looks."""
    weights = "".join(f", {name} {weight:g}" for name, weight in best.get("weights", {}).items())
    text = f"Best of {best['looks']} looks at held-out cases: density {best['density']:g}, scale {best['scale']:g}"
    text += f"{weights and ', weights'}{weights[1:]}; {100 * best['accuracy']:.1f} % right"
    if "low of all" in best:
        own, every = (f"[{100 * best[f'low{of}']:.1f}, {100 * best[f'high{of}']:.1f}]" for of in ("", " of all"))
        text += f" {own}, {every} if each look counts"
    return f"{text}. Report it on the test split."


def sweep(
    job: Merge, densities: Sequence[float], scales: Sequence[float], dtype: str = "", score: Score | None = None
) -> Sweep:
    """Measures every density once (scales only stretch it), and scores each pair where a score is given.

    Args:
        job: the merge; its `how` is a `Parameters`, whose density and scale the grid replaces.
        densities: fractions kept.
        scales: factors of the merged vector.
        dtype: of the output that would be written; empty: the base's.
        score: (density, scale) -> named figures, among them `accuracy`.
    """
    jobs = {density: variant(job, density, 1.0) for density in densities}
    reports = {density: Interference(tuple(expert.name for expert in job.experts)) for density in densities}
    _fit_together(list(jobs.values()))
    for name in job.touched:
        target = output_dtype(np.asarray(job.base[name]), dtype)
        for density, sums in _measure(jobs, name, target).items():
            if sums["mass"].any():
                reports[density].sums[name] = sums
    rows = []
    for density in densities:
        rates = reports[density].rates()
        kept = rates.get("kept_mass", {})
        for scale in scales:
            row = {"density": density, "scale": scale, "norm": abs(scale) * rates.get("merged_norm", 0.0)}
            row["kept mass"] = float(np.mean(list(kept.values()))) if kept else 1.0
            names = {"sign conflict": "conflict", "wanted by two or more": "shared", "cancellation": "cancellation"}
            row |= {title: rates.get(key, 0.0) for title, key in names.items()}
            rows.append(row | (score(density, scale) if score else {}))
    return Sweep(rows)


def search(
    experts: Sequence[str],
    start: dict[str, Any],
    trials: int,
    seed: int,
    score: Score,
    weights: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Rows of a bounded search for each expert's weight, at the density and scale of a scored row.

    A (1+1) evolution strategy: the best weights so far are multiplied by exp(step * normal), the step grows after a
    better trial and shrinks after others. Equal seeds and scores give equal trials, so that a killed search goes on.

    Args:
        start: row of a sweep, with `accuracy`.
        seed: of the normals.
        score: (density, scale, weights) -> named figures, among them `accuracy`.
        weights: that `start` was scored with; 1 where an expert has none.
    """
    rng, step = np.random.default_rng(seed), _STEP
    best = np.array([(weights or {}).get(name, 1.0) for name in experts])
    accuracy, rows = start["accuracy"], []
    for _ in range(trials):
        trial = np.clip(best * np.exp(step * rng.standard_normal(len(experts))), _LEAST, _MOST).round(3)
        tried = dict(zip(experts, trial.tolist(), strict=True))
        figures = score(start["density"], start["scale"], tried)
        rows.append({"density": start["density"], "scale": start["scale"], "weights": tried} | figures)
        better = figures["accuracy"] > accuracy
        step *= _GROW if better else _SHRINK
        if better:
            best, accuracy = trial, figures["accuracy"]
    return rows


def variant(job: Merge, density: float, scale: float, weights: Mapping[str, float] | None = None) -> Merge:
    """The same merge at another density, scale and weights."""
    how = job.how
    assert isinstance(how, Parameters)
    return Merge(job.base, job.experts, at(how, density, scale, weights))


def at(how: Parameters, density: float, scale: float, weights: Mapping[str, float] | None = None) -> Parameters:
    """The same parameters at another density, scale and weights (None: its own).

    Raises:
        ConfigError: densities or scales by tensor, layer or expert, which this would pass over.
    """
    for which in ("density", "scale"):
        specs = how.numbers.get(which, {}).values()
        if len(set(map(repr, specs))) > 1 or not all(isinstance(spec, int | float) for spec in specs):
            raise ConfigError(f"a sweep has one {which} for all: leave out {which} by tensor, layer or expert")
    numbers = {**how.numbers, "density": {"": density}, "scale": {"": scale}}
    if weights:
        numbers["weight"] = dict(weights)
    return replace(how, numbers=numbers, _settings={})


def _measure(jobs: dict[float, Merge], name: str, dtype: np.dtype) -> dict[float, dict[str, np.ndarray]]:
    """Sums of `measure` of one tensor by density, every block read once."""
    first = next(iter(jobs.values()))

    def one(span: tuple[int, int]) -> dict[float, dict[str, np.ndarray]]:
        block = first.read(name, *span)
        return {d: job.merged(name, span[0], *block, dtype, block[0].size)[1] for d, job in jobs.items()}

    for job in jobs.values():
        job.fitted(name)
    totals: dict[float, dict[str, np.ndarray]] = {density: {} for density in jobs}
    for found in parallel(one, first.spans(name)):
        for density, sums in found.items():
            add(totals[density], sums)
    return totals


def _fit_together(jobs: list[Merge]) -> None:
    """Bounds of all densities from one pass over each unit of whose fit they are the whole."""
    first = jobs[0]
    if any(expert.origin is not None for expert in first.experts):
        return
    for key, unit in first.units.items():
        how = first.how(unit.names[0])
        more = how.rule.rescale in ("l1", "l2") or how.rule.normalize != "none" or how.rule.cancellation == "majority"
        if how.kind.keep != "largest" or how.in_factors or more:
            continue
        kept = [how.rule.kept(unit.size, density) for job in jobs for density in job.how(unit.names[0]).density]
        bound = unit.largest(kept, how.rule.equal_magnitudes)
        experts = len(first.experts)
        for number, job in enumerate(jobs):
            part = slice(number * experts, (number + 1) * experts)
            job._fits[key] = Fitted((Bound(bound.value[part], bound.cut[part], bound.from_end),))
