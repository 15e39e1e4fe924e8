"""A tiny model with prompts of unequal length, some with images, and the plain forward pass over whole sequences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.models import Model, ModelConfig
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.qwen2_vl import init_params
from mmedexpert_jax.processing.processor import Processor


@pytest.fixture(scope="session")
def tiny():
    """(model, params): two layers of width 32, weights large enough for distributions that are far from flat."""
    text = TextConfig(400, 32, 48, 2, 4, 2, mrope_section=(2, 1, 1))
    vision = VisionConfig("qwen2_vl", depth=1, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=32)
    config = ModelConfig(text, vision, True, 398, 399, 395, 396, 386, 386, (388, 386))
    params = jax.tree.map(lambda w: w * 8 if w.ndim > 1 else w, init_params(config, 0, jnp.float32))
    return Model(config), params


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
