"""Task vectors (paper equation 6): what an expert changed of the base, from its weights or its LoRA factors."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models.qwen2_vl import flatten

Params = dict[str, Any]
Expert = Params | Lora
Source = Array | Lora | None  # a whole tensor, the factors of one module (under ""), or nothing


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


def sources(name: str, tensor: Array, experts: Mapping[str, Expert]) -> tuple[Source, ...] | None:
    """What each expert makes of one tensor; None if none of them changes it."""
    found = tuple(_source(name, tensor, expert) for expert in experts.values())
    return None if all(source is None for source in found) else found


def _source(name: str, tensor: Array, expert: Expert) -> Source:
    if isinstance(expert, Lora):
        path, _, leaf = name.rpartition(".")
        module = expert.factors.get(path) if leaf == "weight" else None
        return None if module is None else Lora({"": module}, expert.rank, expert.alpha)
    node: Any = expert
    for part in name.split("."):
        node = node[part]
    return None if node is tensor or bool(_equal(node, tensor)) else node


@jax.jit
def _equal(first: Array, second: Array) -> Array:
    return jnp.all(first == second)


def task_vectors(tensor: Array, found: tuple[Source, ...]) -> Array:
    """tau_k = theta_k - theta_base of one tensor (equation 6): [...] and K sources -> [K, ...] float32."""

    def vector(source: Source) -> Array:
        if source is None:
            return jnp.zeros(tensor.shape, jnp.float32)
        if isinstance(source, Lora):
            return adapters.delta(source, "")
        return jnp.asarray(source, jnp.float32) - jnp.asarray(tensor, jnp.float32)

    return jnp.stack([vector(source) for source in found])
