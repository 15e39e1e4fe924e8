"""A step of DSA and of GBA on Gemma 3, Qwen3-VL and quantised bases: trained deltas, an adapter over the plain base."""

import json
import sys
import types
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from PIL import Image

from mmedexpert_jax import lora
from mmedexpert_jax.config.validate import validate
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba import trainer as gba_trainer
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models import Model, ModelConfig, load_policy, load_processor, save_pretrained
from mmedexpert_jax.models.config import PUBLISHED, TextConfig, VisionConfig
from mmedexpert_jax.models.load import chosen
from mmedexpert_jax.models.locate import MINI
from mmedexpert_jax.models.quantised import is_quantised
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.processing.gemma3_prompts import GEMMA3_TEMPLATE, GemmaProcessor, SoftTokens
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.runtime import Run
from mmedexpert_jax.sft import dsa

MARKS = ["<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]


def gemma(directory):
    """A Gemma 3 of three narrow layers with the embedded tokenizer."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(MINI)
    tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": MARKS[1:]})
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    shape = PUBLISHED["medgemma_4b"]
    text = replace(
        shape.text, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_layers=3, num_heads=2,
        num_kv_heads=1, head_width=16, mrope_section=(8, 0, 0), query_width=24, window=7,
        windowed=(True, False, True),
    )  # fmt: skip
    vision = replace(
        shape.vision, depth=1, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32, merge_size=2,
        num_positions=16, image_size=56,
    )  # fmt: skip
    config = replace(
        shape, text=text, vision=vision, image_token_id=ids["<image_soft_token>"],
        vision_start_token_id=ids["<start_of_image>"], vision_end_token_id=ids["<end_of_image>"],
        eos_token_ids=(ids["<end_of_turn>"],), bos_token_id=ids["<bos>"], pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    processor = GemmaProcessor(tokenizer, SoftTokens(56, 14, 2), GEMMA3_TEMPLATE, "gemma3")
    save_pretrained(directory, Model(config), init_params(config, 0, jnp.float32), processor)


def qwen(directory):
    """A Qwen2-VL of two layers as wide as a block of nf4, with the embedded processor."""
    processor = load_processor("mini")
    known = ModelConfig.from_hf(json.loads((MINI / "config.json").read_text()))
    text = TextConfig(known.text.vocab_size, 64, 64, 2, 2, 1, mrope_section=(4, 6, 6))
    config = replace(known, text=text, vision=VisionConfig("qwen2_vl", 1, 64, 64, 2, 64))
    save_pretrained(directory, Model(config), init_params(config, 0, jnp.float32), processor)


def qwen3(directory):
    """A Qwen3-VL of three narrow layers, the first of which takes features of the tower's first block."""
    processor = load_processor("mini")
    known = ModelConfig.from_hf(json.loads((MINI / "config.json").read_text()))
    text = TextConfig(
        known.text.vocab_size, 32, 48, 3, 2, 1, head_width=16, mrope_section=(4, 2, 2), mrope_interleaved=True,
        bias=False, qk_norm=True,
    )  # fmt: skip
    vision = VisionConfig("qwen3_vl", 2, 32, 48, 2, 32, patch_size=16, num_positions=16, deepstack_blocks=(0,))
    config = replace(known, text=text, vision=vision)
    pictures = replace(processor.image_config, patch_size=16)
    processor = Processor(processor.tokenizer, pictures, None, "qwen3_vl")
    save_pretrained(directory, Model(config), init_params(config, 0, jnp.float32), processor)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of each family's checkpoint, and the file of four cases with traces and an image."""
    folder = tmp_path_factory.mktemp("steps")
    gemma(folder / "gemma")
    qwen(folder / "qwen")
    qwen3(folder / "qwen3")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8)).save(folder / "a.png")
    rows = [
        {
            "id": f"case-{i}", "question": "What is her score?" + " Why?" * (i % 3), "options": ["1", "2"],
            "answer": "AB"[i % 2], "specialty": "AM", "task": "score", "trace": "1. The rate is high.",
            "paradigm": "analytical", "images": ["a.png"],
        }
        for i in range(4)
    ]  # fmt: skip
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = types.ModuleType("own_rewards")
    own.vowels = lambda case, text, **_: sum(letter in "aeiou" for letter in text) / (1 + len(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "own_rewards", own)
        yield folder


BASE = {
    "steps": 1, "lr": 1e-2, "lora.rank": 2, "eval.every": -1, "max_prompt_length": 1024, "data.path": "train.jsonl",
}  # fmt: skip
JOBS = {
    "gba": {
        "prompts_per_step": 2, "num_samples": 2, "max_new_tokens": 6, "micro_batch": 2, "temperature": 0.7,
        "rewards.functions": ("own_rewards.vowels=2",), "remat": True,
    },
    "dsa": {"batch_size": 2, "accumulation": 1, "specialty": "mixed", "max_new_tokens": 128},
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "quantize"),
    [("gemma", "none"), ("qwen", "int8"), ("qwen", "nf4"), pytest.param("qwen3", "none", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("job", JOBS)
def test_one_step(job, family, quantize, made, tmp_path):
    where = {"workdir": str(tmp_path / "run"), "model.path": str(made / family), "model.quantize": quantize}
    where |= {"data.path": str(made / "train.jsonl")}
    config = load_config(f"configs/{job}.py:mini", BASE | JOBS[job] | where)
    train = {"gba": gba_trainer.train, "dsa": dsa.train}[job]
    with chosen(quantize=quantize), Run.open(config.workdir, config) as run:
        _, base, _ = load_policy(config.model.path)
        assert is_quantised(base) == (quantize != "none")
        path = train(config, run)
        row = run.metrics()[-1]
    assert np.isfinite(row["loss"]) and row["grad_norm"] > 0
    model, params, deltas = load_policy(path)
    assert not is_quantised(params)  # an export is over the base as it is
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(deltas))
    moved = [name for name, pair in deltas.factors.items() if np.abs(pair["b"]).max() > 0]
    assert any("layers.0.self_attn.q_proj" in name for name in moved)
    assert any("vision_tower" in name or "visual" in name for name in moved)
    assert isinstance(deltas, lora.Lora) and model.config.family in ("gemma3", "qwen2_vl", "qwen3_vl")


@pytest.mark.parametrize(
    ("job", "change"),
    [
        ("dsa", {"trainable": "full"}),
        ("gba", {"shard": "full"}),
        ("gba", {"mesh.tensor": 2}),
        ("export", {}),
        ("merge", {}),
    ],
)
def test_what_a_quantised_base_does_not_go_with_is_one_line(job, change):
    with pytest.raises(ConfigError, match=r"config\.model\.quantize=nf4") as caught:
        validate(load_config(f"configs/{job}.py:mini", {"model.quantize": "nf4", **change}))
    assert "\n" not in str(caught.value)
