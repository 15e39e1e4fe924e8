"""Log-probabilities of given completions, as the sampler would report them, without logits of [B, G, R, V]."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model
from mmedexpert_jax.models.packing import MULTIPLE, Packing, capacity
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.sampling import distribution
from mmedexpert_jax.rounding import cdiv, round_up

CHUNK = 1024  # tokens, over all completions, whose logits are in memory at a time


def completion_logprobs(
    model: Model,
    params: dict,
    batch: Batch,
    tokens: Array | np.ndarray,
    lengths: Array | np.ndarray,
    *,
    lora: Lora | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    ban: Sequence[int] = (),
    chunk: int = CHUNK,
    remat: bool = False,
    entropy: bool = False,
    packing: Packing | None = None,
) -> Any:
    """Log-probabilities of completions under the distribution that `generate` samples from with the same settings.

    Each prompt is read once, whatever the size of its group. Differentiable with respect to `params` and `lora`;
    traceable, not jitted by itself.

    Args:
        model: the network.
        params: its weights.
        batch: B prompts.
        tokens: [B, G, R] int32.
        lengths: [B, G] int32, valid tokens of each completion.
        lora: deltas, in low-rank form, so that the gradient is never dense.
        temperature: as in `distribution`, likewise `top_k`, `top_p`.
        ban: ids of probability zero. Tokens sampled under `min_new_tokens` are not scored as drawn.
        chunk: tokens, over all completions, whose logits are computed at a time, and again in the backward pass.
        remat: recompute each layer in the backward pass.
        entropy: return the entropies of the distributions too.
        packing: of `packed`; padding is then neither computed in the layers nor scored.

    Returns:
        logprobs [B, G, R] float32, 0 behind the end; with `entropy` a pair of such arrays, in nats.
    """
    tokens = jnp.asarray(tokens)

    def score(hidden: Array, tokens: Array) -> tuple[Array, ...]:
        logits = model.unembed(params, hidden, lora)
        banned = jnp.isin(jnp.arange(logits.shape[-1]), jnp.array(ban, jnp.int32)) if ban else None
        logprobs = distribution(logits, temperature, top_k, top_p, banned)
        chosen = jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]
        return (chosen, _entropy(logprobs)) if entropy else (chosen,)

    if packing is None:
        hidden = completion_hidden(model, params, batch, tokens, lora=lora, remat=remat)
        values = in_chunks(score, hidden, tokens, chunk)
    else:
        end, hidden = model.extend(params, batch, tokens[..., :-1], lora, remat, packing)
        start = score(end, tokens[..., 0])  # one distribution for the whole group
        targets = packing.pack(tokens[..., 1:, None])[:, 0]
        rest = in_chunks(score, hidden[None, None], targets[None, None], chunk)
        rest = tuple(packing.unpack(value[0, 0, :, None]) for value in rest)  # [B, G, R - 1, 1]
        first = (jnp.broadcast_to(value, tokens.shape[:2])[..., None, None] for value in start)
        values = tuple(jnp.concatenate(pair, -2)[..., 0] for pair in zip(first, rest, strict=True))
    mask = jnp.arange(tokens.shape[-1]) < lengths[..., None]
    results = tuple(jnp.where(mask, value, 0.0) for value in values)
    return results if entropy else results[0]


def packed(lengths: np.ndarray, size: int, capacities: int, devices: int = 1, packed_length: int = 0) -> Packing:
    """The packing of completions [B, G, R = `size`] with these lengths [B, G], for `completion_logprobs`.

    A completion's last token is predicted but predicts nothing: of y tokens, y - 1 go through the network. `capacities`
    is the number of lengths, and so of programs, among which the smallest that suffices is taken. Where the prompts are
    split over `devices`, each has a packing of its own and all are equally long: `packed_length`, where it is given.
    """
    inputs = np.maximum(np.asarray(lengths) - 1, 0)
    shards = np.split(inputs, devices)
    needed, full = max(int(shard.sum()) for shard in shards), shards[0].size * (size - 1)
    packed_length = packed_length or capacity(needed, full, capacities)
    packings = [Packing.of(shard, size - 1, packed_length) for shard in shards]
    return Packing(np.concatenate([p.index for p in packings]), np.concatenate([p.inverse for p in packings]))


def _entropy(logprobs: Array) -> Array:
    """Of distributions [..., V] -> [...], in nats."""
    return -jnp.sum(jnp.exp(logprobs) * jnp.where(logprobs > -jnp.inf, logprobs, 0.0), -1)


def completion_hidden(
    model: Model, params: dict, batch: Batch, tokens: Array, *, lora: Lora | None = None, remat: bool = False
) -> Array:
    """Hidden states [B, G, R, D] that predict tokens [B, G, R]: the prompt's last one, then the completion's own."""
    if tokens.shape[-1] == 1:  # of which nothing is predicted from: no continuation goes through the layers
        prefix = model.prefill(params, batch, lora, remat)
        end = jnp.take_along_axis(prefix.hidden, prefix.lengths[:, None, None] - 1, axis=1)  # [B, 1, D]
        return jnp.broadcast_to(end[:, None], (*tokens.shape, end.shape[-1]))
    end, hidden = model.extend(params, batch, tokens[..., :-1], lora, remat)
    first = jnp.broadcast_to(end[:, None], (*tokens.shape[:2], 1, end.shape[-1]))
    return jnp.concatenate([first, hidden], axis=2)


def in_chunks(
    score: Callable[[Array, Array], tuple[Array, ...]], hidden: Array, tokens: Array, chunk: int = CHUNK
) -> tuple[Array, ...]:
    """`score(hidden [B, G, C, D], tokens [B, G, C])` over the length, in about equal chunks, of 8 n tokens if possible.

    The chunks, of at most `chunk` tokens or one of each row, follow one another and are recomputed in the backward
    pass, so only the logits of one of them are in memory. Splitting the length leaves rows where they are
    when they are sharded over devices.

    Returns:
        What `score` returns, arrays [B, G, C], joined to [B, G, R].
    """
    *rows, size = tokens.shape
    most = max(1, chunk // math.prod(rows))
    count = cdiv(size, most)
    if count == 1:
        return score(hidden, tokens)
    width = min(most, round_up(cdiv(size, count), MULTIPLE))  # 1,023 rows are no shape for a GPU's tiles
    padding = count * width - size

    def split(array: Array) -> Array:
        array = jnp.pad(array, [(0, 0), (0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 3))
        return rearrange(array, "batch samples (chunks length) ... -> chunks batch samples length ...", chunks=count)

    results = jax.lax.map(lambda pair: jax.checkpoint(score)(*pair), (split(hidden), split(tokens)))
    axes = "chunks batch samples length -> batch samples (chunks length)"
    return tuple(rearrange(result, axes)[..., :size] for result in results)
