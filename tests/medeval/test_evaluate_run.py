import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from mmedexpert_jax import medeval
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.medeval import Evaluation
from mmedexpert_jax.models import Model, ModelConfig, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.qwen2_vl import nest, tensor_shapes
from mmedexpert_jax.runtime import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    """Two random models and a data set of four text cases."""
    folder = tmp_path_factory.mktemp("evaluation")
    text = TextConfig(400, 16, 24, 1, 2, 1, mrope_section=(2, 1, 1))
    vision = VisionConfig("qwen2_vl", depth=1, hidden_size=8, intermediate_size=16, num_heads=1, out_hidden_size=16)
    model = Model(ModelConfig(text, vision, True, 398, 399, 395, 396, 386, 386, (388, 386)))
    for seed, name in enumerate(("first", "second")):
        rng = np.random.default_rng(seed)
        shapes = tensor_shapes(model.config)
        params = nest({key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()})
        save_pretrained(folder / name, model, params, processor)
    rows = [
        {
            "id": str(i),
            "question": "Which?",
            "options": ["one", "two"],
            "answer": "AB"[i % 2],
            "specialty": "AM",
            "task": "t",
        }
        for i in range(4)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(folder, **changes):
    config = ConfigDict(
        {
            "model": {"path": f"{folder}/first", "dtype": ""},
            "compare": (f"tuned={folder}/second",),
            "data": {"path": str(folder)},
            "split": "test",
            "limit": 0,
            "seed": 0,
            "num_samples": 1,
            "temperature": 0.0,
            "batch_size": 4,
            "max_prompt_length": 256,
            "max_new_tokens": 4,
            "paradigm": "",
            "scorer": "strict",
        }
    )
    with config.unlocked():
        config.update(changes)
    return config


def execute(config, path):
    with Run.open(path, config) as run:
        medeval.run(config, run)
        return run.summary


def test_run_leaves_rows_tables_and_a_report(folder, tmp_path):
    """The real model and sampler, from directory to report."""
    summary = execute(settings(folder), tmp_path)
    first = f"{folder}/first"
    assert list(summary["models"]) == [first, "tuned"]
    rows = sorted((tmp_path / "export" / "rows").iterdir())
    assert len(rows) == 2 and all(len(Evaluation.read(path).rows) == 4 for path in rows)
    assert json.loads((tmp_path / "export" / "summary.json").read_text()) == summary["models"]
    table = (tmp_path / "table.md").read_text()
    assert "always A" in table and "chance (uniform guess) | 50.0" in table and "## Paired comparison" in table
    assert "always A" in (tmp_path / "report.html").read_text()
    assert len(list((tmp_path / "samples").glob("*/*.jsonl"))) == 2


def test_a_resumed_run_does_not_ask_a_model_again(folder, tmp_path, sampler):
    config = settings(folder, max_new_tokens=64)

    def stop(row, sample):
        if len(sampler.calls) == 2:
            raise KeyboardInterrupt
        return "<answer>A</answer>"

    sampler.say = stop
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path)
    sampler.say = lambda row, sample: "<answer>B</answer>"
    execute(config, tmp_path)
    assert len(sampler.calls) == 3  # first; second, cut off; second
    read = {p.stem: Evaluation.read(p).rows[0].letter for p in (tmp_path / "export" / "rows").iterdir()}
    assert read.pop("tuned") == "B" and list(read.values()) == ["A"]


def test_two_models_of_one_name(folder, tmp_path):
    with pytest.raises(ConfigError, match="two models are called 'a'"):
        execute(settings(folder, compare=(f"a={folder}/first", f"a={folder}/second")), tmp_path)
