"""The border: hostile and broken files end in one line that names the place, or are read right."""

import json
import math
import os
import time
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError, DataError, RemoteError

DEEP = 100_000
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    rank: Annotated[int, msgspec.Meta(ge=1)]
    names: list[str] = []


@given(PLAIN)
@settings(deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("border") / "a.json"
    border.write_json(path, value)
    assert border.read_json(path) == value


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:0123456789eE.-+\\unftNaI', max_size=60).map(str.encode))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_json_or_one_line(content):
    try:
        value = border.parse_json(content, "body", error=RemoteError)
    except RemoteError as error:
        assert str(error).startswith("body") and "\n" not in str(error) and len(str(error)) < 300
    else:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * DEEP, "nested deeper"),
        ("[" * 100 + "]" * 100, "nested deeper"),
        ('{"a": 1, "a": 2}', "'a' is written twice"),
        ('{"a": NaN}', "NaN is no finite"),
        ("[1e999]", "Infinity is no finite"),
        ("[1" + "0" * 5000 + "]", "64 bits"),
        ('["\\ud800"]', "surrogate"),
        ("", "not JSON"),
        ("{", "not JSON"),
    ],
)
def test_hostile_json_is_refused_in_a_line(text, reason):
    with pytest.raises(DataError, match=f"^a.json.*{reason}") as caught:
        border.parse_json(text, "a.json")
    assert len(str(caught.value)) < 300


def test_of_many_keys_the_first_that_stands_twice_is_named_at_once():
    names = [*map(str, range(40_000)), "39999", "39998"]
    text = "{" + ", ".join(f'"{name}": 1' for name in names) + "}"
    start = time.process_time()
    with pytest.raises(DataError, match="the key '39998' is written twice"):
        border.parse_json(text, "a.json")
    assert time.process_time() - start < 2  # some 0.03; a count of the list for each of its names took 20


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"rank": "16"}, "key rank: must be int; found '16'"),
        ({"rank": 0}, "key rank: must be int >= 1; found 0"),
        ({"rank": 1, "names": ["a", 4]}, r"key names\[1\]: must be str; found 4"),
        ({"rank": 1, "alpha": 2}, "has the unknown key alpha"),
        ({}, "lacks the key rank"),
        ([], "must be object; found"),
        ({"rank": True}, "must be int; found True"),
        ({"rank": "x" * 10**6}, "found 'xxx.*[.][.][.]"),
    ],
)
def test_a_schema_names_key_and_value(tmp_path, value, reason):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=reason) as caught:
        border.read_json(path, Settings, error=ConfigError)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "'a' is written twice"),
        ("a: &x [*x]", "nested deeper"),
        ("a: .nan", "no finite"),
        ("[" * 5000, "nested deeper|not YAML"),
        ("!!python/object/apply:os.system [ls]", "not YAML"),
        ("? [a]\n: 1", "no scalar"),
        ("a: [", "not YAML"),
        (
            "x0: &x0 [1,1]\n" + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12)),
            "values",
        ),
    ],
)
def test_hostile_yaml_is_refused_in_a_line(tmp_path, text, reason):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        border.read_yaml(path)


def test_files_that_are_none(tmp_path):
    for path in (tmp_path, tmp_path / "missing", "a\0b", "x" * 10_000, "/dev/zero"):
        for read in (border.read_json, border.read_yaml, lambda p: list(border.read_jsonl(p))):
            with pytest.raises(DataError) as caught:
                read(path)
            assert len(str(caught.value)) < 400


def test_a_file_longer_than_the_limit_is_not_held(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b'"' + b"x" * 5000)
    with pytest.raises(DataError, match="line 2 is longer than 100 bytes"):
        list(border.read_jsonl(path, limit=100))
    with pytest.raises(DataError, match="longer than the 100 bytes"):
        border.read_json(path, limit=100)


def test_what_is_not_finite_is_not_written(tmp_path):
    path = tmp_path / "a.json"
    border.write_json(path, {"a": 1.0})
    for value in (math.nan, math.inf):
        with pytest.raises(DataError, match="not finite"):
            border.write_json(path, {"a": [value]})
        assert not border.finite({"a": [value]})
    assert border.read_json(path) == {"a": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_cells_are_no_formulas(tmp_path):
    border.write_csv(tmp_path / "a.csv", ["id", "n"], [{"id": "=cmd()", "n": -1.5}, {"id": "-2", "n": "@x"}])
    assert (tmp_path / "a.csv").read_text() == "id,n\n'=cmd(),-1.5\n-2,'@x\n"


def test_shown_is_short_whatever_it_is():
    deep: Any = []
    for _ in range(DEEP):
        deep = [deep]
    for value in (deep, "x\n" * 10**6, 10**6000, {"a": ["y" * 1000] * 50}):
        text = border.shown(value)
        assert len(text) <= border.SHOWN and "\n" not in text


def test_the_working_folder_is_kept_and_may_be_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with border.same_folder():
        os.chdir("/")
    assert os.getcwd() == str(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with border.same_folder():
        os.chdir("/")
    assert os.getcwd() == "/"
