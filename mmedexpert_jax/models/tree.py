"""Parameters as trees of names: nested or flat, layers by number (the checkpoint's names) or stacked (for `lax.scan`).

Layers of one kind stand under their numbers in files and at every public edge, `model.layers.7.mlp.up_proj.weight`.
Stacked, all L of them stand under `*`, `model.layers.*.mlp.up_proj.weight`, with a first axis of L: one layer is then
compiled for all. `stack` and `unstack` take parameters, LoRA deltas, gradients and optimizer states alike.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

STACKED = "*"  # in the place of a layer's number
DEEP = 12  # layers from which compiling each by itself costs more than slicing their weights from a stack


def nest(flat: Mapping[str, Any]) -> dict:
    """{"a.b": x} -> {"a": {"b": x}}."""
    nested: dict = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested


def flatten(params: dict, prefix: str = "") -> dict[str, Array]:
    """{"a": {"b": x}} -> {"a.b": x}."""
    flat: dict[str, Array] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def stack(tree: Any, params: dict | None = None) -> Any:
    """The tree with the layers of each kind stacked, in the dicts of names that it holds at any depth.

    Arrays of NumPy stay on the host; shapes (`jax.ShapeDtypeStruct`) give shapes. Where a LoRA leaves out some of the
    layers, its deltas there are zero; the number of layers is that of `params`, None: of the last one that it has. A
    tree that is stacked is returned as it is.
    """
    return _in_dicts(tree, functools.partial(_stack, counts=_counts(flatten(params or {}))))


def unstack(tree: Any) -> Any:
    """The tree with every layer under its number; undoes `stack`."""
    return _in_dicts(tree, _unstack)


def restacked(flat: dict[str, Any], change: Callable[[dict], dict]) -> dict:
    """The parameters of a flat dict, which is emptied, by `change`: `stack` or `unstack`, compiled.

    One matrix of all layers is changed at a time and its source freed, so that no other exists twice. The
    vectors, which take little, share a program.
    """
    groups: dict[str, list[str]] = {}
    for name, leaf in flat.items():
        stacked, vector = stacked_name(name)[0].split("."), 1 + (STACKED in name.split("."))
        if STACKED in stacked:
            groups.setdefault("" if getattr(leaf, "ndim", 2) <= vector else ".".join(stacked), []).append(name)
    done: dict[str, Any] = {}
    for names in groups.values():
        done |= flatten(change(nest({name: flat.pop(name) for name in names})))
    return nest(done | flat)


def is_stacked(tree: Any) -> bool:
    """True where a dict of names, nested or flat, holds stacked layers."""
    return any(
        STACKED in name.split(".") or (isinstance(node, dict) and is_stacked(node)) for name, node in tree.items()
    )


def is_deep(params: Any) -> bool:
    """True for a model with its layers under their numbers, and so many that one should be compiled for all."""
    return isinstance(params, dict) and len(params.get("model", {}).get("layers", {})) >= DEEP


def stacked_name(name: str) -> tuple[str, int | None]:
    """A layer's name -> that of its stack and its number; other names -> themselves and None."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit() and place and parts[place - 1] in _LISTS]
    if not numbers:
        return name, None
    place = numbers[0]
    return ".".join([*parts[:place], STACKED, *parts[place + 1 :]]), int(parts[place])


_LISTS = ("layers", "blocks", "layer")  # what families call their list of layers


def _in_dicts(tree: Any, change: Callable[[dict], dict]) -> Any:
    """`change` of every outermost dict of names in records, tuples and lists."""
    if isinstance(tree, dict):
        return change(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):  # a state of optax
        return type(tree)(*(_in_dicts(node, change) for node in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_in_dicts(node, change) for node in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        changed = {field.name: _in_dicts(getattr(tree, field.name), change) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **changed)
    return tree


def _counts(flat: dict) -> dict[str, int]:
    """Layers of each list, by the path of the list."""
    counts: dict[str, int] = {}
    for name in flat:
        stacked, number = stacked_name(name)
        root, star, _ = stacked.partition(f".{STACKED}.")
        if star:
            counts[root] = flat[name].shape[0] if number is None else max(counts.get(root, 0), 1 + number)
    return counts


def _stack(names: dict, counts: dict[str, int]) -> dict:
    flat = flatten(names)
    counts = _counts(flat) | counts  # a LoRA's modules need not be in all layers
    layers: dict[str, dict[int, Any]] = {}
    for name, leaf in flat.items():
        stacked, number = stacked_name(name)
        layers.setdefault(stacked, {})[-1 if number is None else number] = leaf
    joined = {}
    for name, by_number in layers.items():
        if -1 in by_number:
            joined[name] = by_number[-1]
            continue
        like = next(iter(by_number.values()))
        blank = like if isinstance(like, jax.ShapeDtypeStruct) else np.zeros(like.shape, like.dtype)
        count = counts[name.partition(f".{STACKED}.")[0]]
        joined[name] = _joined([by_number.get(number, blank) for number in range(count)])
    return _as(names, joined)


def _unstack(names: dict) -> dict:
    apart = {}
    for name, leaf in flatten(names).items():
        root, star, rest = name.partition(f".{STACKED}.")
        if not star:
            apart[name] = leaf
            continue
        for number in range(leaf.shape[0]):
            apart[f"{root}.{number}.{rest}"] = _layer(leaf, number)
    return _as(names, apart)


def _as(like: dict, flat: dict[str, Any]) -> dict:
    """`flat` as a dict of the same kind: nested as parameters are, or by module and factor as a LoRA's are."""
    if any("." in name for name in like):
        factors: dict[str, dict[str, Any]] = {}
        for name, leaf in flat.items():
            module, _, factor = name.rpartition(".")
            factors.setdefault(module, {})[factor] = leaf
        return factors
    return nest(flat)


def _joined(leaves: list[Any]) -> Any:
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        where = leaves[0].sharding  # known of a stack too where nothing is split
        whole = where if where is not None and where.is_fully_replicated else None
        return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype, sharding=whole)
    if not hasattr(leaves[0], "at") and not isinstance(leaves[0], np.ndarray):  # a quantised weight, of several arrays
        return jax.tree.map(lambda *parts: _joined([*parts]), *leaves)
    kind = np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp
    return kind.stack(leaves)


def _layer(leaf: Any, number: int) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    parts = jax.tree.leaves(leaf)
    return leaf[number] if len(parts) == 1 else jax.tree.map(lambda part: _layer(part, number), leaf)
