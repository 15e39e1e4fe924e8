"""The shape of a model of any family, read from and written to Hugging Face's config.json."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, cast

from mmedexpert_jax.border import shown
from mmedexpert_jax.errors import DataError

# model_type -> architecture
FAMILIES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
}
# model_type -> the file of this folder that reads and writes the sections of its config.json; the others' are below
MODULES = {
    "qwen3_vl": "qwen3_vl",
    "llava": "llava",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}
# Fields of ModelConfig -> their keys in config.json and defaults; a family's file may have a table TOKENS of its own.
TOKENS = {
    "image_token_id": ("image_token_id", 151655),
    "video_token_id": ("video_token_id", 151656),
    "vision_start_token_id": ("vision_start_token_id", 151652),
    "vision_end_token_id": ("vision_end_token_id", 151653),
}

# Keys of generation_config.json that other fields hold, or that say who wrote it; the rest is kept for saving.
_GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config")
_LARGEST = 2**31 - 1  # of any integer in a config: sizes and ids are int32 on devices
# Largest values of other keys: layers are objects in Python, of which the deepest model known has 126; a norm with an
# epsilon of 1 or more is none; an angle's base has to be finite in float32.
_MOST: dict[str, float] = {
    **dict.fromkeys(("num_hidden_layers", "depth"), 4096),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps"), 0.1),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), 1e30),
}


@dataclass(frozen=True)
class Keys:
    """Typed, bounded reading of the object `values` in the file and section that `place` names."""

    values: Mapping[str, Any]
    place: str = "config.json"

    def integer(self, key: str, default: Any, least: int = 1) -> Any:
        """An integer from `least` to the key's _MOST; the default where the key is absent. A null is no size."""
        if key not in self.values:
            return default
        value = self.values[key]
        most = _MOST.get(key, _LARGEST)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(
                key, f"an integer from {least} to {most}" if key in _MOST else f"an integer from {least} on"
            )
        return value

    def positive(self, key: str, default: float) -> float:
        """A finite number above 0, at most the key's _MOST."""
        value, most = self.values.get(key, default), _MOST.get(key, sys.float_info.max)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise self.wrong(key, f"a number above 0, at most {most}" if key in _MOST else "a finite number above 0")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false; a string is neither."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def integers(self, key: str, default: tuple[int, ...], length: int | None = None) -> tuple[int, ...]:
        """A list of integers from 0 on, of a given length if one is given."""
        value = self.values.get(key, default)
        fits = isinstance(value, list | tuple) and (length is None or len(value) == length)
        if not fits or any(isinstance(x, bool) or not isinstance(x, int) or not 0 <= x <= _LARGEST for x in value):
            raise self.wrong(key, f"a list of {length or 'some'} integers from 0 on")
        return tuple(value)

    def either(self, key: str, other: str) -> str:
        """The key that is there of two for one setting, the first of both."""
        return other if key not in self.values and other in self.values else key

    def section(self, key: str) -> "Keys":
        """The object under a key; an empty one where it is absent or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Keys(value or {}, f"{self.place}: {key}")

    def rope(self) -> "Keys":
        """The rotary settings: rope_scaling, before the rope_parameters of transformers 5, which takes them so too."""
        return self.section("rope_scaling" if self.values.get("rope_scaling") else "rope_parameters")

    def wrong(self, key: str, expected: str) -> DataError:
        """The refusal of a value, which is shortened, or of its absence."""
        found = f"is {shown(self.values[key])}, not" if key in self.values else "is missing:"
        return DataError(f"{self.place}: {key} {found} {expected}; copy the base model's file")


@dataclass(frozen=True)
class TextConfig:
    """The decoder: grouped-query attention, rotary positions, a gated MLP."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (16, 24, 24)  # rotary frequencies that follow time, height, width
    max_position_embeddings: int = 32768
    head_width: int = 0  # of one head; 0: hidden_size / num_heads
    bias: bool = True  # of queries, keys and values
    qk_norm: bool = False  # queries and keys are normalised by head
    mrope_interleaved: bool = False  # time, height and width take turns over the frequencies
    rope_llama3: tuple[float, float, float, int] | None = None  # `rotary.stretched` (LLaVA's Llama 3.1)
    kind: str = ""  # model_type of the decoder by itself, kept for saving (LLaVA)
    activation: str = "silu"  # of MLPs, a key of layers.ACTIVATIONS
    query_width: float = 0.0  # scores are divided by its root; 0: head_dim (Gemma 3's query_pre_attn_scalar)
    rope_factor: float = 1.0  # linear scaling: positions are divided by it, but for layers with a window
    window: int = 0  # tokens that a query of a windowed layer sees, its own the last of them
    windowed: tuple[bool, ...] = ()  # layer by layer, whether it has the window; (): none has
    window_theta: float = 0.0  # rope_theta of layers with a window; 0: rope_theta

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.head_width or self.hidden_size // self.num_heads


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Qwen2.5-VL attends inside windows, except in the blocks named here."""

    family: str
    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    window_size: int = 112  # pixels (Qwen2.5-VL)
    full_attention_blocks: tuple[int, ...] = (7, 15, 23, 31)  # Qwen2.5-VL
    tokens_per_second: int = 4  # of video (Qwen2.5-VL); unused, kept for saving
    num_positions: int = 0  # rows of the square table of learned positions (Qwen3-VL)
    deepstack_blocks: tuple[int, ...] = ()  # blocks whose features the decoder's first layers add (Qwen3-VL)
    image_size: int = 0  # pixels on a side of the square that every image becomes; 0: images keep their shape
    eps: float = 1e-6  # of norms
    activation: str = "gelu_pytorch_tanh"  # of MLPs, a key of layers.ACTIVATIONS (vit.py)
    class_token: bool = False  # CLIP's form of vit.py
    feature_blocks: int = 0  # features are read after so many blocks; 0: after all, normalised (vit.py)
    projector: tuple[str, bool] = ("gelu", True)  # activation, and whether its layers have biases (LLaVA)
    bidirectional: bool = False  # in the decoder the tokens of an image see one another, whatever their order (Gemma 3)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def window_side(self) -> int:
        """Side of a window in patches, a multiple of merge_size."""
        return self.window_size // self.merge_size // self.patch_size * self.merge_size


@dataclass(frozen=True)
class ModelConfig:
    """Everything the network needs to know; hashable, so that it can be a static argument of jit."""

    text: TextConfig
    vision: VisionConfig
    tie_word_embeddings: bool = False
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    bos_token_id: int = 151643
    pad_token_id: int = 151643
    eos_token_ids: tuple[int, ...] = (151645, 151643)
    generation: str = "{}"  # the other keys of generation_config.json as JSON, which an export keeps

    @property
    def family(self) -> str:
        """The model_type, such as "qwen2_5_vl"."""
        return self.vision.family

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> "ModelConfig":
        """From the content of config.json, flat (the hub's files) or nested (transformers 4.52 and later).

        Absent keys take transformers' class defaults. The EOS ids are generation_config.json's where it has them.

        Raises:
            DataError: another architecture, or one that this network does not implement.
        """
        keys = Keys(config)
        family = keys.text("model_type", "")
        if family not in FAMILIES:
            raise DataError(
                f"config.json: model_type {shown(family)} is not supported; use one of {', '.join(FAMILIES)}"
            )
        text = keys.section("text_config") if config.get("text_config") else keys
        vision = keys.section("vision_config")
        said = Keys(generation or {}, "generation_config.json")
        own = own_file(family)
        eos = _token_ids(said, keys, text) or (getattr(own, "EOS", 151645),)
        first = 151643 if text.values.get("model_type") == "qwen2" else getattr(own, "BOS", 151643)
        bos, pad = (
            next((ids.integer(key, None, 0) for ids in (said, keys, text) if ids.values.get(key) is not None), default)
            for key, default in (("bos_token_id", first), ("pad_token_id", eos[-1]))
        )
        decoder = own.read_text(text) if own else _text_config(text)
        tower = own.read_vision(vision) if own else _vision_config(family, vision)
        if hasattr(own, "read_whole"):
            tower = replace(tower, **own.read_whole(keys, decoder, tower))
        tied = keys.flag("tie_word_embeddings") or text.flag("tie_word_embeddings")
        if getattr(own, "TIED", False):  # unless a file says otherwise
            tied = keys.flag("tie_word_embeddings", text.flag("tie_word_embeddings", True))
        result = cls(
            text=decoder,
            vision=tower,
            tie_word_embeddings=tied,
            **{
                name: keys.integer(keys.either(key, key.replace("_index", "_id")), default, 0)
                for name, (key, default) in getattr(own, "TOKENS", TOKENS).items()
            },
            bos_token_id=bos,
            pad_token_id=pad,
            eos_token_ids=eos,
            generation=json.dumps({k: v for k, v in said.values.items() if k not in _GENERATION}, sort_keys=True),
        )
        result._check()
        return result

    def to_hf(self) -> dict[str, Any]:
        """config.json in the flat layout of the hub's own files, which transformers 4.45 to 5.x and vLLM all read.

        Newer families have text and vision in sections, as the hub's files do.
        """
        text = self.text
        if own := own_file(self.family):
            tokens = getattr(own, "TOKENS", TOKENS) if self.vision.depth else {}
            return own.write_config(self) | {
                "architectures": [FAMILIES[self.family]],
                "model_type": self.family,
                "tie_word_embeddings": self.tie_word_embeddings,
                **{key: getattr(self, field) for field, (key, _) in tokens.items()},
            }
        return {"architectures": [FAMILIES[self.family]], "model_type": self.family} | self.text_to_hf(
            attention_dropout=0.0,
            hidden_act="silu",
            image_token_id=self.image_token_id,
            initializer_range=0.02,
            max_window_layers=text.num_layers,
            rope_scaling={"type": "mrope", "mrope_section": list(text.mrope_section)},
            sliding_window=text.max_position_embeddings,
            use_sliding_window=False,
            video_token_id=self.video_token_id,
            vision_config=_vision_to_hf(self.vision),
            vision_end_token_id=self.vision_end_token_id,
            vision_start_token_id=self.vision_start_token_id,
        )

    def text_to_hf(self, **own: Any) -> dict[str, Any]:
        """A decoder's section of config.json: what all families write, and their `own` entries, in order of names."""
        text = self.text
        every = {
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_ids[0],
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "num_attention_heads": text.num_heads,
            "num_hidden_layers": text.num_layers,
            "num_key_value_heads": text.num_kv_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": True,
            "vocab_size": text.vocab_size,
        }
        return dict(sorted((every | own).items()))

    def _check(self) -> None:
        text, vision = self.text, self.vision
        used = (self.image_token_id, *self.eos_token_ids) if vision.depth else self.eos_token_ids
        if outside := [i for i in used if i >= text.vocab_size]:
            raise DataError(
                f"config.json: token ids {outside} are outside vocab_size {text.vocab_size} (image_token_id, or "
                "eos_token_id here or in generation_config.json); copy the base model's files"
            )
        if (not text.head_width and text.hidden_size % text.num_heads) or text.num_heads % text.num_kv_heads:
            raise DataError(
                f"config.json: num_attention_heads {text.num_heads} must divide hidden_size {text.hidden_size} "
                f"and be a multiple of num_key_value_heads {text.num_kv_heads}"
            )
        if 2 * sum(text.mrope_section) != text.head_dim:
            raise DataError(
                f"config.json: mrope_section {list(text.mrope_section)} must sum to half of head_dim {text.head_dim}"
            )
        square = vision.image_size > 0
        if not square and (vision.merge_size != 2 or vision.patch_size * vision.merge_size > vision.window_size):
            raise DataError(
                "config.json: vision_config: spatial_merge_size must be 2, and a window hold a merged patch"
            )
        if not square and vision.hidden_size % (4 * vision.num_heads):
            raise DataError("config.json: vision_config's width per head must be a multiple of 4")
        if vision.out_hidden_size != text.hidden_size:
            raise DataError(
                f"config.json: the vision tower's features have width {vision.out_hidden_size}, "
                f"the text's embeddings {text.hidden_size}"
            )


def own_file(family: str) -> Any:
    """The module that MODULES names, imported when it is asked for since it imports this one; None without one."""
    return import_module(f"mmedexpert_jax.models.{MODULES[family]}") if family in MODULES else None


def _token_ids(*sources: Keys) -> tuple[int, ...]:
    """The EOS ids of the first source that has any, one or a list; () where none has."""
    for source in sources:
        value = source.values.get("eos_token_id")
        if isinstance(value, list | tuple) and value:
            return source.integers("eos_token_id", ())
        if value is not None:
            return (source.integer("eos_token_id", None, 0),)
    return ()


def _slides(text: Keys, num_layers: int) -> bool:
    """True where a layer has a sliding window: by name since transformers 4.56, before that from a number on."""
    if not text.flag("use_sliding_window") or text.values.get("sliding_window", 4096) is None:
        return False
    layers = text.values.get("layer_types")
    if isinstance(layers, list):
        return "sliding_attention" in layers
    return text.integer("max_window_layers", 80, 0) < num_layers


def _text_config(text: Keys) -> TextConfig:
    rope = text.rope()
    rope_type = rope.text("rope_type", "") or rope.text("type", "") or "default"
    if rope_type not in ("default", "mrope"):
        raise DataError(f"{rope.place}: rope type {shown(rope_type)} is not supported; only M-RoPE without scaling is")
    num_heads, num_layers = text.integer("num_attention_heads", 64), text.integer("num_hidden_layers", 80)
    if _slides(text, num_layers):
        raise DataError("config.json: use_sliding_window is not supported; the published checkpoints leave it false")
    width = text.integer("hidden_size", 8192)
    if text.values.get("head_dim") is not None and text.integer("head_dim", 0) * num_heads != width:
        raise text.wrong("head_dim", f"the {width // num_heads} of hidden_size over num_attention_heads")
    if text.text("hidden_act", "silu") != "silu":
        raise text.wrong("hidden_act", "silu, the only one of the decoder")
    return TextConfig(
        vocab_size=text.integer("vocab_size", 152064),
        hidden_size=width,
        intermediate_size=text.integer("intermediate_size", 29568),
        num_layers=num_layers,
        num_heads=num_heads,
        # an explicit null means as many as heads, as in transformers; an absent key the class default
        num_kv_heads=num_heads
        if text.values.get("num_key_value_heads", 8) is None
        else text.integer("num_key_value_heads", 8),
        rms_norm_eps=text.positive("rms_norm_eps", 1e-5),
        rope_theta=float(rope.positive("rope_theta", text.positive("rope_theta", 1e6))),
        mrope_section=cast(tuple[int, int, int], rope.integers("mrope_section", (16, 24, 24), 3)),
        max_position_embeddings=text.integer("max_position_embeddings", 32768),
    )


def _vision_config(family: str, vision: Keys) -> VisionConfig:
    act = {"qwen2_vl": "quick_gelu", "qwen2_5_vl": "silu"}[family]
    if vision.text("hidden_act", act) != act:
        raise vision.wrong("hidden_act", f"{act}, which {family} has")
    common = {
        "family": family,
        "depth": vision.integer("depth", 32),
        "num_heads": vision.integer("num_heads", 16),
        "in_channels": vision.integer("in_channels", vision.integer("in_chans", 3)),
        "patch_size": vision.integer("patch_size", 14),
        "temporal_patch_size": vision.integer("temporal_patch_size", 2),
        "merge_size": vision.integer("spatial_merge_size", 2),
    }
    if family == "qwen2_vl":  # here hidden_size names the output's width
        width, ratio = vision.integer("embed_dim", 1280), vision.positive("mlp_ratio", 4)
        if ratio != int(ratio):
            raise vision.wrong("mlp_ratio", "a whole number, as transformers has it")
        return VisionConfig(
            **common,
            hidden_size=width,
            intermediate_size=width * int(ratio),
            out_hidden_size=vision.integer("hidden_size", 3584),
        )
    return VisionConfig(
        **common,
        hidden_size=vision.integer("hidden_size", 3584),
        intermediate_size=vision.integer("intermediate_size", 3420),
        out_hidden_size=vision.integer("out_hidden_size", 3584),
        window_size=vision.integer("window_size", 112),
        full_attention_blocks=vision.integers("fullatt_block_indexes", (7, 15, 23, 31)),
        tokens_per_second=vision.integer("tokens_per_second", 4),
    )


def _vision_to_hf(vision: VisionConfig) -> dict[str, Any]:
    common = {
        "model_type": vision.family,
        "depth": vision.depth,
        "num_heads": vision.num_heads,
        "in_channels": vision.in_channels,
        "in_chans": vision.in_channels,
        "patch_size": vision.patch_size,
        "spatial_patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    if vision.family == "qwen2_vl":
        return common | {
            "embed_dim": vision.hidden_size,
            "hidden_act": "quick_gelu",
            "hidden_size": vision.out_hidden_size,
            "mlp_ratio": vision.intermediate_size // vision.hidden_size,
        }
    return common | {
        "fullatt_block_indexes": list(vision.full_attention_blocks),
        "hidden_act": "silu",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "out_hidden_size": vision.out_hidden_size,
        "tokens_per_second": vision.tokens_per_second,
        "window_size": vision.window_size,
    }


_Sizes = tuple[int, int, int, int, int, int]  # vocabulary, width, the MLP's, layers, heads, heads of keys and values


def _published(family: str, sizes: _Sizes, tied: bool = False, tower: int = 3420) -> ModelConfig:
    inner, per_second = (5120, 4) if family == "qwen2_vl" else (tower, 2)
    vision = VisionConfig(family, 32, 1280, inner, 16, sizes[1], tokens_per_second=per_second)
    return ModelConfig(TextConfig(*sizes, rms_norm_eps=1e-6), vision, tie_word_embeddings=tied)


def _published_qwen3(
    sizes: _Sizes, tower: tuple[int, int, int], deep: tuple[int, ...], tied: bool = False
) -> ModelConfig:
    text = TextConfig(
        *sizes,
        rms_norm_eps=1e-6,
        rope_theta=5e6,
        mrope_section=(24, 20, 20),
        max_position_embeddings=262144,
        head_width=128,
        bias=False,
        qk_norm=True,
        mrope_interleaved=True,
    )
    vision = VisionConfig(*("qwen3_vl", *tower, 16, sizes[1]), patch_size=16, num_positions=2304, deepstack_blocks=deep)
    return ModelConfig(text, vision, tie_word_embeddings=tied)


def _published_gemma3(sizes: _Sizes, head_width: int, query_width: float) -> ModelConfig:
    text = TextConfig(
        *sizes,
        rms_norm_eps=1e-6,
        mrope_section=(head_width // 2, 0, 0),
        max_position_embeddings=131072,
        head_width=head_width,
        bias=False,
        qk_norm=True,
        activation="gelu_pytorch_tanh",
        query_width=query_width,
        rope_factor=8.0,
        window=1024,
        windowed=tuple((layer + 1) % 6 > 0 for layer in range(sizes[3])),
        window_theta=1e4,
    )
    vision = VisionConfig(
        *("gemma3", 27, 1152, 4304, 16, sizes[1]),
        temporal_patch_size=1,
        merge_size=4,
        num_positions=4096,
        image_size=896,
        bidirectional=True,
    )
    return ModelConfig(
        *(text, vision, True),
        image_token_id=262144,
        vision_start_token_id=255999,
        vision_end_token_id=256000,
        bos_token_id=2,
        pad_token_id=0,
        eos_token_ids=(1, 106),
    )


def _published_llava(kind: str, sizes: _Sizes, **text: Any) -> ModelConfig:
    """CLIP ViT-L/14 at 336 pixels before a decoder of a known size."""
    common = {"rms_norm_eps": 1e-5, "mrope_section": (64, 0, 0), "bias": False, "kind": kind}
    decoder = TextConfig(*sizes, **{**common, **text})
    vision = VisionConfig(
        *("llava", 24, 1024, 4096, 16, sizes[1]),
        temporal_patch_size=1,
        merge_size=1,
        num_positions=577,
        image_size=336,
        eps=1e-5,
        activation="quick_gelu",
        class_token=True,
        feature_blocks=23,
    )
    ids = {"mistral": (0, 1, (2,)), "qwen2": (151646, 151643, (151643,)), "llama": (128255, 128000, (128009, 128001))}
    image, bos, eos = ids[kind]
    return ModelConfig(decoder, vision, image_token_id=image, bos_token_id=bos, eos_token_ids=eos, pad_token_id=eos[0])


# The sizes of Qwen/Qwen2-VL-{2B,7B}-Instruct, Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct, from their config.json; those
# of Qwen/Qwen3-VL-{2B,4B,8B}-Instruct as jax-ml/bonsai (bonsai/models/qwen3_vl/modeling.py at 094832e) has them,
# the 32B's with the decoder of Qwen/Qwen3-32B;
# those of LLaVA-Med, HuatuoGPT-Vision-7B and BiMediX2-8B are of the models that their authors name: CLIP ViT-L/14 at
# 336 pixels before Mistral-7B-Instruct-v0.2, Qwen2-7B and Llama-3.1-8B;
# those of google/medgemma-{4b,27b}-it are gemma-3-{4b,27b}-it's: its config.json and Gemma3TextConfig's defaults.
PUBLISHED: dict[str, ModelConfig] = {
    "llava_med_7b": _published_llava("mistral", (32000, 4096, 14336, 32, 32, 8)),
    "huatuogpt_vision_7b": _published_llava("qwen2", (152064, 3584, 18944, 28, 28, 4), rms_norm_eps=1e-6, bias=True),
    "bimedix2_8b": _published_llava(
        "llama",
        (128256, 4096, 14336, 32, 32, 8),
        rope_theta=5e5,
        rope_llama3=(8.0, 1.0, 4.0, 8192),
        max_position_embeddings=131072,
    ),
    "medgemma_4b": _published_gemma3((262208, 2560, 10240, 34, 8, 4), head_width=256, query_width=256),
    "medgemma_27b": _published_gemma3((262208, 5376, 21504, 62, 32, 16), head_width=128, query_width=168),
    "qwen2_vl_2b": _published("qwen2_vl", (151936, 1536, 8960, 28, 12, 2), tied=True),
    "qwen2_vl_7b": _published("qwen2_vl", (152064, 3584, 18944, 28, 28, 4)),
    "qwen2_5_vl_3b": _published("qwen2_5_vl", (151936, 2048, 11008, 36, 16, 2), tied=True),
    "qwen2_5_vl_7b": _published("qwen2_5_vl", (152064, 3584, 18944, 28, 28, 4)),
    "qwen2_5_vl_32b": _published("qwen2_5_vl", (152064, 5120, 27648, 64, 40, 8), tower=3456),
    "qwen2_5_vl_72b": _published("qwen2_5_vl", (152064, 8192, 29568, 80, 64, 8), tower=3456),
    "qwen3_vl_2b": _published_qwen3(
        (151936, 2048, 6144, 28, 16, 8), tower=(24, 1024, 4096), deep=(5, 11, 17), tied=True
    ),
    "qwen3_vl_4b": _published_qwen3(
        (151936, 2560, 9728, 36, 32, 8), tower=(24, 1024, 4096), deep=(5, 11, 17), tied=True
    ),
    "qwen3_vl_8b": _published_qwen3((151936, 4096, 12288, 36, 32, 8), tower=(27, 1152, 4304), deep=(8, 16, 24)),
    "qwen3_vl_32b": _published_qwen3((151936, 5120, 25600, 64, 64, 8), tower=(27, 1152, 4304), deep=(8, 16, 24)),
}
