"""Task vectors (paper equation 6): what an expert changed of the base, block by block, in float32.

An expert is full weights of its own, or adapters over the base, or adapters over full weights, or adapters over a
merge that is itself computed when it is needed. None of them is ever formed as a whole model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from einops import rearrange

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.merging.arrays import matrix_product, namespace, product, rounded, total
from mmedexpert_jax.rounding import cdiv

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Origin(Protocol):
    """A merge that experts start from: `merging.blockwise.Merge`."""

    def prepare(self, names: Sequence[str]) -> None:
        """Computes what whole tensors decide, before blocks of them are asked for."""

    def update(self, name: str, start: int, stop: int) -> np.ndarray | None:
        """Entries start:stop of what it adds to the base's tensor, float32; None where it changes nothing."""

    def sample(self, name: str, index: np.ndarray) -> np.ndarray | None:
        """The same entries at given indices, nearly."""


@dataclass(frozen=True)
class Adapter:
    """LoRA factors on the host: {tensor name: (b [out, r], a [r, in])} in float32, and the scale of `b @ a`."""

    factors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    scale: float

    @classmethod
    def of(cls, lora: Lora) -> "Adapter":
        """From the pytree."""
        factors = {}
        for path, pair in lora.factors.items():
            b, a = (np.asarray(pair[letter], np.float32) for letter in "ba")
            factors[f"{path}.weight"] = b, rearrange(a, "rank ... -> rank (...)")
        return cls(factors, lora.scale)

    def delta(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries start:stop of the flattened delta, float32, from the rows that hold them."""
        b, a = self.factors[name]
        width = a.shape[1]
        first = start // width
        rows = matrix_product(b[first : cdiv(stop, width)], a, self.scale)
        return rows.reshape(-1)[start - first * width : stop - first * width]

    def sample(self, name: str, index: np.ndarray) -> np.ndarray:
        """Entries at flat indices, up to rounding."""
        b, a = self.factors[name]
        row, column = np.divmod(index, a.shape[1])
        return np.einsum("sr,rs->s", b[row], a[:, column]) * np.float32(self.scale)


# Of some entries of a task vector: an expert's own weights as they are stored (None: those of the base), and float32
# arrays that are added to them.
Parts = tuple[Any, list[Any]]


def assembled(base: Any, own: Any, deltas: Sequence[Any]) -> Any:
    """The task vector of an expert's `Parts` over the base in float32, numpy or JAX; None where it is zero.

    An entry that is the base's, rounded to the expert's narrower dtype, has not changed: a bf16 copy of a float32 base
    is that base.
    """
    start = [] if own is None else [_changed(base, own)]
    return total([*start, *deltas]) if start or deltas else None


def _changed(base: Any, own: Any) -> Any:
    xp = namespace(base)
    moved = (own if own.dtype == np.float32 else own.astype(np.float32)) - base
    if own.dtype.itemsize >= 4:
        return moved
    return xp.where(rounded(base, own.dtype) == own, xp.float32(0), moved)


def vector_of(parts: Parts, stored: np.ndarray, base: np.ndarray, factor: np.float32 | None = None) -> np.ndarray:
    """A block of a task vector, tau = theta - theta_base (equation 6), [m] float32, times a factor.

    Args:
        stored: the base's entries [m] as they are stored.
        base: the same in float32.
        factor: None: 1.
    """
    vector = assembled(base, *widened(parts, stored))
    if vector is None:
        return np.zeros(len(base), np.float32)
    return vector if factor is None else product(vector, factor)


def widened(parts: Parts, base: Any) -> Parts:
    """Parts with float32 weights unless the base is stored in a wider dtype: there is no rounding to look for."""
    own, deltas = parts
    if own is None or own.dtype.itemsize < base.dtype.itemsize:
        return parts
    return own.astype(np.float32), deltas


@dataclass(frozen=True)
class Expert:
    """An expert's weights and adapters over the base."""

    name: str  # of the expert
    # all tensors of its own model by name (a view of a file, or arrays); None: those of the base
    weights: Mapping[str, Any] | None = None
    adapters: tuple[Adapter, ...] = ()  # over those weights
    origin: Origin | None = None  # merge over the base that the adapters stand on; None: the base itself
    paths: tuple[str, ...] = field(default=(), compare=False)  # directories that it comes from, for a manifest
    notes: tuple[str, ...] = field(default=(), compare=False)  # what was done to lay it over the base, in words
    # diagonal of its Fisher information by tensor, of those that it changed; None: not known
    fisher: Mapping[str, Any] | None = field(default=None, compare=False)

    def renamed(self, names: Callable[[Mapping[str, Any]], dict[str, Any]]) -> "Expert":
        """The same with its tensors and factors under other names. Raises DataError for an expert over a merge."""
        if self.origin is not None:
            raise DataError(f"expert {self.name}: a recipe, whose layers cannot be stacked; merge it first")
        weights = None if self.weights is None else names(self.weights)
        adapters = tuple(replace(one, factors=names(one.factors)) for one in self.adapters)
        return replace(self, weights=weights, adapters=adapters)

    def factors(self, name: str) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """b [out, r], a [r, in] and scale of each of its adapters that changes a tensor."""
        return [(*adapter.factors[name], adapter.scale) for adapter in self.adapters if name in adapter.factors]

    @property
    def is_low_rank(self) -> bool:
        """True where its task vectors are LoRA factors and nothing else (or nothing)."""
        return self.weights is None and self.origin is None

    def touches(self, name: str, base: Any) -> bool:
        """True where it may differ from the base's tensor, as far as is known without reading."""
        own = self.weights is not None and self.weights[name] is not base
        return own or self.origin is not None or any(name in adapter.factors for adapter in self.adapters)

    def parts(self, name: str, start: int, stop: int) -> Parts:
        """The parts of entries start:stop of a tensor's task vector, which `vector_of` assembles."""
        own = None if self.weights is None else flat(self.weights[name])[start:stop]
        return own, self.deltas(name, start, stop)

    def deltas(self, name: str, start: int, stop: int) -> list[np.ndarray]:
        """The arrays that are added to its weights or the base's, [stop - start] float32 each."""
        update = None if self.origin is None else self.origin.update(name, start, stop)
        deltas = [adapter.delta(name, start, stop) for adapter in self.adapters if name in adapter.factors]
        return deltas if update is None else [update, *deltas]

    def sample(self, name: str, index: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Entries at flat indices, up to rounding."""
        found = np.zeros(len(index), np.float32)
        if self.weights is not None:
            found += _changed(base, flat(self.weights[name])[index])
        if self.origin is not None and (update := self.origin.sample(name, index)) is not None:
            found += update
        for adapter in self.adapters:
            if name in adapter.factors:
                found += adapter.sample(name, index)
        return found


def flat(tensor: Any) -> np.ndarray:
    """A tensor's entries in order, without a copy where its memory allows that."""
    return np.asarray(tensor).reshape(-1)


def factor_gram(experts: Sequence[Expert], name: str, stretch: np.ndarray | None = None) -> np.ndarray:
    """Inner products [K, K] float64 of low-rank task vectors from their factors: <BA, DC> = sum((B'D) * (AC')).

    `stretch`: [K] factors of the vectors.
    """
    left, right, owner = [], [], []
    for number, expert in enumerate(experts):
        for b, a, scale in expert.factors(name):
            left.append(b.astype(np.float64) * scale)
            right.append(a.astype(np.float64))
            owner += [number] * b.shape[1]
    gram = np.zeros((len(experts), len(experts)))
    if left:
        b, a = np.concatenate(left, axis=1), np.concatenate(right, axis=0)
        members = np.arange(len(experts))[:, None] == np.array(owner)
        gram = members @ ((b.T @ b) * (a @ a.T)) @ members.T
    return gram if stretch is None else gram * np.outer(stretch, stretch).astype(np.float64)


def infinite(expert: Expert, name: str) -> DataError:
    """The error of a task vector with values that are not finite."""
    return DataError(f"expert {expert.name}: {name} holds NaN or infinite values (there or in the base)")


def check(base: Mapping[str, Any], experts: Sequence[Expert]) -> None:
    """Refuses an expert whose tensors are not those of the base. Raises DataError, naming expert and tensor."""
    for expert in experts:
        for adapter in expert.adapters:
            for name, (b, a) in adapter.factors.items():
                _check_shape(base, expert.name, name, (b.shape[0], a.shape[1]), as_matrix=True)
        if expert.weights is None:
            continue
        if missing := [name for name in base if name not in expert.weights]:
            rest = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(f"expert {expert.name} lacks {missing[0]}{rest}: it is not of this base")
        for name, tensor in expert.weights.items():
            _check_shape(base, expert.name, name, tensor.shape)
            if base[name].dtype.name in FLOATS and tensor.dtype.name not in FLOATS:
                raise DataError(
                    f"expert {expert.name}: {name} is {tensor.dtype.name}, but {base[name].dtype.name} in the base: "
                    "export it without quantisation"
                )


def _check_shape(
    base: Mapping[str, Any], expert: str, name: str, shape: tuple[int, ...], as_matrix: bool = False
) -> None:
    if name not in base:
        raise DataError(f"expert {expert} changes {name}, which the base does not have: it is not of this base")
    expected = tuple(base[name].shape)
    if as_matrix and len(expected) > 2:  # factors of a convolution, whose kernel's axes are one
        expected = (expected[0], int(np.prod(expected[1:])))
    if expected != tuple(shape):
        other = " (another vocabulary)" if name.endswith(("embed_tokens.weight", "lm_head.weight")) else ""
        raise DataError(
            f"expert {expert}: {name} is {list(shape)}, but {list(expected)} in the base{other}: it is not of this base"
        )
