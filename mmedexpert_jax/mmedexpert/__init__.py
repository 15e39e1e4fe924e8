"""MMedExpert (section 3): the data factory, from raw clinical cases to reviewed, stratified reasoning data."""

from mmedexpert_jax.mmedexpert.dataset_job import run

__all__ = ["run"]
