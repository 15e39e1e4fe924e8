"""Prefill, decoding and the update lower for TPU: no accelerator is needed for that."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import export

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.gba.batches import Batches
from mmedexpert_jax.gba.guidelines import Prompt
from mmedexpert_jax.gba.learner import Learner
from mmedexpert_jax.gba.rollouts import Rollout
from mmedexpert_jax.models import load_model, load_processor
from mmedexpert_jax.rollout import generate


@pytest.fixture(scope="module")
def setup(run_config, tmp_path_factory):
    config = run_config(tmp_path_factory.mktemp("lowering"), packing=2, remat=True)
    model, params = load_model(config.model.path)
    processor = load_processor(config.model.path)
    prompts = [Prompt(case, "analytical") for case in load_cases(config.data.path, "train")[1:3]]
    batches = Batches(processor, SimpleNamespace(prompts=lambda step: prompts), 1, 2, config.max_prompt_length)
    encoded = [batches.encode(prompt) for prompt in prompts]
    learner = Learner(model, params, config, (), 4, 1)
    rows = np.zeros((2, 4, 6), np.int32)
    lengths, floats = np.array([[6, 3, 1, 2]] * 2, np.int32), rows.astype(np.float32)
    cut = np.zeros((2, 4), bool)
    rollout = Rollout(prompts, encoded, [], rows, lengths, floats, cut, floats[..., 0], np.ones(2, bool), ~cut)
    part = rollout.part(slice(0, 2), batches, 2, config.packing)
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
    program = lowered_for_tpu(setup.learner._gradient_fn, (state.trained, setup.params), setup.part)
    assert "dot_general" in program
    width = setup.model.config.text.head_dim
    assert not [line for line in program.splitlines() if "stablehlo.scatter" in line and f"x{width}xf32" in line]
