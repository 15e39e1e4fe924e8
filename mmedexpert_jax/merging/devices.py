"""Merging where the parameters lie: on accelerators, or sharded over several devices. One program per shape."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.merging.arrays import rounded
from mmedexpert_jax.merging.combine import combine
from mmedexpert_jax.merging.engine import GLOBAL, Merge
from mmedexpert_jax.merging.fit import Stack, fit
from mmedexpert_jax.merging.interference import Interference, measure
from mmedexpert_jax.merging.methods import Setting
from mmedexpert_jax.merging.vectors import Expert

_MOST = 1 << 31  # entries, which int32 indices count


def on_devices(tensors: Mapping[str, Any]) -> bool:
    """Whether a tensor lies anywhere else than on the one CPU that the host's cores are."""
    arrays = [tensor for tensor in tensors.values() if isinstance(tensor, jax.Array)]
    return any(len(a.devices()) > 1 or next(iter(a.devices())).platform != "cpu" for a in arrays)


def merged_on_devices(job: Merge, report: Interference) -> Iterator[tuple[str, jax.Array]]:
    """(name, what the merge adds [...] float32) of every changed tensor; the report takes what was measured.

    A unit of several tensors (a trim by module or of the whole model) is laid out as one vector for its trim.

    Raises:
        ConfigError: more entries are trimmed as one vector than int32 can count.
        DataError: a task vector is not finite; names expert and tensor.
    """
    _refuse_long(job)
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
                    raise DataError(f"expert {expert.name}: {name} holds NaN or infinite values (there or in the base)")
            if name in job.touched and host["mass"].any():
                report.sums[name] = host
                yield name, update


def _refuse_long(job: Merge) -> None:
    for key, unit in job.units.items():
        if job.how(unit.names[0]).trims and unit.size >= _MOST:
            whole = "the whole model" if key == GLOBAL else key
            raise ConfigError(
                f"{whole} is trimmed as one vector of {unit.size:,} entries, which must be fewer than 2^31 on devices: "
                "pass the base as numpy arrays, which the host merges, or choose a preset that trims by tensor"
            )


def _source(expert: Expert, name: str) -> dict[str, Any]:
    own = {} if expert.weights is None else {"weights": expert.weights[name]}
    pairs = [(*adapter.factors[name], adapter.scale) for adapter in expert.adapters if name in adapter.factors]
    return own | {"factors": pairs}


@partial(jax.jit, static_argnames="how")
def _merge_unit(bases: list[jax.Array], sources: list[tuple], how: Setting) -> tuple[list, list]:
    """Updates and measured sums of a unit's tensors."""
    starts = np.cumsum([0, *[base.size for base in bases]])
    rows = (bases[0].shape[0] if bases[0].ndim > 1 else 1, -1) if how.whole_rows else (-1,)
    whole = (
        jnp.concatenate([base.astype(jnp.float32).reshape(rows) for base in bases])
        if len(bases) > 1
        else (bases[0].astype(jnp.float32).reshape(rows))
    )
    vectors = [_vectors(base, own).reshape(len(own), *rows) for base, own in zip(bases, sources, strict=True)]
    stack = vectors[0] if len(vectors) == 1 else jnp.concatenate(vectors, axis=1)
    kept, merged = combine(whole, stack, 0, fit(Stack(whole, stack), how), how)
    merged = merged * jnp.float32(how.scale)
    flat, kept, merged = stack.reshape(len(stack), -1), [row.reshape(-1) for row in kept], merged.reshape(-1)
    updates, sums = [], []
    for base, start, stop in zip(bases, starts[:-1], starts[1:], strict=True):
        update, entries = merged[start:stop], base.reshape(-1).astype(jnp.float32)
        own, left = flat[:, start:stop], [row[start:stop] for row in kept]
        sums.append(measure(entries, own, left, update, rounded(entries + update, base.dtype)))
        updates.append(update.reshape(base.shape))
    return updates, sums


def _vectors(base: jax.Array, sources: tuple) -> jax.Array:
    """Task vectors [K, ...] float32 of one tensor."""

    def vector(source: dict[str, Any]) -> jax.Array:
        total = jnp.zeros(base.shape, jnp.float32)
        if "weights" in source:
            total = jnp.asarray(source["weights"], jnp.float32) - base.astype(jnp.float32)
        for b, a, scale in source["factors"]:
            total = total + scale * jnp.matmul(b, a, precision="highest")
        return total

    return jnp.stack([vector(source) for source in sources])
