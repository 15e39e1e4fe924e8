"""What is wrong with a config is one line, before anything is read or written."""

import json
import re

import pytest

from mmedexpert_jax.config.fields import named_path
from mmedexpert_jax.config.job_config import given
from mmedexpert_jax.config.validate import validate
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.medeval.systems import parse
from mmedexpert_jax.merging.merge_job import expert_paths


@pytest.mark.parametrize(
    ("config", "argument", "words"),
    [
        ("gba", "plan_mesh=a100x8", "config.plan_mesh is of a plan; set --config.plan=True as well"),
        ("dsa", "plan_compile=True", "config.plan_compile is of a plan; set --config.plan=True as well"),
        ("ablation", "plan_mesh=a100x8", "set --config.plan=True as well"),
        ("ablation", "seeds=", "config.seeds must be different numbers from 0, at least one"),
        ("ablation", "seeds=0,0", "got 0,0"),
        ("ablation", "seeds=0,-1", "got 0,-1"),
        ("dataset", "data.licences=plain", "config.data.licences: 'plain' is not name=licence"),
        ("dataset", "push_to=my set", "config.push_to must be owner/name, got 'my set'"),
        ("review", "reviewers=anna,ben,anna", "name 'anna' twice"),
        ("review", "adjudicators=reviewer", "name 'reviewer' twice; an adjudicator is another person"),
        ("pretrain", "steps=0", "config.steps is 0; set it"),
        ("gba", "top_k=1", "config.top_k=1 is greedy"),
        ("evaluate", "num_samples=4", "greedy samples of a prompt are all the same, and config.num_samples=4"),
        ("dataset", "teacher.temperature=0", "greedy traces of a case are all the same, and config.candidates=4"),
        ("dsa", "eval.num_samples=2", "config.eval.temperature must be above 0"),
        ("ablation", "diversity.temperature=0", "config.diversity.temperature must be above 0"),
        ("pipeline", "gba.top_k=1", "config.gba.top_k=1 is greedy"),
        (
            "gba",
            "rewards.judge.url=http://localhost:1/v1",
            "a weight of 0 asks nobody; set --config.rewards.judge.weight",
        ),
        ("gba", "rewards.similarity.model=e", "set --config.rewards.similarity.weight"),
        (
            "gba",
            "workdir=gs://bucket/run",
            "config.workdir='gs://bucket/run' is a URL, and files go to folders",
        ),
        ("evaluate", "answers=/data/${SCRATCH}/a", "holds ${SCRATCH}, which no shell has filled in; write it out"),
        ("gba", 'workdir="runs/x"', "holds quotes that no shell has taken off; leave them out"),
        ("gba", "workdir=None", "config.workdir='None' is the word for nothing"),
        ("evaluate", r"answers=C:\data", "is a path of Windows; in WSL a drive is /mnt/c/..."),
        ("export", "output=there ", "config.output='there ' begins or ends with a space"),
        ("dataset", "push_to=me/set@main", "config.push_to must be owner/name, got 'me/set@main'"),
        ("gba", "objective=GBA", "config.objective=GBA is unknown; did you mean gba?"),
        ("dsa", "specialty=am", "did you mean AM?"),
        ("gba", "model.quantize=4bit", "is unknown; did you mean nf4?"),
        ("gba", "objective=ppo", "is unknown; did you mean grpo?"),
        ("gba", "tracker=swanlab", "is unknown; choose one of"),
        ("gba", "LR=1e-3", "no field config.LR in this config; did you mean config.lr?"),
        ("gba", "Rewards.Format=1", "did you mean config.rewards.format?"),
        ("gba", "model.base=mini", "config.model.base='mini' is the model under an adapter, and none is named (mini)"),
        ("ask", "model.base=/nowhere", "give it as --config.model.path, or leave it out"),
        ("gba", "eval.best=True eval.every=8", "config.eval.best chooses by the test split"),
        ("pipeline", "dsa.eval.patience=2 dsa.eval.every=8", "choose on dev: --config.dsa.eval.split=dev"),
        ("gba", "eval.split=train", "config.eval.split=train are the cases that are trained on, and no held-out ones"),
        ("pipeline", "dsa.eval.split=train dsa.eval.every=8", "choose dev or test, or set --config.dsa.eval.every=-1"),
        ("gba", "trainable=full lora.alpha=8", "config.lora.alpha=8 says nothing beside trainable=full; leave one"),
        ("gba", "ref_mixup=0.6", "config.ref_mixup=0.6 says nothing without ref_every; set --config.ref_every"),
        ("gba", "perception_mask=0.3", "config.perception_mask=0.3 says nothing without perception"),
        ("pipeline", "gba.ref_mixup=0.6", "config.gba.ref_mixup=0.6 says nothing without ref_every"),
        ("merge:smollm2", "mergekit=m.yaml density=0.9", "config.density=0.9 says nothing beside mergekit=m.yaml"),
        ("merge", "mergekit=m.yaml model.path=mini2", "config.model.path='mini2' says nothing beside mergekit"),
        ("merge", "sweep.scales=0.5,1 experts=mini", "config.sweep.scales=(0.5, 1.0) says nothing without sweep.dens"),
        ("merge", "method=average density=0.9 experts=mini", "config.density says nothing: average has no density"),
        ("merge", "fisher_prompts=9 experts=mini", "config.fisher_prompts says nothing: ties has no fisher_prompts"),
    ],
)
def test_it_is_one_line_and_nothing_starts(capsys, tmp_path, monkeypatch, config, argument, words):
    monkeypatch.chdir(tmp_path)
    job, _, preset = config.partition(":")
    arguments = (f"--config.{part}" for part in re.split(r" (?=[\w.]+=)", argument))
    assert main([f"--config=configs/{job}.py{':' * bool(preset)}{preset}", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["model.path", "data.path"])
def test_an_empty_path_is_not_the_current_folder(capsys, tmp_path, monkeypatch, field):
    monkeypatch.chdir(tmp_path)
    assert main(["--config=configs/gba.py", f"--config.{field}="]) == 3
    assert f"config.{field}" in (error := capsys.readouterr().err) and "it is empty" in error


@pytest.mark.parametrize("name", ["judge", "similarity"])
def test_a_model_that_rewards_ask_is_looked_for_at_once(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    given = [f"--config.rewards.{name}.{field}" for field in ("weight=1", "path=nowhere")]
    assert main(["--config=configs/gba.py", *given]) == 3
    assert f"config.rewards.{name}.path: no such model: nowhere" in capsys.readouterr().err


def test_paths_begin_at_home_where_the_shell_has_not_seen_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ["--config.workdir=~/run", "--config.model.path=~/none"]
    assert main(["--config=configs/gba.py", *given]) == 3
    assert f"no such model: {tmp_path}/none" in capsys.readouterr().err
    assert main(["--config=configs/merge.py", "--config.experts=a=~/one,~/two"]) == 3
    assert f"no such model: {tmp_path}/one" in capsys.readouterr().err
    assert main(["--config=configs/gba.py", given[0], "--config.plan=True"]) == 0
    assert f"workdir  {tmp_path}/run: starts anew" in capsys.readouterr().out
    assert main(["--config=configs/ask.py", "--config.question=~/x", "--config.plan=True"]) == 0
    assert "answer '~/x'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (["--config=configs/gba.py", "--config.data.path=~nosuchuser/x"], "data.path"),
        (["--config=configs/gba.py", "--config.workdir=~nosuchuser"], "workdir"),
        (["--config=configs/merge.py", "--config.experts=a=~/one,b=~nosuchuser/two"], "experts"),
    ],
)
def test_a_home_of_nobody_is_refused_by_its_field(given, key, capsys):
    assert main(given) == 2
    error = capsys.readouterr().err
    assert (
        f"config.{key}: nobody here is called nosuchuser; write ./~nosuchuser for" in error and error.count("\n") == 1
    )


@pytest.mark.parametrize("question", ["~5/10 of them?", "~nosuchuser/x"])
def test_a_question_that_begins_like_a_home_is_asked_as_it_stands(question, capsys):
    assert main(["--config=configs/ask.py", f"--config.question={question}", "--config.plan=True"]) == 0
    assert f"answer '{question}'" in capsys.readouterr().out


@pytest.mark.parametrize("config", ["gba", "contamination", "review"])
def test_a_mesh_that_is_no_name_of_devices_is_refused_in_any_plan(capsys, config):
    assert main([f"--config=configs/{config}.py", "--config.plan=True", "--config.plan_mesh=b200x8"]) == 2
    assert "config.plan_mesh=b200x8 is unknown; give a100, h100, h200, v5e, v5p or v6e" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["configs/merge.py"], "configs/dsa.py:mini"),
        (["configs/merge.py:smollm2"], "configs/dsa.py:smollm2"),
        (["configs/evaluate.py", "model.path=runs/dsa-mini/AM"], "configs/dsa.py:mini"),
        (["configs/evaluate.py", "compare=mine=runs/gba-mini"], "configs/gba.py:mini"),
        (["configs/gba.py", "model.path=runs/merge-mini"], "configs/merge.py:mini"),
        (["configs/export.py", "model.path=runs/pipeline-mini/final"], "configs/pipeline.py:mini"),
        (["configs/serve.py", "model.path=./runs/gba-qwen2_vl_2b"], "configs/gba.py:qwen2_vl_2b"),
        (["configs/dsa.py", "data.path=runs/dataset-mini/export/dataset"], "configs/dataset.py:mini"),
    ],
)
def test_what_a_job_has_yet_to_make_names_the_job(capsys, tmp_path, monkeypatch, arguments, command):
    monkeypatch.chdir(tmp_path)
    config, *fields = arguments
    assert main([f"--config={config}", *(f"--config.{field}" for field in fields)]) == 3
    error = capsys.readouterr().err
    assert error.endswith(f"run it first: python -m mmedexpert_jax.launch --config={command}\n")
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_one_expert_that_is_missing_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("AM", "BS", "CSI"):
        folder = tmp_path / "runs" / "dsa-mini" / name / "export" / "adapter"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").touch()
    assert main(["--config=configs/merge.py"]) == 3
    assert capsys.readouterr().err.endswith("--config=configs/dsa.py:mini --config.specialty=CAH\n")


def test_a_flag_that_is_a_field_is_named_with_its_value(capsys):
    assert main(["--config=configs/gba.py", "--max_steps", "5"]) == 2
    assert "did you mean --config.steps=5?" in capsys.readouterr().err


def test_a_folder_with_signs_of_equality_is_a_path(tmp_path, monkeypatch):
    """Sweeps name their folders lr=1e-5; only what is not there as it stands is name=path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-5" / "gba").mkdir(parents=True)
    assert named_path("lr=1e-5/gba") == ("", "lr=1e-5/gba")
    assert named_path("mine=lr=1e-5/gba") == ("mine", "lr=1e-5/gba")
    assert named_path("mine=owner/name") == ("mine", "owner/name")
    assert named_path("owner/name") == ("", "owner/name")
    assert parse("lr=1e-5/gba").model == "lr=1e-5/gba"
    config = load_config("configs/merge.py", {"experts": ("lr=1e-5/gba", "mine=lr=1e-5/gba")})
    assert expert_paths(config) == {"gba": "lr=1e-5/gba", "mine": "lr=1e-5/gba"}


def test_the_folder_above_a_model_names_it(tmp_path, capsys):
    (tmp_path / "out" / "checkpoint-50").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-50" / "model.safetensors").touch()
    assert main(["--config=configs/export.py", f"--config.model.path={tmp_path / 'out'}"]) == 3
    assert "its folder checkpoint-50 does: give that" in capsys.readouterr().err
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123abc"  # of the hub's cache
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    assert main(["--config=configs/export.py", f"--config.model.path={snapshot.parents[1]}"]) == 3
    assert "its folder snapshots/0123abc does: give that" in capsys.readouterr().err
    for step in (1000, 500, 1500):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        for shard in (1, 2):
            (tmp_path / "run" / f"checkpoint-{step}" / f"model-{shard}-of-2.safetensors").touch()
    assert main(["--config=configs/export.py", f"--config.model.path={tmp_path / 'run'}"]) == 3
    said = "its folders checkpoint-500, checkpoint-1000, checkpoint-1500 do: give one"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("base", ["mini", "nowhere"])
def test_a_base_is_of_an_adapter_and_is_there(capsys, tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run" / "export" / "adapter"
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).touch()
    config = load_config("configs/evaluate.py", {"compare": ("tuned=run",), "model.base": base})
    if base == "mini":
        validate(config)
    else:
        with pytest.raises(DataError, match=r"config\.model\.base: no such model: nowhere"):
            validate(config)


def test_fields_are_checked_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    looked = []
    monkeypatch.setattr("mmedexpert_jax.config.validate.check_value", lambda key, *_: looked.append(key))
    assert main(["--config=configs/ask.py", "--config.question=x", "--config.plan=True"]) == 0
    assert "seed" in looked and len(looked) == len(set(looked))


IDLE_FILES = {
    "gba": 'load_config("configs/gba.py:qwen2_vl_2b", {"lora.rank": 64, "trainable": "full"})',
    "merge": 'load_config("configs/merge.py", {"method": "average", "density": 0.5, "experts": ("mini",)})',
}


@pytest.mark.parametrize("job", IDLE_FILES)
def test_what_a_config_file_assigns_is_not_told_off_as_if_it_had_been_typed(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        f"from mmedexpert_jax.launch import load_config\n\n\ndef get_config():\n    return {IDLE_FILES[job]}.unlock()\n"
    )
    key = {"gba": "lora.rank", "merge": "density"}[job]
    assert given(load_config("mine.py")) == {}
    assert given(load_config("mine.py", {key: 8 if job == "gba" else 0.9})).keys() == {key}
    validate(load_config("mine.py"))


@pytest.mark.parametrize(
    ("spec", "fields", "words"),
    [
        ("gba", {"trainable": "full", "lora.rank": 8}, "lora.rank=8 says nothing"),
        ("gba", {"ref_mixup": 0.7}, "ref_mixup=0.7 says nothing"),
        ("gba:mini", {"eval.best": True, "eval.every": 8}, "chooses by the test split"),
        ("merge", {"sweep.scales": (0.5, 1.0), "experts": ("mini",)}, "sweep.scales"),
    ],
)
def test_a_run_that_began_with_a_field_that_says_nothing_goes_on_with_it(spec, fields, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, _, preset = spec.partition(":")
    spec = f"configs/{name}.py:{preset}" if preset else f"configs/{name}.py"
    config = load_config(spec, fields | {"workdir": "run"})
    with pytest.raises(ConfigError, match=re.escape(words)):
        validate(config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config.to_dict()))
    validate(load_config(spec, fields | {"workdir": "run"}))
    with pytest.raises(ConfigError, match=re.escape(words)):
        validate(load_config(spec, fields | {"workdir": "run", "fresh": True}))


def test_epochs_beside_steps_are_named(capsys, tmp_path):
    """docs/dsa.md: `steps` overrules them."""
    for job, fields, words in (
        ("gba", ["epochs=3"], "epochs=3 says nothing beside steps=48; steps=0 counts epochs"),
        ("gba", ["epochs=3", "steps=0"], ""),
    ):
        arguments = [f"--config.{field}" for field in (*fields, f"workdir={tmp_path / 'run'}", "plan=True")]
        assert main([f"--config=configs/{job}.py", *arguments]) == 0
        assert ("says nothing beside" in (out := capsys.readouterr().out)) == bool(words) and words in out
