"""Curves: the averages by another implementation's formula, and which figures are drawn."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmedexpert_jax.runtime import metrics, plots


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.floats(1, 20))
def test_ema_is_the_weighted_mean_of_the_past(values, span):
    past = 1 - 2 / (span + 1)
    for index, got in enumerate(plots.ema(values, span)):
        weights = past ** np.arange(index, -1, -1.0)
        assert got == pytest.approx(np.average(values[: index + 1], weights=weights), rel=1e-6, abs=1e-6)


def write_run(folder, gain: float) -> None:
    folder.mkdir()
    log = metrics.Metrics(folder)
    for step in range(6):
        if step:
            log.log(step, {"reward": gain * step, "rewards/accuracy/mean": gain * step, "rewards/format/mean": 1.0,
                           "kl": float("nan"), "step_time": 1.0})  # fmt: skip
        if step % 5 == 0:
            log.log(step, {"eval/accuracy": gain * step})
    log.close()


def test_a_figure_for_each_metric_that_is_there(tmp_path):
    write_run(tmp_path / "run", 0.1)
    drawn = plots.draw_run(tmp_path / "run")
    assert [path.name for path in drawn] == ["reward.png", "accuracy.png", "rewards.png"]
    for path in drawn:
        assert Image.open(io.BytesIO(path.read_bytes())).size == (960, 510)
    assert [path.name for path in plots.draw_run(tmp_path / "run", ("reward",))] == ["reward.png"]
    assert "matplotlib.pyplot" not in sys.modules
    (tmp_path / "empty").mkdir()
    assert plots.draw_run(tmp_path / "empty") == []


def test_stars_stand_for_reward_functions():
    panel = plots.Panel("rewards", "", "", {"rewards/*/mean": ""})
    rows = [{"step": 1, "rewards/format/mean": 1.0, "rewards/format/std": 0.0}, {"step": 2, "rewards/accuracy/mean": 0}]
    assert plots.named(panel, rows) == {"rewards/accuracy/mean": "accuracy", "rewards/format/mean": "format"}


def test_what_a_step_logs_by_specialty_and_of_perception_has_a_panel(tmp_path):
    log = metrics.Metrics(tmp_path)
    for step in (1, 2):
        row = {"specialties/AM/reward": 0.1, "specialties/BS/reward": 0.2, "specialties/AM/accuracy": 0.5}
        row |= {"perception_kl": 0.01 * step, "frac_reward_zero_std": 0.25, "rewards/judge/abstained": 0.5}
        log.log(step, row)
    log.close()
    assert [path.stem for path in plots.draw_run(tmp_path)] == [
        "abstentions", "reward_by_specialty", "accuracy_by_specialty", "signal", "perception"
    ]  # fmt: skip
