"""The programs of the sampler: prompts read, rows refilled from the samples that wait, rows dropped when none waits.

N rows decode together. A row that ends takes the next sample that waits, inside the compiled program: no step is spent
on padding while there is work. The program is two loops: the inner one decodes and does nothing else, since a step on a
GPU is as slow as it has kernels, until a sample ends; the outer one fills the rows again. A program is compiled for a
number of rows and a length of their caches. Caches stand by layer, are updated in place, and are rings
(`Model.decode`): rows that began at different times write the same place. Over a mesh each device decodes its own
prompts; what is one number a device, such as the ring's place, is an array [1] of it. Where each has all weights, no
collective runs in the loops. Where weights are sharded (models/sharded.py), those along "fsdp" go step by step
together, and each has its shard of every product of all their rows; where "tensor" splits them, all devices do.
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
from mmedexpert_jax.models import Cache, Model, PromptCache, Slots, fused, kernel_trial, sharded
from mmedexpert_jax.models.network import join_factors
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.sampling import sample, sample_each
from mmedexpert_jax.runtime.mesh import ROWS, by_device

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

    def __repr__(self) -> str:
        """One line: how many samples of how many prompts, and of what length."""
        shape = "x".join(map(str, getattr(self.tokens, "shape", ("?",))))  # a tree may hold anything, as when mapped
        return f"Completions(tokens int32[{shape}] = prompts x samples x tokens, logprobs, lengths, truncated)"


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The static settings of a compiled program, besides shapes."""

    num_samples: int
    max_new_tokens: int
    min_new_tokens: int
    temperature: float | None  # None: each prompt has an `Own` temperature, top-k and top-p
    top_k: int
    top_p: float
    stop_ids: tuple[int, ...]
    ban: tuple[int, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Own:
    """The settings of each of B prompts, where they differ."""

    temperature: Array  # [B] float32
    top_k: Array  # [B] int32
    top_p: Array  # [B] float32
    limit: Array  # [B] int32, tokens of a sample, at most R


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """The state of decoding: N rows over B prompts. A row at step 0 is free: while others decode, its prompt
    is numbered B or more, so that what it writes is dropped."""

    cache: Cache  # [N, Hkv, length, Dh] by layer
    slots: Slots
    steps: Array  # [N] int32, tokens drawn so far of each row's sample
    waiting: Array  # [B, G] bool, samples that have their first token and no row yet
    place: Array  # [1] int32, where the next keys go, modulo the cache's length
    spent: Array  # [1] int32, rows times steps that were computed
    completions: Completions
    own: Own | None = None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def prefill(
    model: Model,
    sampling: Sampling,
    mesh: Mesh | None,
    params: dict,
    batch: Batch,
    lora: Lora | None,
    keys: Array,
    own: Own | None = None,
    copies: Array | None = None,
) -> tuple[PromptCache, Completions]:
    """Reads the prompts and draws the first token of each sample; keys [B, G]. Of `hidden` only the end is kept,
    [B, 1, D]. With `copies` [B] the batch has fewer prompts, and these are the numbers of those that are wanted."""
    _note("prefill", f"{len(batch.tokens)} prompts of {batch.tokens.shape[1]} tokens, {len(keys)} wanted")

    def run(
        params: dict, batch: Batch, lora: Lora | None, keys: Array, own: Own | None, copies: Array | None
    ) -> tuple[PromptCache, Completions]:
        with sharded.images_over(() if mesh is None else ROWS[0]):
            prefix = model.prefill(params, batch, lora)
        if copies is not None:
            prefix = jax.tree.map(lambda leaf: leaf[copies], prefix)
        prompt_end = jnp.take_along_axis(prefix.hidden, prefix.lengths[:, None, None] - 1, axis=1)  # [B, 1, D]
        own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:, None], keys.shape), own)
        tokens, logprobs = _draw(model, sampling, params, lora, prompt_end, keys, jnp.int32(0), own)
        whole = (*keys.shape, sampling.max_new_tokens)
        completions = Completions(
            tokens=jnp.full(whole, model.config.pad_token_id, jnp.int32).at[..., 0].set(tokens),
            logprobs=jnp.zeros(whole, jnp.float32).at[..., 0].set(logprobs),
            lengths=jnp.ones(keys.shape, jnp.int32),
            truncated=~_stops(sampling, tokens),
        )
        return _by_heads(mesh, dataclasses.replace(prefix, hidden=prompt_end)), completions

    specs = (sharded.specs(params), ROWS, sharded.specs(lora), ROWS, ROWS, ROWS)
    return by_device(run, mesh, specs, ROWS)(params, batch, lora, keys, own, copies)


@functools.partial(jax.jit, static_argnums=(0, 1))
def join(mesh: Mesh | None, length: int, prefilled: Any) -> Any:
    """Prompts that were read apart, each (prefix, completions, keys), as one; keys and values are padded to `length`
    tokens. On each device its own prompts of all batches stand after one another."""

    def whole(prefilled: Any) -> Any:
        def padded(x: Array) -> Array:  # [B, Hkv, T, Dh]
            return jnp.pad(x, [(0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)])

        def lengthened(prefix: PromptCache) -> PromptCache:
            keys, values = (jax.tree.map(padded, x) for x in (prefix.keys, prefix.values))
            return _by_heads(mesh, dataclasses.replace(prefix, keys=keys, values=values))

        equal = [(lengthened(prefix), *others) for prefix, *others in prefilled]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *equal)

    return by_device(whole, mesh, (ROWS,), ROWS)(prefilled)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def empty_state(
    model: Model, rows: int, cache_length: int, mesh: Mesh | None, dtype: jnp.dtype, completions: Completions
) -> DecodeState:
    """The state of `rows` free rows on each device, in which the samples that go on wait; caches have a dtype, the
    prompts'."""

    def run(completions: Completions) -> DecodeState:
        prompts, samples, _ = completions.tokens.shape
        cache = _by_heads(mesh, jax.tree.map(lambda x: x[:, 0], model.init_cache(rows, 1, cache_length, dtype)))
        nothing = jnp.zeros(rows, jnp.int32)
        slots = Slots(nothing + prompts, nothing, jnp.zeros((prompts, samples), jnp.int32))
        number = jnp.zeros(1, jnp.int32)
        return DecodeState(cache, slots, nothing, open_samples(completions), number, number, completions)

    return by_device(run, mesh, (ROWS,), ROWS)(completions)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnames="state")
def advance(
    model: Model,
    sampling: Sampling,
    mesh: Mesh | None,
    params: dict,
    lora: Lora | None,
    prefix: PromptCache,
    keys: Array,
    state: DecodeState,
    leave: int,
    least: int,
    most: int,
) -> tuple[DecodeState, Array]:
    """Decodes until no more than `leave` rows have a sample, or a row has filled its cache.

    Args:
        mesh: the devices among which prompts are split.
        keys: [B, G] of the samples.
        state: donated.
        leave: rows, on each device.
        least: steps that are made even with `leave` rows or fewer: other devices may have more.
        most: steps.

    Returns:
        The state, and [2] int32, the largest among devices: samples that have not ended, steps of the oldest of them.
    """
    cache_length = state.cache.keys[0].shape[-2]
    _note("decode", f"{len(state.slots.prompt)} rows, window {cache_length}")
    together: tuple[str, ...] = ()  # axes along which no device steps alone
    if mesh is not None and mesh.shape["tensor"] > 1:  # what the compiler splits may take a message that, on a CPU,
        together = ROWS[0]  # waits for all devices there are
    elif sharded.has_shards(params):  # a product takes all that hold its shards
        together = (sharded.AXIS,)

    def run(params: dict, lora: Lora | None, prefix: PromptCache, keys: Array, state: DecodeState, limits: Array):
        fuse = state.cache.keys[0].dtype == jnp.bfloat16 and fused.takes_rings(fused.TILE)
        fuse = fuse and lora is not None and kernel_trial.passes("add_delta")
        params, lora = sharded.sending(params), join_factors(model.config, sharded.gathered(lora), fuse)
        first = state.place[0]
        step = functools.partial(_step, model, sampling, params, lora, prefix)
        place, state = _turns(sampling, step, keys, first, state, limits, together)
        status = jnp.stack([jnp.sum(state.waiting) + jnp.sum(state.steps > 0), jnp.max(state.steps)])
        state = dataclasses.replace(
            state,
            cache=_by_heads(mesh, state.cache),
            place=state.place + (place - first),
            spent=state.spent + (place - first) * len(state.steps),
        )
        return state, status if mesh is None else jax.lax.pmax(status, ROWS[0])

    specs = (sharded.specs(params), sharded.specs(lora), ROWS, ROWS, ROWS, WHOLE)
    limits = jnp.array([leave, least, most], jnp.int32)
    return by_device(run, mesh, specs, (ROWS, WHOLE))(params, lora, prefix, keys, state, limits)


def _turns(
    sampling: Sampling,
    step: Callable[..., tuple[Cache, Completions, Array]],
    keys: Array,
    first: Array,
    state: DecodeState,
    limits: Array,
    together: tuple[str, ...],
) -> tuple[Array, DecodeState]:
    """The place behind the last step, and the state there: the two loops on one device.

    Args:
        sampling: of the rows.
        step: `_step` from the rows' keys on.
        keys: [B, G] of the samples.
        first: place of the first step.
        state: at that place.
        limits: [3], `leave`, `least` and `most` of `advance`.
        together: axes along which no device steps alone.
    """
    cache_length = state.cache.keys[0].shape[-2]
    leave, least, most = limits

    def among(x: Array) -> Array:
        return jax.lax.pmax(x, together) if together else x

    def reach(place: Array, state: DecodeState) -> Array:
        """The place before which rows need not be looked at unless a sample ends; `place`: all is done."""
        busy = jnp.minimum(jnp.sum(state.steps > 0) + jnp.sum(state.waiting), len(state.steps))
        busy, oldest = among(jnp.stack([busy, jnp.maximum(jnp.max(state.steps), 1)]))
        end = first + jnp.minimum(jnp.where(busy > leave, most, least), most)
        return jnp.where(busy > 0, jnp.minimum(end, place + cache_length + 1 - oldest), place)

    def turn(carry: tuple[Array, Array, DecodeState]) -> tuple[Array, Array, DecodeState]:
        begun, end, state = carry
        state = _refill(state)
        row_keys = keys[state.slots.prompt, state.slots.sample]
        own = jax.tree.map(lambda leaf: leaf[state.slots.prompt], state.own)

        def at(place: Array, cache: Cache, done: Completions) -> DecodeState:
            steps = jnp.where(state.steps > 0, state.steps + place - begun, 0)
            return dataclasses.replace(state, steps=steps, cache=cache, completions=done)

        def decode(inner: tuple[Array, Array, Cache, Completions]) -> tuple[Array, Array, Cache, Completions]:
            place, _, cache, done = inner
            cache, done, ended = step(row_keys, own, at(place, cache, done), place)
            stops = jnp.any(ended | (place + 1 >= end))
            return place + 1, among(stops.astype(jnp.int32)) == 0 if together else ~stops, cache, done

        place, _, cache, done = jax.lax.while_loop(
            lambda inner: inner[1], decode, (begun, jnp.ones((), bool), state.cache, state.completions)
        )
        state = _settle(sampling, at(place, cache, done), own)
        return place, reach(place, state), state

    place, _, state = jax.lax.while_loop(lambda carry: carry[0] < carry[1], turn, (first, reach(first, state), state))
    return place, state


def _step(
    model: Model,
    sampling: Sampling,
    params: dict,
    lora: Lora | None,
    prefix: PromptCache,
    keys: Array,
    own: Own | None,
    state: DecodeState,
    place: Array,
) -> tuple[Cache, Completions, Array]:
    """The cache and the completions with a token for each row, and [N] bool, samples that end with it; keys and `own`
    are the rows' [N]. Of the completions only tokens and log-probabilities are written: `_settle` does the rest."""
    steps, done, index = state.steps, state.completions, (state.slots.prompt, state.slots.sample)
    last = done.tokens[(*index, steps - 1)]
    hidden, cache = model.decode(params, prefix, state.cache, last, steps - 1, lora, state.slots, place)
    tokens, logprobs = _draw(model, sampling, params, lora, hidden, keys, steps, own)

    def put(buffer: Array, values: Array) -> Array:
        return buffer.at[(*index, steps)].set(values, mode="drop", unique_indices=True)

    done = dataclasses.replace(done, tokens=put(done.tokens, tokens), logprobs=put(done.logprobs, logprobs))
    return cache, done, (steps > 0) & (_stops(sampling, tokens) | (steps + 1 >= _limit(sampling, own)))


def _settle(sampling: Sampling, state: DecodeState, own: Own | None) -> DecodeState:
    """The state in which completions tell how long the rows' samples are, and rows whose sample has ended are free."""
    steps, done, index = state.steps, state.completions, (state.slots.prompt, state.slots.sample)
    stopped = _stops(sampling, done.tokens[(*index, steps - 1)])

    def put(buffer: Array, values: Array) -> Array:
        return buffer.at[index].set(values, mode="drop", unique_indices=True)

    done = dataclasses.replace(done, lengths=put(done.lengths, steps), truncated=put(done.truncated, ~stopped))
    steps = jnp.where(stopped | (steps >= _limit(sampling, own)), 0, steps)
    return dataclasses.replace(state, completions=done, steps=steps)


def _refill(state: DecodeState) -> DecodeState:
    """The state in which free rows have the next samples that wait, as far as there are any."""
    slots, waiting, live = state.slots, state.waiting, state.steps > 0
    order = jnp.argsort(~waiting.reshape(-1), stable=True)
    rank, rows = jnp.cumsum(~live) - 1, jnp.arange(len(live))
    takes = ~live & (rank < jnp.sum(waiting))
    samples = waiting.shape[1]
    # Rows that stay free have prompts that are none, and each its own: what is written for them goes nowhere.
    ticket = jnp.where(takes, order[rank], waiting.size + rows * samples)
    prompt = jnp.where(live, slots.prompt, ticket // samples)
    number = jnp.where(live, slots.sample, ticket % samples)
    row = slots.row.at[prompt, number].set(rows, mode="drop", unique_indices=True)
    waiting = waiting.reshape(-1).at[ticket].set(False, mode="drop").reshape(waiting.shape)
    steps = jnp.where(takes, 1, state.steps)
    return dataclasses.replace(state, slots=Slots(prompt, number, row), steps=steps, waiting=waiting)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def resize(rows: int, cache_length: int, mesh: Mesh | None, state: DecodeState) -> DecodeState:
    """The state with `rows` rows on each device, those that have a sample first, and caches of `cache_length` tokens.

    Rows that come in are free. Caches become shorter only where no row has a sample.
    """

    def run(state: DecodeState) -> DecodeState:
        slots, old = state.slots, state.cache.keys[0].shape[-2]
        order = jnp.argsort(state.steps == 0, stable=True)[:rows]
        fresh = (0, rows - len(order))
        prompt = jnp.pad(slots.prompt[order], fresh, constant_values=len(state.waiting))
        number, steps = jnp.pad(slots.sample[order], fresh), jnp.pad(state.steps[order], fresh)
        row = slots.row.at[prompt, number].set(jnp.arange(rows), mode="drop")
        # A ring that has gone round is turned until its oldest place is the first, so that it can grow at its end.
        turned = jnp.where(state.place[0] > old, state.place[0] % old, 0)

        def resized(buffer: Array) -> Array:
            kept = buffer[order] if cache_length == old else jnp.roll(buffer[order], -turned, axis=2)
            return jnp.pad(kept[:, :, :cache_length], [fresh, (0, 0), (0, max(0, cache_length - old)), (0, 0)])

        place = state.place if cache_length == old else jnp.minimum(state.place, old)
        cache = _by_heads(mesh, jax.tree.map(resized, state.cache))
        slots = Slots(prompt, number, row)
        return dataclasses.replace(state, cache=cache, slots=slots, steps=steps, place=place)

    return by_device(run, mesh, (ROWS,), ROWS)(state)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def admit(
    mesh: Mesh | None,
    prefix: PromptCache,
    held: tuple[Array, Completions, Own | None, Array],
    new: tuple[PromptCache, Array, Completions, Own | None],
    places: Array,
) -> tuple[PromptCache, tuple[Array, Completions, Own | None, Array]]:
    """The prompts, and what is held of their samples, with new ones at `places` [b] of each device's prompts.

    Args:
        mesh: the devices.
        prefix: donated, as is `held`: keys [B, G], completions, settings and, [B, G] bool, which samples wait. The rest
            of the state is not among them, so that one program serves whatever the rows and their caches are.
        new: prompts, keys, first tokens, settings.
        places: out of range takes none. What stood there is done.
    """
    _note("admission", f"{len(places)} prompts of {new[0].keys[0].shape[2]} tokens")

    def run(prefix: PromptCache, held: tuple, new: tuple, places: Array) -> tuple[PromptCache, tuple]:
        fresh, keys, completions, own = new
        size = fresh.keys[0].shape[2]

        def put(whole: Array, part: Array) -> Array:
            return whole.at[places].set(part, mode="drop")

        def put_keys(whole: Array, part: Array) -> Array:  # [P, Hkv, T, Dh], of which the first `size` of T are new
            return whole.at[places, :, :size].set(part, mode="drop")

        prefix = PromptCache(
            put(prefix.hidden, fresh.hidden),
            jax.tree.map(put_keys, prefix.keys, fresh.keys),
            jax.tree.map(put_keys, prefix.values, fresh.values),
            put(prefix.lengths, fresh.lengths),
            put(prefix.next_position, fresh.next_position),
        )
        first = keys, completions, own, open_samples(completions, own)
        return _by_heads(mesh, prefix), jax.tree.map(put, held, first)

    return by_device(run, mesh, ROWS, ROWS)(prefix, held, new, places)


def open_samples(done: Completions, own: Own | None = None) -> Array:
    """[B, G] bool: samples that go on, without a stop token and below their limit."""
    limit = done.tokens.shape[-1] if own is None else own.limit[:, None]
    return done.truncated & (done.lengths < limit)


def _stops(sampling: Sampling, tokens: Array) -> Array:
    """[...] bool: tokens [...] that end a sample."""
    return jnp.isin(tokens, jnp.array(sampling.stop_ids, jnp.int32))


def _limit(sampling: Sampling, own: Own | None) -> Array | int:
    """The tokens that a sample may have; [N] where rows have settings of their own."""
    return sampling.max_new_tokens if own is None else own.limit


def _by_heads(mesh: Mesh | None, tree: Any) -> Any:
    """The tree with keys and values [..., Hkv, T, Dh] split by heads along "tensor", where it divides them."""

    def split(x: Array) -> Array:
        if mesh is None or x.ndim < 4 or mesh.shape["tensor"] == 1 or x.shape[-3] % mesh.shape["tensor"]:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * (x.ndim - 3), "tensor"))

    return jax.tree.map(split, tree)


def _draw(
    model: Model,
    sampling: Sampling,
    params: dict,
    lora: Lora | None,
    hidden: Array,
    keys: Array,
    steps: Array,
    own: Own | None,
) -> tuple[Array, Array]:
    """Token and log-probability for each of the keys [...] at its step [...] or [], from hidden states [..., D] that
    broadcast against them."""
    logits = model.unembed(params, hidden, lora)
    every = jnp.broadcast_to(steps, keys.shape).reshape(-1)
    step_keys = jax.vmap(jax.random.fold_in)(keys.reshape(-1), every).reshape(keys.shape)
    ban = _ban_mask(sampling, steps, logits.shape[-1])
    if own is not None:
        return sample_each(step_keys, logits, own.temperature, own.top_k, own.top_p, ban)
    return sample(step_keys, logits, sampling.temperature or 0.0, sampling.top_k, sampling.top_p, ban)


def _ban_mask(sampling: Sampling, steps: Array, vocabulary: int) -> Array | None:
    """[V] or [..., V] bool: what a row at its step [...] may not draw; None where nothing is ever banned."""
    if not sampling.ban and not sampling.min_new_tokens:
        return None
    ids = jnp.arange(vocabulary)
    banned = jnp.isin(ids, jnp.array(sampling.ban, jnp.int32))
    if not sampling.min_new_tokens:
        return banned
    early = (steps < sampling.min_new_tokens)[..., None]
    return banned | (jnp.isin(ids, jnp.array(sampling.stop_ids, jnp.int32)) & early)


def _note(kind: str, what: str) -> None:
    """Counts and logs a program; called while it is traced, once for each."""
    programs.append(f"{kind} of {what}")
    logging.getLogger(__name__).info("program %d of the sampler: %s", len(programs), programs[-1])
