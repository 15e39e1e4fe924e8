"""Cases with and without images, and a stand-in for the sampler that answers what a test tells it to."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax import rollout
from mmedexpert_jax.data.case import SPECIALTIES, Case
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.rollout import engine


@pytest.fixture(scope="session")
def processor(tiny_tokenizer_dir):
    return Processor.load(tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def cases():
    """Twelve cases; the answer is always "B" but for case 0; cases 3 and 7 have images; lengths differ."""
    rng = np.random.default_rng(0)

    def image():
        return Image.fromarray(rng.integers(0, 255, (56, 56, 3), np.uint8))

    return [
        Case(
            id=f"case-{i}",
            question="What is the score? " * (1 + 2 * (i % 4)),
            options=("one", "two", "three"),
            answer="A" if i == 0 else "B",
            specialty=SPECIALTIES[i % 4],
            task="curb65" if i % 2 else "wells",
            images=(image(),) if i in (3, 7) else (),
            paradigm="analytical",
            paradigms=("analytical", "bayesian"),
        )
        for i in range(12)
    ]


@dataclasses.dataclass
class Sampler:
    """Makes pools in place of the engine's: `say(row id, sample)` is an answer's text; admitted blocks are noted."""

    processor: Processor
    say: object = None
    calls: list = dataclasses.field(default_factory=list)

    def __call__(self, model, sampling, params, lora, key, rows, block, length, mesh=None):
        return SpokenPool(self, sampling, length)

    def completions(self, row, sampling):
        """All samples of a prompt, as a pool gives them."""
        shape = sampling.num_samples, sampling.max_new_tokens
        tokens = np.full(shape, self.processor.pad_id, np.int32)
        lengths, truncated = np.zeros(shape[0], np.int32), np.zeros(shape[0], bool)
        for sample in range(shape[0]):
            ids = self.processor.completion(self.say(row, sample))
            truncated[sample], lengths[sample] = len(ids) > shape[1], min(len(ids), shape[1])
            tokens[sample, : lengths[sample]] = ids[: shape[1]]
        return rollout.Completions(tokens, np.zeros(shape, np.float32), lengths, truncated)


class SpokenPool:
    """A pool that is full after each block and has answered it at once."""

    def __init__(self, sampler, sampling, length):
        self.sampler, self.sampling, self.capacity = sampler, sampling, length
        self.answered = []

    @property
    def full(self):
        return bool(self.answered)

    busy = full

    def admit(self, batch, rows, tickets):
        rows = np.asarray(rows).tolist()
        self.sampler.calls.append({"batch": batch, "rows": rows, "temperature": self.sampling.temperature})
        pairs = zip(tickets, rows, strict=True)
        self.answered += [(t, self.sampler.completions(row, self.sampling)) for t, row in pairs if t is not None]

    def run(self, more=False):
        pass

    def ended(self):
        answered, self.answered = self.answered, []
        return answered


@pytest.fixture
def sampler(monkeypatch, processor):
    sampler = Sampler(processor, lambda row, sample: "<answer>B</answer>")
    monkeypatch.setattr(engine, "Pool", sampler)
    return sampler
