"""The ground of every job: run directory, checkpoints, metrics, progress, plots, report and device mesh."""

from mmedexpert_jax.runtime.run import Run

__all__ = ["Run"]
