"""A merge as a function of blocks: what each unit decides, then every block by itself, on all cores of the host.

Nothing larger than a few blocks is ever formed, so that memory does not grow with tensors, models or experts. Blocks
depend on a tensor's shape alone: both passes over a tensor, a resumed merge and a nested one see the same numbers.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.merging import compiled
from mmedexpert_jax.merging.arrays import cpu
from mmedexpert_jax.merging.combine import Fitted, combine
from mmedexpert_jax.merging.fit import fit
from mmedexpert_jax.merging.interference import add, measure
from mmedexpert_jax.merging.methods import Setting
from mmedexpert_jax.merging.select import Blocks, Bound, Brackets, Counts, by_counting, counted
from mmedexpert_jax.merging.span import gram_matrix
from mmedexpert_jax.merging.vectors import FLOATS, Expert, Parts, as_float, assembled, factor_gram, flat

BLOCK = 1 << 17  # entries

GLOBAL = "*"  # key of the unit that is the whole model


def workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(function: Callable, items: Sequence) -> Iterator:
    """Results in order, from as many threads as cores (numpy's loops release the interpreter)."""
    if workers() == 1 or len(items) == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers()) as pool:
        yield from pool.map(function, items)


def spans(shape: tuple[int, ...], whole_rows: bool = False) -> list[tuple[int, int]]:
    """Flat ranges of a tensor's blocks, some whole rows each where that is asked for."""
    size = int(np.prod(shape))
    width = max(1, int(np.prod(shape[1:])) if len(shape) > 1 else size) if whole_rows else 1
    step = max(1, BLOCK // width) * width
    return [(start, min(start + step, size)) for start in range(0, size, step)]


@dataclass(frozen=True)
class Merge:
    """Experts over a base, and how each tensor's task vectors become one.

    Attributes:
        base: tensors by name: numpy arrays, or views of files.
        experts: at least one.
        how: tensor name -> its Setting.
    """

    base: Mapping[str, Any]
    experts: tuple[Expert, ...]
    how: Callable[[str], Setting]
    _fits: dict[str, Fitted] = field(default_factory=dict, compare=False)
    _lock: Any = field(default_factory=threading.Lock, compare=False)

    @cached_property
    def touched(self) -> dict[str, None]:
        """Names of the floating-point tensors that an expert may change, in the base's order."""
        return {
            name: None
            for name, tensor in self.base.items()
            if tensor.dtype.name in FLOATS
            and tensor.size
            and any(expert.touches(name, tensor) for expert in self.experts)
        }

    def scope(self, name: str) -> str:
        """Key of the unit that a tensor is trimmed in; the tensor's own name unless a switch says otherwise."""
        how = self.how(name)
        if not how.trims or how.rule.scope == "tensor":
            return name
        return GLOBAL if how.rule.scope == "global" else name.rpartition(".")[0]

    @cached_property
    def units(self) -> dict[str, "TensorUnit"]:
        """The units by key; each knows its tensors and where they begin in it, sorted by name."""
        groups: dict[str, list[str]] = {}
        for name in self.touched:
            groups.setdefault(self.scope(name), []).append(name)
        if GLOBAL in groups:  # one vector of the whole model, tensors that nobody changed included
            groups[GLOBAL] = [name for name, tensor in self.base.items() if tensor.dtype.name in FLOATS]
        return {key: TensorUnit(self, tuple(sorted(names))) for key, names in groups.items()}

    def fitted(self, name: str) -> Fitted:
        """What the unit of a tensor decides; computed once."""
        key = self.scope(name)
        if key not in self._fits:
            with self._lock:
                if key not in self._fits:
                    for expert in self.experts:  # here, not in the threads that will ask for them
                        if expert.origin is not None:
                            expert.origin.prepare(self.units[key].names)
                    self._fits[key] = fit(self.units[key], self.how(name))
        return self._fits[key]

    def prepare(self, names: Sequence[str]) -> None:
        """Fits the units of these tensors."""
        for name in names:
            if name in self.touched:
                self.fitted(name)

    def compiles(self, name: str) -> bool:
        """Whether a tensor's blocks are worth a program, and of dtypes that it takes."""
        tensors = [self.base[name], *(e.weights[name] for e in self.experts if e.weights is not None)]
        return (
            tensors[0].size >= BLOCK
            and not self.how(name).whole_rows
            and all(tensor.dtype.name in compiled.DTYPES for tensor in tensors)
            and cpu() is not None
        )

    def parts(self, name: str, start: int, stop: int) -> tuple[np.ndarray, list[Parts]]:
        """A block of the base [m] as it is stored, and what the task vectors are assembled from."""
        return flat(self.base[name])[start:stop], [expert.parts(name, start, stop) for expert in self.experts]

    def read(self, name: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """A block of the base [m] and of the task vectors [K, m] (DELLA: [K, rows, columns]), float32."""
        tensor = self.base[name]
        base, parts = self.parts(name, start, stop)
        base = as_float(base)
        vectors = np.empty((len(self.experts), stop - start), np.float32)
        for row, part in zip(vectors, parts, strict=True):
            vector = assembled(base, *part)
            row[:] = 0 if vector is None else vector
        if self.how(name).whole_rows:
            width = int(np.prod(tensor.shape[1:])) if tensor.ndim > 1 else tensor.size
            return base.reshape(-1, width), vectors.reshape(len(vectors), -1, width)
        return base, vectors

    def block(
        self, name: str, start: int, stop: int, dtype: Any | None = None, with_gram: bool | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Merged entries [m] of one block in `dtype`, and what `measure` finds in it.

        Without a dtype what the merge adds, in float32; without `with_gram` nothing is measured.
        """
        how, fitted = self.how(name), self.fitted(name)
        first = self.units[self.scope(name)].offsets[name] + start
        if how.method == "ties" and self.compiles(name) and (dtype is None or dtype.name in compiled.DTYPES):
            base, parts = self.parts(name, start, stop)
            return compiled.merge(base, parts, first, fitted, how, dtype, with_gram, BLOCK)
        base, vectors = self.read(name, start, stop)
        kept, update = combine(base, vectors, first, fitted, how)
        if how.scale != 1:
            update = update * np.float32(how.scale)
        base, update, vectors = base.reshape(-1), update.reshape(-1), vectors.reshape(len(vectors), -1)
        merged = base + update if dtype is None else (base + update).astype(dtype)
        sums = {}
        if with_gram is not None:
            sums = measure(base, vectors, [row.reshape(-1) for row in kept], update, merged, with_gram)
        return update if dtype is None else merged, sums

    def update(self, name: str, start: int, stop: int) -> np.ndarray | None:
        """Entries start:stop of what the merge adds to a tensor; None where no expert changes it."""
        if name not in self.touched:
            return None
        ranges = spans(self.base[name].shape, self.how(name).whole_rows)
        if (start, stop) in ranges:
            return self.block(name, start, stop)[0]
        covering = [(low, high) for low, high in ranges if low < stop and high > start]
        whole = np.concatenate([self.block(name, low, high)[0] for low, high in covering])
        return whole[start - covering[0][0] : stop - covering[0][0]]

    def sample(self, name: str, index: np.ndarray) -> np.ndarray | None:
        """What `update` adds at flat indices, nearly: entries at the bounds and random choices may differ."""
        if name not in self.touched:
            return None
        how = self.how(name)
        base = as_float(flat(self.base[name])[index])
        vectors = np.stack([expert.sample(name, index, base) for expert in self.experts])
        if how.whole_rows:
            base, vectors = base[None], vectors[:, None]
        return combine(base, vectors, 0, self.fitted(name), how)[1].reshape(-1) * np.float32(how.scale)

    def tensor(
        self, name: str, dtype: Any | None, write: Callable[[int, np.ndarray], None]
    ) -> dict[str, np.ndarray] | None:
        """Merges one tensor: `write` gets (flat index, merged entries in `dtype`) of every block, from many threads.

        Args:
            name: of the tensor.
            dtype: of the output; None: `write` gets what the merge adds, in float32.
            write: takes a block.

        Returns:
            What `interference.measure` found; None where no expert differs from the base, and nothing is changed.

        Raises:
            DataError: a task vector is not finite; names expert and tensor.
        """
        self.fitted(name)
        low_rank = all(expert.low_rank(name) for expert in self.experts)

        def one(span: tuple[int, int]) -> dict[str, np.ndarray]:
            merged, sums = self.block(name, *span, dtype, with_gram=not low_rank)
            write(span[0], merged)
            return sums

        sums: dict[str, np.ndarray] = {}
        with np.errstate(invalid="ignore", over="ignore"):
            for found in parallel(one, spans(self.base[name].shape, self.how(name).whole_rows)):
                add(sums, found)
        if not sums:
            return None
        for expert, mass in zip(self.experts, sums["mass"], strict=True):
            if not np.isfinite(mass):
                raise DataError(f"expert {expert.name}: {name} holds NaN or infinite values (there or in the base)")
        if low_rank:
            sums["gram"] = factor_gram(self.experts, name)
        return sums if sums["mass"].any() else None


@dataclass(frozen=True)
class TensorUnit:
    """Tensors of a merge that are fitted as one vector: a `methods.Unit`."""

    merge: Merge
    names: tuple[str, ...]

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where each tensor begins."""
        sizes = [self.merge.base[name].size for name in self.names]
        return dict(zip(self.names, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))

    @property
    def size(self) -> int:
        """Entries of all tensors."""
        return sum(self.merge.base[name].size for name in self.names)

    @cached_property
    def blocks(self) -> dict[int, tuple[str, int, int]]:
        """First index in the unit -> (tensor, start, stop) of every block that may hold something."""
        return {
            self.offsets[name] + start: (name, start, stop)
            for name in self.names
            if name in self.merge.touched
            for start, stop in spans(self.merge.base[name].shape, self.merge.how(name).whole_rows)
        }

    def total(self, function: Callable[[np.ndarray, np.ndarray, int], Any]) -> Any:
        """Sum of function(base, vectors, first index) over the blocks."""

        def one(first: int) -> Any:
            base, vectors = self.merge.read(*self.blocks[first])
            return function(base, vectors, first)

        return sum(parallel(one, list(self.blocks)))

    def gram(self, whole: bool) -> np.ndarray:
        """Inner products [K, K] float64 of the task vectors, from factors where it can; `whole`: of the weights."""
        experts = self.merge.experts
        if not whole and all(expert.low_rank(name) for expert in experts for name in self.names):
            return np.sum([factor_gram(experts, name) for name in self.names], axis=0)
        return self.total(lambda base, vectors, _: gram_matrix(base + vectors if whole else vectors))

    def largest(self, kept: list[int], equal_magnitudes: str) -> Bound:
        """By counting, over the blocks."""

        def read(first: int) -> np.ndarray:
            return self.merge.read(*self.blocks[first])[1]

        def count(brackets: Brackets, first: int) -> Counts:
            name, *span = self.blocks[first]
            if not self.merge.compiles(name):
                return counted(read, brackets, first)
            return compiled.count(*self.merge.parts(name, *span), brackets, len(kept), BLOCK)

        blocks = Blocks(self.size, list(self.blocks), read, self._sample, parallel, count)
        return by_counting(blocks, kept, equal_magnitudes)

    def _sample(self, index: np.ndarray) -> np.ndarray:
        values = np.zeros((len(self.merge.experts), len(index)), np.float32)
        edges = np.searchsorted(index, [*self.offsets.values(), self.size])
        for (name, offset), low, high in zip(self.offsets.items(), edges[:-1], edges[1:], strict=True):
            if low == high or name not in self.merge.touched:
                continue
            own = index[low:high] - offset
            base = as_float(flat(self.merge.base[name])[own])
            for row, expert in zip(values, self.merge.experts, strict=True):
                row[low:high] = expert.sample(name, own, base)
        return values
