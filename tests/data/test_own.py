"""A first example, converters and the validator: what they write loads, and all faults come at once."""

import base64
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmedexpert_jax import answers
from mmedexpert_jax.data import (
    case_rows,
    cells,
    check_data,
    convert_data,
    forms,
    load_cases,
    new_data,
    question_text,
    tables,
)
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.mmedexpert.sources.raw_formats import recognise
from mmedexpert_jax.processing.images import open_image


def _png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_example_loads_passes_the_check_and_says_its_schema(tmp_path):
    files = new_data.write_example(tmp_path / "mine")
    assert {file.name for file in files} == {"train.jsonl", "dev.jsonl", "test.jsonl", "README.md", "spots.png"}
    cases = load_cases(tmp_path / "mine", "train")
    assert [case.kind for case in cases] == ["choice", "open", "choice"] and cases[2].images[0].picture().size == (
        112,
        112,
    )
    assert new_data.schema_table() in (tmp_path / "mine" / "README.md").read_text()
    checked = check_data.check(tmp_path / "mine")
    assert [(one.good, dict(one.faults), one.identifying) for one in checked] == [(3, {}, []), (1, {}, []), (1, {}, [])]
    with pytest.raises(ConfigError, match="not empty"):
        new_data.write_example(tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is no folder; give a new folder"):
        new_data.write_example(tmp_path / "file")


def test_all_faults_of_a_set_come_at_once_with_counts(tmp_path):
    good = {"id": "g", "question": "Which?", "options": ["a", "b"], "answer": "A"}
    (tmp_path / "cut.png").write_bytes(_png()[:60])
    rows = [
        good,
        good | {"id": "1", "answer": "C"},
        good | {"id": "2", "answer": "D"},
        good | {"id": "3", "images": ["gone.png"]},
        good | {"id": "4", "images": ["away.png"]},
        good | {"id": "5", "images": ["cut.png"]},
        good | {"id": "6", "image": "x.png"},
        good,
        {"messages": "no"},
    ]
    text = "\n".join([*map(json.dumps, rows), "{not json", '{"id": NaN}'])
    (tmp_path / "train.jsonl").write_text(text)
    (tmp_path / "test.jsonl").write_text(json.dumps(good | {"id": "t"}))
    train, test = check_data.check(tmp_path)
    assert train.good == 1 and sum(map(len, train.faults.values())) == 10
    lines = "\n".join(train.lines())
    assert "1 cases good, 10 rows with faults" in lines
    assert "2 x key answer: ... is not among A, B (rows 2, 3)" in lines and "no such file (rows 4, 5)" in lines
    assert "call it images (`mmedexpert convert-data` does) (row 7)" in lines and "key messages" in lines
    assert test.good == 0 and "the same stands in train.jsonl" in test.lines()[1]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no train, dev or test"):
        check_data.check(tmp_path / "nothing")


def test_identifiers_are_counted(tmp_path):
    row = {"id": "1", "question": "Mrs. Smith, 2020-01-02: which?", "answer": "flu"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    (checked,) = check_data.check(tmp_path)
    assert [(one["kind"], one["rows"]) for one in checked.identifying] == [("date", 1), ("name", 1)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_foreign_rows_become_ours_and_load_from_the_new_folder(tmp_path, kind):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(_png())
    turns = [{"from": "human", "value": "<image>\nWhich?\nA. gout\nB. flu"}, {"from": "gpt", "value": "B"}]
    row = {"id": "1", "image": "a.png", "conversations": turns}
    if kind == "parquet":
        row["image"] = {"bytes": _png(), "path": "a.png"}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in" / "x.parquet")
    else:
        text = json.dumps([row] if kind == "json" else row)
        (tmp_path / "in" / f"x.{kind}").write_text(text)
    made = convert_data.convert(tmp_path / "in" / f"x.{kind}", tmp_path / "out")
    assert (made.rows, made.refused) == (1, [])
    (case,) = load_cases(tmp_path / "out", "train")
    assert (case.question, case.options, case.answer) == ("Which?", ("gout", "flu"), "B")
    expected = np.asarray(Image.open(io.BytesIO(_png())))
    assert np.array_equal(np.asarray(case.images[0].picture()), expected)
    with pytest.raises(ConfigError, match="exists"):
        convert_data.convert(tmp_path / "in" / f"x.{kind}", tmp_path / "out")


def test_images_of_one_split_never_replace_those_of_another_or_a_users(tmp_path):
    for seed, split in enumerate(("train", "test")):
        rows = [{"question": "Which?", "answer": "flu", "images": [{"bytes": _png(seed), "path": "a.png"}]}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
        convert_data.convert(tmp_path / f"{split}.parquet", tmp_path / "out", split)
    for seed, split in enumerate(("train", "test")):
        shown = np.asarray(load_cases(tmp_path / "out", split)[0].images[0].picture())
        assert np.array_equal(shown, np.asarray(Image.open(io.BytesIO(_png(seed)))))
    (tmp_path / "theirs" / "images").mkdir(parents=True)
    (tmp_path / "theirs" / "images" / "test-1-1.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"test-1-1\.png exists"):
        convert_data.convert(tmp_path / "test.parquet", tmp_path / "theirs", "test")
    assert (tmp_path / "theirs" / "images" / "test-1-1.png").read_bytes() == b"mine"
    with pytest.raises(ConfigError, match="a split is train, dev, test, not"):
        convert_data.convert(tmp_path / "test.parquet", tmp_path / "out", "../x")


def test_a_spreadsheet_becomes_rows(tmp_path):
    (tmp_path / "x.csv").write_text(
        "id;question;A;B;C;label;image\n1;Which?;gout;flu;;B;\n2;What is it?;;;;Flu;a.png\n3;Three?;x\n", "utf-8"
    )
    (tmp_path / "a.png").write_bytes(_png())
    made = convert_data.convert(tmp_path / "x.csv", tmp_path / "out")
    assert made.rows == 2 and len(made.refused) == 1 and "row 3: 3 cells under 7 columns" in made.refused[0]
    first, second = load_cases(tmp_path / "out", "train")
    assert (first.options, first.answer, second.options, second.answer) == (("gout", "flu"), "B", (), "Flu")
    assert len(second.images) == 1


PUBLISHED = {
    "MedMCQA": [{"question": "Q?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": n} for n in (2, 4)],
    "MedQA": [{"question": "Q?", "options": {"A": "x", "B": "y"}, "answer_idx": "B", "answer": "y"}],
    "MMLU": [{"question": "Q?", "choices": ["x", "y"], "answer": n} for n in (1, 0)],
    "texts": [{"Question": "Q?", "Options": ["x", "y"], "Correct Answer": " Y "}],
    "small letters": [{"query": "Q?", "option_a": "x", "option_b": "y", "label": "b"}],
    "numbers that are options": [{"question": "Q?", "options": ["1", "2"], "answer": 2}],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_of_published_sets_become_letters(name, tmp_path):
    source = tmp_path / "theirs.json"
    source.write_text(json.dumps(PUBLISHED[name]))
    convert_data.convert(source, tmp_path / "ours")
    cases = load_cases(str(tmp_path / "ours"), "train")
    assert [case.answer for case in cases] == {"MedMCQA": ["B", "D"], "MMLU": ["B", "A"]}.get(name, ["B"])
    assert all(case.question == "Q?" and len(case.options) >= 2 for case in cases)


def test_numbers_that_may_count_from_0_or_1_are_refused_and_columns_need_names(tmp_path):
    source = tmp_path / "theirs.json"
    rows = [{"question": "Q?", "options": ["x", "y", "z"], "answer": answer} for answer in (1, "A", 2)]
    source.write_text(json.dumps(rows))
    made = convert_data.convert(source, tmp_path / "ours")
    assert made.rows == 1 and len(made.refused) == 2 and "may count from 0 or from 1" in made.refused[0]
    source = tmp_path / "no_head.csv"
    source.write_text("What?,x,y,B\nWhich?,x,y,A\n")
    with pytest.raises(DataError, match="names its columns, here What"):
        convert_data.convert(source, tmp_path / "more")
    with pytest.raises(ConfigError, match="a split is train, dev, test, not 'validation'"):
        convert_data.convert(tmp_path / "theirs.json", tmp_path / "more", "validation")


def test_a_folder_of_scans_becomes_cases_to_fill_in(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    source = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    (tmp_path / "in" / "series").mkdir(parents=True)
    for k in range(12):
        source.SOPInstanceUID, source.InstanceNumber = f"1.2.{k}", 12 - k
        source.ImagePositionPatient = [0, 0, float(k)]
        source.PixelData = np.full((128, 128), 100 * k, np.int16).tobytes()
        source.save_as(tmp_path / "in" / "series" / f"{(7 * k) % 12}.dcm")
    (tmp_path / "in" / "photo.png").write_bytes(_png())
    made = convert_data.convert(tmp_path / "in", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["photo.png", "series"] and len(made.notes) == 2
    assert rows[1]["images"] == [{"path": "../in/series", "slices": 8}]
    rows[1] |= {"question": "What?", "answer": "A cyst", "images": [rows[1]["images"][0] | {"window": [-500, 1200]}]}
    (tmp_path / "out" / "train.jsonl").write_text(json.dumps(rows[1]))
    (case,) = load_cases(tmp_path / "out", "train")
    levels = [int(np.asarray(image.picture())[0, 0, 0]) for image in case.images]
    assert len(levels) == 8 and levels == sorted(levels) and len(set(levels)) == 8
    assert "CompressedSamples" not in json.dumps(rows)  # the patient's name of the header
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing that can be converted"):
        convert_data.convert(tmp_path / "empty", tmp_path / "out2")


def test_images_by_data_uri_stay(tmp_path):
    uri = "data:image/png;base64," + base64.b64encode(_png()).decode()
    (tmp_path / "x.jsonl").write_text(json.dumps({"problem": "What?", "answer": "Flu", "images": [uri]}))
    convert_data.convert(tmp_path / "x.jsonl", tmp_path / "out", split="test")
    (case,) = load_cases(tmp_path / "out", "test")
    assert case.images[0].picture().size == (9, 8)


@pytest.mark.parametrize("said", ["Response", "output"])
@pytest.mark.parametrize("key", ["label", "solution", "ground_truth", "Answer", "gold", "antwort", "correct_option"])
def test_a_models_response_is_no_key_beside_one(tmp_path, key, said):
    (tmp_path / "x.json").write_text(json.dumps([{"question": "Which organ?", said: "the liver", key: "kidney"}]))
    convert_data.convert(tmp_path / "x.json", tmp_path / "out")
    assert load_cases(tmp_path / "out", "train")[0].answer == "kidney"


@pytest.mark.parametrize("key", ["reference", "labels", "gt_text", "expected answer"])
def test_a_response_beside_a_key_of_an_unknown_name_is_refused(tmp_path, key):
    (tmp_path / "x.json").write_text(json.dumps([{"question": "Which organ?", "response": "the liver", key: "kidney"}]))
    with pytest.raises(DataError, match=rf"key answer: missing.*response is taken .* beside {key}; call one answer"):
        convert_data.convert(tmp_path / "x.json", tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"input": "You are a doctor.", "Question": "Which?", "Answer": "gout"}, "gout"),
        ({"input": "You are a doctor.", "query": "Which?", "response": "gout"}, "gout"),
        ({"query": "Of the ward", "Question": "Which?", "Answer": "gout"}, "gout"),
        ({"question": "Which?", "response": "gout", "correct": True}, "gout"),
        ({"label": False, "question": "Which?", "response": "gout"}, "gout"),
        ({"question": "Which?", "Antwort": "gout", "label": "1"}, "gout"),
        ({"solution": "", "question": "Which?", "response": "gout"}, "gout"),
        ({"question": "Which?", "response": "gout", "label": None, "reference": ""}, "gout"),
        ({"Question": "Which?", "Response": "gout", "answer_type": "OPEN", "specialty_label": "x"}, "gout"),
    ],
)
def test_the_columns_nearest_to_ours_that_hold_something_are_the_question_and_answer(tmp_path, row, answer):
    (tmp_path / "x.json").write_text(json.dumps([row]))
    convert_data.convert(tmp_path / "x.json", tmp_path / "out")
    (case,) = load_cases(tmp_path / "out", "train")
    assert (case.question, case.answer) == ("Which?", answer)


@pytest.mark.parametrize("image", ["image", "image_1"])
@pytest.mark.parametrize("name", ["img_name", "image_url", "figure_path", "image_path"])
def test_an_images_name_or_origin_does_not_replace_it(tmp_path, name, image):
    row = {name: "gone/x.jpg", image: {"bytes": _png(), "path": "a.png"}, "question": "Which organ?", "answer": "liver"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    convert_data.convert(tmp_path / "x.parquet", tmp_path / "out")
    (case,) = load_cases(tmp_path / "out", "train")
    assert case.images[0].picture().size == (9, 8)


@pytest.mark.parametrize("options", ['["gout", "flu", "lupus"]', "['gout', 'flu', 'lupus']", "A. gout B. flu C. lupus"])
def test_options_written_in_one_cell_are_read_and_count(tmp_path, options):
    rows = [{"id": str(n), "question": "Which?", "options": options, "answer": n} for n in (1.0, 3.0)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    convert_data.convert(tmp_path / "x.parquet", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [(row["options"], row["answer"]) for row in rows] == [(["gout", "flu", "lupus"], letter) for letter in "AC"]


def test_one_image_that_is_no_list_is_one_image(tmp_path):
    (tmp_path / "a.png").write_bytes(_png())
    for number, image in enumerate(({"bytes": None, "path": "a.png"}, _png(), "a.png")):
        rows = [{"id": "1", "question": "Which?", "answer": "flu", "image": image}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
        convert_data.convert(tmp_path / "x.parquet", tmp_path / str(number))
        (case,) = load_cases(tmp_path / str(number), "train")
        assert case.images[0].picture().size == (9, 8)


def test_what_is_converted_loads_and_the_rest_is_refused_with_its_reason(tmp_path):
    good = {"question": "Which?", "options": ["gout", "flu"], "answer": "Option B"}
    bad = {
        "x1": {"answer": "middle"},
        "x2": {"options": list("abcdefghijk")},
        "x3": {"question": ["Which?"]},
        "x4": {"images": [""]},
        "x5": {"answer": ["A", "B"]},
    }
    rows = [good | {"id": id} | change for id, change in ({"good": {"answer": ["B."]}} | bad).items()]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = convert_data.convert(tmp_path / "x.jsonl", tmp_path / "out")
    assert [(case.id, case.answer) for case in load_cases(tmp_path / "out", "train")] == [("good", "B")]
    assert made.rows == 1 and len(made.refused) == len(bad)
    assert all(
        any(f"row of {id}" in line or f"row {n}" in line for line in made.refused) for n, id in enumerate(bad, 2)
    )


def test_an_empty_option_moves_no_key(tmp_path):
    lines = ["id,question,A,B,C,D,answer", "1,Q?,gout,,flu,lupus,C", "2,Q?,gout,,flu,lupus,B", "3,Q?,gout,,flu,lupus,3"]
    (tmp_path / "x.csv").write_text("\n".join([*lines, "4,Q?,gout,flu,,,B", "4,Q?,gout,flu,,,A"]))
    made = convert_data.convert(tmp_path / "x.csv", tmp_path / "out")
    assert [case.answer_text for case in load_cases(tmp_path / "out", "train")] == ["flu", "flu"]
    words = ("B is none of the options A, C, D", "3 counts options of which one is empty", "id: stands twice")
    assert len(made.refused) == 3 and all(w in line for w, line in zip(words, made.refused, strict=True))


def test_options_by_number_and_lists_that_are_no_options(tmp_path):
    rows = [
        {"id": "numbers", "question": "Which?", "options": {"1": "gout", "2": "flu"}, "answer": "2"},
        {"id": "brackets", "question": "Which?", "options": "[18F]FDG PET; MRI; CT", "answer": "B"},
        {"id": "germ", "question": "Which?", "options": ["gout", "flu", "lupus"], "answer": "C. difficile colitis"},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = convert_data.convert(tmp_path / "x.jsonl", tmp_path / "out")
    found = {case.id: (case.answer, case.options) for case in load_cases(tmp_path / "out", "train")}
    assert found == {"numbers": ("B", ("gout", "flu")), "brackets": ("B", ("[18F]FDG PET", "MRI", "CT"))}
    assert len(made.refused) == 1 and "germ" in made.refused[0]


def test_options_of_a_question_are_its_capital_letters():
    stem = "Findings:\na) fever\nb) rash\nWhich?"
    assert question_text.split_options(f"{stem}\nA. measles\nB. mumps") == (stem, ["measles", "mumps"])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"Option 1": "gout", "Option 2": "flu", "answer": "2"}, ("gout", "flu")),
        ({"option1": "gout", "option2": "flu", "answer": "option2"}, ("gout", "flu")),
        ({"ans_a": "gout", "ans_b": "flu", "answer": "b"}, ("gout", "flu")),
        ({"A": "gout", "B": "flu", "C": "NaN", "answer": "b) Flu"}, ("gout", "flu")),
        ({"options": [10, 20], "answer": 20}, ("10", "20")),
        ({"options": ["A) gout", "B) flu"], "answer": "flu"}, ("gout", "flu")),
        ({"options": {"A": "gout", "B": "flu", "C": None}, "answer": "B"}, ("gout", "flu")),
        ({"A": 0, "B": 1, "answer": "B"}, ("0", "1")),
        ({"options": ["True", "False"], "answer": False}, ("True", "False")),
        ({"options": [{"key": "A", "value": "gout"}, {"key": "B", "value": "flu"}], "answer": "B"}, ("gout", "flu")),
    ],
)
def test_options_and_keys_as_tables_and_trainers_write_them(tmp_path, row, expected):
    (tmp_path / "x.json").write_text(json.dumps([{"question": "Which?"} | row]))
    convert_data.convert(tmp_path / "x.json", tmp_path / "out")
    (case,) = load_cases(tmp_path / "out", "train")
    assert (case.options, case.answer, dict(case.columns)) == (expected, "B", {})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"options": ["gout", "flu"], "answer": "gout", "answer_idx": "B"}, "A, but key answer_idx: 'B'; one of them"),
        ({"options": ["1", "2", "3"], "answer": 2}, "2 may be an option's text or its number"),
        ({"options": [1, 2, 3], "answer": 2}, "2 may be an option's text or its number"),
        ({**dict.fromkeys("ABCDEFGHIJ", ""), **{c: c * 3 for c in "ABCDEFGHIJKL"}, "answer": "A"}, "12; a case has at"),
    ],
)
def test_a_key_that_means_two_options_is_refused(tmp_path, row, words):
    (tmp_path / "x.json").write_text(json.dumps([{"question": "Which?"} | row]))
    with pytest.raises(DataError, match="nothing that can be converted") as error:
        convert_data.convert(tmp_path / "x.json", tmp_path / "out")
    assert words in str(error.value)


@pytest.mark.parametrize("index", [1, 2])
def test_a_number_beside_a_letter_may_count_from_zero_or_one(tmp_path, index):
    row = {"question": "Which?", "options": ["1", "2", "3"], "answer": "B", "answer_idx": index}
    (tmp_path / "x.json").write_text(json.dumps([row]))
    convert_data.convert(tmp_path / "x.json", tmp_path / "out")
    assert load_cases(tmp_path / "out", "train")[0].answer == "B"


def test_numbered_columns_count_from_where_the_whole_table_does(tmp_path):
    columns = {f"option{n}": text for n, text in enumerate(["gout", "flu", "lupus", "mumps"], 1)}
    for first in (0, 1):
        rows = [{"question": f"Which of {n}?", "answer": n + first} | columns for n in range(4)]
        (tmp_path / "x.json").write_text(json.dumps(rows))
        convert_data.convert(tmp_path / "x.json", tmp_path / f"from-{first}")
        assert [case.answer for case in load_cases(tmp_path / f"from-{first}", "train")] == list("ABCD")


def test_values_that_json_cannot_hold_are_written_as_text_or_left_out(tmp_path):
    table = pa.table(
        {
            **{"id": ["1"], "question": ["Which?"], "answer": ["gout arthritis"], "thumb": [_png()]},
            **{"seen": pa.array([0], pa.date32()), "image": [_png()], "images": [[_png(1)]]},
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    convert_data.convert(tmp_path / "x.parquet", tmp_path / "out")
    (case,) = load_cases(tmp_path / "out", "train")
    assert dict(case.columns) == {"seen": "1970-01-01"} and len(case.images) == 1


def test_images_of_a_cell_may_be_a_list_or_bare_base64(tmp_path):
    (tmp_path / "a, b.png").write_bytes(_png())
    rows = [("\"['a, b.png', 'a, b.png']\"", 2), ('"a, b.png"', 1), (base64.b64encode(_png()).decode(), 1)]
    lines = ["question,answer,images", *(f"q{n},gout arthritis,{cell}" for n, (cell, _) in enumerate(rows))]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    convert_data.convert(tmp_path / "x.csv", tmp_path / "out")
    assert [len(case.images) for case in load_cases(tmp_path / "out", "train")] == [count for _, count in rows]


@pytest.mark.parametrize(("other", "key"), [("C", "D"), ("Thiamine", "B")])
def test_a_letter_wins_over_an_option_of_that_text_unless_the_table_gives_texts(tmp_path, other, key):
    row = {"question": "Which vitamin?", "A": "A", "B": "D", "C": "E", "D": "K", "answer": "D"}
    second = {"question": "And which?", "A": "Retinol", "B": "Folate", "C": "Thiamine", "D": "Biotin", "answer": other}
    (tmp_path / "x.json").write_text(json.dumps([row, second]))
    convert_data.convert(tmp_path / "x.json", tmp_path / "out")
    assert [case.answer for case in load_cases(tmp_path / "out", "train")] == [key, "C"]


CELLS = {
    "Pain; fever\nRash; cough\nGout": ["Pain; fever", "Rash; cough", "Gout"],
    "Pain; fever|Rash; cough": ["Pain; fever", "Rash; cough"],
    "Pain; fever|Rash|Gout": ["Pain; fever", "Rash", "Gout"],
    "MRI | contrast; CT; X-ray": ["MRI | contrast", "CT", "X-ray"],
    "a | b; c | d": ["a | b", "c | d"],
    "Gout; Sepsis;\nLupus": ["Gout", "Sepsis", "Lupus"],
    "Gout;\r\nSepsis;\r\nLupus;": ["Gout", "Sepsis", "Lupus"],
    "Gout|\nSepsis|\nLupus": ["Gout", "Sepsis", "Lupus"],
    "Gout\r\nSepsis": ["Gout", "Sepsis"],
    "Gout; Sepsis": ["Gout", "Sepsis"],
    "Gout|Sepsis|": ["Gout", "Sepsis"],
    "Gout": ["Gout"],
    "": [],
}


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_of_texts_is_parted_at_its_outermost_mark(cell):
    assert cells.items(cell) == CELLS[cell]


def test_a_cell_whose_marks_may_be_either_is_refused():
    with pytest.raises(DataError, match="semicolons and bars"):
        cells.items("Pain; fever|Rash")


@pytest.mark.parametrize("empty", [[], "", None])
def test_an_empty_list_of_images_hides_no_image_beside_it(tmp_path, empty):
    (tmp_path / "x.png").write_bytes(_png(1))
    row = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Flu"}]}
    case = case_rows.case_of(row | {"images": empty, "image": "x.png"}, "here", 1, tmp_path)
    assert [image.picture().size for image in case.images] == [open_image(_png(1)).size]
    assert case_rows.case_of(row | {"images": empty}, "here", 1, tmp_path).images == ()
    plain = {"question": "What?", "options": ["a", "b"], "answer": "A", "images": empty, "image": "x.png"}
    assert recognise(plain).read(plain).images == ["x.png"]
    assert recognise(plain).read(plain | {"images": ["y.png"]}).images == ["y.png"]
    assert not recognise(plain).read(plain | {"image": ""}).images


def test_a_number_that_is_an_options_text_is_no_key_where_the_table_counts_places(tmp_path):
    def converted(name, *rows):
        lines = ["question,options,answer", *(f"Q{n}?,{options},{answer}" for n, (options, answer) in enumerate(rows))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
        made = convert_data.convert(tmp_path / f"{name}.csv", tmp_path / name)
        return [case.answer for case in load_cases(tmp_path / name, "train")], made.refused

    words, numbers = ("gout|flu|lupus|mumps", 4), "2|3|4|5"
    kept, refused = converted("places", words, ("a|b|c|d", 1), (numbers, 3), ("x|y|z", 2))
    assert kept == ["D", "A", "B"] and len(refused) == 1 and "3 may be an option's text or its number" in refused[0]
    kept, refused = converted("agreed", words, ("1|2|3|4", 3))
    assert kept == ["D", "C"] and not refused  # its text and its place are one
    kept, refused = converted("far", words, ("20|30|40|50", 30))
    assert kept == ["D", "B"] and not refused
    kept, refused = converted("texts", ("gout|flu", "flu"), (numbers, 3))
    assert kept == ["B", "B"] and not refused  # of texts alone


IMAGE_CELLS = {
    "a.png, b.png": ["a.png", "b.png"],
    "a.png;b.png": ["a.png", "b.png"],
    "a.png\nb.nii.gz": ["a.png", "b.nii.gz"],
    "a.png|b.JPG": ["a.png", "b.JPG"],
    "Doe, J.png": ["Doe, J.png"],  # a name with a comma
    "series 1, axial": ["series 1, axial"],
    "['a.png', 'b.png']": ["a.png", "b.png"],
    "data:image/png;base64,AAAA": ["data:image/png;base64,AAAA"],
    "": [],
}


@pytest.mark.parametrize("cell", IMAGE_CELLS)
def test_a_cell_of_images_is_parted_where_its_parts_are_files(cell):
    assert cells.images(cell) == IMAGE_CELLS[cell]
    row = {"question": "What?", "options": ["a", "b"], "answer": "A", "images": cell}
    assert recognise(row).read(row).images == IMAGE_CELLS[cell]


def test_paths_from_home_and_from_a_drive_stay_as_they_are(tmp_path):
    paths = ["~/a.png", "C:\\img\\a.png", "D:/a.png", "/abs/a.png", "a.png", "x:y.png"]
    rows = [{"question": f"Q{n}?", "options": "a;b", "answer": "A", "images": [path]} for n, path in enumerate(paths)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    convert_data.convert(tmp_path / "in" / "x.jsonl", tmp_path / "out")
    written = [json.loads(line)["images"][0] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert written == [*paths[:4], "../in/a.png", "../in/x:y.png"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("A. x; B. y; C. z", ["x", "y", "z"]),
        ("A) x, B) y", ["x", "y"]),
        ("(A) x; (B) y;", ["x", "y"]),
        ("A. x | B. y", ["x", "y"]),
        ("1. x; 2. y", ["x", "y"]),
        ("1.5 mg; 2.5 mg", ["1.5 mg", "2.5 mg"]),
    ],
)
def test_what_only_divides_options_is_no_part_of_them(cell, expected):
    assert cells.items(cell) == expected


def test_two_lists_of_texts_and_labels_are_options(tmp_path):
    row = {"question": "q?", "choices": {"text": ["gout", "flu"], "label": ["A", "B"]}, "answerKey": "B"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    convert_data.convert(tmp_path / "x.jsonl", tmp_path / "out")
    (case,) = load_cases(tmp_path / "out", "train")
    assert (case.options, case.answer) == (("gout", "flu"), "B")
    found = forms.ours({"prompt": "Which?\nA. gout\nB. flu", "reward_model": {"ground_truth": ["B"]}}, 1)
    assert found["answer"] == "B"


def test_a_table_keeps_all_pictures_of_a_row_and_no_empty_cells_or_line_ends_of_spreadsheets(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(_png())
    text = 'question,A,B,C,D,answer,image,image_2\n"Na 140\r\nK 4_x000D_\nWhich?",x,"y\r\nz",#N/A,NULL,A,a.png,b.png\n'
    (tmp_path / "x.csv").write_bytes(text.encode())
    convert_data.convert(tmp_path / "x.csv", tmp_path / "out")
    (case,) = load_cases(tmp_path / "out", "train")
    assert (case.question, case.options) == ("Na 140\nK 4\nWhich?", ("x", "y\nz")) and len(case.images) == 2


def test_what_lies_beside_a_series_is_a_row_or_is_told(tmp_path):
    """Of a patient's disc, of a converter's output beside its source, and of a viewer's export of two series."""
    pydicom, nibabel = pytest.importorskip("pydicom"), pytest.importorskip("nibabel")
    source = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    for folder, series in (("disc/SE1", "1"), ("flat", "2"), ("flat", "3")):
        (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
        for k in range(2):
            source.SeriesInstanceUID, source.SOPInstanceUID = f"1.{series}", f"1.{series}.{k}"
            source.ImagePositionPatient = [0, 0, float(k)]
            source.save_as(tmp_path / "in" / folder / f"{series}{k}.dcm")
    volume = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes()
    (tmp_path / "in" / "disc" / "SE1" / "T1.nii").write_bytes(volume)
    del source.PixelData
    source.save_as(tmp_path / "in" / "disc" / "DICOMDIR")
    made = convert_data.convert(tmp_path / "in", tmp_path / "out")
    rows = [json.loads(line)["id"] for line in made.file.read_text().splitlines()]
    assert rows == ["disc/SE1", "disc/SE1/T1.nii", "flat/20.dcm", "flat/21.dcm", "flat/30.dcm", "flat/31.dcm"]
    assert made.notes[1] == "1 other files were left out: disc/DICOMDIR"
    assert made.notes[2].startswith(f"{tmp_path / 'in' / 'flat'}: several series in a folder, each file a row")


def test_a_folder_of_pictures_is_whole_and_what_is_left_out_is_told(tmp_path):
    (tmp_path / "in").mkdir()
    for form in ("WEBP", "BMP", "PNG"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "in" / f"x.{form.lower()}", form)
    (tmp_path / "in" / "cine.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    made = convert_data.convert(tmp_path / "in", tmp_path / "out")
    assert made.rows == 3 and "1 other files were left out: cine.mp4" in made.notes


def test_a_case_with_a_picture_in_two_splits_is_a_fault_and_with_another_picture_is_none(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"{seed}.png").write_bytes(_png(seed))
    row = {"id": "1", "question": "Which?", "options": ["a", "b"], "answer": "A"}
    for split, images in (("train", ["0.png"]), ("dev", ["1.png"]), ("test", ["0.png"])):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row | {"images": images}))
    assert [one.good for one in check_data.check(tmp_path)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"A": "Heart", "B": "Lung", "C": "Liver"}, "A, B, C"),
        ({"opa": "Heart", "opb": "Lung"}, "opa, opb"),
        ({"ending0": "Heart", "ending1": "Lung", "ending2": "Liver"}, "ending0, ending1, ending2"),
        ({"Antwort A": "Heart", "Antwort B": "LUNG"}, "Antwort A, Antwort B"),
        ({"respuesta 1": "Heart", "respuesta 2": "Lung", "respuesta 3": "Liver"}, "respuesta 1, respuesta 2, resp"),
    ],
)
def test_a_key_that_is_the_text_of_an_option_column_is_no_open_question(tmp_path, columns, named):
    row = {"id": "1", "question": "Which organ?", "answer": "Lung"} | columns
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=f"row 1, key options: none, but columns {named}.* look like .*convert-data"):
        load_cases(tmp_path, "train")
    convert_data.convert(tmp_path / "train.jsonl", tmp_path / "out")
    (case,) = load_cases(tmp_path / "out", "train")
    assert (case.answer, case.options) == ("B", tuple(columns.values()))


@pytest.mark.parametrize(
    "columns",
    [
        {"diagnosis": "Lung", "source": "Lung"},
        {"laterality": "Lung", "side": "Heart"},
        {"reader_a": "Lung", "reader_b": "Heart"},
        {"answer_1": "Lung", "answer_2": "Lung", "answer_3": "Heart"},
        {"answer1": "Lung", "answer2": "The lungs"},
        {"answer1": "Lung", "answer2": "The lungs", "answer3": "Both lungs"},
        {"finding1": "Lung", "finding2": "Heart", "finding3": "Liver"},
        {"A": "Lung"},
    ],
)
def test_an_open_answer_may_stand_in_other_columns(tmp_path, columns):
    row = {"id": "1", "question": "Which organ?", "answer": "Lung"} | columns
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    convert_data.convert(tmp_path / "train.jsonl", tmp_path / "out")
    for folder in (tmp_path, tmp_path / "out"):
        assert [(case.kind, case.answer) for case in load_cases(folder, "train")] == [("open", "Lung")]


def test_columns_of_wrong_answers_are_refused_and_leave_nothing(tmp_path):
    row = {"id": "1", "question": "Which?", "answer": "Lung", "distractor1": "Heart", "Wrong answer 2": "Liver"}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    with pytest.raises(
        DataError, match=r"distractor1, Wrong answer 2 look like options; call their columns A, B, \.\.\."
    ):
        convert_data.convert(tmp_path / "a.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "cell", ["#NV", "#DIV/0!", "#BEZUG!", "#¿NOMBRE?", "#SPILL!", "#N/D", "########", "#ИМЯ?", "#REF!"]
)
def test_errors_of_spreadsheets_are_empty_cells(tmp_path, cell):
    row = {"id": "1", "question": "Which?", "options": ["Heart", cell], "answer": "A"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="stands for an empty cell"):
        load_cases(tmp_path, "train")
    assert not any(map(tables.absent, ("#1", "#NICE", "#hash!", "Null", "##", "#", "#HIV?", "#OK?", "#IVF!")))


def test_a_path_of_windows_over_names_of_a_mac_is_found(tmp_path):
    (tmp_path / "Bilder Gro\u0308\u00dfe").mkdir()  # "ö" in two marks
    (tmp_path / "Bilder Gro\u0308\u00dfe" / "a.png").write_bytes(_png())
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"id": "1", "question": "What?", "answer": "Nothing", "images": ["Bilder Gr\u00f6\u00dfe\\a.png"]})
    )
    assert load_cases(tmp_path, "train")[0].images[0].picture().size == (9, 8)
    assert check_data.check(f"{tmp_path}\\train.jsonl")[0].good == 1
    assert open_image(f"{tmp_path}\\Bilder Gr\u00f6\u00dfe\\a.png").size == (9, 8)
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere"):
        check_data.check(tmp_path / "nowhere")


def test_commands_quote_a_folder_with_blanks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new_data.write_example("neu x")
    assert "`mmedexpert check-data 'neu x'`" in (tmp_path / "neu x" / "README.md").read_text()


def _parts(folder, rows, start="train"):
    folder.mkdir(parents=True, exist_ok=True)
    for part, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist(row), folder / f"{start}-{part:05}-of-{len(rows):05}.parquet")


@pytest.mark.parametrize("form", ["problem", "question"])
@pytest.mark.parametrize("start", ["train", "validation"])
def test_a_table_in_parts_whose_rows_have_no_id_is_one(tmp_path, form, start, caplog):
    images = [_png(seed) for seed in range(4)]
    image = [{"bytes": png, "path": None} for png in images]
    rows = [{form: f"Is it {n}?", "answer": str(n), "image": one} for n, one in enumerate(image)]
    _parts(tmp_path / "in" / "data", [rows[:2], rows[2:]], start)
    made = convert_data.convert(tmp_path / "in", tmp_path / "out")
    assert (made.rows, made.refused, made.notes) == (4, [], [])
    read = [load_cases(tmp_path / "out", "train")]
    if (form, start) == ("problem", "train"):
        read.append(load_cases(tmp_path / "in", "train"))
        assert [(one.good, dict(one.faults)) for one in check_data.check(tmp_path / "in")] == [(2, {})] * 2
    for cases in read:
        assert [case.answer for case in cases] == list("0123") and len({case.id for case in cases}) == 4
        shown = [np.asarray(case.images[0].picture()) for case in cases]
        expected = [np.asarray(Image.open(io.BytesIO(png))) for png in images]
        assert all(map(np.array_equal, shown, expected))
    assert not caplog.messages
    lone = tmp_path / "in" / "data" / f"{start}-00001-of-00002.parquet"
    if form == "problem":
        assert len(load_cases(lone, "train")) == 2
        assert caplog.messages == [f"{lone}: one of 2 parts of its table, read alone; give the folder for all"]
        assert "one of 2 parts" in check_data.check(lone)[0].lines()[-1]
    assert "one of 2 parts" in convert_data.convert(lone, tmp_path / "half").notes[0]
    lone.unlink()
    with pytest.raises(DataError, match="00001-of-00002 is not there; fetch all 2 parts"):
        convert_data.convert(tmp_path / "in", tmp_path / "out", "dev")


def test_a_folder_that_cannot_be_converted_says_why(tmp_path):
    rows = [{"question": "Which?", "answer": "flu", "image": {"bytes": _png(), "path": None}}]
    for start in ("validation", "holdout"):
        _parts(tmp_path / "in", [rows], start)
    with pytest.raises(DataError, match=r"holds several tables \(holdout-0.*quet, validation-0.*\); give one of them"):
        convert_data.convert(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match=r"key image: not a key of a row; call it images .*convert-data"):
        load_cases(tmp_path / "in" / "holdout-00000-of-00001.parquet", "train")
    (tmp_path / "in" / "validation-00000-of-00001.parquet").rename(tmp_path / "in" / "Train.parquet")
    assert convert_data.convert(tmp_path / "in", tmp_path / "out").rows == 1
    (tmp_path / "disk" / "train").mkdir(parents=True)
    (tmp_path / "disk" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "disk" / "train" / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff")
    for read in (
        lambda: load_cases(tmp_path / "disk", "train"),
        lambda: check_data.check(tmp_path / "disk"),
        lambda: convert_data.convert(tmp_path / "disk", tmp_path / "new"),
    ):
        with pytest.raises(DataError, match=r"load_from_disk\(.*\)\.to_parquet\('train.parquet'\)"):
            read()


@pytest.mark.parametrize("name", ["dataset_infos.json", "dataset_info.json", "state.json", "cache/cache-1.arrow"])
def test_a_folder_of_one_table_may_hold_files_of_datasets_beside_it(tmp_path, name):
    (tmp_path / "in" / name).parent.mkdir(parents=True)
    (tmp_path / "in" / name).write_text('{"splits": {}}')
    (tmp_path / "in" / "data.jsonl").write_text('{"question": "Which organ?", "answer": "liver"}\n')
    assert convert_data.convert(tmp_path / "in", tmp_path / "out").rows == 1


@pytest.mark.parametrize("key", ["image", "images"])
def test_a_cell_of_parquet_that_holds_a_path_alone_is_converted_as_it_is_read(tmp_path, key):
    (tmp_path / "in" / "img").mkdir(parents=True)
    (tmp_path / "in" / "img" / "a.png").write_bytes(_png())
    image = {"bytes": None, "path": "img/a.png"}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([image], kind) if key == "image" else pa.array([[image]], pa.list_(kind))
    pq.write_table(pa.table({"problem": ["Which?"], "answer": ["flu"], key: column}), tmp_path / "in" / "x.parquet")
    assert convert_data.convert(tmp_path / "in" / "x.parquet", tmp_path / "out").refused == []
    for place in (tmp_path / "out", tmp_path / "in" / "x.parquet"):
        assert load_cases(place, "train")[0].images[0].picture().size == (9, 8)


@pytest.mark.parametrize(
    "cell",
    [
        "A.肺炎 B.流感 C.气胸",
        "A.肺炎\nB.流感\nC.气胸",
        "A、肺炎 B、流感 C、气胸",
        "A.肺炎；B.流感；C.气胸",
        "A、肺炎;B、流感;C、气胸",
        "A．肺炎，B．流感，C．气胸",
        "（A）肺炎（B）流感（C）气胸".replace("（B", " （B").replace("（C", " （C"),
        "A:肺炎 B:流感 C:气胸",
        "A) 肺炎 B) 流感 C) 气胸",
        ["A、肺炎", "B、流感", "C、气胸"],
        ["A．肺炎", "B．流感", "C．气胸"],
        ["（A）肺炎", "（B）流感", "（C）气胸"],
        ["A：肺炎", "B：流感", "C：气胸"],
    ],
)
def test_labels_of_options_without_a_blank_and_with_chinese_signs_go(tmp_path, cell):
    asked = "最可能的诊断是什么?"
    rows = [{"id": "1", "question": asked, "options": cell, "answer": "B"}]
    rows += [{"id": "2", "problem": asked + cell, "answer": "B"}] if isinstance(cell, str) else []
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert convert_data.convert(tmp_path / "x.jsonl", tmp_path / "out").refused == []
    for case in load_cases(tmp_path / "out", "train"):
        assert (case.question, case.options, case.answer) == (asked, ("肺炎", "流感", "气胸"), "B")
        assert answers.choice("<answer>流感</answer>", case.options) == "B"


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("A. gout B. E. coli C. flu", ["gout", "E. coli", "flu"]),
        ("A. gout B. C.difficile", ["gout", "C.difficile"]),
        ("A.D.H.D. ; B.P.D.", ["A.D.H.D.", "B.P.D."]),
        ("pH 7.1; A.baumannii", ["pH 7.1", "A.baumannii"]),
        ("A.baumannii;B.cereus;C.difficile", ["A.baumannii", "B.cereus", "C.difficile"]),
        ("A. fumigatus; B. cereus; C. albicans", ["A. fumigatus", "B. cereus", "C. albicans"]),
        ("A:B ratio; B:C ratio", ["A:B ratio", "B:C ratio"]),
        ("A:G;B:C", ["A:G", "B:C"]),
        ("A.5 mg B.10 mg", ["5 mg", "10 mg"]),
        ("(A) gout (B) both (A) & C.flu", ["gout", "both (A) & C.flu"]),
        ("A:Yes; B:No", ["Yes", "No"]),
        ("A:fracture B:normal", ["fracture", "normal"]),
        ("A:CT, B:MRI, C:X-ray, D:PET", ["CT", "MRI", "X-ray", "PET"]),
        ("A:5 mg, B:10 mg", ["5 mg", "10 mg"]),
        ("A:T cells; B:B cells; C:NK cells", ["T cells", "B cells", "NK cells"]),
        ("A. Norovirus B. Rotavirus C. difficile colitis", ["Norovirus", "Rotavirus", "difficile colitis"]),
    ],
)
def test_a_name_that_begins_as_a_label_stays(cell, texts):
    assert cells.items(cell) == texts


@pytest.mark.parametrize(
    "question",
    [
        "ABO group? A:40% B:10% AB:4% O:46% in his village",
        "Which ratio is low? A:G or B:C",
        "病例\nA、B、C三组\nB、C组更高\n哪组?",
        "Vitamins\nA、D、E、K 属于?\nB、C 属于?",
    ],
)
def test_letters_of_a_question_that_are_things_are_no_options(question):  # but "A:T cells" in a list
    listed = "Which?\nA:T cells\nB:B cells"
    assert question_text.split_options(listed) == ("Which?", ["T cells", "B cells"])
    assert question_text.split_options(question) == question_text.split_line_of_options(question) == (question, [])


@pytest.mark.parametrize(
    "row",
    [
        {"img_name": "a.png", "question": "Which?", "answer": "flu", "answer_type": "OPEN", "qid": 0},
        {"Figure_path": "a.png", "Question": "Which?", "Answer": "flu", "Choice A": " A:gout", "Choice B": " B:flu"},
        {"question_id": "x", "question": "Which?", "gt_answer": "flu", "image_path": "a.png"},
        {"query": "<image>Which?", "response": "flu", "images": ["a.png"]},
        {"query": "Which?", "output": "flu", "image": "a.png"},
        {"question": "Which?", "Antwort": "flu", "image": "a.png"},
        {"question": "Which?", "Respuesta": "B", "respuesta A": "gout", "respuesta B": "flu", "image": "a.png"},
        {"question": "Which?", "答案": "flu", "image": "a.png"},
    ],
)
def test_columns_of_published_sets_and_of_other_languages_are_converted(tmp_path, row):
    (tmp_path / "a.png").write_bytes(_png())
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert convert_data.convert(tmp_path / "x.jsonl", tmp_path / "out").refused == []
    (case,) = load_cases(tmp_path / "out", "train")
    assert (case.question, case.answer_text, len(case.images)) == ("Which?", "flu", 1)


def test_an_answer_under_an_unknown_name_and_turns_beside_a_query_are_refused_with_the_fix(tmp_path):
    rows = [{"question": "Which?", "Richtige Lösung": "flu"}, {"query": "Q?", "response": "x", "history": [["a", "b"]]}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    with pytest.raises(DataError, match=r"key answer: missing; .* here question, Richtige Lösung; call one answer"):
        convert_data.convert(tmp_path / "x.jsonl", tmp_path / "out")
    (tmp_path / "x.jsonl").write_text(json.dumps(rows[1]))
    with pytest.raises(DataError, match="key history: several turns"):
        convert_data.convert(tmp_path / "x.jsonl", tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "options", "answer"),
    [
        ({"question": "Which?\nA. gout\nB. lupus\nC. sepsis", "answer": "B"}, ("gout", "lupus", "sepsis"), "B"),
        ({"question": "Which? (A) gout (B) lupus", "answer": "b"}, ("gout", "lupus"), "B"),
        ({"question": "Which?\nOptions:\n(A) gout\n(B) lupus", "answer": "(B) lupus"}, ("gout", "lupus"), "B"),
        ({"query": "Which?\nA. gout\nB. lupus", "response": "A"}, ("gout", "lupus"), "A"),
        ({"input": "Which?\nA. gout\nB. lupus", "label": "A"}, ("gout", "lupus"), "A"),
        ({"input": "Which?", "output": "Gout"}, (), "Gout"),
        ({"question": "Which?", "input": "of the ward", "answer": "Gout"}, (), "Gout"),
    ],
)
def test_a_question_that_lists_its_options_is_converted_as_the_refusal_says(tmp_path, row, options, answer):
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    convert_data.convert(tmp_path / "in.jsonl", tmp_path / "out")
    (case,) = load_cases(tmp_path / "out", "train")
    assert (case.question, case.options, case.answer) == ("Which?", options, answer)


@pytest.mark.parametrize(
    ("answer", "words"), [("C", "no options for the answer"), ("A, B", "names several"), ("A. lupus", "another option")]
)
def test_an_answer_that_is_none_of_the_options_a_question_lists_is_refused(tmp_path, answer, words):
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": "Which?\nA. gout\nB. lupus", "answer": answer}))
    with pytest.raises(DataError, match=words):
        convert_data.convert(tmp_path / "in.jsonl", tmp_path / "out")


@pytest.mark.parametrize("write", [json.dumps, str])  # as JSON, and as pandas writes an object into a CSV
def test_verls_reward_model_may_be_a_text(tmp_path, write):
    row = {"id": "1", "prompt": "Which?\nA. gout\nB. lupus"}
    text = write({"style": "rule", "ground_truth": "B"})
    (tmp_path / "train.jsonl").write_text(json.dumps(row | {"reward_model": text}))
    (case,) = load_cases(tmp_path, "train")
    assert (case.options, case.answer, case.columns["reward_model"]) == (("gout", "lupus"), "B", text)


@pytest.mark.parametrize(
    ("specialties", "told"),
    [
        (("AM", "BS"), "2 for dsa"),
        (("cardiology", ""), "2 for dsa (specialty=mixed), 0 of them for one of its experts"),
        (("AM", "Radiology"), "2 for dsa (specialty=mixed), 1 of them for one of its experts"),
    ],
)
def test_the_check_counts_for_dsa_what_its_mixed_training_takes(tmp_path, specialties, told):
    row = {"question": "Which?", "options": ["a", "b"], "answer": "A", "trace": "(1) x. (2) y."}
    rows = [row | {"id": f"t{i}", "question": f"Which {i}?", "specialty": name} for i, name in enumerate(specialties)]
    rows.append({"id": "bare", "question": "And?", "answer": "Gout", "specialty": "AM"})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (checked,) = check_data.check(tmp_path)
    assert checked.notes == ["3 for gba and evaluate", told]


VERL = 'How many? Let\'s think step by step and output the final answer after "####".'
EASYR1 = r"How many? The final answer MUST BE put in \boxed{}."
DAPO = "How many?\nThe last line of your response should be of the form Answer: $Answer (without quotes)."
R1 = "How many? Output the reasoning in <think></think> and the answer in <answer></answer>."  # as ours
MARKDOWN = "#### History\n3 days of fever, bills of $ 5.\n#### Task\nHow many? The answer: 5 or 6?"


@pytest.mark.parametrize(("question", "told"), [(VERL, 1), (EASYR1, 1), (DAPO, 1), (R1, 0), (MARKDOWN, 0)])
@pytest.mark.parametrize("key", ["question", "prompt", "problem"])
def test_a_prompt_that_asks_for_another_form_of_answer_is_told(tmp_path, caplog, question, told, key):
    rows = [{"id": "plain", key: "How many?", "answer": "5"}, {"id": "formed", key: question, "answer": "5"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_cases(tmp_path, "train")[1].question == question
    lines = [line for line in caplog.messages if "another form" in line]
    assert len(lines) == told and all("1 questions" in line and "formed" in line for line in lines)


@pytest.mark.parametrize("accepted", ["gout, call 617-555-0134", ["podagra", "gout, call 617-555-0134"]])
def test_the_check_looks_for_people_among_further_right_answers(tmp_path, accepted):
    row = {"id": "1", "question": "Which?", "answer": "Gout", "accepted": accepted}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    (checked,) = check_data.check(tmp_path)
    assert [one["rows"] for one in checked.identifying] == [1]
