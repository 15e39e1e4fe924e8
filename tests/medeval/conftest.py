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
    """Takes the place of the engine's `generate`: `say(row id, sample)` is the answer's text; calls are noted."""

    processor: Processor
    say: object = None
    calls: list = dataclasses.field(default_factory=list)

    def __call__(self, model, params, batch, *, rows, num_samples, max_new_tokens, **settings):
        self.calls.append({"batch": batch, "rows": np.asarray(rows).tolist(), **settings})
        shape = (len(rows), num_samples)
        tokens = np.full((*shape, max_new_tokens), self.processor.pad_id, np.int32)
        lengths, truncated = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for place, row in enumerate(np.asarray(rows)):
            for sample in range(num_samples):
                ids = self.processor.completion(self.say(int(row), sample))
                truncated[place, sample] = len(ids) > max_new_tokens
                lengths[place, sample] = min(len(ids), max_new_tokens)
                tokens[place, sample, : lengths[place, sample]] = ids[:max_new_tokens]
        return rollout.Completions(tokens, np.zeros(tokens.shape, np.float32), lengths, truncated)


@pytest.fixture
def sampler(monkeypatch, processor):
    sampler = Sampler(processor, lambda row, sample: "<answer>B</answer>")
    monkeypatch.setattr(engine, "generate", sampler)
    return sampler
