"""Raw cases from files of published shapes, in one canonical record, with a count of what was repaired and refused."""

from mmedexpert_jax.mmedexpert.sources.raw_collection import Collection, collect
from mmedexpert_jax.mmedexpert.sources.raw_formats import FORMATS

__all__ = ["FORMATS", "Collection", "collect"]
