"""Conflict-aware capability integration (paper section 4.3): the experts of one base become one model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.merging.blockwise import Merge
from mmedexpert_jax.merging.device_merge import merged_on_devices, on_devices
from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.lowrank import Pair, truncate, truncate_pair
from mmedexpert_jax.merging.methods import switches
from mmedexpert_jax.merging.parameters import Parameters, Spec, by_expert
from mmedexpert_jax.merging.settings import Switches
from mmedexpert_jax.merging.vectors import Adapter, Expert, check
from mmedexpert_jax.models.tree import flatten, nest

Params = dict[str, Any]


def merge(
    base: Params,
    experts: Mapping[str, Params | Lora],
    method: str = "ties",
    preset: str | Switches = "paper",
    density: Spec | Mapping[str, Spec] = 0.2,
    weights: Sequence[Spec] | Mapping[str, Spec] | None = None,
    scale: Spec = 1.0,
    rank: int | None = None,
    gamma: Spec | Mapping[str, Spec] = 0.01,
    epsilon: Spec | Mapping[str, Spec] = 0.15,
    seed: int = 0,
    normalize_vectors: str = "none",
    space: str = "",
    fisher: Mapping[str, Params] | None = None,
    *,
    report: Interference | None = None,
) -> dict[str, Any] | Lora:
    """theta_base + scale * F(tau_1, ..., tau_K), with tau_k = theta_k - theta_base (equations 6 and 7).

    Task vectors are float32, formed block by block; those of a LoRA come straight from its factors. A base in numpy
    or on the CPU is merged by the host's cores; one on accelerators, or sharded, where it lies.

    Args:
        base: parameters of the model that every expert started from; numpy or JAX.
        experts: name -> full parameters or a Lora beside `base`; both kinds together, in the order of the merge.
        method: one of `METHODS` (docs/merging.md says what each keeps and how it joins).
        preset: of the switches on which codes differ: "paper", "official", "mergekit", "peft", or `Switches`.
        density: fraction of entries kept of each task vector (of each tensor, or as the preset says): a number, a
            list of numbers over the layers' depth, a list of {"filter", "value"}, or {expert: one of these}.
        weights: one per expert, as a list in their order or a dict by name; None weighs all alike.
        scale: eta and lambda of the paper, which multiply to one factor on the merged vector; as density.
        rank: None for full parameters; r for a Lora by truncated SVD.
        gamma: fraction dropped as outliers (breadcrumbs).
        epsilon: half width of the probabilities (DELLA).
        seed: of random methods, with the names of tensor and expert.
        normalize_vectors: "tensor", "module", "global" or "median" gives task vectors one magnitude first (`Switches`).
        space: "core" or "knots": matrices are merged in the basis that the experts' factors span; "": as they are.
        fisher: for "fisher" and "sar": name -> diagonal of the expert's Fisher information (`merging.fisher.diagonal`).
        report: takes where the experts interfere; None: nobody asks.

    Returns:
        Parameters with the keys, shapes and dtypes of `base` (tensors that no expert changed are passed through
        untouched), or a Lora of rank r.

    Raises:
        ConfigError: an unknown method or preset, weights that do not fit the experts, a density outside [0, 1].
        DataError: an expert with missing, extra, misshapen or non-finite tensors, named.
    """
    tensors = flatten(base)
    names = tuple(experts)
    given = {"density": density, "gamma": gamma, "epsilon": epsilon, "scale": scale}
    numbers = {which: by_expert(value, names, which) for which, value in given.items()}
    numbers["weight"] = by_expert(1.0 if weights is None else weights, names, "weights")
    rule = switches(preset, method)
    if normalize_vectors != "none":
        rule = switches(replace(rule, normalize=cast(Any, normalize_vectors)))
    how = Parameters(method, names, rule, numbers, seed, tuple(tensors), space=space, compress=rank or 0)
    how.check()
    found = [expert_of(name, expert) for name, expert in experts.items()]
    if fisher is not None:
        known = {name: flatten(tree) for name, tree in fisher.items()}
        found = [replace(one, fisher=known.get(one.name)) for one in found]
    job = Merge(tensors, tuple(found), how)
    check(tensors, job.experts)
    report = Interference(names) if report is None else report
    if on_devices(tensors):
        updates = merged_on_devices(job, report)
        if rank is not None:
            return as_lora(((name, np.asarray(update)) for name, update in updates), rank, report)
        return nest(tensors | {name: _moved(tensors[name], update) for name, update in updates})
    if rank is not None:
        return as_lora(updates_of(job, report), rank, report)
    return nest(merge_in_memory(job, report=report)[0])


def merge_with_report(
    base: Params, experts: Mapping[str, Params | Lora], *options: Any, **named: Any
) -> tuple[dict[str, Any] | Lora, Interference]:
    """`merge`, and where the experts interfered."""
    report = Interference(tuple(experts))
    return merge(base, experts, *options, **named, report=report), report


def expert_of(name: str, expert: Params | Lora) -> Expert:
    """An expert in memory."""
    if isinstance(expert, Lora):
        return Expert(name, adapters=(Adapter.of(expert),))
    return Expert(name, weights=flatten(expert))


def updates_of(job: Merge, report: Interference) -> Iterator[tuple[str, np.ndarray | Pair | None]]:
    """The name of every tensor that may change and what the merge adds to it, noted in the report.

    float32, as factors where the merge has them (`Merge.factors`); None where nothing changes.
    """
    for name in job.touched:
        found: np.ndarray | Pair | None = job.factors(name)
        if found is not None:
            sums = job.tensor(name, None, None)
        else:
            found, sums = job.entries(name, None)
        if sums is not None:
            report.sums[name] = sums
        yield name, None if sums is None else found


def check_rank(job: Merge, rank: int) -> None:
    """Raises ConfigError where an adapter would have a rank that none of the matrices has."""
    most = max((min(job.base[name].shape) for name in job.touched if job.base[name].ndim == 2), default=rank)
    if rank > most:
        raise ConfigError(f"rank {rank} is above that of every matrix, {most} at most; lower it, or write a full model")


def as_lora(updates: Iterable[tuple[str, np.ndarray | Pair | None]], rank: int, report: Interference) -> Lora:
    """The updates as factors of the given rank: the best in squared error, split evenly between a and b.

    Raises:
        ConfigError: a rank below 1.
        DataError: a tensor was changed that is no linear layer's weight.
    """
    if rank < 1:
        raise ConfigError(f"rank must be at least 1, got {rank}")
    factors = {}
    for name, update in updates:
        if update is None:
            continue
        matrix = isinstance(update, tuple) or update.ndim == 2
        if not matrix or not name.endswith(".weight") or name.endswith("embed_tokens.weight"):
            raise DataError(f"{name} was changed and is no linear layer's weight: merge to full parameters (no rank)")
        a, b, kept, total = truncate_pair(*update, rank) if isinstance(update, tuple) else truncate(update, rank)
        factors[name.removesuffix(".weight")] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        report.energy[name] = kept, total
    return Lora(factors=factors, rank=rank, alpha=rank)


def merge_in_memory(
    job: Merge, into: Mapping[str, Any] | None = None, report: Interference | None = None
) -> tuple[dict[str, Any], Interference]:
    """All tensors of the merged model by name, and where the experts interfered.

    Args:
        job: the merge.
        into: the base's tensors, whose dtypes the result has; None: `job.base`. Those that nobody changed are shared.
        report: takes where the experts interfere; None: a new one.
    """
    tensors = dict(job.base if into is None else into)
    report = Interference(tuple(expert.name for expert in job.experts)) if report is None else report
    for name in job.touched:
        whole, sums = job.entries(name, np.dtype(tensors[name].dtype))
        if sums is not None:
            report.sums[name] = sums
            tensors[name] = jnp.asarray(whole) if isinstance(tensors[name], jax.Array) else whole
    return tensors, report


@jax.jit
def _moved(tensor: jax.Array, update: jax.Array) -> jax.Array:
    return (tensor.astype(jnp.float32) + update).astype(tensor.dtype)
