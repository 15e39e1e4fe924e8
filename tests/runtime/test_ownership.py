"""Ours and theirs: no setting makes a run overwrite, empty or delete a folder that the package did not make."""

import json
from pathlib import Path

import pytest

from mmedexpert_jax.errors import ConfigError, UserError
from mmedexpert_jax.runtime import Run, files
from mmedexpert_jax.runtime.run import delete_runs, refuse_in_use

CONFIG = {"job": "dsa", "seed": 0, "lr": 1e-3, "steps": 8}


def contents(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def a_model(folder):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text('{"model_type": "qwen2_vl"}')


def a_thesis(folder):
    (folder / "thesis.tex").write_text("years")


def a_data_set(folder):
    (folder / "train.parquet").write_bytes(b"PAR1")


def an_experiment_of_another_tool(folder):
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"loss": 1}\n')
    (folder / "STATUS.json").write_text('{"state": "done"}')


def folders_of_our_names(folder):
    (folder / "export" / "model").mkdir(parents=True)
    (folder / "export" / "model" / "config.json").write_text("{}")


def a_table(folder):
    (folder / "cmd.txt").write_text("rm -rf")


THEIRS = (a_model, a_thesis, a_data_set, an_experiment_of_another_tool, folders_of_our_names, a_table)


@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("drift", [False, True])
def test_no_run_begins_in_a_folder_of_theirs(tmp_path, theirs, fresh, drift):
    theirs(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"no run directory but holds .*choose another workdir"):
        Run.open(tmp_path, CONFIG, fresh=fresh, drift=drift)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_of_another_job_is_left_alone(tmp_path, fresh):
    with Run.open(tmp_path, CONFIG) as run:
        run.log(1, {"loss": 1.0})
        run.finish({})
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="is the run of a dsa job, this one is evaluate"):
        Run.open(tmp_path, CONFIG | {"job": "evaluate"}, fresh=fresh, drift=True)
    assert contents(tmp_path) == before


def test_a_log_that_a_shell_made_first_is_no_obstacle(tmp_path):
    (tmp_path / "slurm-12.out").write_text("")
    (tmp_path / ".DS_Store").write_text("")
    with Run.open(tmp_path, CONFIG, fresh=True) as run:
        assert not run.resumed
    assert (tmp_path / "slurm-12.out").exists()


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    Run.open(tmp_path, CONFIG).close()
    (tmp_path / files.MARKER).unlink()
    with Run.open(tmp_path, CONFIG) as run:
        assert run.resumed
    assert files.owner(tmp_path) == {"kind": "run", "job": "dsa"}


def test_fresh_keeps_what_was_put_beside_a_run_and_inner_runs(tmp_path):
    Run.open(tmp_path / "AM", CONFIG).close()
    a_thesis(tmp_path / "AM")
    (tmp_path / "BS").mkdir()
    a_model(tmp_path / "BS")
    before = contents(tmp_path / "BS")
    delete_runs(tmp_path)
    assert contents(tmp_path / "BS") == before
    assert set(contents(tmp_path / "AM")) == {Path("thesis.tex")}


OF_THE_RUN = (
    *("samples/completions/000002.jsonl", "samples/pass_rates.jsonl", "ckpt/3/manifest.json", "ckpt/4.0.tmp/state"),
    *("plots/reward.png", "tb/events.out.tfevents.1.host.2", "logs/process-1.log", "export/rows/med/a.jsonl"),
    *("export/tables/med.tex", "export/rows/step-000002.jsonl", "export/privacy/judge.csv", "export/report/a0.jpg"),
    *("export/summary.json", "export/.model.partial/a", "export/adapter/a", "report.html", "export/model/merges.txt"),
)
OF_THE_USER = (
    *("samples/graded.xlsx", "samples/completions/graded.csv", "ckpt/best/mine.txt", "ckpt/notes.md", "plots/own.svg"),
    *("export/tables/final.xlsx", "export/rows/notes.md", "export/report/annotated.docx", "export/.gitignore"),
    *("logs/slurm-42.out", "export/mine.txt", "export/poster/poster.pdf", "tb/notes.txt", "thesis.tex"),
)


@pytest.mark.parametrize("wipe", [lambda path: Run.open(path, CONFIG, fresh=True).close(), delete_runs])
def test_what_was_put_into_the_folders_of_a_run_outlives_it(tmp_path, wipe):
    with Run.open(tmp_path / "run", CONFIG) as run:
        with files.replacing(run.path / "export" / "adapter") as new:
            (new / "a").write_text("weights")
        for name in OF_THE_RUN + OF_THE_USER:
            (run.path / name).parent.mkdir(parents=True, exist_ok=True)
            (run.path / name).write_text(name)
    kept = {Path(name): name.encode() for name in OF_THE_USER}
    wipe(run.path)
    left = contents(run.path)
    assert left | kept == left and not [name for name in OF_THE_RUN if (run.path / name).exists()]
    assert not (run.path / "export" / "privacy").exists()


def test_a_file_added_to_an_adapter_is_named_before_anything_is_deleted(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        run.log(1, {"loss": 1.0})
        with files.replacing(tmp_path / "export" / "adapter") as new:
            (new / "a").write_text("weights")
    (tmp_path / "export" / "adapter" / "NOTES.md").write_text("mine")
    before = contents(tmp_path)
    for attempt in (lambda: Run.open(tmp_path, CONFIG, fresh=True), lambda: refuse_in_use(tmp_path)):
        with pytest.raises(ConfigError, match=r"adapter holds NOTES.md, which was added to it"):
            attempt()
    assert contents(tmp_path) == before


def test_fresh_empties_a_folder_on_another_disk_and_keeps_the_link(tmp_path):
    scratch = tmp_path / "scratch"
    (scratch / "3").mkdir(parents=True)
    (scratch / "another").write_text("job's")
    Run.open(tmp_path / "run", CONFIG).close()
    (tmp_path / "run" / "ckpt").symlink_to(scratch)
    Run.open(tmp_path / "run", CONFIG, fresh=True).close()
    assert (tmp_path / "run" / "ckpt").is_symlink() and [path.name for path in scratch.iterdir()] == ["another"]


def test_fresh_keeps_a_linked_export_and_what_the_next_run_needs_of_it(tmp_path):
    for name in ("summary.json", "rejected.jsonl"):
        (tmp_path / "big").mkdir(exist_ok=True)
        (tmp_path / "big" / name).write_text("{}")
    Run.open(tmp_path / "run", CONFIG).close()
    (tmp_path / "run" / "export").symlink_to(tmp_path / "big")
    Run.open(tmp_path / "run", CONFIG, fresh=True, spared=("export/rejected.jsonl",)).close()
    assert (tmp_path / "run" / "export").is_symlink() and set(contents(tmp_path / "big")) == {Path("rejected.jsonl")}


def test_what_a_desktop_leaves_in_an_adapter_is_nobodys_work(tmp_path):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._a"):
        with files.replacing(tmp_path / "out") as new:
            (new / "a").write_text("weights")
        (tmp_path / "out" / name).touch()
    files.claim(tmp_path / "out")


@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("marked", [False, True])
def test_no_artefact_replaces_theirs(tmp_path, theirs, marked):
    """Neither a folder of theirs, nor one of ours to which they added a file."""
    if marked:
        with files.replacing(tmp_path / "out") as new:
            (new / "weights").write_text("ours")
    else:
        (tmp_path / "out").mkdir()
    theirs(tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(ConfigError), files.replacing(tmp_path / "out") as new:
        (new / "a").touch()
    assert contents(tmp_path) == before


def test_no_artefact_replaces_a_run_a_file_or_a_link(tmp_path):
    with Run.open(tmp_path / "run", CONFIG) as run:
        run.log(1, {"loss": 1.0})
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    before = contents(tmp_path)
    for name in ("run", "run/tb", "file", "link"):
        with pytest.raises(ConfigError), files.replacing(tmp_path / name) as new:
            (new / "a").touch()
    assert contents(tmp_path) == before
    with pytest.raises(ConfigError, match=rf"link is a link to a directory, .*; give {tmp_path}/run"):
        files.claim(tmp_path / "link")


def test_an_artefact_of_ours_is_replaced(tmp_path):
    for text in "ab":
        with files.replacing(tmp_path / "out") as new:
            (new / text).write_text(text)
    assert set(contents(tmp_path / "out")) == {Path("b"), Path(files.MARKER)}
    assert files.owner(tmp_path / "out")["files"] == ["b"]


def failed(folder: Path, config: dict, step: int = 0) -> None:
    with pytest.raises(ConfigError), Run.open(folder, config) as run:
        if step:
            run.log(step, {"loss": 1.0})
        raise ConfigError("config.rewards.functions: no function foo")


def test_a_config_that_failed_before_the_first_checkpoint_may_be_corrected(tmp_path):
    failed(tmp_path, CONFIG, step=3)
    with Run.open(tmp_path, CONFIG | {"lr": 1e-4}) as run:
        assert run.metrics() == [] and not run.resumed
        run.finish({})
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == 1e-4
    with pytest.raises(ConfigError, match="another config"):
        Run.open(tmp_path, CONFIG)


@pytest.mark.parametrize("kept", ["ckpt/8/manifest.json", "export/adapter/a", "answers.sqlite", "stages/a/b"])
def test_what_has_a_result_may_not(tmp_path, kept):
    failed(tmp_path, CONFIG)
    (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / kept).touch()
    with pytest.raises(ConfigError, match="another config"):
        Run.open(tmp_path, CONFIG | {"lr": 1e-4})
    assert (tmp_path / kept).exists()


DEEP = "[" * 100_000
WRONG = ("", "[]", "null", "3", '"x"', "{", DEEP, '{"a": 1, "a": 2}', "NaN", '{"state": 7}', b"\xff\xfe\0", "{}")


@pytest.mark.parametrize("name", ["STATUS.json", "config.json", "env.json", "cmd.txt", "metrics.jsonl", files.MARKER])
@pytest.mark.parametrize("wrong", range(len(WRONG)))
def test_a_damaged_file_of_a_run_falls_back_or_is_a_line(tmp_path, name, wrong, capsys):
    with Run.open(tmp_path, CONFIG) as run:
        for step in range(1, 8):
            run.log(step, {"loss": 1.0})
    content = WRONG[wrong] if isinstance(WRONG[wrong], bytes) else WRONG[wrong].encode()
    (tmp_path / name).write_bytes(content)
    try:
        with Run.open(tmp_path, CONFIG) as run:
            if name != "metrics.jsonl":
                assert len(run.metrics()) == 7
            run.log(8, {"loss": 1.0})
            run.finish({})
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    assert all("Traceback" not in text for text in capsys.readouterr())


@pytest.mark.parametrize("line", ["{garbled", '{"loss": 1}', '{"step": "x"}', "[]", DEEP, '{"step": null}'])
@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_damaged_row_of_metrics_costs_that_row_and_is_named(tmp_path, line, at, capsys):
    with Run.open(tmp_path, CONFIG) as run:
        for step in range(1, 8):
            run.log(step, {"loss": 1.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines[at] = line
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with Run.open(tmp_path, CONFIG) as run:
        assert [row["step"] for row in run.metrics()] == [step for step in range(1, 8) if step != at + 1]
    assert f"metrics.jsonl line {at + 1}" in capsys.readouterr().err
    assert (tmp_path / "metrics.damaged").exists()
