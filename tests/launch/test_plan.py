"""What a plan predicts, against the bytes that the arrays really take; what it says where a job does not fit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from mmedexpert_jax import lora
from mmedexpert_jax.data import load_cases
from mmedexpert_jax.data.prompts import conversation
from mmedexpert_jax.errors import ConfigError, ResourceError
from mmedexpert_jax.gba.policy_learner import PolicyBatch, PolicyLearner
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.launch.job_plan import check_memory
from mmedexpert_jax.launch.jobs import launch
from mmedexpert_jax.models import load_model, load_processor
from mmedexpert_jax.plan import hardware
from mmedexpert_jax.plan.architecture import architecture
from mmedexpert_jax.plan.budget import compiled_ratio, count, problem
from mmedexpert_jax.plan.needs import ESTIMATES, abstract_params, abstract_state, cache_bytes, needs, size
from mmedexpert_jax.runtime import processes
from mmedexpert_jax.runtime.mesh import make_mesh

ROOT = Path(__file__).parents[2]
SHAPE, _ = architecture("mini")
HERE = hardware.Devices("cpu", 1, 0)
# The parameters of the published checkpoints, as their safetensors files count them.
PUBLISHED = {"Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600, "lingshu-medical-mllm/Lingshu-7B": 8_292_166_656}


def taken(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def mini():
    return load_model("mini")


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_held_bytes_are_those_of_the_arrays(mini, trainable):
    config = load_config("configs/gba.py", {"trainable": trainable})
    model, params = mini
    state = PolicyLearner(model, params, config, (), config.num_samples, 1).init(jax.random.key(0))
    found = needs(config, SHAPE, "float32", HERE)
    expected = {
        "weights": taken(params),
        "trained in float32": taken(state.trained),
        "optimizer state": taken(state.opt_state),
    }
    assert found.held == expected
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found.trained == sum(leaf.size for leaf in jax.tree.leaves(state.trained))
    assert found.saved == taken(state.trained) + taken(state.opt_state)


def test_cache_bytes_are_those_of_the_arrays(mini):
    model, params = mini
    batch = load_processor("mini")([conversation(case) for case in load_cases("mini", "dev", limit=2)])
    prefix = jax.eval_shape(model.prefill, params, batch)
    cache = model.init_cache(2, 3, 40, jax.numpy.float32)
    expected = taken(cache) + size((prefix.keys, prefix.values))
    assert cache_bytes(SHAPE, "float32", 2, batch.tokens.shape[1], 6, 40) == expected


def test_a_device_of_a_mesh_holds_what_is_predicted():
    script = """
import jax, json
from mmedexpert_jax import lora
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models import load_model
from mmedexpert_jax.train.optimizer import optimizer
from mmedexpert_jax.runtime.mesh import make_mesh, shard
params = load_model("mini")[1]
state = optimizer(load_config("configs/gba.py"), 1)[0].init(params)
trees = [shard(tree, make_mesh(fsdp=2)) for tree in (params, state)]
first = jax.devices()[0]
print(json.dumps([sum(s.data.nbytes for x in jax.tree.leaves(t) for s in x.addressable_shards if s.device == first)
                  for t in trees]))
"""
    xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    flags = {"XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | flags, capture_output=True, check=True)
    weights = abstract_params(SHAPE, "float32")
    config = load_config("configs/gba.py", {"trainable": "full"})
    mesh = hardware.Devices("cpu", 2, 0).mesh(fsdp=2)
    predicted = [size(weights, mesh), size(abstract_state(config, weights)[1], mesh)]
    assert predicted == json.loads(done.stdout)
    assert predicted[0] < size(weights)


@pytest.mark.parametrize(("model", "parameters"), PUBLISHED.items())
def test_hub_models_are_planned_without_fetching(model, parameters):
    shape, dtype = architecture(model)
    found = needs(load_config("configs/dsa.py:qwen2_vl_2b"), shape, dtype, hardware.find("a100x8"))
    assert (found.parameters, found.held["weights"]) == (parameters, 2 * parameters)


@pytest.mark.parametrize("name", ["judge", "similarity"])
def test_a_reward_that_asks_a_model_in_process_is_counted(mini, name):
    """Beside the policy, in the dtype in which it is read; the policy itself has its place already."""
    asked = {f"rewards.{name}.weight": 0.5}
    here = needs(load_config("configs/gba.py", asked | {f"rewards.{name}.path": "mini"}), SHAPE, "float32", HERE)
    assert here.held[f"{name}'s weights"] == taken(mini[1]) and ("rewards" in here.phases) == (name == "judge")
    for model, parameters in PUBLISHED.items():
        config = load_config("configs/gba.py", asked | {f"rewards.{name}.path": model})
        far = needs(config, SHAPE, "float32", hardware.find("a100x4"))
        assert far.held[f"{name}'s weights"] == 2 * parameters
    config = load_config("configs/gba.py", asked | {f"rewards.{name}.path": "policy", "trainable": "full", "beta": 0})
    own = needs(config, SHAPE, "float32", HERE)
    assert own.held["weights"] == taken(mini[1]) and f"{name}'s weights" not in own.held


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        # 48 steps x 12 x 8 completions; 512 + 96 + 200 tokens read and 256 written for each
        ({}, "judge      m: at most 4,608 requests, about $8.26, budget $5"),
        ({"rewards.judge.budget": 0.0}, "at most 4,608 requests, about $8.26, no budget set"),
        ({"rewards.judge.kind": "pairwise"}, "at most 4,608 requests, about $8.71,"),
        ({"zero_variance": "refill"}, "at most 18,432 requests, about $33.06,"),
        ({"rewards.judge.max_tokens": 2048, "steps": 1}, "at most 96 requests, about $0.83,"),
        (
            {"rewards.judge.price_input": 0.0, "rewards.judge.price_output": 0.0, "rewards.judge.budget": 0.0},
            "quests\n",
        ),
    ],
)
def test_requests_of_a_reward_at_an_endpoint_are_counted_with_their_dollars(planned, fields, line):
    judge = {"weight": 0.5, "url": "http://127.0.0.1:1/v1", "model": "m", "price_input": 1.0, "price_output": 3.85}
    named = {f"rewards.judge.{key}": value for key, value in judge.items()} | {"rewards.judge.budget": 5.0} | fields
    out = planned("--config=configs/gba.py", *(f"--config.{key}={value}" for key, value in named.items()))
    assert line in out


def test_a_plan_names_memory_steps_and_disk(capsys):
    arguments = ["--config=configs/gba.py:qwen2_vl_2b", "--config.plan=True", "--config.plan_mesh=h100x8"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "2,208,985,600 bfloat16" in out and "8 x h100, 60.00 GB" in out
    assert "steps      300, at most 22,118,400 tokens" in out  # 2,400 cases by 8; 8 x (1,024 + 8 x 1,024) tokens each


def test_what_does_not_fit_exits_with_a_mend_that_fits(capsys):
    arguments = ["--config=configs/gba.py:qwen2_vl_2b", "--config.plan=True", "--config.plan_mesh=v5e-8"]
    arguments += ["--config.prompts_per_step=64", "--config.micro_batch=8"]
    assert main(arguments) == 4
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "are there (v5e)" in line
    mend = re.findall(r"--config\.\S+", line)
    assert mend and main([*arguments, *mend]) == 0


@pytest.mark.parametrize(
    ("devices", "fields", "mend"),
    [
        ("a100x8", {"remat": False, "prompts_per_step": 32, "micro_batch": 4}, "--config.remat=True"),
        ("h100x1", {"prompts_per_step": 32, "micro_batch": 32}, "--config.micro_batch=1"),
        ("a100x8", {"trainable": "full", "max_new_tokens": 4096}, "--config.mesh.fsdp=8 --config.shard=optimizer"),
    ],
)
def test_the_smallest_mend_is_one_change_where_one_suffices(devices, fields, mend):
    config = load_config("configs/gba.py:qwen2_vl_2b", fields | {"plan_mesh": devices})
    line = problem(config, "")
    assert line.endswith(f"; set {mend}"), line
    mended = dict(part.removeprefix("--config.").split("=") for part in mend.split())
    values = {key: mended[key] if key == "shard" else json.loads(mended[key].lower()) for key in mended}
    assert problem(load_config("configs/gba.py:qwen2_vl_2b", fields | values | {"plan_mesh": devices}), "") == ""


def test_what_nothing_mends_is_said(capsys):
    arguments = ["--config=configs/dsa.py:medgemma_27b", "--config.plan=True", "--config.plan_mesh=v5e-8"]
    assert main(arguments) == 4
    assert "no field fixes that" in capsys.readouterr().err


def test_a_pipeline_is_counted_by_stage(capsys):
    assert main(["--config=configs/pipeline.py", "--config.plan=True"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{stage}\n  parameters" in out for stage in ("dsa", "gba", "evaluate"))


def test_a_merge_is_counted_by_blocks_and_its_export(planned):
    experts = "--config.experts=a=mini,b=mini"
    out = planned("--config=configs/merge.py", experts)
    weights = (ROOT / "mmedexpert_jax" / "assets" / "mini" / "model.safetensors").stat().st_size
    assert "merge      blocks of the experts" in out and f"disk       {weights / 1e6:.1f} MB: export" in out
    adapter = planned("--config=configs/merge.py", experts, "--config.rank=4")
    shapes = jax.eval_shape(lambda: lora.init(jax.random.key(0), abstract_params(SHAPE, "float32"), 4, 4.0))
    assert f"disk       {size(shapes) / 1e6:.1f} MB: export" in adapter
    assert "disk       0.0 MB" in planned("--config=configs/merge.py", experts, "--config.result=recipe")
    scored = planned("--config=configs/merge.py", experts, "--config.sweep.densities=0.2", "--config.sweep.score=True")
    cache = cache_bytes(SHAPE, "float32", 64, 1024, 64, 96)
    assert re.search(rf"sweep +weights in float32 6.0 MB, merged 6.0 MB, KV cache {cache / 1e9:.2f} GB", scored)


def test_a_factory_with_a_local_teacher_is_counted(planned):
    out = planned("--config=configs/dataset.py")
    cache = cache_bytes(SHAPE, "float32", 64, 1024, 64, 96)
    assert f"KV cache {cache / 1e9:.2f} GB" in out and "disk      at most about" in out
    assert out.endswith("nothing was run; leave out --config.plan to start\n")


def test_an_evaluation_says_its_cache_and_disk(planned):
    out = planned("--config=configs/evaluate.py", "--config.limit=8")
    assert f"KV cache {cache_bytes(SHAPE, 'float32', 64, 512, 64, 96) / 1e6:.1f} MB" in out
    assert "MB: stored answers and rows" in out


def compiled_bytes(config, cases):
    """Temporary bytes of a gradient's program, from arrays: prompts and completions of the full length."""
    model, params = load_model(config.model.path)
    learner = PolicyLearner(model, params, config, (), config.num_samples, 1)
    prompts = [conversation(case) for case in cases if not case.images][: config.prompts_per_step]
    batch = load_processor(config.model.path)(prompts, min_length=config.max_prompt_length)
    assert batch.tokens.shape == (config.prompts_per_step, config.max_prompt_length)
    shape = (len(prompts), config.num_samples, config.max_new_tokens)
    floats, lengths = np.zeros(shape, np.float32), np.full(shape[:2], shape[2], np.int32)
    part = PolicyBatch(batch, np.zeros(shape, np.int32), lengths, floats, floats[..., 0])
    program = learner.lower_update(learner.init(jax.random.key(0)), part).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("remat", [True, False])
def test_the_estimate_of_an_update_is_near_what_its_program_takes(remat):
    fields = {"remat": remat, "prompts_per_step": 4, "max_prompt_length": 256}
    config = load_config("configs/gba.py", fields)
    found = needs(config, SHAPE, "float32", HERE).phases["update"]
    taken = compiled_bytes(config, load_cases("mini", "dev", limit=20))
    assert sum(found.values()) == pytest.approx(taken, rel=0.25)


@pytest.mark.parametrize("name", ["memory", "memory_7b"])
def test_the_estimate_for_an_h100_is_near_what_was_compiled_for_one(name):
    made = json.loads(Path(f"docs/results/{name}.json").read_text())["result"]
    fields = {"max_prompt_length": made["prompt"], "prompts_per_step": made["micro"], "micro_batch": made["micro"]}
    config = load_config("configs/gba.py:qwen2_vl_2b", fields | {"max_new_tokens": made["limit"]})
    shape, _ = architecture(made["model"])
    found = needs(config, shape, made["dtype"], hardware.find("h100x1")).phases["update"]
    compiled = made["gigabytes"]["gradient"]["temporary"] * 1e9
    assert compiled < sum(found[part] for part in ESTIMATES) < 1.5 * compiled


@pytest.fixture
def little(tiny_checkpoint, tiny_cases):
    """Fields of a gradient that compiles in seconds."""
    fields = {
        "model.path": tiny_checkpoint,
        "data.path": tiny_cases,
        "lora.rank": 2,
        "max_new_tokens": 8,
        "overlong": "drop",
    }
    return fields | {"max_prompt_length": 256, "plan": True, "plan_compile": True, "eval.every": -1}


def test_the_bytes_of_a_compiled_update_are_those_of_its_program(little, capsys):
    config = load_config("configs/gba.py", little | {"prompts_per_step": 2, "num_samples": 2, "packing": 0})
    found, _, _ = count(config, compiled_ratio(config))
    assert found.phases["update"]["compiled program"] == compiled_bytes(config, load_cases(config.data.path, "dev"))
    launch(load_config("configs/dsa.py", little | {"batch_size": 2, "specialty": "AM"}))
    assert "compiled program" in capsys.readouterr().out


def test_a_compiler_that_is_not_here_is_named(little, monkeypatch):
    def missing(**names):
        raise NotImplementedError

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    config = load_config("configs/dsa.py", little | {"plan_mesh": "v5e-8"})
    with pytest.raises(ConfigError, match=r"no compiler for v5e is here; install libtpu"):
        compiled_ratio(config)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "plugin"), [("h100x8", "jax_cuda12_plugin"), ("v5e-8", "libtpu")])
def test_an_update_is_compiled_for_devices_that_are_not_here(little, devices, plugin):
    """Needs a plugin, not a device: "jax-cuda12-plugin[with-cuda]" of the installed JAX's version, or libtpu."""
    pytest.importorskip(plugin)
    config = load_config("configs/gba.py", little | {"prompts_per_step": 8, "num_samples": 2, "plan_mesh": devices})
    assert 0.1 < compiled_ratio(config) < 10


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="a100, h100, h200, v5e, v5p or v6e"):
        hardware.find("a100")


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("v5p-8", "v5p", 4),
        ("v5px4", "v5p", 4),
        ("V5P-4096", "v5p", 2048),
        ("v5litepod-16", "v5e", 16),
        ("v5e-8", "v5e", 8),
    ],
)
def test_a_slice_has_as_many_devices_as_chips(name, kind, count):
    """cloud.google.com/tpu/docs/v5p: 2x2x1 has 8 cores and 4 chips, and is called v5p-8; v5e's number counts chips."""
    found = hardware.find(name)
    assert (found.kind, found.count) == (kind, count)


def test_an_odd_number_of_cores_is_no_slice():
    with pytest.raises(ConfigError, match="plan_mesh=v5p-7: the number counts cores, two a chip; give an even one"):
        hardware.find("v5p-7")


@pytest.mark.parametrize(
    ("data", "fsdp", "error"), [(-1, 3, ConfigError), (-1, 16, ConfigError), (0, 1, ConfigError), (4, 4, ResourceError)]
)
def test_a_mesh_is_refused_as_the_job_refuses_it(data, fsdp, error, monkeypatch):
    monkeypatch.setattr(processes, "devices", lambda: [SimpleNamespace(platform="a100")] * 8)
    with pytest.raises(error) as planned:
        hardware.find("a100x8").mesh(data, fsdp)
    with pytest.raises(error) as made:
        make_mesh(data, fsdp)
    assert str(planned.value) == str(made.value)


def test_groups_that_are_too_large_are_named():
    """A micro-batch of one prompt holds all samples of its group: no other field lowers that."""
    fields = {"plan_mesh": "v5e-8", "num_samples": 1_000_000, "prompts_per_step": 8}
    with pytest.raises(ResourceError, match=r"set --config\.num_samples=8$"):
        check_memory(load_config("configs/gba.py:mini", fields))
    check_memory(load_config("configs/gba.py:mini", fields | {"num_samples": 8}))


def test_a_pipeline_that_does_not_fit_names_the_stage_and_fields_that_exist():
    fields = {"plan_mesh": "v5e-8", "gba.mesh.data": 1, "gba.prompts_per_step": 8, "gba.micro_batch": 8}
    with pytest.raises(ResourceError, match=r"^gba does not fit: .*; set --config.gba.micro_batch=1$"):
        check_memory(load_config("configs/pipeline.py:qwen2_vl_2b", fields))
    wide = {"plan_mesh": "v5e-8", "model.dtype": "float32", "dsa.max_prompt_length": 512}
    with pytest.raises(ResourceError) as refused:
        check_memory(load_config("configs/pipeline.py:qwen2_vl_2b", wide))
    mend = dict(part.removeprefix("--config.").split("=") for part in str(refused.value).split() if "=" in part)
    assert "model.dtype" in mend, "a field that all stages share has no stage's name before it"
    check_memory(load_config("configs/pipeline.py:qwen2_vl_2b", wide | mend))


@pytest.mark.parametrize("job", ["dsa", "gba"])
def test_the_27b_of_the_readme_fits_one_device_of_80_gb_and_what_would_make_it_is_said(job):
    base = {"plan_mesh": "h100x1"} | ({"specialty": "AM"} if job == "dsa" else {})
    (asked,) = re.findall(r"27B: `(.+?)`", (ROOT / "README.md").read_text())
    fields = dict(part.split("=") for part in asked.split())
    fitting = load_config(f"configs/{job}.py:medgemma_27b", base | fields)
    assert problem(fitting, "") == ""
    assert "policy's copy" not in count(fitting)[0].phases["evaluation"], "deltas stay beside small weights"
    assert "model.quantize=nf4" in problem(load_config(f"configs/{job}.py:medgemma_27b", base), "")


@pytest.mark.parametrize("text", ["abc", "nan", "inf", "9" * 400, "0", "-1"])
def test_the_share_of_a_gpu_is_a_number_under_either_name_of_jax(monkeypatch, text):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "")
    assert hardware.find("H100x1").memory == 60e9, "an empty variable says nothing"
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", ".95")
    assert hardware.find("h100x1").memory == 76e9 and hardware.find("v5p-8").memory == 95e9
    assert hardware.find("v6e-8").memory == 32e9
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "4.0")
    assert hardware.find("a100x8").memory == 320e9, "unified memory: the host's counts too"
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", text)
    with pytest.raises(ConfigError, match=f"XLA_CLIENT_MEM_FRACTION={text}"):
        hardware.find("h100x1")
