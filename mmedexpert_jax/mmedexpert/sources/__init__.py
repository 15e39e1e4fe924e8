"""Raw cases from files of published shapes, in one canonical record, with a count of what was mended and refused."""

from mmedexpert_jax.mmedexpert.sources.collect import Collection, collect
from mmedexpert_jax.mmedexpert.sources.formats import FORMATS

__all__ = ["FORMATS", "Collection", "collect"]
