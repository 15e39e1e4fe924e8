"""The table of fields: whole, and every refusal is one line with exit code 2."""

import importlib
import json
import re

import numpy as np
import pytest
import safetensors.numpy

from mmedexpert_jax.config import Field, check_value, field_of
from mmedexpert_jax.config import job_config as configs
from mmedexpert_jax.config.fields import facts_of, named_devices
from mmedexpert_jax.config.validate import FLOAT_MAX, FLOAT_MIN
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba import objective
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.medeval import controls, scoring
from mmedexpert_jax.merging import settings
from mmedexpert_jax.mmedexpert import teacher_prompts
from mmedexpert_jax.models import quantised
from mmedexpert_jax.plan import hardware
from mmedexpert_jax.runtime import metrics


def numbers():
    """(config, key, type) of the numeric fields of every config file."""
    for spec in configs.available():
        for key, (kind, _, _) in configs.fields(configs.read_config(spec)).items():
            if kind in (int, float):
                yield spec, key, kind


def test_every_number_is_known_and_every_default_is_allowed():
    for spec, key, _ in numbers():
        assert configs.is_field(key), f"{spec}: {key} is not known"
    for spec in [
        f"{name}:{preset}" for name, path in configs.available().items() for preset in configs.presets_of(path)
    ]:
        config = configs.read_config(spec)
        for key, (_, _, value) in configs.fields(config).items():
            if value is not None:
                check_value(key, value, field_of(key, config.job))


def test_a_field_keeps_its_facts_under_presets_in_stages_and_for_a_run_of_its_job():
    """The rate of GBA: by itself with a preset's value, as a stage, and by the job's name and the key alone."""
    for spec, key in (("configs/gba.py:mini", "lr"), ("configs/pipeline.py:mini", "gba.lr")):
        field = facts_of(configs.read_config(spec))[key]
        assert (field.above, field.low, field.resume, field) == (0, 0, "", field_of(key, spec[8:-8]))
    assert [field_of("steps", "gba").resume, field_of("gba.steps").resume, field_of("remat", "dsa").resume] == [
        "grows",
        "grows",
        "free",
    ]
    assert field_of("rows", "serve").low == 1 and field_of("rows", "ablation").low == 0  # one name, two fields
    assert field_of("no_such_field") == Field()


def test_a_field_of_a_users_own_config_has_its_bounds_and_choices(capsys, tmp_path):
    (tmp_path / "own.py").write_text(
        "from mmedexpert_jax.config import presets\n"
        "from mmedexpert_jax.config.fields import Field, one_of\n\n\n"
        "def get_config():\n"
        "    config = presets.common('export', 'mini')\n"
        "    config.heat = Field(1.0, above=0)  # of mine\n"
        "    config.colour = one_of('red', 'blue')\n"
        "    return config\n"
    )
    for given, said in (("heat=0", "must be above 0"), ("colour=bleu", "did you mean blue?")):
        assert main([f"--config={tmp_path / 'own.py'}", f"--config.{given}"]) == 2
        assert said in capsys.readouterr().err


TABLES = [  # config files import no tables of the package, so that reading one costs nothing
    ("scorer", "evaluate", scoring.SCORERS),
    ("controls", "evaluate", controls.CONTROLS),
    ("rules", "merge", settings.PRESETS),
    ("normalize_vectors", "merge", settings.CHOICES["normalize"]),
    ("aggregation", "gba", objective.AGGREGATIONS),
    ("ratio_level", "gba", objective.RATIO_LEVELS),
    ("teacher.prompt", "dataset", teacher_prompts.STYLES),
    ("tracker", "gba", ("", *metrics.TRACKERS)),
    ("model.quantize", "gba", ("none", *quantised.KINDS)),
]


@pytest.mark.parametrize(("key", "job", "table"), TABLES, ids=[key for key, *_ in TABLES])
def test_choices_are_those_of_the_table_that_is_asked(key, job, table):
    assert field_of(key, job).choices == tuple(table)


def test_devices_of_a_plan_are_those_whose_memory_is_known():
    with pytest.raises(ConfigError) as caught:
        named_devices("b200")
    listed = re.search(r"give (.*) and a number", str(caught.value)).group(1)
    assert re.findall(r"\w+\d\w*", listed) == list(hardware.MEMORY)
    assert all(named_devices(f"{kind}x8") == (kind, 8) for kind in hardware.MEMORY)


def test_no_number_takes_what_has_no_meaning(capsys, tmp_path, monkeypatch):
    """Below its bounds, above what an int32 holds, not finite: refused in a line that names the field."""
    monkeypatch.chdir(tmp_path)
    for spec, key, kind in numbers():
        field = field_of(key, spec.partition("/")[2].removesuffix(".py"))
        below = min(field.low, field.above) - 1
        wrong = ["nan", "inf", "x" * 5000] + ([str(int(below))] if below > -float("inf") else [])
        wrong += ["1e300"] if kind is int else []
        for value in wrong:
            assert main([f"--config={spec}", f"--config.{key}={value}"]) == 2, (spec, key, value)
            error = capsys.readouterr().err
            assert f"config.{key}" in error and error.count("\n") == 1 and len(error) < 400
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lr=1e-60", "config.lr=1e-60 becomes 0 in float32"),
        ("advantage_eps=1e-46", "becomes 0 in float32"),
        ("lora.alpha=1e39", "config.lora.alpha=1e+39 becomes infinite in float32"),
        ("rewards.accuracy=-1e300", "becomes infinite in float32"),
    ],
)
def test_a_number_that_float32_cannot_hold_is_refused(capsys, given, said):
    assert main(["--config=configs/gba.py", f"--config.{given}"]) == 2
    assert said in capsys.readouterr().err


def test_the_bounds_are_those_of_float32():
    for size in (FLOAT_MIN, FLOAT_MAX):
        assert float(np.float32(size)) == size
    assert (np.finfo(np.float32).tiny, np.finfo(np.float32).max) == (FLOAT_MIN, FLOAT_MAX)


OWN = """
from ml_collections import ConfigDict
from mmedexpert_jax.config.job_config import read_config

def get_config():
    config = read_config("configs/gba.py:mini").unlock()
    {change}
    return config
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("config = ConfigDict({'steps': 3})", "config.job='' is no job"),
        ("config.job = 'train'", "config.job=train is unknown"),
        ("del config.rewards", "config.rewards.accuracy is missing, which the job gba reads"),
        ("del config.workdir", "config.workdir is missing"),
        ("config.lr = None", "config.lr expects a finite number, got None"),
        ("del config.steps; config.steps = '10'", "config.steps expects an integer, got '10'"),
        ("del config.eval; config.eval = ConfigDict({'every': -1})", "config.eval.batch_size is missing"),
        (
            "config.learning_rate = 1e-5",
            "config.learning_rate is read by nothing of the job gba; did you mean",
        ),
        ("config.lora.r = 8", "config.lora.r is read by nothing of the job gba; did you mean config.lora.rank?"),
        ("config.rewards.acuracy = 2.0", "config.rewards.acuracy is read by nothing of the job gba; did you mean"),
        ("config.density = 0.9", "config.density is read by nothing of the job gba"),
    ],
)
def test_a_users_own_config_is_held_to_the_fields_of_its_job(capsys, tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN.format(change=change))
    assert main(["--config=own.py"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["own.py"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=" + "x" * 5000],
        ["--config=configs/gba.py:" + "x" * 5000],
        ["--config=configs/gba.py", "--config." + "y" * 100_000 + "=1"],
        ["--config=configs/gba.py", "--config.workdir=" + "x" * 5000, "--config.plan=True"],
        ["--config=configs/gba.py", "--config.model.path=" + "x" * 5000],
        ["--config=configs/gba.py", "--config.data.path=" + "x" * 5000],
        ["--config=configs/gba.py", "--config.objective=" + "x" * 5000],
        ["--config=configs/gba.py", "--config.model.path=a\udcff"],
        ["--config=configs/gba.py", "--config.lr=\u0661"],
        ["--config=configs/gba.py", "--processes=²"],
        ["--config=configs/gba.py", "--processes=99999999999999999999"],
        ["--config=configs/gba.py", "--overrides=/dev/zero"],
        ["--config=configs/evaluate.py", "--config.endpoint.url=http://[::1/v1"],
        ["--config=configs/evaluate.py", "--config.endpoint.url=http://host:port/v1"],
        ["--" + "z" * 5000],
    ],
)
def test_absurd_arguments_are_one_short_line(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (2, 3, 4)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) <= 1000 and "unexpected" not in error


@pytest.mark.parametrize(
    ("job", "field"),
    [
        ("evaluate", "endpoint.url={}"),
        ("evaluate", "compare=other=endpoint:m@{}"),
        ("evaluate", "judge.url={}"),
        ("dataset", "teacher.url={}"),
        ("dsa", "data.path={}"),
        ("dsa", "model.path={}"),
        ("merge", "experts=a={},b=c"),
        ("dsa", "workdir={}"),
    ],
)
def test_a_password_in_a_url_reaches_no_line_and_no_file(capsys, tmp_path, monkeypatch, job, field):
    monkeypatch.chdir(tmp_path)
    given = field.format("http://me:secret@127.0.0.1:9/v1")
    assert main([f"--config=configs/{job}.py", f"--config.{given}"]) == 2
    said = capsys.readouterr()
    assert "user name or password" in said.err and "secret" not in said.err + said.out and not list(tmp_path.iterdir())


URL = "https://jane:secret@hub.example/models/x"
ADAPTER = "adapter/adapter_config.json"


@pytest.mark.parametrize(
    ("file", "content", "field"),
    [
        (
            "adapter/adapter_config.json",
            {"peft_type": "LORA", "r": 8, "base_model_name_or_path": URL},
            "evaluate model.path=adapter",
        ),
        (ADAPTER, {"peft_type": "LORA", "r": URL}, "ask model.path=adapter"),
        (
            "merge.yml",
            {"merge_method": "ties", "base_model": URL, "models": [{"model": URL}]},
            "merge mergekit=merge.yml",
        ),
        ("merge.yml", {"merge_method": "ties", URL: 1}, "merge mergekit=merge.yml"),
        ("rows.jsonl", {"question": "Q", URL: 1}, "dsa data.path=rows.jsonl"),
        ("rows.jsonl", {"question": "Q", "options": ["a", "b"], "answer": "x" * 70 + URL}, "dsa data.path=rows.jsonl"),
        (
            "rows.jsonl",
            {"question": "Q", "options": ["a", "b"], "answer": "a", "images": [URL]},
            "gba:mini data.path=rows.jsonl",
        ),
        ("given.json", {"lr": URL}, "gba overrides"),
    ],
)
def test_a_password_in_a_file_is_not_quoted(capsys, tmp_path, monkeypatch, file, content, field):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(content) + "\n")
    (tmp_path / file).with_name("adapter_model.safetensors").write_bytes(safetensors.numpy.save({"x": np.zeros(1)}))
    job, setting = field.split(" ")
    given = f"--{setting}=given.json" if setting == "overrides" else f"--config.{setting}"
    name, _, preset = job.partition(":")
    config = f"--config=configs/{name}.py" + (f":{preset}" if preset else "")
    assert main([config, given, "--config.workdir=run"]) in (2, 3)
    said = capsys.readouterr()
    assert "error: " in said.err and "secret" not in said.err + said.out


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import sys; sys.exit(0)", "leaves the program"),
        ("def get_config(): exit(0)", "leaves the program"),
        ("raise ValueError('x' * 10**6)", "ValueError: xxx"),
        ("def get_config(): return 4", "not a ConfigDict"),
        ("x = 1", "defines no get_config"),
        ("(" * 10_000, "not Python"),
        ("x = '\\", "not Python"),
    ],
)
def test_a_config_that_is_none_is_one_line(capsys, tmp_path, source, reason):
    (tmp_path / "own.py").write_text(source)
    assert main([f"--config={tmp_path / 'own.py'}"]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1 and len(error) < 600


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [
        ("--config.learning_rate=1e-5", "config.lr?"),
        ("--config.num_generations=8", "config.num_samples?"),
        ("--config.max_steps=8", "config.steps?"),
        ("--config.lora_alpha=8", "config.lora.alpha?"),
        ("--lr=1e-5", "--config.lr=1e-5?"),
        ("--learning-rate=1e-5", "--config.lr=1e-5?"),
        ("--steps=10", "--config.steps=10?"),
        ("--output_dir=runs/a", "--config.workdir=runs/a?"),
    ],
)
def test_names_of_other_tools_get_ours(capsys, argument, suggestion):
    assert main(["--config=configs/gba.py", argument]) == 2
    assert f"did you mean {suggestion}" in capsys.readouterr().err


def test_every_name_of_the_package_is_there():
    package = importlib.import_module("mmedexpert_jax.config")
    assert [name for name in package.__all__ if not hasattr(package, name)] == []
