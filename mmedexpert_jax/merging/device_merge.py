"""A merge where the weights lie: a unit's tensors by one program of XLA, sharded or on an accelerator.

What the host does block by block (`blockwise`) is done here with whole tensors: `fit` and `combine` of one `Stack`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.arrays import rounded
from mmedexpert_jax.merging.blockwise import GLOBAL, Merge
from mmedexpert_jax.merging.fit import Stack, block_shape, fit
from mmedexpert_jax.merging.interference import Interference, measure
from mmedexpert_jax.merging.methods import combine
from mmedexpert_jax.merging.settings import Setting
from mmedexpert_jax.merging.vectors import Expert, assembled, infinite, widened

_MOST = 1 << 31  # entries, which int32 indices count


def on_devices(tensors: Mapping[str, Any]) -> bool:
    """True where a tensor lies anywhere else than on the one CPU that the host's cores are."""
    arrays = [tensor for tensor in tensors.values() if isinstance(tensor, jax.Array)]
    return any(len(a.devices()) > 1 or next(iter(a.devices())).platform != "cpu" for a in arrays)


def merged_on_devices(job: Merge, report: Interference) -> Iterator[tuple[str, jax.Array]]:
    """(name, what the merge adds [...] float32) of every changed tensor; the report takes what was measured.

    A unit of several tensors (a trim by module or of the whole model) is laid out as one vector for its trim.

    Raises:
        ConfigError: more entries are trimmed as one vector than int32 can count; what the host alone does is asked for.
        DataError: a task vector is not finite; names expert and tensor.
    """
    _check(job)
    for unit in job.units.values():
        names = unit.names
        bases = [jnp.asarray(job.base[name]) for name in names]
        sources = [tuple(_source(expert, name) for expert in job.experts) for name in names]
        how = job.how(names[0])
        updates, sums = _merge_unit(bases, sources, how)
        for name, update, found in zip(names, updates, sums, strict=True):
            host = {key: np.asarray(value, np.float64) for key, value in found.items()}
            for expert, mass in zip(job.experts, host["mass"], strict=True):
                if not np.isfinite(mass):
                    raise infinite(expert, name)
            if name in job.touched and host["mass"].any():
                report.sums[name] = host
                yield name, update


def _check(job: Merge) -> None:
    """Raises ConfigError for what programs of whole units do not do: count beyond int32, take factors, stretch vectors,
    or have more than one setting in a unit."""
    for key, unit in job.units.items():
        how = job.how(unit.names[0])
        if how.trims and unit.size >= _MOST:
            whole = "the whole model" if key == GLOBAL else key
            raise ConfigError(
                f"{whole} is trimmed as one vector of {unit.size:,} entries, which must be fewer than 2^31 on devices: "
                "pass the base as numpy arrays, which the host merges, or choose a preset that trims by tensor"
            )
        settings = {replace(job.how(name), keys=()) for name in unit.names}
        if how.in_factors or how.rule.normalize != "none" or len(settings) > 1:
            raise ConfigError(
                f"{how.method} as it is set for {unit.names[0]} is not merged on devices: pass the base as numpy "
                "arrays, which the host merges"
            )
        job.check_fisher(how)


def _source(expert: Expert, name: str) -> dict[str, Any]:
    own = {} if expert.weights is None else {"weights": expert.weights[name]}
    if expert.fisher and name in expert.fisher:
        own["fisher"] = expert.fisher[name]
    return own | {"factors": expert.factors(name)}


@partial(jax.jit, static_argnames="how")
def _merge_unit(bases: list[jax.Array], sources: list[tuple], how: Setting) -> tuple[list, list]:
    """Updates and measured sums of a unit's tensors."""
    starts = np.cumsum([0, *[base.size for base in bases]])
    rows = block_shape(bases[0].shape, how)

    def joined(stacks: list[jax.Array]) -> jax.Array:
        """[K, ...] of each tensor -> [K, ...] of the unit."""
        shaped = [one.reshape(len(one), *rows) for one in stacks]
        return shaped[0] if len(shaped) == 1 else jnp.concatenate(shaped, axis=1)

    whole = joined([base.astype(jnp.float32)[None] for base in bases])[0]
    stack = joined([_vectors(base, own) for base, own in zip(bases, sources, strict=True)])
    fisher = None
    if how.kind.by_fisher:
        fisher = list(joined([_fisher(base, own) for base, own in zip(bases, sources, strict=True)]))
    fitted = fit(Stack(whole, stack, len(bases) == 1 and bases[0].ndim > 1), how)
    kept, merged = combine(whole, stack, 0, fitted, how, fisher)
    flat, merged = rearrange(stack, "experts ... -> experts (...)"), merged.reshape(-1)
    kept = [row.reshape(-1) for row in kept]
    updates, sums = [], []
    for base, start, stop in zip(bases, starts[:-1], starts[1:], strict=True):
        update, entries = merged[start:stop], base.reshape(-1).astype(jnp.float32)
        own, left = flat[:, start:stop], [row[start:stop] for row in kept]
        sums.append(measure(entries, own, left, update, rounded(entries + update, base.dtype)))
        updates.append(update.reshape(base.shape))
    return updates, sums


def _fisher(base: jax.Array, sources: tuple) -> jax.Array:
    """Fisher information [K, ...] float32 of one tensor; 0 where an expert has none."""
    return jnp.stack([jnp.asarray(own.get("fisher", jnp.zeros(base.shape)), jnp.float32) for own in sources])


def _vectors(base: jax.Array, sources: tuple) -> jax.Array:
    """Task vectors [K, ...] float32 of one tensor."""

    def vector(source: dict[str, Any]) -> jax.Array:
        own = jnp.asarray(source["weights"]) if "weights" in source else None
        deltas = [scale * jnp.matmul(b, a, precision="highest") for b, a, scale in source["factors"]]
        found = assembled(base.astype(jnp.float32), *widened((own, deltas), base))
        return jnp.zeros(base.shape, jnp.float32) if found is None else found

    return jnp.stack([vector(source) for source in sources])
