"""Checkpoints in the layout of the original LLaVA: names, config, prompts, images, towers elsewhere, exports."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.models import load_model, load_processor, save_pretrained
from mmedexpert_jax.models.load import chosen
from tests.models.test_llava import DECODERS, TEXT, TOLERANCE, TOWERS, gap, picture, randomise

QUESTION = "What does the film of a woman of 61 show?"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
# model_type -> decoder, kind of tokenizer, the prompt that the authors' code makes of one image and a question
LAYOUTS = {
    "llava_mistral": ("mistral", "metaspace", f"[INST] <image>\n{QUESTION} [/INST]"),
    "llava_qwen2": ("qwen2", "bytes", f"<|user|>\n<image>\n{QUESTION}\n<|assistant|>\n"),
    "llava_llama": (
        "llama",
        "llama3",
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n<image>\n{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llava": ("llama", "metaspace", f"{SYSTEM} USER: <image>\n{QUESTION} ASSISTANT:"),
}
SPECIAL = {
    "metaspace": ["<unk>", "<s>", "</s>"],
    "bytes": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama3": [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        *("<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    ],
}


def write_tokenizer(kind: str, directory) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that works as Mistral's, Qwen2's or Llama 3's does, trained on this file."""
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL[kind]]
    bpe = Tokenizer(models.BPE(unk_token="<unk>" if kind == "metaspace" else None, fuse_unk=True))
    if kind == "metaspace":
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        bpe.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
        alphabet = []
    else:
        bpe.normalizer = normalizers.NFC()
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    bpe.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    )
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if kind != "metaspace":
        named = {"bos_token": None, "eos_token": SPECIAL[kind][0]}
    if kind == "llama3":
        named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    if first := named["bos_token"]:
        bpe.post_processor = processors.TemplateProcessing(
            f"{first} $A", special_tokens=[(first, bpe.token_to_id(first))]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **named)
    tokenizer.chat_template = "{{ raise_exception('the decoder has a template, which knows no images') }}"
    tokenizer.save_pretrained(directory, save_jinja_files=False)  # into tokenizer_config.json, as in its day
    return tokenizer


def write(layout: str, directory, tower: str = "clip", projector: str = "mlp2x_gelu", inside: bool = True):
    """A checkpoint of the layout and the same in transformers; `inside`: the tower's tensors stand in its files."""
    decoder, kind, _ = LAYOUTS[layout]
    tokenizer = write_tokenizer(kind, directory)
    text = transformers.CONFIG_MAPPING[decoder](**DECODERS[decoder].to_dict())
    text.tie_word_embeddings = False
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    if kind != "bytes":  # no row of the embedding is left for another token
        text.vocab_size = len(tokenizer)
    config = transformers.LlavaConfig(
        vision_config=TOWERS[tower], text_config=text, image_token_index=0,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )  # fmt: skip
    torch.manual_seed(1)
    model = randomise(transformers.LlavaForConditionalGeneration(config))
    if projector == "linear":
        with torch.no_grad():
            model.model.multi_modal_projector.linear_2.weight.copy_(torch.eye(TEXT["hidden_size"]))
            model.model.multi_modal_projector.linear_2.bias.zero_()
        model.model.multi_modal_projector.act = torch.nn.Identity()
    tensors = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.language_model.", "model.")
        name = name.replace("model.vision_tower.", "model.vision_tower.vision_tower.vision_model.")
        name = name.replace("multi_modal_projector.linear_1", "mm_projector" + (".0" if projector != "linear" else ""))
        name = name.replace("multi_modal_projector.linear_2", "mm_projector.2")
        if ("vision_tower" not in name or inside) and not (projector == "linear" and "mm_projector.2" in name):
            tensors[name] = tensor.numpy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)  # as older versions saved
    tensors["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = np.arange(17)[None]
    if not inside:
        del tensors["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    old = {key: value for key, value in text.to_dict().items() if key != "rope_parameters"}
    rope = dict(text.rope_parameters)
    old |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope if rope["rope_type"] != "default" else None}
    old |= {
        "model_type": layout, "mm_hidden_size": 32, "mm_projector_type": projector, "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": "towers/clip-tiny", "image_aspect_ratio": "pad", "use_mm_proj": True,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(old))
    return model, tokenizer


def write_tower(model, folder, whole: bool = False):
    """The tower by itself, as its own repository has it, or with more of CLIP around it."""
    model.model.vision_tower.save_pretrained(folder)
    if whole:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": content}))
        tensors = load_file(folder / "model.safetensors")
        named = {f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in tensors.items()}
        save_file(named | {"logit_scale": np.ones((), np.float32)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def pieces(prompt: str, tokenizer, special: bool) -> list[int]:
    """Ids of a prompt whose texts between images are encoded one by one, as the authors' code does; -1 for an image."""
    chunks = [tokenizer(chunk, add_special_tokens=special).input_ids for chunk in prompt.split("<image>")]
    starts = special and tokenizer.bos_token_id is not None
    ids = [tokenizer.bos_token_id] if starts else []
    for number, chunk in enumerate(chunks):
        ids += ([-1] if number else []) + chunk[int(starts) :]
    return ids


def ask(*images: Image.Image) -> list[dict]:
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]


@pytest.fixture(autouse=True)
def _exact_products():
    torch.set_num_threads(1)
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_authors_layouts_answer_as_transformers_does(tmp_path, layout):
    """Prompt, pixels and logits; and what we export of it is transformers' own layout, with the same logits."""
    reference, tokenizer = write(layout, tmp_path)
    write_tower(reference, tmp_path / "towers" / "clip-tiny")
    model, params = load_model(tmp_path)
    processor = load_processor(tmp_path)
    image = picture(90, 41)
    encoded = processor.encode(ask(image))
    expected = pieces(LAYOUTS[layout][2], tokenizer, special=layout != "llava_qwen2")
    place = expected.index(-1)
    assert encoded.tokens.tolist() == [*expected[:place], *[processor.image_token_id] * 16, *expected[place + 1 :]]

    sides = {"height": 56, "width": 56}
    pad = transformers.LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=sides, do_pad=True)
    reference.config.image_token_index = processor.image_token_id
    inputs = {"input_ids": torch.tensor(encoded.tokens[None].astype(np.int64)), **pad([image], return_tensors="pt")}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logits = reference(**inputs).logits
    assert gap(np.asarray(model.logits(params, processor([ask(image)]))), logits, inputs["attention_mask"]) < TOLERANCE

    save_pretrained(tmp_path / "export", model, params, processor)
    again, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    transform = transformers.AutoProcessor.from_pretrained(tmp_path / "export", backend="pil")
    said = transform.apply_chat_template(
        [ask(image)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(said["input_ids"], inputs["input_ids"])
    assert torch.equal(said["pixel_values"], inputs["pixel_values"])
    with torch.no_grad():
        assert torch.equal(again.eval()(**said).logits, logits)


@pytest.mark.parametrize("whole", [False, True])
def test_a_tower_that_the_files_lack_comes_from_its_folder(tmp_path, whole):
    reference, _ = write("llava_mistral", tmp_path / "model", inside=False)
    with pytest.raises(DataError, match=r"towers/clip-tiny.*--config\.model\.vision_tower="):
        load_model(tmp_path / "model")
    folder = write_tower(reference, tmp_path / "tower", whole)
    with chosen(vision_tower=str(folder)):
        _, params = load_model(tmp_path / "model")
    tower = reference.model.vision_tower.state_dict()["embeddings.position_embedding.weight"].numpy()
    assert np.array_equal(params["vision_tower"]["embeddings"]["position_embedding"]["weight"], tower)
    with chosen(vision_tower=str(tmp_path / "nowhere")), pytest.raises(ConfigError, match="vision_tower="):
        load_model(tmp_path / "model")


def test_a_known_tower_by_its_id_needs_its_tensors_alone(tmp_path):
    write("llava_mistral", tmp_path, inside=False)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(content | {"mm_vision_tower": "openai/clip-vit-large-patch14-336"})
    )
    with pytest.raises(DataError, match=r"has no tensors of the vision tower 'openai/clip-vit-large-patch14-336'"):
        load_model(tmp_path)
    vision = load_processor(tmp_path).image_config
    assert (vision.size, vision.patch_size, vision.pad) == (336, 14, True)


def test_a_projector_of_one_layer(tmp_path):
    reference, _ = write("llava_mistral", tmp_path, tower="siglip", projector="linear")
    write_tower(reference, tmp_path / "towers" / "clip-tiny")
    model, params = load_model(tmp_path)
    processor = load_processor(tmp_path)
    batch = processor([ask(picture(70, 70))])
    square = transformers.SiglipImageProcessorPil(size={"height": 56, "width": 56})(
        [picture(70, 70)], return_tensors="pt"
    )
    reference.config.image_token_index = processor.image_token_id
    inputs = {"input_ids": torch.tensor(np.asarray(batch.tokens, np.int64)), **square}
    with torch.no_grad():
        logits = reference(**inputs).logits
    assert gap(np.asarray(model.logits(params, batch)), logits, torch.ones_like(inputs["input_ids"])) < TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        {"image_aspect_ratio": "anyres"},
        {"mm_patch_merge_type": "spatial_unpad"},
        {"mm_use_im_start_end": True},
        {"mm_projector_type": "mlp3x_gelu"},
        {"model_type": "llava_mpt"},
        {"mm_vision_tower": "someone/else"},
    ],
)
def test_other_ways_of_the_original_are_refused_by_their_key(tmp_path, change):
    reference, _ = write("llava_mistral", tmp_path)
    write_tower(reference, tmp_path / "towers" / "clip-tiny")
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(DataError, match=next(iter(change))):
        load_model(tmp_path)
