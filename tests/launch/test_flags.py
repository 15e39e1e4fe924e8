"""The command line's sharp edges, each with its one line and without a traceback."""

import json

import pytest

from mmedexpert_jax.config.flags import parse_flags
from mmedexpert_jax.errors import ConfigError


def test_every_form_of_a_flag():
    flags = parse_flags(
        ["--config.lr=1e-6", "--config", "configs/gba.py:mini", "--config.steps", "3", "--config.fresh", "--debug"]
    )
    assert flags.config == "configs/gba.py:mini"
    assert flags.overrides == [("lr", "1e-6"), ("steps", "3"), ("fresh", True)]
    assert flags.debug and not flags.help and not flags.list_config


def test_a_value_may_hold_an_equals_sign_and_a_minus():
    assert parse_flags(["--config.experts=AM=runs/am", "--config.seed", "-1"]).overrides == [
        ("experts", "AM=runs/am"),
        ("seed", "-1"),
    ]


def test_overrides_file_comes_before_the_command_line(tmp_path):
    file = tmp_path / "o.json"
    file.write_text(json.dumps({"lr": 1e-4, "lora": {"rank": 8}, "eval.limit": 5}))
    pairs = parse_flags(["--config.lr=2", f"--overrides={file}", "--config=c.py"]).overrides
    assert pairs == [("lr", 1e-4), ("lora.rank", 8), ("eval.limit", 5), ("lr", "2")]


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("train.lr=3", "--config.train.lr=3"),
        ("config.lr=3", "--config.lr=3"),
        ("-config.lr=3", "--config.lr=3"),
        ("configs/gba.py", "--config=configs/gba.py"),
        ("extra", "stray argument 'extra'"),
        ("--confg=configs/gba.py", "--config"),
        ("--lr=3", "--config.key=value"),
        ("--debugg", "--debug"),
        ("--config.=3", "unknown flag"),
        ("--config", "needs a value"),
        ("--config=", "needs a value"),
        ("--overrides", "needs a value"),
        ("--overrides=missing.json", "missing.json"),
    ],
)
def test_what_is_not_understood_is_refused_with_a_hint(argument, hint):
    with pytest.raises(ConfigError) as refusal:
        parse_flags([argument])
    assert hint in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_empty_group_of_an_overrides_file_is_not_passed_over(tmp_path):
    (tmp_path / "o.json").write_text('{"steps": {}, "lora": {"rank": 4}}')
    assert parse_flags([f"--overrides={tmp_path / 'o.json'}"]).overrides == [("steps", {}), ("lora.rank", 4)]


def test_a_preset_that_stands_apart_is_told_its_place():
    with pytest.raises(ConfigError, match=r"stands behind a colon: configs/gba\.py:smollm2"):
        parse_flags(["--config=configs/gba.py", "smollm2"])


@pytest.mark.parametrize("text", ["{", "[1]", '"text"'])
def test_an_overrides_file_holds_one_json_object(tmp_path, text):
    (tmp_path / "o.json").write_text(text)
    with pytest.raises(ConfigError, match=r"o\.json"):
        parse_flags([f"--overrides={tmp_path / 'o.json'}"])


@pytest.mark.parametrize("argument", ["lr = 1e-5", "+lr=1e-5", "++lr=1e-5"])
def test_a_suggested_flag_can_be_typed(argument):
    with pytest.raises(ConfigError, match=r"did you mean --config\.lr=1e-5\?"):
        parse_flags([argument])
    assert parse_flags(["--config.lr = 1e-5"]).overrides == [("lr", " 1e-5")]
    with pytest.raises(ConfigError, match=r"--config\.remat=true\?"):
        parse_flags(["--remat"])
