"""A random one-layer Qwen2-VL as a checkpoint directory, cases with traces, and a config that trains on them."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.data import Case
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models import Model, ModelConfig, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.processing.processor import Processor


@pytest.fixture(scope="session")
def model_dir(tiny_tokenizer_dir, tmp_path_factory):
    text = TextConfig(400, 32, 48, 1, 4, 2, mrope_section=(2, 1, 1))
    vision = VisionConfig("qwen2_vl", depth=1, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=32)
    config = ModelConfig(text, vision, True, 398, 399, 395, 396, 386, 386, (388, 386))
    rng = np.random.default_rng(0)
    params: dict = {}
    for name, shape in tensor_shapes(config).items():
        *parents, leaf = name.split(".")
        node = functools.reduce(lambda tree, part: tree.setdefault(part, {}), parents, params)
        node[leaf] = jnp.array(rng.normal(0, 0.1, shape) + ("norm" in name or "ln_q" in name), jnp.float32)
    directory = tmp_path_factory.mktemp("sft") / "model"
    save_pretrained(directory, Model(config), params, Processor.load(tiny_tokenizer_dir))
    return directory


@pytest.fixture(scope="session")
def cases():
    """Ten text cases of unequal length and two with images."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 56, 3), np.uint8))
    paradigms = ("differential", "intuitive", "analytical", "bayesian")
    return [
        Case(
            id=f"case-{i}",
            question="What is her score?" + " Why?" * (i % 4),
            options=("1", "2"),
            answer="AB"[i % 2],
            specialty=("AM", "BS")[i % 2],
            task="score",
            images=(picture,) * (i >= 10),
            paradigm=paradigms[i % 4],
            trace="1. The rate is high." * (1 + i % 2),
        )
        for i in range(12)
    ]


@pytest.fixture
def make_config(model_dir, tmp_path):
    """`make(**overrides)`: the mini config on the tiny model."""

    def make(**overrides):
        base = {
            "workdir": str(tmp_path / "run"), "model.path": str(model_dir), "specialty": "mixed", "steps": 6,
            "lr": 1e-2, "batch_size": 2, "accumulation": 2, "lora.rank": 2, "checkpoint_every": 2, "warmup_steps": 2,
        }  # fmt: skip
        return load_config("configs/dsa.py:mini", overrides=base | overrides)

    return make
