"""Qwen3-VL against transformers on a random checkpoint: prompts, logits, greedy text, LoRA, exports."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin

import mmedexpert_jax as mx
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.models import load_model, load_processor, save_pretrained
from mmedexpert_jax.models.locate import MINI
from mmedexpert_jax.models.tree import flatten, stack
from tests.models.beside_torch import TOLERANCE, check_greedy_text, check_lora

MEAN = STD = [0.5, 0.5, 0.5]
TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


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
TALKS = [talk("No image here."), talk("Left:", (130, 65), "right:", (64, 97), "what?"), talk((33, 211), "Why?")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(transformers' model, its directory with the embedded tokenizer)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = json.loads((MINI / "config.json").read_text())
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": ids["vocab_size"], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
            "eos_token_id": ids["eos_token_id"], "bos_token_id": ids["bos_token_id"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2],
                                "mrope_interleaved": True},
        },
        vision_config={"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
                       "patch_size": 16, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2]},
        tie_word_embeddings=False,
        **{key: ids[key] for key in ids if (key.endswith("_token_id") and "vision" in key) or key == "image_token_id"},
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    directory = tmp_path_factory.mktemp("qwen3")
    model.save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MINI / file, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    size = {"shortest_edge": 65536 // 16, "longest_edge": 16777216}
    images = Qwen2VLImageProcessorPil(patch_size=16, image_mean=MEAN, image_std=STD, size=size)
    images.save_pretrained(directory)
    return model, directory


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def torch_inputs(processor, talks: list) -> dict:
    """transformers' arguments: its image processor's patches and our ids, which are compared elsewhere."""
    encoded = [processor.encode(one) for one in talks]
    length = max(len(one.tokens) for one in encoded)
    tokens = np.full((len(talks), length), processor.pad_id, np.int64)
    mask = np.zeros((len(talks), length), np.int64)
    for row, one in enumerate(encoded):
        tokens[row, : len(one.tokens)], mask[row, : len(one.tokens)] = one.tokens, 1
    inputs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    inputs["mm_token_type_ids"] = torch.tensor(((tokens == processor.image_token_id) & (mask == 1)).astype(np.int32))
    pictures = [part["image"] for one in talks for part in one[0]["content"] if part["type"] == "image"]
    if pictures:
        size = {"shortest_edge": processor.image_config.min_pixels, "longest_edge": processor.image_config.max_pixels}
        images = Qwen2VLImageProcessorPil(patch_size=16, image_mean=MEAN, image_std=STD, size=size)
        inputs |= dict(images(pictures, return_tensors="pt"))
    return inputs


def test_patches_and_positions_are_those_of_transformers(checkpoint):
    model, directory = checkpoint
    processor = load_processor(directory)
    inputs = torch_inputs(processor, TALKS)
    batch = processor(TALKS)
    own = np.concatenate([patches for one in TALKS for patches, _ in processor.encode(one).images])
    assert np.array_equal(own, inputs["pixel_values"].numpy())
    rope = {key: inputs[key] for key in inputs if key != "pixel_values"}
    positions, delta = model.model.get_rope_index(**rope)
    for row, length in enumerate(batch.lengths):
        assert np.array_equal(batch.positions[row, :, :length], positions[:, row, :length].numpy())
        assert batch.next_position[row] == length + delta[row, 0]


class Reference(Qwen3VLProcessor):
    """transformers' own, without the video processor that torchvision would have to serve."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = map(
            tokenizer.convert_tokens_to_ids, (self.image_token, self.video_token)
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


@pytest.mark.parametrize("opening", ["", "<think>\\n"])
def test_prompts_are_those_of_transformers_processor(checkpoint, opening, tmp_path):
    """Of the Instruct models and the Thinking ones, whose templates open the reasoning; system turns, two images."""
    directory = shutil.copytree(checkpoint[1], tmp_path / "model")
    template = TEMPLATE.replace("assistant\\n'", f"assistant\\n{opening}'")
    (directory / "chat_template.jinja").write_text(template)
    processor = load_processor(directory)
    images = Qwen2VLImageProcessorPil.from_pretrained(
        directory, min_pixels=processor.image_config.min_pixels, max_pixels=processor.image_config.max_pixels
    )
    reference = Reference(images, AutoTokenizer.from_pretrained(directory), template)
    system = {"role": "system", "content": [{"type": "text", "text": "Answer shortly."}]}
    for one in (*TALKS, [system, *TALKS[1]]):
        said = reference.apply_chat_template(
            [one], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
        )
        encoded = processor.encode(one)
        assert np.array_equal(encoded.tokens, said["input_ids"][0])
        if encoded.images:
            assert np.array_equal(np.concatenate([patches for patches, _ in encoded.images]), said["pixel_values"])
    assert processor.decode(encoded.tokens).endswith("<think>\n") == bool(opening)


@pytest.mark.parametrize("strips", [[], [[2, 0, 1]]], ids=["rows", "strips"])
@pytest.mark.parametrize("stacked", [False, True])
def test_logits_equal_transformers(checkpoint, stacked, strips):
    reference, directory = checkpoint
    model, params = load_model(directory)
    processor = load_processor(directory)
    encoded = [processor.encode(one) for one in TALKS]
    batch = processor.collate(encoded, min_images=4, strips=strips, min_strip=200)  # one padding image
    assert not strips or batch.patches.shape[:2] == (1, 200)
    logits = np.asarray(model.logits(stack(params) if stacked else params, batch))
    with torch.no_grad():
        inputs = torch_inputs(processor, TALKS)
        expected = reference(**inputs).logits.numpy()
    valid = inputs["attention_mask"].numpy().astype(bool)
    assert np.abs(logits[:, : expected.shape[1]] - expected)[valid].max() < TOLERANCE * expected[valid].std()
    assert np.isfinite(logits).all()


def test_greedy_text_equals_transformers_and_decoding_the_full_forward(checkpoint):
    reference, directory = checkpoint
    check_greedy_text(reference, directory, TALKS, partial(torch_inputs, load_processor(directory)), 24)


def test_lora_equals_peft_in_both_directions(checkpoint, tmp_path):
    _, directory = checkpoint
    check_lora(
        Qwen3VLForConditionalGeneration.from_pretrained,
        directory,
        TALKS,
        torch_inputs(load_processor(directory), TALKS),
        tmp_path,
    )


@pytest.mark.parametrize("tied", [False, True])
def test_exports_load_in_transformers_unchanged(checkpoint, tied, tmp_path):
    reference, directory = checkpoint
    if tied:
        directory = shutil.copytree(directory, tmp_path / "tied")
        config = json.loads((directory / "config.json").read_text())
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
        (directory / "config.json").write_text(json.dumps(config))
        tensors = load_file(directory / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        reference = Qwen3VLForConditionalGeneration.from_pretrained(directory).eval()
    model, params = load_model(directory)
    assert ("lm_head" not in params) == tied
    save_pretrained(tmp_path / "export", model, params, load_processor(directory))
    again, info = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    inputs = torch_inputs(load_processor(tmp_path / "export"), TALKS)
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, reference(**inputs).logits)
    assert load_model(tmp_path / "export")[0].config.text == model.config.text
    saved = json.loads((tmp_path / "export" / "preprocessor_config.json").read_text())
    assert saved["processor_class"] == "Qwen3VLProcessor" and saved["max_pixels"] == 16777216


def test_what_is_no_qwen3_vl_is_refused(checkpoint, tmp_path):
    directory = shutil.copytree(checkpoint[1], tmp_path / "broken")
    config = json.loads((directory / "config.json").read_text())
    for section, change in {
        "vision_config": {"deepstack_visual_indexes": [3]},
        "text_config": {"attention_bias": True},
    }.items():
        (directory / "config.json").write_text(json.dumps(config | {section: config[section] | change}))
        with pytest.raises(DataError, match=next(iter(change))):
            load_model(directory)


def test_gradients_reach_both_towers(checkpoint):
    model, params = load_model(checkpoint[1])
    batch = load_processor(checkpoint[1])(TALKS)
    lora = mx.lora.init(jax.random.key(0), params, rank=2)

    def loss(lora, remat):
        return jnp.sum(jnp.tanh(model.prefill(params, batch, lora, remat).hidden))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    slopes = gradient(lora, False)
    assert all(float(jnp.abs(pair["b"]).max()) > 0 for pair in slopes.factors.values())
    again = gradient(lora, True)
    for name, leaf in flatten(slopes.factors).items():
        np.testing.assert_allclose(leaf, flatten(again.factors)[name], rtol=1e-3, atol=1e-5)
