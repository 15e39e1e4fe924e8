"""Random tiny checkpoints written by transformers, and batches whose positions transformers computes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from mmedexpert_jax.models import Model, load_model
from mmedexpert_jax.processing.batch import Batch

torch.set_num_threads(1)  # the models are tiny, and two threads wait for each other on a busy machine
IDS = {"vision_start_token_id": 195, "vision_end_token_id": 196, "image_token_id": 197, "video_token_id": 198}
VOCAB = 200
CHECKPOINTS = {  # family, tied, heads, key heads, layers, vision depth, blocks with full attention, window in pixels
    "qwen2_tied": ("qwen2_vl", True, 4, 2, 2, 2, (), 112),
    "qwen2_untied": ("qwen2_vl", False, 4, 1, 2, 1, (), 112),
    "qwen2_5_untied": ("qwen2_5_vl", False, 4, 4, 2, 2, (0,), 112),
    "qwen2_5_tied": ("qwen2_5_vl", True, 4, 2, 1, 3, (1,), 56),
}


@dataclass(frozen=True)
class Checkpoint:
    """One random model, in both frameworks."""

    directory: Path
    reference: Any
    model: Model
    params: dict


@dataclass(frozen=True)
class Prompts:
    """The same prompts as transformers' keyword arguments and as our batch."""

    inputs: dict[str, torch.Tensor]
    batch: Batch


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def hf_config(shape: tuple) -> Any:
    family, tied, heads, kv_heads, layers, depth, full_blocks, window = shape
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 193,
        "eos_token_id": 199,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    if family == "qwen2_vl":
        vision = {"depth": depth, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
        return transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **IDS)
    vision = {"depth": depth, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 44}
    vision |= {"fullatt_block_indexes": list(full_blocks), "window_size": window}
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **IDS)


def write_reference(name: str, directory: Path) -> Any:
    return write_shape(CHECKPOINTS[name], list(CHECKPOINTS).index(name), directory)


def write_shape(shape: tuple, seed: int, directory: Path) -> Any:
    """Saves a random checkpoint of a shape as in CHECKPOINTS, and returns transformers' model."""
    config = hf_config(shape)
    torch.manual_seed(seed)
    reference = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in reference.named_parameters():
            centre = 1.0 if "norm" in parameter_name and parameter_name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.2)
    reference.save_pretrained(directory)
    return reference


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A function from a name in CHECKPOINTS to the checkpoint, built once."""
    built: dict[str, Checkpoint] = {}

    def build(name: str) -> Checkpoint:
        if name not in built:
            directory = tmp_path_factory.mktemp(name)
            reference = write_reference(name, directory)
            built[name] = Checkpoint(directory, reference, *load_model(directory))
        return built[name]

    return build


def make_prompts(reference: Any, prompts: list[list], dummy_images: int = 0, tail: np.ndarray | None = None) -> Prompts:
    """Prompts from parts: n for n random text tokens, (rows, columns) for an image of so many patches.

    `tail` [B, R] appends given tokens to the rows. The random draws depend on the prompts alone.
    """
    draw = np.random.default_rng(0)
    rows, pixels, grids = [], [], []
    for number, prompt in enumerate(prompts):
        row: list[int] = []
        for part in prompt:
            if isinstance(part, int):
                row += draw.integers(0, 190, part).tolist()
                continue
            count = part[0] * part[1]
            row += [IDS["vision_start_token_id"], *[IDS["image_token_id"]] * (count // 4), IDS["vision_end_token_id"]]
            pixels.append(draw.standard_normal((count, 1176)).astype(np.float32))
            grids.append(part)
        rows.append(row + ([] if tail is None else tail[number].tolist()))
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), lengths.max()), 199, np.int64)  # the pad equals the EOS id
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = values
    valid = np.arange(tokens.shape[1]) < lengths[:, None]
    is_image = (tokens == IDS["image_token_id"]) & valid
    inputs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(valid.astype(np.int64))}
    inputs["mm_token_type_ids"] = torch.tensor(is_image.astype(np.int32))
    if grids:
        inputs["image_grid_thw"] = torch.tensor([(1, *grid) for grid in grids])
    positions, delta = reference.model.get_rope_index(**inputs)
    if grids:
        inputs["pixel_values"] = torch.tensor(np.concatenate(pixels))
    images = len(grids) + dummy_images
    size = max([len(image) for image in pixels] + [4]) if images else 0
    patches = np.zeros((images, size, 1176), np.float32)
    patch_positions = np.zeros((images, size, 2), np.int32)
    patch_counts = np.zeros(images, np.int32)
    starts = []
    for number, (image, grid) in enumerate(zip(pixels, grids, strict=True)):
        patches[number, : len(image)] = image
        patch_positions[number, : len(image)] = _merge_order(*grid)
        patch_counts[number] = len(image)
        starts += range(number * size // 4, number * size // 4 + len(image) // 4)
    vision_index = np.full(tokens.shape, -1, np.int32)
    vision_index[is_image] = starts
    batch = Batch(
        tokens=tokens.astype(np.int32),
        lengths=lengths,
        positions=positions.numpy().transpose(1, 0, 2).astype(np.int32),
        next_position=(lengths + delta.numpy()[:, 0]).astype(np.int32),
        vision_index=vision_index,
        patches=patches,
        patch_positions=patch_positions,
        patch_counts=patch_counts,
    )
    return Prompts(inputs, batch)


def _merge_order(rows: int, columns: int) -> np.ndarray:
    """(row, column) of the patches in the processor's order, blocks of 2 x 2."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    return grid.reshape(rows // 2, 2, columns // 2, 2, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2)


@pytest.fixture(scope="session")
def prompts():
    """`make_prompts` for the tests."""
    return make_prompts


@pytest.fixture(scope="session")
def reference_writer():
    """`write_reference` for the tests."""
    return write_reference


@pytest.fixture(scope="session")
def shape_writer():
    """`write_shape` for the tests."""
    return write_shape
