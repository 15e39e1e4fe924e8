"""A token for each row of logits by two kernels for GPUs: the blocks' masses, then a block and a token of it.

It is `sampling.draw`, of which XLA makes fifteen kernels. The first reads the logits once, with a program for a few
blocks of a row, so that all of a device takes part; the second, with a program for a row, reads what the first wrote
and one block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mmedexpert_jax.rollout.plain_draw import BLOCK, draw_plainly

BLOCKS = 16  # blocks of a program of the first kernel


@functools.partial(jax.jit, static_argnames="interpret")
def draw_tokens(uniform: Array, logits: Array, *, interpret: bool = False) -> tuple[Array, Array]:
    """Tokens [N] int32 and their log-probabilities [N] float32.

    Args:
        uniform: [2, N] float32 in [0, 1), which choose a block and a token of it.
        logits: [N, V] float32, -inf where the probability is zero.
        interpret: run by JAX itself, for tests where there is no such device.
    """
    rows, size = logits.shape
    count, whole = pl.cdiv(size, BLOCK), pl.BlockSpec(memory_space=pl.ANY)
    options: Any = {"compiler_params": triton.CompilerParams(num_warps=4, num_stages=1), "interpret": interpret}
    by_block, by_row = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, count), (rows,)))
    tops, masses = pl.pallas_call(
        _weigh_blocks,
        grid=(rows, pl.cdiv(count, BLOCKS)),
        in_specs=[whole],
        out_specs=[whole] * 2,
        out_shape=[by_block] * 2,
        name="weigh_blocks",
        **options,
    )(logits)
    return pl.pallas_call(
        _choose,
        grid=(rows,),
        in_specs=[whole] * 4,
        out_specs=[whole] * 2,
        out_shape=[jax.ShapeDtypeStruct((rows,), jnp.int32), by_row],
        name="draw_tokens",
        **options,
    )(uniform, tops, masses, logits)


def _weigh_blocks(logits_ref: Any, tops_ref: Any, masses_ref: Any) -> None:
    """Of some blocks of a row the highest logit, and the sum of exp(logit - that)."""
    row, blocks = pl.program_id(0), pl.program_id(1) * BLOCKS + jnp.arange(BLOCKS)
    places = blocks[:, None] * BLOCK + jnp.arange(BLOCK)
    logits = triton.load(logits_ref.at[row, places], mask=places < logits_ref.shape[1], other=-jnp.inf)
    top = jnp.max(logits, axis=1)
    level = jnp.where(top > -jnp.inf, top, 0.0)  # a block may be banned as a whole
    inside = blocks < tops_ref.shape[1]
    triton.store(tops_ref.at[row, blocks], top, mask=inside)
    triton.store(masses_ref.at[row, blocks], jnp.sum(jnp.exp(logits - level[:, None]), axis=1), mask=inside)


def _choose(
    uniform_ref: Any, tops_ref: Any, masses_ref: Any, logits_ref: Any, tokens_ref: Any, logprobs_ref: Any
) -> None:
    """A row's token and its log-probability."""
    row, blocks = pl.program_id(0), jnp.arange(pl.next_power_of_2(tops_ref.shape[1]))
    inside = blocks < tops_ref.shape[1]
    tops = triton.load(tops_ref.at[row, blocks], mask=inside, other=-jnp.inf)
    top = jnp.max(tops)
    weights = triton.load(masses_ref.at[row, blocks], mask=inside, other=0.0) * jnp.exp(tops - top)
    begin = _pick(uniform_ref[0, row], weights) * BLOCK
    places = begin + jnp.arange(BLOCK)
    logits = triton.load(logits_ref.at[row, places], mask=places < logits_ref.shape[1], other=-jnp.inf)
    token = begin + _pick(uniform_ref[1, row], jnp.exp(logits - top))
    tokens_ref[row] = token
    logprobs_ref[row] = jnp.sum(jnp.where(places == token, logits, 0.0)) - top - jnp.log(jnp.sum(weights))


def _pick(uniform: Array, weights: Array) -> Array:
    """`plain_draw._pick` of weights [M], a power of two."""
    cumulative, positive = jnp.cumsum(weights), weights > 0
    level = uniform * jnp.max(jnp.where(positive, cumulative, 0.0))
    return jnp.min(jnp.where(positive & (cumulative > level), jnp.arange(len(weights)), len(weights)))


def trial(vocabulary: int) -> tuple[Array, Array]:
    """`models.kernel_trial`'s: ones where it draws the tokens of the plain path with their probabilities, and ones."""
    keys = jax.random.split(jax.random.key(0), 2)
    logits = 3 * jax.random.normal(keys[0], (8, vocabulary)).at[:, 1].set(-jnp.inf)
    uniform = jax.random.uniform(keys[1], (2, 8))
    (tokens, logprobs), (expected, their) = draw_tokens(uniform, logits), draw_plainly(uniform, logits.T)
    found = jnp.concatenate([tokens == expected, jnp.exp(logprobs - their)])
    return found, jnp.ones_like(found)
