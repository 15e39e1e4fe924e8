"""A merge as a function of blocks: what each unit decides, then every block by itself, on all cores of the host.

Nothing larger than a few blocks is ever formed, so that memory does not grow with tensors, models or experts. Blocks
depend on a tensor's shape alone: both passes over a tensor, a resumed merge and a nested one see the same numbers.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from einops import rearrange

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging import kernel
from mmedexpert_jax.merging.arrays import cpu, finite
from mmedexpert_jax.merging.fit import Derived, fit
from mmedexpert_jax.merging.interference import add, measure
from mmedexpert_jax.merging.lowrank import Pair, factors_of
from mmedexpert_jax.merging.methods import Fitted, combine
from mmedexpert_jax.merging.settings import Setting
from mmedexpert_jax.merging.spherical import gram_matrix
from mmedexpert_jax.merging.threshold import TOP, Blocks, Bound, Brackets, Counts, by_counting
from mmedexpert_jax.merging.vectors import (
    FLOATS,
    Adapter,
    Expert,
    Parts,
    factor_gram,
    flat,
    infinite,
    vector_of,
)
from mmedexpert_jax.rounding import cdiv
from mmedexpert_jax.runtime.threads import cores, in_order

# Entries: of a block; of files that are counted by one call; that one of several equal magnitudes is looked for in.
BLOCK, RUN, PIECE = 1 << 18, 1 << 20, 1 << 15
# Blocks of a tensor, evenly spaced, and entries at their beginnings in all, that the report is measured on: they give a
# share of 0.2 to 0.2 points (its standard error), and its sums cost ten times as much as the merge of as many entries.
REPORTED, ENTRIES = 4, 1 << 15

GLOBAL = "*"  # key of the unit that is the whole model


def parallel(function: Callable, items: Sequence) -> Iterator:
    """Results in order, from as many threads as cores (numpy's loops release the interpreter)."""
    return in_order(function, items, min(cores(), len(items)))


def unit_key(name: str, scope: str) -> str:
    """Key of the unit that a tensor is in, by the word of a switch: "tensor", "module" or "global"."""
    match scope:
        case "global":
            return GLOBAL
        case "module":
            return name.rpartition(".")[0]
        case _:
            return name


@dataclass(frozen=True)
class Merge:
    """Experts over a base, and how each tensor's task vectors become one."""

    base: Mapping[str, Any]  # tensors by name: numpy arrays, or views of files
    experts: tuple[Expert, ...]  # at least one
    how: Callable[[str], Setting]  # tensor name -> its Setting
    _fits: dict[str, Fitted] = field(default_factory=dict, compare=False)
    _stretches: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    _lock: Any = field(default_factory=threading.Lock, compare=False)

    @cached_property
    def touched(self) -> dict[str, None]:
        """Names of the floating-point tensors that an expert may change, in the base's order."""
        return {
            name: None
            for name, tensor in self.base.items()
            if tensor.dtype.name in FLOATS
            and tensor.size
            and (any(expert.touches(name, tensor) for expert in self.experts) or self.how(name).moves_base)
        }

    def scope(self, name: str) -> str:
        """Key of the unit that a tensor is trimmed in; the tensor's own name unless a switch says otherwise."""
        how = self.how(name)
        return unit_key(name, how.rule.scope if how.trims and not how.in_factors else "tensor")

    def spans(self, name: str) -> list[tuple[int, int]]:
        """Flat ranges of a tensor's blocks, some whole rows each where the method needs them."""
        shape = self.base[name].shape
        size = int(np.prod(shape))
        row = int(np.prod(shape[1:])) if len(shape) > 1 else size
        width = max(1, row) if self.how(name).whole_rows else 1
        step = max(1, BLOCK // width) * width
        return [(start, min(start + step, size)) for start in range(0, size, step)]

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
        """The `Fitted` of a tensor's unit; computed once."""
        key = self.scope(name)
        if key not in self._fits:
            with self._lock:
                if key not in self._fits:
                    self._check_unit(key)
                    for expert in self.experts:  # here, not in the threads that will ask for them
                        if expert.origin is not None:
                            expert.origin.prepare(self.units[key].names)
                    for one in self.units[key].names:
                        self._stretch(one)
                    self._fits[key] = fit(self.units[key], self.how(name))
        return self._fits[key]

    def _check_unit(self, key: str) -> None:
        """Raises ConfigError where tensors that are trimmed as one vector have trims of their own."""
        names = self.units[key].names
        trims = {(self.how(name).density, self.how(name).gamma): name for name in names}
        if len(trims) > 1:
            one, other, *_ = trims.values()
            whole = "the whole model" if key == GLOBAL else key
            raise ConfigError(
                f"{whole} is trimmed as one vector, but density or gamma of {one} and {other} differ: give one value "
                "for all, or a preset or switch that trims by tensor"
            )

    def stretch(self, name: str) -> np.ndarray | None:
        """[K] float32 factors that give a tensor's task vectors one magnitude; None where a switch wants none."""
        return self._stretches.get(unit_key(name, self.how(name).rule.normalize))

    def _stretch(self, name: str) -> None:
        """Computes `stretch`, once, from the task vectors as they are."""
        normalize = self.how(name).rule.normalize
        key = unit_key(name, normalize)
        if normalize == "none" or name not in self.touched or key in self._stretches:
            return
        unit = TensorUnit(self, tuple(sorted(one for one in self.touched if unit_key(one, normalize) == key)))
        if normalize == "median":
            found = np.asarray(unit.largest([(unit.size + 1) // 2] * len(self.experts), "keep_all").value, np.float64)
        else:
            found = np.sqrt(np.maximum(np.diag(unit.gram(False)), 0))
        present = found > 0
        mean = found[present].mean() if present.any() else 1.0
        self._stretches[key] = np.where(present, mean / np.where(present, found, 1), 1).astype(np.float32)

    def prepare(self, names: Sequence[str]) -> None:
        """Fits the units of these tensors."""
        for name in names:
            if name in self.touched:
                self.fitted(name)

    def compiles(self, name: str) -> bool:
        """True where a tensor's blocks are worth a program, and of dtypes that it takes."""
        tensors = [self.base[name], *(e.weights[name] for e in self.experts if e.weights is not None)]
        return (
            4 * tensors[0].size >= BLOCK  # a padded block costs less than numpy on a quarter of it
            and not self.how(name).whole_rows
            and all(tensor.dtype.name in kernel.DTYPES for tensor in tensors)
            and cpu() is not None
        )

    def whole(self, name: str, start: int, stop: int) -> tuple[np.ndarray, list[Parts]]:
        """The base's tensor [n], the experts' [n], and what is added to their entries of a block: for programs."""
        own = [None if e.weights is None else flat(e.weights[name]) for e in self.experts]
        return flat(self.base[name]), [(o, e.deltas(name, start, stop)) for o, e in zip(own, self.experts, strict=True)]

    def split(self, name: str, start: int, stop: int, brackets: Brackets) -> Counts | None:
        """The counts of some entries by programs; None where there is none for the tensor, or for so many rows."""
        if max(brackets) >= len(self.experts) or not self.compiles(name):
            return None
        base, parts = self.whole(name, start, stop)
        stretch, found = self.stretch(name), {}
        for first in range(0, len(parts), kernel.TOGETHER):
            some = slice(first, first + kernel.TOGETHER)
            limits = np.array([brackets.get(k, (TOP, TOP, -1)) for k in range(len(parts))[some]], np.int32).T
            factors = None if stretch is None else stretch[some]
            counted = kernel.split(base, parts[some], (start, stop), limits, BLOCK, factors)
            for k, (above, frequent, at) in enumerate(counted, first):
                stored, (weights, deltas) = base[start:][at], parts[k]
                few = None if weights is None else weights[start:][at], [delta[at] for delta in deltas]
                vector = vector_of(few, stored, stored.astype(np.float32), None if stretch is None else stretch[k])
                found[k] = above, frequent, np.abs(vector).view(np.int32)
        return {row: found[row] for row in brackets}

    def vectors(self, name: str, start: int, stop: int, some: slice = slice(None)) -> Iterator[np.ndarray]:
        """A block of some task vectors, [m] float32 each, made one after the other."""
        stored = flat(self.base[name])[start:stop]
        base, stretch, experts = stored.astype(np.float32), self.stretch(name), self.experts[some]
        factors = [None] * len(experts) if stretch is None else stretch[some]
        for expert, factor in zip(experts, factors, strict=True):
            yield vector_of(expert.parts(name, start, stop), stored, base, factor)

    def read(self, name: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """A block of the base [m] and of the task vectors [K, m] (DELLA: [K, rows, columns]), float32."""
        tensor = self.base[name]
        base, vectors = flat(tensor)[start:stop].astype(np.float32), np.stack(list(self.vectors(name, start, stop)))
        if self.how(name).whole_rows:
            width = int(np.prod(tensor.shape[1:])) if tensor.ndim > 1 else tensor.size
            base = rearrange(base, "(rows width) -> rows width", width=width)
            vectors = rearrange(vectors, "experts (rows width) -> experts rows width", width=width)
        return base, vectors

    def fisher(self, name: str, entries: Any) -> list[np.ndarray] | None:
        """The experts' Fisher information of flat entries [m] (0 where a tensor is not theirs); None: none is asked."""
        if not self.how(name).kind.by_fisher:
            return None
        self.check_fisher(self.how(name))
        zero = np.broadcast_to(np.float32(0), self.base[name].size)
        known = [expert.fisher.get(name) for expert in self.experts if expert.fisher is not None]
        return [(zero if one is None else flat(one))[entries].astype(np.float32) for one in known]

    def check_fisher(self, how: Setting) -> None:
        """Raises ConfigError where a method asks for Fisher information that an expert does not have."""
        unknown = [expert.name for expert in self.experts if expert.fisher is None]
        if how.kind.by_fisher and unknown:
            raise ConfigError(f"{how.method} weighs by Fisher information; expert {unknown[0]} has none")

    def block(
        self, name: str, start: int, stop: int, dtype: Any | None = None, measured: int = 0
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Merged entries [m] of one block in `dtype`, and what `interference.measure` finds in the first `measured`.

        Without a dtype what the merge adds, in float32. A task vector that is not finite leaves entries that are not.
        """
        how = self.how(name)
        compiled = how.method == "ties" and how.rule.rescale == "none" and self.compiles(name)
        if not compiled or (dtype is not None and dtype.name not in kernel.DTYPES):
            return self.merged(name, start, *self.read(name, start, stop), dtype, measured)
        fitted, first = self.fitted(name), self.units[self.scope(name)].offsets[name] + start
        base, parts = self.whole(name, start, stop)
        merged = kernel.merge(base, parts, (start, stop), first, fitted, how, dtype, BLOCK, self.stretch(name))
        if not measured:
            return merged, {}
        few = self.read(name, start, min(stop, start + measured))
        return merged, self.merged(name, start, *few, dtype, measured)[1]

    def merged(
        self, name: str, start: int, base: np.ndarray, vectors: np.ndarray, dtype: Any | None, measured: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """As `block`, by numpy, of entries as `read` gives them."""
        how, first = self.how(name), self.units[self.scope(name)].offsets[name] + start
        fisher = self.fisher(name, slice(start, start + base.size))
        kept, update = combine(base, vectors, first, self.fitted(name), how, fisher)
        base, update, vectors = base.reshape(-1), update.reshape(-1), rearrange(vectors, "experts ... -> experts (...)")
        if not finite(vectors):
            update = np.full_like(update, np.nan)
        merged = base + update if dtype is None else (base + update).astype(dtype)
        sums = {}
        if measured:
            few = slice(measured)
            rows = [row.reshape(-1)[few] for row in kept]
            sums = measure(base[few], vectors[:, few], rows, update[few], merged[few])
        return update if dtype is None else merged, sums

    def update(self, name: str, start: int, stop: int) -> np.ndarray | None:
        """Entries start:stop of what the merge adds to a tensor; None where no expert changes it."""
        if name not in self.touched:
            return None
        covering = [(low, high) for low, high in self.spans(name) if low < stop and high > start]
        blocks = [self.block(name, low, high)[0] for low, high in covering]
        whole = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return whole[start - covering[0][0] : stop - covering[0][0]]

    def sample(self, name: str, index: np.ndarray) -> np.ndarray | None:
        """The addends of `update` at flat indices, nearly: entries at the bounds and random choices may differ."""
        if name not in self.touched:
            return None
        how, fitted = self.how(name), self.fitted(name)
        if fitted.factors is not None:
            return Adapter({name: fitted.factors}, how.scale).sample(name, index)
        base = flat(self.base[name])[index].astype(np.float32)
        vectors = np.stack([expert.sample(name, index, base) for expert in self.experts])
        if (stretch := self.stretch(name)) is not None:
            vectors *= stretch[:, None]
        if how.whole_rows:
            base, vectors = base[None], vectors[:, None]
        found = combine(base, vectors, 0, fitted, how, self.fisher(name, index))[1]
        return found.reshape(-1)

    def factors(self, name: str) -> Pair | None:
        """Factors b [out, r] and a [r, in] of all that the merge adds to a matrix, which is not formed; None for none.

        A merge in factors has them, and a sum of LoRA experts with coefficients.
        """
        how, found = self.how(name), self.fitted(name)
        if found.factors is not None:
            b, a = found.factors
        elif how.linear and all(expert.is_low_rank for expert in self.experts):
            pairs = self.units[name].factors(0)
            own = np.asarray(how.weights) / how.divisor if found.coefficients is None else found.coefficients[:-1]
            if not pairs:
                return None
            b = np.concatenate([b * np.float32(c) for (b, _), c in zip(pairs, own, strict=True)], axis=1)
            a = np.concatenate([a for _, a in pairs])
        else:
            return None
        if not (finite(b) and finite(a)):
            self._refuse_infinite(name, None)
        return b * np.float32(how.scale), a

    def tensor(
        self, name: str, dtype: Any | None, write: Callable[[int, np.ndarray], None] | None
    ) -> dict[str, np.ndarray] | None:
        """Merges one tensor: `write` gets (flat index, merged entries in `dtype`) of every block, from many threads.

        Args:
            dtype: of the output; None: `write` gets what the merge adds, in float32.
            write: takes a block; None: only what is measured is computed.

        Returns:
            What `interference.measure` found; None where no expert differs from the base, and nothing is changed.

        Raises:
            DataError: a task vector is not finite; names expert and tensor.
        """
        self.fitted(name)
        low_rank = all(expert.is_low_rank for expert in self.experts)
        ranges = self.spans(name)
        step = cdiv(len(ranges), REPORTED)

        def one(number: int) -> tuple[dict[str, np.ndarray], bool]:
            with np.errstate(invalid="ignore", over="ignore"):  # which every thread has of its own
                merged, sums = self.block(name, *ranges[number], dtype, 0 if number % step else few)
            if write is not None:
                write(ranges[number][0], merged)
            return sums, finite(merged)

        few = ENTRIES // len(ranges[::step])
        sums: dict[str, np.ndarray] = {}
        in_range = True
        for found, fits in parallel(one, range(0, len(ranges), step if write is None else 1)):
            add(sums, found)
            in_range &= fits
        if not sums:
            return None
        if not in_range:
            self._refuse_infinite(name, dtype)
        seen = sum(min(stop - start, few) for start, stop in ranges[::step])
        changes = sums["mass"].any() or any(self.read(name, *span)[1].any() for span in ranges)
        sums = {key: value * (self.base[name].size / seen) for key, value in sums.items()}
        if low_rank:
            sums["gram"] = factor_gram(self.experts, name, self.stretch(name))
        if (stretch := self.stretch(name)) is not None:
            sums["stretch"] = np.diag(sums["gram"]) / np.square(stretch, dtype=np.float64)
        return sums if changes or self.how(name).moves_base else None

    def entries(self, name: str, dtype: Any | None) -> tuple[np.ndarray, dict[str, np.ndarray] | None]:
        """The merged tensor in a dtype (None: what the merge adds, in float32), and what `tensor` returns."""
        found = np.empty(self.base[name].shape, dtype or np.float32)
        line = found.reshape(-1)

        def write(start: int, merged: np.ndarray) -> None:
            line[start : start + len(merged)] = merged

        return found, self.tensor(name, dtype, write)

    def _refuse_infinite(self, name: str, dtype: Any | None) -> None:
        """Reads the tensor again for whose entries they are."""
        ranges = self.spans(name)
        for span in ranges:
            for expert, vector in zip(self.experts, self.read(name, *span)[1], strict=True):
                if not finite(vector):
                    raise infinite(expert, name)
        fits = all(finite(self.block(name, *span, np.dtype(np.float32))[0]) for span in ranges)
        scale = self.how(name).scale
        wider = "write bfloat16 or float32 (config.model.dtype, or out_dtype of a mergekit file)"
        fix = wider if fits else f"lower the scale ({scale:g}) or the weights"
        raise ConfigError(f"{name}: the merged weights overflow {'float32' if dtype is None else dtype.name}; {fix}")


@dataclass(frozen=True)
class TensorUnit:
    """Tensors of a merge that are fitted as one vector: a `fit.Unit`."""

    merge: Merge
    names: tuple[str, ...]

    @property
    def matrix(self) -> bool:
        """True for one tensor of two dimensions or more."""
        return len(self.names) == 1 and self.merge.base[self.names[0]].ndim > 1

    @cached_property
    def offsets(self) -> dict[str, int]:
        """{tensor: its first entry's place in the unit}."""
        sizes = [self.merge.base[name].size for name in self.names]
        return dict(zip(self.names, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))

    def factors(self, rank: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Those of adapters as they are; full weights are decomposed, or cut to a rank."""
        name = self.names[0]
        base = self.merge.base[name]
        if not self.matrix or base.ndim > 2 or name.endswith(("embed_tokens.weight", "lm_head.weight")):
            return []
        stretch, found = self.merge.stretch(name), []
        for number, expert in enumerate(self.merge.experts):
            if expert.is_low_rank:
                pairs = [(b * scale, a) for b, a, scale in expert.factors(name)]
                b = np.concatenate([b for b, _ in pairs], axis=1) if pairs else np.zeros((base.shape[0], 1), np.float32)
                a = np.concatenate([a for _, a in pairs]) if pairs else np.zeros((1, base.shape[1]), np.float32)
                found.append((b if stretch is None else b * stretch[number], a))
            else:
                whole = np.concatenate([self.merge.read(name, *span)[1][number] for span in self.merge.spans(name)])
                found.append(factors_of(whole, rank))
        return found

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
            for start, stop in self.merge.spans(name)
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
        if not whole and all(expert.is_low_rank for expert in experts):
            return np.sum([factor_gram(experts, name, self.merge.stretch(name)) for name in self.names], axis=0)
        return self.total(lambda base, vectors, _: gram_matrix(base + vectors if whole else vectors))

    def largest(self, kept: list[int], equal_magnitudes: str, of: Derived | None = None) -> Bound:
        """By counting, over the blocks."""
        if of is not None:

            def derived(first: int, _: slice) -> Iterable[np.ndarray]:
                return [of(*self.merge.read(*self.blocks[first])).reshape(-1)]

            return by_counting(Blocks(1, self.size, list(self.blocks), derived, None, parallel), kept, equal_magnitudes)
        # Files are read in any lengths; what adapters and merges add costs least by whole blocks.
        plain = all(one.adapters == () and one.origin is None for one in self.merge.experts)
        blocks = self._runs if plain else self.blocks

        def read(first: int, some: slice) -> Iterable[np.ndarray]:
            return self.merge.vectors(*blocks[first], some)

        def pieces(first: int, row: int) -> Iterator[tuple[int, np.ndarray]]:
            name, start, stop = blocks[first]
            step = PIECE if plain else stop - start
            for low in range(start, stop, step):
                (vector,) = self.merge.vectors(name, low, min(low + step, stop), slice(row, row + 1))
                yield first + low - start, vector

        def split(first: int, brackets: Brackets) -> Counts | None:
            return self.merge.split(*blocks[first], brackets)

        many = len(self.merge.experts)
        found = Blocks(many, self.size, list(blocks), read, self._sample, parallel, split, pieces)
        return by_counting(found, kept, equal_magnitudes)

    @property
    def _runs(self) -> dict[int, tuple[str, int, int]]:
        """`blocks` of RUN entries."""
        sizes = {name: self.merge.base[name].size for name in self.names if name in self.merge.touched}
        return {
            self.offsets[name] + start: (name, start, min(start + RUN, size))
            for name, size in sizes.items()
            for start in range(0, size, RUN)
        }

    def _sample(self, index: np.ndarray) -> np.ndarray:
        values = np.zeros((len(self.merge.experts), len(index)), np.float32)
        edges = np.searchsorted(index, [*self.offsets.values(), self.size])
        for (name, offset), low, high in zip(self.offsets.items(), edges[:-1], edges[1:], strict=True):
            if low == high or name not in self.merge.touched:
                continue
            own = index[low:high] - offset
            base = flat(self.merge.base[name])[own].astype(np.float32)
            for row, expert in zip(values, self.merge.experts, strict=True):
                row[low:high] = expert.sample(name, own, base)
            if (stretch := self.merge.stretch(name)) is not None:
                values[:, low:high] *= stretch[:, None]
        return values
