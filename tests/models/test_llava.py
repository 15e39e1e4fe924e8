"""LLaVA's family against transformers on random checkpoints: prompts, logits, greedy text, LoRA, exports, training."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

import mmedexpert_jax as mx
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.models import load_model, load_processor, save_pretrained
from mmedexpert_jax.models.config import ModelConfig
from mmedexpert_jax.models.locate import MINI
from mmedexpert_jax.models.tree import flatten, stack
from mmedexpert_jax.processing.llava_templates import VICUNA
from tests.models.beside_torch import TOLERANCE, check_greedy_text, check_lora, gap

VOCABULARY = 1952
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWER |= {"image_size": 56, "patch_size": 14}
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1932, "eos_token_id": 1934}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TOWERS = {
    "clip": transformers.CLIPVisionConfig(**TOWER),
    "siglip": transformers.SiglipVisionConfig(**TOWER, vision_use_head=False),
}
DECODERS = {
    "mistral": transformers.MistralConfig(**TEXT, sliding_window=None),
    "mistral1": transformers.MistralConfig(**TEXT, sliding_window=9),
    "llama": transformers.LlamaConfig(
        **TEXT, rope_parameters=LLAMA3 | {"original_max_position_embeddings": 32}, rms_norm_eps=1e-5
    ),
    "qwen2": transformers.Qwen2Config(**TEXT, tie_word_embeddings=True),
}
# LLaVA-Med's pair, BiMediX2's, HuatuoGPT-Vision's (whose head is untied), and one with SigLIP and Mistral 0.1's window
PAIRS = {
    "clip-mistral": {"do_pad": True},
    "clip-llama": {},
    "siglip-qwen2": {},
    "siglip-mistral1": {"layer": -1},
}


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


def randomise(model):
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model.eval()


def write(pair: str, directory, tied: bool | None = None):
    """transformers' model and processor of a pair, saved in the directory with the embedded tokenizer."""
    tower, decoder = pair.split("-")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(MINI)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    how = PAIRS[pair]
    strategy = "default" if tower == "clip" else "full"
    config = LlavaConfig(
        vision_config=TOWERS[tower], text_config=DECODERS[decoder], vision_feature_layer=how.get("layer", -2),
        vision_feature_select_strategy=strategy, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = randomise(LlavaForConditionalGeneration(config))
    model.save_pretrained(directory)
    sides = {"height": 56, "width": 56}
    if tower == "siglip":
        images = transformers.SiglipImageProcessorPil(size=sides)
    elif how.get("do_pad"):
        images = transformers.LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=sides, do_pad=True)
    else:
        images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=sides)
    processor = LlavaProcessor(
        images, tokenizer, 14, strategy, VICUNA, num_additional_image_tokens=int(tower == "clip")
    )
    processor.save_pretrained(directory)
    return model, processor


@pytest.fixture(scope="module", params=PAIRS)
def checkpoint(request, tmp_path_factory):
    """(transformers' model, its processor, their directory)."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp(request.param)
    return *write(request.param, directory), directory


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def torch_inputs(reference: LlavaProcessor, talks: list) -> dict:
    """transformers' own arguments, padded on the right."""
    reference.tokenizer.padding_side = "right"
    return reference.apply_chat_template(
        talks, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": True},
    )  # fmt: skip


def test_tokens_and_pixels_are_those_of_transformers(checkpoint):
    _, reference, directory = checkpoint
    processor = load_processor(directory)
    batch, inputs = processor(TALKS), torch_inputs(reference, TALKS)
    for row, length in enumerate(inputs["attention_mask"].sum(1)):
        assert np.array_equal(batch.tokens[row, : batch.lengths[row]], inputs["input_ids"][row, :length])
    own = np.stack([patches for one in TALKS for patches, _ in processor.encode(one).images])
    pixels = rearrange(inputs["pixel_values"].numpy(), "i c (h a) (w b) -> i (h w) (c a b)", a=14, b=14)
    assert np.array_equal(own, pixels)


@pytest.mark.parametrize("stacked", [False, True])
def test_logits_equal_transformers(checkpoint, stacked):
    reference, transform, directory = checkpoint
    model, params = load_model(directory)
    batch = load_processor(directory)(TALKS, min_images=4, min_patches=24)  # a padding image, and rows of padding
    logits = np.asarray(model.logits(stack(params) if stacked else params, batch))
    inputs = torch_inputs(transform, TALKS)
    with torch.no_grad():
        assert gap(logits, reference(**inputs).logits, inputs["attention_mask"]) < TOLERANCE
    assert np.isfinite(logits).all()


def test_greedy_text_equals_transformers_and_decoding_the_full_forward(checkpoint):
    reference, transform, directory = checkpoint
    check_greedy_text(reference, directory, TALKS, partial(torch_inputs, transform), 24)


def test_lora_equals_peft_in_both_directions(checkpoint, tmp_path):
    _, transform, directory = checkpoint
    check_lora(
        LlavaForConditionalGeneration.from_pretrained, directory, TALKS, torch_inputs(transform, TALKS), tmp_path
    )


def test_exports_load_in_transformers_unchanged(checkpoint, tmp_path):
    reference, transform, directory = checkpoint
    model, params = load_model(directory)
    save_pretrained(tmp_path, model, params, load_processor(directory))
    again, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    inputs = torch_inputs(transform, TALKS)
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, reference(**inputs).logits)
    saved = torch_inputs(transformers.AutoProcessor.from_pretrained(tmp_path, backend="pil"), TALKS)
    assert torch.equal(saved["input_ids"], inputs["input_ids"])
    assert torch.equal(saved["pixel_values"], inputs["pixel_values"])
    assert load_model(tmp_path)[0].config == model.config
    assert load_processor(tmp_path).image_config == load_processor(directory).image_config


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("text_config", {"attention_bias": True}),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}),
        ("text_config", {"model_type": "phi"}),
        ("vision_config", {"model_type": "vit"}),
        ("", {"vision_feature_layer": [-2, -3]}),
        ("", {"vision_feature_layer": 9}),
        ("", {"vision_feature_select_strategy": "full"}),
        ("", {"projector_hidden_act": "swish"}),
    ],
)
def test_what_is_another_network_is_refused_by_its_key(tmp_path, place, change):
    write("clip-mistral", tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content |= {place: content[place] | change} if place else change
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="rope_type" if "rope_parameters" in change else next(iter(change))):
        load_model(tmp_path)


def test_gradients_reach_both_towers(checkpoint):
    model, params = load_model(checkpoint[2])
    batch = load_processor(checkpoint[2])(TALKS)
    lora = mx.lora.init(jax.random.key(0), params, rank=2)

    def loss(lora, remat):
        return jnp.sum(jnp.tanh(model.prefill(params, batch, lora, remat).hidden))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    slopes = gradient(lora, False)
    unused = f"vision_tower.encoder.layers.{TOWER['num_hidden_layers'] - 1}."  # behind the features
    reached = {name: float(jnp.abs(pair["b"]).max()) > 0 for name, pair in slopes.factors.items()}
    last = model.config.vision.feature_blocks == TOWER["num_hidden_layers"]
    assert reached == {name: last or not name.startswith(unused) for name in slopes.factors}
    again = gradient(lora, True)
    for name, leaf in flatten(slopes.factors).items():
        np.testing.assert_allclose(leaf, flatten(again.factors)[name], rtol=1e-3, atol=1e-5)


SHARDED = """
import sys
import jax, numpy as np
from mmedexpert_jax import lora
from mmedexpert_jax.models import load_model, load_processor
from mmedexpert_jax.models.tree import flatten
from mmedexpert_jax.runtime.mesh import make_mesh, shard, shard_batch
from tests.models.test_llava import talk
from tests.models.beside_torch import TOLERANCE, check_greedy_text, check_lora, gap

jax.config.update("jax_default_matmul_precision", "highest")
batch = load_processor(sys.argv[1])([talk((40 + 9 * row, 90), "Why?" * (row + 1)) for row in range(8)])
model, single = load_model(sys.argv[1])
deltas = jax.tree.map(lambda x: np.asarray(x) + 0.05, lora.init(jax.random.key(0), single, rank=2, alpha=4))
expected = np.asarray(model.logits(single, batch, deltas))
for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)):
    mesh = make_mesh(*sizes)
    _, params = load_model(sys.argv[1], mesh=mesh)
    split = [name for name, leaf in flatten(params).items() if not leaf.is_fully_replicated]
    assert sizes[0] == 8 or any("multi_modal_projector.linear_2.weight" in name for name in split), split
    logits = np.asarray(model.logits(params, shard_batch(batch, mesh), shard(deltas, mesh)))
    gap = np.abs(logits - expected).max() / expected.std()
    assert gap < 1e-5, (sizes, gap)
print("ok")
"""


@pytest.mark.slow
def test_logits_on_eight_devices_equal_one_devices(tmp_path):
    write("clip-mistral", tmp_path)
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", SHARDED, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.stdout == "ok\n", done.stderr


def test_a_decoder_whose_files_name_no_first_token_has_its_own_kinds():
    for kind, expected in (("llama", 1), ("mistral", 1), ("qwen2", 151643)):
        content = {"model_type": "llava", "text_config": {"model_type": kind}, "image_token_index": 9}
        assert ModelConfig.from_hf(content).bos_token_id == expected
