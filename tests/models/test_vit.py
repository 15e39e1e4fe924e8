"""The plain vision transformer against transformers' SigLIP and CLIP towers with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from flax import nnx
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from mmedexpert_jax.models.config import Keys
from mmedexpert_jax.models.tree import flatten, nest, stack
from mmedexpert_jax.models.vit import VisionTransformer, read_vit, write_vit

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL |= {"image_size": 56, "patch_size": 14}
TOWERS = {
    "siglip": (SiglipVisionConfig(**SMALL, vision_use_head=False), SiglipVisionModel),
    "clip": (CLIPVisionConfig(**SMALL), CLIPVisionModel),
    "clip_gelu": (CLIPVisionConfig(**SMALL, hidden_act="gelu"), CLIPVisionModel),
}


def bound(tower: VisionTransformer, params: dict) -> VisionTransformer:
    graphdef, state = nnx.split(tower, nnx.Param)
    variables = {
        ".".join(map(str, path)): (path, variable) for path, variable in dict(nnx.to_flat_state(state)).items()
    }
    flat = flatten(params)
    assert set(variables) == set(flat)
    filled = [(path, variable.replace(flat[name])) for name, (path, variable) in variables.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    ("kind", "layer"), [("siglip", None), ("siglip", -2), ("clip", -2), ("clip", -1), ("clip_gelu", -2)]
)
def test_features_equal_transformers(kind, layer, stacked):
    """Of two images and one of padding; after all blocks and the last norm, or before the last blocks."""
    hf, model = TOWERS[kind]
    torch.manual_seed(0)
    reference = model(hf).eval()
    for name, parameter in reference.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    flat = {name.removeprefix("vision_model."): tensor.numpy() for name, tensor in reference.state_dict().items()}
    blocks = 0 if layer is None else hf.num_hidden_layers + 1 + layer
    section = Keys({**hf.to_dict()})
    config = read_vit(section, "any", 32, class_token=kind != "siglip", feature_blocks=blocks)
    assert write_vit(config).items() <= hf.to_dict().items()
    params = jax.tree.map(jnp.asarray, nest(flat))
    tower = bound(VisionTransformer(config, stacked), stack(params) if stacked else params)

    pixels = np.random.default_rng(0).standard_normal((2, 3, 56, 56), np.float32)
    patches = rearrange(pixels, "i c (h a) (w b) -> i (h w) (c a b)", a=14, b=14)
    rows, columns = np.divmod(np.arange(16), 4)
    order = np.random.default_rng(1).permutation(16)  # any order, given by the positions
    positions = np.stack([rows, columns], -1)[order].astype(np.int32)
    padded = np.concatenate([patches[:, order], np.zeros_like(patches[:1])])
    where = np.stack([positions, positions, np.zeros_like(positions)])
    with jax.default_matmul_precision("highest"):
        found = np.asarray(tower(padded, where, np.array([16, 16, 0], np.int32)))
    with torch.no_grad():
        said = reference(torch.tensor(pixels), output_hidden_states=True)
    expected = (said.last_hidden_state if layer is None else said.hidden_states[layer]).numpy()
    expected = expected if kind == "siglip" else expected[:, 1:]  # without the class token
    assert np.abs(found[:2] - expected[:, order]).max() < 1e-4 * expected.std()
    assert np.isfinite(found).all()
