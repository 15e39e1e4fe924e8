"""Merging of experts (paper section 4.3): task vectors, TIES and other methods, and a report of their interference."""

from typing import TYPE_CHECKING

from mmedexpert_jax.lazy import public
from mmedexpert_jax.merging.fit import merge_stack
from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.merge import merge, merge_with_report
from mmedexpert_jax.merging.methods import METHODS, ties
from mmedexpert_jax.merging.parameters import setting
from mmedexpert_jax.merging.settings import PRESETS, Switches

if TYPE_CHECKING:  # the job loads models: imported when it is asked for, so that a merge of files starts without Flax
    from mmedexpert_jax.merging.merge_job import run

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

__getattr__, __dir__ = public(__name__, __all__, {"run": "merge_job"})
