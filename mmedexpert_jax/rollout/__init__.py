"""From prompts to completions and their log-probabilities: prefill once per prompt, decode, sample, score."""

from mmedexpert_jax.rollout.generate import Completions, generate
from mmedexpert_jax.rollout.logprobs import completion_logprobs

__all__ = ["Completions", "completion_logprobs", "generate"]
