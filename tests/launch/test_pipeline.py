"""The pipeline's order, resuming and table, with real merges and evaluations and stand-ins for the trainers."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmedexpert_jax import merging
from mmedexpert_jax.errors import Interrupted
from mmedexpert_jax.launch import load_config, pipeline
from mmedexpert_jax.launch.cli import main

ROWS = ["base", "AM", "CAH", "BS", "CSI", "merged experts", "GBA", "final", "task arithmetic"]


class Trainer:
    """Writes a random adapter over `model.path`, curves and completions, as a trainer would; raises `error` in the run
    called `fail_at`."""

    def __init__(self, write_adapter):
        self.write_adapter = write_adapter
        self.runs: list[str] = []
        self.bases: list[str] = []
        self.error: Exception | None = None
        self.fail_at = ""

    def train(self, config, run, evaluate=None):
        self.runs.append(run.path.name)
        self.bases.append(config.model.path)
        assert evaluate is None, "the evaluate stage scores every model once"
        if self.error and run.path.name == self.fail_at:
            raise self.error
        run.log(1, {"loss": 1.0} if config.job == "dsa" else {"reward": 1.5, "kl": 0.01})
        if config.job == "gba":
            run.table("completions", 1, [{"id": "train-0", "completion": "<answer>A</answer>", "correct": True}])
        self.write_adapter(config, run, seed=len(self.runs))


@pytest.fixture
def command(tiny_checkpoint, tiny_cases, write_adapter, stand_in, tmp_path, monkeypatch):
    """Arguments of a tiny pipeline, and the stand-in of its trainers."""
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(write_adapter)
    stand_in(trainer.train)
    arguments = [
        "--config=configs/pipeline.py",
        "--config.workdir=run",
        f"--config.model.path={tiny_checkpoint}",
        f"--config.data.path={tiny_cases}",
        "--config.evaluate.max_new_tokens=40",
        "--config.evaluate.batch_size=8",
    ]
    return arguments, trainer


@pytest.fixture
def other_benchmark(tmp_path):
    """A folder with two items of OmniMedVQA."""
    row = {"question": "Which organ?", "option_A": "liver", "option_B": "lung", "gt_answer": "lung", "dataset": "set"}
    row |= {"image_path": "a.png", "modality_type": "CT", "question_type": "Organ"}
    folder = tmp_path / "omni" / "QA_information" / "Open-access"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "omni" / "a.png")
    (folder / "set.json").write_text(json.dumps([row | {"question_id": f"q{n}"} for n in range(2)]))
    return tmp_path / "omni"


def test_the_paper_in_order_through_interruptions(command, tiny_checkpoint, capsys, monkeypatch):
    arguments, trainer = command
    trainer.error, trainer.fail_at = Interrupted("step 3 is saved", 15), "BS"
    assert main(arguments) == 143
    assert trainer.runs == ["AM", "CAH", "BS"] and not Path("run/merged").exists()
    assert json.loads(Path("run/STATUS.json").read_text())["state"] == "interrupted"

    trainer.error = None
    assert main(arguments) == 0
    assert trainer.runs == ["AM", "CAH", "BS", "BS", "CSI", "gba"]
    assert trainer.bases == [tiny_checkpoint] * 5 + ["run/merged"]
    final = json.loads(Path("run/final/config.json").read_text())
    assert final["experts"] == [f"{name}=run/experts/{name}" for name in ROWS[1:5]] + ["RL=run/gba"]
    assert final["model"]["path"] == tiny_checkpoint, "the RL vector is taken against the same base"

    lines = Path("run/table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ROWS
    for column in ("accuracy", "AM", "CAH", "BS", "CSI", "gain over base"):
        assert column in lines[0]
    out = capsys.readouterr().out
    assert lines[0] in out and "export:mini model.path=run/final" in out
    assert out.count("Experts disagree in sign on") == 3, "each merge says who won the elections"
    assert any(line.startswith("| RL ") for line in out.splitlines()), "what becomes of the RL vector"

    assert list(json.loads(Path("run/STATUS.json").read_text())["summary"]["accuracy"]) == ROWS
    page = Path("run/report.html").read_text()
    assert page.count("<dt>") < 30, "tiles are for what is read first"
    for section in ("experts-dsa", "gba", "gba-completions", "cost-of-the-stages", "config", "environment"):
        assert f'id="{section}"' in page
    assert 'alt="experts"' in page
    charts = [f"<figcaption><b>{title}</b>" in page for title in ("Reward", "KL to the reference", "Accuracy")]
    assert charts == [True, True, False]

    assert "samples, $" not in page and main([*arguments, "--config.price=3"]) == 0
    assert len(trainer.runs) == 6, "a finished pipeline is left alone"
    assert "13 h for 1,000 samples, $39.00" in Path("run/report.html").read_text(), "and priced"
    monkeypatch.setattr(merging, "run", lambda config, run: 1 / 0)
    assert main([*arguments, "--config.fresh=True"]) == 1
    assert trainer.runs[6:] == ["AM", "CAH", "BS", "CSI"], "fresh starts the stages over too"


def test_every_benchmark_has_a_table(command, other_benchmark, capsys):
    arguments, _ = command
    assert main([*arguments, f"--config.evaluate.benchmarks=mmedexpert_mini,omnimedvqa={other_benchmark}"]) == 0
    text, out = Path("run/table.md").read_text(), capsys.readouterr().out
    for name in ("mmedexpert_mini", "omnimedvqa"):
        _, found, rows = text.partition(f"{name}: Accuracy")
        assert found and [line.split("|")[1].strip() for line in rows.splitlines()[4:13]] == ROWS
    assert text in out
    accuracies = json.loads(Path("run/STATUS.json").read_text())["summary"]["accuracy"]
    assert {name: list(models) for name, models in accuracies.items()} == {"mmedexpert_mini": ROWS, "omnimedvqa": ROWS}


def test_a_stage_has_its_group_and_the_shared_fields():
    overrides = {"seed": 5, "limit": 7, "dsa.lr": 1e-3, "gba.clip_high": 0.3, "fresh": True, "model.dtype": "bfloat16"}
    config = load_config("configs/pipeline.py", overrides)
    stage = pipeline.stage_config(config, "dsa", workdir="w", specialty="BS")
    assert (stage.job, stage.seed, stage.limit, stage.lr, stage.specialty) == ("dsa", 5, 7, 1e-3, "BS")
    assert (stage.workdir, stage.fresh, stage.model.dtype) == ("w", False, "bfloat16")
    stage = pipeline.stage_config(config, "gba", workdir="w", model={"path": "merged"})
    assert (stage.model.path, stage.clip_high, config.model.path) == ("merged", 0.3, "mini")
    for job in ("dsa", "merge", "gba", "evaluate"):
        own = load_config(f"configs/{job}.py")
        stage = pipeline.stage_config(config, job, workdir="w", specialty="AM", experts=(), weights=(), compare=())
        assert set(own) <= set(stage), "a stage finds every field of its own config"
