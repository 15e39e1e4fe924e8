"""The plain vision transformer of SigLIP and CLIP: square images of one size, learned positions, full attention.

Both have the same blocks. CLIP's has a class token before the patches, a norm before the blocks and no bias in the
patch convolution (`VisionConfig.class_token`); which activation its MLPs have, and after how many blocks features are
read, are fields of the config. Tensor names are those of transformers' SiglipVisionModel and CLIPVisionModel.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from mmedexpert_jax.models.attention import attend
from mmedexpert_jax.models.config import Keys, VisionConfig
from mmedexpert_jax.models.decoder import Embedding, declare_layers, run_layers
from mmedexpert_jax.models.layers import ACTIVATIONS, LayerNorm, Linear, PatchConv, abstract_param


def read_vit(
    vision: Keys, family: str, width: int, *, class_token: bool = False, feature_blocks: int = 0
) -> VisionConfig:
    """The tower of a config.json's vision section, whose absent keys take transformers' class defaults.

    Args:
        vision: the section, of model_type siglip_vision_model, or clip_vision_model with `class_token`.
        family: the model_type of the whole.
        width: of the decoder.
        class_token: CLIP's form instead of SigLIP's.
        feature_blocks: as in VisionConfig.
    """
    activation = vision.text("hidden_act", "quick_gelu" if class_token else "gelu_pytorch_tanh")
    if activation not in ACTIVATIONS:
        raise vision.wrong("hidden_act", f"one of {', '.join(ACTIVATIONS)}")
    image, patch = vision.integer("image_size", 224), vision.integer("patch_size", 32 if class_token else 16)
    if image < patch:
        raise vision.wrong("image_size", f"at least the {patch} pixels of a patch")
    config = VisionConfig(
        family,
        depth=vision.integer("num_hidden_layers", 12),
        hidden_size=vision.integer("hidden_size", 768),
        intermediate_size=vision.integer("intermediate_size", 3072),
        num_heads=vision.integer("num_attention_heads", 12),
        out_hidden_size=width,
        in_channels=vision.integer("num_channels", 3),
        patch_size=patch,
        temporal_patch_size=1,
        merge_size=1,
        num_positions=(image // patch) ** 2 + class_token,
        image_size=image,
        eps=vision.positive("layer_norm_eps", 1e-5 if class_token else 1e-6),
        activation=activation,
        class_token=class_token,
        feature_blocks=feature_blocks,
    )
    if config.hidden_size % config.num_heads:
        raise vision.wrong("num_attention_heads", f"a divisor of hidden_size {config.hidden_size}")
    return config


def write_vit(config: VisionConfig) -> dict[str, Any]:
    """The vision section of config.json."""
    return {
        "model_type": "clip_vision_model" if config.class_token else "siglip_vision_model",
        "attention_dropout": 0.0,
        "hidden_act": config.activation,
        "hidden_size": config.hidden_size,
        "image_size": config.image_size,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.eps,
        "num_attention_heads": config.num_heads,
        "num_channels": config.in_channels,
        "num_hidden_layers": config.depth,
        "patch_size": config.patch_size,
    }


def hub_name(name: str) -> str:
    """A tensor's name in the hub's files of models with such a tower: Gemma 3, LLaVA."""
    if name.startswith("vision_tower."):
        return f"vision_tower.vision_model.{name.removeprefix('vision_tower.')}"
    return name if name.startswith("multi_modal_projector.") else f"language_model.{name}"


class ViTAttention(nnx.Module):
    """Attention of the patches of one image among themselves; all projections have biases."""

    def __init__(self, config: VisionConfig):
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(width, width, True) for _ in range(4))
        self.num_heads = config.num_heads

    def __call__(self, x: Array, counts: Array) -> Array:
        """x [I, P, D], of which `counts` [I] are seen -> [I, P, D]."""
        axes = "images patches (heads head_dim) -> images heads patches head_dim"
        queries, keys, values = (
            rearrange(project(x), axes, heads=self.num_heads) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(queries, keys, values, counts, causal=False)
        return self.out_proj(rearrange(mixed, "images heads patches head_dim -> images patches (heads head_dim)"))


class ViTMLP(nnx.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, config: VisionConfig):
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, True)
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x: Array) -> Array:
        """x [..., D] -> [..., D]."""
        return self.fc2(self.activation(self.fc1(x)))


class ViTBlock(nnx.Module):
    """Pre-norm: attention, then the MLP."""

    def __init__(self, config: VisionConfig):
        self.layer_norm1 = LayerNorm(config.hidden_size, config.eps)
        self.self_attn = ViTAttention(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.eps)
        self.mlp = ViTMLP(config)

    def __call__(self, x: Array, counts: Array) -> Array:
        """x [I, P, D] -> [I, P, D]."""
        x = x + self.self_attn(self.layer_norm1(x), counts)
        return x + self.mlp(self.layer_norm2(x))


class ViTEmbeddings(nnx.Module):
    """Patches by one product, learned positions added, CLIP's class token before them."""

    def __init__(self, config: VisionConfig):
        self.class_embedding = abstract_param(config.hidden_size) if config.class_token else None
        kernel = config.in_channels, config.patch_size, config.patch_size
        self.patch_embedding = PatchConv(config.hidden_size, *kernel, bias=not config.class_token)
        self.position_embedding = Embedding(config.num_positions, config.hidden_size)
        self.side = config.image_size // config.patch_size

    def __call__(self, patches: Array, positions: Array) -> Array:
        """patches [I, P, C] at positions [I, P, 2] (row, column) -> [I, P, D], with a class token [I, 1 + P, D]."""
        x = self.patch_embedding(patches)
        place = positions[..., 0] * self.side + positions[..., 1]
        if self.class_embedding is None:
            return x + self.position_embedding(place)
        first = self.class_embedding[...] + self.position_embedding(jnp.zeros((len(x), 1), jnp.int32))
        return jnp.concatenate([first, x + self.position_embedding(place + 1)], axis=1)


class VisionTransformer(nnx.Module):
    """Each image is a row of its own; padding patches are masked as keys and their features never read."""

    def __init__(self, config: VisionConfig, stacked: bool):
        self.embeddings = ViTEmbeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.eps) if config.class_token else None  # so it is spelt
        self.encoder = nnx.Dict({"layers": declare_layers(functools.partial(ViTBlock, config), config.depth, stacked)})
        self.post_layernorm = LayerNorm(config.hidden_size, config.eps)
        self.config = config

    def __call__(self, patches: Array, positions: Array, counts: Array, remat: bool = False) -> Array:
        """patches [I, P, C], positions [I, P, 2], counts [I] -> features of the patches [I, P, D].

        They are those after all blocks and the last norm, or those after `feature_blocks` blocks.
        """
        x = self.embeddings(patches, positions)
        if self.pre_layrnorm is not None:
            x, counts = self.pre_layrnorm(x), counts + 1
        blocks = self.config.feature_blocks or self.config.depth

        def run(block: ViTBlock, index: Any, x: Array) -> tuple[Array, tuple]:
            if not isinstance(index, jax.Array):
                return (block(x, counts) if index < blocks else x), ()
            after = block(x, counts)  # scanned: a slice of the stack without its last blocks would be a copy of it
            return (after if blocks == self.config.depth else jnp.where(index < blocks, after, x)), ()

        x, _ = run_layers(self.encoder["layers"], run, x, remat=remat)
        x = x if self.config.feature_blocks else self.post_layernorm(x)
        return x[:, 1:] if self.config.class_token else x
