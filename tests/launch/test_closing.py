"""The last lines of every job, as a terminal shows them at 80 and 120 columns, from runs whose answers are made up."""

import shlex
import sys
from dataclasses import replace

import pytest

from mmedexpert_jax.config.job_config import load_config
from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.launch.closing import closing, compared_runs, result, sentence
from mmedexpert_jax.launch.held_out import first_and_last, gain
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation
from mmedexpert_jax.medeval.results import rows_path
from mmedexpert_jax.report.text_tables import folded
from mmedexpert_jax.runtime import Run, files
from tests.terminal import EMULATORS, screen

SHOW = """
import sys
from mmedexpert_jax.launch.closing import closing
from mmedexpert_jax.config.job_config import load_config
print(closing(load_config(sys.argv[1], {"workdir": sys.argv[2]})))
"""


def answers(right):
    """320 answers, a quarter of each specialty, text and image by turns; `right(number, modality)`."""
    rows = []
    for number in range(320):
        modality = ("text", "image")[number % 2]
        labels = {"specialty": SPECIALTIES[number // 2 % 4], "modality": modality}
        good = right(number // 8 % 4, modality)
        verdicts = {"strict": good, "medevalkit": good}
        rows.append(AnswerRow(f"item-{number}", 0, "A", "A", "A", good, 5, False, labels, verdicts))
    return Evaluation(tuple(rows))


BEFORE = answers(lambda number, _: number == 0)
AFTER = answers(lambda number, modality: number < (3 if modality == "text" else 2))


def trained(folder, job="gba", further=()):
    with Run.open(folder, {"job": job}) as run:
        for step, evaluation in ((0, BEFORE), (48, AFTER), *further):
            run.log(step, {"eval/accuracy": evaluation.accuracy()["accuracy"]})
            path = folder / "export" / "rows" / f"step-{step:06d}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            evaluation.write(path)
        run.finish({"steps": 48})


def evaluated(folder, models):
    with Run.open(folder, {"job": "evaluate"}) as run:
        for name, evaluation in models.items():
            path = rows_path(folder, "mmedexpert_mini", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            evaluation.write(path)
        files.write_json(folder / "export" / "summary.json", {"mmedexpert_mini": {name: {} for name in models}})
        run.finish({})


def test_runs_are_compared_under_one_scorer(tmp_path):
    for name, scorer, judge in (("a", "strict", ""), ("b", "medevalkit", ""), ("c", "strict", "gpt")):
        rows = [
            replace(row, right=scorer == "medevalkit", verdicts={"strict": False, "medevalkit": True})
            for row in BEFORE.rows
        ]
        if judge:
            rows = [replace(row, verdicts=row.verdicts | {"judge": row.right}) for row in rows]
        evaluated(tmp_path / name, {"m": Evaluation(tuple(rows))})
        files.write_json(tmp_path / name / "config.json", {"scorer": scorer, "judge": {"model": judge}})
    first, second, third = compared_runs([tmp_path / name for name in "abc"])
    assert first["scorer"] == "strict" and second["scorer"] == "medevalkit; gain: strict"
    assert second["accuracy"].value == 1 and second["gain"].value == 0
    assert third["scorer"] == "judge gpt; gain: strict"
    assert compared_runs([tmp_path / "c", tmp_path / "a"])[1]["gain"] == "none: strict beside judge gpt"
    assert "scorer" not in compared_runs([tmp_path / "a", tmp_path / "a"])[0]


def test_training_says_before_after_and_the_gain(tmp_path):
    trained(tmp_path / "run")
    rows = result("gba", tmp_path / "run")
    assert [row["cases"] for row in rows] == ["all", *sorted(SPECIALTIES), "image", "text"]
    assert (rows[0]["before"].middle, rows[0]["after"].middle, rows[0]["gain"].middle) == ("25.0", "62.5", "+37.5")
    said = sentence(rows)
    assert said.startswith("held-out 25.0 -> 62.5 %, +37.5 [+3") and "; image 25.0 -> 50.0 %, +25.0 [" in said


def test_of_a_run_that_exports_its_best_checkpoint_that_one_is_told(tmp_path):
    trained(tmp_path / "run", further=((96, BEFORE),))  # the summary says that step 48 is exported
    assert sentence(result("gba", tmp_path / "run")).startswith("held-out 25.0 -> 62.5 %, +37.5 [")
    assert list(first_and_last(tmp_path / "run")) == ["step 0", "step 48 (best)"]
    assert gain(tmp_path / "run")["held_out/after"] == 0.625


def test_every_expert_has_a_row(tmp_path):
    Run.open(tmp_path / "dsa", {"job": "dsa"}).close()
    for name in SPECIALTIES:
        trained(tmp_path / "dsa" / name, "dsa")
    rows = result("dsa", tmp_path / "dsa")
    assert [row["cases"] for row in rows] == list(SPECIALTIES) and all("gain" in row for row in rows)
    assert sentence(rows).startswith("AM 25.0 -> 62.5 %, +37.5 [")


@pytest.mark.parametrize("job", ["evaluate", "pipeline"])
def test_models_are_held_against_the_first(job, tmp_path):
    folder = tmp_path / job
    Run.open(folder, {"job": job}).close()
    evaluated(folder if job == "evaluate" else folder / "evaluate", {"base": BEFORE, "policy": AFTER, "same": BEFORE})
    rows = result(job, folder)
    assert [row["model"] for row in rows] == ["base", "policy", "same"] and "gain" not in rows[0]
    assert sentence(rows).startswith("policy 62.5 %, +37.5 [") and sentence(rows).endswith("over base")
    lines = closing(load_config(f"configs/{job}.py", {"workdir": str(folder)})).splitlines()
    assert lines[4].split()[0] == "policy" and lines[4].endswith("better") and lines[5].endswith("unsettled")


@pytest.mark.parametrize("emulator", EMULATORS)
@pytest.mark.parametrize("columns", [80, 120])
def test_the_closing_table_fits_a_terminal(emulator, columns, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "run")
    shown = screen(emulator, [sys.executable, "-c", SHOW, "configs/gba.py:mini", "run"], columns)
    head = next(number for number, line in enumerate(shown) if "before" in line)
    assert shown[head : head + 2] == [
        "       n    before             after              gain",
        "all    320  25.0 [20.6, 30.0]  62.5 [57.1, 67.6]  +37.5 [+32.2, +42.8]  better",
    ]
    assert [line.split()[0] for line in shown[head + 1 : head + 8]] == ["all", *sorted(SPECIALTIES), "image", "text"]
    assert "".join(shown[:head]).startswith("held-out 25.0 -> 62.5 %, +37.5 [") and "gba -> " not in shown[0]
    assert shown[-2:] == [
        "next: mmedexpert evaluate:mini model.path=run",
        "next: mmedexpert export:mini model.path=run",
    ]


def test_what_follows_takes_a_folder_that_is_free(tmp_path, monkeypatch):
    """The default one of an export may hold that of another run, in which the command would be refused."""
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "run")
    config = load_config("configs/gba.py", {"workdir": "run"})
    for exported, told in (("run", ""), ("other", " workdir=runs/export-mini-2")):
        with Run.open("runs/export-mini", {"job": "export", "model": {"path": exported}}, fresh=True) as run:
            run.finish({})
        evaluate, export = closing(config).splitlines()[-2:]
        assert evaluate == "next: mmedexpert evaluate:mini model.path=run"
        assert export == f"next: mmedexpert export:mini model.path=run{told}"


def test_commands_are_whole_and_quoted_on_any_terminal(tmp_path):
    """A folded one, copied line by line, would be another whole command: of the base model."""
    folder = tmp_path / "runs of mine" / "merge"
    with Run.open(folder, {"job": "merge"}) as run:
        run.finish({})
    shown = folded(closing(load_config("configs/merge.py", {"workdir": str(folder)})), 40).splitlines()
    commands = [shlex.split(line) for line in shown if line.startswith("next: ")]
    jobs = ["evaluate:mini", "gba:mini"]
    assert commands == [["next:", "mmedexpert", job, f"model.path={folder}"] for job in jobs]


def test_a_path_is_not_cut():
    path = "runs/" + "a" * 60
    assert path in folded(f"report   {path}", 40).split()


def test_a_job_without_accuracy_names_what_is_there(tmp_path):
    with Run.open(tmp_path / "merge", {"job": "merge"}) as run:
        run.finish({})
    text = closing(load_config("configs/merge.py", {"workdir": str(tmp_path / "merge")}))
    assert text.splitlines()[0].startswith(f"done: {tmp_path}/merge in 0:00:0")
    assert "next: mmedexpert evaluate:mini" in text
