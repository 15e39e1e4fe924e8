"""A run whose programs compile one layer for all, against the one whose layers are compiled each by itself."""

import dataclasses
import re
import signal

import jax
import numpy as np
import pytest

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.errors import Interrupted
from mmedexpert_jax.gba import trainer
from mmedexpert_jax.gba.batches import Batches
from mmedexpert_jax.gba.guidelines import Prompt
from mmedexpert_jax.gba.policy_learner import PolicyLearner
from mmedexpert_jax.gba.rollouts import Rollout
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import load_model, load_processor, tree
from mmedexpert_jax.runtime import Run
from mmedexpert_jax.runtime.metrics import is_clock

RUN = {"scan_layers": True, "remat": True, "packing": 2, "steps": 3, "eval.every": -1}


@pytest.fixture(autouse=True)
def _two_layers_are_deep(monkeypatch):
    monkeypatch.setattr(tree, "DEEP", 2)


def train(config):
    with Run.open(config.workdir, config) as run:
        path = trainer.train(config, run)
        return path, [{k: v for k, v in row.items() if not is_clock(k)} for row in run.metrics()]


def test_a_scanned_run_is_killed_and_resumed_without_a_trace(run_config, tmp_path, monkeypatch):
    whole, rows = train(run_config(tmp_path / "whole", **RUN))
    config = run_config(tmp_path / "cut", **RUN)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "interrupted", lambda self: signal.SIGTERM)
        with pytest.raises(Interrupted, match="step 1 of 3"):
            train(config)
    path, resumed = train(config)
    assert resumed == rows
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (path / file).read_bytes() == (whole / file).read_bytes()


def test_a_resume_may_compile_layers_one_by_one(run_config, tmp_path, monkeypatch):
    """Moments are saved under the names of single layers, whatever form they were kept in."""
    config = run_config(tmp_path, **RUN)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "interrupted", lambda self: signal.SIGTERM)
        with pytest.raises(Interrupted, match="step 1 of 3"):
            train(config)
    with Run.open(config.workdir, config) as run:
        saved = run.checkpoints.read(1)
    moments = {key.partition("mu")[2] for key in saved if ".mu." in key}
    assert moments == {key.partition("trained")[2].removeprefix("']") for key in saved if key.startswith("['trained']")}
    assert all(np.asarray(leaf).any() for key, leaf in saved.items() if ".nu." in key and "'b'" in key)
    _, rows = train(run_config(tmp_path, **RUN | {"scan_layers": False}))
    assert [row["step"] for row in rows] == [1, 2, 3] and all(np.isfinite(row["loss"]) for row in rows)


@pytest.fixture(scope="module")
def rollout(run_config, tmp_path_factory):
    """Config, model, parameters, a LoRA of the first layer alone, and a part of two prompts, one with an image."""
    config = run_config(tmp_path_factory.mktemp("scanned"), remat=True, packing=2)
    model, params = load_model(config.model.path)
    processor = load_processor(config.model.path)
    cases = load_cases(config.data.path, "train")
    prompts = [Prompt(cases[i], "analytical") for i in (2, 0)]
    batches = Batches(processor, type("Order", (), {"prompts": lambda self, step: prompts})(), 1, 2, 512)
    encoded = [batches.encode(prompt) for prompt in prompts]
    learner = PolicyLearner(model, params, config, (), config.num_samples, 1)
    done = learner.sample(learner.init(jax.random.key(0)), batches.prompt_batches(encoded), jax.random.key(1))
    scored = Rollout.of(prompts, encoded, done, processor)
    advantages = np.random.default_rng(0).normal(size=scored.lengths.shape).astype(np.float32)
    part = scored.with_advantages(advantages).micro_batch(slice(0, 2), batches, capacities=2)
    return config, model, params, part


@pytest.mark.parametrize(
    "how",
    [
        {"beta": 0.01},
        pytest.param({"beta": 0.01, "minibatches": 2}, marks=pytest.mark.slow),
        pytest.param({"trainable": "full", "beta": 0.01}, marks=pytest.mark.slow),
        pytest.param({"under": 1}, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_layers_compiled_one_by_one(run_config, tmp_path, rollout, how):
    """Of deltas with a reference, of all weights, and of deltas over an adapter that lacks the last layer."""
    _, model, params, part = rollout
    how = dict(how)
    under = how.pop("under", 0) and _first_layer(params)
    found = {}
    for scan in (False, True):
        config = run_config(tmp_path, remat=True, packing=2, scan_layers=scan, **how)
        learner = PolicyLearner(model, params, config, (), config.num_samples, 1)
        if under:  # as where the base's dtype keeps an adapter from being folded into it
            learner._base = dataclasses.replace(learner._base, lora=under)
        state = learner.init(jax.random.key(2))
        moved = jax.tree.map(lambda x: x + 0.02, state.trained) if config.trainable == "lora" else state.trained
        state = dataclasses.replace(state, trained=moved)
        given = learner._with_logprobs(state, part) if learner.updates > 1 else part
        assert _loops(learner, state, given) == scan
        found[scan] = learner.gradient(state, given)
    assert jax.tree.structure(found[True]) == jax.tree.structure(found[False])
    for ours, theirs in zip(jax.tree.leaves(found[True]), jax.tree.leaves(found[False]), strict=True):
        assert np.abs(ours - theirs).max() < 2e-5 * np.abs(theirs).max() + 1e-6


def _loops(learner, state, part):
    """Whether the gradient's program goes through the decoder's layers in loops: forwards and backwards."""
    return len(re.findall(r"stablehlo\.while", learner.lower_update(state, part).as_text())) >= 2


def _first_layer(params):
    rng = np.random.default_rng(3)
    out, width = params["model"]["layers"]["0"]["mlp"]["up_proj"]["weight"].shape
    factors = {"a": rng.normal(0, 0.1, (2, width)), "b": rng.normal(0, 0.1, (out, 2))}
    return Lora({"model.layers.0.mlp.up_proj": jax.tree.map(np.float32, factors)}, 2, 4.0)
