"""The programs of the sampler: the first tokens, then stretches of decoding, between which rows that ended are dropped.

A program is compiled for a number of rows and a window, the tokens that the caches have room for. Caches stand by layer
and are updated in place. Over a mesh each device decodes its own prompts to the end of a stretch, with no word from
the others inside the loop.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Cache, Model, Prefix, Slots
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.sampling import sample
from mmedexpert_jax.runtime.mesh import ROWS

WHOLE = PartitionSpec()
programs: list[str] = []  # what the sampler has compiled in this process, each of them logged too


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
    """G samples of each of B prompts, at most R tokens long."""

    tokens: Array  # [B, G, R] int32, the pad id behind the end
    logprobs: Array  # [B, G, R] float32, of the distribution sampled from; 0 behind the end
    lengths: Array  # [B, G] int32, the stop token counted
    truncated: Array  # [B, G] bool, no stop token among the tokens: R of them, or not yet done


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What a compiled program depends on besides shapes."""

    num_samples: int
    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    stop_ids: tuple[int, ...]
    ban: tuple[int, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What decoding changes: N rows, at first all samples, later those that have not ended and a few that have."""

    cache: Cache  # [N, Hkv, window, Dh] by layer
    slots: Slots
    completions: Completions


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def begin(
    model: Model,
    sampling: Sampling,
    window: int,
    mesh: Mesh | None,
    params: dict,
    batch: Batch,
    lora: Lora | None,
    keys: Array,
) -> tuple[Prefix, State]:
    """Reads the prompts and draws the first token of each sample; keys [B, G]."""
    _note("prefill", len(batch.tokens), window)
    prefix = model.prefill(params, batch, lora)
    prompt_end = jnp.take_along_axis(prefix.hidden, prefix.lengths[:, None, None] - 1, axis=1)  # [B, 1, D]

    def first(params: dict, lora: Lora | None, prompt_end: Array, keys: Array) -> State:
        state = empty(model, sampling, (keys.shape[0], keys.shape[1]), window, prompt_end.dtype)
        drawn = _draw(model, sampling, params, lora, prompt_end, keys, jnp.int32(0))
        tokens, logprobs = (values.reshape(-1) for values in drawn)
        completions = _record(sampling, model.config.pad_token_id, state, tokens, logprobs, jnp.int32(0))
        return dataclasses.replace(state, completions=completions)

    state = _per_device(first, mesh, (WHOLE, WHOLE, ROWS, ROWS), ROWS)(params, lora, prompt_end, keys)
    return dataclasses.replace(prefix, hidden=prompt_end), state


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnames="state")
def advance(
    model: Model,
    sampling: Sampling,
    mesh: Mesh | None,
    params: dict,
    lora: Lora | None,
    prefix: Prefix,
    keys: Array,
    state: State,
    start: int,
    end: int,
) -> tuple[State, Array]:
    """Decodes tokens `start` to `end` - 1 of every row, or until all have ended.

    Returns:
        The state (the old one's arrays are given up) and the number [] of samples that have not ended, the largest
        among devices.
    """
    _note("decode", len(state.slots.prompt), state.cache.keys[0].shape[-2])

    def run(params: dict, lora: Lora | None, prefix: Prefix, keys: Array, state: State, start: Array, end: Array):
        index = state.slots.prompt, state.slots.sample
        row_keys = keys[index]

        def step(carry: tuple[Array, State]) -> tuple[Array, State]:
            number, state = carry
            last = state.completions.tokens[(*index, number - 1)]
            hidden, cache = model.decode(params, prefix, state.cache, last, number - 1, lora, state.slots)
            drawn = _draw(model, sampling, params, lora, hidden, row_keys, number)
            completions = _record(sampling, model.config.pad_token_id, state, *drawn, number)
            return number + 1, dataclasses.replace(state, cache=cache, completions=completions)

        _, state = jax.lax.while_loop(
            lambda carry: (carry[0] < end) & jnp.any(carry[1].completions.truncated), step, (start, state)
        )
        left = jnp.sum(state.completions.truncated)
        return state, left if mesh is None else jax.lax.pmax(left, ROWS[0])

    specs = (WHOLE, WHOLE, ROWS, ROWS, ROWS, WHOLE, WHOLE)
    return _per_device(run, mesh, specs, (ROWS, WHOLE))(
        params, lora, prefix, keys, state, jnp.int32(start), jnp.int32(end)
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def resize(rows: int, window: int, mesh: Mesh | None, state: State) -> State:
    """The state with `rows` rows on each device, those that have not ended first, and caches of `window` tokens."""

    def run(state: State) -> State:
        slots, open_ = state.slots, state.completions.truncated
        order = jnp.argsort(~open_[slots.prompt, slots.sample], stable=True)[:rows]
        prompt, number = slots.prompt[order], slots.sample[order]
        row = jnp.zeros_like(slots.row).at[prompt, number].set(jnp.arange(rows))
        grown = [(0, 0), (0, 0), (0, window - state.cache.keys[0].shape[-2]), (0, 0)]
        cache = jax.tree.map(lambda buffer: jnp.pad(buffer[order], grown), state.cache)
        return State(cache, Slots(prompt, number, row), state.completions)

    return _per_device(run, mesh, (ROWS,), ROWS)(state)


def _per_device(function: Callable, mesh: Mesh | None, specs: Any, out_specs: Any) -> Callable:
    """`function` on each device's rows; "tensor", if it splits anything, stays with the compiler."""
    if mesh is None:
        return function
    names = set(ROWS[0]) if mesh.shape["tensor"] > 1 else set(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, axis_names=names, check_vma=False)


def empty(model: Model, sampling: Sampling, shape: tuple[int, int], window: int, dtype: jnp.dtype) -> State:
    """Nothing drawn yet of [B, G] samples."""
    cache = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), model.init_cache(*shape, window, dtype))
    row = jnp.arange(shape[0] * shape[1]).reshape(shape)
    prompt, sample = (index.reshape(-1) for index in jnp.indices(shape, jnp.int32))
    slots = Slots(prompt, sample, row)
    completions = Completions(
        tokens=jnp.full((*shape, sampling.max_new_tokens), model.config.pad_token_id, jnp.int32),
        logprobs=jnp.zeros((*shape, sampling.max_new_tokens), jnp.float32),
        lengths=jnp.zeros(shape, jnp.int32),
        truncated=jnp.ones(shape, bool),
    )
    return State(cache, slots, completions)


def _draw(
    model: Model, sampling: Sampling, params: dict, lora: Lora | None, hidden: Array, keys: Array, step: Array
) -> tuple[Array, Array]:
    """Token and log-probability for each of the keys [...] from hidden states [..., D] that broadcast against them."""
    logits = model.unembed(params, hidden, lora)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), step).reshape(keys.shape)
    ban = _ban_mask(sampling, step, logits.shape[-1])
    return sample(step_keys, logits, sampling.temperature, sampling.top_k, sampling.top_p, ban)


def _ban_mask(sampling: Sampling, step: Array, vocabulary: int) -> Array | None:
    """[V] bool: what `step` may not draw; None where nothing is ever banned."""
    if not sampling.ban and not sampling.min_new_tokens:
        return None
    ids = jnp.arange(vocabulary)
    banned = jnp.isin(ids, jnp.array(sampling.ban, jnp.int32))
    return banned | (jnp.isin(ids, jnp.array(sampling.stop_ids, jnp.int32)) & (step < sampling.min_new_tokens))


def _record(sampling: Sampling, pad_id: int, state: State, tokens: Array, logprobs: Array, step: Array) -> Completions:
    """The completions with a drawn token [N] of every row that has not ended."""
    done, index = state.completions, (state.slots.prompt, state.slots.sample)
    open_ = done.truncated[index]
    stops = jnp.isin(tokens, jnp.array(sampling.stop_ids, jnp.int32))

    def put(buffer: Array, values: Array, *place: Array) -> Array:
        return buffer.at[(*index, *place)].set(values, unique_indices=True)

    return Completions(
        tokens=put(done.tokens, jnp.where(open_, tokens, pad_id), step),
        logprobs=put(done.logprobs, jnp.where(open_, logprobs, 0.0), step),
        lengths=put(done.lengths, done.lengths[index] + open_),
        truncated=put(done.truncated, open_ & ~stops),
    )


def _note(kind: str, rows: int, window: int) -> None:
    """Counts and logs a program; called while it is traced, once for each."""
    programs.append(f"{kind} of {rows} rows, window {window}")
    logging.getLogger(__name__).info("program %d of the sampler: %s", len(programs), programs[-1])
