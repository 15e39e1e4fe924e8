"""A tiny random Qwen2-VL in a checkpoint directory, and a folder of cases of all four specialties."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import mmedexpert_jax
from mmedexpert_jax import lora, models
from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.models import Model, ModelConfig, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.processing.processor import Processor


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    processor = Processor.load(tiny_tokenizer_dir)
    ids = processor.tokenizer.get_vocab()
    config = ModelConfig(
        TextConfig(len(processor.tokenizer), 16, 24, 1, 2, 1, mrope_section=(1, 1, 2)),
        VisionConfig("qwen2_vl", 1, 16, 32, 2, 16),
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        eos_token_ids=(ids["<|im_end|>"],),
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
    )
    directory = tmp_path_factory.mktemp("tiny") / "model"
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(config).items()
    weights = {name: 0.1 * rng.standard_normal(shape, np.float32) for name, shape in shapes}
    save_pretrained(directory, Model(config), nest(weights), processor)
    return str(directory)


@pytest.fixture(scope="session")
def tiny_cases(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight cases a split, two of each specialty, with a trace."""
    folder = tmp_path_factory.mktemp("cases")
    for split in ("train", "dev", "test"):
        rows = [
            {
                "id": f"{split}-{i}",
                "question": "A woman has a rate of 32. What is her score?",
                "options": ["1", "2", "3"],
                "answer": "ABC"[i % 3],
                "specialty": SPECIALTIES[i % 4],
                "task": "score",
                "paradigm": "analytical",
                "trace": "Her rate is 32, so the score is high.",
            }
            for i in range(8)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.fixture(scope="session")
def write_adapter() -> Callable[..., None]:
    """Does in a run what a trainer leaves behind: a random adapter over `model.path`."""

    def write(config, run, seed: int) -> None:
        _, params = models.load_model(config.model.path)
        adapter = lora.init(jax.random.key(seed), params, rank=2, alpha=4, targets="text")
        factors = {path: {"a": pair["a"], "b": pair["b"] + 0.05} for path, pair in adapter.factors.items()}
        lora.save_peft(run.path / "export" / "adapter", lora.Lora(factors, 2, 4), config.model.path)
        run.finish({})

    return write


@pytest.fixture
def stand_in(monkeypatch) -> Callable[[Callable], None]:
    """Puts a function in the place of both trainers' `train`."""

    def replace(train: Callable) -> None:
        for name in ("sft", "gba"):
            monkeypatch.setattr(mmedexpert_jax, name, SimpleNamespace(train=train), raising=False)

    return replace


@pytest.fixture
def planned(capsys, tmp_path, monkeypatch):
    """What a plan prints for a command in an empty folder, which stays empty."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        assert main([*arguments, "--config.plan=True"]) == 0
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().out

    return run
