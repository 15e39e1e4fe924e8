"""Figures as objects, and what a page draws of them. No JAX, nothing of a run."""

from mmedexpert_jax.report.chart import chart, intervals
from mmedexpert_jax.report.figure import Figure

__all__ = ["Figure", "chart", "intervals"]
