"""Guideline-Based Advantages, section 4.2 of the paper."""

from mmedexpert_jax.gba.advantages import group_advantages
from mmedexpert_jax.gba.objective import policy_loss
from mmedexpert_jax.gba.trainer import train

__all__ = ["group_advantages", "policy_loss", "train"]
