"""The trainer: the loss it minimises, accumulation, what it learns, and that stopping leaves no trace."""

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.errors import ConfigError, Interrupted
from mmedexpert_jax.lora import fold
from mmedexpert_jax.models import load_model, load_processor, tree
from mmedexpert_jax.rollout.logprobs import packed
from mmedexpert_jax.runtime import Run
from mmedexpert_jax.sft import dsa, train
from mmedexpert_jax.sft.examples import Examples
from mmedexpert_jax.train import Policy, State

CLOCKS = ("step_time", "tokens_per_second", "time", "time/wait")


def metrics(run):
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in run.metrics()]


@pytest.fixture(scope="module")
def first_step(cases, model_dir, tmp_path_factory):
    """Deltas that are not zero, four rows with and without images in one micro-batch, and their sums by rows."""
    from mmedexpert_jax.launch import load_config

    overrides = {"model.path": str(model_dir), "batch_size": 4, "accumulation": 1, "steps": 1}
    config = load_config("configs/dsa.py:mini", overrides=overrides)
    examples = Examples(cases[8:], load_processor(model_dir), config)
    model, params = load_model(model_dir)
    lora = jax.tree.map(lambda f: f + 0.02, lora_module.init(jax.random.key(0), params, 2, 4))
    micro = examples.micro_batches(0)[0]

    learner = dsa.learner_of(config, model, Policy(params), 1)

    def total(*parts, capacities=0):
        found = []
        for rows in parts:
            lengths = np.where(np.isin(np.arange(4), rows), micro.lengths, 0)
            packing = packed(lengths[:, None], micro.tokens.shape[1], capacities) if capacities else None
            kept = dataclasses.replace(micro, lengths=lengths, packing=packing)
            found.append(learner.gradient(State(lora, ()), kept))
        return jax.tree.map(lambda *leaves: sum(leaves), *found)

    return model, params, lora, micro, total


def test_loss_is_the_cross_entropy_of_the_completion(first_step):
    model, params, lora, micro, total = first_step
    sums = total(range(4))[1]
    prompts, size = micro.prompts, micro.tokens.shape[1]
    width = prompts.tokens.shape[1] + size
    whole = {name: np.pad(getattr(prompts, name), [(0, 0)] * (n - 1) + [(0, size)]) for name, n in
             (("tokens", 2), ("positions", 3), ("vision_index", 2))}  # fmt: skip
    expected = correct = 0.0
    for row, (start, length) in enumerate(zip(prompts.lengths, micro.lengths, strict=True)):
        whole["tokens"][row, start : start + length] = micro.tokens[row, :length]
        whole["positions"][row, :, start:width] = prompts.next_position[row] + np.arange(width - start)
        whole["vision_index"][row, start:] = -1
    full = dataclasses.replace(prompts, lengths=prompts.lengths + micro.lengths, **whole)
    logprobs = np.asarray(jax.nn.log_softmax(model.logits(params, full, lora)))
    for row, (start, length) in enumerate(zip(prompts.lengths, micro.lengths, strict=True)):
        own = logprobs[row, start - 1 : start - 1 + length]
        expected -= own[np.arange(length), micro.tokens[row, :length]].sum()
        correct += (own.argmax(-1) == micro.tokens[row, :length]).sum()
    assert sums.tokens == micro.lengths.sum() and sums.correct == correct
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)


@pytest.mark.parametrize("capacities", [0, 4])
def test_gradient_does_not_depend_on_the_split_nor_on_packing(first_step, capacities):
    total = first_step[-1]
    whole, split = total([0, 1, 2, 3]), total([0], [2, 3], [1], capacities=capacities)
    assert whole[1].tokens == split[1].tokens
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6 * max(1.0, float(jnp.abs(one).max())))


def test_a_stopped_run_ends_as_one_that_never_stopped(cases, make_config, tmp_path, monkeypatch):
    held_out = []

    def evaluate(params, step, lora):
        folded = fold(params, lora)
        held_out.append((step, float(folded["model"]["layers"]["0"]["mlp"]["up_proj"]["weight"].sum())))
        return {"eval/accuracy": step / 10}

    def go(name, stop_after=None):
        config = make_config(workdir=str(tmp_path / name))
        with Run.open(config.workdir, config) as run:
            steps = []
            monkeypatch.setattr(run, "interrupted", lambda: signal.SIGTERM if len(steps) == stop_after else None)
            log = run.log
            monkeypatch.setattr(
                run, "log", lambda step, row: (log(step, row), steps.append(step) if "loss" in row else 0)
            )
            path = train(config, run, evaluate=evaluate, cases=cases[:10])
            return path, metrics(run), run.summary

    adapter, rows, summary = go("whole")
    assert [step for step, _ in held_out] == [0, 6] and held_out[0][1] != held_out[1][1]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] and summary["loss/last"] == losses[-1] and summary["steps"] == 6
    assert set(rows[1]) >= {"grad_norm", "learning_rate", "mean_token_accuracy", "epoch", "num_tokens", "compilations"}
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    np.testing.assert_allclose(rates, [0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.01, 0.01], rtol=1e-6)

    with pytest.raises(Interrupted, match="step 3 of 6") as error:
        go("stopped", stop_after=3)
    assert error.value.exit_code == 143
    again, resumed, summary_again = go("stopped")
    assert json.dumps(resumed) == json.dumps(rows)
    assert (again / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    assert summary_again == summary | {"export": str(again)}

    _, params = load_model(tmp_path / "whole")  # the run's export, folded into its base
    assert params["model"]["layers"]["0"]["mlp"]["up_proj"]["weight"].sum() == held_out[1][1]


def test_a_run_that_compiles_one_layer_for_all_exports_the_same(cases, make_config, tmp_path, monkeypatch):
    """Tensors under the same names, and equal but for the rounding that Adam carries on."""
    monkeypatch.setattr(tree, "DEEP", 1)
    exported = []
    for scan in (False, True):
        fields = {"scan_layers": scan, "remat": True, "packing": 2, "steps": 2, "lr": 1e-3}
        config = make_config(workdir=str(tmp_path / f"{scan}"), **fields)
        with Run.open(config.workdir, config) as run:
            train(config, run, cases=cases[:10])
            assert all(tree.STACKED not in name for name in run.checkpoints.read(2))
        exported.append(load_model(tmp_path / f"{scan}")[1])
    for one, other in zip(*map(jax.tree.leaves, exported), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_full_training_writes_a_model(cases, make_config, model_dir):
    config = make_config(trainable="full", steps=2, lr=1e-3)
    with Run.open(config.workdir, config) as run:
        path = train(config, run, cases=cases[:10])
    assert path == run.path / "export" / "model"
    before, after = load_model(model_dir)[1], load_model(path)[1]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert changed["model"]["embed_tokens"]["weight"] and changed["model"]["norm"]["weight"]


def test_a_run_whose_metrics_were_lost_still_ends(cases, make_config):
    config = make_config(steps=1)
    for _ in range(2):
        with Run.open(config.workdir, config) as run:
            train(config, run, cases=cases[:4])
        (run.path / "metrics.jsonl").unlink()
        (run.path / "STATUS.json").unlink()
    assert run.done and "loss/first" not in run.summary and (run.path / "export" / "adapter").is_dir()


def test_bad_runs_are_refused(cases, make_config):
    for specialty in ("all", "cardiology"):
        config = make_config()
        with config.unlocked():
            config.specialty = specialty
        with (
            Run.open(config.workdir, config, fresh=True) as run,
            pytest.raises(ConfigError, match="AM, CAH, BS, CSI, mixed"),
        ):
            train(config, run)
    config = make_config(lr=1e30, steps=2)
    with Run.open(config.workdir, config, fresh=True) as run, pytest.raises(ConfigError, match="lower config"):
        train(config, run, cases=cases[:10])
