"""Task vectors (paper equation 6): what an expert changed of the base, from its weights or its LoRA factors."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.lora import Lora

Params = Mapping[str, Any]
Expert = Params | Lora


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
    """Leaves by their dotted names, as checkpoint files have them."""
    leaves: dict[str, Any] = {}
    for key, value in params.items():
        leaves |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of dotted names."""
    params: dict[str, Any] = {}
    for name, value in leaves.items():
        *path, last = name.split(".")
        node = params
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return params


def check(tensors: Mapping[str, Any], experts: Mapping[str, Expert]) -> None:
    """Refuses an expert whose tensors are not those of the base (flat names). Raises DataError, naming the tensor."""
    for name, expert in experts.items():
        if isinstance(expert, Lora):
            for path, factor in expert.factors.items():
                shape = (factor["b"].shape[0], factor["a"].shape[1])
                _check_shape(tensors, name, f"{path}.weight", shape)
            continue
        theirs = flatten(expert)
        if missing := [key for key in tensors if key not in theirs]:
            raise DataError(f"expert {name} lacks {missing[0]} (and {len(missing) - 1} more): not of this base")
        for key, tensor in theirs.items():
            _check_shape(tensors, name, key, tensor.shape)


def _check_shape(tensors: Mapping[str, Any], expert: str, key: str, shape: tuple[int, ...]) -> None:
    if key not in tensors:
        raise DataError(f"expert {expert} changes {key}, which the base does not have")
    if tuple(tensors[key].shape) != tuple(shape):
        raise DataError(f"expert {expert}: {key} is {list(shape)}, but {list(tensors[key].shape)} in the base")


def task_vectors(name: str, tensor: Any, experts: Mapping[str, Expert]) -> Array | None:
    """tau_k of one tensor (equation 6), [K, ...] float32; None if no expert changes it. DataError if not finite."""
    vectors = [_task_vector(name, tensor, expert) for expert in experts.values()]
    changed = [vector for vector in vectors if vector is not None]
    if not changed:
        return None
    stacked = jnp.stack([jnp.zeros_like(changed[0]) if vector is None else vector for vector in vectors])
    for expert, finite in zip(experts, np.asarray(jnp.isfinite(stacked).reshape(len(stacked), -1).all(1)), strict=True):
        if not finite:
            raise DataError(f"expert {expert}: {name} holds NaN or infinite values (there or in the base)")
    return stacked if bool(jnp.any(stacked != 0)) else None


def _task_vector(name: str, tensor: Any, expert: Expert) -> Array | None:
    if isinstance(expert, Lora):
        path = name.removesuffix(".weight")
        return adapters.delta(expert, path) if name.endswith(".weight") and path in expert.factors else None
    theirs: Any = expert
    for part in name.split("."):
        theirs = theirs[part]
    return jnp.asarray(theirs, jnp.float32) - jnp.asarray(tensor, jnp.float32)
