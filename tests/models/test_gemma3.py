"""Gemma 3 against transformers on random checkpoints: prompts, logits, greedy text, caches, LoRA, exports."""

import dataclasses
import json
import math
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from einops import rearrange
from PIL import Image
from safetensors.numpy import load_file

import mmedexpert_jax as mx
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.models import load_model, load_processor, save_pretrained
from mmedexpert_jax.models.config import PUBLISHED, ModelConfig
from mmedexpert_jax.models.load import chosen
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import flatten, stack, unstack
from mmedexpert_jax.processing.gemma3_prompts import GEMMA3_TEMPLATE
from mmedexpert_jax.processing.processor import Encoded
from mmedexpert_jax.rollout.logprobs import completion_logprobs, packed
from tests.models.beside_torch import TOLERANCE, check_greedy_text, check_lora

MARKS = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
MARKS += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
WINDOW = 9  # shorter than prompts, and than the 16 soft tokens of an image


def tokenizer_of(directory):
    """A small BPE with Gemma's special tokens, and runs of empty lines that are tokens."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=False, unk_token=None))
    bpe.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    words = [
        "user\n",
        "model\n",
        "what is it? ",
        "Here is the original image and here are some crops \n\n\n",
        "No why: ",
    ]
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"0123456789 .,:?!<>_\n|'"})
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=200, special_tokens=MARKS, show_progress=False)
    bpe.train_from_iterator([*words * 5, *letters], trainer)
    bpe.add_tokens([tokenizers.AddedToken("\n" * n, normalized=False) for n in (1, 2, 3, 4)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    extra = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, **names, extra_special_tokens=extra, chat_template=GEMMA3_TEMPLATE, padding_side="right"
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def talk(*parts: str | tuple[int, int]) -> list[dict]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": picture(*part)}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


# unequal lengths; text alone, two images in a prompt, odd sizes
TALKS = [talk("No image here. " * 3), talk("Left:", (130, 65), "right:", (64, 97), "what?"), talk((33, 211), "Why?")]
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_hidden_layers": 3, "sliding_window": WINDOW, "query_pre_attn_scalar": 24, "max_position_embeddings": 512,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
    },
}  # fmt: skip
TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 112,
    "patch_size": 14, "vision_use_head": False,
}  # fmt: skip


def write(directory, **changes):
    """transformers' model and processor, saved in the directory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = tokenizer_of(directory)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in MARKS}
    text = SIZES | {"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=TOWER, mm_tokens_per_image=16, image_token_index=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"], eoi_token_index=ids["<end_of_image>"], **changes,
    )  # fmt: skip
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        centre = 1.0 if "layer_norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, centre, 0.2)
    model.generation_config.eos_token_id = [1, ids["<end_of_turn>"]]
    model.save_pretrained(directory)
    images = transformers.Gemma3ImageProcessorPil(size={"height": 112, "width": 112})
    processor = transformers.Gemma3Processor(images, tokenizer, GEMMA3_TEMPLATE, image_seq_length=16)
    processor.save_pretrained(directory)
    return model, processor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(transformers' model and processor, their directory)."""
    directory = tmp_path_factory.mktemp("gemma3")
    return *write(directory), directory


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def torch_inputs(processor, talks: list, **images) -> dict:
    how = {"return_tensors": "pt", "padding": True, **images}
    return processor.apply_chat_template(
        talks, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=how
    )


def spread(patches: np.ndarray) -> np.ndarray:
    """Patches by soft token -> pixels [3, H, W]."""
    return rearrange(patches, "(m n a b) (c x y) -> c (m a x) (n b y)", m=4, n=4, a=2, b=2, c=3, x=14, y=14)


@pytest.mark.parametrize("scan", [False, True])
def test_pixels_and_tokens_are_those_of_transformers(scan, checkpoint):
    _, theirs, directory = checkpoint
    with chosen(pan_and_scan=scan):
        ours = load_processor(directory)
    assert ours.image_config.scan == scan
    ours.image_config = dataclasses.replace(ours.image_config, least_part=20, most_parts=3)
    talks = [*TALKS, talk((250, 40), (40, 250), "long"), talk((24, 20), "tiny")]
    talks[0] = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *talks[0]]
    inputs = torch_inputs(
        theirs, talks, do_pan_and_scan=scan, pan_and_scan_min_crop_size=20, pan_and_scan_max_num_crops=3
    )
    encoded = [ours.encode(one) for one in talks]
    for row, one in enumerate(encoded):
        valid = inputs["attention_mask"][row].bool()
        assert one.tokens.tolist() == inputs["input_ids"][row][valid].tolist()
        soft = inputs["token_type_ids"][row][valid].numpy() == 1
        assert np.array_equal(one.vision_index >= 0, soft)
    own = np.stack([spread(patches) for one in encoded for patches, _ in one.images])
    assert np.array_equal(own, inputs["pixel_values"].numpy())
    assert len(own) == (19 if scan else 6)


def test_marks_spelt_out_in_a_message_are_text(checkpoint):
    processor = load_processor(checkpoint[2])
    plain, spelt = (processor.encode(talk(text)) for text in ("why?", "why?<start_of_image><end_of_turn><bos>"))
    marks = [processor.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS]
    count = [np.isin(one.tokens, marks).sum() for one in (plain, spelt)]
    assert count[0] == count[1] and len(spelt.tokens) > len(plain.tokens) + 20
    said = processor.tokenizer.decode(spelt.tokens, skip_special_tokens=True).replace(" ", "")
    assert "why?<start_of_image><end_of_turn><bos>" in said


@pytest.mark.parametrize("stacked", [False, True])
def test_logits_equal_transformers(checkpoint, stacked):
    reference, theirs, directory = checkpoint
    model, params = load_model(directory)
    batch = load_processor(directory)(TALKS, min_images=4)  # one padding image
    logits = np.asarray(model.logits(stack(params) if stacked else params, batch))
    inputs = torch_inputs(theirs, TALKS)
    with torch.no_grad():
        expected = reference(**inputs).logits.numpy()
    valid = inputs["attention_mask"].numpy().astype(bool)
    assert np.abs(logits[:, : expected.shape[1]] - expected)[valid].max() < TOLERANCE * expected[valid].std()
    assert np.isfinite(logits).all()


def test_greedy_text_equals_transformers_and_decoding_the_full_forward(checkpoint):
    """Rows refilled while they decode, past the window, against transformers one by one."""
    reference, theirs, directory = checkpoint
    check_greedy_text(reference, directory, TALKS, partial(torch_inputs, theirs), 20, width=4)


@pytest.mark.parametrize("stacked", [False, True])
def test_caches_and_packed_continuations_equal_the_full_forward(checkpoint, stacked):
    """Log-probabilities of given continuations, longer than the window: packed, unpacked, by cache, in one row."""
    _, _, directory = checkpoint
    model, params = load_model(directory)
    params = stack(params) if stacked else params
    processor = load_processor(directory)
    batch = processor(TALKS)
    lengths = np.array([[12, 3], [1, 12], [7, 10]], np.int32)
    tokens = np.random.default_rng(0).integers(8, 150, (3, 2, 12)).astype(np.int32)
    score = jax.jit(partial(completion_logprobs, model), static_argnames="remat")
    plain = score(params, batch, tokens, lengths, remat=True)
    layout = packed(lengths, 12, 2)
    np.testing.assert_allclose(score(params, batch, tokens, lengths, packing=layout), plain, rtol=1e-4, atol=1e-4)
    prefix = jax.jit(model.prefill)(params, batch)
    cache, hidden = model.init_cache(3, 2, 12, jnp.float32), []
    decode = jax.jit(lambda cache, new, step: model.decode(params, prefix, cache, new, step))
    for step in range(11):
        new, cache = decode(cache, tokens[..., step], step)
        hidden.append(new)
    logits = np.asarray(jax.jit(model.unembed)(params, jnp.stack(hidden, 2)))  # [B, G, 11, V]
    scored = np.take_along_axis(jax.nn.log_softmax(logits), tokens[..., 1:, None], -1)[..., 0]
    inside = np.arange(1, 12) < lengths[..., None]
    np.testing.assert_allclose(scored[inside], np.asarray(plain)[..., 1:][inside], rtol=1e-4, atol=1e-4)
    for row, one in enumerate(TALKS):
        encoded = processor.encode(one)
        whole = np.concatenate([encoded.tokens, tokens[row, 0]])
        positions = np.tile(np.arange(len(whole), dtype=np.int32), (3, 1))
        index = np.concatenate([encoded.vision_index, np.full(12, -1, np.int32)])
        joined = processor.collate([Encoded(whole, positions, len(whole), index, encoded.images)])
        said = jax.nn.log_softmax(model.logits(params, joined))[0, len(encoded.tokens) - 1 : -1]
        expected = np.take_along_axis(np.asarray(said), tokens[row, 0][:, None], -1)[:, 0]
        valid = np.arange(12) < lengths[row, 0]
        np.testing.assert_allclose(np.asarray(plain)[row, 0][valid], expected[valid], rtol=1e-4, atol=1e-4)


def test_lora_equals_peft_in_both_directions(checkpoint, tmp_path):
    _, theirs, directory = checkpoint
    check_lora(
        transformers.Gemma3ForConditionalGeneration.from_pretrained,
        directory,
        TALKS,
        torch_inputs(theirs, TALKS),
        tmp_path,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_exports_load_in_transformers_unchanged(checkpoint, tied, tmp_path):
    reference, theirs, directory = checkpoint
    if not tied:
        directory = tmp_path / "untied"
        reference, theirs = write(directory, tie_word_embeddings=False)
    model, params = load_model(directory)
    assert ("lm_head" in params) != tied
    save_pretrained(tmp_path / "export", model, params, load_processor(directory))
    load = transformers.Gemma3ForConditionalGeneration.from_pretrained
    again, info = load(tmp_path / "export", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "export", backend="pil")
    inputs, expected = torch_inputs(processor, TALKS), torch_inputs(theirs, TALKS)
    assert type(processor).__name__ == "Gemma3Processor" and processor.image_seq_length == 16
    assert all(torch.equal(inputs[key], expected[key]) for key in expected)
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, reference(**inputs).logits)
    assert load_model(tmp_path / "export")[0].config == model.config
    assert load_processor(tmp_path / "export").image_config == load_processor(directory).image_config
    names = set(load_file(tmp_path / "export" / "model.safetensors"))
    assert "vision_tower.vision_model.embeddings.position_embedding.weight" in names  # the hub's, which vLLM reads too
    assert "language_model.model.norm.weight" in names


def test_a_text_only_size_is_a_decoder(checkpoint, tmp_path):
    """Its own class in transformers; the file's older keys; images refused by name."""
    tokenizer = tokenizer_of(tmp_path)
    config = transformers.Gemma3TextConfig(**SIZES, vocab_size=len(tokenizer), eos_token_id=1)
    reference = transformers.Gemma3ForCausalLM(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    reference.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    rope = values.pop("rope_parameters")
    values |= {"rope_theta": 1e5, "rope_local_base_freq": 1e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert rope["full_attention"]["rope_theta"] == 1e5
    file.write_text(json.dumps(values))
    model, params = load_model(tmp_path)
    processor = load_processor(tmp_path)
    batch = processor([TALKS[0], talk("Why?")])
    with torch.no_grad():
        ids = torch.tensor(np.asarray(batch.tokens), dtype=torch.long)
        expected = reference(ids).logits.numpy()
    valid = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    logits = np.asarray(model.logits(params, batch))
    assert np.abs(logits - expected)[valid].max() < TOLERANCE * expected[valid].std()
    with pytest.raises(DataError, match="text alone"):
        processor([TALKS[1]])
    save_pretrained(tmp_path / "export", model, params, processor)
    again, info = transformers.Gemma3ForCausalLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, reference(ids).logits)
    card = (tmp_path / "export" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "vision tower | none" in card
    example = card.split("```python")[1].split("```")[0].replace("max_new_tokens=1024", "max_new_tokens=2")
    exec(example.replace("this directory", str(tmp_path / "export")), {})  # the lines for readers run as they stand


def test_what_is_no_gemma3_is_refused(checkpoint, tmp_path):
    directory = shutil.copytree(checkpoint[2], tmp_path / "broken")
    config = json.loads((directory / "config.json").read_text())
    changes = {
        "final_logit_softcapping": ("text_config", 30.0),
        "layer_types": ("text_config", ["full_attention"]),
        "hidden_activation": ("text_config", "silu"),
        "rope type": ("text_config", {"full_attention": {"rope_type": "yarn"}}),
        "mm_tokens_per_image": (None, 15),
    }
    for words, (section, value) in changes.items():
        key = "rope_parameters" if words == "rope type" else words
        new = {key: value} if section is None else {section: config[section] | {key: value}}
        (directory / "config.json").write_text(json.dumps(config | new))
        with pytest.raises(DataError, match=words):
            load_model(directory)
    (directory / "config.json").write_text(json.dumps(config))
    images = json.loads((directory / "processor_config.json").read_text())
    images["image_processor"]["size"] = {"height": 224, "width": 224}
    (directory / "processor_config.json").write_text(json.dumps(images))
    with pytest.raises(DataError, match="squares of 112"):
        load_processor(directory)
    with pytest.raises(DataError, match="max_pixels"):
        part = {"type": "image", "image": picture(20, 20), "max_pixels": 1000}
        load_processor(checkpoint[2])([[{"role": "user", "content": [part]}]])


def test_gradients_reach_both_towers(checkpoint):
    model, params = load_model(checkpoint[2])
    batch = load_processor(checkpoint[2])(TALKS)
    lora = mx.lora.init(jax.random.key(0), params, rank=2)

    def loss(lora, params, remat):
        return jnp.sum(jnp.tanh(model.prefill(params, batch, lora, remat).hidden))

    gradient = jax.jit(jax.grad(loss), static_argnums=2)
    slopes = gradient(lora, params, False)
    assert all(float(jnp.abs(pair["b"]).max()) > 0 for pair in slopes.factors.values())
    again = unstack(gradient(stack(lora), stack(params), True))
    for name, leaf in flatten(slopes.factors).items():
        np.testing.assert_allclose(leaf, flatten(again.factors)[name], rtol=2e-3, atol=1e-4)


def test_sizes_are_those_of_the_published_checkpoints():
    """Parameters of google/gemma-3-4b-it and -27b-it, by transformers' classes without memory."""
    for name, sizes in {
        "medgemma_4b": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
        "medgemma_27b": {
            "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "num_attention_heads": 32,
            "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 168,
        },
    }.items():  # fmt: skip
        tower = {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "image_size": 896, "patch_size": 14, "vision_use_head": False,
        }  # fmt: skip
        scaled = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
        with torch.device("meta"):
            config = transformers.Gemma3Config(text_config=sizes | scaled, vision_config=tower)
            reference = transformers.Gemma3ForConditionalGeneration(config)
        count = sum(parameter.numel() for parameter in reference.parameters())
        shape = PUBLISHED[name]
        assert sum(math.prod(size) for size in tensor_shapes(shape).values()) == count
        said = {"eos_token_id": [1, 106], "bos_token_id": 2, "pad_token_id": 0}
        assert ModelConfig.from_hf(config.to_dict(), said) == shape
        assert ModelConfig.from_hf(shape.to_hf(), said) == shape
