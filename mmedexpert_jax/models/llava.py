"""LLaVA (Liu et al. 2023) and its family: a CLIP or SigLIP tower, a projector, and a Llama, Mistral or Qwen2 decoder.

Every image is a square of one size, and each of its patches one token: their features are read before the tower's last
block and go through the projector's two layers. Positions count on through text and images. Files of the original LLaVA
come here as those of transformers (llava_original.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.models import llava_original, vit
from mmedexpert_jax.models.config import Keys, ModelConfig, TextConfig, VisionConfig
from mmedexpert_jax.models.decoder import NetworkBase
from mmedexpert_jax.models.layers import ACTIVATIONS, Linear, place_features
from mmedexpert_jax.models.stored_tensors import Stored
from mmedexpert_jax.models.vit import VisionTransformer, read_vit, write_vit
from mmedexpert_jax.processing.chat_template import find_template
from mmedexpert_jax.processing.llava_templates import usual
from mmedexpert_jax.processing.processor import (
    Marks,
    Processor,
    load_tokenizer,
    read_image_settings,
)
from mmedexpert_jax.processing.squares import SquareConfig

TOKENS = {"image_token_id": ("image_token_index", 32000)}  # as in models/config.py
hub_name = vit.hub_name  # of a tensor in the hub's files
BOS, EOS = 1, 2  # Llama's and Mistral's, where no file says one


@dataclass(frozen=True)
class Decoder:
    """transformers' defaults of a decoder's config, for keys that config.json lacks."""

    vocab_size: int
    intermediate_size: int
    num_kv_heads: int | None  # None: as many as heads
    max_positions: int
    bias: bool = False  # of queries, keys and values


DECODERS = {  # by model_type
    "llama": Decoder(32000, 11008, None, 2048),
    "mistral": Decoder(32000, 14336, 8, 131072),
    "qwen2": Decoder(151936, 22016, 32, 32768, bias=True),
}
TOWERS = {"clip_vision_model": True, "siglip_vision_model": False}  # whether it has a class token
_TOWER = llava_original.TOWERS["clip-vit-large-patch14-336"]  # transformers' LLaVA without a vision_config

# -- config.json -------------------------------------------------------------------------------------------------------


def read_text(text: Keys) -> TextConfig:
    """The decoder; absent keys take transformers' class defaults."""
    kind = text.text("model_type", "llama")
    if kind not in DECODERS:
        raise text.wrong("model_type", f"one of {', '.join(DECODERS)}")
    usual = DECODERS[kind]
    _refuse_other_decoders(text)
    layers, window = text.integer("num_hidden_layers", 32), _window(text, kind)
    heads = text.integer("num_attention_heads", 32)
    kv_heads = heads if text.values.get("num_key_value_heads", usual.num_kv_heads) is None else 0
    width = text.integer("hidden_size", 4096)
    said = 0 if text.values.get("head_dim") is None else text.integer("head_dim", 0)
    head_width = 0 if said * heads == width else said  # transformers writes the usual width too
    rope = text.rope()
    return TextConfig(
        vocab_size=text.integer("vocab_size", usual.vocab_size),
        hidden_size=width,
        intermediate_size=text.integer("intermediate_size", usual.intermediate_size),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads or text.integer("num_key_value_heads", usual.num_kv_heads),
        rms_norm_eps=text.positive("rms_norm_eps", 1e-6),
        rope_theta=float(rope.positive("rope_theta", text.positive("rope_theta", 1e4))),
        rope_llama3=_stretch(rope),
        mrope_section=((head_width or width // heads) // 2, 0, 0),  # all frequencies follow the one position
        max_position_embeddings=text.integer("max_position_embeddings", usual.max_positions),
        head_width=head_width,
        bias=usual.bias,
        kind=kind,
        window=window,
        windowed=(True,) * layers if window else (),
    )


def _refuse_other_decoders(text: Keys) -> None:
    """Raises DataError for what makes a decoder of these names another network."""
    if text.text("hidden_act", "silu") != "silu":
        raise text.wrong("hidden_act", "silu, the only one of the decoder")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if text.flag(key):
            raise text.wrong(key, "false, the only value that is supported")


def _window(text: Keys, kind: str) -> int:
    """Tokens that Mistral 0.1's layers see; 0: all, as v0.2 and the other decoders do."""
    if kind != "mistral" or text.values.get("sliding_window", 0) is None:
        return 0
    return text.integer("sliding_window", 4096)


def _stretch(rope: Keys) -> tuple[float, float, float, int] | None:
    """Llama 3.1's factor, low and high frequency factors and original length; None without scaling."""
    kind = rope.text("rope_type", "") or rope.text("type", "default")
    if kind == "default":
        return None
    if kind != "llama3":
        raise DataError(f"{rope.place}: rope_type {kind!r} is not supported; default and llama3 are")
    factors = (float(rope.positive(key, 0)) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    return *factors, rope.integer("original_max_position_embeddings", 8192)


def read_vision(vision: Keys) -> VisionConfig:
    """The tower; absent keys take transformers' class defaults. The rest is `read_whole`'s."""
    vision = vision if vision.values else Keys(_TOWER, vision.place)
    kind = vision.text("model_type", "clip_vision_model")
    if kind not in TOWERS:
        raise vision.wrong("model_type", f"one of {', '.join(TOWERS)}")
    return read_vit(vision, "llava", 0, class_token=TOWERS[kind])


def read_whole(keys: Keys, text: TextConfig, vision: VisionConfig) -> dict[str, Any]:
    """Fields of VisionConfig from the top of config.json: the tower's features and the projector."""
    layer = keys.values.get("vision_feature_layer", -2)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise keys.wrong("vision_feature_layer", "one layer's number")
    blocks = layer if layer >= 0 else vision.depth + 1 + layer
    if not 1 <= blocks <= vision.depth:
        raise keys.wrong("vision_feature_layer", f"one after some of the tower's {vision.depth} blocks")
    strategy = keys.text("vision_feature_select_strategy", "default")
    if strategy != _strategy(vision):
        raise DataError(
            f"{keys.place}: vision_feature_select_strategy is {strategy!r}; of a tower "
            f"{'with' if vision.class_token else 'without'} a class token only {_strategy(vision)!r}, all patches and "
            "nothing else, is supported"
        )
    act = keys.text("projector_hidden_act", "gelu")
    if act not in ACTIVATIONS:
        raise keys.wrong("projector_hidden_act", f"one of {', '.join(ACTIVATIONS)}")
    bias = keys.flag("multimodal_projector_bias", True)
    return {"feature_blocks": blocks, "projector": (act, bias), "out_hidden_size": text.hidden_size}


def _strategy(vision: VisionConfig) -> str:
    """transformers' word for all patches and nothing else: "default" leaves out the first, which CLIP's class is."""
    return "default" if vision.class_token else "full"


def write_config(config: ModelConfig) -> dict[str, Any]:
    """config.json as transformers writes it."""
    text, vision = config.text, config.vision
    head = {} if vision.class_token else {"vision_use_head": False}
    return {
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
        "multimodal_projector_bias": vision.projector[1],
        "projector_hidden_act": vision.projector[0],
        "text_config": _write_text(config) | ({"head_dim": text.head_width} if text.head_width else {}),
        "vision_config": write_vit(vision) | head,
        "vision_feature_layer": vision.feature_blocks - vision.depth - 1,
        "vision_feature_select_strategy": _strategy(vision),
    }


def _write_text(config: ModelConfig) -> dict[str, Any]:
    text = config.text
    scaling = None
    if text.rope_llama3:
        factor, low, high, length = text.rope_llama3
        scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
        scaling["original_max_position_embeddings"] = length
    own: dict[str, dict[str, Any]] = {
        "llama": {"attention_bias": False, "mlp_bias": False},
        "mistral": {"sliding_window": text.window or None},
    }
    written = {"model_type": text.kind} | config.text_to_hf(hidden_act="silu", rope_scaling=scaling)
    return written | own.get(text.kind, {"use_sliding_window": False})


# -- files -------------------------------------------------------------------------------------------------------------


def complete(found: dict[str, Stored], config: ModelConfig, directory: Path, tower: str = "") -> dict[str, Stored]:
    """The tensors that the network has, of those in the files: neither SigLIP's head nor LLaVA 1.6's line breaks.

    `tower` is the folder of the vision tower that a checkpoint of the original layout may lack.
    """
    unused = ("vision_tower.head.", "model.image_newline")
    found = {name: stored for name, stored in found.items() if not name.startswith(unused)}
    return llava_original.tensors(found, config, directory, tower) if llava_original.is_original(directory) else found


def open_processor(places: Sequence[Path], config: ModelConfig, chosen: Mapping[str, Any]) -> Processor:
    """The processor of the files in the last of `places`, or in the others, such as an adapter's, which come first.

    Of what a job chose (load.chosen) it takes `vision_tower`. Raises DataError.
    """
    vision, kind, checkpoint, tower = config.vision, config.text.kind, places[-1], chosen["vision_tower"]
    square = vision.image_size, vision.patch_size
    if original := llava_original.is_original(checkpoint):
        tokenizer, image, template = llava_original.tokenizer_of(checkpoint, config.text.vocab_size, kind)
        settings, pad = llava_original.image_settings(checkpoint, config, tower)
        images = SquareConfig.from_hf(settings, *square, pad)
    else:
        tokenizer = load_tokenizer(places)
        image = tokenizer.convert_ids_to_tokens(config.image_token_id)
        template = usual(kind, tokenizer.get_vocab()).replace("<image>", str(image))
        images = SquareConfig.from_hf(read_image_settings(places), *square)
    if image is None:
        raise DataError(f"{checkpoint}: the tokenizer has no token {config.image_token_id} (image_token_index)")
    template = find_template(places, template, tokenizers=not original)
    marks = Marks(image, _end(tokenizer, config, template), (image,))
    settings = {
        "image_token": image,
        "num_additional_image_tokens": int(vision.class_token),
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": _strategy(vision),
    }
    return Processor(tokenizer, images, template, config.family, marks, settings)


def _end(tokenizer: Any, config: ModelConfig, template: str) -> str:
    """The token that closes an assistant's turn: one that ends a text and that the template writes, or else the EOS."""
    ends = [tokenizer.eos_token, *tokenizer.convert_ids_to_tokens(list(config.eos_token_ids))]
    return next((token for token in ends if token and token in template), tokenizer.eos_token)


# -- network -----------------------------------------------------------------------------------------------------------


class Projector(nnx.Module):
    """linear_2(activation(linear_1(x))), from the tower's width to the decoder's."""

    def __init__(self, config: VisionConfig):
        activation, bias = config.projector
        self.linear_1 = Linear(config.hidden_size, config.out_hidden_size, bias)
        self.linear_2 = Linear(config.out_hidden_size, config.out_hidden_size, bias)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x: Array) -> Array:
        """x [..., D of the tower] -> [..., D of the text]."""
        return self.linear_2(self.activation(self.linear_1(x)))


class LLaVA(NetworkBase):
    """The whole network; attribute paths are the tensor names of the files without the prefixes (lora.canonical)."""

    def __init__(self, config: ModelConfig, stacked: bool = False):
        super().__init__(config, stacked)
        self.vision_tower = VisionTransformer(config.vision, stacked)
        self.multi_modal_projector = Projector(config.vision)
        self.patches = (config.vision.image_size // config.vision.patch_size) ** 2  # of every image

    def embed(self, batch: Any, remat: bool = False) -> tuple[Array, tuple]:
        """Token embeddings [B, T, D] with the images' features in their places."""
        x = self.model.embed_tokens(batch.tokens)
        if batch.patches.shape[0] == 0:
            return x, ()
        stride = batch.patches.shape[1]
        count = min(stride, self.patches)  # the rest is padding up to the sizes that programs are compiled for
        seen = jnp.asarray(batch.patches)[:, :count], jnp.asarray(batch.patch_positions)[:, :count]
        features = self.multi_modal_projector(self.vision_tower(*seen, batch.patch_counts, remat))
        index = jnp.asarray(batch.vision_index)
        return place_features(features, jnp.where(index < 0, -1, index // stride * count + index % stride), x), ()
