"""The next token: the distribution as transformers' warpers shape it, and a draw from it."""

import functools

import jax
import jax.numpy as jnp

_BLOCK = 128  # tokens of a block in the two-level search of `draw`


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
    logits = logits.astype(jnp.float32)
    if ban is not None:
        logits = jnp.where(ban, -jnp.inf, logits)
    if temperature == 0:
        return jax.nn.log_softmax(logits)
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1] or top_p < 1.0:
        logits = jnp.where(logits < _threshold(logits, top_k, top_p), -jnp.inf, logits)
    return jax.nn.log_softmax(logits)


def _threshold(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """[..., 1] smallest logit that top-k, and then top-p among what is left, keep; one sort serves both."""
    ascending = jnp.sort(jax.lax.stop_gradient(logits))
    if 0 < top_k < logits.shape[-1]:
        ascending = jnp.where(ascending < ascending[..., -top_k, None], -jnp.inf, ascending)
    # As in TopPLogitsWarper: what lies in the lowest 1 - top_p of the mass goes, and the likeliest token stays.
    keep = jnp.cumsum(jax.nn.softmax(ascending), -1) > 1 - top_p
    keep = keep.at[..., -1].set(True) & (ascending > -jnp.inf)
    return jnp.take_along_axis(ascending, jnp.argmax(keep, -1, keepdims=True), -1)


def draw(key: jax.Array, logprobs: jax.Array) -> jax.Array:
    """A token [] int32 from log-probabilities [V], by inverse CDF in two levels: one uniform number for each token.

    Gumbel noise would cost a random number for each entry of the vocabulary. Tokens of probability zero are never
    drawn, whatever the rounding of the sums.
    """
    probabilities = jnp.exp(logprobs)
    blocks = jnp.pad(probabilities, (0, -len(probabilities) % _BLOCK)).reshape(-1, _BLOCK)
    first, second = jax.random.uniform(key, (2,))
    block = _pick(first, blocks.sum(-1))
    return block * _BLOCK + _pick(second, blocks[block])


def _pick(uniform: jax.Array, weights: jax.Array) -> jax.Array:
    """Index [] int32 drawn in proportion to `weights` [N], never one of weight zero, by a number in [0, 1)."""
    cumulative = jnp.cumsum(weights)
    positive = weights > 0
    level = uniform * jnp.max(cumulative, where=positive, initial=0.0)
    return jnp.argmax(positive & (cumulative > level)).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("temperature", "top_k", "top_p"))
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
        logits: [..., V].
        temperature: as in `distribution`; 0 takes the likeliest token.
        top_k: as in `distribution`, likewise `top_p` and `ban`.

    Returns:
        tokens [...] int32, and their log-probabilities [...] float32 under the distribution sampled from. Greedy tokens
        carry their log-probability under the model's own distribution (temperature 1).
    """
    logprobs = distribution(logits, temperature, top_k, top_p, ban)
    if temperature == 0:
        tokens = jnp.argmax(logprobs, -1).astype(jnp.int32)
    else:
        keys = key if key.shape == logits.shape[:-1] else jax.random.split(key, logits.shape[:-1])
        tokens = jnp.vectorize(draw, signature="(),(v)->()")(keys, logprobs)
    return tokens, jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]
