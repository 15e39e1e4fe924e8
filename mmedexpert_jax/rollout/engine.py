"""Answers to many conversations: prompts of few shapes admitted to a pool of rows as others end, on all devices."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model, flops
from mmedexpert_jax.models.sharded import as_placed, mesh_of
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.processor import Conversation, Encoded, Processor
from mmedexpert_jax.rollout.buckets import MULTIPLE, Shape, Shapes, Size, buckets
from mmedexpert_jax.rollout.decode import Sampling
from mmedexpert_jax.rollout.generate import folded
from mmedexpert_jax.rollout.pool import Ended, Pool
from mmedexpert_jax.rounding import cdiv
from mmedexpert_jax.runtime import costs
from mmedexpert_jax.runtime.mesh import row_shards
from mmedexpert_jax.runtime.threads import in_order

LOOKAHEAD = 2048  # conversations that are sorted into buckets together
KEPT = 2**28  # bytes of patches that wait for their batch; images beyond are read a second time

Prompt = Conversation | Callable[[], Conversation]
Refuse = Callable[[int, DataError], None]


@dataclass(frozen=True)
class Settings:
    """The settings of an engine."""

    num_samples: int = 1  # answers to each conversation
    max_new_tokens: int = 1024  # limit of an answer, in tokens
    temperature: float = 0.0  # 0 decodes greedily
    top_k: int = 0  # 0 keeps the whole vocabulary
    top_p: float = 1.0  # 1.0 keeps the whole vocabulary
    batch_size: int = 64  # conversations decoded together, on all devices
    max_prompt_length: int | None = None  # tokens; a longer conversation is refused. None: no limit
    seed: int = 0  # of the sampling


@dataclass(frozen=True)
class Reply:
    """One answer."""

    text: str
    tokens: int  # the end token counted
    truncated: bool  # it reached the limit without an end
    reasoning: str = ""  # of endpoints that return it apart from the text
    logprob: float | None = field(default=None, compare=False)  # sum over its tokens, where the sampler gives them


class Engine:
    """A model that answers conversations.

    Conversations with as many images and of like lengths are read together, a few at a time, as rows become free; rows
    go on whatever is read. A shape once compiled serves again wherever it is not much too large.
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
        """With a `mesh`, on which parameters lie whole or sharded, the rows of a batch are split over its devices;
        None: that on which they lie. `key` takes the place of `settings.seed`."""
        self.processor, self.settings = processor, settings
        mesh = mesh or mesh_of(params)
        params, lora = folded(params, lora, None)
        self._network = (model, params, lora) if mesh is None else (model, as_placed(params), as_placed(lora))
        self._given, self._key = key, jax.random.key(settings.seed) if key is None else key
        self._mesh = mesh
        self._counted = 0.0  # moment up to which the device's time is counted
        devices = row_shards(mesh)
        self._rows = cdiv(settings.batch_size, devices) * settings.num_samples
        # Prompts that are read at a time: few, so that rows are refilled soon, but enough to keep the devices busy.
        self._block = cdiv(settings.batch_size, 4 * devices)
        self._shapes = Shapes(self._block * devices, devices)
        self._pool: Pool | None = None

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
        self._counted = time.perf_counter()
        self._pool = None
        for batch, tickets, chosen in self._batches(numbered, refuse):
            tokens = batch.tokens.shape[1]
            if self._pool and not self._pool.capacity // 4 < tokens <= self._pool.capacity:
                yield from self._drain()
            self._pool = self._pool or self._open(tokens)
            yield from self._replies(self._pool.ended())
            while self._pool.full:
                self._pool.run(more=True)
                yield from self._replies(self._pool.ended())
            self._pool.admit(batch, chosen, tickets)
            if self._pool.full:
                self._pool.run(more=True)  # while the host prepares the next prompts
        yield from self._drain()

    def having(self, settings: Settings) -> "Engine":
        """An engine of the same weights, and of the same `key` if there is one, with other settings."""
        model, params, lora = self._network
        return Engine(model, params, self.processor, settings, lora=lora, key=self._given, mesh=self._mesh)

    def _batches(
        self, numbered: Iterator[tuple[int, int, str, Prompt]], refuse: Refuse | None
    ) -> Iterator[tuple[Batch, list["_Ticket | None"], np.ndarray]]:
        """Batches with a ticket for each conversation and the row ids; a batch is filled up with its first row."""
        encode: Callable[[Prompt, str], Encoded | DataError] = self._tried if refuse else self._encode
        while block := list(itertools.islice(numbered, LOOKAHEAD)):
            sizes: list[Size] = []
            asked: list[tuple[int, int, str, Prompt]] = []
            kept: dict[int, Encoded] = {}
            free = KEPT
            found = in_order(lambda one: encode(one[3], one[2]), block)
            for (number, row, name, prompt), encoded in zip(block, found, strict=True):
                if isinstance(encoded, DataError):
                    assert refuse is not None
                    refuse(number, encoded)
                    continue
                free -= sum(patches.nbytes for patches, _ in encoded.images)
                if free >= 0 or not encoded.images:
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
                    tickets = [_Ticket.of(asked[place][0], prompts[place]) for place in places]
                    chosen = np.array([asked[place][1] for place in full])
                    yield batch, [*tickets, *[None] * (shape.rows - len(places))], chosen

    def _tried(self, prompt: Prompt, name: str) -> Encoded | DataError:
        """The prompt encoded, or why it cannot be."""
        try:
            return self._encode(prompt, name)
        except DataError as error:
            return error

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

    def _open(self, tokens: int) -> Pool:
        model, params, lora = self._network
        settings = self.settings
        sampling = Sampling(
            settings.num_samples,
            settings.max_new_tokens,
            0,
            float(settings.temperature),
            settings.top_k,
            float(settings.top_p),
            tuple(model.config.eos_token_ids),
            self.processor.special_vision_ids,
        )
        return Pool(model, sampling, params, lora, self._key, self._rows, self._block, tokens, self._mesh)

    def _drain(self) -> Iterator[tuple[int, list[Reply]]]:
        """The replies left in the pool, which then closes."""
        while self._pool:
            self._pool.run()
            yield from self._replies(self._pool.ended())
            if not self._pool.busy:
                self._pool = None

    def _replies(self, ended: list[Ended]) -> Iterator[tuple[int, list[Reply]]]:
        """The replies of conversations that are done, whose operations are counted."""
        if not ended:
            return
        now = time.perf_counter()
        prompts = np.array([ticket.tokens for ticket, _ in ended])
        lengths = np.stack([done.lengths for _, done in ended])
        images = np.array([count for ticket, _ in ended for count in ticket.patches])
        work = flops.forward(self._network[0].config, prompts, lengths, images)
        costs.count(now - self._counted, prompts.sum() + lengths.sum(), work)
        self._counted = now
        for ticket, done in ended:
            samples = zip(done.tokens, done.logprobs, done.lengths, done.truncated, strict=True)
            yield ticket.number, [self._reply(*sample) for sample in samples]

    def _reply(self, tokens: np.ndarray, logprobs: np.ndarray, length: np.ndarray, truncated: np.ndarray) -> Reply:
        text = self.processor.decode(tokens[:length])
        return Reply(text, int(length), bool(truncated), logprob=float(logprobs[:length].sum()))


@dataclass(frozen=True)
class _Ticket:
    """A conversation in the pool: its number, its tokens, the patches of its images."""

    number: int
    tokens: int
    patches: tuple[int, ...]

    @classmethod
    def of(cls, number: int, encoded: Encoded) -> "_Ticket":
        return cls(number, len(encoded.tokens), encoded.patch_counts)
