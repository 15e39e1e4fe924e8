"""MMedExpert-mini, the embedded data set: its recipe, from published rules and open images to cases with traces."""

from mmedexpert_jax.data.embedded.recipe import POOLS, TASKS, Generated, generate

__all__ = ["POOLS", "TASKS", "Generated", "generate"]
