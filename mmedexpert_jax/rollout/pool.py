"""A pool of rows on the devices, into which prompts are admitted while the samples of others go on."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from mmedexpert_jax.errors import NotFinite
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model, PromptCache
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.decode import (
    Completions,
    DecodeState,
    Own,
    Sampling,
    admit,
    advance,
    empty_state,
    open_samples,
    prefill,
    resize,
)
from mmedexpert_jax.rollout.widths import PATIENCE, cache_length_for, next_cache_length, sample_keys, widths
from mmedexpert_jax.rounding import cdiv, round_up
from mmedexpert_jax.runtime.mesh import row_shards, shard_batch

CAPACITY = 128  # of prompts, in multiples of so many tokens: few programs

Ended = tuple[Any, Completions]  # a ticket, and its samples [G, ...] as arrays of the host


def places(rows: int, group: int, block: int) -> int:
    """Prompts on a device with `rows` rows: those whose samples decode, and a block that waits."""
    # A group's last sample holds the prompt's place: with geometric lengths 2.7 times as long as the mean of 8.
    return block + (rows if group == 1 else cdiv(3 * rows, group))


class Pool:
    """Prompts in P places, their samples in N rows, on each device.

    Arrays are updated in place. A prompt leaves when all of its samples have ended.

    Args:
        sampling: what is drawn; `temperature` None: each prompt is admitted with its own settings.
        key: PRNG key of all samples.
        rows: N.
        block: prompts admitted at a time on each device.
        length: tokens of a prompt at most, rounded up.
        mesh: None: one device.
    """

    def __init__(
        self,
        model: Model,
        sampling: Sampling,
        params: dict,
        lora: Lora | None,
        key: Array,
        rows: int,
        block: int,
        length: int,
        mesh: Mesh | None = None,
    ):
        self.capacity = round_up(length, CAPACITY)
        self._network, self._sampling, self._key = (model, params, lora), sampling, key
        self._mesh, self._devices, self.block = mesh, row_shards(mesh), block
        group = sampling.num_samples
        self._places = places(rows, group, block)
        self._widths = widths(rows, sampling.max_new_tokens, served=self._served)
        self._width, self._cache_length = rows, cache_length_for(1, sampling.max_new_tokens)
        self._tickets: list[list[Any]] = [[None] * self._places for _ in range(self._devices)]
        self._left, self._oldest = 0, 0
        self._running: Array | None = None  # status of the dispatched steps, once they are done
        self._prefix, self._keys, self._state = self._empty(rows)

    @property
    def busy(self) -> bool:
        """True while a sample has not ended."""
        return self._left > 0

    @property
    def _served(self) -> bool:
        """True where prompts come with settings of their own, as a server's do."""
        return self._sampling.temperature is None

    @property
    def full(self) -> bool:
        """True where every row has a sample, or no device can take a block of prompts."""
        free = min(sum(ticket is None for ticket in tickets) for tickets in self._tickets)
        return self._left >= self._widths[0] or free < self.block

    def admit(
        self,
        batch: Batch,
        rows: np.ndarray,
        tickets: Sequence[Any],
        own: Own | None = None,
        copies: Array | None = None,
    ) -> None:
        """Takes prompts in: at most `block` on each device, in the mesh's order, of which those with a ticket count.

        Args:
            batch: prompts of at most `capacity` tokens.
            rows: [B] row ids.
            tickets: B objects that tell what is answered; None: filled up.
            own: settings [B] of each.
            copies: [B] numbers of the prompts in the batch, which is read once for all; None: it has B.
        """
        ids = jnp.asarray(rows.astype(np.uint32).view(np.int32))
        size = len(rows) // self._devices  # fewer than a block where few prompts are of a shape
        places = np.full((self._devices, size), self._places, np.int32)
        for device, held in enumerate(self._tickets):
            free = (place for place, ticket in enumerate(held) if ticket is None)
            for number, ticket in enumerate(tickets[device * size : (device + 1) * size]):
                if ticket is not None:
                    places[device, number] = place = next(free)
                    held[place] = ticket
        placed: Any = places.reshape(-1)
        if self._mesh is not None:
            batch, ids, own, placed = shard_batch((batch, ids, own, placed), self._mesh)
        model, params, lora = self._network
        keys = sample_keys(self._key, ids, self._sampling.num_samples)
        prefix, first = prefill(model, self._sampling, self._mesh, params, batch, lora, keys, own, copies)
        state = self._state
        samples = self._keys, state.completions, state.own, state.waiting
        self._prefix, samples = admit(self._mesh, self._prefix, samples, (prefix, keys, first, own), placed)
        self._keys, done, settings, waiting = samples
        self._state = dataclasses.replace(state, completions=done, own=settings, waiting=waiting)
        counts = (places < self._places).sum(1)
        self._left += int(counts.max()) * self._sampling.num_samples

    def run(self, more: bool = False, steps: int = 2**30) -> None:
        """Dispatches decoding until fewer rows are enough, or, where `more` prompts are to come, one is free.

        At most so many `steps` are made. `ended` waits for it.
        """
        if not self._left or self._running is not None:
            return
        self._fit(shrink=not more)
        leave = max((w for w in self._widths if w < self._width), default=0)
        if more:
            leave = min(self._width, self._left) - 1
        self._running = self._advance(leave, 0 if self._mesh is None else min(PATIENCE, steps), steps)

    def warm_up(self) -> None:
        """Compiles what the pool needs before its samples outgrow the first caches: rows of every number, made fewer
        and more from each to each. Nothing may have been admitted."""
        for one, other in itertools.permutations(self._widths, 2):
            self._resize(one, self._cache_length)
            self._resize(other, self._cache_length)
        for width in self._widths:
            self._resize(width, self._cache_length)
            self._advance(0, 0, 0)
        self._resize(self._widths[0], self._cache_length)

    def ended(self) -> list[Ended]:
        """The tickets whose samples have all ended since the last call; their places are free."""
        if self._running is not None:
            self._left, self._oldest = map(int, jax.device_get(self._running))
            self._running = None
        found = self._samples(ended=True)
        gone = {id(ticket) for ticket, _ in found}
        for held in self._tickets:
            held[:] = [None if id(ticket) in gone else ticket for ticket in held]
        return found

    def progress(self) -> list[Ended]:
        """The samples so far of each prompt that has not ended."""
        return self._samples(ended=False)

    def drop(self, ticket: Any) -> None:
        """Ends the samples of a ticket, which no one waits for."""
        tickets = [one for held in self._tickets for one in held]
        place = next(place for place, one in enumerate(tickets) if one is ticket)
        self._tickets[place // self._places][place % self._places] = None
        done = self._state.completions
        completions = dataclasses.replace(done, truncated=done.truncated.at[place].set(False))
        waiting, steps = self._state.waiting.at[place].set(False), self._state.steps
        # The place may have a new prompt before the next step: rows that wrote to it must not take that for their own.
        rows = np.arange(len(steps)) // (len(steps) // self._devices) == place // self._places
        steps = jnp.where(rows & (self._state.slots.prompt == place % self._places), 0, steps)
        self._state = dataclasses.replace(self._state, completions=completions, waiting=waiting, steps=steps)

    def _fit(self, shrink: bool) -> None:
        """The rows and the caches that the samples need: more where more wait, fewer where that is allowed."""
        wanted = next((w for w in reversed(self._widths) if w >= self._left), self._widths[0])
        width = wanted if shrink else max(wanted, self._width)
        size = self._sampling.max_new_tokens
        cache_length = next_cache_length(self._cache_length, self._oldest, size, fewer=width < self._width)
        if self._served and not self._oldest:  # else one long answer would widen the attention of all after it
            cache_length = cache_length_for(1, size)
        self._resize(width, cache_length)

    def _resize(self, width: int, cache_length: int) -> None:
        if (width, cache_length) != (self._width, self._cache_length):
            self._width, self._cache_length = width, cache_length
            self._state = resize(width, cache_length, self._mesh, self._state)

    def _advance(self, leave: int, least: int, most: int) -> Array:
        """Steps of all rows, as `decode.advance` bounds them; its status."""
        model, params, lora = self._network
        held = self._prefix, self._keys, self._state
        self._state, status = advance(model, self._sampling, self._mesh, params, lora, *held, leave, least, most)
        return status

    def _samples(self, ended: bool) -> list[Ended]:
        tickets = [ticket for held in self._tickets for ticket in held]
        if all(ticket is None for ticket in tickets):
            return []
        done, own = jax.device_get((self._state.completions, self._state.own))
        if np.isnan(done.logprobs).any():
            raise NotFinite
        over = np.asarray(~open_samples(done, own).any(-1)).tolist()
        return [
            (ticket, jax.tree.map(lambda values, place=place: np.array(values[place]), done))
            for place, ticket in enumerate(tickets)
            if ticket is not None and over[place] == ended
        ]

    def _empty(self, rows: int) -> tuple[PromptCache, Array, DecodeState]:
        """Places without prompts, each array of them with memory of its own, since it is replaced in place."""
        model, params, _ = self._network
        text, dtype = model.config.text, params["model"]["embed_tokens"]["weight"].dtype
        count, group, size = self._devices * self._places, self._sampling.num_samples, self._sampling.max_new_tokens

        def zeros(*shape: int, dtype: Any = jnp.int32) -> Array:
            array = jnp.zeros((count, *shape), dtype)
            return array if self._mesh is None else shard_batch(array, self._mesh)

        def by_layer() -> tuple[Array, ...]:
            shape = text.num_kv_heads, self.capacity, text.head_dim
            return tuple(zeros(*shape, dtype=dtype) for _ in range(text.num_layers))

        prefix = PromptCache(zeros(1, text.hidden_size, dtype=dtype), by_layer(), by_layer(), zeros(), zeros())
        floats, none = zeros(group, size, dtype=jnp.float32), zeros(group, dtype=bool)
        done = Completions(zeros(group, size), floats, zeros(group), none)
        state = empty_state(model, rows, self._cache_length, self._mesh, dtype, done)
        if self._served:
            own = Own(zeros(dtype=jnp.float32), zeros(), zeros(dtype=jnp.float32), zeros())
            state = dataclasses.replace(state, own=own)
        return prefix, sample_keys(self._key, zeros(), group), state
