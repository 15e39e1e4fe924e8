"""Benchmarks as their authors distribute them (paper section 5): one small file each, one registry, one record."""

from mmedexpert_jax.data.benchmarks.benchmark import Benchmark, Item, from_case
from mmedexpert_jax.data.benchmarks.census import describe
from mmedexpert_jax.data.benchmarks.reading import Spec
from mmedexpert_jax.data.benchmarks.registry import (
    load,
    load_entry,
    names,
    published_items,
    reader,
    register,
    spec,
)
from mmedexpert_jax.processing.images import ImageRef

__all__ = [
    "Benchmark",
    "ImageRef",
    "Item",
    "Spec",
    "describe",
    "from_case",
    "load",
    "load_entry",
    "names",
    "published_items",
    "reader",
    "register",
    "spec",
]
