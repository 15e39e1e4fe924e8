"""The paper's systems answer through the engine by `system:NAME`, on tiny checkpoints in their layouts."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mmedexpert_jax.data.benchmarks import from_case
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.medeval import scoring
from mmedexpert_jax.medeval.backends.choose import open_backend
from mmedexpert_jax.medeval.eval_job import models
from mmedexpert_jax.medeval.prompt_styles import build
from mmedexpert_jax.medeval.systems import NEWER, SYSTEMS, parse
from mmedexpert_jax.models import Model, ModelConfig, load_processor, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.load import read_config
from mmedexpert_jax.models.locate import MINI
from mmedexpert_jax.models.random import init_params
from tests.models import test_llava_original

TOWERS = {
    "qwen2_vl": {},
    "qwen2_5_vl": {"full_attention_blocks": (0,)},
    "qwen3_vl": {"patch_size": 16, "num_positions": 36},
}
FAMILIES = {  # of systems by Qwen's families
    "medvlm-r1": "qwen2_vl", "med-r1": "qwen2_vl", "medvlthinker": "qwen2_5_vl", "lingshu": "qwen2_5_vl",
    "octomed": "qwen2_5_vl", "octomed-4b": "qwen3_vl", "medix-r1": "qwen3_vl", "medix-r1-2b": "qwen3_vl",
    "medmo": "qwen3_vl", "medvlthinker-7b": "qwen2_5_vl", "lingshu-32b": "qwen2_5_vl",
    "huatuogpt-v-qwen2.5vl": "qwen2_5_vl",
}  # fmt: skip
LAYOUTS = {"llava-med": "llava_mistral", "huatuogpt-v": "llava_qwen2", "bimedix2": "llava_llama"}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8))
CASE = Case("1", "What is the score?", ("one", "two"), "A", "AM", "t", (PICTURE,))


def write_qwen(family: str, directory) -> None:
    mini = read_config(MINI)
    kind = {"qwen3_vl": {"head_width": 16, "bias": False, "qk_norm": True, "mrope_interleaved": True}}.get(family, {})
    text = TextConfig(mini.text.vocab_size, 16, 24, 1, 2, 1, mrope_section=(4, 2, 2) if kind else (2, 1, 1), **kind)
    tower = VisionConfig(family, 1, 16, 32, 2, 16, **TOWERS[family])
    ids = {
        "image_token_id": mini.image_token_id,
        "eos_token_ids": mini.eos_token_ids,
        "pad_token_id": mini.pad_token_id,
    }
    model = Model(ModelConfig(text, tower, tie_word_embeddings=True, **ids))
    processor = load_processor(MINI)
    processor.family = family
    if family == "qwen3_vl":
        processor.image_config = type(processor.image_config)(patch_size=16)
    save_pretrained(directory, model, init_params(model.config, 0, np.float32), processor)


def answer(name: str, directory, monkeypatch) -> tuple[str, str]:
    """The reply of a system whose weights are the directory's, and the form that its prompt asks for."""
    system = {**SYSTEMS, **NEWER}[name]
    folder = system.folders[0] if system.folders else ""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *arguments, **options: str(directory))
    target = parse(f"system:{name}/{folder}" if folder else f"system:{name}")
    config = load_config("configs/evaluate.py", {"max_new_tokens": 6, "batch_size": 1})
    backend = open_backend(config, target, directory, SimpleNamespace(interrupted=lambda: None))
    prompt = build(from_case(CASE), target.prompt)
    found = {}
    with jax.default_matmul_precision("highest"):
        backend.answer([replace(prompt, key="0" * 64)], 1, found.__setitem__)
    return found[0][0].text, prompt.form


@pytest.mark.parametrize("name", FAMILIES)
def test_a_system_of_qwens_families_answers(name, tmp_path, monkeypatch):
    folder = tmp_path / (SYSTEMS[name].folders[0] if name in SYSTEMS and SYSTEMS[name].folders else "")
    write_qwen(FAMILIES[name], folder)
    text, form = answer(name, tmp_path, monkeypatch)
    assert text and form == ("plain" if {**SYSTEMS, **NEWER}[name].prompt == "medevalkit" else "tags")
    said = "<think>(1) high</think><answer>A</answer>" if form == "tags" else "A"
    assert scoring.score(from_case(CASE), said, form=form).right


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_system_of_llavas_family_answers_as_transformers_does(name, tmp_path, monkeypatch):
    reference, _ = test_llava_original.write(LAYOUTS[name], tmp_path)
    test_llava_original.write_tower(reference, tmp_path / "towers" / "clip-tiny")
    text, form = answer(name, tmp_path, monkeypatch)
    assert form == "plain"
    processor = load_processor(tmp_path)
    turns = build(from_case(CASE), "medevalkit").messages
    encoded = processor.encode([{**turn, "content": [_shown(part) for part in turn["content"]]} for turn in turns])
    sides = {"height": 56, "width": 56}
    pad = transformers.LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=sides, do_pad=True)
    reference.config.image_token_index = processor.image_token_id
    inputs = {"input_ids": torch.tensor(encoded.tokens[None].astype(np.int64)), **pad([PICTURE], return_tensors="pt")}
    stops = list(read_config(tmp_path).eos_token_ids)
    written = reference.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=stops, pad_token_id=stops[0])
    assert text == processor.decode(written[0, encoded.tokens.size :].numpy())


def _shown(part: dict) -> dict:
    return {**part, "image": PICTURE} if part["type"] == "image" else part


FIRST, SECOND = "endpoint:gpt@https://a.example/v1", "own=endpoint:m@http://b.example:8000/v1"


@pytest.mark.parametrize(
    ("url", "path", "compare", "keys"),
    [
        ("", FIRST, (SECOND,), ["KEY", ""]),
        ("", "mini", (FIRST, SECOND), [None, "KEY", ""]),
        ("", FIRST, (f"{SECOND}#OTHER", f"same={FIRST}"), ["KEY", "OTHER", "KEY"]),
        ("http://b.example:8000/v1", FIRST, (SECOND, "endpoint:third"), ["", "KEY", "KEY"]),
        ("", f"{FIRST}#", (), [""]),
    ],
)
def test_a_key_goes_to_one_host_alone(url, path, compare, keys):
    fields = {"endpoint.url": url, "endpoint.key_env": "KEY", "model.path": path, "compare": compare}
    found = models(load_config("configs/evaluate.py", fields))
    assert [target.key_env for target in found] == keys and not any("#" in target.url for target in found)


def test_every_system_is_in_one_of_the_layouts():
    """But MedGemma, whose family has tests of its own."""
    assert {*FAMILIES, *LAYOUTS, "medgemma"} == {*SYSTEMS, *NEWER}


AZURE = "https://r.openai.azure.com/openai/deployments/d?api-version=2024-06-01"


@pytest.mark.parametrize(
    ("entry", "name", "model", "url"),
    [
        ("endpoint:claude-3-5-sonnet@20240620", "claude-3-5-sonnet@20240620", "claude-3-5-sonnet@20240620", "set"),
        ("endpoint:claude@20240620@https://x/v1", "claude@20240620", "claude@20240620", "https://x/v1"),
        ("c=endpoint:claude@20240620@https://x/v1", "c", "claude@20240620", "https://x/v1"),
        (f"endpoint:gpt-4o@{AZURE}", "gpt-4o", "gpt-4o", AZURE),
        (f"GPT 4=endpoint:gpt-4o@{AZURE}", "GPT 4", "gpt-4o", AZURE),
        ("endpoint:@cf/meta/llama@http://x", "@cf/meta/llama", "@cf/meta/llama", "http://x"),
        ("endpoint:org/m@http://me:p@host/v1", "org/m", "org/m", "http://me:p@host/v1"),
        ("endpoint:org/m", "org/m", "org/m", "set"),
        ("endpoint:m@localhost:8000/v1", "m", "m", "localhost:8000/v1"),  # refused for want of http://
        ("endpoint:m@api.host.org/v1", "m", "m", "api.host.org/v1"),
    ],
)
def test_ids_and_addresses_with_marks_of_their_own_are_read(entry, name, model, url):
    target = parse(entry, "set")
    assert (target.kind, target.name, target.model, target.url) == ("endpoint", name, model, url)


@pytest.mark.parametrize(
    "entry", ["", "endpoint:", "endpoint:@", "endpoint:@http://127.0.0.1:1/v1", "transformers:", "system:"]
)
def test_an_entry_without_a_model_is_named(entry):
    with pytest.raises(ConfigError, match="names no model; give a directory"):
        parse(entry)


ASKED = {
    "endpoint:claude-3-5-sonnet@20240620": ("claude-3-5-sonnet@20240620", ""),
    "endpoint:claude-3-5-sonnet@20240620@https://x/v1": ("claude-3-5-sonnet@20240620", "https://x/v1"),
    "endpoint:m@https://me:pass@x/v1": ("m", "https://me:pass@x/v1"),
    "endpoint:gpt-4o@https://r.azure.com/d?api-version=2024-06-01": (
        "gpt-4o",
        "https://r.azure.com/d?api-version=2024-06-01",
    ),
    "endpoint:m@localhost:8000/v1": ("m", "localhost:8000/v1"),  # of which the client says what it lacks
    "endpoint:m": ("m", ""),
}


@pytest.mark.parametrize("entry", ASKED)
def test_signs_within_a_model_or_an_address_belong_to_it(entry):
    for name in ("", "mine="):
        found = parse(name + entry)
        assert (found.kind, found.model, found.url) == ("endpoint", *ASKED[entry])
        assert found.name == ("mine" if name else ASKED[entry][0])
    assert parse("a=b/c").model == "b/c" and parse("runs/x=1/ckpt").model == "runs/x=1/ckpt"
