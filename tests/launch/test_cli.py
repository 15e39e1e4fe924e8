"""`main`: exit codes, one line per error, what is checked before any long work. The stages are stand-ins."""

import errno
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import mmedexpert_jax
from mmedexpert_jax.errors import DataError, Interrupted, RemoteError, ResourceError
from mmedexpert_jax.launch import held_out
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.runtime import files

REPOSITORY = Path(__file__).parents[2]


class Stages:
    """Stand-ins for the stages' entry points; they note their configs, and raise `error` at `fail_at`."""

    def __init__(self):
        self.calls: list = []
        self.error: BaseException | None = None
        self.fail_at = ""

    def __call__(self, config, run, evaluate=None):
        self.calls.append((config, evaluate))
        if self.error is not None and self.fail_at in str(run.path):
            raise self.error
        run.finish({"answer": 42})
        return run.path


@pytest.fixture
def stages(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stand_in = Stages()
    for name in ("sft", "gba", "merging", "medeval"):
        module = SimpleNamespace(train=stand_in, run=stand_in)
        monkeypatch.setattr(mmedexpert_jax, name, module, raising=False)
    monkeypatch.setattr(held_out, "evaluator", lambda config, run: len)
    return stand_in


def test_help_lists_jobs_and_presets(capsys):
    assert main(["--help"]) == 0 == main(["-h"]) == main(["--config=configs/gba.py", "--help"])
    text = capsys.readouterr().out
    for word in (
        "configs/gba.py (mini, smollm2, qwen2_vl_2b, lingshu_7b, medgemma_4b, medgemma_27b, "
        "qwen2_vl_2b_lora, lingshu_7b_lora)",
        "--overrides=file.json",
        "130, 143 or 129",
        "section 4.2",
    ):
        assert word in text


def test_list_config_prints_overridden_values_and_runs_nothing(capsys, stages):
    assert main(["--config=configs/gba.py", "--config.steps=1e3", "--list_config"]) == 0
    out = capsys.readouterr().out
    assert "steps" in out and " 1000 " in out and not stages.calls and not os.listdir()


@pytest.mark.parametrize(
    ("argv", "code", "hint"),
    [
        ([], 2, "configs/gba.py"),
        (["--config=configs/gab.py"], 2, "did you mean configs/gba.py?"),
        (["--config=configs/gba.py:nano"], 2, "available: mini"),
        (["--config=configs/gba.py", "--config.stesp=3"], 2, "did you mean config.steps?"),
        (["--config=configs/gba.py", "--config.steps=1.5"], 2, "config.steps expects an integer, got '1.5'"),
        (["--config=configs/gba.py", "lr=3"], 2, "did you mean --config.lr=3?"),
        (["--config=configs/gba.py", "--config.num_samples=1"], 2, "num_samples must be at least 2"),
        (
            ["--config=configs/pipeline.py", "--config.gba.num_samples=1"],
            2,
            "config.gba.num_samples must be at least 2",
        ),
        (["--config=configs/gba.py", "--config.prompts_per_step=0"], 2, "config.prompts_per_step must be at least 1"),
        (["--config=configs/gba.py", "--config.temperature=0"], 2, "greedy"),
        (["--config=configs/gba.py", "--config.lr=-1"], 2, "config.lr must be above 0"),
        (["--config=configs/gba.py", "--config.top_p=1.5"], 2, "config.top_p must be above 0 and at most 1"),
        (["--config=configs/gba.py", "--config.objective=gbaa"], 2, "did you mean gba?"),
        (
            ["--config=configs/gba.py", "--config.prompts_per_step=8", "--config.paradigms_per_query=3"],
            2,
            "multiple of paradigms_per_query",
        ),
        (["--config=configs/gba.py", "--config.steps=0", "--config.epochs=0"], 2, "both 0"),
        (
            ["--config=configs/dsa.py", "--config.specialty=CHA"],
            2,
            "config.specialty=CHA is unknown; did you mean CAH?",
        ),
        (["--config=configs/dsa.py", "--config.lora.rank=0"], 2, "config.lora.rank must be at least 1"),
        (["--config=configs/dsa.py", "--config.eval.num_samples=0"], 2, "config.eval.num_samples must be at least 1"),
        (["--config=configs/dsa.py", "--config.data.path=nowhere"], 3, "config.data.path: no such file"),
        (["--config=configs/dsa.py", f"--config.data.path={__file__}"], 2, "no test split beside what is trained on"),
        (["--config=configs/gba.py", "--config.data.path=benchmark:pmc_vqa=hub"], 2, "set --config.eval.every=-1"),
        (["--config=configs/dsa.py", "--config.model.path=no/such/model"], 3, "config.model.path: no such model"),
        (["--config=configs/dsa.py", "--config.model.path=runs/none"], 3, "config.model.path: no such model"),
        (["--config=configs/merge.py", "--config.experts=AM=runs/am"], 3, "config.experts: no such model: runs/am"),
        (["--config=configs/merge.py", "--config.model.path=."], 3, "holds no weights"),
    ],
)
def test_wrong_usage_is_one_line_before_any_work(argv, code, hint, stages, capsys):
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and hint in err and "Traceback" not in err
    assert not stages.calls and not os.listdir()


class XlaRuntimeError(RuntimeError):
    """Named and worded as XLA does."""


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (DataError("cases.jsonl, row 3, key answer: 'Z'"), 3, "row 3"),
        (ResourceError("no such device"), 4, "no such device"),
        (RemoteError("endpoint refused"), 5, "endpoint refused"),
        (Interrupted("at step 7", 2), 130, "interrupted: at step 7"),
        (Interrupted("at step 7", 15), 143, "interrupted: at step 7"),
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), 4, "lower prompts_per_step"),
        (MemoryError(), 4, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "ckpt/1"), 4, "ckpt/1: no space left"),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), 4, "runs/x: read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/y"), 4, "Permission denied: runs/y"),
        (ValueError("embedded null byte"), 2, "a path holds a zero byte"),
        (ValueError("something\nunforeseen"), 1, "ValueError: something unforeseen; run with --debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_kind_of_error_has_its_exit_code(error, code, hint, stages, capsys):
    stages.error = error
    assert main(["--config=configs/gba.py"]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and hint in err and "Traceback" not in err


def test_debug_shows_the_traceback(stages, capsys):
    stages.error = ValueError("unforeseen")
    assert main(["--config=configs/gba.py", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_run_ends_with_where_things_are_and_what_is_next(stages, capsys):
    assert main(["--config=configs/gba.py", "--config.seed=3"]) == 0
    out = capsys.readouterr().out
    assert "gba (preset mini) in runs/gba-mini" in out and "runs/gba-mini/metrics.jsonl" in out
    assert "next: mmedexpert evaluate:mini model.path=runs/gba-mini" in out
    config, evaluate = stages.calls[0]
    assert config.seed == 3 and evaluate is len
    assert json.loads(Path("runs/gba-mini/config.json").read_text())["workdir"] == "runs/gba-mini"


def test_a_finished_run_is_left_alone_unless_fresh(stages, capsys):
    for argv, calls in (([], 1), ([], 1), (["--config.fresh=yes"], 2)):
        assert main(["--config=configs/gba.py", *argv]) == 0
        assert len(stages.calls) == calls
    assert "already finished" in capsys.readouterr().out


def test_another_config_in_the_same_directory_is_refused(stages, capsys):
    assert main(["--config=configs/gba.py"]) == 0
    assert main(["--config=configs/gba.py", "--config.beta=0"]) == 2
    assert "beta" in capsys.readouterr().err


def test_dsa_trains_four_experts_and_resumes_between_them(stages):
    stages.error, stages.fail_at = Interrupted("here", 15), "BS"
    assert main(["--config=configs/dsa.py"]) == 143
    stages.error = None
    assert main(["--config=configs/dsa.py"]) == 0
    assert [config.specialty for config, _ in stages.calls] == ["AM", "CAH", "BS", "BS", "CSI"]
    assert main(["--config=configs/dsa.py", "--config.specialty=AM"]) == 0
    assert len(stages.calls) == 5, "one expert stands where the job over all puts it"
    assert main(["--config=configs/dsa.py", "--config.fresh=True"]) == 0
    assert len(stages.calls) == 9


def test_starting_over_deletes_no_expert_that_another_process_trains(stages, capsys):
    assert main(["--config=configs/dsa.py"]) == 0
    before = {path: path.read_bytes() for path in Path("runs").rglob("*.json")}
    with files.lock(Path("runs/dsa-mini/CSI/.lock")):  # an open file apart, as another process has one
        assert main(["--config=configs/dsa.py", "--config.fresh=True"]) == 4
        assert f"runs/dsa-mini/CSI is in use by process {os.getpid()}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("runs").rglob("*.json")} == before and len(stages.calls) == 4


def test_the_plan_runs_nothing(stages, capsys, tmp_path):
    rows = [
        {"id": str(i), "question": "q", "options": ["a", "b"], "answer": "A", "specialty": "AM", "task": "t"}
        for i in range(3)
    ]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["--config=configs/gba.py", f"--config.data.path={tmp_path}", "--config.plan=True"]) == 0
    out = capsys.readouterr().out
    assert "train: 3 (AM 3, CAH 0" in out and "no split 'dev'" in out and "steps      48" in out
    assert not stages.calls and not (tmp_path / "runs").exists()


def test_a_workdir_that_cannot_be_made_is_a_resource_error(stages, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["--config=configs/gba.py", f"--config.workdir={tmp_path}/file/run"]) == 4
    assert capsys.readouterr().err.count("\n") == 1 and not stages.calls


def command(*argv, cwd=REPOSITORY):
    return subprocess.run(
        [sys.executable, "-m", "mmedexpert_jax.launch", *argv], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_real_command_refuses_without_a_traceback_and_without_jax():
    result = command("--config=configs/gba.py", "--config.num_samples=1")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and not result.stdout
    code = """
import sys
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.runtime import files
alone = "--config=configs/gba.py", "--config.num_samples=1"
codes = [main(argv) for argv in ([], ["--help"], alone, ["--config=x.py"])]
assert codes == [2, 0, 2, 2] and "jax" not in sys.modules, codes
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_reader_that_closes_early_is_no_error():
    shell = f"{sys.executable} -m mmedexpert_jax.launch --help | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", shell], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and not result.stderr


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("{} --help >&-", 0, ""),
        ("{} --nosuch 2>&-", 2, ""),
        ("{} --help >/dev/full", 4, "no space left on device: the output cannot be written"),
        ("PYTHONIOENCODING=ascii {} --config=\N{LATIN SMALL LETTER U WITH DIAERESIS}.py 2>&1", 2, ""),
    ],
)
def test_output_that_cannot_be_written_ends_in_the_documented_code(shell, code, said):
    command = shell.format(f"{sys.executable} -m mmedexpert_jax.launch")
    result = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == code and said in result.stderr and "Traceback" not in result.stdout + result.stderr


def test_output_is_as_buffered_as_it_was():
    code = "from mmedexpert_jax.launch import cli, output; cli.steady(); print(1); output.complain('2'); print(3)"
    for unbuffered in ("", "1"):
        shell = f'PYTHONUNBUFFERED={unbuffered} {sys.executable} -c "{code}" 2>&1'
        result = subprocess.run(["bash", "-c", shell], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert result.stdout.split() == (["1", "2", "3"] if unbuffered else ["2", "1", "3"])


def test_a_reader_that_goes_ends_no_job(tmp_path):
    done = tmp_path / "done"
    code = f"""
import sys, time
from mmedexpert_jax.launch import cli
def job():
    for _ in range(3):
        print("a line of a job", flush=True)
        time.sleep(0.1)
    open({str(done)!r}, "w").close()
    return 0
sys.exit(cli.guarded(job))
"""
    shell = f"{sys.executable} -c '{code}' | true; exit ${{PIPESTATUS[0]}}".replace(repr(str(done)), f'"{done}"')
    result = subprocess.run(["bash", "-c", shell], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and not result.stderr and done.exists()


def test_a_terminal_that_is_closed_ends_no_job(tmp_path):
    done = tmp_path / "done"
    code = f"""
import sys, time
from mmedexpert_jax.launch import cli
def job():
    print("ready", flush=True)
    sys.stdin.readline()
    print("a line of a job", flush=True)
    open({str(done)!r}, "w").close()
    return 0
sys.exit(cli.guarded(job))
"""
    ours, theirs = pty.openpty()
    job = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=theirs, start_new_session=True)
    os.close(theirs)
    os.read(ours, 5)
    os.close(ours)
    job.communicate(b"go\n", timeout=60)
    assert job.returncode == 0 and done.exists()
