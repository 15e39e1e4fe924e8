"""One step of DSA, one of GBA and a merge of the two on a checkpoint of LLaVA's family, with images."""

import json

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image

import mmedexpert_jax
from mmedexpert_jax.models import load_model
from tests.models.test_llava import write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llava")
    write("clip-mistral", directory)
    return directory


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Four cases a split, half of them with an image of a shape of its own."""
    folder = tmp_path_factory.mktemp("cases")
    for split in ("train", "dev", "test"):
        rows = []
        for i in range(4):
            if i % 2:
                pixels = np.random.default_rng(i).integers(0, 255, (40 + i, 90, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}-{i}.png")
            rows.append({
                "id": f"{split}-{i}", "question": "What is the score?", "options": ["1", "2"], "answer": "AB"[i % 2],
                "specialty": "AM", "task": "score", "paradigm": "analytical",
                "trace": "Her rate is 32, so the score is high.", "images": [f"{split}-{i}.png"] if i % 2 else [],
            })  # fmt: skip
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def run(job: str, workdir, **overrides):
    mmedexpert_jax.launch(mmedexpert_jax.load_config(f"configs/{job}.py:mini", {"workdir": str(workdir)} | overrides))
    return workdir / "export" / "adapter"


@pytest.mark.slow
def test_a_step_of_each_trainer_and_a_merge(checkpoint, cases, tmp_path):
    common = {
        "model.path": str(checkpoint),
        "data.path": cases,
        "steps": 1,
        "lora.rank": 2,
        "lr": 1e-2,
        "eval.every": 0,
    }
    dsa = run("dsa", tmp_path / "dsa", **common, batch_size=4, accumulation=1, specialty="AM")
    rewards = tmp_path / "rewards.py"  # random answers earn none of the others, and equal rewards train nothing
    rewards.write_text(
        "def vowels(case, text, **_):\n    return sum(letter in 'aeiou' for letter in text) / (1 + len(text))\n"
    )
    sampled = {"prompts_per_step": 4, "num_samples": 4, "max_new_tokens": 6, "micro_batch": 2, "temperature": 1.0}
    sampled["rewards.functions"] = (f"{rewards}:vowels=2",)
    gba = run("gba", tmp_path / "gba", **common, **sampled)
    for folder in (dsa, gba):
        base = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint)
        adapted = PeftModel.from_pretrained(base, folder).state_dict()
        trained = {name: tensor for name, tensor in adapted.items() if "lora_B" in name}
        assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    assert any(tensor.abs().max() > 0 for name, tensor in trained.items() if "multi_modal_projector" in name)
    experts = {"experts": [f"AM={dsa}", f"BS={gba}"], "model.path": str(checkpoint)}
    merged = run("merge", tmp_path / "merge", **experts).parent / "model"
    _, info = transformers.LlavaForConditionalGeneration.from_pretrained(merged, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    load_model(merged)
