"""Rollouts a step ahead of their update: from which weights, and that a run that is killed ends as one that is not."""

import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mmedexpert_jax.errors import ConfigError, Interrupted
from mmedexpert_jax.gba import trainer
from mmedexpert_jax.gba.ahead import Ahead
from mmedexpert_jax.gba.policy_learner import PolicyLearner
from mmedexpert_jax.runtime import Run

STEPS = 4


def train(config):
    run = Run.open(config.workdir, config)
    with run:
        path = trainer.train(config, run)
    return (path / "adapter_model.safetensors").read_bytes(), [row["loss"] for row in run.metrics() if "loss" in row]


def test_a_round_is_begun_once_before_it_is_asked_for_and_none_beyond_the_last():
    drawn = []
    rounds = Ahead(lambda state, step: drawn.append(step) or (state.behind, step), 3)
    now = SimpleNamespace(behind="old")
    assert rounds(now, 0) == ("old", 0)
    rounds.begin(SimpleNamespace(behind="new"), 1)
    assert rounds(now, 1) == ("new", 1)
    rounds.begin(now, 3)
    assert rounds(now, 2) == ("old", 2) and drawn == [0, 1, 2]


def test_rollouts_come_from_weights_one_step_old_and_a_killed_run_ends_as_one_that_is_not(
    run_config, tmp_path, monkeypatch
):
    settings = {"rollout_ahead": 1, "importance_cap": 2.0, "steps": STEPS, "checkpoint_every": 1, "samples_every": 0}
    weights, sample, begin = [], PolicyLearner.sample, Ahead.begin

    def recorded(self, state, prompts, key, length):
        weights.append([np.asarray(leaf) for leaf in jax.tree.leaves(state.behind)])
        return sample(self, state, prompts, key, length)

    def begun(self, state, step):  # before the update, which takes the buffers of what is trained
        jax.tree.map(np.testing.assert_array_equal, state.behind, state.trained)
        begin(self, state, step)

    monkeypatch.setattr(PolicyLearner, "sample", recorded)
    monkeypatch.setattr(Ahead, "begin", begun)
    whole, losses = train(run_config(tmp_path / "whole", **settings))
    assert len(losses) == len(weights) == STEPS
    assert any((a != b).any() for a, b in zip(weights[0], weights[2], strict=True))
    assert all((a == b).all() for a, b in zip(weights[0], weights[1], strict=True))  # the first two: before any update

    config = run_config(tmp_path / "cut", **settings)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Run, "interrupted", lambda self: signal.SIGTERM)
            with pytest.raises(Interrupted):
                train(config)
    assert train(config) == (whole, losses)


def test_off_policy_rollouts_must_be_corrected(run_config, tmp_path):
    with pytest.raises(ConfigError, match="importance_cap"):
        trainer._check(run_config(tmp_path, rollout_ahead=1, importance_cap=0.0))
