"""Loading cases: the schema's round trip, and one line for each way a row can be wrong."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmedexpert_jax.data import SPECIALTIES, load_cases
from mmedexpert_jax.errors import DataError

ROW = {
    "id": "a1",
    "question": "A 72-year-old man has a urea of 9 mmol/L. Which band?",
    "options": ["low", "high"],
    "answer": "B",
    "specialty": "AM",
    "paradigm": "analytical",
    "trace": "(1) Urea 9 > 7: 1 point. (2) So high.",
}


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def _write(tmp_path, *rows):
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def test_jsonl_and_parquet_give_the_same_cases(tmp_path):
    (tmp_path / "x.png").write_bytes(_png())
    row = {**ROW, "images": ["x.png"]}
    _write(tmp_path, row)
    (tmp_path / "pq").mkdir()
    table = pa.Table.from_pylist([{**ROW, "images": [{"bytes": _png(), "path": None}]}])
    pq.write_table(table, tmp_path / "pq" / "train.parquet")
    (a,), (b,) = load_cases(tmp_path, "train"), load_cases(tmp_path / "pq", "train")
    assert (a.id, a.options, a.answer, a.trace, a.modality) == (b.id, b.options, b.answer, b.trace, "image")
    np.testing.assert_array_equal(np.asarray(a.images[0].picture()), np.asarray(b.images[0].picture()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": None}, ("row 2", "options", "no options")),
        ({"options": {"B": "one", "C": "two"}, "answer": "B"}, ("row 2", "options", "lettered B, C;", "without a gap")),
        ({"options": {"A": "one", "C": "two"}}, ("row 2", "options", "lettered A, C;")),
        ({"options": ["one"]}, ("row 2", "options", "2 to 10")),
        ({"options": ["a", ""]}, ("row 2", "options", "empty")),
        ({"answer": "C"}, ("row 2", "answer", "'C'", "A, B")),
        ({"answer": None}, ("row 2", "answer")),
        ({"question": " "}, ("row 2", "question")),
        ({"specialty": "XX"}, ("row 2", "specialty", "AM, CAH, BS, CSI")),
        ({"paradigm": "magic"}, ("row 2", "paradigm", "bayesian")),
        ({"images": ["none.png"]}, ("row 2", "none.png")),
        ({"images": ["bad.png"]}, ("row 2", "bad.png", "decoded")),
        ({"id": "a1"}, ("row 2", "'a1'", "twice")),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, words):
    (tmp_path / "bad.png").write_bytes(_png()[:40])
    file = _write(tmp_path, ROW, {**ROW, "id": "a2", **change})
    with pytest.raises(DataError) as error:
        load_cases(file, "train", specialty="AM")
    line = str(error.value)
    assert "\n" not in line and str(file) in line and all(word in line for word in words)


@pytest.mark.parametrize("head", ["", "\ufeff"])
def test_a_text_may_hold_any_character(tmp_path, head):
    rows = [ROW | {"id": str(i), "question": f"one{mark}two"} for i, mark in enumerate("\u2028\x85\x0b\x0c\r")]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "train.jsonl").write_bytes((head + text).encode())
    assert [case.question for case in load_cases(tmp_path, "train")] == [row["question"] for row in rows]


def test_a_file_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(json.dumps(ROW | {"trace": "für"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.jsonl cannot be read as UTF-8 text .*; save it in UTF-8"):
        load_cases(tmp_path, "train")


def test_lettered_options_keep_their_letters(tmp_path):
    (case,) = load_cases(_write(tmp_path, ROW | {"options": {"B": "high", "A": "low", "C": "none"}}), "train")
    assert case.options == ("low", "high", "none")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_row_that_is_no_object_is_named(tmp_path, text):
    with pytest.raises(DataError, match="row 1"):
        load_cases(_write(tmp_path, text), "train")


def test_missing_files_and_splits_are_named(tmp_path):
    with pytest.raises(DataError, match="no such data"):
        load_cases(tmp_path / "nowhere", "train")
    _write(tmp_path, ROW)
    with pytest.raises(DataError, match=r"no split 'test'; it holds train.jsonl"):
        load_cases(tmp_path, "test")
    (tmp_path / "test.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a readable Parquet"):
        load_cases(tmp_path, "test")


def test_limit_takes_the_specialties_in_turn_and_depends_on_the_seed_alone(tmp_path):
    rows = [{**ROW, "id": f"{s}{i}", "specialty": s} for s in SPECIALTIES for i in range(9)]
    file = _write(tmp_path, *rows)
    first, again, other = (load_cases(file, "", limit=8, seed=seed) for seed in (1, 1, 2))
    assert [c.specialty for c in first] == list(SPECIALTIES) * 2
    assert first == again and first != other
    assert {c.specialty for c in load_cases(file, "", specialty="BS")} == {"BS"}
