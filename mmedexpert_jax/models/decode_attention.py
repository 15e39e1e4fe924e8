"""Attention of a decode step in one kernel for GPUs: rows that share prompts, and the rings of their own tokens.

`attention.attend_shared` over a ring takes a dozen kernels a layer, and a step is as slow as it has kernels. Here is
one, whose programs have a row and a key head each: they normalise (where a family does) and rotate, write the new key
and value where the ring is, walk over the blocks of the prompt and of the ring that the row sees, and keep one softmax
over all (flash attention, Dao et al. 2022). Rows of a prompt read its keys at the same time, so that all but the first
find them in the L2 cache.

`fused.takes_rings` says where it is used. It is a file of its own since Pallas takes half a second to import.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mmedexpert_jax.models.fused import TILE
from mmedexpert_jax.models.layers import HeadNorms

BLOCK = 64  # keys that are read at a time, where a head is at most 128 wide: three such stages fit an A100's SM


@functools.partial(jax.jit, static_argnames=("window", "interpret"))  # traced and lowered once for all layers
def attend_ring(
    queries: Array,
    prompt_keys: Array,
    prompt_values: Array,
    lengths: Array,
    keys: Array,
    values: Array,
    own_keys: Array,
    own_values: Array,
    rope: tuple[Array, Array],
    prompt: Array,
    steps: Array,
    place: Array,
    window: int | None = None,
    norms: HeadNorms | None = None,
    *,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """A token of each of N rows attends to its prompt, to the tokens before it, and to itself.

    Args:
        queries: [N, H, 1, D], neither normalised nor rotated yet.
        prompt_keys, prompt_values: [B, Hkv, S, D].
        lengths: [B], valid keys of each prompt.
        keys, values: [N, Hkv, 1, D], of the new token; the keys neither normalised nor rotated yet.
        own_keys, own_values: [N, Hkv, R, D], rings; donated to the results.
        rope: cos and sin [N, 1, 1, D / 2] of the new tokens.
        prompt: [N], of each row; one out of range has no keys.
        steps: [N], tokens of the row before this one, which stand in the ring before `place`; below R.
        place: [], where the new keys go, modulo R.
        window: tokens that a query sees, its own the last of them; None: all.
        norms: of queries and keys by head; None: none, and the scale of queries is D^-1/2.
        interpret: run by JAX itself, for tests where there is no such device.

    Returns:
        [N, H, 1, D] in the dtype of the values, and the rings with the new keys and values.
    """
    rows, heads, _, width = queries.shape
    key_heads, group = keys.shape[1], heads // keys.shape[1]
    block, norms = min(BLOCK, BLOCK * 128 // width), norms or HeadNorms()
    # Merged, XLA knows them as parts of one product.
    flat = [rearrange(x, "rows heads length head_dim -> rows (heads length head_dim)") for x in (queries, keys, values)]
    joined = rearrange(jnp.concatenate(flat, axis=1), "rows (heads head_dim) -> rows heads head_dim", head_dim=width)
    whole = pl.BlockSpec(memory_space=pl.ANY)
    mixed, own_keys, own_values = pl.pallas_call(
        functools.partial(
            _kernel, group=group, block=block, window=window, norms=dataclasses.replace(norms, weights=())
        ),
        grid=(rows, key_heads),
        in_specs=[whole] * (11 + len(norms.weights)),
        out_specs=[whole] * 3,
        out_shape=[
            jax.ShapeDtypeStruct((rows, heads, width), values.dtype),
            jax.ShapeDtypeStruct(own_keys.shape, own_keys.dtype),
            jax.ShapeDtypeStruct(own_values.shape, own_values.dtype),
        ],
        input_output_aliases={9: 1, 10: 2},
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="attend_ring",
    )(
        *(jnp.asarray(x, jnp.int32) for x in (prompt, lengths, steps, place.reshape(1))),
        joined,
        *(rearrange(table, "rows 1 1 half -> rows half") for table in rope),
        prompt_keys,
        prompt_values,
        own_keys,
        own_values,
        *norms.weights,
    )
    return mixed.reshape(queries.shape), own_keys, own_values


def _kernel(
    prompt_ref: Any,
    lengths_ref: Any,
    steps_ref: Any,
    place_ref: Any,
    joined_ref: Any,
    cos_ref: Any,
    sin_ref: Any,
    prompt_keys_ref: Any,
    prompt_values_ref: Any,
    own_keys_ref: Any,
    own_values_ref: Any,
    *refs: Any,
    group: int,
    block: int,
    window: int | None,
    norms: HeadNorms,
) -> None:
    """The program of a row and a key head; arrays as in `attend_ring`: first of `refs` the norms' weights, if any, then
    the results."""
    *norm_refs, mixed_ref, new_keys_ref, new_values_ref = refs
    row, head = pl.program_id(0), pl.program_id(1)
    prompts, key_heads, _, width = prompt_keys_ref.shape
    ring, inside = own_keys_ref.shape[2], prompt_ref[row] < prompts
    prompt = jnp.where(inside, prompt_ref[row], 0)
    length, steps = jnp.where(inside, lengths_ref[prompt], 0), jnp.maximum(steps_ref[row], 0)
    place = jax.lax.rem(place_ref[0], ring)
    across = jnp.arange(width)
    half, opposite = jax.lax.rem(across, width // 2), jax.lax.rem(across + width // 2, width)
    cos, sin = (ref[row, half].astype(jnp.float32) for ref in (cos_ref, sin_ref))
    sin = jnp.where(across < width // 2, -sin, sin)

    def rotated(heads: Any, norm: int, **only: Any) -> Array:
        loaded = [triton.load(joined_ref.at[row, heads, places[None]], **only) for places in (across, opposite)]
        x, other = (part.astype(jnp.float32) for part in loaded)
        if norm_refs:
            weights = (norm_refs[norm][places].astype(jnp.float32) + norms.shift for places in (across, opposite))
            root = jax.lax.rsqrt(jnp.mean(x * x, axis=1) + norms.eps)[:, None]
            x, other = (part * root * weight for part, weight in zip((x, other), weights, strict=True))
        return (x * cos + other * sin).astype(joined_ref.dtype)

    key = rotated((group * key_heads + head)[None, None], 1)[0]
    value = joined_ref[row, (group + 1) * key_heads + head]
    new_keys_ref[row, head, place] = key
    new_values_ref[row, head, place] = value

    tile = max(TILE, pl.next_power_of_2(group))
    mine = row, pl.ds(head * group, tile), slice(None)
    real = (jnp.arange(tile) < group)[:, None]
    queries = rotated((head * group + jnp.arange(tile))[:, None], 0, mask=real, other=0.0)
    queries = queries * jnp.asarray(norms.scale * width**-0.5, queries.dtype)
    # The softmax begins with the new token, which every row sees: its top is finite, whatever is masked after it.
    top = jnp.sum(queries.astype(jnp.float32) * key.astype(jnp.float32), axis=1)
    mixed = jnp.broadcast_to(value.astype(jnp.float32), queries.shape)
    walk = functools.partial(_walk, queries, block)

    past = jnp.int32(0) if window is None else jnp.maximum(length + steps + 1 - window, 0)  # places no longer seen
    softmax = walk(
        (prompt_keys_ref, prompt_values_ref),
        (prompt, head),
        past,
        length - past,
        lambda places: (places >= past) & (places < length),
        (mixed, top, jnp.ones_like(top)),
    )
    seen = steps if window is None else jnp.minimum(steps, window - 1)
    mixed, _, total = walk(
        (own_keys_ref, own_values_ref),
        (row, head),
        jax.lax.rem(place - seen + ring, ring),
        seen,
        lambda places: (_age(place, places, ring) > 0) & (_age(place, places, ring) <= seen),
        softmax,
    )
    triton.store(mixed_ref.at[mine], (mixed / total[:, None]).astype(mixed_ref.dtype), mask=real)


def _age(place: Array, places: Array, ring: int) -> Array:
    """Steps since the tokens at `places` of a ring were written, 0 at `place`."""
    return jax.lax.rem(place - places + ring, ring)


def _walk(
    queries: Array,
    block: int,
    refs: tuple[Any, Any],
    lead: tuple[Array, Array],
    first: Array,
    count: Array,
    seen: Callable[[Array], Array],
    softmax: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """The softmax (values mixed [Q, D], highest score [Q], sum [Q]) with `count` places from `first` on of some keys
    [T, D], which stand at `lead`, round their end, in so far as they are `seen`."""
    size = refs[0].shape[2]
    step = min(block, pl.next_power_of_2(size + 1) // 2)
    blocks = pl.cdiv(size, step)

    def one(index: Array, softmax: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mixed, top, total = softmax
        begin = jax.lax.rem(first // step + index, blocks) * step
        start = jnp.minimum(begin, size - step)  # the last block begins inside the one before it, and masks that part
        places = start + jnp.arange(step)
        keys, values = (ref[(*lead, pl.ds(start, step))] for ref in refs)
        scores = jnp.where((seen(places) & (places >= begin))[None], pl.dot(queries, keys, trans_b=True), -jnp.inf)
        higher = jnp.maximum(top, jnp.max(scores, axis=1))
        weights, kept = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
        mixed = mixed * kept[:, None] + pl.dot(weights.astype(values.dtype), values)
        return mixed, higher, total * kept + jnp.sum(weights, axis=1)

    # One block more than the places fill may hold some of them, and one more again where the last block is short.
    reached = pl.cdiv(jax.lax.rem(first, step) + count, step) + int(size % step > 0)
    return jax.lax.fori_loop(0, jnp.where(count > 0, jnp.minimum(reached, blocks), 0), one, softmax)
