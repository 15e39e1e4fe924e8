"""The next token: the distribution as transformers' warpers shape it, and a draw from it."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from mmedexpert_jax.models import fused, kernel_trial
from mmedexpert_jax.rollout.plain_draw import draw_plainly


@functools.partial(jax.jit, static_argnames=("temperature", "top_k", "top_p"))
def distribution(
    logits: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    ban: jax.Array | None = None,
) -> jax.Array:
    """Log-probabilities that a token is drawn from, in the order of transformers: ban, temperature, top-k, top-p.

    Args:
        logits: [..., V].
        temperature: divisor of the logits; 0 stands for greedy decoding and leaves the model's own distribution.
        top_k: tokens kept, ties with the last one included; 0 keeps all.
        top_p: least probability mass kept; 1.0 keeps all. Without top-k and top-p nothing is sorted.
        ban: [V] or [..., V] bool, tokens of probability zero.

    Returns:
        [..., V] float32, -inf where the probability is zero.
    """
    logits = _temper(logits, temperature, ban)
    return jax.nn.log_softmax(logits if temperature == 0 else _truncate(logits, top_k, top_p))


def _temper(logits: jax.Array, temperature: float, ban: jax.Array | None) -> jax.Array:
    """Logits in float32 over the temperature, -inf where `ban`, which broadcasts against them, is true."""
    logits = logits.astype(jnp.float32)
    if ban is not None:
        logits = jnp.where(ban, -jnp.inf, logits)
    return logits / temperature if temperature else logits


def _truncate(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Logits [..., V], -inf where top-k or top-p cut them off."""
    if 0 < top_k < logits.shape[-1] or top_p < 1.0:
        logits = jnp.where(logits < _threshold(logits, top_k, top_p), -jnp.inf, logits)
    return logits


def _threshold(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """[..., 1] smallest logit that top-k, and then top-p among what is left, keep; one sort serves both."""
    ascending = jnp.sort(jax.lax.stop_gradient(logits))
    if 0 < top_k < logits.shape[-1]:
        ascending = jnp.where(ascending < ascending[..., -top_k, None], -jnp.inf, ascending)
    return _nucleus(ascending, top_p)


def _thresholds(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """`_threshold` of logits [N, V] for `top_k` and `top_p` [N, 1]."""
    ascending = jnp.sort(logits)
    kept = jnp.where(top_k > 0, jnp.minimum(top_k, logits.shape[-1]), logits.shape[-1])
    ascending = jnp.where(ascending < jnp.take_along_axis(ascending, logits.shape[-1] - kept, -1), -jnp.inf, ascending)
    return _nucleus(ascending, top_p)


def _nucleus(ascending: jax.Array, top_p: float | jax.Array) -> jax.Array:
    """[..., 1] smallest of the sorted logits [..., V] that top-p keeps."""
    # As in TopPLogitsWarper: what lies in the lowest 1 - top_p of the mass goes, and the likeliest token stays.
    keep = jnp.cumsum(jax.nn.softmax(ascending), -1) > 1 - top_p
    keep = keep.at[..., -1].set(True) & (ascending > -jnp.inf)
    return jnp.take_along_axis(ascending, jnp.argmax(keep, -1, keepdims=True), -1)


def draw(keys: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A token for each column by inverse CDF in two levels, blocks and then a block's tokens: two uniform numbers each.

    Gumbel noise would cost a random number for each entry of the vocabulary. The logits are read twice, and nothing of
    their size is written. Tokens of probability zero are never drawn, whatever the rounding of the sums. The vocabulary
    stands first, the order in which a CPU multiplies a few hidden states with the output layer fastest. GPUs take two
    kernels of ours (`draw_kernel`), which sum in another order.

    Args:
        keys: [N] PRNG keys.
        logits: [V, N] float32, -inf where the probability is zero.

    Returns:
        tokens [N] int32 and their log-probabilities [N] float32.
    """
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)), out_axes=1)(keys)
    if fused.takes_draws():
        from mmedexpert_jax.rollout import draw_kernel  # here: Pallas takes a tenth of a second to import

        if kernel_trial.passes("draw_tokens", len(logits), trial=draw_kernel.trial):
            return draw_kernel.draw_tokens(uniform, logits.T)
    return draw_plainly(uniform, logits)


def sample(
    key: jax.Array,
    logits: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    ban: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws a token for each row.

    Args:
        key: [...] keys, one for each row of `logits`, or a single key to split among them.
        logits: [..., V]; rows of size 1 serve all keys that they broadcast against.
        temperature: as in `distribution`; 0 takes the likeliest token.
        top_k: as in `distribution`, likewise `top_p` and `ban`.

    Returns:
        tokens [...] int32, and their log-probabilities [...] float32 under the distribution sampled from. Greedy tokens
        carry their log-probability under the model's own distribution (temperature 1).
    """
    keys = key if key.ndim else jax.random.split(key, logits.shape[:-1])
    if temperature == 0:
        logits = _temper(logits, temperature, ban)
        tokens = jnp.broadcast_to(jnp.argmax(logits, -1), keys.shape).astype(jnp.int32)
        logprobs = jax.nn.log_softmax(logits)
        return tokens, jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]
    to_first, to_last = "... vocabulary -> vocabulary ...", "vocabulary ... -> ... vocabulary"  # `draw` takes it first
    ban = None if ban is None else rearrange(jnp.broadcast_to(ban, logits.shape), to_first)
    first = _temper(rearrange(logits, to_first), temperature, ban)
    first = rearrange(_truncate(rearrange(first, to_last), top_k, top_p), to_first)
    columns = rearrange(jnp.broadcast_to(first, (len(first), *keys.shape)), "vocabulary ... -> vocabulary (...)")
    tokens, logprobs = draw(keys.reshape(-1), columns)
    return tokens.reshape(keys.shape), logprobs.reshape(keys.shape)


def sample_each(
    keys: jax.Array,
    logits: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    ban: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`sample` where every key has settings of its own, so that one program serves all of them.

    Args:
        keys: [...].
        logits: [..., V], which broadcasts against the keys.
        temperature: [...], as are `top_k` and `top_p`.
        ban: [V] or [..., V] bool.

    Returns:
        As `sample`.
    """
    flat = _temper(jnp.broadcast_to(logits, (*keys.shape, logits.shape[-1])), 0.0, ban)
    flat = rearrange(flat, "... vocabulary -> (...) vocabulary")
    temperature, top_k, top_p = (rearrange(x, "... -> (...) 1") for x in (temperature, top_k, top_p))
    greedy = jnp.argmax(flat, -1).astype(jnp.int32)
    likeliest = jnp.take_along_axis(jax.nn.log_softmax(flat), greedy[:, None], -1)[:, 0]
    tempered = flat / jnp.where(temperature > 0, temperature, 1)
    cut = (top_k > 0) | (top_p < 1)  # the sort that a cut takes costs more than all else here

    def truncate(logits: jax.Array) -> jax.Array:
        return jnp.where(cut & (logits < _thresholds(logits, top_k, top_p)), -jnp.inf, logits)

    tempered = jax.lax.cond(jnp.any(cut & (temperature > 0)), truncate, lambda logits: logits, tempered)
    tokens, logprobs = draw(keys.reshape(-1), tempered.T)
    chosen = temperature[:, 0] > 0
    shape = keys.shape
    return jnp.where(chosen, tokens, greedy).reshape(shape), jnp.where(chosen, logprobs, likeliest).reshape(shape)
