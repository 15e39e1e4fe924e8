"""Rotary positions against transformers' get_rope_index, and the patches' places against the patches themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing import mrope_positions, patch_positions, patchify

PAD = 9


@pytest.fixture(scope="module")
def model() -> Qwen2VLModel:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"intermediate_size": 16, "vocab_size": 32}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
    return Qwen2VLModel(Qwen2VLConfig(text_config=text, vision_config=vision))


sides = st.integers(1, 9).map(lambda side: 2 * side)
prompts = st.lists(st.tuples(st.integers(1, 6), sides, sides), max_size=4)  # text before each image, its grid


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(prompts, st.integers(1, 8)), min_size=1, max_size=4))
def test_positions_equal_transformers_in_padded_batches(model: Qwen2VLModel, rows):
    sequences, grids = [], []
    for images, tail in rows:
        tokens = []
        for text, height, width in images:
            tokens += [1] * text + [PAD] * (height * width // 4)
        sequences.append(tokens + [1] * tail)
        grids.append([(height, width) for _, height, width in images])
    length = max(len(tokens) for tokens in sequences)
    padded = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens in sequences])
    mask = torch.tensor([[1] * len(tokens) + [0] * (length - len(tokens)) for tokens in sequences])
    thw = torch.tensor([(1, *grid) for row in grids for grid in row], dtype=torch.long).reshape(-1, 3)
    expected, deltas = model.get_rope_index(padded, (padded == PAD).int(), thw, attention_mask=mask)
    for row, tokens in enumerate(sequences):
        positions, following = mrope_positions(np.array(tokens), PAD, grids[row])
        assert np.array_equal(positions, expected[:, row, : len(tokens)].numpy())
        assert following == len(tokens) + deltas[row].item()


def test_hand_worked_prompt():
    tokens = [1, 1, *[PAD] * 6, 1]
    positions, following = mrope_positions(np.array(tokens), PAD, [(4, 6)])
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert following == 6


def test_adjacent_images_are_kept_apart():
    positions, following = mrope_positions(np.array([PAD] * 5), PAD, [(4, 4), (2, 2)])
    assert positions.tolist() == [[0, 0, 0, 0, 2], [0, 0, 1, 1, 2], [0, 1, 0, 1, 2]]
    assert following == 3


def test_wrong_pads_are_refused():
    with pytest.raises(DataError, match="5 image pads where its 1 images need 4"):
        mrope_positions(np.array([PAD] * 5), PAD, [(4, 4)])
    with pytest.raises(DataError, match="image pads from token 0"):
        mrope_positions(np.array([PAD, 1, PAD, PAD, PAD]), PAD, [(4, 4)])


def test_patch_positions_say_where_the_patches_lie():
    rows, columns = 4, 6
    row, column = np.mgrid[:rows, :columns].repeat(14, axis=1).repeat(14, axis=2)
    image = Image.fromarray(np.stack([row, column, row], axis=-1).astype(np.uint8))
    patches, grid = patchify(image)
    assert grid == (rows, columns)
    levels = patches.reshape(-1, 3, 2, 14, 14)[:, :2, 0, 7, 7]
    levels = levels * np.array([0.26862954, 0.26130258]) + np.array([0.48145466, 0.4578275])
    assert np.array_equal(np.round(levels * 255), patch_positions(rows, columns))
