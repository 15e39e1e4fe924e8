"""Checkpoints of a run: Orbax underneath, whole or not there, the same bytes back.

A checkpoint is a directory `ckpt/<step>/` that appears by one rename, with Orbax's arrays in `state/` and a
`manifest.json` that lists the leaves and the size and CRC-32 of every file. One whose files do not agree with its
manifest (a full disk, a lost node, a copy cut short) is passed over, and the one before it is taken.

Of several processes the writer makes the directory and the manifest; arrays that lie in parts on devices of several
are written, and read, by each in its parts, so that the directory has to be one that all of them see.

Leaves smaller than PACK bytes travel together in one array: Orbax spends some 4 ms on each array, and the LoRA
deltas of a model with their two moments are hundreds of small ones.
"""

import contextlib
import errno
import json
import logging
import math
import re
import shutil
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.runtime import files, processes
from mmedexpert_jax.runtime.signals import SIGNALS

PACK = 1 << 18  # bytes
_PACKED = "packed"


class Manifest(msgspec.Struct):
    """manifest.json: step, score, (name, shape, dtype) of each leaf in order, (size, CRC-32) of each file."""

    step: int
    leaves: list[tuple[str, list[int], str]]
    files: dict[str, tuple[int, int]]
    score: float | None = None


class Checkpoints:
    """The checkpoints of one directory.

    Args:
        path: the directory; made at the first save.
        keep: how many of the newest to keep, at least 1. With 2 a broken newest one costs one interval, not the run.

    The checkpoint with the best `score` is kept besides, where scores are given.
    """

    def __init__(self, path: str | Path, keep: int = 2):
        self.path = Path(path)
        self.keep = max(1, keep)
        self._whole: dict[int, bool] = {}
        self._saves = 0

    @SIGNALS.held()
    def save(self, step: int, tree: Any, score: float | None = None) -> Path:
        """Saves a pytree of arrays as the checkpoint of `step`, replacing one of that step.

        Log everything of a step before its checkpoint: what comes later is lost on resume.
        Raises ResourceError where the disk is full or read-only; the older checkpoints then stand untouched.
        """
        leaves, _ = _flatten(tree)
        arrays, small = {}, []
        for index, (_, leaf) in enumerate(leaves):
            if _is_small(leaf):
                small.append(np.asarray(processes.whole(leaf)).tobytes())
            else:
                arrays[_name(index)] = _savable(leaf)
        # a name of its own for each save: TensorStore remembers what lay at a path when an earlier one failed
        self._saves += 1
        final, temporary = self.path / str(step), self.path / f"{step}.{self._saves}.tmp"
        writer = processes.is_writer()
        try:
            with files.writing(final):
                if writer:
                    self._clear()
                    temporary.mkdir(parents=True)
                    # before Orbax starts on what it cannot end
                    if shutil.disk_usage(temporary).free < sum(_bytes(*_shape_dtype(leaf)) for _, leaf in leaves):
                        raise OSError(errno.ENOSPC, str(temporary))
                processes.barrier()
                _save_arrays(temporary / "state", arrays | {_PACKED: np.frombuffer(b"".join(small) or b"\0", np.uint8)})
                if writer:
                    manifest = {"step": step, "score": score, "leaves": _describe(leaves), "files": _sums(temporary)}
                    (temporary / "manifest.json").write_text(json.dumps(manifest))
                    if final.exists():
                        final.rename(self.path / f"{step}.old.tmp")
                    temporary.rename(final)
        except BaseException:
            _discard(temporary)
            raise
        if writer:
            self._whole[step] = True
            self._prune()
        processes.barrier()
        return final

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, rising. A file's CRC is read once for each object of this class.

        All processes of a job get what the writer sees.
        """
        return processes.agree(self._steps() if processes.is_writer() else None)

    def _steps(self) -> list[int]:
        if not self.path.is_dir():
            return []
        found = sorted(int(entry.name) for entry in self.path.iterdir() if re.fullmatch(r"\d+", entry.name))
        return [step for step in found if self._check(step)]

    def _require(self, step: int) -> None:
        """Raises DataError where the checkpoint of a step is not whole."""
        if step not in (steps := self.steps()):
            raise DataError(f"{self.path / str(step)}: no whole checkpoint there; whole ones: {steps or 'none'}")

    def latest(self) -> int | None:
        """The newest whole checkpoint's step; None where there is none."""
        return max(self.steps(), default=None)

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints after `step`. Raises DataError where that one is not whole."""
        self._require(step)
        for later in (later for later in self.steps() if later > step and processes.is_writer()):
            shutil.rmtree(self.path / str(later))
            self._whole.pop(later)
        processes.barrier()

    def best(self) -> int | None:
        """The step with the highest score (the later one of equals); None where no checkpoint has a score."""
        return self._best(self.steps())

    def _best(self, steps: list[int]) -> int | None:
        scores = [(found.score, step) for step in steps if (found := self._manifest(step)).score is not None]
        return max(scores)[1] if scores else None

    def restore(self, step: int, like: Any) -> Any:
        """The tree that was saved at `step`, byte for byte, with the structure of `like`.

        A leaf comes back as what its counterpart in `like` is: a numpy array, a Python number, or a JAX array with
        that one's sharding (jax.ShapeDtypeStruct serves too). Raises DataError where the checkpoint is missing or
        its leaves have other names, shapes or dtypes.
        """
        self._require(step)
        manifest = self._manifest(step)
        leaves, treedef = _flatten(like)
        _compare(self.path / str(step), manifest.leaves, _describe(leaves))
        return treedef.unflatten(_restored(self.path / str(step) / "state", [leaf for _, leaf in leaves]))

    def read(self, step: int) -> dict[str, np.ndarray]:
        """The leaves that were saved at `step`, by name (`jax.tree_util.keystr`), for who does not know the tree.

        Raises DataError where the checkpoint is missing.
        """
        self._require(step)
        described = self._manifest(step).leaves
        like = [np.broadcast_to(np.zeros((), dtype), shape) for _, shape, dtype in described]
        leaves = _restored(self.path / str(step) / "state", like)
        return dict(zip((name for name, _, _ in described), leaves, strict=True))

    def _manifest(self, step: int) -> "Manifest":
        return border.read_json(self.path / str(step) / "manifest.json", Manifest)

    def _check(self, step: int) -> bool:
        if step not in self._whole:
            try:
                self._whole[step] = self._manifest(step).files == _sums(self.path / str(step))
            except DataError:
                self._whole[step] = False
            if not self._whole[step]:
                print(f"{self.path / str(step)}: this checkpoint is not whole and is passed over", flush=True)
        return self._whole[step]

    def _prune(self) -> None:
        steps = self._steps()
        for step in set(steps[: -self.keep]) - {self._best(steps)}:
            shutil.rmtree(self.path / str(step), ignore_errors=True)
            self._whole.pop(step)
        self._clear()

    def recover(self) -> None:
        """Brings back a step that a process was replacing when it was killed. For the one that writes here alone."""
        for old in self.path.glob("*.old.tmp"):
            if not (step := self.path / old.name.removesuffix(".old.tmp")).exists():
                old.rename(step)

    def _clear(self) -> None:
        """Removes what a process that was killed while saving left behind."""
        self.recover()
        for entry in self.path.glob("*.tmp"):
            shutil.rmtree(entry, ignore_errors=True)


def _flatten(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves], treedef


def _name(index: int) -> str:
    return f"leaf_{index:05d}"


def _shape_dtype(leaf: Any) -> tuple[tuple[int, ...], Any]:
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return tuple(leaf.shape), leaf.dtype


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * dtype.itemsize


def _is_small(leaf: Any) -> bool:
    return _bytes(*_shape_dtype(leaf)) < PACK


def _describe(leaves: list[tuple[str, Any]]) -> list[list]:
    described = []
    for name, leaf in leaves:
        shape, dtype = _shape_dtype(leaf)
        described.append([name, list(shape), str(dtype)])
    return described


def _compare(path: Path, saved: Sequence, wanted: Sequence) -> None:
    """Raises DataError that names the first leaf in which a checkpoint differs from what the run wants."""
    have, want = ({name: (shape, dtype) for name, shape, dtype in side} for side in (saved, wanted))
    fix = "was it saved with another config?"
    for name in [*want, *have]:
        if name not in have:
            raise DataError(f"{path}: the checkpoint has no {name}; {fix}")
        if name not in want:
            raise DataError(f"{path}: the checkpoint has {name}, which this run lacks; {fix}")
        if have[name] != want[name]:
            (old, old_dtype), (new, new_dtype) = have[name], want[name]
            raise DataError(f"{path}: {name} is {old_dtype}{old} there and {new_dtype}{new} in this run; {fix}")


def _sums(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and CRC-32 of every file below `directory` but the manifest."""
    sums = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path != directory / "manifest.json":
            crc = 0
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    crc = zlib.crc32(block, crc)
            sums[path.relative_to(directory).as_posix()] = (path.stat().st_size, crc)
    return sums


def _as(leaf: Any, data: bytes, shape: tuple[int, ...], dtype: Any) -> Any:
    """Bytes as what `leaf` is: a Python number, a numpy array, or a JAX array with its sharding."""
    array = np.frombuffer(data, dtype).reshape(shape).copy()
    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return processes.put(array, _sharding(leaf))
    if isinstance(leaf, np.ndarray):
        return array
    return array[()] if isinstance(leaf, np.generic) else array.item()


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _discard(folder: Path) -> None:
    """Removes what a failed save left, again until it stays away.

    TensorStore's threads write on after the first failure, and make their folders anew.
    """
    deadline, away = time.monotonic() + 5, 0
    while away < 5 and time.monotonic() < deadline:
        away = 0 if folder.exists() else away + 1
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _savable(leaf: Any) -> Any:
    """A leaf as Orbax takes it: of several processes, only arrays in parts on their devices, and those of the host."""
    if processes.count() == 1 or not isinstance(leaf, jax.Array) or not leaf.is_fully_replicated:
        return leaf
    return np.asarray(leaf)


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Orbax's save. TensorStore reports a failed write as a ValueError that holds the errno."""
    try:
        with contextlib.closing(_checkpointer()) as checkpointer:
            checkpointer.save(path.absolute(), arrays)
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), str(path)) from error


def _restored(path: Path, leaves: Sequence[Any]) -> list[Any]:
    """The leaves saved at `path`, each as its counterpart in `leaves`. Raises DataError where parts are missing."""
    import orbax.checkpoint as ocp

    on_host = ocp.RestoreArgs(restore_type=np.ndarray)
    arguments: dict[str, Any] = {_PACKED: on_host}
    for index, leaf in enumerate(leaves):
        if not _is_small(leaf):
            sharding = _sharding(leaf)
            arguments[_name(index)] = on_host if sharding is None else ocp.ArrayRestoreArgs(sharding=sharding)
    try:
        with contextlib.closing(_checkpointer()) as checkpointer:
            arrays = checkpointer.restore(path.absolute(), restore_args=arguments)
    except (ValueError, OSError, KeyError) as error:  # TensorStore raises a ValueError for a part that is not there
        raise DataError(
            f"{path.parent}: parts of the state are missing ({border.cut(str(error))}); bring the ckpt/ of every host "
            "into one folder that all of them see, or go back to another checkpoint by config.resume_from"
        ) from error
    packed, offset, restored = arrays[_PACKED].tobytes(), 0, []
    for index, leaf in enumerate(leaves):
        if (whole := arrays.get(_name(index))) is not None:
            on_device = isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))
            restored.append(processes.put(whole, _sharding(leaf)) if on_device else whole)
            continue
        shape, dtype = _shape_dtype(leaf)
        count = _bytes(shape, dtype)
        restored.append(_as(leaf, packed[offset : offset + count], shape, dtype))
        offset += count
    return restored


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """The sharding of a restored leaf; None for the host, and for JAX arrays that nobody has placed."""
    if isinstance(leaf, jax.Array):
        return leaf.sharding if leaf.committed else None
    return getattr(leaf, "sharding", None)
