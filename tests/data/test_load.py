"""Loading cases: the schema's round trip, and one line for each way a row can be wrong."""

import difflib
import errno
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmedexpert_jax.data import (
    SPECIALTIES,
    benchmarks,
    case_files,
    case_rows,
    check_data,
    convert_data,
    load_cases,
    prompts,
    question_text,
    tables,
)
from mmedexpert_jax.data.places import InFolder
from mmedexpert_jax.errors import DataError, ResourceError
from mmedexpert_jax.gba import rewards
from mmedexpert_jax.medeval import scoring
from mmedexpert_jax.mmedexpert.sources import collect
from mmedexpert_jax.processing import ImageRef, open_image

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
        ({"options": ["gout", "flu", "gout "]}, ("row 2", "options", "the same text")),
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


@pytest.mark.parametrize(("options", "words"), [(["B. low", "A. high"], "B, A"), (["low", "nan"], "an empty cell")])
def test_options_that_may_mean_two_things_are_refused(tmp_path, options, words):
    with pytest.raises(DataError, match=f"row 1, key options: .*{words}"):
        load_cases(_write(tmp_path, ROW | {"options": options}), "train")
    table = tmp_path / "a.csv"
    table.write_text(f"question,options,answer\nWhich?,{'; '.join(options)},A\n")
    if "nan" not in options:
        with pytest.raises(DataError, match=words):
            convert_data.convert(table, tmp_path / "made")


@pytest.mark.parametrize("head", ["", "\ufeff"])
def test_a_text_may_hold_any_character(tmp_path, head):
    rows = [ROW | {"id": str(i), "question": f"one{mark}two"} for i, mark in enumerate("\u2028\x85\x0b\x0c\r")]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "train.jsonl").write_bytes((head + text).encode())
    assert [case.question for case in load_cases(tmp_path, "train")] == [row["question"] for row in rows]


def test_a_file_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(json.dumps(ROW | {"trace": "für"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.jsonl, row 1: not UTF-8 text .*; save it in UTF-8"):
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


def test_a_limit_looks_at_each_case_a_few_times_however_many_specialties_there_are():
    looks = []

    class Counted:
        def __init__(self, number):
            self.number = number

        @property
        def specialty(self):
            looks.append(self.number)
            return f"ward {self.number % 97}"

    cases = [Counted(number) for number in range(1000)]
    order = np.random.default_rng(3).permutation(1000).tolist()
    wards = [[n for n in order if n % 97 == ward] for ward in range(97)]  # in turn, as each is named first
    wanted = [ward[turn] for turn in range(11) for ward in wards if turn < len(ward)]
    for limit in (1, 96, 98, 999):
        assert [case.number for case in case_files._subset(cases, limit, 3)] == wanted[:limit]
    assert len(looks) <= 4 * 2 * len(cases)


def test_a_key_of_ones_own_is_compared_with_those_known_once_a_file(tmp_path, monkeypatch):
    compared = []
    close = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", lambda key, *rest: compared.append(key) or close(key, *rest))
    load_cases(_write(tmp_path, *(ROW | {"id": str(i), "Ward of mine": i} for i in range(50))), "train")
    assert compared == ["ward of mine"]
    with pytest.raises(DataError, match="key Questoin: not a key of a row; call it question"):
        load_cases(_write(tmp_path, {"Questoin" if key == "question" else key: ROW[key] for key in ROW}), "train")


def _jpeg(seed: int, side: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_an_open_question_is_asked_answered_and_scored(tmp_path):
    row = {"id": "o1", "question": "What is the finding?", "answer": "Pleural effusion", "trace": "(1) Blunt. (2) So."}
    (case,) = load_cases(_write(tmp_path, row | {"specialty": "radiology", "difficulty": 3}), "train")
    assert (case.kind, case.options, case.specialty, case.columns) == ("open", (), "radiology", {"difficulty": 3})
    asked = prompts.conversation(case)[0]["content"][-1]["text"]
    assert "letter" not in asked and "the answer in a few words inside <answer>" in asked
    assert prompts.completion(case) == "<think>(1) Blunt. (2) So.</think><answer>Pleural effusion</answer>"
    assert rewards.accuracy(case, "<think>x</think><answer>pleural  effusion.</answer>") == 1.0
    assert rewards.accuracy(case, "<think>pleural effusion</think><answer>A</answer>") == 0.0
    item = benchmarks.from_case(case)
    assert scoring.score(item, "<think>x</think><answer>Pleural effusion</answer>").right


@pytest.mark.parametrize("said", ["Gout", "gouty arthritis", "podagra", "pseudogout"])
def test_evaluation_calls_right_what_the_reward_does(tmp_path, said):
    row = {"id": "o1", "question": "Swollen big toe. Diagnosis?", "answer": "Gout", "ward": "3"}
    _write(tmp_path, row | {"accepted": ["gouty arthritis", "podagra"]})
    (case,) = load_cases(tmp_path, "train")
    (item,) = benchmarks.load_entry(f"mmedexpert_mini@train={tmp_path}").items
    right, text = said != "pseudogout", f"<think>x</think><answer>{said}</answer>"
    assert rewards.accuracy(case, text) == right
    assert [scoring.score(one, text).right for one in (item, benchmarks.from_case(case))] == [right, right]
    assert "ward" not in item.columns  # which a kit may give a meaning


@pytest.mark.parametrize(
    ("cell", "others"),
    [
        ("podagra", ("podagra",)),
        ("podagra; gouty arthritis", ("podagra", "gouty arthritis")),
        ('["podagra", 38.0]', ("podagra", "38")),
        (["podagra", None, 38.5], ("podagra", "38.5")),
        ([], ()),
        *((verdict, ()) for verdict in (True, "yes", "No", "1", "accepted", "True", "nan")),  # of another meaning
    ],
)
def test_what_else_is_right_may_be_a_text_as_tables_have_lists(tmp_path, cell, others):
    row = {"id": "o1", "question": "Swollen big toe. Diagnosis?", "answer": "Gout", "accepted": cell}
    (case,) = load_cases(_write(tmp_path, row), "train")
    assert case.golds == ("Gout", *others)
    choice = row | {"options": ["a", "b"], "answer": "B"}
    assert load_cases(_write(tmp_path, choice), "train")[0].golds == ("B",)  # a letter is the only key of a choice


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "AB", "options": ["a", "b", "c"]}, ("key answer", "'AB'")),
        ({"answer": "", "options": ["a", "b"]}, ("key answer",)),
        ({"image": "x.png"}, ("key image: not a key of a row; call it images",)),
        ({"optoins": ["a", "b"], "options": None}, ("key optoins", "call it options")),
        ({"choices": ["a", "b"], "options": None}, ("key choices", "call it options")),
        ({"options": 4}, ("key options", "2 to 10")),
        ({"options": "ab"}, ("key options", "2 to 10")),
        ({"options": [1, 2]}, ("key options", "2 to 10")),
        ({"options": {"A": "x", "B": None}}, ("key options", "2 to 10")),
        ({"paradigms": 5}, ("key paradigms", "a list")),
        ({"paradigms": [[]]}, ("key paradigms", "[]")),
        ({"trace": 7}, ("key trace", "got 7")),
        ({"task": []}, ("key task", "got []")),
        ({"id": "x" * 300}, ("key id: 300 characters",)),
        ({"id": 1}, ("key id", "got 1")),
        ({"specialty": "am"}, ("key specialty", "'am'", "AM, CAH")),
        ({"specialty": ["AM"]}, ("key specialty",)),
        ({"images": "x.png"}, ("key images: a list",)),
        ({"images": [5]}, ("key images", "got 5")),
        ({"images": [{"bytes": 5}]}, ("key images", "got 5")),
        ({"images": [{"path": "x.png", "windw": 1}]}, ("key images", "windw")),
        ({"images": [{"path": "x.png", "slices": 0}]}, ("key images, slices",)),
        ({"images": [{"path": "x.png", "window": "lungs"}]}, ("key images, window",)),
        ({"images": ["data:image/png;base64,!!"]}, ("key images", "base64")),
        ({"images": ["https://example.org/x.png"]}, ("key images", "download it")),
        ({"images": ["x" * 5000]}, ("key images",)),
        ({"images": ["\u0000"]}, ("key images",)),
    ],
)
def test_a_field_of_another_kind_is_one_short_line(tmp_path, change, words):
    file = _write(tmp_path, ROW | change)
    with pytest.raises(DataError) as error:
        load_cases(file, "train")
    line = str(error.value)
    assert "\n" not in line and len(line) < len(str(file)) * 2 + 300 and f"{file}, row 1" in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "text", ['{"id": ' + "[" * 100_000, '{"id": NaN}', '{"id": 1e999}', '{"id": "a", "id": "b"}', '{"id": "\\ud800"}']
)
def test_hostile_json_is_one_line(tmp_path, text):
    with pytest.raises(DataError, match=r"train\.jsonl, row 1") as error:
        load_cases(_write(tmp_path, text), "train")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
def test_nan_in_json_is_an_empty_cell_as_pandas_writes_it(tmp_path, name):
    rows = [ROW | {"id": str(i), "age": float("nan"), "task": float("nan")} for i in range(2)]
    text = json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(text)
    assert [case.columns.get("age") for case in load_cases(tmp_path / name, "train")] == [None, None]
    (tmp_path / name).write_text(text.replace("NaN", "Infinity"))
    with pytest.raises(DataError, match="Infinity is no finite number"):
        load_cases(tmp_path / name, "train")


def test_other_keys_are_named_once_and_reach_the_rewards(tmp_path, caplog):
    rows = [ROW | {"id": str(i), "difficulty": i, "source": "own"} for i in range(3)]
    cases = load_cases(_write(tmp_path, *rows), "train")
    assert [case.columns["difficulty"] for case in cases] == [0, 1, 2]
    load_cases(tmp_path / "train.jsonl", "train")  # as a plan and a trainer do after each other
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path / 'train.jsonl'}: keys that only rewards of your own read: difficulty"
    ]


def test_images_are_decoded_when_asked_for_and_only_those_that_are_kept(tmp_path, monkeypatch):
    opened = []
    true_open = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *a, **k: opened.append(file) or true_open(file, *a, **k))
    rows = []
    for i in range(20):
        (tmp_path / f"{i}.jpg").write_bytes(_jpeg(i))
        rows.append(ROW | {"id": str(i), "images": [f"{i}.jpg"]})
    cases = load_cases(_write(tmp_path, *rows), "train", limit=4)
    assert len(opened) == 4
    decoded = []
    monkeypatch.setattr(ImageRef, "picture", lambda self: decoded.append(self) or true_picture(self))
    true_picture = open_image
    load_cases(tmp_path, "train")
    assert not decoded
    assert cases[0].images[0].picture().size == (64, 64)


def test_a_cut_jpeg_is_found_when_it_is_loaded(tmp_path):
    (tmp_path / "x.jpg").write_bytes(_jpeg(0, 200)[:4000])
    with pytest.raises(DataError, match=r"row 1, key images: x\.jpg"):
        load_cases(_write(tmp_path, ROW | {"images": ["x.jpg"]}), "train")


def test_a_large_row_group_is_read_from_a_memory_map(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = [[{"bytes": _jpeg(10 * i + n), "path": None} for n in range(i % 3)] for i in range(60)]
    rows = [ROW | {"id": str(i), "images": images[i] or None} for i in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    small = [[image.open() for image in case.images] for case in load_cases(tmp_path, "train")]
    assert small == [[image["bytes"] for image in row] for row in images] and not (tmp_path / "cache").exists()
    tables._column.cache_clear()
    monkeypatch.setattr(tables, "GROUP_BYTES", 1000)
    assert [[image.open() for image in case.images] for case in load_cases(tmp_path, "train")] == small
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 1
    tables._column.cache_clear()


def _large_group(tmp_path, monkeypatch):
    """A cell of a Parquet file whose row group counts as large, its bytes, and the folder of copies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "GROUP_BYTES", 1)
    images = [_jpeg(seed) for seed in range(40)]
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
    tables._column.cache_clear()
    cell = tables.ParquetCell(InFolder(tmp_path / "x.parquet"), "image", 0, 7)
    return cell, images[7], tmp_path / "cache" / "mmedexpert-jax" / "tables"


def test_threads_that_meet_at_a_large_row_group_share_one_copy(tmp_path, monkeypatch):
    cell, wanted, folder = _large_group(tmp_path, monkeypatch)
    opened, new_file = [], pa.ipc.new_file
    monkeypatch.setattr(pa.ipc, "new_file", lambda *a: opened.append(a) or new_file(*a))
    start = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: start.wait() >= 0 and cell(), range(6)))
    assert found == [wanted] * 6 and len(opened) == 1
    assert [file.suffix for file in folder.iterdir()] == [".arrow"]
    tables._column.cache_clear()


def test_a_copy_of_a_large_row_group_that_a_full_disk_cut_off_is_taken_away(tmp_path, monkeypatch):
    cell, wanted, folder = _large_group(tmp_path, monkeypatch)
    full, write_batch = [True], pa.RecordBatchFileWriter.write_batch

    class Full(pa.RecordBatchFileWriter):
        def write_batch(self, batch, *rest):
            write_batch(self, batch, *rest)
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pa.ipc, "new_file", Full)
    with pytest.raises(ResourceError, match="no space left on device; free some space"):
        cell()
    assert not list(folder.iterdir())
    full.clear()
    assert cell() == wanted
    tables._column.cache_clear()


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_a_table_of_too_many_columns_or_two_of_one_name_is_one_line(tmp_path, suffix, mark):
    file = tmp_path / f"x.{suffix}"
    for names, said in (
        ([f"c{n}" for n in range(10_001)], "10001 columns; a table has at most 10000"),
        (["a", "b", "", "", "c", "b", "a"], "two columns are called 'a'; rename one"),
    ):
        file.write_text(mark.join(names) + "\n")
        with pytest.raises(DataError, match=said):
            list(tables.read(InFolder(file), str(file)))


QUESTION = "What is seen?"
FOREIGN = {
    "messages": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": "<think>(1) Air.</think><answer>Pneumothorax</answer>"},
        ],
        "images": ["x.png"],
    },
    "trl": {"prompt": [{"role": "user", "content": QUESTION}], "solution": "Pneumothorax", "images": ["x.png"]},
    "completion": {"prompt": QUESTION, "completion": "Pneumothorax", "image": "x.png"},
    "verl": {
        "data_source": "own",
        "prompt": [{"role": "user", "content": f"<image>{QUESTION}"}],
        "images": [{"path": "x.png"}],
        "reward_model": {"style": "rule", "ground_truth": "Pneumothorax"},
        "extra_info": {"index": 1},
    },
    "easyr1": {"problem": f"<image>{QUESTION}", "answer": "Pneumothorax", "images": ["x.png"]},
    "llava": {
        "id": "7",
        "image": "x.png",
        "conversations": [
            {"from": "human", "value": f"<image>\n{QUESTION}"},
            {"from": "gpt", "value": "Pneumothorax"},
        ],
    },
    "ours": {"id": "8", "question": f"<image>{QUESTION}", "answer": "Pneumothorax", "images": ["x.png"]},
    "responses": {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": QUESTION}, {"type": "input_image", "image_url": "x.png"}],
            },
            {"role": "assistant", "content": [{"type": "output_text", "text": "Pneumothorax"}]},
        ]
    },
    "nulls": {  # as datasets stores parts of several kinds, and bare ones beside the row's images
        "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Pneumothorax", "image": None}]},
        ],
        "images": ["x.png"],
    },
    "alpaca": {"instruction": QUESTION, "input": "", "output": "Pneumothorax", "images": ["x.png"]},
    "openai": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": "x.png"}}],
            },
            {"role": "assistant", "content": "Pneumothorax"},
        ]
    },
}


@pytest.mark.parametrize("form", FOREIGN)
def test_rows_of_other_trainers_are_read(tmp_path, form):
    (tmp_path / "x.png").write_bytes(_png())
    (case,) = load_cases(_write(tmp_path, FOREIGN[form]), "train")
    assert (case.question, case.answer, case.kind, len(case.images)) == (QUESTION, "Pneumothorax", "open", 1)
    assert case.trace == ("(1) Air." if form == "messages" else "")


def test_a_ground_truth_of_several_texts_is_an_answer_and_what_else_is_accepted(tmp_path):
    truths = [["Asthma", "Bronchial asthma", ""], {"target": ["Asthma", "Bronchial asthma"]}]
    rows = [{"prompt": "What is it?", "reward_model": {"style": "rule", "ground_truth": truth}} for truth in truths]
    rows += [{"prompt": "What is it?", "ground_truth": truths[0]}]
    for case in load_cases(_write(tmp_path, *rows), "train"):
        assert (case.answer, case.golds) == ("Asthma", ("Asthma", "Bronchial asthma"))
    choice = {"prompt": "Which?\nA. low\nB. high", "ground_truth": ["B", "high"]}
    (case,) = load_cases(_write(tmp_path, choice), "train")
    assert (case.answer, case.golds) == ("B", ("B",))


def test_what_rewards_of_other_trainers_read_reaches_ours(tmp_path, caplog):
    solution, model = "<think>a</think><answer>Asthma</answer>", {"style": "rule", "ground_truth": "Asthma"}
    rows = [
        {"problem": "What is it?", "answer": "Asthma", "solution": solution},
        {"prompt": "What is it?", "reward_model": model, "data_source": "own"},
    ]
    first, second = load_cases(_write(tmp_path, *rows), "train")
    assert first.columns == {"solution": solution}
    assert second.columns == {"reward_model": model, "data_source": "own"}
    assert caplog.messages[-1].endswith("keys that only rewards of your own read: data_source")


@pytest.mark.parametrize("label", [{"label": False}, {"kto_tag": False}, {"label": "False"}])
def test_an_answer_that_was_rejected_is_no_reference(tmp_path, label):
    for row in (
        {"prompt": "What is it?", "completion": "COPD"},
        {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "COPD"}]},
    ):
        with pytest.raises(DataError, match=r"row 1, key \w+: false, so that the answer .*convert-data"):
            load_cases(_write(tmp_path, row | label), "train")
        name = next(iter(label))
        (case,) = load_cases(_write(tmp_path, row | {name: True}), "train")
        assert case.answer == "COPD" and case.columns[name] is True
    (case,) = load_cases(_write(tmp_path, {"prompt": "Is it?", "answer": "no"} | label), "train")
    assert case.answer == "no"  # `label` is not about it


def test_a_label_that_is_the_answer_no_is_no_verdict_on_it(tmp_path):
    (case,) = load_cases(_write(tmp_path, {"instruction": "Is it?", "output": "No", "label": False}), "train")
    assert case.answer == "No"
    for row in ({"prompt": "Is it?", "label": False}, {"instruction": "Is it?", "kto_tag": False}):
        with pytest.raises(DataError, match="was rejected"):
            load_cases(_write(tmp_path, row | {"response": "No"}), "train")


def test_lettered_options_in_a_foreign_question_make_a_choice(tmp_path):
    text = "Which band?\nOptions:\nA. low\nB. high\nAnswer with the letter."
    rows = [{"problem": text, "answer": answer} for answer in ("B", r"\boxed{B}", "high", "<answer>B. high</answer>")]
    for case in load_cases(_write(tmp_path, *rows), "train"):
        assert (case.options, case.answer) == (("low", "high"), "B") and case.question.startswith("Which band?")
    (case,) = load_cases(_write(tmp_path, {"problem": text, "answer": "medium"}), "train")
    assert case.kind == "open" and "A. low" in case.question


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": "hello"}, "key messages: a list of turns"),
        ({"prompt": "Q?", "chosen": "a", "rejected": "b"}, "two answers: give its question as prompt and the chosen"),
        ({"chosen": [{"role": "user", "content": "Q?"}], "rejected": []}, "key question: there is none; a row of pref"),
        ({"text": "hello"}, "a text alone asks nothing"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "no turns of tools"),
        ({"prompt": "Q?\nA. low\nB. high", "ground_truth": ["A", "B"]}, "names 2 options; a case has one answer"),
        ({"messages": [{"role": "user", "content": "Hi"}] * 2}, "2 user's"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "'robot'"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no answer"),
        ({"messages": [{"role": "user", "content": 5}]}, "content must be text"),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "no answer"),
        ({"problem": 5, "answer": "x"}, "key problem"),
        ({"problem": "x", "answer": {"a": 1}}, "key answer"),
        ({"problem": "<image><image>x", "answer": "y", "images": ["x.png"]}, "<image> stands 2 times, for 1 images"),
        ({"problem": "<image>x", "answer": "y"}, "<image> stands 1 times, for 0 images"),
        ({"problem": "<video>x", "answer": "y", "videos": ["x.mp4"]}, "videos are not read"),
        ({"problem": "x", "answer": "y", "clip": {"path": "x.MP4"}}, "key clip: videos are not read"),
        (
            {"problem": "x", "answer": "y", "image_paths": ["x.PNG"]},
            "key image_paths: not a key of a row; call it images",
        ),
        ({"problem": "x", "answer": "y", "scan": [{"url": "data:image/png;base64,"}]}, "key scan: not a key"),
        ({"id": "1", "question": "x", "answer": "y", "radiograph": "a/b.nii.gz"}, "call it images"),
        (
            {"id": "1", "question": "x", "answer": "y", "rationales": "so"},
            "key rationales: not a key of a row; call it trace",
        ),
        ({"id": "1", "question": "x", "answer": "y", "trace": "<think>so</think>"}, "key trace: holds <think>"),
        ({"id": "1", "question": "<image>x", "answer": "y"}, "<image> stands 1 times, for 0 images"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "path": "x.png", "max_pixels": 9}, {"type": "text", "text": "x"}],
                    },
                    {"role": "assistant", "content": "x"},
                ]
            },
            "not max_pixels",
        ),
    ],
)
def test_a_foreign_row_that_is_no_case_is_one_line(tmp_path, row, words):
    with pytest.raises(DataError, match="row 1") as error:
        load_cases(_write(tmp_path, row), "train")
    assert words in str(error.value) and "\n" not in str(error.value)


CELLS = "id,question,answer\n1,What is it?,{}flu\n2,What was it?,gout\n3,Which?,lupus\n"


ASKED = "Which score?\nA. one\nB. two\nC. three"
TURN, CLEAR = {"role": "user", "content": ASKED}, {"role": "user", "content": "Which valve?"}


@pytest.mark.parametrize(
    ("turn", "answer", "trace"),
    [
        ({"content": "B", "reasoning_content": "Two."}, "B", "Two."),
        ({"content": "Aortic", "thinking": "It leaks."}, "Aortic", "It leaks."),
        ({"content": "<think>It leaks.</think>\n\nAortic"}, "Aortic", "It leaks."),
        ({"content": "It leaks.\n</think>\nAortic"}, "Aortic", "It leaks."),  # R1's template opens it in the prompt
        ({"content": "Two.</think>The answer is B."}, "B", "Two."),
        ({"content": "<reasoning>Two.</reasoning><answer>B</answer>"}, "B", "Two."),
        ({"content": "<think>x</think><answer>Aortic</answer>"}, "Aortic", "x"),
    ],
)
def test_reasoning_beside_and_before_an_answer_is_its_trace_and_no_part_of_it(tmp_path, turn, answer, trace):
    asked = TURN if answer == "B" else CLEAR
    row = {"messages": [asked, {"role": "assistant"} | turn]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    (case,) = load_cases(tmp_path, "train")
    assert (case.answer, case.trace, bool(case.options)) == (answer, trace, answer == "B")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"messages": [TURN, {"role": "assistant", "content": "The answer is A."}], "answer": "B"},
            "messages: answers A",
        ),
        ({"problem": ASKED, "answer": "A", "reward_model": {"ground_truth": "B"}}, "key reward_model: answers B"),
        ({"problem": ASKED, "answer": "B. three"}, "the letter of another option than its text"),
        ({"problem": ASKED, "answer": "A, C"}, "names several options"),
        ({"problem": ASKED, "answer": "AC"}, "names several options"),
        ({"problem": ASKED, "solution": "<think>Two. B"}, "is reasoning alone"),
        ({"prompt": "How many?", "options": ["1", "2", "3"], "answer": 1}, "1 may be an option's text or its number"),
        ({"messages": [{"role": "assistant", "content": "Hi."}, TURN], "answer": "B"}, "stands before the question"),
        (
            {"question": "Which?", "options": ["B. two", "A. one"], "answer": "B"},
            "they begin with B, A; put them in the order",
        ),
    ],
)
def test_a_row_that_says_two_things_of_its_answer_is_refused(tmp_path, row, words):
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": "1"} | row))
    with pytest.raises(DataError, match=rf"row 1, key .*{re.escape(words)}"):
        load_cases(tmp_path, "train")


@pytest.mark.parametrize("solution", ["<think>Not A.</think><answer>B</answer>", "A is low, C is high. " * 20, "two"])
def test_answers_of_a_row_that_agree_and_prose_about_them_are_no_contradiction(tmp_path, solution):
    (tmp_path / "train.jsonl").write_text(json.dumps({"problem": ASKED, "answer": "B", "solution": solution}))
    assert load_cases(tmp_path, "train")[0].answer == "B"


@pytest.mark.parametrize(("suffix", "where"), [("csv", "line 2"), ("tsv", "row 1")])
def test_a_quote_that_is_never_closed_swallows_no_rows_in_silence(tmp_path, suffix, where):
    text = CELLS.replace(",", "\t") if suffix == "tsv" else CELLS
    file = tmp_path / f"train.{suffix}"
    file.write_text(text.format('"'))
    with pytest.raises(DataError, match=rf"{where}: not .SV \(a quote opens a cell and is never closed\)"):
        load_cases(file, "train")
    file.write_text(text.format("") + ("\t\t\n" if suffix == "tsv" else ",,\n"))
    assert [case.answer for case in load_cases(file, "train")] == ["flu", "gout", "lupus"]


def test_a_json_file_may_hold_cases_by_id_or_a_single_one(tmp_path):
    row = {key: value for key, value in ROW.items() if key != "id"}
    shapes = {
        "by id": {"q1": row, "q2": row},
        "pandas, by row": {"0": row | {"id": "q1"}, "1": row | {"id": "q2"}},
        "pandas, by column": {key: {"0": value, "1": value} for key, value in row.items()}
        | {"id": {"0": "q1", "1": "q2"}},
    }
    for shape in shapes.values():
        (tmp_path / "train.json").write_text(json.dumps(shape))
        cases = load_cases(tmp_path, "train")
        assert [(case.id, case.answer, case.options) for case in cases] == [
            (id, "B", ("low", "high")) for id in ("q1", "q2")
        ]
    (tmp_path / "train.json").write_text(json.dumps(ROW))
    assert [case.id for case in load_cases(tmp_path, "train")] == ["a1"]


@pytest.mark.parametrize("options", [["low", "high"], {"B": "high", "A": "low"}])
@pytest.mark.parametrize("answer", ["B", "high", r"\boxed{\text{B}}"])
def test_options_beside_a_foreign_question_are_its_options(tmp_path, options, answer):
    (case,) = load_cases(
        _write(tmp_path, {"id": 0, "problem": "Which band?", "options": options, "answer": answer}), "train"
    )
    assert (case.id, case.question, case.options, case.answer) == ("0", "Which band?", ("low", "high"), "B")
    gap = {"problem": "Which?", "options": {"A": "low", "C": "high", "D": "middle"}, "answer": "C"}
    with pytest.raises(DataError, match=r"lettered A, C, D; letter them A, B, \.\.\. without a gap"):
        load_cases(_write(tmp_path, gap), "train")
    with pytest.raises(DataError, match="key answer: 'middle' is not among A, B"):
        load_cases(_write(tmp_path, {"problem": "Which?", "options": options, "answer": "middle"}), "train")


@pytest.mark.parametrize(
    "text",
    [
        "Which band?\n\nA. low\n\nB. high",
        "Which band?\n- A. low\n- B. high",
        "Which band?\n**A.** low\n**B.** high",
        "Which band?\na) low\nb) high",
        "Which band?\n(a) low\n(b) high",
    ],
)
def test_lettered_options_are_read_as_people_write_them(tmp_path, text):
    (case,) = load_cases(_write(tmp_path, {"problem": text, "answer": "b"}), "train")
    assert (case.question, case.options, case.answer) == ("Which band?", ("low", "high"), "B")
    (case,) = load_cases(_write(tmp_path, {"problem": text, "answer": "medium"}), "train")
    assert (case.question, case.options) == (text, ())  # a list within an open question stays as it was


def test_a_box_may_hold_braces(tmp_path):
    for answer, wanted in ((r"so \boxed{\text{Asthma}}", "Asthma"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}")):
        (case,) = load_cases(_write(tmp_path, {"problem": "Which?", "answer": answer}), "train")
        assert case.answer == wanted


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nid;question;options;images;answer\n1;a, b;;;x y\n",
        '\ufeff"sep=|"\r\nid|question|options|answer\r\n1|a, b||x y\r\n',
        "id|question|options|answer\n1|a, b||x y\n",
        ',id,question,answer\n0,1,"a, b",x y\n',  # the numbers of rows have no name
    ],
)
def test_a_spreadsheet_may_name_or_show_its_separator(tmp_path, text):
    (tmp_path / "train.csv").write_text(text, newline="")
    (case,) = load_cases(tmp_path, "train")
    assert (case.question, case.answer, dict(case.columns)) == ("a, b", "x y", {})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", "My exam\nid,question,answer\n", "3 cells under 1 columns ('My exam'); the first line of a table"),
        ("x.jsonl", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer; run git lfs pull"),
        ("x.json", "<!DOCTYPE html><html>", "is a web page"),
        ("x.csv", "PK\x03\x04sheet", "a spreadsheet's own file"),
        ("x.jsonl", "PAR1", "is a Parquet file"),
        ("x.tsv", "id,question\n", "no tab in its first line"),
        ("x.jsonl", '{"id": "1"},\n', "a line holds one whole object"),
        ("x.jsonl", '[{"id": "1"}]', "an array of rows is read from .json"),
        ("x.jsonl", '{"question": "q", "answer": "b", "id": "1"}', "no options for the answer 'b'"),
        ("x.jsonl", json.dumps({"id": "1", "question": "q", "options": [*"abcdefghijk"], "answer": "A"}), "11 of them"),
    ],
)
def test_a_file_that_is_no_such_table_says_what_it_is(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        load_cases(tmp_path / name, "train")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_options_that_carry_their_letters_lose_them_and_maps_of_parquet_are_read(tmp_path):
    made = pa.map_(pa.string(), pa.string())
    options = pa.array([[("A", "A. gout"), ("B", "B. flu")]], made)
    table = pa.table({"id": ["1"], "question": ["q"], "options": options, "answer": ["B"]})
    pq.write_table(table, tmp_path / "train.parquet")
    assert load_cases(tmp_path, "train")[0].options == ("gout", "flu")


def test_a_picture_is_found_by_its_name_in_either_form_of_unicode(tmp_path):
    composed, parted = "R\u00f6ntgen.png", "Ro\u0308ntgen.png"
    for there, named in ((composed, parted), (parted, composed)):
        folder = tmp_path / str(len(there))
        folder.mkdir()
        Image.new("RGB", (9, 9)).save(folder / there)
        row = {"id": "1", "question": "q", "answer": "x y", "images": [named]}
        (folder / "train.jsonl").write_text(json.dumps(row))
        assert load_cases(folder, "train")[0].images[0].picture().size == (9, 9)


WHOLE = {
    "id": "1",
    "question": "Which?",
    "options": ["gout", "flu"],
    "answer": "A",
    "specialty": "AM",
    "trace": "(1) x.",
}
OPEN = {key: value for key, value in WHOLE.items() if key != "options"} | {"answer": "gout"}


def case(row):
    return case_rows.case_of(row, "here", 1, Path("."))


@pytest.mark.parametrize("empty", ["nan", "NaN", " <NA> ", "\u200b", "\ufeff "])
def test_a_cell_that_is_empty_as_pandas_writes_it_is_no_text(empty):
    for row in (WHOLE | {"question": empty}, WHOLE | {"id": empty}, OPEN | {"answer": empty}):
        with pytest.raises(DataError, match="a non-empty text is needed"):
            case(row)
    kept = case(WHOLE | {"trace": empty, "specialty": empty, "task": empty, "paradigm": empty})
    assert (kept.trace, kept.specialty, kept.task, kept.paradigm) == ("", "", "", "")
    assert case(OPEN | {"answer": "nanism"}).answer == "nanism" and case(WHOLE | {"trace": "nan is NaN"}).trace


@pytest.mark.parametrize("tag", ["</THINK>", "<Answer>", "< answer >", "</answer>"])
def test_tags_of_any_case_are_refused_in_a_trace_and_an_open_answer(tag):
    with pytest.raises(DataError, match="key trace: holds"):
        case(WHOLE | {"trace": f"It is A.{tag} A"})
    with pytest.raises(DataError, match="key answer: holds"):
        case(OPEN | {"answer": f"gout{tag}"})
    assert case(WHOLE | {"trace": "If x < 3 the answer > y; <thinking> and <answers> are none."}).trace


@pytest.mark.parametrize("options", [["caf\u00e9", "cafe\u0301"], ["gout", "gout\u200b"], ["gout", " gout "]])
def test_options_that_are_seen_as_one_text_are_one(options):
    with pytest.raises(DataError, match="the same text"):
        case(WHOLE | {"options": options})


def test_options_that_differ_in_what_is_seen_stay_and_one_that_shows_nothing_is_empty():
    for options in (["10\u2079", "109"], ["Aa", "aa"], ["caf\u00e9", "cafe"]):
        assert case(WHOLE | {"options": options}).options == tuple(options)
    with pytest.raises(DataError, match="none empty"):
        case(WHOLE | {"options": ["gout", "\u200b"]})


def test_blanks_of_a_specialty_and_paradigms_that_stand_twice_go():
    found = case(WHOLE | {"specialty": "AM ", "paradigms": ["bayesian", "analytical", "bayesian"]})
    assert found.specialty == "AM" and found.paradigms == ("bayesian", "analytical")


def test_a_history_of_turns_is_refused():
    row = {"instruction": "And its dose?", "output": "5 mg"}
    with pytest.raises(DataError, match="key history: several turns"):
        case(row | {"history": [["Which drug?", "Warfarin"]]})
    assert case(row | {"history": []}).answer == "5 mg" and case(row | {"history": None}).answer == "5 mg"


def test_objects_of_which_the_first_is_empty_are_rows(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"q1": {}, "q2": {"question": "Which?"}}))
    rows = [row for _, row in tables.read(InFolder(tmp_path / "x.json"), "x.json")]
    assert rows == [{"id": "q1"}, {"id": "q2", "question": "Which?"}]


def test_the_separator_of_a_table_is_looked_for_outside_quotes(tmp_path):
    (tmp_path / "x.csv").write_text('id;question;"options, A, B, C, D";answer\n1;Which?;gout, flu;A\n')
    [(_, row)] = tables.read(InFolder(tmp_path / "x.csv"), "x.csv")
    assert row == {"id": "1", "question": "Which?", "options, A, B, C, D": "gout, flu", "answer": "A"}
    (tmp_path / "y.csv").write_text('"id","a;b;c;d"\n1,x\n')
    [(_, row)] = tables.read(InFolder(tmp_path / "y.csv"), "y.csv")
    assert row == {"id": "1", "a;b;c;d": "x"}


def test_a_tsv_with_carriage_returns_alone_says_so(tmp_path):
    (tmp_path / "x.tsv").write_bytes(b"id\tquestion\r1\tWhich?\r")
    with pytest.raises(DataError, match="carriage returns alone"):
        list(tables.read(InFolder(tmp_path / "x.tsv"), "x.tsv"))
    (tmp_path / "x.tsv").write_bytes(b"id\tquestion\r\n1\tWhich?\r\n")
    assert [row for _, row in tables.read(InFolder(tmp_path / "x.tsv"), "x.tsv")] == [{"id": "1", "question": "Which?"}]


@pytest.mark.parametrize(
    "mark",
    [
        "Picture 1: <img>x.png</img>\n",
        "![](x.png) ",
        '<img src="x.png">',
    ],
)
def test_a_picture_that_is_named_inside_a_question_is_an_image(tmp_path, mark):
    (tmp_path / "x.png").write_bytes(_png())
    turns = [{"role": "user", "content": f"{mark}Which?"}, {"role": "assistant", "content": "gout"}]
    for row in ({"messages": turns}, ROW | {"question": f"{mark}Which?"}):
        (case,) = load_cases(_write(tmp_path, row), "train")
        assert (case.question, len(case.images)) == ("Which?", 1)


@pytest.mark.parametrize(
    "mark", ["<|vision_start|><|image_pad|><|vision_end|>", "<start_of_image>", "<ImageHere>", "[IMAGE]", "<image_1>"]
)
def test_marks_of_images_are_cut_where_these_are_and_refused_where_not(tmp_path, mark):
    (tmp_path / "x.png").write_bytes(_png())
    row = ROW | {"question": f"{mark}\nWhich?"}
    (case,) = load_cases(_write(tmp_path, row | {"images": ["x.png"]}), "train")
    assert case.question == ("<image_1>\nWhich?" if mark == "<image_1>" else "Which?")  # a number may be spoken of
    with pytest.raises(DataError, match=r"key question: .* (of|for) 0 images"):
        load_cases(_write(tmp_path, row), "train")


@pytest.mark.parametrize(
    "answer",
    [
        "B. high\nExplanation: low is wrong.",
        "**B. high**\n\nBecause urea is 9.",
        "Correct Answer: B) high\n\nExplanation: A is wrong.",
        "B\n\nUrea is 9.",
        "## Final Response\n\nB. high",
        "The answer is B. It is 9. Option A would be wrong.",
        "High. A low one ends at 7.",
        "Ｂ",
    ],
)
def test_an_answer_with_an_explanation_keeps_its_options(tmp_path, answer):
    text = "Which band?\nA. low\nB. high"
    (case,) = load_cases(_write(tmp_path, {"problem": text, "answer": answer}), "train")
    assert (case.question, case.options, case.answer) == ("Which band?", ("low", "high"), "B")


@pytest.mark.parametrize("answer", ["The band is the high one.", "Urea is 9, which fits (option B)."])
def test_an_answer_that_speaks_of_options_and_gives_none_is_refused(tmp_path, answer):
    with pytest.raises(DataError, match="speaks of options and gives none; begin it with the letter"):
        load_cases(_write(tmp_path, {"problem": "Which band?\nA. low\nB. high", "answer": answer}), "train")


@pytest.mark.parametrize(
    "form", ["{}、{}", "{}．{}", "{}：{}", "[{}] {}", "{} - {}", "Option {}: {}", "- **{}**: {}", "{}. {};"]
)
def test_options_are_read_behind_labels_of_every_form(form):
    lines = "\n".join(form.format(letter, text) for letter, text in (("A", "low"), ("B", "high")))
    assert question_text.split_options(f"Which?\n{lines}") == ("Which?", ["low", "high"])


@pytest.mark.parametrize(("labels", "answer"), [(("1", "2"), "2"), (("А", "Б"), "Б"), (("أ", "ب"), "ب")])
def test_the_label_of_a_list_is_no_open_answer(tmp_path, labels, answer):
    row = {"problem": "Which?\n" + "\n".join(f"{label}. gout" for label in labels), "answer": answer}
    with pytest.raises(DataError, match=f"no options for the answer '{answer}'"):
        load_cases(_write(tmp_path, row), "train")
    (case,) = load_cases(_write(tmp_path, {"problem": "How many kidneys?", "answer": "2"}), "train")
    assert case.answer == "2"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("2-year-old boy with cough. How many kidneys are seen?", "2"),
        ("1.5T MRI. How many lesions are seen?", "1"),
        ("4-chamber view: how many chambers are enlarged?", "4"),
        ("4. Number of lesions", "4"),
        ("Seen are:\n1. a mass\n2. a cyst\nHow many are malignant?", "1"),
        ("Which allele makes nothing?", "Null"),
        ("Q: Is gout painful? Answer: yes\nQ: Is asthma painful?", "yes"),
    ],
)
def test_numbers_words_and_worked_examples_are_no_faults(tmp_path, question, answer):
    (case,) = load_cases(_write(tmp_path, {"problem": question, "answer": answer}), "train")
    assert (case.question, case.answer) == (question, answer)


def test_null_is_an_option_where_it_is_a_word(tmp_path):
    (tmp_path / "a.csv").write_text("question,A,B,C,answer\nWhich?,Null,Hypomorph,,A\nWhich one?,x,y,NULL,A\n")
    convert_data.convert(tmp_path / "a.csv", tmp_path)
    found = load_cases(tmp_path, "train")
    assert [case.options for case in found] == [("Null", "Hypomorph"), ("x", "y")]


def test_a_converted_table_may_lie_beside_its_source(tmp_path, caplog):
    (tmp_path / "train.csv").write_text("question,A,B,answer\nWhich?,x,y,A\n")
    convert_data.convert(tmp_path / "train.csv", tmp_path)
    assert len(load_cases(tmp_path, "train")) == 1 and check_data.check(tmp_path)
    assert "train.jsonl is read; train.csv, which it may be made of, is not" in caplog.text


def test_a_numbered_column_of_words_and_an_address_of_a_source_are_no_pictures(tmp_path):
    row = {key: ROW[key] for key in ("question", "options", "answer")} | {"source": "https://x.org/y.jpg"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {"figure1": "The mass", "images": []}))
    made = convert_data.convert(tmp_path / "a.jsonl", tmp_path / "out")
    assert not made.refused and json.loads(made.file.read_text())["figure1"] == "The mass"
    (case,) = load_cases(made.file, "train")
    assert not case.images


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("A low band ends at 7, whereas a high one has no end.", True),
        ("Urea is 9. Findings like these suggest that the answer is B somehow, or else not.", False),
    ],
)
def test_an_answer_about_the_whole_list_is_an_open_one(tmp_path, answer, kept):
    row = {"problem": "Explain the bands:\nA. low\nB. high", "answer": answer}
    if kept:
        (case,) = load_cases(_write(tmp_path, row), "train")
        assert (case.options, case.answer) == ((), answer)
        return
    with pytest.raises(DataError, match="speaks of options and gives none"):
        load_cases(_write(tmp_path, row), "train")


@pytest.mark.parametrize("line", ["\nAnswer: B", " Correct answer: high", "\n答案：B"])
def test_a_question_that_gives_its_answer_away_is_refused(tmp_path, line):
    with pytest.raises(DataError, match="gives its own answer away; take it out"):
        load_cases(_write(tmp_path, ROW | {"question": f"Which?{line}"}), "train")
    load_cases(_write(tmp_path, ROW | {"question": "Which?\nAnswer: A or B"}), "train")


@pytest.mark.parametrize("key", ["race", "Race", "tracer", "reason", "ask", "imagery", "picture_id", "special_needs"])
def test_a_column_that_only_looks_like_a_key_is_kept(tmp_path, key):
    (case,) = load_cases(_write(tmp_path, {k: v for k, v in ROW.items() if k != "trace"} | {key: "White"}), "train")
    assert case.columns == {key: "White"}


def test_a_picture_under_a_numbered_key_beside_images_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(_png())
    with pytest.raises(DataError, match="key image_2: not a key of a row; call it images"):
        load_cases(_write(tmp_path, ROW | {"images": ["x.png"], "image_2": "y.png"}), "train")
    (case,) = load_cases(_write(tmp_path, ROW | {"images": ["x.png"], "image_1": "x.png", "scan": "old.dcm"}), "train")
    assert len(case.images) == 1


def test_a_split_is_one_file_and_may_lie_as_the_hub_has_it(tmp_path):
    table = pa.Table.from_pylist([ROW])
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    assert len(load_cases(tmp_path, "train")) == 1
    pq.write_table(table, tmp_path / "train.parquet")
    _write(tmp_path, ROW).rename(tmp_path / "Train.JSONL")
    for read in (lambda: load_cases(tmp_path, "train"), lambda: check_data.check(tmp_path)):
        with pytest.raises(DataError, match=r"several files of train \(Train.JSONL, train.parquet\); keep one"):
            read()
    (tmp_path / "train.parquet").unlink()
    assert len(load_cases(tmp_path, "train")) == 1


@pytest.mark.parametrize(("end", "folder"), [("", "data"), ("", "."), ("-0123456789abcdef", "data")])
def test_the_parts_of_a_split_are_one(tmp_path, end, folder):
    root, count = tmp_path / folder, 11  # as text, 10 sorts behind 9 too
    root.mkdir(exist_ok=True)
    for number in range(count):
        row = ROW | {"id": str(number), "question": f"{ROW['question']} {number}"}
        pq.write_table(pa.Table.from_pylist([row]), root / f"train-{number:05}-of-{count:05}{end}.parquet")
    assert [case.id for case in load_cases(tmp_path, "train")] == [str(number) for number in range(count)]
    assert [(one.good, dict(one.faults)) for one in check_data.check(tmp_path)] == [(1, {})] * count
    last = root / f"train-00010-of-00011{end}.parquet"
    pq.write_table(pa.Table.from_pylist([ROW | {"id": "3"}]), last)
    with pytest.raises(DataError, match=rf"{last.name}, row 1: id '3' stands twice; ids must be unique"):
        load_cases(tmp_path, "train")
    assert [one.file for one in check_data.check(tmp_path) if one.faults] == [last]
    last.unlink()
    for read in (lambda: load_cases(tmp_path, "train"), lambda: check_data.check(tmp_path)):
        with pytest.raises(DataError, match=r"train-00010-of-00011 is not there; fetch all 11 parts"):
            read()


def test_a_set_of_the_hub_is_read_from_its_cache_with_the_files_of_its_split(tmp_path, monkeypatch):
    asked = []

    def fetched(name, **given):
        asked.append((name, given["repo_type"], given["revision"], given["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "train-00000-of-00001.parquet")
    patterns = ["train.*", "train-*", "data/train-*"]
    assert [case.id for case in load_cases("hub:clinic/set@v2", "train")] == [ROW["id"]]
    assert asked == [("clinic/set", "dataset", "v2", patterns)]
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    _write(tmp_path, ROW)  # whose images are files beside it
    assert len(load_cases("hub:clinic/set", "train")) == 1
    assert asked[1:] == [("clinic/set", "dataset", None, patterns), ("clinic/set", "dataset", None, None)]


def test_a_path_of_windows_is_found(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "x.png").write_bytes(_png())
    (case,) = load_cases(_write(tmp_path, ROW | {"images": [r"img\x.png"]}), "train")
    assert case.images[0].picture().size == (8, 8)


def test_a_mark_counts_for_the_images_of_the_row_or_for_all(tmp_path):
    """Some write a mark for each image beside the text alone, others for parts of the turn, too."""
    (tmp_path / "x.png").write_bytes(_png())
    parts = [{"type": "image", "path": "x.png"}, {"type": "text", "text": "<image>Which?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "gout"}]
    (case,) = load_cases(_write(tmp_path, {"messages": turns, "images": ["x.png"]}), "train")
    assert (case.question, len(case.images)) == ("Which?", 2)


def test_signs_without_end_are_looked_through_at_once(tmp_path):
    begun = time.process_time()
    for text in ("![" * 20_000, "\n-" * 20_000, "<img " * 20_000, ". " * 20_000, "Answer " * 20_000):
        load_cases(_write(tmp_path, ROW | {"question": f"Which? {text}"}), "train")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("cell", [_png(), {"bytes": _png(), "path": None}, [{"bytes": _png(), "path": None}]])
def test_encoded_pictures_under_another_key_are_refused(tmp_path, cell):
    pq.write_table(pa.Table.from_pylist([ROW | {"scan": cell}]), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="key scan: not a key of a row; call it images"):
        load_cases(tmp_path, "train")
    with pytest.raises(DataError, match="key scan: not a key of a row; call it images"):
        convert_data.convert(tmp_path / "train.parquet", tmp_path / "out")
    rows = [{key: ROW[key] for key in ("question", "options", "answer")} | {"scan": cell}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw.parquet")
    found = collect([str(tmp_path / "raw.parquet")])
    assert not found.records and found.rejected[0]["detail"] == "key scan is not read; call it images"


CHOICE = "Which drug?\nA. Aspirin\nB. Heparin\nC. Warfarin"


def _turn(role, text):
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    "begun", ["Let me solve this step by step.\n<think>", "Sure! Here it is:", "<think>", "<think>\n\n</think>\n\n"]
)
def test_a_prompt_that_ends_with_the_beginning_of_its_answer_has_the_answer_under_a_key(tmp_path, begun):
    rows = [
        {"prompt": [_turn("user", CHOICE), _turn("assistant", begun)], "solution": "B"},
        {"prompt": [_turn("user", "Which?"), _turn("assistant", begun)], "reward_model": {"ground_truth": "Heparin"}},
    ]
    first, second = load_cases(_write(tmp_path, *rows), "train")
    assert (first.options[1], first.answer, first.trace) == ("Heparin", "B", "")
    assert (second.options, second.answer, second.trace) == ((), "Heparin", "")


def test_an_assistants_turn_that_answers_keeps_its_reasoning_beside_a_key(tmp_path):
    said = "<think>Slow.</think><answer>{}</answer>"
    for name in ("prompt", "messages"):
        turns = [_turn("user", CHOICE), _turn("assistant", said.format("B"))]
        (case,) = load_cases(_write(tmp_path, {name: turns, "answer": "B"}), "train")
        assert (case.answer, case.trace) == ("B", "Slow.")
        with pytest.raises(DataError, match=f"key {name}: answers B, key answer: answers C"):
            load_cases(_write(tmp_path, {name: turns, "answer": "C"}), "train")


@pytest.mark.parametrize(
    "answer", [0, 1, 3, "-1", 1.0, "(D)", "D.", "D. Enoxaparin", "Answer: D", "Heparine", "Both A and C", "A和C"]
)
def test_a_key_that_is_none_of_the_listed_options_is_refused(tmp_path, answer):
    with pytest.raises(DataError, match=r"is none of the options; give the letter|names several options"):
        load_cases(_write(tmp_path, {"problem": CHOICE, "answer": answer}), "train")


OTHERS = ("C. koseri", "F. hepatica", "D. pteronyssinus", "H. zoster", "hypotension", "hyperthyroidism")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many of these?\nA. x\nB. y\nC. z", "2"),
        ("Findings:\nA. fever\nB. rash\nWhat is the grade?", "2"),
        ("Findings:\nA. fever\nB. rash\nWhat is it?", "Measles"),
        ("Put in order:\nA. early\nB. later\nC. last", "CAB"),
        ("What grows on all?\nA. agar\nB. broth", "E. coli"),
        ("What do all of these raise?\nA. smoking\nB. LDL", "The risk of CAD"),
        ("What is the ECOG?\nA. fever\nB. cough", "2"),
        *(("A. hypertension\nB. hypothyroidism\nWhat is found?", said) for said in OTHERS),
    ],
)
def test_an_open_question_may_hold_a_list(tmp_path, question, answer):
    (case,) = load_cases(_write(tmp_path, {"problem": question, "answer": answer}), "train")
    assert (case.question, case.options, case.answer) == (question, (), answer)


@pytest.mark.parametrize("said", ["<think>\n\n</think>\n\nB", "<think></think><answer>B</answer>", "B"])
def test_an_answer_with_empty_reasoning_has_no_trace(tmp_path, said):
    turn = _turn("assistant", said) | ({"reasoning_content": "\n"} if said == "B" else {})
    (case,) = load_cases(_write(tmp_path, {"messages": [_turn("user", CHOICE), turn]}), "train")
    assert (case.answer, case.trace) == ("B", "")


def test_images_of_parts_as_datasets_keeps_them_are_read(tmp_path):
    (tmp_path / "x.png").write_bytes(_png())
    held = [{"bytes": _png(), "path": None}, {"bytes": None, "path": "x.png"}]
    rows = [
        {"messages": [_turn("user", [{"type": "image", "image": one}, {"type": "text", "text": "Which?"}])]}
        for one in held
    ]
    cases = [case_rows.case_of(row | {"answer": "y"}, "f", 1, tmp_path) for row in rows]
    assert [case.images[0].picture().size for case in map(case_files.with_images, cases)] == [(8, 8)] * 2
    part = {"type": "image", "source": {"type": "base64", "data": "x"}}
    with pytest.raises(DataError, match="under image, as a data URI, not under source"):
        case_rows.case_of({"messages": [_turn("user", [part])], "answer": "y"}, "f", 1, tmp_path)


@pytest.mark.parametrize(
    "mark",
    [
        "<|im_start|>user\n{}<|im_end|>",
        "<start_of_turn>user\n{}",
        "[INST] {} [/INST]",
        "<｜User｜>{}",
        "{}\nAssistant: <think>",
    ],
)
def test_a_question_inside_a_chat_template_is_refused(tmp_path, mark):
    for row in ({"prompt": mark.format(CHOICE), "answer": "B"}, ROW | {"question": mark.format("Which?")}):
        with pytest.raises(DataError, match=r"key question: .* of a chat template stands in it"):
            load_cases(_write(tmp_path, row), "train")


@pytest.mark.parametrize(
    ("answer", "trace"),
    [
        ("Answer: Heparin", ""),
        ("**Final answer:** Heparin", ""),
        ('{"answer": "Heparin"}', ""),
        ("<think>Slow.</think>\n\nAnswer: Heparin", "Slow."),
        ("Slow.\nAnswer: Heparin", "Slow."),
        ("Slow.\n#### Heparin", "Slow."),
        ("<REASONING>Slow.</REASONING><CONCLUSION>Heparin</CONCLUSION>", "<REASONING>Slow.</REASONING>"),
        ("## Thinking\nSlow.\n\n## Final Response\nHeparin", "Slow."),
        ("The answer is open. It depends.", None),
    ],
)
def test_an_open_key_is_the_answer_without_its_name(tmp_path, answer, trace):
    (case,) = load_cases(_write(tmp_path, {"problem": "Which drug?", "answer": answer}), "train")
    assert (case.answer, case.trace) == ((answer, "") if trace is None else ("Heparin", trace))
    if trace == "" and "*" not in answer:
        (case,) = load_cases(_write(tmp_path, {"id": "1", "question": "Which drug?", "answer": answer}), "train")
        assert case.answer == "Heparin"


@pytest.mark.parametrize(
    "options",
    [
        {"options": "A. Aspirin\nB. Heparin"},
        {"options": '["Aspirin", "Heparin"]'},
        {"choices": ["Aspirin", "Heparin"]},
        {"candidates": {"A": "Aspirin", "B": "Heparin"}},
        {"problem": "Which drug? A) Aspirin, B) Heparin"},
    ],
)
def test_options_beside_a_foreign_question_in_any_form_are_read(tmp_path, options):
    row = {"problem": "Which drug?", "answer": "<answer> B </answer>"} | options
    (case,) = load_cases(_write(tmp_path, row), "train")
    assert (case.question, case.options, case.answer) == ("Which drug?", ("Aspirin", "Heparin"), "B")
    assert not case.columns
    if "problem" in options:
        (case,) = load_cases(_write(tmp_path, row | {"problem": f"{row['problem']}\nGive its letter."}), "train")
        assert (case.question, case.options) == ("Which drug?\nGive its letter.", ("Aspirin", "Heparin"))


def test_a_second_image_under_another_key_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(_png())
    for row in ({"problem": "Which?", "answer": "y"}, {"id": "1", "question": "Which?", "answer": "y"}):
        with pytest.raises(DataError, match=r"key image: 'b\.png' is not among images"):
            load_cases(_write(tmp_path, row | {"images": ["x.png"], "image": "b.png"}), "train")
        for beside in ("x.png", "CT of the foot"):
            (case,) = load_cases(_write(tmp_path, row | {"images": ["x.png"], "image": beside}), "train")
            assert len(case.images) == 1
