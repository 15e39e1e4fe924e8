"""The loop around a step: best and patient evaluations, checkpoints that one goes back to, changes by name."""

import dataclasses
import os
import signal
import time

import jax
import numpy as np
import pytest

from mmedexpert_jax.config.validate import validate
from mmedexpert_jax.data import Case
from mmedexpert_jax.data.order import fingerprint
from mmedexpert_jax.errors import ConfigError, DataError, Interrupted
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.runtime import Run, signals
from mmedexpert_jax.train import fit, loop
from mmedexpert_jax.train.overlong import report_dropped

STEPS = 6


@pytest.fixture
def go(tmp_path, make, drawn):
    """`go(scores, stop, data, **overrides)`: runs it, or goes on; its final state, the run and the evaluated steps."""

    def run(scores=None, stop=None, data=0, name="run", hang=None, **overrides):
        fields = {"workdir": str(tmp_path / name), "trainable": "full", "lr": 0.1, "checkpoint_every": 2} | overrides
        config = load_config("configs/dsa.py:mini", fields)
        learner = make(STEPS, **{key: value for key, value in overrides.items() if key != "allow_changes"})
        asked = []

        def step(state, number):
            if number == hang:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            return learner.update(state, [[(drawn(number + 1), 1.0)]])

        def evaluate(params, at, lora=None):
            asked.append(at)
            if isinstance(scores[at], BaseException):
                raise scores[at]
            return {"eval/accuracy": scores[at]}

        with Run.open(config.workdir, config, keep=config.keep_checkpoints) as opened:
            interrupted = opened.interrupted
            rows = opened.metrics
            opened.interrupted = lambda: (
                signal.SIGTERM if stop and rows() and rows()[-1]["step"] == stop else interrupted()
            )
            state = fit(config, opened, learner, step, STEPS, "t", jax.random.key(0), scores and evaluate, data)
            opened.finish({})
        return state, opened, asked

    return run


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one.trained, other.trained)), strict=True))


def test_the_best_state_is_returned_and_its_checkpoint_kept(go):
    scores = {0: 0.1, 2: 0.5, 4: 0.3, 6: 0.4}
    best, run, asked = go(scores, **{"eval.every": 2, "eval.best": True})
    assert asked == [0, 2, 4, 6] and best.step == 2 and run.checkpoints.best() == 2
    assert 2 in run.checkpoints.steps()
    last, _, _ = go(scores, name="last", **{"eval.every": 2})
    assert last.step == STEPS and not same(best, last)


@pytest.mark.parametrize("error", [Interrupted("stop", 15), signals.Overdue(15)])
def test_a_best_evaluation_that_was_cut_off_still_chooses_its_checkpoint(go, error):
    """Made again when the run goes on, its score is the checkpoint's; the state was saved before or at the signal."""
    scores, fields = {0: 0.1, 2: 0.5, 4: 0.3, 6: 0.4}, {"eval.every": 2, "eval.best": True, "checkpoint_every": 50}
    with pytest.raises(Interrupted, match="step 2 of 6 is saved; the same command resumes with its evaluation"):
        go(scores | {2: error}, **fields)
    best, run, asked = go(scores, **fields)
    assert asked == [2, 4, 6] and best.step == 2 and run.checkpoints.best() == 2


def test_a_score_that_a_kill_kept_from_its_checkpoint_chooses_it_still(go, monkeypatch):
    """Between the evaluation's row and the state with its score."""
    scores, fields = {0: 0.1, 2: 0.5, 4: 0.3, 6: 0.4}, {"eval.every": 2, "eval.best": True}
    real = loop.save

    def kill(run, state, score=None):
        if score is not None:
            raise MemoryError("killed")
        real(run, state)

    monkeypatch.setattr(loop, "save", kill)
    with pytest.raises(MemoryError):
        go(scores, **fields)
    monkeypatch.setattr(loop, "save", real)
    best, run, asked = go(scores, **fields)
    assert asked == [4, 6] and best.step == 2 and run.checkpoints.best() == 2


def test_a_checkpoint_that_is_due_is_there_before_its_evaluation(go):
    class Killed(Exception):
        """Such as a lack of memory."""

    with pytest.raises(Killed):
        go({0: 0.1, 2: 0.2, 4: Killed()}, **{"eval.every": 2})
    state, run, asked = go({2: 0.2, 4: 0.3, 6: 0.4}, **{"eval.every": 2})
    assert asked == [4, 6] and state.step == STEPS and [row["step"] for row in run.metrics()][-1] == STEPS


def test_a_run_ends_where_evaluations_get_no_better(go, capsys):
    scores = {0: 0.2, 1: 0.4, 2: 0.4, 3: 0.3, 4: 0.9, 5: 0.9, 6: 0.9}
    state, run, asked = go(scores, **{"eval.every": 1, "eval.patience": 2})
    assert asked == [0, 1, 2, 3] and state.step == 3 and run.checkpoints.latest() == 3
    said = "no better for 2 evaluations: ended at step 3 of 6; eval.patience=4 goes on"
    assert said in capsys.readouterr().out
    state, _, asked = go(scores, **{"eval.every": 1, "eval.patience": 4})
    assert asked == [4, 5, 6] and state.step == STEPS and said not in capsys.readouterr().out
    state, _, asked = go(scores, name="patient", **{"eval.every": 1, "eval.patience": 3})
    assert state.step == STEPS


def test_weights_that_an_update_broke_are_not_saved(go, tmp_path):
    with pytest.raises(ConfigError, match="step 2: the update at lr 1e\\+30 left weights without a finite norm"):
        go(lr=1e30)
    assert not (tmp_path / "run" / "ckpt").exists()


def test_a_change_that_no_checkpoint_can_be_read_with_changes_nothing(go, tmp_path, capsys):
    go()
    config = (tmp_path / "run" / "config.json").read_bytes()
    for field in ({"max_grad_norm": 0.0}, {"trainable": "lora"}):
        (name,) = field
        with pytest.raises(ConfigError, match=rf"are read with the same {name} alone; start over") as caught:
            go(allow_changes=(name,), **field)
        assert "allow_changes" not in str(caught.value)
    assert (tmp_path / "run" / "config.json").read_bytes() == config


def test_a_run_goes_back_once_to_a_checkpoint_that_is_named(go, capsys):
    whole, run, _ = go(keep_checkpoints=3)
    rows = [{k: v for k, v in row.items() if k != "time"} for row in run.metrics()]
    with pytest.raises(Interrupted, match="step 3 of 6"):
        go(keep_checkpoints=3, resume_from=2, stop=3)
    capsys.readouterr()
    again, run, _ = go(keep_checkpoints=3, resume_from=2)  # the same command: from step 3, not from step 2
    assert run.checkpoints.steps() == [3, 4, 6] and same(again, whole)
    assert [{k: v for k, v in row.items() if k != "time"} for row in run.metrics()] == rows
    with pytest.raises(ConfigError, match=r"resume_from=5: .* no checkpoint of that step; there are 3, 4, 6"):
        go(resume_from=5)


def test_a_branch_point_is_tried_with_one_field_after_another(go):
    go(keep_checkpoints=4)
    ends = []
    for lr in (0.2, 0.4):
        state, run, _ = go(keep_checkpoints=4, resume_from=2, lr=lr, allow_changes=("lr",))
        assert [row["learning_rate"] for row in run.metrics()] == pytest.approx([0.1] * 2 + [lr] * 4)
        ends.append(state)
    assert not same(*ends)
    with Run.open(run.path, run.config) as again:
        assert again.done  # the same command, given once more


def test_a_finished_run_is_not_told_other_fields_than_it_was_trained_with(go):
    _, run, _ = go()
    before = (run.path / "config.json").read_bytes()
    for key, value in {"lr": 0.2, "adam_betas": (0.5, 0.9)}.items():
        with pytest.raises(ConfigError, match=rf"is finished, .*: {key} was .*, now .*; go back by resume_from"):
            go(**{key: value}, allow_changes=(key,))
        assert (run.path / "config.json").read_bytes() == before


def test_a_field_is_changed_by_its_name_alone(go, capsys):
    with pytest.raises(Interrupted):
        go(stop=3)
    with pytest.raises(ConfigError, match=r"lr was 0.1, now 0.2; .* --config.allow_changes=lr$"):
        go(lr=0.2)
    capsys.readouterr()
    changed, run, _ = go(lr=0.2, allow_changes=("lr",))
    assert "goes on with another lr 0.1 -> 0.2" in capsys.readouterr().out
    rates = [row["learning_rate"] for row in run.metrics()]
    np.testing.assert_allclose(rates, [0.1] * 3 + [0.2] * 3)
    assert not same(changed, go(name="whole")[0])
    config = load_config("configs/dsa.py:mini", {"allow_changes": ("lrr",)})
    with pytest.raises(ConfigError, match=r"allow_changes: no field 'lrr'; did you mean lr\?"):
        validate(config)
    with pytest.raises(ConfigError, match="resume_from is a step of one expert"):
        validate(load_config("configs/dsa.py:mini", {"resume_from": 3}))


@pytest.mark.parametrize(("warmup", "told"), [(STEPS - 1, False), (STEPS, True), (1000, True)])
def test_a_warm_up_that_the_run_does_not_outlast_is_told(go, capsys, warmup, told):
    _, run, _ = go(warmup_steps=warmup)
    line = f"hint: warmup_steps {warmup:,} is not below the run's number of updates, 6"
    assert (line in capsys.readouterr().out) == told
    assert (max(row["learning_rate"] for row in run.metrics()) < 0.1) == told


def test_a_warm_up_that_is_the_whole_run_is_told_of_a_share_too(go, capsys):
    go(warmup_ratio=1.0)
    assert "hint: warmup_ratio 1 is all of the run, so that the rate never is lr 0.1" in capsys.readouterr().out
    go(name="shorter", warmup_ratio=0.5)
    assert "warmup" not in capsys.readouterr().out


def test_a_signal_within_a_long_step_saves_the_state_before_it(go, monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.05)
    with pytest.raises(Interrupted, match="stopped where it was"):
        go(hang=0)
    with pytest.raises(Interrupted, match="step 3 is saved"):
        go(hang=3, checkpoint_every=50)
    state, run, _ = go(checkpoint_every=50)
    assert same(state, go(name="whole")[0]) and [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6]


def test_a_pipelines_stages_are_changed_by_name_too(tmp_path):
    def opened(**fields):
        config = load_config("configs/pipeline.py:mini", {"workdir": str(tmp_path / "p")} | fields)
        return Run.open(config.workdir, config)

    opened().close()
    with pytest.raises(ConfigError, match=r"gba.lr was .*--config.gba.allow_changes=lr$"):
        opened(**{"gba.lr": 0.5})
    opened(**{"gba.lr": 0.5, "gba.allow_changes": ("lr",)}).close()


def test_other_cases_than_those_of_the_checkpoint_are_told_in_one_line(go, capsys):
    cases = [Case(f"case-{i}", "Why?", ("1", "2"), "A", "AM") for i in range(3)]
    data = fingerprint(cases)
    with pytest.raises(Interrupted):
        go(stop=3, data=data)
    capsys.readouterr()
    with pytest.raises(Interrupted):
        go(stop=4, data=fingerprint(list(cases)))
    assert "training cases" not in capsys.readouterr().out
    other = fingerprint([*cases[:2], dataclasses.replace(cases[2], answer="B")])
    levels = [{case.id: level for case, level in zip(cases, order, strict=True)} for order in ((1, 2, 3), (3, 2, 1))]
    ordered = {fingerprint(cases, level) for level in levels}  # rows may say another difficulty under the same words
    assert len({data, other, fingerprint(cases[::-1]), *ordered}) == 5 and fingerprint(cases, levels[0]) in ordered
    state, _, _ = go(data=other)
    told = [line for line in capsys.readouterr().out.splitlines() if "training cases are not those of step 4" in line]
    assert len(told) == 1 and f"{data:08x}" in told[0] and state.data == other


def test_what_is_left_out_is_counted(capsys):
    report_dropped([f"case-{i}" for i in range(7)], 9, "max_prompt_length 20")
    line = capsys.readouterr().out
    assert line.startswith("7 of 9 training cases are over max_prompt_length 20 and left out: case-0, case-1")
    with pytest.raises(DataError, match="all 2 training cases are over max_prompt_length 20"):
        report_dropped(["a", "b"], 2, "max_prompt_length 20")
