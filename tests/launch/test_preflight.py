"""A plan ends as the run would: broken data, rewards and models get the run's exit code, before anything is made."""

import importlib.util
import json
import re
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from mmedexpert_jax.config.validate import check_model
from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.launch import console, load_config
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.launch.job_plan import beyond_positions
from mmedexpert_jax.models import load_model, load_processor
from mmedexpert_jax.models.locate import MINI
from mmedexpert_jax.plan import hardware, hours
from mmedexpert_jax.plan.budget import count, filter_answers, lines, problem
from mmedexpert_jax.runtime import Run, costs
from tests.terminal import screen

ALL = ("train", "dev", "test")


def rows(**changes):
    """Sixteen cases of all specialties; `changes` go into the last one."""
    found = [
        {"id": f"c{i}", "question": "Her score?", "options": ["1", "2", "3"], "answer": "ABC"[i % 3], "task": "score",
         "specialty": SPECIALTIES[i % 4], "paradigm": "analytical", "trace": "Her rate is 32."}
        for i in range(16)
    ]  # fmt: skip
    found[-1] |= changes
    return found


def write(folder, cases, splits=("train", "dev", "test")):
    folder.mkdir(exist_ok=True)
    for split in splits:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    return folder


@pytest.mark.parametrize(
    ("job", "cases", "splits", "code", "words"),
    [
        ("gba", rows(), ALL, 0, ""),
        ("gba", rows(images=["missing.png"]), ALL, 3, "missing.png"),
        ("gba", rows(answer="AB"), ALL, 3, "answer"),
        ("gba", rows(), ("train", "dev"), 3, "no split 'test'"),
        ("gba", rows(question="Her pulse is 88. " * 500), ALL, 3, "case c15: a prompt of"),
        ("dsa", rows(question="Her pulse is 88. " * 500), ALL, 3, "case c15: a prompt of"),
        ("dsa", rows(trace="Her pulse is 88. " * 500), ALL, 3, "case c15: its answer has"),
        ("dsa", rows(), ALL, 0, ""),
        ("dsa", [row for row in rows() if row["specialty"] != "CSI"], ALL, 3, "no case of CSI"),
        ("dsa", rows(trace=""), ALL, 3, "trace"),
        ("dsa", [*rows(), rows()[0] | {"id": "x", "specialty": "cardiology"}], ALL, 3, "'cardiology' is none of AM"),
    ],
)
def test_a_plan_ends_as_the_run_would(tmp_path, capsys, job, cases, splits, code, words):
    data = write(tmp_path / "own", cases, splits)
    command = [f"--config=configs/{job}.py", f"--config.data.path={data}", f"--config.workdir={tmp_path / 'run'}"]
    assert main([*command, "--config.plan=True"]) == code
    out, error = capsys.readouterr()
    assert words in error and error.count("\n") == (code > 0)
    assert ("nothing was run" in out) == (code == 0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("job", "fields", "steps"),
    [("gba", ("steps=0", "prompts_per_step=4"), 8), ("dsa", ("specialty=mixed", "batch_size=1", "epochs=2"), 8)],
)
def test_cases_of_other_specialties_are_counted(tmp_path, capsys, job, fields, steps):
    """GBA and a mixed DSA train on them: 32 cases, an epoch in steps of 4, and two in steps of 8."""
    others = [row | {"id": f"other-{row['id']}", "specialty": "cardiology"} for row in rows()]
    data = write(tmp_path / "own", rows() + others)
    command = [f"--config=configs/{job}.py", f"--config.data.path={data}", "--config.plan=True"]
    assert main([*command, *(f"--config.{field}" for field in (*fields, f"workdir={tmp_path / 'run'}"))]) == 0
    out = capsys.readouterr().out
    assert "train: 32 (AM 4, CAH 4, BS 4, CSI 4, others 16;" in out
    assert re.search(rf"steps +{steps}\b", out), out


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("export model.path=mini format=adapter", 3, "holds no adapter"),
        ("ask question=", 2, "config.question is empty"),
        ("ask question=x images=none.png", 3, "none.png"),
        ("gba tracker=trackio", 2, "pip install trackio"),
        ("merge experts=nope,other", 3, "no such model: nope"),
        ("ask question=x max_new_tokens=2000000000", 2, "positions for 2048; set --config.max_new_tokens=1024"),
        ("serve max_prompt_length=3000", 2, "has positions for 2048; lower both"),
        ("serve key_env=NO_SUCH_KEY", 2, "config.key_env: NO_SUCH_KEY is not set"),
        ("serve workdir=file", 4, "config.workdir: file is no directory"),
        ("pretrain shape.heads=3", 2, "heads=3 must divide width=128"),
        ("pretrain shape.mrope_section=8,8", 2, "must be three numbers that add up to half a head, 16"),
        ("pretrain shape.vision_heads=5", 2, "vision_width=64 must be a multiple of 4 times vision_heads=5"),
        ("pretrain:text shape.layers=1", 2, "random weights need at least 2 layers"),
        ("pretrain:text cosine_peaks=1e-3", 2, "have [4, 1, 4] values; give each as many"),
        ("pretrain:text cosine_starts=0,9,8,7", 2, "must rise from 0"),
        ("pretrain:text warmup=5000", 2, "the first above warmup=5000"),
        ("pretrain:text hasty_shares=2,3", 2, "must be shares from 0 to 1"),
        ("pretrain:text tokenizer=nowhere", 3, "config.tokenizer: nowhere: no such model directory"),
        ("pretrain start=nowhere", 3, "config.start: nowhere: no such model directory"),
        (f"pretrain start={MINI} shape.mlp=8", 2, "down_proj.weight is (128, 384) there and (128, 8) by config.shape"),
        ("evaluate benchmarks=nope", 2, "no benchmark 'nope'"),
    ],
)
@pytest.mark.parametrize("plan", [True, False])
def test_other_jobs_end_alike(tmp_path, capsys, monkeypatch, command, code, words, plan):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else real(name))
    assert console.main(command.split() + ["--plan"] * plan) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "lacking", "words"),
    [
        (
            "gba rewards.judge.weight=.5 rewards.judge.url=http://h/v1 rewards.judge.model=m",
            "httpx2",
            '"httpx2>=2.12,<3"',
        ),
        ("evaluate model.path=endpoint:m endpoint.url=http://h/v1", "openai", '"openai>=3.57,<4" "httpx2'),
        ("dataset:endpoint teacher.url=http://h/v1 teacher.model=m teacher.key_env=", "httpx2", '"httpx2>=2.12,<3"'),
        ("serve", "uvicorn", '"uvicorn>=0.40,<1"'),
        ("review", "starlette", '"starlette>=1.0,<2"'),
    ],
)
@pytest.mark.parametrize("plan", [True, False])
def test_a_package_that_a_run_lacks_is_named_by_its_plan(tmp_path, capsys, monkeypatch, command, lacking, words, plan):
    """An older openai has no httpx2, and is replaced by what the line tells pip to install."""
    monkeypatch.chdir(tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else real(name))
    assert console.main(command.split() + ["--plan"] * plan) == 2
    told = capsys.readouterr().err
    assert f" needs {lacking}, not installed here: pip install " in told and words in told


@pytest.mark.parametrize(("entry", "code"), [("AM", 2), ("AM=mini", 2), ("mini=x", 2), ("AM=none", 3)])
def test_a_plan_to_serve_looks_at_the_adapters(capsys, entry, code):
    assert console.main(["serve", f"adapters={entry}", "--plan"]) == code
    assert "config.adapters: " in capsys.readouterr().err


OWN = """
def unfit(case, text, **_): return 1.0
def narrow(*_): return 1.0
def raises(*_): raise ValueError("mine")
def f(case, text): return 1.0
class Judge:
    def __call__(self, case, text, **_): return 1.0
def each(cases, texts, **_):
    yield from map(len, texts)
"""


@pytest.mark.parametrize(
    ("field", "code", "words"),
    [
        ("advantage_scale=own.py:unfit", 2, "takes 2 positional arguments but 4 were given"),
        ("advantage_scale=own.py:narrow", 2, "'own.py:narrow' failed on two groups of two: ValueError: it gives ()"),
        ("advantage_scale=own.py:none", 2, "has no 'none'"),
        ("surrogate=own.py:unfit", 2, "takes 2 positional arguments but 5 were given"),
        ("surrogate=own.py:narrow", 2, "config.surrogate='own.py:narrow' failed on two groups of two"),
        ("surrogate=own.py:raises", 2, "ValueError: mine; see docs/extend.md"),
        ("rewards.functions=own.py:f", 2, "got an unexpected keyword argument 'paradigm'"),
        ("guideline_text=none.json", 3, "none of its 1 keys (nothing) is a task or id"),
        ("guideline_text=some.json", 0, "config.guideline_text: no task or id of the cases: nothing"),
        ("curriculum=difficulty", 3, "case c0: the column 'difficulty' is not there"),
        ("curriculum=pass_rate", 2, "config.curriculum=pass_rate needs config.filter.samples"),
        ("curriculum=pass_rate filter.samples=2", 0, ""),
        ("filter.least=0.9 filter.most=0.1", 2, "no pass rate is between them"),
        ("objective=grpo guideline_text=some.json", 2, "config.guideline_text is quoted by guided prompts alone"),
        ("rewards.accuracy=0 rewards.format=0 rewards.structure=0", 2, "config.rewards: all weights are 0"),
        ("rewards.judge.weight=1 rewards.judge.path=policy rewards.judge.rubric=empty.txt", 2, "empty.txt is empty"),
        (
            "rewards.judge.weight=1 rewards.judge.path=policy rewards.judge.rubric=a/b.rubric",
            2,
            "cannot read a/b.rubric",
        ),
        ("rewards.functions=own.py:Judge", 2, "Judge is a class; name an object of it, such as one = Judge()"),
        ("rewards.functions=own.py:each", 2, "each yields; let it return"),
        ("resume_from=5", 2, "has no checkpoint of that step; there are none"),
        ("adam_betas=0.9", 2, "config.adam_betas must be two numbers from 0, below 1"),
        ("adam_betas=0.9,1.0", 2, "config.adam_betas must be two numbers"),
        (
            "eval.best=True eval.every=-1",
            2,
            "config.eval.best chooses by held-out scores, and eval.every=-1 makes none",
        ),
        ("eval.patience=2 eval.every=-1", 2, "config.eval.patience chooses by held-out scores"),
        (
            "eval.best=True",
            2,
            "config.eval.best chooses by held-out scores, and eval.every=0 makes one at the end alone",
        ),
        ("warmup_ratio=0.1", 2, "config.warmup_ratio=0.1 says nothing beside warmup_steps=4; set one of them to 0"),
        ("filter.least=0.2", 2, "config.filter.least=0.2 says nothing without filter.samples"),
        ("filter.most=1", 2, "config.filter.most=1 says nothing without filter.samples"),
        ("betas=0.9,0.95", 2, "did you mean config.adam_betas?"),
        ("allow_changes=learning_rate", 2, "did you mean lr?"),
    ],
)
def test_a_plan_of_rl_refuses_what_its_steps_would(tmp_path, monkeypatch, capsys, caplog, field, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "none.json").write_text('{"nothing": "x"}')
    (tmp_path / "some.json").write_text('{"nothing": "x", "score": "y"}')
    data = write(tmp_path / "own", rows())
    assert console.main(["gba", f"data.path={data}", "--plan", *field.split()]) == code
    error = capsys.readouterr().err
    assert words in error + caplog.text and error.count("\n") == (code > 0)


def test_answers_beyond_a_models_positions_are_told():
    fields = {"max_prompt_length": 1500, "max_new_tokens": 549, "compare": ("x=mini", "y=endpoint:z", "gone")}
    lines = list(beyond_positions(load_config("configs/evaluate.py", fields)))
    assert len(lines) == 2 and "are 2,049 tokens together, and mini has positions for 2,048" in lines[0]
    assert not list(beyond_positions(load_config("configs/evaluate.py", fields | {"max_new_tokens": 548})))
    assert not list(beyond_positions(load_config("configs/gba.py")))


def test_rewards_that_are_none_are_found_by_the_plan(tmp_path, capsys):
    command = ["--config=configs/gba.py", "--config.plan=True", "--config.rewards.functions=no_such_module.foo=1"]
    assert main(command) == 2
    assert "config.rewards.functions" in capsys.readouterr().err


def test_a_plan_is_one_screen_and_says_what_was_set_and_what_it_takes(capsys):
    command = ["--config=configs/gba.py:qwen2_vl_2b", "--config.plan=True", "--config.steps=100", "--config.price=2"]
    assert main([*command, "--config.plan_mesh=h100x8"]) in (0, 4)
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 40
    assert "set      steps = 100 (preset: 0)" in out
    assert (
        re.search(r"time     about [\d.]+ (minutes|hours) on 8 x h100, about [\d.]+ dollars", out)
        and "not a run" in out
    )
    assert re.search(r"room left +[\d.]+ GB; prompts_per_step=\d+ takes larger steps and needs [\d.]+ GB", out)
    assert "fields   " not in out
    assert "lr 1e-06 (appendix B) hardly moves LoRA deltas" in out


@pytest.mark.parametrize("job", ["pipeline", "ablation"])
def test_a_field_of_one_of_several_stages_is_named_as_it_is_given(job, capsys):
    arguments = [f"--config=configs/{job}.py", "--config.gba.surrogate=clp", "--config.plan=True"]
    assert main(arguments) == 2
    assert "error: config.gba.surrogate='clp' is unknown; did you mean clip?" in capsys.readouterr().err


JOBS = ("gba:mini", "dsa:mini", "evaluate:mini", "pipeline:mini", "ablation:mini")
PLANS = """
import sys
from mmedexpert_jax.launch import console
for job in sys.argv[1:]:
    print("$", job, flush=True)
    assert console.main([job, "--plan"]) == 0
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """The screens of plans by job, from one process: most of its time is its start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plans"))
        shown = "\n".join(screen("pyte", [sys.executable, "-c", PLANS, *JOBS], 80, 60 * len(JOBS)))
    return {part.split("\n", 1)[0]: part.split("\n")[1:] for part in re.split(r"^\$ ", shown.rstrip(), flags=re.M)}


@pytest.mark.parametrize("job", JOBS)
def test_a_plan_fits_a_screen_of_80_columns_and_says_the_time(job, plans):
    shown = "\n".join(plans[job]).rstrip().split("\n")
    assert len(shown) <= 40, "\n".join(shown)
    time = r"^time     about ([\d.]+ (seconds|minutes|hours|days)|\d+ h \d+ min)"
    assert re.search(time, "\n".join(shown), re.MULTILINE)
    assert shown[-1] == f"nothing was run; without plan it starts; fields: mmedexpert {job.partition(':')[0]} --help"


@pytest.mark.parametrize(
    ("config", "changed"), [("gba:qwen2_vl_2b", {"micro_batch": 1}), ("dsa:qwen2_vl_2b", {"batch_size": 1})]
)
def test_the_field_that_uses_the_room_fits(config, changed):
    config = load_config(f"configs/{config.replace(':', '.py:')}", changed | {"plan_mesh": "h100x1"})
    (line,) = (line for line in lines(config, "", Counter(AM=100)) if "room left" in line)
    values = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}
    assert next(iter(changed)) in values and "same result" in line
    assert (
        problem(load_config(f"configs/{config.job}.py:{config.preset}", changed | values | {"plan_mesh": "h100x1"}), "")
        == ""
    )


def test_the_seconds_of_the_roofline_are_those_of_its_products(monkeypatch):
    """By hand: 10 steps of 32 rows of 640 tokens, forward and backward, and two evaluations of 5 answers."""
    config = load_config("configs/dsa.py", {"steps": 10, "eval.batch_size": 5, "plan_mesh": "a100x2"})
    parameters = count(config)[0].parameters
    peak, bandwidth = 2 * 312e12 * 0.33, 2.0e12 * 0.5
    trained = 2 * parameters * 10 * 32 * (512 + 128) * 2 / peak
    held_out = 2 * parameters * 2 * 5 * (512 + 128) / peak + 2 * 128 * parameters * 4 / bandwidth
    assert hours.seconds(config, {}, answers=5) == pytest.approx(trained + held_out)


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({"beta": 0.0}, 2),
        ({}, 3),  # the reference reads too
        ({"perception": 0.1}, 5),  # and the policy a second time, without the image
        ({"minibatches": 2}, 4),  # the old policy before the first of two updates
        ({"inner_epochs": 2}, 7),
    ],
)
def test_the_passes_of_a_step_of_gba(fields, passes):
    def products(changed):
        settings = {"steps": 10, "eval.every": -1, "remat": False, "plan_mesh": "a100x1"}
        return hours.seconds(load_config("configs/gba.py", settings | changed), {})

    drawn = products({"beta": 0.0}) * 3 - products({}) * 2  # what does not hang on the passes
    one = products({}) - products({"beta": 0.0})
    assert products(fields) == pytest.approx(drawn + passes * one)


def test_the_roofline_counts_the_filter_and_the_devices_of_the_mesh():
    def taken(**changed):
        settings = {"steps": 10, "eval.every": -1, "plan_mesh": "h100x1"}
        return hours.seconds(load_config("configs/gba.py:qwen2_vl_2b", settings | changed), Counter(AM=100))

    assert taken(plan_mesh="h100x4", **{"mesh.data": 1}) == taken()
    assert taken(plan_mesh="h100x4") < 0.8 * taken()
    more = [taken(**{"filter.samples": samples}) - taken() for samples in (8, 16)]
    assert more[0] > 0.1 * taken() and 1.2 * more[0] < more[1] < 2.5 * more[0], "800 answers and twice as many"
    assert taken(**{"eval.every": 10}) == taken(**{"eval.every": 0}), "the last step's evaluation is one"


def test_a_specialty_may_be_called_image():
    config = load_config("configs/gba.py", {"filter.samples": 8, "plan_mesh": "h100x1"})
    assert filter_answers(config, Counter(AM=10, image=50)) == 8 * 60


def test_devices_of_a_known_peak_have_a_known_bandwidth():
    assert costs.PEAKS.keys() - hours.BANDWIDTH.keys() == {"V100-PCIE"}, "which is a V100 too"
    assert hours.BANDWIDTH.keys() <= costs.PEAKS.keys()


@pytest.mark.parametrize(
    ("name", "known"),
    [("Tesla T4", True), ("NVIDIA A10G", True), ("TPU v4", True), ("TPU v6 lite", True), ("NVIDIA B200", False)],
)
def test_the_roofline_of_a_device_by_its_name(monkeypatch, name, known):
    import jax

    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=name)])
    assert all(hours.roofline(hardware.Devices("gpu", 1, 0))) == known


def test_the_time_of_an_evaluation_is_that_of_all_it_asks(capsys):
    def seconds(*more):
        assert main(["--config=configs/evaluate.py", "--config.plan=True", "--config.plan_mesh=h100x1", *more]) == 0
        out = capsys.readouterr().out
        return [float(re.search(words, out)[1]) for words in (r"in all +(\d+) answers", r"time +about ([\d.]+) sec")]

    base = ["--config.model.path=random:qwen2_vl_2b", "--config.limit=16", "--config.batch_size=1"]
    alone, controlled = seconds(*base), seconds(*base, "--config.controls=shuffle", "--config.rotations=2")
    assert controlled[0] > 2 * alone[0] and controlled[1] > 1.5 * alone[1]


def test_the_plan_of_a_run_that_is_over_says_so(tmp_path, capsys):
    command = ["--config=configs/gba.py", f"--config.workdir={tmp_path}", "--config.steps=2", "--config.price=3"]
    config = load_config("configs/gba.py", {"workdir": str(tmp_path), "steps": 2, "price": 3})
    with Run.open(tmp_path, config) as run:
        for step in (1, 2):
            run.log(step, {"step_time": 1200.0})
        run.finish({})
    assert main([*command, "--config.plan=True"]) == 0
    out = capsys.readouterr().out
    assert "is finished: nothing is left" in out and "time  " not in out and "it starts" not in out
    assert main([*command, "--config.plan=True", "--config.steps=5"]) == 0
    assert "60.0 minutes left of 5 steps, about 3.00 dollars" in capsys.readouterr().out


def test_a_folder_of_experts_names_them(tmp_path):
    for name in ("AM", "CSI"):
        (tmp_path / name / "export" / "model").mkdir(parents=True)
    for name in ("STATUS.json", "cmd.txt", "env.json", "config.json"):
        (tmp_path / name).write_text("{}")
    for read in (lambda path: check_model("model.path", path), load_model, load_processor):
        with pytest.raises(DataError, match=rf"its folders of runs do: {tmp_path}/AM, {tmp_path}/CSI$"):
            read(str(tmp_path))
