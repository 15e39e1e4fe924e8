import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from mmedexpert_jax.errors import ConfigError, ResourceError
from mmedexpert_jax.medeval.store import AnswerLog
from mmedexpert_jax.runtime import files


class Killed(BaseException):
    """Stands for the end of the process: from one step on, nothing reaches the disk any more."""


def until(monkeypatch, step):
    """Lets `step` renames and deletions of folders happen; the next and all later ones raise Killed."""
    left = [step]

    def counted(act):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return act(*arguments, **keywords)

        return call

    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))


def write(folder, text):
    with files.replacing(folder) as new:
        (new / "a").write_text(text)
        (new / "b").write_text(text)


def read(folder):
    assert sorted(path.name for path in folder.iterdir() if path.name != files.MARKER) == ["a", "b"]
    first, second = ((folder / name).read_text() for name in "ab")
    assert first == second
    return first


@pytest.mark.parametrize("step", range(7))
def test_a_folder_replaced_by_a_killed_process_is_the_old_one_or_the_new_one(tmp_path, monkeypatch, step):
    folder = tmp_path / "out"
    write(folder, "old")
    killed = False
    with monkeypatch.context() as patch:
        until(patch, step)
        try:
            write(folder, "new")
        except Killed:
            killed = True
    assert killed == (step < 6)
    aside = tmp_path / ".out.old"
    assert read(folder if folder.exists() else aside) in ("old", "new")
    with pytest.raises(ValueError, match="bad"), files.replacing(folder):  # which brings back what was set aside
        raise ValueError("bad")
    assert read(folder) in ("old", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    write(folder, "last")
    assert read(folder) == "last" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    write(folder, "old")

    def refuse(path, target):
        if path.name.endswith(".partial"):
            raise PermissionError
        return rename(path, target)

    rename = Path.rename
    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(Path, "rename", refuse)
        write(folder, "new")
    assert read(folder) == "old" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_not_taken_for_a_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="no directory"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_used_and_named_once(tmp_path, monkeypatch, number, capsys):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    if number == errno.EIO:  # which is a broken disk
        with pytest.raises(ResourceError, match=r"cannot write .*: input/output error"):
            files.lock(tmp_path / ".lock")
        return
    for _ in range(2):
        files.lock(tmp_path / ".lock").close()
        AnswerLog(tmp_path).__exit__(None, None, None)
    assert capsys.readouterr().out.count(f"the file system of {tmp_path} has no locks") == 1
