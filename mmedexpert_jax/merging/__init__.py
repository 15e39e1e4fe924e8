"""Merging of experts (paper section 4.3): task vectors, TIES and its rivals, and a report of their interference."""

from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.merge import merge, merge_with_report
from mmedexpert_jax.merging.methods import average, slerp, task_arithmetic
from mmedexpert_jax.merging.run import run
from mmedexpert_jax.merging.ties import PRESETS, Switches, ties

__all__ = [
    "PRESETS",
    "Interference",
    "Switches",
    "average",
    "merge",
    "merge_with_report",
    "run",
    "slerp",
    "task_arithmetic",
    "ties",
]
