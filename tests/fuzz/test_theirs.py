"""Folders of the user's, given where a job writes: the job refuses in one line, and not a byte of theirs changes."""

import itertools
import os
import shutil
from pathlib import Path

import pytest

from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.launch.console import main as console
from mmedexpert_jax.runtime import Run


@pytest.fixture
def home(tiny_checkpoint, tiny_cases, tmp_path, monkeypatch):
    """A home with a model, a thesis, data, a run of another job, files and links, where commands are typed."""
    home = tmp_path / "home"
    shutil.copytree(tiny_checkpoint, home / "model")
    (home / "model" / ".mmedexpert.json").unlink(missing_ok=True)  # as it comes from the hub
    shutil.copytree(tiny_cases, home / "cases")
    for place in ("thesis", "mixed", "deep/er"):
        (home / place).mkdir(parents=True)
        (home / place / "thesis.tex").write_text("years")
    (home / "mixed" / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with Run.open(home / "run", {"job": "dsa", "seed": 3, "preset": "mini", "lr": 1.0}) as run:
        run.log(1, {"loss": 1.0})
        run.finish({})
    (home / "run" / "export" / "rows").mkdir(parents=True)
    (home / "run" / "export" / "rows" / "step-000001.jsonl").write_text("{}\n")
    (home / "file").write_text("a file")
    (home / "link").symlink_to(home / "model")
    (home / "dangling").symlink_to(home / "nowhere")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


def contents(home: Path) -> dict:
    """Bytes of all files, targets of all links."""
    places = [Path(folder) / name for folder, folders, names in os.walk(home) for name in (*folders, *names)]
    return {
        place.relative_to(home).as_posix(): os.readlink(place) if place.is_symlink() else place.read_bytes()
        for place in places
        if place.is_symlink() or place.is_file()
    }


THEIRS = (
    "model",
    "thesis",
    "mixed",
    "run",
    "file",
    "link",
    "dangling",
    "cases",
    "deep",
    ".",
    "~",
    "~/thesis",
    "file/x",
)
JOBS = {
    "evaluate": "--config.limit=4", "dsa": "--config.specialty=AM", "gba": "--config.steps=1",
    "export": "--config.seed=0",
    "merge": "--config.experts=model", "dataset": "--config.data.path=cases", "pipeline": "--config.seed=0",
    "contamination": "--config.seed=0", "pretrain": "--config.steps=1",
}  # fmt: skip


def typed(home: Path, capsys, *arguments: str) -> int:
    """The exit code of a command that must leave everything as it was."""
    before = {name: content for name, content in contents(home).items() if not name.startswith("w/")}  # w: ours
    capsys.readouterr()
    code = main(list(arguments))
    errors = capsys.readouterr().err
    after = contents(home)
    lost = [name for name, content in before.items() if after.get(name) != content]
    assert not lost, (arguments, lost, errors)
    assert "Traceback" not in errors and code != 1, (arguments, errors)
    return code


@pytest.mark.parametrize("job", [*JOBS, pytest.param("ablation", marks=pytest.mark.slow)])
def test_a_workdir_of_theirs(job, home, capsys):
    model = [] if job in ("contamination", "pretrain") else ["--config.model.path=model"]
    data = [] if job in ("contamination", "dataset", "export", "pretrain") else ["--config.data.path=cases"]
    for theirs, fresh in itertools.product(THEIRS, ("False", "True")):
        if job == "dsa" and theirs == "run":
            continue  # a run of its own: refused by its config, or, with fresh, meant to go
        code = typed(
            *(home, capsys, f"--config=configs/{job}.py", *model, *data, JOBS.get(job, "--config.seed=0")),
            *(f"--config.workdir={theirs}", f"--config.fresh={fresh}"),
        )
        assert code in (2, 3, 4), (theirs, fresh)


@pytest.mark.parametrize("form", ["model", "adapter"])
def test_an_output_of_theirs(form, home, capsys):
    for theirs in (*THEIRS, "run/export", "model/..", "/", str(home)):
        source = "run" if form == "adapter" else "model"
        command = ["--config=configs/export.py", f"--config.model.path={source}", f"--config.format={form}"]
        assert typed(home, capsys, *command, f"--config.output={theirs}", "--config.workdir=w", "--config.fresh=True")


def test_an_exchange_of_theirs(home, capsys):
    review = ["--config=configs/review.py", "--config.data.path=cases", "--config.workdir=w", "--config.action=export"]
    for theirs in ("model", "thesis", "mixed", "run", "file", "link", "cases"):
        for tool in ("trail", "label_studio", "argilla"):
            typed(home, capsys, *review, f"--config.exchange.path={theirs}", f"--config.exchange.tool={tool}")


def test_answers_in_a_folder_of_theirs(home, capsys):
    evaluate = ["--config=configs/evaluate.py", "--config.model.path=model", "--config.data.path=cases"]
    for theirs in ("thesis", "file"):
        more = ["--config.limit=2", "--config.max_new_tokens=2", f"--config.answers={theirs}"]
        typed(home, capsys, *evaluate, *more, f"--config.workdir=w-{theirs}", "--config.fresh=True")


@pytest.mark.parametrize("command", ["new-data", "convert-data"])
def test_data_made_in_a_folder_of_theirs(command, home, capsys):
    for theirs in THEIRS:
        before = contents(home)
        words = [command, theirs] if command == "new-data" else [command, "cases/train.jsonl", theirs]
        code = console(words)
        after = contents(home)
        assert code != 1 and not [name for name in before if after.get(name) != before[name]], (words, code)


def test_a_place_that_cannot_be_written(home, capsys):
    for place in ("/proc/none", "/dev/null", "/dev/null/x", "/sys/none", "x" * 300, "a/" * 3000):
        command = ["--config=configs/export.py", "--config.model.path=model", f"--config.workdir={place}"]
        assert typed(home, capsys, *command) in (2, 4), place
        output = [
            "--config=configs/export.py",
            "--config.model.path=model",
            "--config.workdir=w",
            "--config.fresh=True",
        ]
        assert typed(home, capsys, *output, f"--config.output={place}") in (2, 4), place
