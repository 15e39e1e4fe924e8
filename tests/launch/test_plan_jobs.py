"""Plans of every job, of the recipes in launch/ and docs/cluster.md, and what a plan of several stages adds up."""

import json
import re
import shlex
from pathlib import Path

import jax
import pytest
import yaml

from mmedexpert_jax.launch import load_config
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.launch.pipeline import stages
from mmedexpert_jax.models import load_processor
from mmedexpert_jax.plan.architecture import architecture
from mmedexpert_jax.plan.budget import count
from mmedexpert_jax.plan.needs import cache_bytes
from mmedexpert_jax.runtime import Run
from mmedexpert_jax.train.initial import initial_params
from mmedexpert_jax.train.pretrain import model_config, optimizer

ROOT = Path(__file__).parents[2]
MODEL = (r"parameters [\d,]+ float32", "weights 6.0 MB", r"peak +[\d.]+ [MG]B on a device")
TRAINED = (*MODEL, r"[\d,]+ trained \([\d.]+%\)", r"optimizer state [\d.]+ MB", r"activations\* [\d.]+ [MG]B")
WORK = (r"steps +[\d,]+.*, at most [\d,]+ tokens", r"disk +at most [\d.]+ [MG]B")
CACHE = r"KV cache [\d.]+ [MG]B"
STAGES = (*TRAINED, *WORK, CACHE, "in all\n  stages ", r"answers +[\d,]+, at most [\d,]+ tokens")
WANTED = {
    "ablation": (*STAGES, "over seeds 0, 1, 2, 3, 4", r"time +about"),
    "contamination": (
        "2400 items of 2400 rows",
        r"compared 2,400 cases with 1,280 items, \d+ images",
        "disk +150 bytes",
    ),
    "dataset": (*MODEL, CACHE, "requests +", "disk +at most about"),
    "dsa": (*TRAINED, *WORK, CACHE),
    "evaluate": (*MODEL, CACHE, r"[\d,]+ answers; about [\d,]+ prompt tokens", "disk +at most about"),
    "export": (*MODEL, "disk +6.0 MB: export"),
    "gba": (*TRAINED, *WORK, CACHE),
    "merge": (MODEL[0], MODEL[2], "blocks of the experts", "disk +6.0 MB: export"),
    "pipeline": STAGES,
    "pretrain": (*TRAINED, *WORK),
    "review": (r"traces +320", r"verdicts 320", r"disk +at most about [\d.]+ MB"),
}
ARGUMENTS = {"merge": ["--config.experts=a=mini,b=mini"]}


def test_every_job_is_among_them():
    answering = {"ask", "serve"}  # they need what an evaluation needs, and leave nothing
    assert set(WANTED) | answering == {path.stem for path in (ROOT / "configs").glob("*.py")}


def test_a_specialty_may_be_called_image(tmp_path_factory, planned):
    """Six cases of one's own specialty, none with an image, at two a step: three steps an epoch."""
    file = tmp_path_factory.mktemp("own") / "cases.jsonl"
    row = {"specialty": "image", "options": ["Yes", "No"], "answer": "A", "split": "train", "trace": "It is raised."}
    rows = [row | {"id": f"c{n}", "question": f"Is the value {n} above the limit?"} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = {"specialty": "mixed", "batch_size": 2, "accumulation": 1, "steps": 0, "epochs": 1, "eval.every": -1}
    fields = (f"--config.{key}={value}" for key, value in size.items())
    out = planned("--config=configs/dsa.py", f"--config.data.path={file}", *fields)
    assert "train: 6 (AM 0, CAH 0, BS 0, CSI 0, others 6; 0 with images)" in out
    assert re.search(r"steps +3\b", out), out


@pytest.mark.parametrize("job", WANTED)
def test_a_plan_says_what_the_job_needs_and_writes_nothing(planned, job):
    out = planned(f"--config=configs/{job}.py", *ARGUMENTS.get(job, ()))
    missing = [pattern for pattern in WANTED[job] if not re.search(pattern, out)]
    assert not missing, f"{missing} not in\n{out}"


def test_a_pretraining_holds_what_is_predicted():
    config = load_config("configs/pretrain.py")
    params = initial_params(model_config(config.shape, load_processor(config.tokenizer)), 0)
    found, _, _ = count(config)

    def taken(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    state = optimizer(config)[0].init(params)
    assert found.held == {"weights": taken(params), "optimizer state": taken(state)}
    assert found.trained == found.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found.saved == taken(params) + taken(state)


def test_a_pipeline_adds_up_what_is_left(planned, tmp_path):
    out = planned("--config=configs/pipeline.py").partition("in all")[2]
    dsa, gba = 4 * 57 * 32 * (512 + 128), 48 * 12 * (512 + 8 * 96)  # 600 cases, 3 epochs, 4 x 8 rows; 48 steps
    assert "4 dsa, 1 gba, 3 merge, 1 evaluate left" in out
    assert f"steps      276, at most {dsa + gba:,} tokens" in out
    assert "answers    11,520, at most 1,105,920 tokens" in out  # 9 models, 1,280 cases, 96 tokens
    config = load_config("configs/pipeline.py", {"workdir": str(tmp_path / "run")})
    with Run.open(config.workdir, config):
        pass
    for stage in stages(config)[:6]:
        Path(stage.workdir).mkdir(parents=True)
        (Path(stage.workdir) / "STATUS.json").write_text(json.dumps({"state": "done"}))
    done = ["--config=configs/pipeline.py", f"--config.workdir={tmp_path}/run", "--config.plan=True"]
    assert main([*done, "--config.gba.micro_batch=5"]) == 0, "GBA is done: its batch counts no more"


def test_a_sweep_adds_up_its_merges_and_plans_its_larger_evaluation(planned):
    out = planned("--config=configs/ablation.py:lingshu_7b", "--config.plan_mesh=a100x8", "--config.seeds=0,1")
    line = next(line for line in out.partition("in all")[2].splitlines() if "  disk " in line)
    parts = re.findall(r"(\d+) (\w+) x ([\d.]+) GB", line)
    assert ("18", "merge", "16.58") in parts, "nine full merges a seed"
    answers = float(re.search(r"answers ([\d.]+) GB", line)[1])
    total = sum(int(number) * float(size) for number, _, size in parts) + answers
    assert float(re.search(r"at most ([\d.]+) GB", line)[1]) == pytest.approx(total, rel=0.01)
    shape, dtype = architecture("lingshu-medical-mllm/Lingshu-7B")
    assert f"KV cache {cache_bytes(shape, dtype, 16, 1024, 16 * 8, 1024) / 1e9:.2f} GB" in out
    assert "let one seed finish, or measure config.expected (docs/plan.md)" in out


def recipes():
    """(arguments, devices to plan for) of every command in launch/ and docs/cluster.md that trains on several."""
    jobset = next(d for d in yaml.safe_load_all((ROOT / "launch/jobset.yaml").read_text()) if d["kind"] == "JobSet")
    (job,) = (workers["template"]["spec"] for workers in jobset["spec"]["replicatedJobs"])
    (container,) = job["template"]["spec"]["containers"]
    yield container["args"], f"h100x{job['completions'] * container['resources']['limits']['nvidia.com/gpu']}"
    script, docs = (ROOT / "launch/slurm.sbatch").read_text(), (ROOT / "docs/cluster.md").read_text()
    for line in re.findall(r"^(?:# +)?(sbatch .*--config .*)$", script + docs, re.MULTILINE):
        options, _, arguments = line.partition("launch/slurm.sbatch")
        asked = dict(re.findall(r"--([a-z-]+)=(\d+)", script) + re.findall(r"--([a-z-]+)=(\d+)", options))
        yield shlex.split(arguments), f"h100x{int(asked['nodes']) * int(asked['gpus-per-node'])}"
    (chips,) = re.findall(r"--accelerator-type=v5litepod-(\d+)", docs)
    for line in re.findall(r"tpu_pod.sh \w+ run (.*)", docs):
        yield shlex.split(line), f"v5e-{chips}"


@pytest.mark.parametrize(("arguments", "devices"), list(recipes()))
def test_the_recipes_fit_the_devices_that_they_ask_for(planned, monkeypatch, tmp_path, arguments, devices):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    filled = [argument.replace("$SCRATCH", str(tmp_path)) for argument in arguments]  # as a shell does
    assert re.search(r"devices +\d+ x", planned(*filled, f"--config.plan_mesh={devices}"))


def test_the_recipes_are_all_found():
    assert [devices for _, devices in recipes()] == ["h100x16", "h100x16", "h100x16", "h100x4", "v5e-16"]


@pytest.mark.parametrize(("config", "field"), [("gba", "prompts_per_step"), ("pipeline", "gba.prompts_per_step")])
def test_a_batch_that_the_devices_cannot_split_is_refused_before_any_work(capsys, tmp_path, monkeypatch, config, field):
    monkeypatch.chdir(tmp_path)
    plan = [f"--config=configs/{config}.py:qwen2_vl_2b", "--config.plan=True", "--config.plan_mesh=h100x16"]
    assert main(plan) == 2
    line, group = capsys.readouterr().err, field.removesuffix("prompts_per_step")
    fix = f"; set --config.{field}=16 or --config.{group}mesh.data=8 (or 4, 2, 1)\n"
    assert line.count("\n") == 1 and line.endswith(fix)
    assert main([f"--config=configs/{config}.py", f"--config.{group}minibatches=5"]) == 2, "the job, not its plan"
    assert f"set --config.{field}=10 (or 15, 5)\n" in capsys.readouterr().err and not list(tmp_path.iterdir())
