"""Files of the original LLaVA and of what its code trained (LLaVA-Med, HuatuoGPT-Vision, BiMediX2), as transformers'.

Their config.json is the decoder's with the tower and projector under keys with `mm_`; the tower's sizes are in a folder
or hub repository of its own, which may hold its weights, too. Their tokenizers have no token that stands for an image.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, pre_tokenizers

from mmedexpert_jax.border import shown
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.models.config import Keys, ModelConfig
from mmedexpert_jax.models.stored_tensors import Stored, read_json, tensors_in
from mmedexpert_jax.processing.llava_templates import usual
from mmedexpert_jax.processing.processor import load_tokenizer
from mmedexpert_jax.processing.squares import SIGLIP

KINDS = {  # model_type -> the decoder's
    "llava_mistral": "mistral",
    "llava_qwen2": "qwen2",
    "llava_qwen": "qwen2",
    "llava_llama": "llama",
    "llava": "llama",
}
_CLIP = {"model_type": "clip_vision_model", "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096}
_CLIP |= {"num_hidden_layers": 24, "num_attention_heads": 16}
# Repositories of towers, without their owner's name -> what their config.json says
TOWERS: dict[str, dict[str, Any]] = {
    "clip-vit-large-patch14": _CLIP | {"image_size": 224},
    "clip-vit-large-patch14-336": _CLIP | {"image_size": 336},
    "siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "patch_size": 14,
        "image_size": 384,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
    },
}
# Keys with the only values under which an image is its square's patches and nothing else
_KNOWN = {
    "mm_use_im_start_end": (False, None),
    "mm_patch_merge_type": ("flat", None),
    "image_aspect_ratio": ("pad", "square", None),
    "s2": (False, None),
}
_PROJECTORS = {"linear": "linear", "mlp2x_gelu": "gelu"}  # -> activation between the two layers


def is_original(directory: Path) -> bool:
    """True for a folder whose config.json is of the original layout."""
    file = directory / "config.json"
    content = read_json(file) if file.is_file() else {}
    return "mm_vision_tower" in content and "vision_config" not in content


def modern(content: Mapping[str, Any], directory: Path, tower: str = "") -> dict[str, Any]:
    """The config.json that transformers' own LLaVA would have.

    Args:
        content: of the original config.json.
        directory: where it stands, with the tokenizer.
        tower: a folder with the tower's config.json, in place of the one that the file names.

    Raises:
        DataError: a part that transformers' LLaVA does not have, or a tower whose sizes are nowhere.
    """
    keys = Keys(content)
    kind = keys.text("model_type", "")
    if kind not in KINDS:
        raise keys.wrong("model_type", f"one of {', '.join(KINDS)}")
    for key, known in _KNOWN.items():
        if content.get(key) not in known:
            raise keys.wrong(key, f"{' or '.join(str(value) for value in known[:-1])}, the only supported")
    projector = keys.text("mm_projector_type", "linear")
    if projector not in _PROJECTORS:
        raise keys.wrong("mm_projector_type", f"one of {', '.join(_PROJECTORS)}")
    feature = keys.text("mm_vision_select_feature", "patch")
    text = {key: value for key, value in content.items() if not key.startswith("mm_")} | {"model_type": KINDS[kind]}
    vision = _tower(keys, directory, tower)
    clip = vision["model_type"] == "clip_vision_model"
    return {
        "model_type": "llava",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": _image_token_id(directory, text.get("vocab_size", 32000)),
        "projector_hidden_act": _PROJECTORS[projector],
        "vision_feature_layer": keys.integer("mm_vision_select_layer", -2, -100),
        "vision_feature_select_strategy": "default" if clip and feature == "patch" else "full",
        "tie_word_embeddings": keys.flag("tie_word_embeddings"),
    }


def tower_folder(directory: Path, tower: str = "") -> Path | None:
    """The folder of the vision tower beside a checkpoint of the original layout; None without one. Raises ConfigError.

    `tower` is one that takes its place.
    """
    if not is_original(directory):
        return None
    return _tower_folder(str(read_json(directory / "config.json")["mm_vision_tower"]), directory, tower)


def tensors(found: dict[str, Stored], config: ModelConfig, directory: Path, tower: str = "") -> dict[str, Stored]:
    """The tensors of the files by the names here, with the tower's from its own folder where they have none.

    A projector of one layer gets a second that changes nothing, so that it is transformers' with no activation between.
    Raises DataError that says which folder to give.
    """
    second = "multi_modal_projector.linear_2"
    if config.vision.projector[0] == "linear" and f"{second}.weight" not in found:
        like, width = found["multi_modal_projector.linear_1.weight"], config.text.hidden_size
        for name, values in (("weight", np.eye(width, dtype=np.float32)), ("bias", np.zeros(width, np.float32))):
            found[f"{second}.{name}"] = Stored(values.shape, like.dtype, values.__getitem__)
    if any(name.startswith("vision_tower.") for name in found):
        return found
    name = str(read_json(directory / "config.json")["mm_vision_tower"])
    folder = _tower_folder(name, directory, tower)
    if folder is None:
        raise DataError(
            f"{directory}: has no tensors of the vision tower {shown(name)}; download that model and give its folder "
            "with --config.model.vision_tower="
        )
    for key, stored in tensors_in(folder).items():  # of a whole CLIP or SigLIP, or of its tower alone
        if key.startswith("vision_model."):
            found[f"vision_tower.{key.removeprefix('vision_model.')}"] = stored
        elif key.startswith(("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")):
            found[f"vision_tower.{key}"] = stored
    return found


def image_settings(directory: Path, config: ModelConfig, tower: str = "") -> tuple[dict[str, Any], bool]:
    """The tower's preprocessor_config.json, or what it would say, and whether pictures are padded to squares."""
    content = read_json(directory / "config.json")
    # HuatuoGPT-Vision's code pads whatever its config.json says
    pad = content.get("image_aspect_ratio") == "pad" or KINDS[content["model_type"]] == "qwen2"
    folder = _tower_folder(str(content["mm_vision_tower"]), directory, tower)
    for place in (directory, *([folder] if folder else [])):
        if (file := place / "preprocessor_config.json").is_file():
            return read_json(file), pad
    return {} if config.vision.class_token else dict(SIGLIP), pad


def tokenizer_of(directory: Path, vocab_size: int, kind: str) -> tuple[Any, str, str]:
    """The tokenizer, the token that stands for an image, and the chat template that the authors' code amounts to.

    Their code cuts a prompt at its images and encodes the pieces one by one, so that each begins as a text does.
    """
    tokenizer = load_tokenizer([directory])
    tokenizer.chat_template = None  # that of the decoder by itself, which knows no images
    backend = tokenizer.backend_tokenizer
    if isinstance(cut := backend.pre_tokenizer, pre_tokenizers.Metaspace) and cut.prepend_scheme == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(cut.replacement, "always", cut.split)
    token = _image_token(tokenizer, vocab_size)
    template = usual(kind, tokenizer.get_vocab()).replace("<image>", token)
    starts = kind != "qwen2" and tokenizer.bos_token_id is not None
    if starts and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:  # HuatuoGPT's code adds no special tokens
        template = "{{- bos_token -}}\n" + template
    return tokenizer, token, template


def _image_token(tokenizer: Any, vocab_size: int) -> str:
    """A token that no text has: `<image>`, for which the embedding may have a row, one in reserve, or the unknown."""
    vocabulary = tokenizer.get_vocab()
    if "<image>" not in vocabulary and max(vocabulary.values()) + 1 < vocab_size:
        tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
        vocabulary = tokenizer.get_vocab()
    reserved = [token for token in vocabulary if token.startswith("<|reserved_special_token_")]
    for token in ("<image>", *sorted(reserved, key=vocabulary.__getitem__)[-1:], tokenizer.unk_token):
        if token is not None and vocabulary.get(token, vocab_size) < vocab_size:
            return token
    raise DataError("the tokenizer has no token to spare for images; add <image> to it, and a row to the embedding")


@functools.lru_cache(maxsize=16)
def _image_token_id(directory: Path, vocab_size: int) -> int:
    tokenizer = load_tokenizer([directory])
    return tokenizer.convert_tokens_to_ids(_image_token(tokenizer, vocab_size))


def _tower(keys: Keys, directory: Path, chosen: str) -> dict[str, Any]:
    """The vision_config: of the folder, or of a known repository."""
    name = keys.text("mm_vision_tower", "")
    if folder := _tower_folder(name, directory, chosen):
        content = read_json(folder / "config.json")
        vision = content.get("vision_config", content)
        kind = "siglip" if "siglip" in str(content.get("model_type")) else "clip"
        return dict(vision) | {"model_type": f"{kind}_vision_model"}
    known = Path(name).name.lower().replace("_", "-")
    if known not in TOWERS:
        raise DataError(
            f"config.json: mm_vision_tower is {shown(name)}, whose sizes are not known; download that model and give "
            "its folder with --config.model.vision_tower="
        )
    return TOWERS[known]


def _tower_folder(name: str, directory: Path, chosen: str) -> Path | None:
    """The folder with the tower's config.json: the one chosen, or one on this machine that the file names."""
    if chosen:
        folder = Path(chosen).expanduser()
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"config.model.vision_tower={shown(chosen)}: no folder with a config.json; give the tower's"
            )
        return folder
    places = [directory / name, Path(name)]
    return next((place for place in places if name and (place / "config.json").is_file()), None)
