"""From prompts to completions and their log-probabilities: prefill once per prompt, decode, sample, score."""

from mmedexpert_jax.rollout.decode import Completions
from mmedexpert_jax.rollout.engine import Engine, Reply, Settings
from mmedexpert_jax.rollout.generate import generate
from mmedexpert_jax.rollout.logprobs import completion_logprobs

__all__ = ["Completions", "Engine", "Reply", "Settings", "completion_logprobs", "generate"]
