"""The vision tower of Qwen2-VL and Qwen2.5-VL: patches of images -> features in the text's width.

Shapes are those of images in rows, [I, P, ...]; of images side by side they are [1, N, ...].
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from mmedexpert_jax.models.attention import attend, attend_windows
from mmedexpert_jax.models.config import VisionConfig
from mmedexpert_jax.models.decoder import declare_layers, run_layers
from mmedexpert_jax.models.layers import (
    GatedMLP,
    LayerNorm,
    Linear,
    PatchConv,
    RMSNorm,
)
from mmedexpert_jax.models.packing import Packing
from mmedexpert_jax.models.rotary import axial, rotate

EPS = 1e-6  # of every norm of the tower, fixed in transformers


class Images(NamedTuple):
    """Layout of the patches of I images: each image in its own row, [I, P, ...], or all side by side, [1, N, ...]."""

    counts: Array  # [I] int32, patches of each
    packing: Packing | None = None  # of the patches that stand side by side

    @classmethod
    def of(cls, batch: Any) -> "Images":
        """Those of a batch."""
        counts, places = jnp.asarray(batch.patch_counts), jnp.asarray(batch.patch_places)
        return cls(counts, Packing.at(places, batch.patches.shape[1]) if len(places) else None)

    def numbers(self, size: int) -> Array:
        """The number of each patch's image, [I, P = `size`] or [1, N]; -1 on padding."""
        if self.packing is not None:
            return jnp.asarray(self.packing.index)[None] // self.packing.inverse.shape[-1]
        valid = jnp.arange(size) < self.counts[:, None]
        return jnp.where(valid, jnp.arange(len(self.counts))[:, None], -1)

    def rows(self, x: Array) -> Array:
        """[I, ..., P, D] or [1, ..., N, D] -> [I, ..., P, D]."""
        return x if self.packing is None else self.packing.unpack(x[0])[:, 0]

    def back(self, x: Array) -> Array:
        """The inverse of `rows`."""
        return x if self.packing is None else self.packing.pack(x[:, None])[None]

    def attend(self, queries: Array, keys: Array, values: Array) -> Array:
        """Attention of each image's patches among themselves, [..., H, P or N, D]."""
        queries, keys, values = map(self.rows, (queries, keys, values))
        return self.back(attend(queries, keys, values, self.counts, causal=False))


class PatchEmbed(nnx.Module):
    """The convolution under the checkpoint's name."""

    def __init__(self, config: VisionConfig, bias: bool = False):
        kernel = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = PatchConv(config.hidden_size, *kernel, bias=bias)

    def __call__(self, patches: Array) -> Array:
        """patches [..., C] -> [..., D]."""
        return self.proj(patches)


class VisionAttention(nnx.Module):
    """Attention of the patches of one image, with two-dimensional rotary positions in float32."""

    def __init__(self, config: VisionConfig):
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size, True)
        self.proj = Linear(config.hidden_size, config.hidden_size, True)
        self.num_heads = config.num_heads
        self.window = config.window_side**2

    def __call__(self, x: Array, rope: tuple[Array, Array], images: Images, windows: Array | None) -> Array:
        """x [I, P, D]; windows [I, P] are ids of windows, each of neighbours in P; None: an image's patches see all."""
        axes = "images patches (qkv heads head_dim) -> qkv images heads patches head_dim"
        queries, keys, values = rearrange(self.qkv(x), axes, qkv=3, heads=self.num_heads)
        cos, sin = rope
        queries = rotate(queries.astype(jnp.float32), cos, sin).astype(x.dtype)
        keys = rotate(keys.astype(jnp.float32), cos, sin).astype(x.dtype)
        if windows is None:
            mixed = images.attend(queries, keys, values)
        else:
            mixed = attend_windows(queries, keys, values, windows, self.window)
        return self.proj(rearrange(mixed, "images heads patches head_dim -> images patches (heads head_dim)"))


class QuickGeluMLP(nnx.Module):
    """Qwen2-VL's: fc2(quick_gelu(fc1(x))), quick_gelu(x) = x sigmoid(1.702 x)."""

    def __init__(self, width: int, hidden: int):
        self.fc1 = Linear(width, hidden, True)
        self.fc2 = Linear(hidden, width, True)

    def __call__(self, x: Array) -> Array:
        """x [..., D] -> [..., D]."""
        x = self.fc1(x)
        return self.fc2(x * jax.nn.sigmoid(1.702 * x))


class VisionBlock(nnx.Module):
    """Pre-norm block. Qwen2-VL: LayerNorm and quick_gelu; Qwen2.5-VL: RMSNorm and SwiGLU with bias."""

    def __init__(self, config: VisionConfig):
        width, hidden = config.hidden_size, config.intermediate_size
        self.norm1 = _norm(config)
        self.norm2 = _norm(config)
        self.attn = VisionAttention(config)
        if config.family == "qwen2_vl":
            self.mlp: nnx.Module = QuickGeluMLP(width, hidden)
        else:
            self.mlp = GatedMLP(width, hidden, True)

    def __call__(self, x: Array, rope: tuple[Array, Array], images: Images, windows: Array | None) -> Array:
        """x [I, P, D] -> [I, P, D]."""
        x = x + self.attn(self.norm1(x), rope, images, windows)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Joins the 2 x 2 patches that follow one another in the processor's order into one feature."""

    def __init__(self, config: VisionConfig):
        width = config.hidden_size * config.merge_size**2
        self.ln_q = _norm(config)
        self.mlp = nnx.Dict(
            {
                "0": Linear(width, width, True),
                "2": Linear(width, config.out_hidden_size, True),
            }
        )
        self.width = width

    def __call__(self, x: Array) -> Array:
        """x [I, P, D] -> [I, P / 4, D of the text]."""
        x, merged = self.ln_q(x), self.width // x.shape[-1]
        x = rearrange(x, "images (tokens merged) width -> images tokens (merged width)", merged=merged)
        return self.mlp["2"](jax.nn.gelu(self.mlp["0"](x), approximate=False))


class VisionTower(nnx.Module):
    """Each image sees itself alone; padding patches are masked as keys and their features never read."""

    def __init__(self, config: VisionConfig, stacked: bool = False):
        self.patch_embed = PatchEmbed(config)
        self.blocks = declare_layers(functools.partial(VisionBlock, config), config.depth, stacked)
        self.merger = PatchMerger(config)
        self.config = config

    def __call__(self, patches: Array, positions: Array, images: Images, remat: bool = False) -> Array:
        """patches [I, P, C], positions [I, P, 2] (row, column) -> features [I, P / 4, D].

        Qwen2.5-VL works window by window: merged tokens are put in the order of their windows, padding last, and the
        features back in their own.
        """
        x = self.patch_embed(patches)
        if self.config.family == "qwen2_vl":
            windows, back = None, None
        else:
            windows, order = self.window_order(positions, images)
            x, positions, back = _reorder(x, order), _reorder(positions, order), jnp.argsort(order)
        rope = self.rope(positions)
        whole = np.isin(np.arange(self.config.depth), self.config.full_attention_blocks)  # [L] bool

        def run(block: VisionBlock, index: Any, x: Array) -> tuple[Array, tuple]:
            if windows is None or isinstance(index, int):
                return block(x, rope, images, windows if windows is not None and not whole[index] else None), ()
            full, windowed = (lambda x, ids=ids: block(x, rope, images, ids) for ids in (None, windows))
            return jax.lax.cond(jnp.asarray(whole)[index], full, windowed, x), ()

        features = self.merger(run_layers(self.blocks, run, x, remat=remat)[0])
        return features if back is None else _reorder(features, back)

    def rope(self, positions: Array) -> tuple[Array, Array]:
        """cos and sin [I, 1, P, D / 2], float32."""
        return axial(positions, self.config.head_dim)

    def windows(self, positions: Array) -> Array:
        """Ids [I, P] of the square windows, counted from each image's upper left corner."""
        rows, columns = positions[..., 0] // self.config.window_side, positions[..., 1] // self.config.window_side
        return rows * (jnp.max(columns) + 1) + columns

    def window_order(self, positions: Array, images: Images) -> tuple[Array, Array]:
        """Ids [I, P] of the windows in their order, and the order [I, P / 4] of the merged tokens that gives it; images
        stay where they are."""
        merged = self.config.merge_size**2
        numbers = images.numbers(positions.shape[1])
        windows = self.windows(positions)
        windows = windows + numbers * (jnp.max(windows) + 1)
        windows = jnp.where(numbers < 0, jnp.iinfo(jnp.int32).max, windows)
        order = jnp.argsort(windows[:, ::merged], stable=True)
        return _reorder(windows, order), order


def _reorder(x: Array, order: Array) -> Array:
    """Groups of neighbours in x [I, N * g, ...], g for each index, in the order [I, N]."""
    groups = x.reshape(*order.shape, -1)  # what follows a place of x is one row of its group, whatever its axes
    return jnp.take_along_axis(groups, order[..., None], axis=1).reshape(x.shape)


def _norm(config: VisionConfig) -> nnx.Module:
    kind = LayerNorm if config.family == "qwen2_vl" else RMSNorm
    return kind(config.hidden_size, EPS)
