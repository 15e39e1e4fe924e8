"""Answers to many conversations: batches of few shapes, the sampler of `generate`, rows split over devices."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model, flops
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.processor import Conversation, Encoded, Processor
from mmedexpert_jax.rollout.buckets import MULTIPLE, Shape, Shapes, Size, buckets
from mmedexpert_jax.rollout.generate import Completions, generate
from mmedexpert_jax.runtime import costs
from mmedexpert_jax.runtime.mesh import shard_batch

WINDOW = 2048  # conversations that are sorted into buckets together
KEPT = 2**28  # bytes of patches that wait for their batch; images beyond are read a second time

Prompt = Conversation | Callable[[], Conversation]
Refuse = Callable[[int, DataError], None]


@dataclass(frozen=True)
class Settings:
    """How an engine answers.

    Attributes:
        num_samples: answers to each conversation.
        max_new_tokens: limit of an answer, in tokens.
        temperature: 0 decodes greedily.
        top_k: 0 keeps the whole vocabulary.
        top_p: 1.0 keeps the whole vocabulary.
        batch_size: conversations decoded together.
        max_prompt_length: tokens; a longer conversation is refused. None: no limit.
        seed: of the sampling.
    """

    num_samples: int = 1
    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int = 64
    max_prompt_length: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """One answer: its text, its tokens with the end counted, whether it reached the limit without an end, the
    reasoning that some endpoints give beside the text, and the sum of its tokens' log-probabilities where the sampler
    tells them."""

    text: str
    tokens: int
    truncated: bool
    reasoning: str = ""
    logprob: float | None = field(default=None, compare=False)


class Engine:
    """A model that answers conversations.

    Conversations with as many images and of like lengths are decoded together; while the device works on a batch, the
    host prepares the next one. A shape once compiled serves again wherever it is not much too large.
    """

    def __init__(
        self,
        model: Model,
        params: dict,
        processor: Processor,
        settings: Settings,
        *,
        lora: Lora | None = None,
        key: Array | None = None,
        mesh: Mesh | None = None,
    ):
        """With a `mesh` (parameters stand replicated on it) the rows of a batch are split over its devices; `key`
        takes the place of `settings.seed`."""
        self.processor, self.settings = processor, settings
        self._network = (model, params, lora)
        self._given, self._key = key, jax.random.key(settings.seed) if key is None else key
        self._mesh = mesh
        self._counted = 0.0  # moment up to which the device's time is counted
        devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        self._shapes = Shapes(settings.batch_size, devices)

    def answer(
        self,
        conversations: Iterable[Prompt],
        ids: Iterable[int] | None = None,
        names: Iterable[str] | None = None,
        refuse: Refuse | None = None,
    ) -> Iterator[tuple[int, list[Reply]]]:
        """Yields (number of a conversation, its `num_samples` answers) as batches are done, each number once.

        Args:
            conversations: message lists, or functions that give one, called when it is needed and perhaps twice.
            ids: numbers below 2**32 that a conversation's randomness comes from; None: its own number. With ids of its
                own an answer depends neither on the other conversations nor on their order.
            names: what an error calls each conversation.
            refuse: takes (number, error) of a conversation that cannot be encoded, which then has no answer; None:
                the error is raised.

        Raises:
            DataError: a conversation cannot be encoded or has more than `max_prompt_length` tokens, by its name.
        """
        rows = itertools.count() if ids is None else iter(ids)
        called = (f"conversation {i}" for i in itertools.count()) if names is None else iter(names)
        numbered = zip(itertools.count(), rows, called, conversations, strict=False)
        waiting: tuple[Completions, list[int], Batch, float] | None = None
        for batch, members, chosen in self._batches(numbered, refuse):
            began = time.perf_counter()
            done = self._sample(batch, chosen)
            if waiting:
                yield from self._replies(*waiting)
            waiting = (done, members, batch, began)
        if waiting:
            yield from self._replies(*waiting)

    def having(self, settings: Settings) -> "Engine":
        """An engine of the same weights, and of the same `key` if there is one, with other settings."""
        model, params, lora = self._network
        return Engine(model, params, self.processor, settings, lora=lora, key=self._given, mesh=self._mesh)

    def _batches(
        self, numbered: Iterator[tuple[int, int, str, Prompt]], refuse: Refuse | None
    ) -> Iterator[tuple[Batch, list[int], list[int]]]:
        """Batches with the numbers of their conversations and the row ids; a batch is filled up with its first row."""
        while window := list(itertools.islice(numbered, WINDOW)):
            sizes: list[Size] = []
            asked: list[tuple[int, int, str, Prompt]] = []
            kept: dict[int, Encoded] = {}
            room = KEPT
            for number, row, name, prompt in window:
                try:
                    encoded = self._encode(prompt, name)
                except DataError as error:
                    if refuse is None:
                        raise
                    refuse(number, error)
                    continue
                room -= sum(patches.nbytes for patches, _ in encoded.images)
                if room >= 0 or not encoded.images:
                    kept[len(asked)] = encoded
                sizes.append(Size.of(encoded))
                asked.append((number, row, name, prompt))
            for group in buckets(sizes, self.settings.batch_size):
                shape = self._shapes.fit([sizes[place] for place in group])
                for start in range(0, len(group), shape.rows):
                    places = group[start : start + shape.rows]
                    full = places + places[:1] * (shape.rows - len(places))
                    prompts = {
                        place: kept.pop(place) if place in kept else self._encode(asked[place][3], asked[place][2])
                        for place in places
                    }
                    batch = self._collate([prompts[place] for place in full], shape)
                    yield batch, [asked[place][0] for place in places], [asked[place][1] for place in full]

    def _encode(self, prompt: Prompt, name: str) -> Encoded:
        try:
            conversation = prompt() if callable(prompt) else prompt
            return self.processor.encode(conversation, max_length=self.settings.max_prompt_length)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None

    def _collate(self, prompts: Sequence[Encoded], shape: Shape) -> Batch:
        return self.processor.collate(
            prompts,
            min_length=shape.tokens,
            min_patches=shape.patches,
            min_images=shape.rows * shape.images,
            multiple=MULTIPLE,
        )

    def _sample(self, batch: Batch, rows: list[int]) -> Completions:
        model, params, lora = self._network
        ids = jnp.asarray(np.array(rows, np.uint32).view(np.int32))
        if self._mesh is not None:
            batch, ids = shard_batch((batch, ids), self._mesh)
        return generate(
            model,
            params,
            batch,
            key=self._key,
            num_samples=self.settings.num_samples,
            max_new_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            top_k=self.settings.top_k,
            top_p=self.settings.top_p,
            lora=lora,
            rows=ids,
        )

    def _replies(
        self, done: Completions, members: list[int], batch: Batch, began: float
    ) -> Iterator[tuple[int, list[Reply]]]:
        """Replies once the device has them; the batch's work is counted, `began` being when it was handed over."""
        arrays = [np.asarray(part) for part in (done.tokens, done.logprobs, done.lengths, done.truncated)]
        ended = time.perf_counter()
        prompts, lengths = np.asarray(batch.lengths)[: len(members)], arrays[2][: len(members)]
        work = flops.forward(self._network[0].config, prompts, lengths, np.asarray(batch.patch_counts))
        costs.count(ended - max(began, self._counted), prompts.sum() + lengths.sum(), work)
        self._counted = ended
        for place, number in enumerate(members):
            samples = zip(*(part[place] for part in arrays), strict=True)
            yield number, [self._reply(*sample) for sample in samples]

    def _reply(self, tokens: np.ndarray, logprobs: np.ndarray, length: np.ndarray, truncated: np.ndarray) -> Reply:
        text = self.processor.decode(tokens[:length])
        return Reply(text, int(length), bool(truncated), logprob=float(logprobs[:length].sum()))
