"""The real jobs on a tiny model, through the command line: train with a held-out evaluation, then export."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmedexpert_jax import lora, models
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.launch.jobs import _run_part, default_workdir
from mmedexpert_jax.runtime import Run

SMALL = ["--config.steps=2", "--config.lora.rank=2", "--config.max_new_tokens=40", "--config.eval.batch_size=8"]


@pytest.fixture
def tiny(tiny_checkpoint, tiny_cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [f"--config.model.path={tiny_checkpoint}", f"--config.data.path={tiny_cases}"]


def same(first: dict, second: dict) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_an_expert_is_trained_evaluated_and_exported(tiny, capsys):
    job = ["--config=configs/dsa.py", "--config.specialty=BS", "--config.batch_size=1", "--config.accumulation=2"]
    assert main([*job, *tiny, *SMALL]) == 0
    run = Path("runs/dsa-mini/BS")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 2]
    for part in ("report.html", "export/adapter/adapter_config.json", "export/rows/step-000002.jsonl"):
        assert (run / part).exists(), part
    status = json.loads((run / "STATUS.json").read_text())
    summary, cost = status["summary"], status["cost"]
    assert cost["tokens"] > summary["num_tokens"], "of training and of the held-out answers"
    assert cost["flops"] > 0 and "share of peak" in (run / "report.html").read_text()
    assert summary["held_out/gain"] == summary["held_out/after"] - summary["held_out/before"]
    out = capsys.readouterr().out
    assert "held-out 0.0 -> 0.0 %" in out and "mmedexpert export:mini model.path=runs/dsa-mini/BS" in out

    export = ["--config=configs/export.py", f"--config.model.path={run}"]
    assert main(export) == 0
    assert main([*export, "--config.format=adapter", "--config.workdir=runs/adapter"]) == 0
    capsys.readouterr()
    for plan in ("False", "True"):  # the plan refuses what the run would
        assert main([*export[:1], tiny[0], f"--config.plan={plan}"]) == 2
        assert "--config.workdir=runs/export-mini-2" in capsys.readouterr().err
    trained = models.load_model(run)[1]
    assert same(trained, models.load_model("runs/export-mini")[1])
    assert same(trained, models.load_model("runs/adapter/export/adapter")[1])
    assert main([*export, "--config.format=adapter", "--config.workdir=other", "--config.output=runs/adapter"]) == 2
    wrong = ["--config=configs/export.py", tiny[0], "--config.format=adapter", "--config.workdir=third"]
    assert main(wrong) == 3 and "holds no adapter" in capsys.readouterr().err


def test_an_expert_that_is_done_stays_though_the_others_go_on_with_other_fields(tmp_path, capsys):
    config = load_config("configs/dsa.py", {"specialty": "AM", "workdir": str(tmp_path / "AM"), "lr": 0.1})
    with Run.open(config.workdir, config) as run:
        run.finish({})
    before = (run.path / "config.json").read_bytes()
    for names in (("lr",), ()):  # the next command need not name what the run around it has taken over
        with config.unlocked():
            config.lr, config.allow_changes = 0.2, names
        _run_part(config)
        assert capsys.readouterr().out == f"{run.path} is finished and stays as it is: lr was 0.1, now 0.2\n"
        assert (run.path / "config.json").read_bytes() == before


@pytest.mark.slow
def test_the_whole_paper_on_a_tiny_model(tiny):
    stages = {"dsa": SMALL[:3], "gba": [*SMALL[:3], "--config.num_samples=2", "--config.prompts_per_step=2"]}
    fields = [f.replace("--config.", f"--config.{name}.") for name, group in stages.items() for f in group]
    evaluate = ["--config.evaluate.max_new_tokens=4", "--config.evaluate.batch_size=8"]
    assert main(["--config=configs/pipeline.py", *tiny, *fields, *evaluate]) == 0
    table = Path("runs/pipeline-mini/table.md").read_text()
    assert all(f"| {row} |" in table for row in ("base", "AM", "merged experts", "GBA", "final"))


@pytest.fixture
def adapter(tiny_checkpoint, tmp_path, monkeypatch):
    """An adapter as a trainer leaves it: its base on another machine, its optimizer and checkpoints beside it."""
    monkeypatch.chdir(tmp_path)
    params = models.load_model(tiny_checkpoint)[1]
    lora.save_peft("adapter", lora.init(jax.random.key(0), params, rank=2), base="/mnt/other/base")
    Path("adapter/checkpoint-5").mkdir()
    for name in ("optimizer.pt", "training_args.bin", "checkpoint-5/rng_state.pth", "chat_template.jinja"):
        Path("adapter", name).write_text("{{ messages[0].content }}")
    return ["--config=configs/export.py", "--config.model.path=adapter", f"--config.model.base={tiny_checkpoint}"]


def test_an_adapter_is_exported_without_what_its_trainer_left(adapter, capsys):
    assert main([*adapter, "--config.format=adapter"]) == 0, capsys.readouterr().err
    exported = Path("runs/export-mini/export/adapter")
    names = {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "README.md"}
    assert {path.name for path in exported.iterdir()} == names | {".mmedexpert.json"}
    weights = [folder / "adapter_model.safetensors" for folder in (exported, Path("adapter"))]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    tensors = load_file(weights[1])
    save_file(tensors | {name: np.full_like(tensor, np.nan) for name, tensor in [*tensors.items()][:1]}, weights[1])
    assert main([*adapter, "--config.format=adapter", "--config.workdir=other"]) == 3
    assert "lora_A.weight: holds values that are not finite; its training diverged" in capsys.readouterr().err
    assert not Path("other/export/adapter").exists()


def test_an_adapter_over_an_adapter_says_what_it_lacks(adapter, tiny_checkpoint, capsys):
    """As GBA leaves it that began from an expert on this disk: here both count, in peft the one that is named."""
    params = models.load_model(tiny_checkpoint)[1]
    second = jax.tree.map(lambda factor: factor + 0.01, lora.init(jax.random.key(1), params, rank=3))
    lora.save_peft("second", second, base="adapter")
    command = [adapter[0], "--config.model.path=second", adapter[2]]
    assert main([*command, "--config.format=adapter"]) == 0
    exported = "runs/export-mini/export/adapter"
    assert f"{exported} holds the change over adapter, itself an adapter" in capsys.readouterr().out
    with models.load.chosen(base=tiny_checkpoint):
        assert models.load_policy(exported)[2].rank == 5  # of both
    assert main([*adapter, "--config.format=adapter", "--config.workdir=first"]) == 0
    assert "itself an adapter" not in capsys.readouterr().out


@pytest.mark.parametrize("named", ["/mnt/other/base", None])
def test_the_base_that_is_given_counts_in_plan_and_run(adapter, named, capsys):
    file = Path("adapter/adapter_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": named}))
    assert main([*adapter, "--config.plan=True"]) == 0
    assert "memory   not counted" not in capsys.readouterr().out
    for format in ("adapter", "model"):
        assert main([*adapter, f"--config.format={format}", f"--config.workdir=to-{format}"]) == 0
        assert adapter[2].rpartition("=")[2] in Path(f"to-{format}", "export", format, "README.md").read_text()


@pytest.mark.parametrize(
    ("base", "named", "revision"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-2B-Instruct", None),
        ("Qwen/Qwen2-VL-2B-Instruct@v2", "Qwen/Qwen2-VL-2B-Instruct", "v2"),
    ],
)
def test_the_base_that_is_given_stands_in_the_exported_adapters_config_too(adapter, base, named, revision, capsys):
    assert main([*adapter[:2], f"--config.model.base={base}", "--config.format=adapter"]) == 0, capsys.readouterr().err
    before, exported = (
        json.loads(Path(folder, "adapter_config.json").read_text())
        for folder in ("adapter", "runs/export-mini/export/adapter")
    )
    changed = {"base_model_name_or_path": named, "revision": revision}
    assert exported == before | changed
    assert f"over {base}" in Path("runs/export-mini/export/adapter/README.md").read_text()
    assert main([*adapter[:2], "--config.format=adapter", "--config.workdir=as-it-was"]) == 0
    files = [Path(folder, "adapter_config.json") for folder in ("adapter", "as-it-was/export/adapter")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_is_uploaded_names_no_folder_of_this_machine(adapter, tmp_path, monkeypatch, capsys):
    sent = []
    monkeypatch.setattr("mmedexpert_jax.models.save.push", lambda folder, name: sent.append(Path(folder)) or "there")
    run = {"job": "dsa", "model": {"path": f"{tmp_path}/smith/base"}, "data": {"path": "/data/mary/a.csv"}}
    Path("adapter/config.json").write_text(json.dumps(run))
    for format in ("adapter", "model"):
        command = [*adapter[:2], f"--config.format={format}", "--config.push=me/mine", f"--config.workdir=to-{format}"]
        if format == "adapter":
            assert main(command) == 2
            assert "config.push: the base of adapter is /mnt/other/base, which is on this" in capsys.readouterr().err
            assert not Path("to-adapter/export").exists() and not sent
        assert main([*command, adapter[2] if format == "model" else "--config.model.base=Qwen/Qwen2-VL-2B"]) == 0
        text = (sent[-1] / "README.md").read_text()
        assert "smith" not in text and "mary" not in text and str(tmp_path) not in text
        assert "from `base`, on the data `a.csv`" in text
    assert {folder.name for folder in sent} == {"adapter", "model"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("output=full",), "full holds something other than a model"),
        (("output=full/thesis.tex",), "full/thesis.tex is there already and no directory"),
        (("push=mine",), "config.push"),
        (("format=adapter", "push=me/mine"), "which is on this machine alone"),
    ],
)
def test_a_plan_of_an_export_refuses_what_the_run_would(adapter, monkeypatch, capsys, fields, said):
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("mine")
    monkeypatch.setattr(models, "load_policy", None)  # it is refused before the model is read
    for plan in ("True", "False"):
        assert main([*adapter, f"--config.plan={plan}", *(f"--config.{field}" for field in fields)]) == 2
        assert said in capsys.readouterr().err
    assert Path("full/thesis.tex").read_text() == "mine"


def test_what_was_made_over_a_relative_path_is_found_from_any_folder(tiny_checkpoint, tmp_path, monkeypatch):
    """The base of an adapter, and the base and experts of a recipe, from the folder above in which they were made."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, "m/base")
    params = models.load_model("m/base")[1]
    lora.save_peft("runs/x/export/adapter", lora.init(jax.random.key(0), params, rank=2), base="m/base")
    merge = ["--config=configs/merge.py", "--config.model.path=m/base", "--config.workdir=runs/y"]
    assert main([*merge, "--config.experts=x=m/base+runs/x/export/adapter", "--config.result=recipe"]) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for run in ("x", "y"):
        assert same(models.load_model(tmp_path / "runs" / run)[1], params)  # B is 0 before training
    assert models.locate.origin(tmp_path / "runs" / "x") == str(tmp_path / "m" / "base")


def test_an_adapter_that_is_its_own_base_is_refused_by_a_plan_too(adapter, capsys):
    file = Path("adapter/adapter_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "adapter"}))
    for plan in ("True", "False"):
        main([*adapter[:2], f"--config.plan={plan}"])
        said = capsys.readouterr()
        assert "leads back to the adapter itself" in said.out + said.err


def test_a_plan_refuses_an_adapter_that_would_not_load(adapter, capsys):
    weights = Path("adapter/adapter_model.safetensors")
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "down_proj" not in name}, weights)
    for plan in ("True", "False"):
        assert main([*adapter, f"--config.plan={plan}"]) == 3
        assert "lacks the factors of model.language_model.layers.0.mlp.down_proj, which" in capsys.readouterr().err
    save_file({name: tensor[:1] if "lora_A" in name else tensor for name, tensor in tensors.items()}, weights)
    assert main([*adapter, "--config.plan=True"]) == 3 and "A and B have shapes" in capsys.readouterr().err


def test_a_plan_refuses_what_would_not_load_or_merge(tiny, tiny_checkpoint, tmp_path, capsys):
    """Headers against config.json, and experts against the base, before anything is queued on a cluster."""
    wrong = shutil.copytree(tiny_checkpoint, tmp_path / "wrong")
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 8}))
    for job in ("export", "evaluate", "gba"):
        command = [f"--config=configs/{job}.py", f"--config.model.path={wrong}", tiny[1], "--config.plan=True"]
        assert main(command) == 3 and "tensors do not fit config.json" in capsys.readouterr().err
    named = {key.replace("model.", "module."): value for key, value in load_file(wrong / "model.safetensors").items()}
    save_file(named, wrong / "model.safetensors")
    merge = ["--config=configs/merge.py", *tiny, f"--config.experts=X={wrong}", "--config.plan=True"]
    assert main(merge) == 3 and "expert X lacks" in capsys.readouterr().err


def test_exports_to_folders_of_their_own_are_runs_of_their_own(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for output in ("one", "there/two/"):
        assert main(["--config=configs/export.py", tiny[0], f"--config.output={output}"]) == 0, capsys.readouterr().err
        assert (tmp_path / output / "model.safetensors").is_file()
    copy = shutil.copytree(tiny[0].partition("=")[2], tmp_path / "copy")
    again = ["--config=configs/export.py", f"--config.model.path={copy}"]
    tensors = load_file(copy / "model.safetensors")
    for changed in (False, False, True):
        if changed:  # trained on, say
            save_file({key: -value for key, value in tensors.items()}, copy / "model.safetensors", {"format": "pt"})
        assert main([*again, "--config.output=three"]) == 0
        told = f"config.model.path: {copy} has changed since it was made" in capsys.readouterr().out
        assert told == changed
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["export-one", "export-three", "export-two"]
    assert default_workdir(load_config("configs/export.py")) == "runs/export-mini"
