"""The loss of equation 2: cross-entropy of the completion's tokens, as sums that add up over micro-batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmedexpert_jax.models import Model
from mmedexpert_jax.models.packing import Packing
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.logprobs import completion_hidden, in_chunks
from mmedexpert_jax.train import Policy, Sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """N prompts, each with the completion to imitate."""

    prompts: Batch
    tokens: np.ndarray  # [N, R] int32, closed by the chat's end token, padded
    lengths: np.ndarray  # [N] int32, the end token counted; 0 for a row that only fills up
    packing: Packing | None = None  # of the completions' tokens; None: rows stay padded

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompts and completions, without padding and rows that only fill up."""
        return int(self.prompts.lengths[self.lengths > 0].sum() + self.lengths.sum())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSums(Sums):
    """Sums over completion tokens, float32. Loss and accuracy are their quotients with `tokens`."""

    correct: Array  # [] tokens that were the likeliest

    def stats(self) -> dict[str, Array]:
        """The mean loss, and the share of tokens that were the likeliest."""
        return super().stats() | {"mean_token_accuracy": self.correct / self.tokens}


def loss_sums(model: Model, policy: Policy, micro: MicroBatch, remat: bool = False) -> TokenSums:
    """Equation 2, -sum_t log pi(y_t | p, y_<t), over a micro-batch, not yet divided by the tokens of the step.

    The prompt's tokens carry no loss, the chat's end token does. Dividing once, after the sums of all micro-batches,
    makes the gradient independent of how a step is split.
    """
    tokens, lengths = jnp.asarray(micro.tokens)[:, None], jnp.asarray(micro.lengths)[:, None, None]

    def score(hidden: Array, tokens: Array) -> tuple[Array, Array]:
        logits = model.unembed(policy.params, hidden, policy.lora)
        chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
        return jax.nn.logsumexp(logits, -1) - chosen, jnp.argmax(logits, -1) == tokens

    def summed(hidden: Array, tokens: Array, mask: Array) -> TokenSums:
        values = in_chunks(score, hidden, tokens)
        loss, correct = (jnp.sum(jnp.where(mask, value, 0), dtype=jnp.float32) for value in values)
        return TokenSums(loss, jnp.sum(mask, dtype=jnp.float32), correct)

    packing = micro.packing
    if packing is None:
        hidden = completion_hidden(model, policy.params, micro.prompts, tokens, lora=policy.lora, remat=remat)
        return summed(hidden, tokens, jnp.arange(tokens.shape[-1]) < lengths)
    end, hidden = model.extend(policy.params, micro.prompts, tokens[..., :-1], policy.lora, remat, packing)
    first = summed(end[:, None], tokens[..., :1], lengths > 0)  # the prompt's last token predicts the first
    targets = packing.pack(tokens[..., 1:, None])[:, 0]
    return first + summed(hidden[None, None], targets[None, None], (jnp.asarray(packing.index) >= 0)[None, None])
