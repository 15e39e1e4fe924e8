"""Counted operations against the parameters of a published model, and against sums worked by hand."""

import numpy as np
import pytest

from mmedexpert_jax.models import flops
from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.models.network import tensor_shapes

NONE = np.zeros(0)


def products(config, part):
    """Entries of the matrices under a name: each is used once for a token."""
    shapes = tensor_shapes(config)
    return sum(int(np.prod(shape)) for name, shape in shapes.items() if part in name and len(shape) > 1)


@pytest.mark.parametrize("size", ["qwen2_vl_2b", "qwen2_5_vl_7b"])
def test_two_operations_for_each_parameter_and_token(size):
    config = PUBLISHED[size]
    layers, width = products(config, "model.layers"), config.text.hidden_size
    scores = 4 * config.text.num_layers * width  # of a pair of positions: its score, and its share of the sum
    assert flops.forward(config, [10], [[0]], NONE) == 2 * layers * 10 + scores * 55
    head = 2 * config.text.vocab_size * width
    read_and_written = flops.forward(config, [10], [[2, 3]], NONE)
    assert read_and_written == 2 * layers * 15 + head * 5 + scores * (55 + (20 + 3) + (30 + 6))


@pytest.mark.parametrize("size", ["qwen2_vl_2b", "qwen2_5_vl_7b"])
def test_an_image_costs_the_tower(size):
    config = PUBLISHED[size]
    vision = config.vision
    blocks, merger = products(config, "visual.blocks"), products(config, "visual.merger")
    embed = products(config, "patch_embed")
    whole = vision.depth if vision.family == "qwen2_vl" else 4
    pairs = whole * 256**2 + (vision.depth - whole) * 256 * 64
    expected = 2 * (256 * (embed + blocks) + 64 * merger) + 4 * pairs * vision.hidden_size
    assert flops.forward(config, [0], [[0]], np.array([256])) == expected


def test_windows_and_soft_tokens():
    """MedGemma: of 34 layers 29 see the last 1,024 tokens; 256 averages of an image's patches are projected."""
    config = PUBLISHED["medgemma_4b"]
    layers, inner = products(config, "model.layers"), 8 * 256
    near = 1024 * 1025 / 2 + 976 * 1024
    expected = 2 * layers * 2000 + 4 * inner * (5 * 2000 * 2001 / 2 + 29 * near)
    assert flops.forward(config, [2000], [[0]], NONE) == expected
    whole = flops.forward(config, [2000], [[0, 7]], NONE) - expected
    head = 2 * config.text.vocab_size * config.text.hidden_size
    assert whole == 7 * (2 * layers + head) + 4 * inner * (5 * sum(range(2001, 2008)) + 29 * 7 * 1024)
    tower = products(config, "encoder.layers") + products(config, "patch_embedding")
    scores = 4 * 27 * 4096**2 * 1152
    projected = 256 * products(config, "mm_input_projection_weight")
    assert flops.forward(config, [0], [[0]], np.array([4096])) == 2 * (4096 * tower + projected) + scores


def test_a_gradient():
    assert [flops.trained(1.0, full, remat) for full in (False, True) for remat in (False, True)] == [2, 3, 3, 4]
