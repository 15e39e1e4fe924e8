"""A tiny model, prompts of unequal length, some with images, samples, and the plain forward pass over whole rows.

Compiling is what these tests spend their time on: they share few programs, all with the same shapes and deltas.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.models import Model, ModelConfig
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.rollout import generate


@pytest.fixture(scope="session", autouse=True)
def highest():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def settings():
    """The distribution that is sampled from."""
    return {"temperature": 0.7, "top_p": 0.9, "ban": (398, 399, 7)}


@pytest.fixture(scope="session")
def limits():
    """The shape of a group, and stop ids that are a twelfth of the vocabulary, so that rows end at different times."""
    return {"num_samples": 4, "max_new_tokens": 12, "stop_ids": tuple(range(300, 330))}


@pytest.fixture(scope="session")
def tiny():
    """(model, params): width 32, weights large enough for distributions that are far from flat."""
    text = TextConfig(400, 32, 48, 1, 4, 2, mrope_section=(2, 1, 1))
    vision = VisionConfig("qwen2_vl", depth=1, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=32)
    config = ModelConfig(text, vision, True, 398, 399, 395, 396, 386, 386, (388, 386))
    rng = np.random.default_rng(0)
    params: dict = {}
    for name, shape in tensor_shapes(config).items():
        *parents, leaf = name.split(".")
        node = functools.reduce(lambda tree, part: tree.setdefault(part, {}), parents, params)
        node[leaf] = jnp.array(rng.normal(0, 0.15, shape) + ("norm" in name or "ln_q" in name), jnp.float32)
    return Model(config), params


@pytest.fixture(scope="session")
def lora(tiny):
    """Deltas that change the distribution."""
    return jax.tree.map(lambda f: f + 0.03, lora_module.init(jax.random.key(1), tiny[1], rank=2, alpha=4))


@pytest.fixture(scope="session")
def processor(tiny_tokenizer_dir):
    return Processor.load(tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def prompts():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8))
    picture, text = {"type": "image", "image": image}, lambda t: {"type": "text", "text": t}
    return [
        [{"role": "user", "content": "What is her score?"}],
        [{"role": "user", "content": [picture, text("The most likely diagnosis?")]}],
        [{"role": "user", "content": [picture, text("Compare with "), picture, text(" and answer A or B.")]}],
    ]


@pytest.fixture(scope="session")
def batch(processor, prompts):
    return processor(prompts)


@pytest.fixture(scope="session")
def completions(tiny, batch, lora, limits, settings):
    return jax.device_get(generate(*tiny, batch, key=jax.random.key(0), lora=lora, **limits, **settings))


@pytest.fixture(scope="session")
def full_logits():
    """f(model, params, batch, tokens [B, G, R], lora) -> [B, G, R, V]: each row alone, prompt and completion as one."""

    def compute(model, params, batch, tokens, lora=None):
        _, group, size = tokens.shape
        rows = [(b, g) for b in range(len(batch.tokens)) for g in range(group)]
        width = batch.tokens.shape[1] + size
        whole = {
            "tokens": np.zeros((len(rows), width), np.int32),
            "positions": np.zeros((len(rows), 3, width), np.int32),
            "vision_index": np.full((len(rows), width), -1, np.int32),
        }
        lengths = np.array([batch.lengths[b] + size for b, _ in rows], np.int32)
        for row, (b, g) in enumerate(rows):
            prompt, end = slice(batch.lengths[b]), slice(batch.lengths[b], lengths[row])
            for name, values in whole.items():
                values[row, ..., prompt] = getattr(batch, name)[b, ..., prompt]
            whole["tokens"][row, end] = tokens[b, g]
            whole["positions"][row, :, end] = batch.next_position[b] + np.arange(size)
        next_position = np.array([batch.next_position[b] + size for b, _ in rows], np.int32)
        full = dataclasses.replace(batch, lengths=lengths, next_position=next_position, **whole)
        logits = model.logits(params, full, lora)
        index = lengths[:, None] - size - 1 + np.arange(size)
        return jnp.take_along_axis(logits, index[..., None], 1).reshape(*tokens.shape, -1)

    return compute


class Echo:
    """A desk whose models say their own names."""

    max_prompt_length, max_new_tokens, queue = 100, 10, 256
    processor = SimpleNamespace(
        encode=lambda conversation, max_length: SimpleNamespace(tokens=[1]), decode=lambda tokens: str(tokens[0])
    )

    def __init__(self):
        self.loras = {"alpha": None, "beta": None}

    def submit(self, choices):
        for choice in choices:
            done = SimpleNamespace(lengths=[1], tokens=np.array([[choice.model]]), truncated=[False])
            choice.tell(done, True)

    def drop(self, choices):
        pass


@pytest.fixture
def echo():
    return Echo()
