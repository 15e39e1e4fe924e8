"""metrics.jsonl, TensorBoard's files read by another implementation, trackers."""

import contextlib
import json
import math
import sqlite3
import struct
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.runtime import Run, files, metrics, tfevents

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(deadline=None, max_examples=60)
@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_plain_is_strict_json_and_keeps_what_json_can_say(value):
    def expected(item):
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, list):
            return [expected(part) for part in item]
        if isinstance(item, dict):
            return {key: expected(part) for key, part in item.items()}
        return item

    assert json.loads(json.dumps(files.plain(value), allow_nan=False)) == expected(value)


def test_plain_of_arrays_paths_and_images():
    value = {"f": jnp.float32(0.1), "b": jnp.bfloat16(0.5), "i": np.int64(3), "a": np.array([1.0, np.inf]), "t": (1,)}
    assert files.plain(value) == {"f": float(np.float32(0.1)), "b": 0.5, "i": 3, "a": [1.0, None], "t": [1]}
    assert files.plain(Image.new("RGBA", (900, 20))).startswith("data:image/jpeg;base64,")


def test_rows_are_there_at_once_and_nan_is_null(tmp_path):
    log = metrics.Metrics(tmp_path)
    log.log(3, {"reward": jnp.float32(0.5), "kl": float("nan"), "grad_norm": float("inf"), "note": "ü"})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=pytest.fail)
    assert row.pop("time") > 1.7e9
    assert row == {"step": 3, "reward": 0.5, "kl": None, "grad_norm": None, "note": "ü"}


@pytest.mark.parametrize("tail", [b'{"step": 3, "rew', b'{"step": 3}', b"\0\0\0\0\n", b"3\n"])
def test_a_last_line_cut_short_is_dropped(tmp_path, tail):
    log = metrics.Metrics(tmp_path)
    log.log(1, {"x": 1.0})
    log.log(2, {"x": 2.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2]
    log = metrics.Metrics(tmp_path)
    log.log(3, {"x": 3.0})
    assert [row["x"] for row in metrics.read(tmp_path)] == [1.0, 2.0, 3.0]


def test_rewind_drops_later_rows_of_both_files(tmp_path):
    log = metrics.Metrics(tmp_path)
    for step in range(6):
        log.log(step, {"x": step})
    log.rewind(3)
    log.log(4, {"x": 40})
    log.close()
    assert [row["x"] for row in metrics.read(tmp_path)] == [0, 1, 2, 3, 40]
    events = [event for path in sorted((tmp_path / "tb").iterdir()) for event in read_events(path)]
    starts = [event.step for event in events if event.HasField("session_log")]
    assert starts == [4]


def read_events(path) -> list:
    """Event records, parsed with tensorboardX's generated protocol buffers; checksums by its own CRC."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(body)
        events.append(Event.FromString(body))
        data = data[16 + length :]
    return events


def test_tensorboard_reads_what_we_write(tmp_path):
    writer = tfevents.EventWriter(tmp_path, purge_step=None)
    values = {"reward": 0.25, "rewards/accuracy/mean": -1.5, "länge": 300.0}
    writer.scalars(0, {"x": 1.0})
    writer.scalars(70_000, values)
    writer.close()
    head, first, second = read_events(writer.path)
    assert head.file_version == "brain.Event:2" and head.wall_time > 1.7e9
    assert (first.step, second.step) == (0, 70_000)
    assert {value.tag: value.simple_value for value in second.summary.value} == values
    resumed = tfevents.EventWriter(tmp_path, purge_step=5)
    event = read_events(resumed.path)[1]
    assert (event.step, event.session_log.status) == (5, event.session_log.START)


def test_tracker_is_asked_for_or_absent(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish"))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=lambda **options: calls.append(options) or run))
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = metrics.Metrics(tmp_path, tracker="trackio", config={"lr": float("nan")})
    log.log(2, {"x": 1.0, "note": "text", "kl": float("nan")})
    log.close()
    assert calls[0]["config"] == {"lr": None} and calls[0]["name"].startswith(f"{tmp_path.name}-")
    assert calls[1:] == [(2, {"x": 1.0}), "finish"]
    with pytest.raises(ConfigError, match="pip install wandb"):
        metrics.Metrics(tmp_path, tracker="wandb")
    with pytest.raises(ConfigError, match="choose one of tensorboard, wandb, trackio"):
        metrics.Metrics(tmp_path, tracker="wandbb")


def test_several_trackers_get_every_row(tmp_path, monkeypatch):
    """Each once, in the order that is asked for; TensorBoard's files are there beside them."""
    calls = []

    def module(name):
        run = SimpleNamespace(log=lambda values, step: calls.append((name, step)), finish=lambda: calls.append(name))
        return SimpleNamespace(init=lambda **_: run)

    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, module(name))
    log = metrics.Metrics(tmp_path, tracker="tensorboard, trackio,wandb,trackio")
    log.log(1, {"x": 1.0})
    log.close()
    assert calls == [("trackio", 1), ("wandb", 1), "trackio", "wandb"] and any((tmp_path / "tb").iterdir())


def test_a_tracker_that_fails_ends_no_training(tmp_path, monkeypatch, capsys):
    def fail(values, step):
        raise ConnectionError("the service is down")

    run = SimpleNamespace(log=fail, finish=lambda: 1 / 0)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=lambda **_: run))
    log = metrics.Metrics(tmp_path, tracker="trackio")
    for step in (1, 2):
        log.log(step, {"x": 1.0})
    log.close()
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and "left out from step 1 on" in told[0] and "the service is down" in told[0]
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2]


def test_a_tracker_that_cannot_be_closed_ends_nothing_and_one_that_cannot_begin_is_a_line(
    tmp_path, monkeypatch, capsys
):
    """A node without network, where wandb's upload fails at the end; a machine without a login."""

    def fail(**_):
        raise ConnectionError("api_key not configured (no-tty)")

    run = SimpleNamespace(log=lambda values, step: None, finish=fail)
    monkeypatch.setitem(sys.modules, "wandb", module := SimpleNamespace(init=lambda **_: run))
    with Run.open(tmp_path / "run", {"tracker": "wandb"}) as opened:
        opened.finish({})
    assert "the tracker could not be closed: ConnectionError: api_key" in capsys.readouterr().out
    module.init = fail
    with Run.open(tmp_path / "run", {"tracker": "wandb"}) as opened:  # which has ended, and asks for no tracker
        assert opened.done
    for name, fix in (("wandb", "WANDB_MODE=offline, or leave it out"), ("trackio", "leave it out")):
        monkeypatch.setitem(sys.modules, name, module)
        with pytest.raises(ConfigError, match=f"tracker='{name}' cannot begin: .*no-tty.*; .*{fix}"):
            metrics.Metrics(tmp_path, tracker=name)


@pytest.mark.slow  # needs the extra `trackers`
def test_wandb_itself_takes_a_run_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    log = metrics.Metrics(tmp_path, tracker="wandb", config={"lr": 1e-6})
    log.log(1, {"reward": 0.5, "rewards/accuracy/mean": 0.25})
    log.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow  # needs the extra `trackers`
def test_trackio_itself_takes_a_run_and_resumes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for step in (1, 2):  # the second as a resumed run
        log = metrics.Metrics(tmp_path, tracker="trackio", config={"lr": 1e-6})
        log.log(step, {"reward": 0.5 * step, "rewards/accuracy/mean": 0.25})
        log.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "mmedexpert-jax.db")) as stored:
        rows = stored.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert [(step, json.loads(values)["reward"]) for _, step, values in rows] == [(1, 0.5), (2, 1.0)]


def test_a_resumed_run_goes_on_in_its_tracker(tmp_path, monkeypatch):
    """wandb resumes by `id`, without which resume="allow" makes a new run; trackio has no `id` and resumes by name."""
    calls = []

    def wandb(*, project, name, config, resume, id):
        calls.append((resume, name, id))
        return SimpleNamespace(finish=lambda: None)

    def trackio(*, project, name, config, resume):
        calls.append((resume, name))
        return SimpleNamespace(finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=wandb))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=trackio))
    for tracker in ("wandb", "trackio"):
        for parent in ("a", "a", "b"):
            (tmp_path / tracker / parent / "gba").mkdir(parents=True, exist_ok=True)
            metrics.Metrics(tmp_path / tracker / parent / "gba", tracker=tracker).close()
        first, resumed, other = calls[-3:]
        assert first == resumed != other and first[0] == "allow"


def test_clocks_are_told_apart():
    assert all(map(metrics.is_clock, ("time", "time/rollout", "step_time", "tokens_per_second")))
    assert not any(map(metrics.is_clock, ("reward", "timeout", "completions/mean_length")))


def test_blank_lines_and_steps_with_a_point_are_rows_of_other_writers(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\n{"step": 3.0}\n')
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 3] and capsys.readouterr().err == ""
