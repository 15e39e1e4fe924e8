"""The facade of the network: pure functions of (params, batch, lora), all of them traceable."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.models import fused, kernel_trial
from mmedexpert_jax.models.attention import Slots, attend, attend_extended, attend_shared
from mmedexpert_jax.models.config import ModelConfig
from mmedexpert_jax.models.decoder import ByLayer, Pass, window_of
from mmedexpert_jax.models.layers import image_numbers
from mmedexpert_jax.models.network import bind
from mmedexpert_jax.models.packing import Packing
from mmedexpert_jax.processing.batch import Batch

# here, since processing has no JAX
jax.tree_util.register_dataclass(Batch, [field.name for field in fields(Batch)], [])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptCache:
    """Hidden states, keys and values of the prompts, for their continuations."""

    hidden: Array  # [B, T, D], after the final norm
    keys: ByLayer  # [B, Hkv, T, Dh], rotated
    values: ByLayer  # [B, Hkv, T, Dh]
    lengths: Array  # [B] int32, valid tokens of each prompt
    next_position: Array  # [B] int32, rotary position of the first continuation token


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of the G continuations of each prompt, or of the N rows that are left of them."""

    keys: tuple[Array, ...]  # by layer, [B, G, Hkv, R, Dh] or [N, Hkv, R, Dh], rotated
    values: tuple[Array, ...]  # by layer, likewise


@dataclass(frozen=True)
class Model:
    """A network of one of the families, without its weights; hashable, so it may be a static argument of jit.

    `lora` is a `mmedexpert_jax.lora.Lora` or None. Hidden states have the dtype of the parameters.
    """

    config: ModelConfig

    def logits(self, params: dict, batch: Batch, lora=None) -> Array:
        """Logits [B, T, V] in float32; rows beyond `batch.lengths` have no meaning. Raises DataError for video."""
        self.refuse_video(batch)
        return self._logits(params, batch, lora)

    @functools.partial(jax.jit, static_argnums=0)
    def _logits(self, params: dict, batch: Batch, lora=None) -> Array:
        return self.unembed(params, self.prefill(params, batch, lora).hidden, lora)

    def refuse_video(self, batch: Batch) -> None:
        """Raises DataError for video in a batch; nothing is known of a traced one.

        transformers 4 and 5 give the text after a video different positions, so no result could equal both.
        """
        if isinstance(batch.tokens, jax.core.Tracer):
            return
        tokens = _readable(batch.tokens)
        starts = (tokens[:, :-1] == self.config.vision_start_token_id) & (tokens[:, 1:] == self.config.video_token_id)
        if starts.any():
            row = int(np.flatnonzero(starts.any(-1))[0])
            raise DataError(
                f"row {row} of the batch holds a video, which is not supported; give frames as still images"
            )

    def prefill(self, params: dict, batch: Batch, lora=None, remat: bool = False) -> PromptCache:
        """One causal pass over the prompts. `remat` recomputes each layer in the backward pass."""
        network = bind(self.config, params, lora)
        prompts, added = self._prompts(network, batch, remat)
        hidden, keys, values = network.model(*prompts, added=added, remat=remat)
        return PromptCache(hidden, keys, values, jnp.asarray(batch.lengths), jnp.asarray(batch.next_position))

    def _prompts(self, network: Any, batch: Batch, remat: bool) -> tuple[Pass, tuple[Array, ...]]:
        """The prompts' causal pass, and what joins its first layers."""
        lengths = jnp.asarray(batch.lengths)
        see_each_other = self.config.vision.bidirectional and len(batch.patches) > 0
        images = image_numbers(jnp.asarray(batch.vision_index)) if see_each_other else None

        def attention(index, queries, keys, values):
            window = window_of(self.config.text, index)
            return attend(queries, keys, values, lengths, causal=True, window=window, images=images), keys, values

        x, added = network.embed(batch, remat)
        return Pass(x, jnp.asarray(batch.positions), attention), added

    def extend(
        self,
        params: dict,
        batch: Batch,
        tokens: Array,
        lora=None,
        remat: bool = False,
        packing: Packing | None = None,
    ) -> tuple[Array, Array]:
        """Prompts with teacher-forced continuations, tokens [B, G, R] -> hidden [B, 1, D] of each prompt's last token,
        and [B, G, R, D] of the continuations.

        Each continuation sees its prompt and, causally, itself; token j has the rotary positions next_position + j.
        With a `packing` the second is [N, D]: only the packed tokens are embedded, projected and go through the MLPs,
        while attention sees whole rows.
        """
        network, lengths = bind(self.config, params, lora), jnp.asarray(batch.lengths)
        positions = _positions(jnp.asarray(batch.next_position), jnp.arange(tokens.shape[-1]))

        def attention(index, queries, keys, values, prompt_keys, prompt_values):
            prompt, window = (prompt_keys, prompt_values, lengths), window_of(self.config.text, index)
            if packing is None:
                return attend_extended(queries, *prompt, keys, values, window), keys, values
            rows, own_keys, own_values = (packing.unpack(x) for x in (queries, keys, values))
            return packing.pack(attend_extended(rows, *prompt, own_keys, own_values, window)), keys, values

        if packing is not None:
            positions = jnp.broadcast_to(positions[:, :, 0], tokens.shape)
            tokens, positions = (packing.pack(x[..., None])[:, 0] for x in (tokens, positions))
            positions = jnp.broadcast_to(positions, (3, len(positions)))
        prompts, added = self._prompts(network, batch, remat)
        continuations = Pass(network.model.embed_tokens(tokens), positions, attention)
        hidden, own = network.model.extended(prompts, continuations, added=added, remat=remat)
        return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1), own

    def init_cache(self, batch_size: int, num_samples: int, length: int, dtype: jnp.dtype) -> Cache:
        """Empty buffers for G = `num_samples` continuations of R = `length` tokens of each of B prompts."""
        text = self.config.text
        shape = (batch_size, num_samples, text.num_kv_heads, length, text.head_dim)
        keys = tuple(jnp.zeros(shape, dtype) for _ in range(text.num_layers))
        values = tuple(jnp.zeros(shape, dtype) for _ in range(text.num_layers))
        return Cache(keys, values)

    def decode(
        self,
        params: dict,
        prefix: PromptCache,
        cache: Cache,
        tokens: Array,
        steps: Array,
        lora=None,
        slots: Slots | None = None,
        place: Array | None = None,
    ) -> tuple[Array, Cache]:
        """One token of every continuation: tokens [B, G], the `steps`-th (from 0) -> hidden [B, G, D], the cache.

        With `slots`, tokens [N] of N rows, which are at steps [N] of their own -> hidden [N, D]. All rows write at one
        `place` [] of their caches, so that the write is a slice and not a scatter: a cache is a ring, in which a row
        sees the `steps` places before it. None: at `steps`, the same for all.
        """
        network = bind(self.config, params, lora)
        size = cache.keys[0].shape[-2]
        place = jnp.asarray(steps if place is None else place)
        zero = jnp.zeros((), place.dtype)
        start = [zero] * (cache.keys[0].ndim - 2) + [place % size, zero]
        age = (place - jnp.arange(size)) % size
        mask = age <= jnp.asarray(steps)[..., None, None, None]
        of_row: Any = None if slots is None else slots.prompt
        text = self.config.text
        sizes = text.num_heads // text.num_kv_heads, text.head_dim
        ragged = slots is not None and fused.takes_ragged(text.head_dim)
        ragged = ragged and kernel_trial.passes("attend_ragged", *sizes)
        rings = slots is not None and fused.takes_rings(text.head_dim, prefix.keys[0], cache.keys[0])
        rings = rings and kernel_trial.passes("attend_ring", *sizes, int(text.qk_norm))

        def attention(index, queries, keys, values, prompt_keys, prompt_values, own_keys, own_values):
            window = window_of(self.config.text, index)
            seen = mask if window is None else mask & (age < window)
            keys = jax.lax.dynamic_update_slice(own_keys, keys, start)
            values = jax.lax.dynamic_update_slice(own_values, values, start)
            prompt = prompt_keys, prompt_values, prefix.lengths
            if ragged:
                from mmedexpert_jax.models.ragged_attention import attend_ragged

                return attend_ragged(queries, *prompt, keys, values, of_row, steps, place, window), keys, values
            mixed = attend_shared(queries, *prompt, keys, values, seen, slots, steps=steps, window=window)
            return mixed, keys, values

        def in_one_kernel(index, queries, keys, values, prompt_keys, prompt_values, own_keys, own_values, rope, norms):
            from mmedexpert_jax.models.decode_attention import attend_ring

            window, prompt = window_of(self.config.text, index), (prompt_keys, prompt_values, prefix.lengths)
            new, own = (keys, values), (own_keys, own_values)
            return attend_ring(queries, *prompt, *new, *own, rope, of_row, steps, place, window, norms)

        x = network.model.embed_tokens(tokens[..., None])
        if slots is None:
            positions = _positions(prefix.next_position, jnp.asarray(steps)[None])
        else:
            positions = (prefix.next_position[slots.prompt] + steps)[:, None, None]
            positions = jnp.broadcast_to(positions, (len(tokens), 3, 1))
        by_layer = prefix.keys, prefix.values, cache.keys, cache.values
        chosen: Callable = in_one_kernel if rings else attention
        hidden, keys, values = network.model(x, positions, chosen, by_layer, unroll=True, rotates=rings)
        return hidden[..., 0, :], Cache(keys, values)

    def unembed(self, params: dict, hidden: Array, lora=None) -> Array:
        """Hidden states [..., D] -> logits [..., V] in float32."""
        return bind(self.config, params, lora).unembed(hidden)


def _readable(tokens: Array | np.ndarray) -> np.ndarray:
    """Tokens [B, T] on the host: of an array that several processes share, this one's rows."""
    if not isinstance(tokens, jax.Array) or tokens.is_fully_addressable:
        return np.asarray(tokens)
    return np.concatenate([np.asarray(shard.data) for shard in tokens.addressable_shards])


def _positions(first: Array, offsets: Array) -> Array:
    """first [B] + offsets [T], equal in the three rows: [B, 1, 3, T]."""
    positions = first[:, None] + offsets
    return jnp.broadcast_to(positions[:, None, None], (positions.shape[0], 1, 3, positions.shape[1]))
