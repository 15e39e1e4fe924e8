"""The console script: short forms become long ones, help by job, completion, runs side by side."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import mmedexpert_jax
from mmedexpert_jax import errors
from mmedexpert_jax.config import job_config as configs
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.launch import cli, console
from mmedexpert_jax.launch.closing import compared_runs
from mmedexpert_jax.medeval import AnswerRow, Evaluation
from mmedexpert_jax.medeval.evaluate import judged
from mmedexpert_jax.medeval.results import rows_path
from mmedexpert_jax.rollout import Reply
from mmedexpert_jax.runtime import Run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("gba:mini lr=1e-5 steps=10", "--config=configs/gba.py:mini --config.lr=1e-5 --config.steps=10"),
        ("gba", "--config=configs/gba.py"),
        ("configs/gba.py:mini", "--config=configs/gba.py:mini"),
        ("own.py steps=1", "--config=own.py --config.steps=1"),
        ("evaluate --plan --fresh", "--config=configs/evaluate.py --config.plan=True --config.fresh=True"),
        ("gba data.path=a=b", "--config=configs/gba.py --config.data.path=a=b"),
        ("gba --help", "--config=configs/gba.py --list_config"),
        ("--config=configs/gba.py --config.lr=1", "--config=configs/gba.py --config.lr=1"),
        ("gba --lr=1e-5 --max-new-tokens=8", "--config=configs/gba.py --config.lr=1e-5 --config.max_new_tokens=8"),
        ("gba --processes=2 --overrides=a.json", "--config=configs/gba.py --processes=2 --overrides=a.json"),
        ("gba --debug extra", "--config=configs/gba.py --debug extra"),
        ("merge --config.experts AM=a,BS=b", "--config=configs/merge.py --config.experts AM=a,BS=b"),
        ("gba --config.fresh lr=1", "--config=configs/gba.py --config.fresh --config.lr=1"),
        ("--config configs/gba.py lr=1", "--config configs/gba.py --config.lr=1"),
        ("--overrides o.json gba", "--overrides o.json --config=configs/gba.py"),
        ("--config.fresh gba", "--config.fresh --config=configs/gba.py"),
    ],
)
def test_the_short_form_is_the_long_one(short, long):
    assert console.expand(short.split()) == long.split()


def test_help_names_every_job_and_preset(capsys):
    assert console.main(["--help"]) == 0
    text = capsys.readouterr().out
    for path in configs.available().values():
        assert f"  {path.stem} " in text and all(preset in text for preset in configs.presets_of(path))
    assert console.main(["help", "gba"]) == 0 == console.main(["gba", "--help"])
    assert "learning rate of AdamW" in capsys.readouterr().out


def test_what_is_no_job_is_one_line(capsys):
    assert console.main(["gab"]) == 2
    assert "no job or command 'gab'; did you mean gba?" in capsys.readouterr().err
    assert console.main(["compare", "runs/none"]) == 2 == console.main(["completion", "tcsh"])
    assert capsys.readouterr().err.count("\n") == 2


def test_completion_offers_jobs_then_fields(capsys):
    for shell in console.COMPLETIONS:
        assert console.main(["completion", shell]) == 0
        assert "completion words" in capsys.readouterr().out
    assert {"gba:mini", "evaluate", "compare"} <= set(console.completion(["words"]).split())
    assert {"lr=", "lora.rank=", "--plan"} <= set(console.completion(["words", "gba:mini"]).split())


def test_bash_completes(tmp_path):
    script = tmp_path / "complete.sh"
    script.write_text(
        f'mmedexpert() {{ {sys.executable} -m mmedexpert_jax "$@"; }}\n{console.COMPLETIONS["bash"]}\n'
        "had=$COMP_WORDBREAKS\n"
        'for COMP_LINE in "mmedexpert gba:mini lo" "mmedexpert gba:qw" "mmedexpert gb"; do\n'
        'COMP_POINT=${#COMP_LINE}; _mmedexpert 2>/dev/null; echo "${COMPREPLY[@]}"; done\n'
        '[[ $had == "$COMP_WORDBREAKS" ]]'
    )
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    fields, presets, jobs = (set(line.split()) for line in done.stdout.splitlines())
    assert {"lora.rank=", "lora.alpha=", "lora.targets="} <= fields, done.stderr
    assert "qwen2_vl_2b" in presets and {"gba", "gba:mini"} <= jobs, "readline's word begins behind the colon"
    assert done.returncode == 0, "the whole shell's marks of words stay as they are"


def test_runs_side_by_side(tmp_path, capsys):
    for name, lr in (("a", 1e-3), ("b", 1e-4)):
        with Run.open(tmp_path / name, {"job": "gba", "lr": lr, "seed": 0, "workdir": name}) as run:
            run.log(1, {"reward": 0.1, "eval/accuracy": 0.376})
            run.log(2, {"reward": lr, "eval/accuracy": 0.602})
            run.finish({})
    assert console.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert "0.376 -> 0.602" in text and "0.1 -> 0.0001" in text
    fields = text.split("\n\n")[0].splitlines()[1:]
    assert [line.split() for line in fields] == [["lr", "0.001", "0.0001"]]


def test_python_dash_m_and_the_names_of_the_package():
    done = subprocess.run(
        [sys.executable, "-m", "mmedexpert_jax", "--help"], capture_output=True, text=True, check=True
    )
    assert "mmedexpert <job>[:preset]" in done.stdout
    assert {"load_model", "generate", "launch", "load_config"} <= set(dir(mmedexpert_jax))
    assert callable(mmedexpert_jax.launch)


def test_launch_runs_a_config(tmp_path, capsys):
    overrides = {"plan": True, "workdir": str(tmp_path / "run"), "limit": 2}
    mmedexpert_jax.launch(mmedexpert_jax.load_config("configs/evaluate.py:mini", overrides))
    assert "nothing was run" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_launch_takes_a_config_file_too_and_names_what_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ConfigError, match=r"no preset 'nano'"):
        mmedexpert_jax.launch("configs/gba.py:nano")
    with pytest.raises(errors.ConfigError, match=r"launch takes what load_config returns"):
        mmedexpert_jax.launch({"steps": 1})


def test_what_a_notebook_prints_is_one_line():
    processor = mmedexpert_jax.load_processor("mini")
    batch = processor([[{"role": "user", "content": "Which lobe?"}]])
    assert repr(processor) == f"Processor(qwen2_vl, {len(processor.tokenizer)} tokens)"
    assert repr(batch) == f"Batch(tokens int32[1x{batch.tokens.shape[1]}] = prompts x tokens, 0x0 images x patches)"


def test_a_type_checker_sees_the_names(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(
        "import mmedexpert_jax as mx\nreveal_type(mx.load_config)\nmx.load_config(3)\n"
        "model, params = mx.load_model('mini')\nreveal_type(model)\n"
    )
    # without the libraries' sources, which take a minute to read; py.typed is what makes an installed package be read
    options = ["--ignore-missing-imports", "--follow-imports=silent", "--no-site-packages"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(script)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"MYPYPATH": str(ROOT)},
    )  # fmt: skip
    assert (ROOT / "mmedexpert_jax" / "py.typed").is_file()
    assert "load_config" in done.stdout or "def (spec" in done.stdout, done.stdout
    assert 'incompatible type "int"' in done.stdout and "models.model.Model" in done.stdout


def test_old_imports_of_the_presets_go_on():
    from mmedexpert_jax.config import presets
    from mmedexpert_jax.launch import presets as old

    script = (
        "import mmedexpert_jax.launch.presets as p; from mmedexpert_jax.launch.presets import stage; print(p.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert old is presets and done.stdout == "mmedexpert_jax.config.presets\n"


OTHERS = {
    "gba": "learning_rate num_generations max_steps max_completion_length per_device_eval_batch_size kl_loss_coef "
    "batch_size train_batch_size group_size clip_range n_gpus_per_node bf16 use_lora data_files resume run_name "
    "gradient_checkpointing load_in_4bit adv_estimator importance_sampling_level save_freq lora_r report_to",
    "dsa": "per_device_train_batch_size gradient_accumulation_steps num_train_epochs cutoff_len sequence_len "
    "micro_batch_size finetuning_type lr_scheduler_type num_warmup_steps lora_alpha lora_target",
}


@pytest.mark.parametrize(("job", "name"), [(job, name) for job in OTHERS for name in OTHERS[job].split()])
def test_names_of_other_tools_are_told_ours(job, name, capsys):
    known = configs.fields(configs.read_config(f"configs/{job}.py"))
    for argument in (f"{name}=1", f"--{name}=1", f"--{name.replace('_', '-')}=1"):
        assert console.main([job, argument]) == 2
        said = capsys.readouterr().err
        field = re.search(r"did you mean (?:--)?config\.([\w.]+)", said)
        assert field and field[1] in known and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        ("sft", 2, "did you mean dsa?"),
        ("SFT", 2, "did you mean dsa?"),
        ("GBA:mini", 2, "did you mean gba?"),
        ("gba mini", 2, "a preset stands behind a colon: configs/gba.py:mini"),
        ("ask question=What is it", 2, "a value with spaces in quotes"),
        ("grpo:mini lr=1", 2, "did you mean gba?"),
        ("eval", 2, "did you mean evaluate?"),
        ("xyzzy", 2, "no job or command 'xyzzy'; there are "),
        ("gba:mini:extra", 2, "has no preset 'mini:extra'"),
        ("gba steps = 10", 2, "as one word, such as --config.steps=1"),
        ("gba resume=true", 2, "the same command resumes by itself, resume_from goes back to a step; did you mean"),
        ("gba --resume", 2, "the same command resumes by itself"),
        ("gba 'lr=1e-5'", 2, "did you mean --config.lr=1e-5?"),
        ("gba batch_size=8 --plan", 2, "did you mean config.prompts_per_step?"),
        ("ask prompt=Why?", 2, "did you mean config.question?"),
        ("evaluate controls=blank,blind", 2, "config.controls=blind is unknown; did you mean blank?"),
        ("new-data --help", 0, "mmedexpert new-data: an example"),
        ("help compare", 0, "mmedexpert compare: runs side by side"),
        ("new-data --force", 2, "new-data has no flag '--force'"),
        ("check-data -v my_cases", 2, "check-data has no flag '-v'"),
        ("--version", 0, f"mmedexpert-jax {mmedexpert_jax.__version__}"),
    ],
)
def test_what_strangers_type_is_told_in_one_line_and_leaves_nothing(typed, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert console.main(typed.split()) == code
    out, err = capsys.readouterr()
    assert said in out + err and (out + err).count("\n") == 1 and not list(tmp_path.iterdir())


def test_names_of_other_tools_lead_to_jobs_and_commands_that_there_are():
    known = {path.stem for path in configs.available().values()} | {*console.COMMANDS}
    assert {*console.JOBS_ELSEWHERE.values()} <= known and not {*console.JOBS_ELSEWHERE} & known


def test_compare_survives_damage(tmp_path, capsys):
    with Run.open(tmp_path / "a", {"job": "gba"}) as run:
        run.log(1, {"reward": 0.1})
    for name in ("STATUS.json", "config.json", "metrics.jsonl"):
        (tmp_path / "a" / name).write_text(json.dumps(["x"]))
    assert console.main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) in (0, 2)


def test_evaluations_of_other_cases_are_compared_over_those_that_are_the_same(tmp_path, capsys):
    """Item 2 has another key in the second run, which is another question; 1 and 3 are shared, 0 and 4 are not."""
    for name, keys in (
        ("a", {"0": "A", "1": "A", "2": "A", "3": "B"}),
        ("b", {"1": "A", "2": "B", "3": "B", "4": "A"}),
    ):
        with Run.open(tmp_path / name, {"job": "evaluate"}) as run:
            run.finish({})
        said = "A" if name == "a" else "B"
        rows = [AnswerRow(id, 0, "", said, key, said == key, 1, False) for id, key in keys.items()]
        path = rows_path(tmp_path / name, "mine", "model")
        path.parent.mkdir(parents=True)
        Evaluation(tuple(rows)).write(path)
        (tmp_path / name / "export" / "summary.json").write_text(json.dumps({"mine": {"model": {}}}))
    assert console.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[-1] == "2" and "+0.0" in lines[-1] and "75.0" in lines[-2] and "50.0" in lines[-1]
    (tmp_path / "b" / "export" / "rows" / "mine" / "model.jsonl").write_text("{}")
    assert console.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 3
    assert "not the rows of an evaluation" in capsys.readouterr().err


@pytest.mark.parametrize("scorers", [("strict", "strict"), ("strict", "medevalkit"), ("medxpertqa", "strict")])
def test_items_are_paired_by_content_under_one_scorer(scorers, tmp_path):
    """One model's answers to a file and to the file sorted anew, so that other questions have the numbers as ids."""
    asked = [Case("", f"Which is {n}?", ("gout", "lupus", "sepsis", "asthma"), "ABCD"[n % 4]) for n in range(40)]
    asked += [Case("", "And here?", ("gout", "lupus"), "A") for _ in range(2)]  # which nothing tells apart
    for name, scorer, order in (("a", scorers[0], asked), ("b", scorers[1], asked[::-1])):
        with Run.open(tmp_path / name, {"job": "evaluate", "scorer": scorer}) as run:
            run.finish({})
        items = [replace(item, id=str(n)) for n, item in enumerate(order)]
        replies = [Reply("" if item.answer == "B" else f"<answer>{item.answer}</answer>", 1, False) for item in items]
        made = [judged(item, [reply], scorer=scorer) for item, reply in zip(items, replies, strict=True)]
        path = rows_path(tmp_path / name, "mine", "model")
        path.parent.mkdir(parents=True)
        Evaluation(tuple(row for rows in made for row in rows)).write(path)
        (tmp_path / name / "export" / "summary.json").write_text(json.dumps({"mine": {"model": {}}}))
    first, second = compared_runs([tmp_path / "a", tmp_path / "b"])
    if scorers[0] == "medxpertqa":
        assert second["gain"] == "none: strict beside medxpertqa"
        return
    gain = str(second["gain"])
    assert gain.startswith("+0.0 [+0.0, +0.0]") and second["items of both"] == "40"
    assert (second.get("scorer") == "medevalkit; gain: strict") == (scorers[0] != scorers[1]) == ("scorer" in first)


def test_a_folder_that_is_gone_and_a_config_that_is_damaged_are_named(tmp_path, monkeypatch, capsys):
    for name in "ab":
        config = configs.load_config("configs/gba.py", {"workdir": tmp_path / name})
        with Run.open(tmp_path / name, config):
            pass
    (tmp_path / "b" / "config.json").write_text("")
    text = console.compare([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "the configs are the same" not in text and "None" not in text
    assert f"{tmp_path}/b/config.json is missing or damaged" in capsys.readouterr().err
    assert cli.explain(FileNotFoundError("no weights"))[0].startswith("error: FileNotFoundError: no weights")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert console.main(["--version"]) == 0 and console.main(["gba", "--plan"]) == 4
    assert "the current folder is gone" in capsys.readouterr().err
