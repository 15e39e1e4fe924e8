"""Random checkpoints of every family, of any width, with the embedded tokenizer: what served.py and forward.py ask."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from mmedexpert_jax.models import Model, ModelConfig, load_processor, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.load import read_config
from mmedexpert_jax.models.locate import MINI
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.processing import gemma3_prompts
from mmedexpert_jax.processing.llava_templates import VICUNA
from mmedexpert_jax.processing.processor import Marks, Processor
from mmedexpert_jax.processing.squares import SquareConfig

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "gemma3")


@dataclass(frozen=True)
class Size:
    """Decoder and tower: hidden size, inner size of the MLPs, layers, heads; key and value heads of the decoder."""

    text: tuple[int, int, int, int, int]
    tower: tuple[int, int, int, int]
    image: int = 56  # pixels on a side, in the families that make a square of every image
    vocabulary: int = 1960  # rows of the tables; the embedded tokenizer has 1,944 tokens

    def parts(self, family: str) -> tuple[TextConfig, VisionConfig]:
        """The configs of a family at this size."""
        width, ffn, layers, heads, kv_heads = self.text
        hidden, inner, depth, tower_heads = self.tower
        half = width // heads // 2  # rotary frequencies of a head
        time = half // 4
        sections = (time, (half - time + 1) // 2, (half - time) // 2)
        # vLLM gives the tower's norms the decoder's epsilon
        text = TextConfig(self.vocabulary, width, ffn, layers, heads, kv_heads, 1e-6, mrope_section=sections)
        tower = VisionConfig(family, depth, hidden, inner, tower_heads, width)
        plain = replace(text, bias=False, mrope_section=(half, 0, 0))
        square = replace(tower, temporal_patch_size=1, image_size=self.image)
        match family:
            case "qwen2_vl":
                return text, tower
            case "qwen2_5_vl":
                return text, replace(tower, full_attention_blocks=(depth - 1,))
            case "qwen3_vl":
                text = replace(text, bias=False, qk_norm=True, mrope_interleaved=True, head_width=width // heads)
                return text, replace(tower, patch_size=16, num_positions=36, deepstack_blocks=(0,))
            case "llava":
                clip = {"class_token": True, "activation": "quick_gelu", "eps": 1e-5, "feature_blocks": depth - 1}
                positions = 1 + (self.image // square.patch_size) ** 2
                return replace(plain, kind="mistral"), replace(square, merge_size=1, num_positions=positions, **clip)
            case "gemma3":
                text = replace(
                    plain,
                    qk_norm=True,
                    activation="gelu_pytorch_tanh",
                    head_width=width // heads,
                    query_width=width // heads,
                    rope_factor=8.0,
                    window=32,
                    windowed=tuple((layer + 1) % 6 > 0 for layer in range(layers)),
                    window_theta=1e4,
                )
                positions = (self.image // square.patch_size) ** 2
                return text, replace(square, merge_size=2, num_positions=positions, bidirectional=True)
        raise ValueError(family)


TINY = Size((128, 192, 3, 4, 2), (128, 256, 3, 4))


def checkpoint(parts: tuple[TextConfig, VisionConfig], folder: Path, spread: float = 0.2) -> Processor:
    """Writes a random model with that decoder and tower, weights of a deviation of `spread`; returns its processor."""
    text, vision = parts
    family = vision.family
    processor = _processor(family, vision)
    mini = read_config(MINI)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "eos_token_ids")
    ids = {key: getattr(mini, key) for key in (*names, "pad_token_id", "bos_token_id")}
    ids["image_token_id"] = processor.image_token_id
    if family == "gemma3":
        vocabulary = processor.tokenizer.get_vocab()
        ids |= {"vision_start_token_id": vocabulary["<start_of_image>"]}
        ids |= {"vision_end_token_id": vocabulary["<end_of_image>"], "bos_token_id": vocabulary["<bos>"]}
    model = Model(ModelConfig(text, vision, tie_word_embeddings=family == "gemma3", **ids))
    draw = np.random.default_rng(0)

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        return (centre + spread * draw.standard_normal(shape, np.float32)).astype(np.float32)

    params = nest({name: tensor(name, shape) for name, shape in tensor_shapes(model.config).items()})
    save_pretrained(folder, model, params, processor)
    return processor


def _processor(family: str, vision: VisionConfig) -> Processor:
    """The embedded tokenizer with the tokens, the pictures and the template of a family."""
    embedded = load_processor(MINI)
    tokenizer = embedded.tokenizer
    if family == "llava":
        tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
        settings = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": vision.patch_size}
        settings |= {"vision_feature_select_strategy": "default"}
        marks = Marks("<image>", "<|im_end|>", ("<image>",))
        return Processor(tokenizer, SquareConfig(vision.image_size), VICUNA, family, marks, settings)
    if family == "gemma3":
        soft, end = gemma3_prompts.MARKS.image, gemma3_prompts.MARKS.end
        marks = ("<bos>", "<start_of_turn>", end, "<start_of_image>", "<end_of_image>", soft)
        tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
        # vLLM joins the newlines beside an image by these names
        tokenizer.add_tokens([AddedToken("\n" * count, normalized=False) for count in (1, 2, 3, 4)])
        # transformers' processor asks the tokenizer for these three by name
        extra = dict(zip(("boi_token", "eoi_token", "image_token"), marks[3:], strict=True))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            bos_token="<bos>",
            eos_token=end,
            pad_token=tokenizer.pad_token,
            extra_special_tokens=extra,
        )
        pictures = gemma3_prompts.SoftTokens(vision.image_size, vision.patch_size, vision.merge_size)
        return gemma3_prompts.GemmaProcessor(tokenizer, pictures, gemma3_prompts.GEMMA3_TEMPLATE, family)
    config = replace(embedded.image_config, patch_size=vision.patch_size)
    return Processor(tokenizer, replace(config, max_pixels=200_704, stored_max_pixels=200_704), None, family)


def transformers_inputs(processor: Processor, conversation: list[dict]) -> dict[str, np.ndarray]:
    """The arguments of transformers' forward and `generate` for one conversation."""
    encoded = processor.encode(conversation)
    found: dict[str, Any] = {"input_ids": encoded.tokens[None].astype(np.int64)}
    found["attention_mask"] = np.ones_like(found["input_ids"])
    pads = (found["input_ids"] == processor.image_token_id).astype(np.int64)
    if processor.family == "gemma3":
        found["token_type_ids"] = pads
    elif processor.family != "llava":
        found["mm_token_type_ids"] = pads
    if not encoded.images:
        return found
    patches, grids = zip(*encoded.images, strict=True)
    if processor.family not in ("llava", "gemma3"):
        counts = np.array([(1, *grid) for grid in grids], np.int64)
        return found | {"pixel_values": np.concatenate(patches), "image_grid_thw": counts}
    # patches of a soft token stand together (Gemma 3); every patch of CLIP is one
    merge, side = getattr(processor.image_config, "merge_size", 1), processor.image_config.patch_size
    blocks = {"m": grids[0][0] // merge, "a": merge, "b": merge, "c": 3, "h": side, "w": side}
    pixels = rearrange(np.stack(patches), "i (m n a b) (c h w) -> i c (m a h) (n b w)", **blocks)
    return found | {"pixel_values": pixels}
