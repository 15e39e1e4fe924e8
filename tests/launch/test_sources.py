"""A run that goes on, and files behind its config that were edited meanwhile."""

import json
import os
import shutil

import numpy as np
import pytest

from mmedexpert_jax import hub
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.launch import jobs, load_config, sources
from mmedexpert_jax.launch.sources import note_sources, tell_changed
from mmedexpert_jax.runtime import Run


@pytest.fixture
def config(tiny_checkpoint, tmp_path):
    """A GBA job whose model, rewards and texts lie in files of its own."""
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "own.py").write_text(
        "def short(case, text, **_):\n    return 1\n\n\ndef long(case, text, **_):\n    return 0\n"
    )
    (tmp_path / "texts.json").write_text('{"score": "One point each."}')
    (tmp_path / "rubric.txt").write_text("sound reasoning")
    own = {"rewards.functions": [f"{tmp_path}/own.py:short=0.5", f"{tmp_path}/own.py:long"]}
    texts = {"guideline_text": str(tmp_path / "texts.json"), "rewards.judge.rubric": str(tmp_path / "rubric.txt")}
    paths = {"model.path": str(tmp_path / "model"), "workdir": str(tmp_path / "run")}
    return load_config("configs/gba.py", own | texts | paths)


def go(config, capsys, saved=True):
    """The lines of a start, after which the run has a checkpoint, or is stopped before its first."""
    with Run.open(config.workdir, config) as run:
        note_sources(config, run)
        if saved:
            run.checkpoints.save(1, {"a": np.zeros(2)})
    return [line for line in capsys.readouterr().out.splitlines() if "has changed" in line]


def test_an_edited_reward_or_text_is_a_line_once(config, tmp_path, capsys):
    assert go(config, capsys, saved=False) == []
    (tmp_path / "own.py").write_text(
        "def short(case, text, **_):\n    return 2\n\n\ndef long(case, text, **_):\n    return 0\n"
    )
    assert go(config, capsys) == []  # nothing was trained with the old one
    assert go(config, capsys) == []
    for name, field in (
        ("own.py", "rewards.functions"),
        ("texts.json", "guideline_text"),
        ("rubric.txt", "rewards.judge.rubric"),
    ):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        (said,) = go(config, capsys)
        assert said.startswith(f"config.{field}: {tmp_path / name} has changed since this run was last started")
        assert go(config, capsys) == []


def test_another_base_is_refused_until_it_is_named(config, tmp_path, capsys):
    assert go(config, capsys) == []
    file = tmp_path / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    whole = bytes(content)
    content[-1] ^= 1
    file.write_bytes(content)
    for _ in range(2):  # a refusal is no start
        with pytest.raises(
            ConfigError, match=r"config\.model\.path: the files of .* are not those .*allow_changes=model"
        ):
            go(config, capsys)
    file.write_bytes(whole)
    assert go(config, capsys) == []
    file.write_bytes(content)
    config.allow_changes = ("model.path",)
    assert len(go(config, capsys)) == 1 and go(config, capsys) == []


def test_a_table_is_read_again_only_where_its_size_or_time_differ(config, tmp_path, capsys, monkeypatch):
    """Tables may hold gigabytes of images; a copy of the same content is no change."""
    read = []
    digest = sources.hashlib.file_digest
    monkeypatch.setattr(sources.hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    table = tmp_path / "set" / "train.jsonl"
    table.parent.mkdir()
    table.write_text('{"id": "1", "question": "Which?", "answer": "lupus"}')
    config.data.path = str(table.parent)

    def start():
        monkeypatch.setattr(sources, "_sums", {})  # as a process of its own
        go(config, capsys)
        tell_changed(config, tmp_path / "run")
        return capsys.readouterr().out

    assert not start() and read == [str(table)]
    assert not start() and not start() and len(read) == 1
    os.utime(table, ns=(1, 1))
    assert not start() and len(read) == 2
    assert not start() and len(read) == 2
    monkeypatch.setattr(sources, "_sums", {})
    table.write_text('{"id": "1", "question": "Which?", "answer": "gout!"}')
    tell_changed(config, tmp_path / "run")
    assert "config.data.path" in capsys.readouterr().out and len(read) == 3
    (tmp_path / "run" / "sources.json").write_text('{"tables": {"a": [1, "x"], "b": 3}}')
    assert not start()


def test_a_finished_run_says_what_it_was_made_with_others_of(config, tmp_path, capsys):
    """A plan and an ablation take it as it is: a mended key or an expert that was trained anew is not in it."""
    shutil.copytree(tmp_path / "model", tmp_path / "set")  # of other files than tables, which do not count
    (tmp_path / "set" / "train.jsonl").write_text('{"id": "1", "question": "Which?", "answer": "lupus"}')
    config.data.path = str(tmp_path / "set")
    go(config, capsys)
    folder = tmp_path / "run"
    tell_changed(config, folder)
    assert not capsys.readouterr().out
    (tmp_path / "set" / "train.jsonl").write_text('{"id": "1", "question": "Which?", "answer": "gout!"}')
    (tmp_path / "set" / "README.md").write_text("another word")
    tell_changed(config, folder)
    assert capsys.readouterr().out.startswith(f"{folder}: config.data.path: {tmp_path / 'set'} has changed since")
    assert go(config, capsys) == []  # the trainer itself says it of the cases
    shutil.rmtree(tmp_path / "model")
    tell_changed(config, folder)
    assert not capsys.readouterr().out


def edited(file):
    """The file with its last byte changed, of the same size and time."""
    content, stat = bytearray(file.read_bytes()), file.stat()
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("result", ["model", "recipe"])
@pytest.mark.parametrize("by", ["experts", "mergekit"])
def test_a_finished_merge_says_what_has_changed_since(tiny_checkpoint, tmp_path, capsys, by, result):
    for name in ("base", "one", "two"):
        shutil.copytree(tiny_checkpoint, tmp_path / name)
    for name in ("one", "two"):
        edited(tmp_path / name / "model.safetensors")
    models = "".join(f"- {{model: {tmp_path / name}, parameters: {{weight: 0.5}}}}\n" for name in ("one", "two"))
    (tmp_path / "m.yml").write_text(
        f"merge_method: task_arithmetic\nbase_model: {tmp_path / 'base'}\nmodels:\n{models}"
    )
    own = {"experts": [str(tmp_path / "one"), f"second={tmp_path / 'two'}"], "model.path": str(tmp_path / "base")}
    own = {"mergekit": str(tmp_path / "m.yml")} if by == "mergekit" else own | {"method": "average"}
    config = load_config("configs/merge.py", own | {"result": result, "workdir": str(tmp_path / "run")})

    def said():
        jobs.run_job(config)
        return [line for line in capsys.readouterr().out.splitlines() if "has changed since it was made" in line]

    assert said() == said() == []
    shutil.copytree(tmp_path / "two", tmp_path / "copy")  # the same content at another time is no change
    shutil.rmtree(tmp_path / "two")
    shutil.move(tmp_path / "copy", tmp_path / "two")
    (tmp_path / "two" / "README.md").write_text("another word")
    assert said() == []
    edited(tmp_path / "two" / "model.safetensors")
    edited(tmp_path / "base" / "model.safetensors")
    fields = {"two": by, "base": "mergekit" if by == "mergekit" else "model.path"}
    expected = {f"config.{field}: {tmp_path / name} has changed" for name, field in fields.items()}
    found = said()
    assert {line.partition(": ")[2].partition(" since")[0] for line in found} == (
        expected if result == "model" else set()
    )
    (tmp_path / "m.yml").write_text((tmp_path / "m.yml").read_text().replace("0.5", "0.9"))
    assert len(said()) == len(found) + (by == "mergekit")


def test_adapters_over_a_model_of_the_hub_are_compared_without_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hub, "snapshot", lambda *_: pytest.fail("nothing is fetched to say that a run is over"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base", "r": 4}')
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"x" * 9)
    experts = [f"one={tmp_path / 'one'}", f"two=owner/base+{tmp_path / 'two'}"]
    merge = load_config("configs/merge.py", {"experts": experts, "model.path": "owner/base"})
    export = load_config("configs/export.py", {"model.path": str(tmp_path / "one"), "workdir": str(tmp_path / "run")})
    (tmp_path / "run").mkdir()

    def changed(config):
        hashes = dict(sources._hashes(config))
        found = [path for _, path in sources._changed_files(hashes, tmp_path / "run")]
        (tmp_path / "run" / "sources.json").write_text(json.dumps(hashes))
        return found

    assert changed(merge) == changed(merge) == []
    edited(tmp_path / "two" / "adapter_model.safetensors")
    assert changed(merge) == [experts[1].removeprefix("two=")]
    assert changed(export) == changed(export) == []
    (tmp_path / "one" / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base", "r": 8}')
    assert changed(export) == [str(tmp_path / "one" / "adapter_config.json")]
    edited(tmp_path / "one" / "adapter_model.safetensors")
    assert changed(export) == [str(tmp_path / "one")]
