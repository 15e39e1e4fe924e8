"""Costs: what is counted, by whom, through nesting, kills and prices."""

import json
from contextlib import closing
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mmedexpert_jax.runtime import Run, costs, processes


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("linux", 1024)])
def test_the_peak_of_a_host_without_proc_is_in_bytes(monkeypatch, platform, unit):
    """getrusage(2): ru_maxrss is in bytes on macOS, in kibibytes on Linux."""

    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", absent)
    monkeypatch.setattr(costs.sys, "platform", platform)
    monkeypatch.setattr(costs.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=7))
    assert costs._host_peak() == 7 * unit


def test_a_meter_adds_up_over_processes_and_open_runs(tmp_path):
    with Run.open(tmp_path / "outer", {"price": 36.0}) as outer:
        with Run.open(tmp_path / "inner", {}) as inner:
            costs.count(2.0, 100, 3e9)
            inner.finish({})
        costs.count(1.0, 10, 1e9)
        outer.log(1, {"loss": 1.0})
    read = lambda name: json.loads((tmp_path / name / "STATUS.json").read_text())["cost"]  # noqa: E731
    inner, outer = read("inner"), read("outer")
    devices = outer["devices"]
    assert (inner["tokens"], inner["flops"], inner["device_seconds"]) == (100, 3e9, 2.0 * devices)
    assert (outer["tokens"], outer["flops"], outer["device_seconds"]) == (110, 4e9, 3.0 * devices)
    assert outer["share_of_peak"] == pytest.approx(4e9 / (3.0 * devices) / costs.peak_flops())
    assert outer["dollars"] == pytest.approx(36.0 * outer["wall_seconds"] / 3600 * devices, abs=1e-4)
    assert "dollars" not in inner

    with Run.open(tmp_path / "outer", {"price": 0.0}):
        costs.count(1.0, 5, 1e9)
    again = read("outer")
    assert (again["tokens"], again["flops"]) == (115, 5e9) and again["wall_seconds"] >= outer["wall_seconds"]
    assert costs._OPEN == []


def test_the_peak_of_memory_is_that_of_the_run(tmp_path):
    with Run.open(tmp_path / "large", {}) as run:
        np.ones(50_000_000).sum()  # 400 MB, given back
        run.finish({})
    with Run.open(tmp_path / "small", {}) as run:
        run.finish({})
    large, small = (
        json.loads((tmp_path / name / "STATUS.json").read_text())["cost"]["peak_memory_bytes"]
        for name in ("large", "small")
    )
    assert large - small > 300e6


def test_costs_for_people():
    cost = {"wall_seconds": 61.2, "devices": 1, "peak_memory_bytes": 2_500_000_000}
    assert costs.rounded(cost) == {"wall seconds": 61, "peak memory": "2.50 GB"}
    work = {"device_seconds": 50.4, "tokens": 7, "flops": 1.234e15, "share_of_peak": 0.123, "dollars": 1.5}
    assert costs.rounded(cost | work) == {
        "wall seconds": 61, "device seconds": 50, "tokens": 7, "operations": "1.23e+15", "share of peak": "12.3%",
        "peak memory": "2.50 GB", "dollars": "1.50",
    }  # fmt: skip


def test_what_processes_do_for_each_other_is_added_up(monkeypatch):
    """Three processes with one device each, of which this one answered a share."""
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "gather", lambda own: [own, [4.0, 7, 5e9], [3.0, 8, 6e9]])
    device = SimpleNamespace(memory_stats=lambda: None)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "devices", lambda: [device] * 3)
    with closing(costs.Meter()) as meter:
        costs.count(1.0, 100, 1e9)
        with costs.shared():
            costs.count(2.0, 5, 4e9)
            costs.count(1.0, 1, 1e9)
        assert (meter.busy, meter.tokens, meter.flops) == (3.0 + 3.0 + 7.0, 121, 17e9)


def test_on_an_accelerator_a_run_shows_its_own_peak_or_none(monkeypatch):
    """The device's record never falls: a run that stays below what came before it has no figure."""
    device = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": record})
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: None), device])
    record = 10
    with closing(costs.Meter()) as outer:
        record = 50
        with closing(costs.Meter()) as large:
            record = 70
        with closing(costs.Meter()) as small:
            pass
        with closing(costs.Meter({"peak_memory_bytes": 30})) as resumed:
            pass
    peaks = [meter.values().get("peak_memory_bytes") for meter in (outer, large, small, resumed)]
    assert peaks == [70, 70, None, 30]


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("Tesla T4", 65e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A1000", 0.0),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla V100-PCIE-16GB", 112e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_a_device_is_known_by_its_name_as_a_whole(kind, peak):
    assert costs.vendors_peak(kind) == peak
