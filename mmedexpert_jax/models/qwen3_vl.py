"""Qwen3-VL (dense): config, vision tower, network.

Against Qwen2.5-VL: the tower adds learned positions, resampled to each image's grid, to its rotary ones, attends to the
whole image everywhere, and hands the features of some of its blocks to the first layers of the decoder (DeepStack, Meng
et al. 2024); the decoder normalises queries and keys by head, has no biases, heads of a width of their own, and M-RoPE
whose three positions take turns over the frequencies.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.lora import memory_name
from mmedexpert_jax.models.config import Keys, ModelConfig, TextConfig, VisionConfig
from mmedexpert_jax.models.decoder import Embedding, NetworkBase, declare_layers, run_layers
from mmedexpert_jax.models.layers import LayerNorm, Linear, place_features
from mmedexpert_jax.models.rotary import axial
from mmedexpert_jax.models.vision import EPS, Images, PatchEmbed, VisionAttention

hub_name = memory_name  # of a tensor in the hub's files


# -- config.json -------------------------------------------------------------------------------------------------------


def read_text(text: Keys) -> TextConfig:
    """The decoder; absent keys take transformers' class defaults."""
    rope = text.rope()
    if (kind := rope.text("rope_type", "") or rope.text("type", "default")) not in ("default", "mrope"):
        raise rope.wrong("rope_type", "default, the only one that is supported")
    if not rope.flag("mrope_interleaved", True):
        raise rope.wrong("mrope_interleaved", f"true, as every Qwen3-VL has ({kind})")
    if text.flag("attention_bias") or text.text("hidden_act", "silu") != "silu":
        raise DataError(f"{text.place}: attention_bias must be false and hidden_act silu, as in every Qwen3-VL")
    heads = text.integer("num_attention_heads", 32)
    shared = text.values.get("num_key_value_heads", 32) is None
    return TextConfig(
        vocab_size=text.integer("vocab_size", 151936),
        hidden_size=text.integer("hidden_size", 4096),
        intermediate_size=text.integer("intermediate_size", 22016),
        num_layers=text.integer("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=heads if shared else text.integer("num_key_value_heads", 32),
        rms_norm_eps=text.positive("rms_norm_eps", 1e-6),
        rope_theta=float(rope.positive("rope_theta", text.positive("rope_theta", 5e5))),
        mrope_section=cast(tuple[int, int, int], rope.integers("mrope_section", (24, 20, 20), 3)),
        max_position_embeddings=text.integer("max_position_embeddings", 128000),
        head_width=text.integer("head_dim", 128),
        bias=False,
        qk_norm=True,
        mrope_interleaved=True,
    )


def read_vision(vision: Keys) -> VisionConfig:
    """The tower; absent keys take transformers' class defaults."""
    if vision.text("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise vision.wrong("hidden_act", "gelu_pytorch_tanh, which Qwen3-VL has")
    config = VisionConfig(
        "qwen3_vl",
        depth=vision.integer("depth", 27),
        hidden_size=vision.integer("hidden_size", 1152),
        intermediate_size=vision.integer("intermediate_size", 4304),
        num_heads=vision.integer("num_heads", 16),
        out_hidden_size=vision.integer("out_hidden_size", 3584),
        in_channels=vision.integer("in_channels", 3),
        patch_size=vision.integer("patch_size", 16),
        temporal_patch_size=vision.integer("temporal_patch_size", 2),
        merge_size=vision.integer("spatial_merge_size", 2),
        num_positions=vision.integer("num_position_embeddings", 2304),
        deepstack_blocks=vision.integers("deepstack_visual_indexes", (8, 16, 24)),
    )
    if round(config.num_positions**0.5) ** 2 != config.num_positions:
        raise vision.wrong("num_position_embeddings", "a square")
    if any(index >= config.depth for index in config.deepstack_blocks):
        raise vision.wrong("deepstack_visual_indexes", f"a list of blocks below the depth of {config.depth}")
    return config


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The text and vision sections of config.json, as the hub's files have them."""
    text, vision = config.text, config.vision
    return {
        "text_config": {"model_type": "qwen3_vl_text"}
        | config.text_to_hf(
            attention_bias=False,
            attention_dropout=0.0,
            head_dim=text.head_dim,
            hidden_act="silu",
            initializer_range=0.02,
            rope_scaling={
                "mrope_interleaved": True,
                "mrope_section": list(text.mrope_section),
                "rope_type": "default",
            },
        ),
        "vision_config": {
            "model_type": "qwen3_vl",
            "deepstack_visual_indexes": list(vision.deepstack_blocks),
            "depth": vision.depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": vision.hidden_size,
            "in_channels": vision.in_channels,
            "initializer_range": 0.02,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "num_position_embeddings": vision.num_positions,
            "out_hidden_size": vision.out_hidden_size,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        },
    }


# -- network -----------------------------------------------------------------------------------------------------------


class TowerMLP(nnx.Module):
    """fc2(gelu(fc1(x))), the GELU by its tanh approximation."""

    def __init__(self, width: int, hidden: int):
        self.linear_fc1 = Linear(width, hidden, True)
        self.linear_fc2 = Linear(hidden, width, True)

    def __call__(self, x: Array) -> Array:
        """x [..., D] -> [..., D]."""
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=True))


class TowerBlock(nnx.Module):
    """Pre-norm: attention over the whole image, then the MLP."""

    def __init__(self, config: VisionConfig):
        self.norm1 = LayerNorm(config.hidden_size, EPS)
        self.norm2 = LayerNorm(config.hidden_size, EPS)
        self.attn = VisionAttention(config)
        self.mlp = TowerMLP(config.hidden_size, config.intermediate_size)

    def __call__(self, x: Array, rope: tuple[Array, Array], images: Images) -> Array:
        """x [I, P, D] -> [I, P, D]."""
        x = x + self.attn(self.norm1(x), rope, images, None)
        return x + self.mlp(self.norm2(x))


class Merger(nnx.Module):
    """Joins the 2 x 2 patches of a merged token; normalised one by one before, or, for DeepStack, together after."""

    def __init__(self, config: VisionConfig, joined_norm: bool):
        width = config.hidden_size * config.merge_size**2
        self.norm = LayerNorm(width if joined_norm else config.hidden_size, EPS)
        self.linear_fc1 = Linear(width, width, True)
        self.linear_fc2 = Linear(width, config.out_hidden_size, True)
        self.joined_norm, self.group = joined_norm, config.merge_size**2

    def __call__(self, x: Array) -> Array:
        """x [I, P, D] -> [I, P / 4, D of the text]."""
        x = x if self.joined_norm else self.norm(x)
        x = rearrange(x, "images (tokens merged) width -> images tokens (merged width)", merged=self.group)
        x = self.norm(x) if self.joined_norm else x
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=False))


class Qwen3VisionTower(nnx.Module):
    """Each image sees itself alone; padding patches are masked as keys and their features never read."""

    def __init__(self, config: VisionConfig, stacked: bool):
        self.patch_embed = PatchEmbed(config, bias=True)
        self.pos_embed = Embedding(config.num_positions, config.hidden_size)
        self.blocks = declare_layers(functools.partial(TowerBlock, config), config.depth, stacked)
        self.merger = Merger(config, joined_norm=False)
        self.deepstack_merger_list = nnx.List([Merger(config, joined_norm=True) for _ in config.deepstack_blocks])
        self.config = config

    def __call__(self, patches: Array, positions: Array, images: Images, remat: bool) -> tuple[Array, list[Array]]:
        """patches [I, P, C], positions [I, P, 2] (row, column) -> features [I, P / 4, D], DeepStack's; of images that
        stand side by side [1, N, ...]."""
        x = self.patch_embed(patches)
        x = x + self.learned_positions(positions, images).astype(x.dtype)
        rope = axial(positions, self.config.head_dim)

        def run(block: TowerBlock, _: Any, x: Array) -> tuple[Array, Array]:
            x = block(x, rope, images)
            return x, x

        x, of_block = run_layers(self.blocks, run, x, remat=remat)
        pairs = zip(self.deepstack_merger_list, self.config.deepstack_blocks, strict=True)
        return self.merger(x), [merge(of_block[index]) for merge, index in pairs]

    def learned_positions(self, positions: Array, images: Images) -> Array:
        """The square table of positions, resampled to each image's grid bilinearly, corners on corners: [I, P, D]."""
        side = round(self.config.num_positions**0.5)
        rows = images.rows(positions)
        last = jnp.max(rows, axis=1, keepdims=True)  # rows and columns of the grid less 1; padding has zeros
        last = images.back(jnp.broadcast_to(last, rows.shape))
        place = positions.astype(jnp.float32) * (side - 1) / jnp.maximum(last, 1)
        low = jnp.floor(place).astype(jnp.int32)
        high = jnp.minimum(low + 1, side - 1)
        share = place - low  # of the higher neighbour
        total = jnp.zeros((), jnp.float32)
        for rows, row_share in ((low[..., 0], 1 - share[..., 0]), (high[..., 0], share[..., 0])):
            for columns, column_share in ((low[..., 1], 1 - share[..., 1]), (high[..., 1], share[..., 1])):
                total = total + self.pos_embed(rows * side + columns) * (row_share * column_share)[..., None]
        return total


class Qwen3VL(NetworkBase):
    """The whole network; attribute paths are the tensor names of the checkpoints without the prefixes of memory."""

    def __init__(self, config: ModelConfig, stacked: bool = False):
        super().__init__(config, stacked)
        self.visual = Qwen3VisionTower(config.vision, stacked)

    def embed(self, batch: Any, remat: bool = False) -> tuple[Array, tuple[Array, ...]]:
        """Token embeddings [B, T, D] with the images' features in their places, and what the first layers add there."""
        x = self.model.embed_tokens(batch.tokens)
        if batch.patches.shape[0] == 0:
            return x, ()
        features, deep = self.visual(batch.patches, batch.patch_positions, Images.of(batch), remat)
        added = tuple(place_features(level, batch.vision_index, jnp.zeros_like(x)) for level in deep)
        return place_features(features, batch.vision_index, x), added
