"""Configs: lookup, presets, typed overrides, and a comment for every field."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mmedexpert_jax.config import job_config as configs
from mmedexpert_jax.config.presets import MODELS
from mmedexpert_jax.config.validate import check_fields
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.launch import console, load_config

REPOSITORY = Path(__file__).parents[2]
SPECS = [
    f"configs/{path.name}:{preset}"
    for path in sorted((REPOSITORY / "configs").glob("*.py"))
    for preset in configs.presets_of(path)
]


@pytest.mark.parametrize("spec", SPECS)
def test_every_preset_loads_and_every_field_has_a_comment(spec):
    config = load_config(spec)
    docs = configs.field_docs(configs.locate(spec))
    leaves = configs.fields(config)
    assert set(docs) >= set(leaves), f"fields without a comment: {sorted(set(leaves) - set(docs))}"
    assert config.job == Path(spec.partition(":")[0]).stem and config.preset == spec.rpartition(":")[2]
    assert "model" not in config or config.model.path == MODELS.get(
        config.preset.removesuffix("_lora"), MODELS["qwen2_vl_2b"]
    )
    json.loads(config.to_json_best_effort())


@pytest.mark.parametrize("spec", SPECS)
def test_every_field_is_read_somewhere(spec):
    source = "\n".join(path.read_text() for path in configs.PACKAGE.rglob("*.py") if path != configs.PRESETS_FILE)
    names = {key: key.rpartition(".")[2] for key in configs.fields(load_config(spec))}
    read = ".{}", 'get("{}")', '    "{}": '  # an attribute, or the key of a table whose entries are asked for by name
    assert not [key for key, name in names.items() if not any(form.format(name) in source for form in read)]


@pytest.mark.parametrize("spec", SPECS)
def test_every_field_can_be_overridden(spec):
    """No lists, no bare None: each leaf takes its own value back as text."""
    config = load_config(spec)
    for key, (kind, optional, value) in configs.fields(config).items():
        assert kind in (int, float, bool, str, tuple), key
        assert optional or value is not None, key
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert configs.convert(key, text, kind, optional, value) == value, key


def test_the_paper_presets_hold_appendix_b():
    for preset in ("qwen2_vl_2b", "lingshu_7b"):
        dsa, gba = load_config(f"configs/dsa.py:{preset}"), load_config(f"configs/gba.py:{preset}")
        assert (dsa.lora.rank, dsa.lora.alpha, dsa.lora.targets) == (16, 32, "all-linear")
        assert (dsa.epochs, dsa.lr, dsa.batch_size, dsa.accumulation, dsa.steps) == (3, 1e-6, 1, 8, 0)
        assert (gba.num_samples, gba.clip, gba.beta, gba.max_new_tokens, gba.lr) == (8, 0.2, 0.001, 1024, 1e-6)


@pytest.mark.parametrize("job", ["dsa", "gba"])
@pytest.mark.parametrize("preset", ["qwen2_vl_2b", "lingshu_7b"])
def test_the_lora_variants_differ_in_their_rate_alone(job, preset):
    paper, variant = load_config(f"configs/{job}.py:{preset}"), load_config(f"configs/{job}.py:{preset}_lora")
    assert (paper.lr, variant.lr) == (1e-6, 1e-5)
    variant.lr, variant.preset = paper.lr, paper.preset
    assert variant == paper


def test_the_pipeline_uses_the_jobs_own_configs():
    pipeline = load_config("configs/pipeline.py")
    assert pipeline.gba.num_samples == load_config("configs/gba.py").num_samples
    assert pipeline.dsa.eval.every == pipeline.gba.eval.every == -1
    assert not {"seed", "model", "workdir", "job"} & set(pipeline.gba)


def test_load_config_takes_dotted_and_nested_overrides():
    config = load_config("configs/gba.py:mini", overrides={"steps": 10, "lora.rank": 8, "eval": {"limit": 5}})
    assert (config.steps, config.lora.rank, config.eval.limit) == (10, 8, 5)
    assert load_config("configs/gba.py") == load_config("configs/gba.py:mini") == load_config("configs/gba.py:")
    with pytest.raises(AttributeError):
        config.stesp = 3


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("configs/gab.py", "did you mean configs/gba.py?"),
        ("gba", "did you mean configs/gba.py?"),
        ("nowhere.py", ", configs/dsa.py, configs/evaluate.py, "),
        ("configs/gba.py:minni", "did you mean mini?"),
        ("configs/gba.py:huge", ", qwen2_vl_2b, lingshu_7b"),
        ("configs", "no such config file"),
        ("configs.gba", "no such config file: configs.gba; did you mean configs/gba.py?"),
        ("mmedexpert_jax.configs.dsa:mini", "did you mean configs/dsa.py?"),
        ("configs/gba", "did you mean configs/gba.py?"),
    ],
)
def test_a_wrong_config_lists_what_there_is(spec, hint):
    with pytest.raises(ConfigError) as refusal:
        load_config(spec)
    assert hint in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("def get_config(:\n", "not Python"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("x = 1\n", "defines no get_config"),
        ("def get_config():\n    return {}\n", "returned dict"),
        ("PRESETS = tuple('ab')\ndef get_config(preset): ...\n", "write PRESETS out as a tuple of texts"),
        ("PRESETS = 5\ndef get_config(preset): ...\n", "write PRESETS out as a tuple of texts"),
    ],
)
def test_a_broken_config_file_is_named(tmp_path, text, hint):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(str(tmp_path / "own.py"))
    assert hint in str(refusal.value) and "own.py" in str(refusal.value)


MINE = """def get_config():
    import os
    from mmedexpert_jax.config.job_config import read_config
    os.chdir("/")
    config = read_config("configs/gba.py").unlock()
    config.rewards.functions = {functions}
    return config  # dépôt
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_a_config_file_is_read_as_python_reads_it(tmp_path, monkeypatch, encoding):
    """Notepad begins a file with a mark, and a first line may name another encoding (PEP 263)."""
    monkeypatch.chdir(tmp_path)
    named = "# -*- coding: latin-1 -*-\n" if encoding == "latin-1" else ""
    (tmp_path / "own.py").write_text(named + MINE.format(functions=("own.py:f",)), encoding=encoding)
    assert load_config("own.py").rewards.functions == ("own.py:f",)
    assert Path.cwd() == tmp_path


def test_each_of_several_values_in_an_own_config_has_the_type_of_the_field(tmp_path):
    (tmp_path / "own.py").write_text(MINE.format(functions=["own.py:f", 3]), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.rewards\.functions expects .*, got \('own.py:f', 3\)"):
        check_fields(load_config(str(tmp_path / "own.py")))


def test_a_broken_config_file_does_not_hide_the_others(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "broken.py").write_text("def get_config(:\n")
    (tmp_path / "configs" / "mine.py").write_text('"""My own."""\n\nPRESETS: tuple[str, ...] = ("small", "large")\n')
    monkeypatch.chdir(tmp_path)
    for command in (["--help"], ["completion", "words"]):
        assert console.main(command) == 0
        out = capsys.readouterr().out
        assert "mine" in out and "large" in out and "broken" in out and "gba" in out


def test_files_of_another_project_are_passed_over_and_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for name in ("merge", "latin"):
        (tmp_path / "configs" / f"{name}.py").write_text("raise SystemExit('another project')\n")
    assert load_config("configs/merge.py").job == "merge" and "configs/latin.py" not in configs.available()
    assert console.main(["latin"]) == 2 and "latin.py" not in capsys.readouterr().err
    own = "from mmedexpert_jax.config.job_config import read_config\n\n\ndef get_config():\n"
    (tmp_path / "configs" / "ask.py").write_text(
        f"{own}    return read_config({str(REPOSITORY / 'configs' / 'ask.py')!r})\n"
    )
    assert console.main(["ask", "question=Why?", "--plan"]) == 0
    assert capsys.readouterr().err == f"{tmp_path / 'configs' / 'ask.py'} is read, not the package's own of this name\n"


def test_a_yaml_file_as_config_is_told_the_way(tmp_path):
    (tmp_path / "my.yaml").write_text("lr: 1e-5\nsteps: [1\n")
    with pytest.raises(
        ConfigError, match=r"my.yaml is not Python: .*; the fields of a JSON file are read by --overrides"
    ):
        load_config(str(tmp_path / "my.yaml"))


def test_the_current_folder_comes_before_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/gba.py").job == "gba"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "gba.py").write_text(
        "from mmedexpert_jax.config import presets\n\n\ndef get_config():\n"
        "    config = presets.common('gba', 'mini')\n    config.own = 7  # a field of my own\n    return config\n"
    )
    assert load_config("configs/gba.py", {"own": "8"}).own == 8
    assert configs.field_docs(configs.locate("configs/gba.py"))["own"] == "a field of my own"


def test_an_installed_package_has_its_own_configs(tmp_path, monkeypatch):
    (tmp_path / "package" / "configs").mkdir(parents=True)
    (tmp_path / "package" / "configs" / "job.py").write_text("PRESETS = ('mini',)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configs, "PACKAGE", tmp_path / "package")
    assert list(configs.available()) == ["configs/job.py"]
    assert configs.find_config("configs/job.py") == tmp_path / "package" / "configs" / "job.py"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("stesp", "did you mean config.steps?"),
        ("rank", "did you mean config.lora.rank?"),
        ("lora.rnak", "did you mean config.lora.rank?"),
        ("lora", "is a group, not a field; it holds lora.alpha, lora.rank"),
        ("train.lrr", "--list_config"),
        ("job", "--config=configs/<job>.py:<preset>"),
    ],
)
def test_a_misspelt_key_gets_a_suggestion(key, hint):
    with pytest.raises(ConfigError) as refusal:
        load_config("configs/gba.py", {key: "3"})
    assert hint in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "1e3", 1000),
        (int, "-3", -3),
        (int, 4.0, 4),
        (int, "123456789012345678901", 123456789012345678901),
        (float, "1e-6", 1e-6),
        (float, 3, 3.0),
        (bool, "no", False),
        (bool, "Yes", True),
        (bool, "0", False),
        (bool, True, True),
        (str, "", ""),
        (str, "none", "none"),
    ],
)
def test_values_take_the_type_of_their_field(kind, text, value):
    result = configs.convert("key", text, kind)
    assert result == value and type(result) is kind


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int, "1.5"),
        (int, "ten"),
        (int, True),
        (int, "inf"),
        (int, None),
        (float, "nan"),
        (float, True),
        (float, "1e-6x"),
        (bool, "maybe"),
        (bool, 2),
        (bool, None),
        (str, 3),
        (tuple, 3),
    ],
)
def test_a_wrong_type_names_key_expected_and_got(kind, text):
    with pytest.raises(ConfigError) as refusal:
        configs.convert("some.key", text, kind)
    message = str(refusal.value)
    assert message.startswith("config.some.key expects ") and message.endswith(f"got {text!r}")


@pytest.mark.parametrize("text", ["2,4", "(2, 4)", "[2,4]", "2,4,", [2, 4], (2.0, "4")])
def test_tuples_are_written_with_commas(text):
    assert configs.convert("mesh", text, tuple, default=(1,)) == (2, 4)
    assert configs.convert("mesh", "", tuple, default=(1,)) == ()
    assert configs.convert("experts", "'a b',c", tuple, default=()) == ("a b", "c")
    assert configs.convert("rows", "GBA,Merged experts (TIES)", tuple, default=()) == ("GBA", "Merged experts (TIES)")
    assert configs.convert("images", "scan [1]", tuple, default=()) == ("scan [1]",)
    assert configs.convert("images", "'a, b.png',\"c,d\"", tuple, default=()) == ("a, b.png", "c,d")
    assert configs.convert("images", "l'une, 'tis , b", tuple, default=()) == ("l'une", "tis", "b")
    assert configs.convert("densities", (0.1, 1), tuple, default=()) == configs.convert("x", "0.1,1", tuple, default=())


def test_optional_fields_take_none_and_keep_their_type():
    config = load_config("configs/gba.py", {"clip_high": "0.28"})
    assert config.clip_high == 0.28
    configs.override(config, [("clip_high", "none")])
    assert config.clip_high is None
    configs.override(config, [("clip_high", 0.3), ("clip_high", None), ("clip_high", "1")])
    assert config.clip_high == 1.0
    with pytest.raises(ConfigError, match="a finite number or none, got 'wide'"):
        configs.override(config, [("clip_high", "wide")])
    with pytest.raises(ConfigError, match=r"config\.lr expects a finite number, got 'none'"):
        configs.override(config, [("lr", "none")])


@pytest.mark.parametrize("key", ["clip", "beta", "guided", "minibatches", "rewards.structure", "perception"])
@pytest.mark.parametrize("given", ["none", None])
def test_what_follows_the_objective_is_never_none(key, given):
    for spec, prefix in (("configs/gba.py", ""), ("configs/pipeline.py", "gba.")):
        with pytest.raises(ConfigError, match=rf"config\.{prefix}{key} expects [\w ]+, got"):
            load_config(spec, {prefix + key: given})


def test_a_choice_that_is_called_none_can_be_made():
    assert load_config("configs/gba.py", {"advantage_scale": "none"}).advantage_scale == "none"


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_the_last_of_several_overrides_wins(values):
    config = ConfigDict({"steps": 0}).lock()
    configs.override(config, [("steps", str(value)) for value in values])
    assert config.steps == values[-1]


def test_comments_beside_and_above_an_assignment(tmp_path):
    (tmp_path / "c.py").write_text(
        "def get_config():\n"
        "    config.a = 1  # beside\n"
        "    # above, on\n"
        "    # two lines\n"
        "    config.b.c = (\n        1\n    )\n"
        "    x = 1  # of another statement\n"
        "    config.d = 'text # no comment'\n"
    )
    docs = configs.field_docs(tmp_path / "c.py")
    assert docs["a"] == "beside" and docs["b.c"] == "above, on two lines" and "d" not in docs


def test_the_listing_has_key_type_value_and_doc():
    config = load_config("configs/gba.py", {"lr": "1e-6"})
    lines = configs.format_config(config, configs.field_docs(configs.locate("configs/gba.py"))).splitlines()
    table = {line.split()[0]: line for line in lines}
    assert lines[0].split() == ["key", "type", "value", "takes", "doc"]
    assert table["lr"].split()[:5] == ["lr", "float", "1e-06", "above", "0"]
    assert table["clip_high"].split()[:3] == ["clip_high", "float?", "none"]
    assert "appendix B" in table["beta"] and table["workdir"].split()[2] == '""'
    assert set(table) - {"key"} == set(configs.fields(config))


def test_a_presets_remark_is_not_the_meaning_of_a_field_and_an_own_file_has_the_jobs(tmp_path):
    assert configs.field_docs(configs.locate("configs/gba.py"))["steps"] == "optimizer steps; 0: from epochs"
    mine = tmp_path / "mine.py"
    mine.write_text("def get_config():\n    config = read_config('configs/gba.py')\n    config.lr = 1  # mine\n")
    docs = configs.field_docs(mine, "gba")
    assert docs == configs.field_docs(configs.locate("configs/gba.py")) | {"lr": "mine"}


def test_the_config_of_a_run_can_be_given_back(tmp_path):
    config = load_config("configs/gba.py", {"job": "gba", "preset": "mini", "workdir": tmp_path})
    assert config.workdir == str(tmp_path)
    with pytest.raises(ConfigError, match="preset names the config itself"):
        load_config(Path("configs/gba.py"), {"preset": "qwen2_vl_2b"})
