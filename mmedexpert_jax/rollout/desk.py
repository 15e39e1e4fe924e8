"""A thread that answers requests as they come: one base, an adapter a pool, rows refilled while others go on."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mmedexpert_jax.errors import DataError, UserError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model
from mmedexpert_jax.processing.processor import Encoded, Processor
from mmedexpert_jax.rollout.decode import Completions, Own, Sampling
from mmedexpert_jax.rollout.pool import Pool

STEPS = 8  # tokens between two checks of the queue, at which streams are sent what is new
LEAST = 64  # tokens of a padded prompt; lengths are powers of two, so that programs are few
BLOCK = 8  # texts of one padded length that are read at a time
ENOUGH = 3  # from so many texts on a filled-up block is faster than one by one


class Busy(Exception):
    """The queue is full."""


@dataclass(eq=False)
class Choice:
    """One sample that is asked for."""

    model: str  # name of an adapter or of the base
    encoded: Encoded  # the prompt
    row: int  # number below 2**32 that its randomness comes from
    temperature: float  # 0: greedy
    top_p: float  # mass that is sampled from
    top_k: int  # 0: all
    limit: int  # tokens
    # called in the desk's thread with what there is, and whether that is all; None and True: it failed
    tell: Callable[[Completions | None, bool], None]
    watched: bool = False  # whether `tell` wants to know before the end
    dropped: bool = field(default=False)


class Desk:
    """Answers choices in a thread of its own, started at once.

    Args:
        loras: name of each model that is served -> its deltas, None for the base.
        rows: samples that decode together, of each name.
        queue: choices that may wait; beyond them `submit` raises Busy.
        max_prompt_length: tokens.
        max_new_tokens: tokens of a sample at most.
    """

    def __init__(
        self,
        model: Model,
        params: dict,
        loras: Mapping[str, Lora | None],
        processor: Processor,
        rows: int,
        queue: int,
        max_prompt_length: int,
        max_new_tokens: int,
    ):
        self.processor, self.loras = processor, loras
        self.max_prompt_length, self.max_new_tokens = max_prompt_length, max_new_tokens
        self._model, self._params, self._rows, self.queue = model, params, rows, queue
        self._pools: dict[str, Pool] = {}
        self._waiting: dict[str, deque[Choice]] = {name: deque() for name in loras}
        self._running: set[Choice] = set()
        self._news = threading.Condition()
        self._closed = False
        self.failure: Exception | None = None  # the last that ended a choice before its time
        self._thread = threading.Thread(target=self._work, name="desk", daemon=True)
        self._thread.start()

    def submit(self, choices: list[Choice]) -> None:
        """Puts choices in the queue. Raises Busy where they are too many."""
        with self._news:
            for waiting in self._waiting.values():  # the places of those who have left are free
                for choice in [choice for choice in waiting if choice.dropped]:
                    waiting.remove(choice)
            if sum(map(len, self._waiting.values())) + len(choices) > self.queue:
                raise Busy
            for choice in choices:
                self._waiting[choice.model].append(choice)
            self._news.notify()

    def warm_up(self) -> None:
        """Opens the pool of each name and answers a short text, a block of them and a small image, alone and as several
        choices, so that the first requests find their programs.

        Raises whatever keeps the model from answering, such as DataError.
        """
        picture = Image.new("RGB", (56, 56))  # the least that Qwen2-VL takes
        shown = [{"type": "image", "image": picture}, {"type": "text", "text": "Hello"}]
        texts, several = min(ENOUGH, self.queue), min(2, self.queue)
        for name in self.loras:
            for content, prompts, choices in (
                *(("Hello", 1, 1), ("Hello", texts, 1), ("Hello", 1, several)),
                *((shown, 1, 1), (shown, 1, several)),
            ):
                over, conversation = threading.Semaphore(0), [{"role": "user", "content": content}]
                try:
                    encoded = [
                        self.processor.encode(conversation, max_length=self.max_prompt_length) for _ in range(prompts)
                    ]
                except DataError:  # a model without images, or a limit below an image's tokens
                    continue
                tell = lambda _, ended, over=over: ended and over.release()  # noqa: E731
                limit = min(2, self.max_new_tokens)
                asked = [Choice(name, one, 0, 1.0, 1.0, 0, limit, tell) for one in encoded for _ in range(choices)]
                self.submit(asked)
                for _ in asked:
                    over.acquire()
                if self.failure is not None:
                    raise self.failure

    def drop(self, choices: list[Choice]) -> None:
        """Gives up choices that no one waits for any more."""
        for choice in choices:
            choice.dropped = True

    def close(self) -> None:
        """Ends the thread after its present steps."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self._running or any(self._waiting.values()))
                if self._closed:
                    return
            try:
                for name in list(self.loras):
                    self._serve(name)
            except Exception as error:  # whatever failed: its choices end as failed, and the next ones get fresh pools
                self.failure = error
                if not isinstance(error, UserError):  # which those who wait pass on
                    logging.getLogger(__name__).exception("the pool failed")
                for choice in self._running:
                    choice.tell(None, True)
                self._running.clear()
                self._pools.clear()

    def _serve(self, name: str) -> None:
        """Some steps of one model's pool."""
        waiting = self._waiting[name]
        if name not in self._pools and not waiting:
            return
        if name not in self._pools:
            self._pools[name] = self._opened(name, waiting)
        pool = self._pools[name]
        while waiting and not pool.full:
            self._admit(pool, self._next(waiting))
        pool.run(more=bool(waiting), steps=STEPS)
        for choice, done in pool.ended():
            self._running.discard(choice)
            choice.tell(done, True)
        asked = any(c.model == name and (c.watched or c.dropped) for c in self._running)
        for choice, done in pool.progress() if asked else ():
            if choice.dropped:
                pool.drop(choice)
                self._running.discard(choice)
            elif choice.watched:
                choice.tell(done, False)

    def _opened(self, name: str, waiting: deque[Choice]) -> Pool:
        """The pool of a name. Where it cannot be opened, those who wait for it fail with those who run."""
        try:
            return self._open(name)
        except Exception:
            with self._news:
                self._running.update(waiting)
                waiting.clear()
            raise

    def _open(self, name: str) -> Pool:
        stops = tuple(self._model.config.eos_token_ids)
        sampling = Sampling(1, self.max_new_tokens, 0, None, 0, 1.0, stops, self.processor.special_vision_ids)
        key, length = jax.random.key(0), self.max_prompt_length
        pool = Pool(self._model, sampling, self._params, self.loras[name], key, self._rows, BLOCK, length)
        pool.warm_up()
        return pool

    def _next(self, waiting: deque[Choice]) -> list[Choice]:
        """The choices that are read next: those of one prompt, texts of one padded length that wait behind one another,
        or a single one."""
        taken: list[Choice] = []
        with self._news:
            while waiting and len(taken) < BLOCK and (not taken or _alike(taken[0].encoded, waiting[0].encoded)):
                choice = waiting.popleft()
                if not choice.dropped:
                    taken.append(choice)
            of_first = sum(choice.encoded is taken[0].encoded for choice in taken)
            count = of_first if of_first > 1 or len(taken) < ENOUGH else len(taken)
            waiting.extendleft(reversed(taken[count:]))
        return taken[:count]

    def _admit(self, pool: Pool, choices: list[Choice]) -> None:
        if not choices:
            return
        self._running.update(choices)
        full = choices + choices[:1] * (BLOCK - len(choices) if len(choices) > 1 else 0)
        prompts, copies = [choice.encoded for choice in full], None
        if len(choices) > 1 and choices[0].encoded is choices[1].encoded:
            prompts, copies = prompts[:1], jnp.zeros(BLOCK, jnp.int32)
        patches = max(choices[0].encoded.patch_counts, default=0)
        batch = self.processor.collate(
            prompts,
            min_length=min(_power(len(choices[0].encoded.tokens)), pool.capacity),
            min_patches=_power(patches) if patches else 0,
            min_images=len(choices[0].encoded.images),
        )
        own = Own(
            jnp.array([choice.temperature for choice in full], jnp.float32),
            jnp.array([choice.top_k for choice in full], jnp.int32),
            jnp.array([choice.top_p for choice in full], jnp.float32),
            jnp.array([choice.limit for choice in full], jnp.int32),
        )
        tickets = [*choices, *[None] * (len(full) - len(choices))]
        pool.admit(batch, np.array([choice.row for choice in full]), tickets, own, copies)


def _alike(one: Encoded, other: Encoded) -> bool:
    """True where two prompts may be read together: the same one, or texts of one padded length."""
    if one is other:
        return True
    return not one.images and not other.images and _power(len(one.tokens)) == _power(len(other.tokens))


def _power(count: int) -> int:
    return max(LEAST, 1 << (count - 1).bit_length())
