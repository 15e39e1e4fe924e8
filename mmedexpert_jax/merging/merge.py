"""Conflict-aware capability integration (paper section 4.3): the experts of one base become one model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.merging.interference import Interference, measure
from mmedexpert_jax.merging.methods import METHODS
from mmedexpert_jax.merging.ties import Switches, disjoint_mean, switches, trim
from mmedexpert_jax.merging.vectors import Expert, Params, Source, check, sources, task_vectors
from mmedexpert_jax.models.qwen2_vl import flatten, nest


@dataclass(frozen=True)
class Recipe:
    """How task vectors become one: a method, its switches, and the experts' weights [K]."""

    method: str
    rule: Switches
    density: float
    weights: tuple[float, ...]

    def trim(self, vectors: Array) -> Array:
        """What the method keeps of the task vectors, [K, ...] -> [K, ...]."""
        return trim(vectors, self.density, self.rule) if self.method == "ties" else vectors

    def integrate(self, trimmed: Array) -> Array:
        """The merged vector, [K, ...] -> [...] float32."""
        weights = jnp.asarray(self.weights, jnp.float32)
        if self.method == "ties":
            return disjoint_mean(trimmed, weights, self.rule)
        return METHODS[self.method](trimmed, weights)


def merge(
    base: Params,
    experts: Mapping[str, Expert],
    method: str = "ties",
    preset: str | Switches = "paper",
    density: float = 0.2,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    scale: float = 1.0,
    rank: int | None = None,
) -> dict[str, Any] | Lora:
    """theta_base + scale * F(tau_1, ..., tau_K), with tau_k = theta_k - theta_base (equations 6 and 7).

    Task vectors are float32, formed tensor by tensor; those of a LoRA come straight from its factors.

    Args:
        base: parameters of the model that every expert started from.
        experts: name -> full parameters or a Lora beside `base`; both kinds together, in the order of the merge.
        method: "ties", "task_arithmetic", "average" or "slerp" (on task vectors, folded pairwise in this order).
        preset: of TIES: "paper", "official", "mergekit", "peft", or `ties.Switches`.
        density: fraction of entries that TIES keeps of each task vector (of each tensor, or as the preset says).
        weights: one per expert, as a list in their order or a dict by name; None weighs all alike.
        scale: eta and lambda of the paper, which multiply to one factor on the merged vector.
        rank: None for full parameters; r for a Lora by truncated SVD.

    Returns:
        Parameters with the keys, shapes and dtypes of `base` (tensors that no expert changed are passed through
        untouched), or a Lora of rank r.

    Raises:
        ConfigError: an unknown method or preset, weights that do not fit the experts, a density outside [0, 1].
        DataError: an expert with missing, extra, misshapen or non-finite tensors, named.
    """
    return merge_with_report(base, experts, method, preset, density, weights, scale, rank)[0]


def merge_with_report(
    base: Params,
    experts: Mapping[str, Expert],
    method: str = "ties",
    preset: str | Switches = "paper",
    density: float = 0.2,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    scale: float = 1.0,
    rank: int | None = None,
) -> tuple[dict[str, Any] | Lora, Interference]:
    """`merge`, and where the experts interfered."""
    recipe = make_recipe(experts, method, preset, density, weights)
    tensors = flatten(base)
    check(tensors, experts)
    report = Interference(tuple(experts))
    merged = merged_vectors(tensors, experts, recipe, report)
    if rank is not None:
        return _as_lora(merged, scale, rank, report), report
    for name, vector in merged:
        tensors[name] = _moved(tensors[name], vector, scale)
    return nest(tensors), report


def make_recipe(
    experts: Mapping[str, Expert],
    method: str,
    preset: str | Switches,
    density: float,
    weights: Sequence[float] | Mapping[str, float] | None,
) -> Recipe:
    """Checks the settings of a merge. Raises ConfigError."""
    if not experts:
        raise ConfigError("nothing to merge: name at least one expert")
    if method != "ties" and method not in METHODS:
        raise ConfigError(f"no merging method {method!r}: choose one of ties, {', '.join(METHODS)}")
    if not 0 <= density <= 1:
        raise ConfigError(f"density is the fraction of entries kept, between 0 and 1; got {density}")
    if weights is None:
        weights = [1.0] * len(experts)
    elif isinstance(weights, Mapping):
        if set(weights) != set(experts):
            raise ConfigError(f"weights name {', '.join(weights)}, but the experts are {', '.join(experts)}")
        weights = [weights[name] for name in experts]
    if len(weights) != len(experts):
        raise ConfigError(f"{len(weights)} weights for {len(experts)} experts ({', '.join(experts)})")
    weights = tuple(float(weight) for weight in weights)
    if not all(map(math.isfinite, weights)) or (method in ("average", "slerp") and sum(weights) <= 0):
        raise ConfigError(f"weights must be finite, with a positive sum for {method}; got {list(weights)}")
    return Recipe(method, switches(preset), density, weights)


def merged_vectors(
    tensors: Mapping[str, Any], experts: Mapping[str, Expert], recipe: Recipe, report: Interference
) -> Iterator[tuple[str, Array]]:
    """Yields (name, merged task vector) of every changed tensor and measures it; one tensor at a time is in memory.

    A global trim is the exception: all task vectors become one, in the order of their sorted names.
    """
    found = {name: sources(name, tensor, experts) for name, tensor in tensors.items()}
    changed = {name: source for name, source in found.items() if source is not None}
    if recipe.method == "ties" and recipe.rule.scope == "global":
        yield from _merged_globally(tensors, changed, recipe, report)
        return
    for name, source in changed.items():
        merged, sums = _merged_tensor(tensors[name], source, recipe)
        if report.add(name, sums):
            yield name, merged


@partial(jax.jit, static_argnames="recipe")
def _merged_tensor(tensor: Array, source: tuple[Source, ...], recipe: Recipe) -> tuple[Array, dict[str, Array]]:
    vectors = task_vectors(tensor, source)
    trimmed = recipe.trim(vectors)
    return recipe.integrate(trimmed), measure(vectors, trimmed)


def _merged_globally(
    tensors: Mapping[str, Any], changed: dict[str, tuple[Source, ...]], recipe: Recipe, report: Interference
) -> Iterator[tuple[str, Array]]:
    names, experts = sorted(tensors), len(recipe.weights)
    rows = [jax.jit(task_vectors)(tensors[name], changed.get(name, (None,) * experts)) for name in names]
    vectors = jnp.concatenate([row.reshape(experts, -1) for row in rows], axis=1)
    trimmed = recipe.trim(vectors)
    merged = recipe.integrate(trimmed)
    ends = np.cumsum([tensors[name].size for name in names])
    for name, end in zip(names, ends, strict=True):
        part = slice(end - tensors[name].size, end)
        if name in changed and report.add(name, measure(vectors[:, part], trimmed[:, part])):
            yield name, merged[part].reshape(tensors[name].shape)


@jax.jit
def _moved(tensor: Array, vector: Array, scale: float) -> Array:
    return (tensor.astype(jnp.float32) + scale * vector).astype(tensor.dtype)


def _as_lora(merged: Iterator[tuple[str, Array]], scale: float, rank: int, report: Interference) -> Lora:
    """The merged vectors as factors of the given rank: the best in squared error, split evenly between a and b."""
    if rank < 1:
        raise ConfigError(f"rank must be at least 1, got {rank}")
    factors = {}
    for name, vector in merged:
        if vector.ndim != 2 or name.endswith("embed_tokens.weight"):
            raise DataError(f"{name} was changed and is no linear layer's weight: merge to full parameters (no rank)")
        left, values, right = np.linalg.svd(np.asarray(scale * vector), full_matrices=False)
        kept = min(rank, len(values))
        root = np.sqrt(values[:kept])
        a, b = np.zeros((rank, vector.shape[1]), np.float32), np.zeros((vector.shape[0], rank), np.float32)
        a[:kept], b[:, :kept] = root[:, None] * right[:kept], left[:, :kept] * root
        factors[name.removesuffix(".weight")] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        report.add_energy(name, float(np.sum(values[:kept] ** 2)), float(np.sum(values**2)))
    return Lora(factors=factors, rank=rank, alpha=rank)
