"""Gemma 3 (Gemma Team 2025, arXiv 2503.19786) and MedGemma: config, network, processor; the text-only sizes too.

A SigLIP tower sees every image as one square; its patches are averaged to 256 soft tokens, projected, and put among the
text, where the tokens of an image see one another. Five decoder layers of six see a window of the last tokens only and
have rotary frequencies of their own. Norms stand before and after attention and MLP, with a weight that is added to 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from einops import reduce
from flax import nnx
from jax import Array

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.models import vit
from mmedexpert_jax.models.config import Keys, ModelConfig, TextConfig, VisionConfig
from mmedexpert_jax.models.decoder import Attention, Embedding, NetworkBase, Rope, TextAttention
from mmedexpert_jax.models.layers import GatedMLP, RMSNorm, abstract_param, place_features
from mmedexpert_jax.processing.chat_template import find_template
from mmedexpert_jax.processing.gemma3_prompts import GEMMA3_TEMPLATE, GemmaProcessor, NoPictures, SoftTokens
from mmedexpert_jax.processing.processor import (
    load_tokenizer,
    read_image_settings,
)

TOKENS = {  # as in models/config.py
    "image_token_id": ("image_token_index", 262144),
    "vision_start_token_id": ("boi_token_index", 255999),
    "vision_end_token_id": ("eoi_token_index", 256000),
}
BOS, EOS, TIED = 2, 1, True  # where no file says otherwise

# -- config.json -------------------------------------------------------------------------------------------------------


def read_text(text: Keys) -> TextConfig:
    """The decoder; absent keys take transformers' class defaults."""
    for key in ("attention_bias", "use_bidirectional_attention"):
        if text.values.get(key):
            raise text.wrong(key, "false, as in every Gemma 3")
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        if text.values.get(key) is not None:
            raise text.wrong(key, "null: Gemma 3 caps no scores, which Gemma 2 did")
    if text.text("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise text.wrong("hidden_activation", "gelu_pytorch_tanh, which Gemma 3 has")
    layers, head_width = text.integer("num_hidden_layers", 26), text.integer("head_dim", 256)
    theta, factor, near = _rotary(text)
    return TextConfig(
        vocab_size=text.integer("vocab_size", 262208),
        hidden_size=text.integer("hidden_size", 2304),
        intermediate_size=text.integer("intermediate_size", 9216),
        num_layers=layers,
        num_heads=text.integer("num_attention_heads", 8),
        num_kv_heads=text.integer("num_key_value_heads", 4),
        rms_norm_eps=text.positive("rms_norm_eps", 1e-6),
        rope_theta=theta,
        mrope_section=(head_width // 2, 0, 0),  # all frequencies follow the one position
        max_position_embeddings=text.integer("max_position_embeddings", 131072),
        head_width=head_width,
        bias=False,
        qk_norm=True,
        activation="gelu_pytorch_tanh",
        query_width=float(text.positive("query_pre_attn_scalar", 256)),
        rope_factor=factor,
        window=text.integer("sliding_window", 4096),
        windowed=_windowed(text, layers),
        window_theta=near,
    )


def _windowed(text: Keys, layers: int) -> tuple[bool, ...]:
    """Layer by layer, whether it has the window: by name, or all but each sixth."""
    kinds = {"sliding_attention": True, "full_attention": False}
    named = text.values.get("layer_types")
    if named is None:
        pattern = text.integer("sliding_window_pattern", text.integer("_sliding_window_pattern", 6))
        return tuple((layer + 1) % pattern > 0 for layer in range(layers))
    if not isinstance(named, list | tuple) or len(named) != layers or any(kind not in kinds for kind in named):
        raise text.wrong("layer_types", f"{layers} of {', '.join(kinds)}")
    return tuple(kinds[kind] for kind in named)


def _rotary(text: Keys) -> tuple[float, float, float]:
    """theta and the linear factor of global layers, theta of those with a window: of transformers 5's file, or 4's."""
    both = text.section("rope_parameters")
    whole = both.section("full_attention") if both.values else text.section("rope_scaling")
    near = both.section("sliding_attention")
    kind = whole.text("rope_type", "") or whole.text("type", "default")
    if kind not in ("default", "linear") or near.text("rope_type", "default") != "default":
        raise DataError(
            f"{whole.place}: rope type {kind!r} is not supported; Gemma 3 has linear, and default in windows"
        )
    theta = whole.positive("rope_theta", text.positive("rope_theta", 1e6))
    local = near.positive("rope_theta", text.positive("rope_local_base_freq", 1e4))
    return float(theta), float(whole.positive("factor", 1.0)) if kind == "linear" else 1.0, float(local)


def read_vision(vision: Keys) -> VisionConfig:
    """The tower; of a text-only model none. What depends on the rest is `read_whole`'s."""
    if not vision.values:
        return VisionConfig("gemma3_text", 0, 0, 0, 1, 0, image_size=1)
    return vit.read_vit(vision, "gemma3", 0)


def read_whole(keys: Keys, text: TextConfig, vision: VisionConfig) -> dict[str, Any]:
    """Fields of VisionConfig from the top of config.json: the images' tokens."""
    if keys.text("model_type", "") == "gemma3_text":
        return {"out_hidden_size": text.hidden_size}
    if not vision.depth:
        raise DataError("config.json: vision_config is missing; a Gemma 3 without a tower is a gemma3_text")
    count, side = keys.integer("mm_tokens_per_image", 256), vision.image_size // vision.patch_size
    across = round(count**0.5)
    if across**2 != count or side % across:
        raise DataError(
            f"config.json: mm_tokens_per_image {count} must be a square whose side divides the {side} patches of a side"
        )
    return {"out_hidden_size": text.hidden_size, "merge_size": side // across, "bidirectional": True}


def write_config(config: ModelConfig) -> dict[str, Any]:
    """config.json as the hub's files have it, which transformers 4 and 5 and vLLM read."""
    text, vision = _write_text(config), config.vision
    if not vision.depth:
        return text
    return {
        "mm_tokens_per_image": (vision.image_size // vision.patch_size // vision.merge_size) ** 2,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        "text_config": text,
        "vision_config": vit.write_vit(vision) | {"vision_use_head": False},
    }


def _write_text(config: ModelConfig) -> dict[str, Any]:
    text = config.text
    scaled = {"rope_type": "linear", "factor": text.rope_factor} if text.rope_factor != 1 else None
    return {"model_type": "gemma3_text"} | config.text_to_hf(
        attention_bias=False,
        attention_dropout=0.0,
        head_dim=text.head_dim,
        hidden_activation=text.activation,
        initializer_range=0.02,
        layer_types=["sliding_attention" if windowed else "full_attention" for windowed in text.windowed],
        pad_token_id=config.pad_token_id,
        query_pre_attn_scalar=int(text.query_width),
        rope_local_base_freq=text.window_theta,
        rope_scaling=scaled,
        sliding_window=text.window,
    )


# -- files -------------------------------------------------------------------------------------------------------------


hub_name = vit.hub_name  # of a tensor in the hub's files


def open_processor(places: Sequence[Path], config: ModelConfig, chosen: Mapping[str, Any]) -> GemmaProcessor:
    """The processor of the files in the last of `places`, or in the others, such as an adapter's, which come first.

    Of what a job chose (load.chosen) it takes `pan_and_scan`. Raises DataError.
    """
    vision = config.vision
    tokenizer = load_tokenizer(places)
    template = find_template(places, GEMMA3_TEMPLATE)
    if not vision.depth:
        return GemmaProcessor(tokenizer, NoPictures(), template, config.family)
    settings = read_image_settings(places)
    pictures = SoftTokens.from_hf(
        settings, vision.image_size, vision.patch_size, vision.merge_size, chosen["pan_and_scan"]
    )
    return GemmaProcessor(tokenizer, pictures, template, config.family)


# -- network -----------------------------------------------------------------------------------------------------------


class GemmaNorm(RMSNorm):
    """Its weight is added to 1; float32 inside, the weight too, and cast back once."""

    shift = 1.0

    def __call__(self, x: Array) -> Array:
        """Normalises the last axis."""
        return (self.normalised(x) * (self.shift + self.weight[...].astype(jnp.float32))).astype(x.dtype)


class ScaledEmbedding(Embedding):
    """Token embeddings times the root of their width, which is rounded to their dtype first: 50.6 to 50.5 in bf16."""

    def __call__(self, tokens: Array) -> Array:
        """tokens [...] -> [..., D]."""
        x = super().__call__(tokens)
        return x * jnp.asarray(x.shape[-1] ** 0.5, x.dtype)


class GemmaLayer(nnx.Module):
    """x + norm(attention(norm(x))), then the same with GeGLU."""

    def __init__(self, config: TextConfig):
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = GemmaNorm(width, eps)
        self.self_attn = TextAttention(config, GemmaNorm)
        self.post_attention_layernorm = GemmaNorm(width, eps)
        self.pre_feedforward_layernorm = GemmaNorm(width, eps)
        self.mlp = GatedMLP(width, config.intermediate_size, False, config.activation)
        self.post_feedforward_layernorm = GemmaNorm(width, eps)

    def __call__(self, x: Array, rope: Rope | None, attention: Attention, index: Any = 0) -> tuple[Array, Array, Array]:
        """x [..., T, D] -> [..., T, D], and the keys and values to keep."""
        mixed, keys, values = self.self_attn(self.input_layernorm(x), rope, attention)
        x = x + self.post_attention_layernorm(mixed)
        mixed = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(mixed), keys, values


class SoftTokenProjector(nnx.Module):
    """The patches of each soft token averaged, normalised and projected to the decoder's width."""

    def __init__(self, config: VisionConfig):
        self.mm_input_projection_weight = abstract_param(config.hidden_size, config.out_hidden_size)
        self.mm_soft_emb_norm = GemmaNorm(config.hidden_size, config.eps)
        self.group = config.merge_size**2

    def __call__(self, x: Array) -> Array:
        """x [I, P, D of the tower], the patches of a soft token side by side -> [I, P / group, D of the text]."""
        x32 = x.astype(jnp.float32)
        pooled = reduce(x32, "images (tokens merged) width -> images tokens width", "mean", merged=self.group)
        return self.mm_soft_emb_norm(pooled.astype(x.dtype)) @ self.mm_input_projection_weight[...]


class Gemma3(NetworkBase):
    """The whole network; attribute paths are the tensor names of the files without the prefixes (lora.canonical)."""

    def __init__(self, config: ModelConfig, stacked: bool = False):
        super().__init__(config, stacked, GemmaLayer)
        text, vision = config.text, config.vision
        self.vision_tower = vit.VisionTransformer(vision, stacked) if vision.depth else None
        self.multi_modal_projector = SoftTokenProjector(vision) if vision.depth else None
        self.model.embed_tokens = ScaledEmbedding(text.vocab_size, text.hidden_size)
        self.model.norm = GemmaNorm(text.hidden_size, text.rms_norm_eps)

    def embed(self, batch: Any, remat: bool = False) -> tuple[Array, tuple]:
        """Token embeddings [B, T, D] with the images' features in their places, which are not scaled."""
        x = self.model.embed_tokens(batch.tokens)
        if self.vision_tower is None or self.multi_modal_projector is None or batch.patches.shape[0] == 0:
            return x, ()
        features = self.vision_tower(batch.patches, batch.patch_positions, batch.patch_counts, remat)
        return place_features(self.multi_modal_projector(features), batch.vision_index, x), ()
