"""Prefill, decoding and the update compiled for accelerators that are not there."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import export

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.gba.batches import Batches
from mmedexpert_jax.gba.guidelines import Prompt
from mmedexpert_jax.gba.policy_learner import PolicyLearner
from mmedexpert_jax.gba.rollouts import Rollout
from mmedexpert_jax.models import load_model, load_processor
from mmedexpert_jax.rollout import generate
from mmedexpert_jax.train import Policy

# what passes between a program and the host while it runs: queues, callbacks, buffers in the host's memory
HOST = re.compile(r"\b(?:infeed|outfeed|send|recv)(?:-done)?\(|callback|:S\(5\)|\)S\(5\)")
WIDTH, PROMPTS, PROMPT, LIMIT = 256, 2, 200, 64  # of what is compiled for an H100


@pytest.fixture(scope="module")
def setup(run_config, tmp_path_factory):
    config = run_config(tmp_path_factory.mktemp("lowering"), packing=2, remat=True)
    model, params = load_model(config.model.path)
    processor = load_processor(config.model.path)
    prompts = [Prompt(case, "analytical") for case in load_cases(config.data.path, "train")[1:3]]
    batches = Batches(processor, SimpleNamespace(prompts=lambda step: prompts), 1, 2, config.max_prompt_length)
    encoded = [batches.encode(prompt) for prompt in prompts]
    learner = PolicyLearner(model, params, config, (), 4, 1)
    rows = np.zeros((2, 4, 6), np.int32)
    lengths, floats = np.array([[6, 3, 1, 2]] * 2, np.int32), rows.astype(np.float32)
    cut = np.zeros((2, 4), bool)
    rollout = Rollout(prompts, encoded, [], rows, lengths, floats, cut, floats[..., 0], np.ones(2, bool), ~cut)
    part = rollout.micro_batch(slice(0, 2), batches, 2, config.packing)
    return SimpleNamespace(**locals())


def lowered_for_tpu(function, *args):
    return export.export(jax.jit(function), platforms=["tpu"])(*args).mlir_module()


def test_prefill_lowers(setup):
    assert "dot_general" in lowered_for_tpu(setup.model.prefill, setup.params, setup.part.batch)


def test_decoding_lowers(setup):
    def decode(params, batch, data):
        key = jax.random.wrap_key_data(data)
        return generate(setup.model, params, batch, key=key, num_samples=4, max_new_tokens=6)

    assert "while" in lowered_for_tpu(decode, setup.params, setup.part.batch, jax.random.key_data(jax.random.key(0)))


def test_the_packed_update_lowers_without_a_scatter_in_the_layers(setup):
    state = setup.learner.init(jax.random.key(0))
    program = lowered_for_tpu(setup.learner._gradient_fn, state.trained, Policy(setup.params), setup.part)
    assert "dot_general" in program
    width = setup.model.config.text.head_dim
    assert not [line for line in program.splitlines() if "stablehlo.scatter" in line and f"x{width}xf32" in line]


def test_no_program_of_the_update_asks_the_host(setup):
    state = setup.learner.init(jax.random.key(0))
    gradient = setup.learner.lower_update(state, setup.part)
    update = setup.learner.lower_apply(state, gradient.out_info)
    assert not [program for program in (gradient, update) if HOST.search(program.compile().as_text())]


@pytest.fixture(scope="module")
def for_h100(tmp_path_factory):
    """`compiled(layers)`: the programs of a step of a small model, and the gradient's temporary bytes.

    Needs the CUDA plugin, not a GPU: pip install "jax-cuda12-plugin[with-cuda]" of the installed JAX's version.
    """
    pytest.importorskip("jax_cuda12_plugin")

    def compiled(layers):
        folder = tmp_path_factory.mktemp("programs")
        script = Path(__file__).parents[2] / "benchmarks" / "gba_thousand.py"
        sizes = {"model": f"{WIDTH}x{layers}x4096", "prompts-per-step": PROMPTS, "micro": PROMPTS}
        sizes |= {"prompt": PROMPT, "limit": LIMIT, "text": folder}
        options = [f"--{name}={value}" for name, value in sizes.items()]
        command = [sys.executable, script, "--memory", "--target", "h100", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stderr[-3000:]
        gigabytes = json.loads(done.stdout.splitlines()[-1])["gigabytes"]
        programs = {path.stem: path.read_text() for path in folder.glob("*.hlo")}
        return programs, gigabytes["gradient"]["temporary"] * 1e9

    return functools.cache(compiled)


@pytest.mark.slow
def test_for_an_h100_attention_is_the_fused_kernel(for_h100):
    programs, _ = for_h100(2)
    assert not [name for name, program in programs.items() if HOST.search(program)]
    kernels = {}
    for name in ("prefill", "gradient"):
        found = re.findall(r'custom_call_target="__cudnn\$fmhaSoftmax(Backward)?', programs[name])
        kernels[name] = {"forward": found.count(""), "backward": found.count("Backward")}
    # Prompts: two layers of the tower, two of the decoder. An update has the completions' two as well, for the
    # reference, for the policy, and once more in its backward pass.
    assert kernels == {"prefill": {"forward": 4, "backward": 0}, "gradient": {"forward": 3 * 6, "backward": 6}}


@pytest.mark.slow
def test_for_an_h100_a_recomputed_layer_keeps_less_than_the_inside_of_its_mlp(for_h100):
    growth = (for_h100(4)[1] - for_h100(2)[1]) / 2
    tokens = PROMPTS * (PROMPT + 8 * (LIMIT - 1))
    assert 0 < growth < tokens * 4 * WIDTH * 2
