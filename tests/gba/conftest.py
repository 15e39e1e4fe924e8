"""A random Qwen2-VL of two layers in a checkpoint directory, cases in a file, and a config that trains on them."""

import json
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.gba import trainer
from mmedexpert_jax.gba.policy_learner import PolicyLearner
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models import Model, ModelConfig, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.processing.processor import Processor

NUM_CASES = 10


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    processor = Processor.load(tiny_tokenizer_dir)
    ids = {name: processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    end, pad = (processor.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    text = TextConfig(len(processor.tokenizer), 16, 24, 2, 2, 1, mrope_section=(1, 1, 2))
    config = ModelConfig(
        text, VisionConfig("qwen2_vl", 1, 16, 32, 2, 16), tie_word_embeddings=True, image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"], eos_token_ids=(end,), pad_token_id=pad, bos_token_id=pad,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("tiny") / "model"
    save_pretrained(directory, Model(config), init_params(config, 0, jnp.float32), processor)
    return directory


@pytest.fixture(scope="session")
def cases_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten cases; the third and the sixth differ in their image alone."""
    folder = tmp_path_factory.mktemp("cases")
    for i in (2, 5):
        pixels = np.random.default_rng(i).integers(0, 255, (56, 56, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    rows = [
        {
            "id": f"case-{i}",
            "question": "A woman has a rate of 32. What is her score?" + " Why?" * (i % 3),
            "options": ["1", "2", "3"],
            "answer": "ABC"[i % 3],
            "specialty": "AM",
            "task": "score",
            "images": [f"{i}.png"] if i in (2, 5) else [],
        }
        for i in range(NUM_CASES)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "train.jsonl"


# Fields that no program of the learner depends on.
OUTSIDE = (
    *("workdir", "checkpoint_every", "samples_every", "eval", "rewards", "advantage_scale", "advantage_weights"),
    *("data", "limit", "explain"),
)


@pytest.fixture(scope="session", autouse=True)
def _trace_once():
    """Runs with the same programs share a learner: tracing them takes longer than all that a tiny model computes."""
    learners: dict[str, PolicyLearner] = {}

    def made(model, params, config, ban, samples, steps, mesh, under, memory, objective=None):
        fields = {name: value for name, value in config.to_dict().items() if name not in OUTSIDE}
        key = repr((fields, samples, steps))
        if key not in learners or config.trainable == "full" or under:  # full training gives up what it begins with
            learners[key] = PolicyLearner(model, params, config, ban, samples, steps, mesh, under, memory, objective)
        learners[key]._memory = memory
        return learners[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "PolicyLearner", made)
        yield


def vowels(case, text, **_):
    """A reward on which a random model's samples differ."""
    return sum(letter in "aeiou" for letter in text) / (1 + len(text))


@pytest.fixture(scope="module")
def run_config(tiny_model_dir, cases_file):
    """`make(workdir, **overrides)`: the mini config on the tiny model and cases."""
    sys.modules["own_rewards"] = own = types.ModuleType("own_rewards")
    own.vowels = vowels

    def make(workdir, **overrides):
        base = {
            "workdir": str(workdir), "model.path": str(tiny_model_dir), "data.path": str(cases_file), "steps": 5,
            "prompts_per_step": 4, "num_samples": 4, "max_new_tokens": 6, "micro_batch": 2, "temperature": 0.7,
            "lr": 1e-2, "beta": 0.01, "lora.rank": 2, "checkpoint_every": 2, "samples_every": 2, "eval.every": 2,
            "rewards.functions": ("own_rewards.vowels=2",),
        }  # fmt: skip
        return load_config("configs/gba.py:mini", base | overrides)

    yield make
    del sys.modules["own_rewards"]
