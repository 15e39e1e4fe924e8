"""Attention of a decode step in one kernel for TPUs: ragged, over shared prompts and the rings of rows' own tokens.

As Pallas' ragged paged attention it reads of each row the blocks of keys that the row sees, and no others; the blocks
are those of a prompt that several rows share, and of a ring in the place of pages. The grid is (rows, blocks of prompt
and ring): where a row sees fewer, the numbers of its blocks repeat, and Pallas reads a block once that comes twice.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from mmedexpert_jax.models.attention import MASKED

BLOCK = 256  # keys of all heads that are read at a time: of 8 heads of 128 in bfloat16 half a megabyte


@functools.partial(jax.jit, static_argnames=("window", "interpret"))  # traced and lowered once for all layers
def attend_ragged(
    queries: Array,
    prompt_keys: Array,
    prompt_values: Array,
    lengths: Array,
    own_keys: Array,
    own_values: Array,
    prompt: Array,
    steps: Array,
    place: Array,
    window: int | None = None,
    *,
    interpret: bool = False,
) -> Array:
    """A token of each of N rows attends to its prompt and to the row's own tokens up to itself.

    Args:
        queries: [N, H, 1, D], rotated, as are all keys.
        prompt_keys, prompt_values: [B, Hkv, S, D].
        lengths: [B], valid keys of each prompt.
        own_keys, own_values: [N, Hkv, R, D], rings, in which the new token stands already.
        prompt: [N], of each row; one out of range has no keys.
        steps: [N], tokens of the row before this one; below R.
        place: [], where the new token stands, modulo R.
        window: tokens that a query sees, its own the last of them; None: all.
        interpret: run by JAX itself, for tests where there is no TPU.

    Returns:
        [N, H, 1, D] in the dtype of the values.
    """
    rows, heads, _, width = queries.shape
    (prompts, key_heads, padded, _), ring = prompt_keys.shape, own_keys.shape[2]
    inside = prompt < prompts
    number = jnp.where(inside, prompt, 0)
    length, steps = jnp.where(inside, lengths[number], 0), jnp.maximum(steps, 0)
    scalars = (number, length, steps, jnp.broadcast_to(place % ring, 1))
    sizes = min(BLOCK, padded), min(BLOCK, ring)
    blocks = pl.cdiv(padded, sizes[0]), pl.cdiv(ring, sizes[1])

    def of_prompt(row: Any, step: Any, number: Any, length: Any, *_: Any) -> tuple:
        last = jnp.maximum(pl.cdiv(length[row], sizes[0]) - 1, 0)
        return number[row], 0, jnp.minimum(step, last), 0

    def of_ring(row: Any, step: Any, number: Any, length: Any, steps: Any, place: Any) -> tuple:
        """The blocks up to `place`, and where the row goes round the end the rest, too."""
        last = jnp.where(steps[row] > place[0], blocks[1] - 1, place[0] // sizes[1])
        return row, 0, jnp.clip(step - blocks[0], 0, last), 0

    def of_row(row: Any, step: Any, *_: Any) -> tuple:
        return row, 0, 0, 0

    grouped = (None, key_heads, heads // key_heads, width)
    kept = [
        pl.BlockSpec((None, key_heads, size, width), of) for size, of in zip(sizes, (of_prompt, of_ring), strict=True)
    ]
    softmax = [(key_heads, heads // key_heads, size) for size in (width, 1, 1)]
    arrays = [prompt_keys, prompt_values, own_keys, own_values]
    if not interpret:
        # XLA would copy whole rings into the large VMEM of a v6e, and back, to write one token into them.
        arrays = [tpu.with_memory_space_constraint(array, tpu.HBM) for array in arrays]
    axes = "rows (kv_heads group) 1 head_dim -> rows kv_heads group head_dim"
    mixed = pl.pallas_call(
        functools.partial(_kernel, padded=padded, ring=ring, blocks=blocks[0], sizes=sizes, window=window),
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(rows, sum(blocks)),
            in_specs=[pl.BlockSpec(grouped, of_row), kept[0], kept[0], kept[1], kept[1]],
            out_specs=pl.BlockSpec(grouped, of_row),
            scratch_shapes=[tpu.VMEM(shape, jnp.float32) for shape in softmax],
        ),
        out_shape=jax.ShapeDtypeStruct((rows, *grouped[1:]), own_values.dtype),
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="attend_ragged",
    )(
        *(jnp.asarray(scalar, jnp.int32) for scalar in scalars),
        rearrange(queries * width**-0.5, axes, kv_heads=key_heads),
        *arrays,
    )
    return mixed.reshape(queries.shape)


def _kernel(
    number_ref: Any,
    length_ref: Any,
    steps_ref: Any,
    place_ref: Any,
    queries_ref: Any,
    prompt_keys_ref: Any,
    prompt_values_ref: Any,
    own_keys_ref: Any,
    own_values_ref: Any,
    mixed_ref: Any,
    sum_ref: Any,
    top_ref: Any,
    total_ref: Any,
    *,
    padded: int,
    ring: int,
    blocks: int,
    sizes: tuple[int, int],
    window: int | None,
) -> None:
    """A block of the prompt, or of the ring, of a row; arrays as in `attend_ragged`."""
    row, step = pl.program_id(0), pl.program_id(1)
    length, steps, place = length_ref[row], steps_ref[row], place_ref[0]
    far = padded + ring if window is None else window
    softmax = functools.partial(_add, queries_ref, sum_ref, top_ref, total_ref)

    @pl.when(step == 0)
    def begin() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)
        top_ref[...] = jnp.full_like(top_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)

    first = step * sizes[0]

    @pl.when((first < length) & (first + sizes[0] > length + steps + 1 - far) & (step < blocks))
    def of_prompt() -> None:
        def seen(shape: tuple[int, ...], axis: int) -> Array:
            places = first + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
            return (places < length) & (places > length + steps - far)

        softmax(prompt_keys_ref, prompt_values_ref, seen)

    begin_own = (step - blocks) * sizes[1]

    @pl.when((step >= blocks) & ((begin_own <= place) | (steps > place)))
    def of_ring() -> None:
        def seen(shape: tuple[int, ...], axis: int) -> Array:
            places = begin_own + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
            age = jnp.where(places > place, place - places + ring, place - places)
            return (places < ring) & (age <= steps) & (age < far)

        softmax(own_keys_ref, own_values_ref, seen)

    @pl.when(step == pl.num_programs(1) - 1)
    def end() -> None:
        mixed_ref[...] = (sum_ref[...] / total_ref[...]).astype(mixed_ref.dtype)


def _add(
    queries_ref: Any, sum_ref: Any, top_ref: Any, total_ref: Any, keys_ref: Any, values_ref: Any, seen: Any
) -> None:
    """Takes a block of keys and values [Hkv, T, D] into the softmax of all heads, in so far as they are `seen`."""
    heads, size, _ = keys_ref.shape
    for head in range(heads):
        queries, keys = queries_ref[head], keys_ref[head]
        scores = jax.lax.dot_general(queries, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        scores = jnp.where(seen(scores.shape, 1), scores, MASKED)
        # What lies behind the end of an array may be anything, and no weight of zero makes a NaN of it harmless.
        values = jnp.where(seen((size, 1), 0), values_ref[head], 0)
        top = jnp.maximum(top_ref[head], jnp.max(scores, axis=1, keepdims=True))
        weights = jnp.where(seen(scores.shape, 1), jnp.exp(scores - top), 0)
        kept = jnp.exp(top_ref[head] - top)
        total_ref[head] = total_ref[head] * kept + jnp.sum(weights, axis=1, keepdims=True)
        mixed = jnp.dot(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        sum_ref[head] = sum_ref[head] * kept + mixed
        top_ref[head] = top
