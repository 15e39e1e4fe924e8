"""Merging of experts (paper section 4.3): task vectors, TIES and its rivals, and a report of their interference."""

from mmedexpert_jax.merging.fit import merge_stack
from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.merge import merge, merge_with_report
from mmedexpert_jax.merging.merge_job import run
from mmedexpert_jax.merging.methods import METHODS, PRESETS, Switches, setting, ties

__all__ = [
    "METHODS",
    "PRESETS",
    "Interference",
    "Switches",
    "merge",
    "merge_stack",
    "merge_with_report",
    "run",
    "setting",
    "ties",
]
