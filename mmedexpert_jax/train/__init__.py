"""The parts that every trainer shares, below the stages of the paper: one learner, its loop, its state, its export."""

from mmedexpert_jax.train.export import export
from mmedexpert_jax.train.learner import Learner, Sums
from mmedexpert_jax.train.loop import fit
from mmedexpert_jax.train.policy import Evaluate, Policy
from mmedexpert_jax.train.prefetch import Prefetched
from mmedexpert_jax.train.state import State

__all__ = ["Evaluate", "Learner", "Policy", "Prefetched", "State", "Sums", "export", "fit"]
