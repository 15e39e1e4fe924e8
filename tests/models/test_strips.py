"""Images of unlike sizes side by side: what each tower computes is what it computes of images in rows of their own."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.models.packing import Packing
from mmedexpert_jax.models.tree import flatten, stack
from mmedexpert_jax.models.vision import Images, VisionTower

NAMES = ["qwen2_tied", "qwen2_untied", "qwen2_5_untied", "qwen2_5_tied"]
MIXED = [[3, (4, 6), 2, (10, 2), 1], [5], [(8, 8), 2, (2, 2), 4]]
TOKENS = np.arange(3 * 2 * 3, dtype=np.int32).reshape(3, 2, 3)
TOLERANCE = 1e-4  # of the spread of the logits, as against transformers elsewhere


def side_by_side(batch, room):
    """A batch of rows of images, with the images one after another in one strip of `room` patches."""
    counts, size = batch.patch_counts, batch.patches.shape[1]
    starts = np.cumsum(counts) - counts
    places = np.where(np.arange(size) < counts[:, None], starts[:, None] + np.arange(size), -1).astype(np.int32)
    strip = {}
    for name in ("patches", "patch_positions"):
        rows = getattr(batch, name)
        strip[name] = np.zeros((1, room, rows.shape[-1]), rows.dtype)
        strip[name][0, : counts.sum()] = np.concatenate([row[:count] for row, count in zip(rows, counts, strict=True)])
    index = batch.vision_index
    image, place = np.maximum(index, 0) // (size // 4), np.maximum(index, 0) % (size // 4)
    moved = np.where(index < 0, -1, starts[image] // 4 + place).astype(np.int32)
    return dataclasses.replace(batch, vision_index=moved, patch_places=places, **strip)


@pytest.mark.parametrize("padding", [0, 36])
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers(name, padding, checkpoint, prompts):
    case = checkpoint(name)
    mixed = prompts(case.reference, MIXED, dummy_images=padding > 0)
    strip = side_by_side(mixed.batch, int(mixed.batch.patch_counts.sum()) + padding)
    with torch.no_grad():
        expected = case.reference(**mixed.inputs).logits.numpy()
    valid = mixed.inputs["attention_mask"].numpy().astype(bool)
    for params in (case.params, stack(case.params)):
        logits = np.asarray(case.model.logits(params, strip))
        assert np.abs(logits - expected)[valid].max() < TOLERANCE * expected[valid].std()


def loss(params, model, remat, batch):
    logits = model.unembed(params, model.extend(params, batch, TOKENS, remat=remat)[1])
    return -jax.nn.log_softmax(logits)[..., 7].mean()


@pytest.mark.parametrize("name", ["qwen2_untied", "qwen2_5_tied"])
def test_gradients_of_all_parameters_equal_those_of_rows(name, checkpoint, prompts):
    case = checkpoint(name)
    rows = prompts(case.reference, MIXED).batch
    gradient = jax.jit(jax.grad(loss), static_argnums=(1, 2))
    plain = flatten(gradient(case.params, case.model, False, rows))
    for remat in (False, True):
        for leaf, found in flatten(gradient(case.params, case.model, remat, side_by_side(rows, 200))).items():
            assert np.abs(found - plain[leaf]).max() < 1e-5 * np.abs(plain[leaf]).max() + 1e-7, leaf
    assert np.abs(plain["visual.patch_embed.proj.weight"]).max() > 0


class Places(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_both_ways_of_a_packing_are_known_from_its_places(self):
        places = np.array([[4, 5, -1], [-1, -1, -1], [0, 1, 2]], np.int32)
        packing = self.variant(partial(Packing.at, capacity=7))(places)
        np.testing.assert_array_equal(packing.index, [6, 7, 8, -1, 0, 1, -1])
        rows = np.arange(1, 8, dtype=np.float32)[:, None]
        unpacked = packing.unpack(rows)[..., 0]
        np.testing.assert_array_equal(unpacked[:, 0], [[5, 6, 0], [0, 0, 0], [1, 2, 3]])
        np.testing.assert_array_equal(packing.pack(unpacked[..., None])[:, 0], [1, 2, 3, 0, 5, 6, 0])


@pytest.mark.parametrize(("size", "full"), [("qwen2_vl_2b", ()), ("qwen2_5_vl_7b", (1,))])
def test_unlike_images_take_little_more_than_their_share_of_the_operations(size, full):
    """Of two blocks as wide as published: images of 1,024, 400 and 144 patches, 0.51 of those in rows."""
    config = dataclasses.replace(PUBLISHED[size].vision, depth=2, full_attention_blocks=full)
    graph, state = nnx.split(VisionTower(config))
    counts, width = np.array([1024, 400, 144], np.int32), 1176

    def operations(rows, patches, packing):
        def run(state, patches, positions):
            return nnx.merge(graph, state)(patches, positions, Images(counts, packing))

        shapes = ((rows, patches, width), jnp.float32), ((rows, patches, 2), jnp.int32)
        compiled = jax.jit(run).lower(state, *(jax.ShapeDtypeStruct(*shape) for shape in shapes)).compile()
        return compiled.cost_analysis()["flops"]

    starts = np.cumsum(counts) - counts
    places = np.where(np.arange(1024) < counts[:, None], starts[:, None] + np.arange(1024), -1)
    assert operations(1, 1568, Packing.at(places, 1568)) < 0.6 * operations(3, 1024, None)
