"""Stacks of slices: layers of several merges on top of each other, each over a base of its own."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmedexpert_jax.merging.blockwise import Merge
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.merging.vectors import Expert


@dataclass(frozen=True)
class Slice:
    """Layers of a stack: a merge of equally many layers of a base and of experts."""

    base: str  # path of the model whose layers the experts' are merged over
    experts: Mapping[str, str]  # name -> path
    ranges: Mapping[str, tuple[int, int]]  # [start, stop) of the layers that are taken, by name, "" for the base
    parameters: Parameters  # of this merge

    @property
    def count(self) -> int:
        """Layers that it adds to the stack."""
        start, stop = self.ranges[""]
        return stop - start


@dataclass(frozen=True)
class Merges:
    """Merges of different tensors, side by side: a stack of slices."""

    parts: tuple[Merge, ...]
    like: Any  # the checkpoint whose names, configs and tokenizer the result has

    @cached_property
    def base(self) -> "Stacked":
        """All tensors of the stack."""
        found = {name: tensor for part in self.parts for name, tensor in part.base.items()}
        number = re.compile(r"(?<=\.layers\.)\d+(?=\.)")
        prefixes = {number.sub("*", name): number.sub("*", stored) for name, stored in self.like.stored.items()}

        def stored(name: str) -> str:
            found = number.search(name)
            return prefixes.get(number.sub("*", name), name).replace("*", found[0] if found else "*")

        return Stacked(found, {name: stored(name) for name in found}, self.like.directory)

    @cached_property
    def touched(self) -> dict[str, None]:
        """As of `Merge`."""
        return {name: None for part in self.parts for name in part.touched}

    @property
    def experts(self) -> tuple[Expert, ...]:
        """Of all parts."""
        return tuple(expert for part in self.parts for expert in part.experts)

    def tensor(
        self, name: str, dtype: Any | None, write: Callable[[int, np.ndarray], None]
    ) -> dict[str, np.ndarray] | None:
        """As `Merge.tensor`; what slices with different experts measure does not add up to one report."""
        return next(part for part in self.parts if name in part.base).tensor(name, dtype, write)


class Stacked(dict[str, Any]):
    """Tensors of a stack by canonical name, with the names under which they are written."""

    def __init__(self, tensors: Mapping[str, Any], stored: Mapping[str, str], directory: Any):
        super().__init__(tensors)
        self.stored, self.directory = stored, directory
