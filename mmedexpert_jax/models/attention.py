"""Attention in XLA's own operations: of padded rows, inside windows, of answers to a prompt that they share."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from mmedexpert_jax.models import fused
from mmedexpert_jax.rounding import cdiv

MASKED = -1e30  # a score of a key that may not be seen; finite, so that a row without keys gives no NaN
_ROWS = 1024  # queries that see all keys are attended in blocks of so many: Gemma 3's images have 4,096 patches
_STRIP = 128  # keys of a prompt that a row reads at a time
_FEW_QUERIES = 8  # of a key head in attention, as in decoding
_LONG = 128  # rows from this length on are attended causally in so many blocks of queries, each with the keys up to its
_BLOCKS = 4  # end: 5/8 of the products, and of the memory a quarter


class PartialSoftmax(NamedTuple):
    """Attention over some of the keys of N queries, which is joined with that over others, as in flash decoding."""

    mixed: Array  # [..., N, D] float32, values weighted by exp(score - top)
    top: Array  # [..., N, 1] float32, the largest score
    total: Array  # [..., N, 1] float32, the sum of the weights

    def joined(self, other: "PartialSoftmax") -> "PartialSoftmax":
        """Attention over the keys of both."""
        top = jnp.maximum(self.top, other.top)
        of_self, of_other = jnp.exp(self.top - top), jnp.exp(other.top - top)
        mixed, total = self.mixed * of_self + other.mixed * of_other, self.total * of_self + other.total * of_other
        return PartialSoftmax(mixed, top, total)

    def whole(self, queries: Array, values: Array) -> Array:
        """The result where these are all keys there are: in the shape of `queries` and the dtype of `values`."""
        return (self.mixed / self.total).astype(values.dtype).reshape(queries.shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """The places of N rows among the G continuations of each of B prompts."""

    prompt: Array  # [N] int32
    sample: Array  # [N] int32, number in the prompt's group
    row: Array  # [B, G] int32, the row of each continuation; any row where it has none


def attend(
    queries: Array,
    keys: Array,
    values: Array,
    lengths: Array,
    *,
    causal: bool,
    window: Any = None,
    images: Array | None = None,
) -> Array:
    """Self-attention of padded rows.

    Args:
        queries: [B, H, T, D].
        keys, values: [B, Hkv, T, D]; query head h reads key head h // (H / Hkv).
        lengths: [B], valid keys of each row; rows of length 0 give finite values without meaning.
        causal: whether position t sees only keys up to t.
        window: so many keys up to t at most, where that is causal; a number or a traced one; None: all.
        images: [B, T], the number of the image in its row that a token is of, -1 on text: in spite of `causal` the
            tokens of an image see one another, as far as the window reaches. None: no such thing.

    Returns:
        [B, H, T, D] in the dtype of the values.
    """
    size = queries.shape[2]
    window = None if isinstance(window, int) and window >= size else window
    if window is None and images is None and fused.supported(queries):
        return fused.attend(queries, keys, values, lengths, causal=causal)
    step = cdiv(size, _BLOCKS) if causal and size >= _LONG else min(size, _ROWS)
    parts = []
    for start in range(0, size, step):
        block = queries[:, :, start : start + step]
        seen = min(start + step, size) if causal and images is None else size
        mask = jnp.arange(seen) < lengths[:, None, None]  # [B, rows, seen]
        if causal:
            mask = mask & _behind(start + _query_rows(block, keys), seen, window, images)
        part = _softmax_part(_group(block, keys), keys[:, :, :seen], values[:, :, :seen], mask[:, None])
        parts.append(part.whole(block, values))
    return jnp.concatenate(parts, axis=2)


def _behind(rows: Array, seen: int, window: Any, images: Array | None) -> Array:
    """[B or 1, N, K]: of the first K = `seen` keys those that queries at places `rows` [N] see, as `attend` has it."""
    age = rows[:, None] - jnp.arange(seen)
    mask = (age >= 0)[None]
    if images is not None:
        own = images[:, rows, None]
        mask = mask | ((own == images[:, None, :seen]) & (own >= 0))
    return mask if window is None else mask & (age < window)


def attend_windows(queries: Array, keys: Array, values: Array, windows: Array, size: int) -> Array:
    """Self-attention inside windows.

    A window is at most `size` neighbours, so the keys of a block of `size` queries are in its own block and the two
    next to it.

    Args:
        queries, keys, values: [B, H, T, D].
        windows: [B, T], ids from 0; equal ones are neighbours.
        size: the most positions of a window.

    Returns:
        [B, H, T, D] in the dtype of the values.
    """
    length, width = queries.shape[2:]
    size = min(size, length)  # a window larger than the row would be padded to three windows of keys
    padding = -length % size

    def blocks(x: Array, before: int, after: int, fill: int = 0) -> Array:
        x = jnp.pad(x, [(0, 0), (0, 0), (before, after + padding), (0, 0)], constant_values=fill)
        return rearrange(x, "... (blocks length) head_dim -> ... blocks length head_dim", length=size)

    def neighbours(x: Array, fill: int = 0) -> Array:
        x = blocks(x, size, size, fill)
        return jnp.concatenate([x[:, :, :-2], x[:, :, 1:-1], x[:, :, 2:]], axis=3)

    ids = windows[:, None, :, None]
    mask = blocks(ids, 0, 0, -1) == rearrange(neighbours(ids, -2), "... keys one -> ... one keys")
    rows = blocks(queries * width**-0.5, 0, 0)
    mixed = _softmax_part(rows, neighbours(keys), neighbours(values), mask).whole(rows, values)
    return rearrange(mixed, "... blocks length head_dim -> ... (blocks length) head_dim")[:, :, :length]


def attend_extended(
    queries: Array,
    prompt_keys: Array,
    prompt_values: Array,
    prompt_lengths: Array,
    keys: Array,
    values: Array,
    window: Any = None,
) -> Array:
    """`attend_shared` of whole continuations, each of which sees itself causally: [B, G, H, R, D]."""
    size, prompt = queries.shape[-2], (prompt_keys, prompt_values, prompt_lengths)
    window = None if isinstance(window, int) and window >= prompt_keys.shape[2] + size else window
    if window is None and fused.supported(queries):
        return fused.attend_extended(queries, *prompt, keys, values)
    own = _behind(jnp.arange(size), size, window, None)[0]
    return attend_shared(queries, *prompt, keys, values, own, steps=jnp.arange(size), window=window)


def attend_shared(
    queries: Array,
    prompt_keys: Array,
    prompt_values: Array,
    prompt_lengths: Array,
    keys: Array,
    values: Array,
    mask: Array,
    slots: Slots | None = None,
    *,
    steps: Array | None = None,
    window: Any = None,
) -> Array:
    """Attention of G continuations of each prompt to the prompt, which they share, and each to itself.

    One softmax over both parts, merged as in flash decoding: the prompt's keys are never repeated G times.

    Args:
        queries: [B, G, H, T, D]; with `slots`, here and below, [N, ...] for [B, G, ...].
        prompt_keys, prompt_values: [B, Hkv, S, D].
        prompt_lengths: [B], valid keys of each prompt.
        keys, values: [B, G, Hkv, R, D], the continuations' own.
        mask: [..., T, R], the own keys that each query sees, at least one each; leading axes, if any, as those of the
            scores [B, G, Hkv].
        slots: where only N of the continuations are left: which ones.
        steps: own tokens before each query, for a window: [T] or [], with `slots` [N].
        window: tokens that a query sees, prompt and own together, which `mask` has taken into account; None: all.

    Returns:
        [B, G, H, T, D] in the dtype of the values.
    """
    grouped = _group(queries, keys)
    own_mask = mask if mask.shape[-2] == 1 else mask[..., _query_rows(queries, keys), :]
    own = _softmax_part(grouped, keys, values, own_mask)
    if slots is not None and _by_row(slots, prompt_keys):
        prompt = _prompts_of_rows(grouped, prompt_keys, prompt_values, prompt_lengths, slots.prompt, steps, window)
        return prompt.joined(own).whole(queries, values)
    spread = grouped if slots is None else grouped[slots.row]  # [B, G, Hkv, H / Hkv * T, D]
    batch, samples = spread.shape[:2]
    together = rearrange(spread, "batch samples kv_heads rows head_dim -> batch kv_heads (samples rows) head_dim")
    seen = jnp.arange(prompt_keys.shape[2]) < prompt_lengths[:, None, None, None]
    if window is not None:
        steps = jnp.asarray(steps) if slots is None else jnp.asarray(steps)[slots.row][..., None]
        place = jnp.broadcast_to(prompt_lengths[:, None, None] + steps, (batch, samples, queries.shape[-2]))
        place = rearrange(place[..., _query_rows(queries, keys)], "batch samples rows -> batch 1 (samples rows) 1")
        seen = seen & (place - jnp.arange(prompt_keys.shape[2]) < window)
    prompt = jax.tree.map(
        lambda x: rearrange(x, "batch kv_heads (samples rows) ... -> batch samples kv_heads rows ...", samples=samples),
        _softmax_part(together, prompt_keys, prompt_values, seen),
    )
    if slots is not None:
        prompt = jax.tree.map(lambda x: x[slots.prompt, slots.sample], prompt)
    return prompt.joined(own).whole(queries, values)


def _by_row(slots: Slots, prompt_keys: Array) -> bool:
    """True where each row had better read its own prompt than all rows the places of all prompts: on a CPU, without
    siblings to read it for, where rows are few or places so long that most of them may be empty."""
    prompts, samples = slots.row.shape
    few, long = 2 * len(slots.prompt) <= prompts, prompt_keys.shape[2] > 4 * _STRIP
    return fused.on_cpu() and samples == 1 and prompt_keys.shape[2] % _STRIP == 0 and (few or long)


def _prompts_of_rows(
    queries: Array, keys: Array, values: Array, lengths: Array, prompt: Array, steps: Array | None, window: Any
) -> PartialSoftmax:
    """Attention of rows to their prompts, read strip by strip as far as the longest of them goes.

    The copy of a strip costs what reading it costs, so that full places take 1.5 times as long as all at once; those of
    a server, mostly free or filled to a tenth, a tenth to half. A strip behind a row's prompt changes no bit of it.

    Args:
        queries: [N, Hkv, H / Hkv, D], scaled.
        keys, values: [B, Hkv, S, D], S a multiple of the strip; lengths: [B].
        prompt: [N], the prompt of each row; B or more: none.
        steps, window: as in `attend_shared`.
    """
    ends = jnp.where(prompt < len(keys), lengths[prompt], 0)[:, None, None, None]

    def of_rows(whole: Array, start: Array) -> Array:
        size = (1, whole.shape[1], _STRIP, whole.shape[3])
        return jax.vmap(lambda number: jax.lax.dynamic_slice(whole, (number, 0, start, 0), size)[0])(prompt)

    def read(carry: tuple[Array, PartialSoftmax]) -> tuple[Array, PartialSoftmax]:
        start, before = carry
        places = start + jnp.arange(_STRIP)
        seen = places < ends
        if window is not None:
            seen = seen & (ends + jnp.asarray(steps)[:, None, None, None] - places < window)
        strip = _softmax_part(queries, of_rows(keys, start), of_rows(values, start), seen)
        return start + _STRIP, before.joined(strip)

    nothing = jnp.zeros(queries.shape, jnp.float32)
    empty = PartialSoftmax(nothing, nothing[..., :1] + MASKED, nothing[..., :1])
    return jax.lax.while_loop(lambda carry: carry[0] < jnp.max(ends), read, (jnp.int32(0), empty))[1]


def _softmax_part(queries: Array, keys: Array, values: Array, mask: Array) -> PartialSoftmax:
    """Attention of queries [..., N, D] to keys and values [..., S, D] where the mask [..., N, S] is true."""
    axes = tuple(range(queries.ndim - 2))
    last, before = queries.ndim - 1, queries.ndim - 2
    few = fused.on_cpu() and queries.shape[before] <= _FEW_QUERIES and queries.dtype == keys.dtype == jnp.float32
    left, right = (keys, queries) if few else (queries, keys)
    scores = jax.lax.dot_general(left, right, (((last,), (last,)), (axes, axes)), preferred_element_type=jnp.float32)
    if few:  # as in `contract`, XLA packs what stands on the right: better the queries than a whole window of keys
        scores = rearrange(jax.lax.optimization_barrier(scores), "... keys rows -> ... rows keys")
    scores = scores + jnp.where(mask, 0, MASKED)  # a sum, which XLA fuses with the rest on CPU, where it does no choice
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))  # cancels out
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jax.lax.dot_general(
        weights.astype(values.dtype), values, (((last,), (before,)), (axes, axes)), preferred_element_type=jnp.float32
    )
    return PartialSoftmax(mixed, top, total)


def _group(queries: Array, keys: Array) -> Array:
    """Scales queries [..., H, T, D] by D^-1/2 and joins those of a key head: [..., Hkv, H / Hkv * T, D]."""
    *lead, _, _, width = queries.shape
    return (queries * width**-0.5).reshape(*lead, keys.shape[-3], -1, width)


def _query_rows(queries: Array, keys: Array) -> Array:
    """Position of each row of `_group`'s result: 0 .. T - 1, once for every query head of a key head."""
    heads, size, _ = queries.shape[-3:]
    return jnp.tile(jnp.arange(size), heads // keys.shape[-3])
