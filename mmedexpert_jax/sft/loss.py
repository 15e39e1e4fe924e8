"""The loss of equation 2: cross-entropy of the completion's tokens, as sums that add up over micro-batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.logprobs import completion_hidden, in_chunks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """N prompts, each with the completion to imitate."""

    prompts: Batch
    tokens: np.ndarray  # [N, R] int32, closed by the chat's end token, padded
    lengths: np.ndarray  # [N] int32, the end token counted; 0 for a row that only fills up


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over completion tokens, float32. Loss and accuracy are their quotients with `tokens`."""

    loss: Array  # [] negative log-likelihood, nats
    correct: Array  # [] tokens that were the likeliest
    tokens: Array  # []


def loss_sums(model: Model, params: dict, micro: MicroBatch, lora: Lora | None = None, remat: bool = False) -> Sums:
    """Equation 2 over a micro-batch, before the division by the tokens of the whole optimizer step.

    The prompt's tokens carry no loss, the chat's end token does. Dividing once, after the sums of all micro-batches,
    makes the gradient independent of how a step is split.
    """
    tokens = jnp.asarray(micro.tokens)[:, None]
    hidden = completion_hidden(model, params, micro.prompts, tokens, lora=lora, remat=remat)

    def score(hidden: Array, tokens: Array) -> tuple[Array, Array]:
        logits = model.unembed(params, hidden, lora)
        chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
        return jax.nn.logsumexp(logits, -1) - chosen, jnp.argmax(logits, -1) == tokens

    mask = jnp.arange(tokens.shape[-1]) < micro.lengths[:, None, None]
    loss, correct = (
        jnp.sum(jnp.where(mask, values, 0), dtype=jnp.float32) for values in in_chunks(score, hidden, tokens)
    )
    return Sums(loss, correct, jnp.sum(mask, dtype=jnp.float32))
