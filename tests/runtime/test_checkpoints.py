"""Checkpoints: the same bytes back, and never a half-written one."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.runtime.checkpoints import PACK, Checkpoints, _sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    lora: dict
    count: jax.Array


def make_tree(seed: int) -> dict:
    """Small and large leaves of every kind that a trainer holds, NaN and negative zero included."""
    rng = np.random.default_rng(seed)
    large = rng.normal(size=PACK // 4 + 7).astype(np.float32)
    factors = {"a": jnp.asarray(rng.normal(size=(4, 8)), jnp.float32), "b": jnp.array([0.0, -0.0, jnp.nan, 3e-45])}
    return {
        "state": State({"model.layers.0.self_attn.q_proj": factors}, jnp.int32(seed)),
        "bf16": (jnp.asarray(rng.normal(size=5), jnp.bfloat16), jnp.asarray(large, jnp.bfloat16)),
        "large": [jnp.asarray(large), large.astype(np.float64), jax.device_put(large, jax.devices()[0])],
        "host": {"ids": rng.integers(0, 9, (2, 3)), "empty": np.zeros((0, 4), np.float32), "scalar": np.float64(0.1)},
        "step": seed,
        "lr": 0.1,
    }


def assert_same(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert type(one) is type(other)
        assert np.asarray(one).dtype == np.asarray(other).dtype and np.shape(one) == np.shape(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_the_same_bytes_come_back(tmp_path):
    checkpoints = Checkpoints(tmp_path / "ckpt")
    assert checkpoints.latest() is None and checkpoints.best() is None
    saved = make_tree(3)
    checkpoints.save(3, saved)
    for reader in (checkpoints, Checkpoints(tmp_path / "ckpt")):
        assert reader.latest() == 3
        assert_same(reader.restore(3, make_tree(0)), saved)
    again = make_tree(4)
    checkpoints.save(3, again)
    assert_same(checkpoints.restore(3, make_tree(0)), again)


def test_restore_onto_a_shape_without_data(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    tree = {"small": jnp.arange(4.0), "large": jnp.arange(PACK, dtype=jnp.float32)}
    checkpoints.save(1, tree)
    sharding = SingleDeviceSharding(jax.devices()[0])
    like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for name, leaf in tree.items()}
    restored = checkpoints.restore(1, like)
    assert all(isinstance(leaf, jax.Array) and leaf.sharding == sharding for leaf in restored.values())
    assert_same(restored, tree)


def test_keep_policy(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.9), (4, 0.1), (5, None), (6, 0.3)):
        checkpoints.save(step, {"x": np.float32(step)}, score)
    assert checkpoints.steps() == [3, 5, 6]
    assert checkpoints.best() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "5", "6"]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, harm):
    checkpoints = Checkpoints(tmp_path / "ckpt")
    tree = {"small": np.arange(4.0), "large": np.random.default_rng(0).normal(size=PACK)}
    checkpoints.save(1, tree)
    checkpoints.save(2, tree)
    files = [path for path in (tmp_path / "ckpt" / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        whole = path.read_bytes()
        middle = len(whole) // 2
        if harm == "remove":
            path.unlink()
        elif harm == "truncate":
            path.write_bytes(whole[:-1])
        elif path.name != "manifest.json":
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        else:
            continue
        found = Checkpoints(tmp_path / "ckpt")
        assert found.latest() == 1, path
        with pytest.raises(DataError, match="no whole checkpoint there; whole ones: \\[1\\]"):
            found.restore(2, tree)
        path.write_bytes(whole)
    found = Checkpoints(tmp_path / "ckpt")
    assert found.latest() == 2
    found.save(2, tree)
    assert found.steps() == [1, 2]


def test_what_a_killed_save_leaves_is_ignored_and_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    tree = {"x": np.arange(3)}
    checkpoints.save(1, tree)
    shutil.copytree(tmp_path / "1", tmp_path / "2.tmp")
    assert Checkpoints(tmp_path).latest() == 1
    checkpoints.save(2, tree)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_step_that_was_being_replaced_when_a_kill_came_is_not_lost(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": np.arange(3)})
    shutil.copytree(tmp_path / "1", tmp_path / "1.tmp")
    (tmp_path / "1").rename(tmp_path / "1.old.tmp")  # between the two renames of a save
    Checkpoints(tmp_path).save(2, {"x": np.arange(3)})
    assert Checkpoints(tmp_path).steps() == [1, 2] and not list(tmp_path.glob("*.tmp"))


def test_sigkill_while_saving(tmp_path):
    """Killed at an arbitrary moment of an endless row of saves, the newest whole checkpoint holds its own step."""
    script = f"""
import numpy as np
from mmedexpert_jax.runtime.checkpoints import Checkpoints
checkpoints = Checkpoints({str(tmp_path)!r})
step = checkpoints.latest() or 0
while True:
    step += 1
    checkpoints.save(step, {{"step": step, "large": np.full(300_000, step, np.float64)}})
    print(step, flush=True)
"""
    like = {"step": 0, "large": np.zeros(300_000)}
    for delay in (0.013, 0.037):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            reported = [int(process.stdout.readline()) for _ in range(3)][-1]
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            reported = max([reported, *(int(line) for line in process.stdout)])
        checkpoints = Checkpoints(tmp_path)
        latest = checkpoints.latest()
        assert latest in (reported, reported + 1)
        tree = checkpoints.restore(latest, like)
        assert tree["step"] == latest and (tree["large"] == latest).all()


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": np.zeros(3)}, r"has \['b'\], which this run lacks"),
        ({"a": np.zeros(3), "b": 1, "c": 1}, r"has no \['c'\]"),
        ({"a": np.zeros(4), "b": 1}, r"\['a'\] is float64\[3\] there and float64\[4\] in this run"),
        ({"a": np.zeros(3, np.float32), "b": 1}, r"\['a'\] is float64\[3\] there and float32\[3\] in this run"),
    ],
)
def test_another_tree_is_refused_by_name(tmp_path, like, message):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": np.zeros(3), "b": 1})
    with pytest.raises(DataError, match=message):
        checkpoints.restore(1, like)


def test_parts_that_stand_elsewhere_are_missed_in_one_line(tmp_path):
    """As where each host wrote its parts into a folder of its own: the manifest has those of the writer alone."""
    tree = {"large": jnp.arange(PACK, dtype=jnp.float32)}
    checkpoints = Checkpoints(tmp_path / "ckpt")
    folder = checkpoints.save(3, tree)
    parts = [path for path in (folder / "state").rglob("*") if path.is_file() and path.stat().st_size > 1000]
    for part in parts:
        part.unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": _sums(folder)}))
    with pytest.raises(DataError, match=r"parts of the state are missing .*config.resume_from") as error:
        Checkpoints(tmp_path / "ckpt").restore(3, tree)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_later_checkpoints_are_dropped(tmp_path):
    checkpoints = Checkpoints(tmp_path / "ckpt", keep=4)
    for number in (1, 3, 5, 7):
        checkpoints.save(number, {"a": np.arange(number)})
    checkpoints.drop_after(3)
    assert checkpoints.steps() == Checkpoints(tmp_path / "ckpt").steps() == [1, 3]
    with pytest.raises(DataError, match="no whole checkpoint"):
        checkpoints.drop_after(5)
