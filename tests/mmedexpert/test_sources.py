"""Every published shape is read unchanged; the same case in six shapes is one case."""

import base64
import io
import itertools
import json
import random
import time
import unicodedata

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax import border
from mmedexpert_jax.data import contamination
from mmedexpert_jax.data.benchmarks.rows import Row
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.mmedexpert.collection import _without_repeats, gather, hashes
from mmedexpert_jax.mmedexpert.duplicates import MARGIN, _groups, duplicates, shingles, with_several_keys
from mmedexpert_jax.mmedexpert.record import RawCase
from mmedexpert_jax.mmedexpert.sources import FORMATS, collect
from mmedexpert_jax.mmedexpert.sources.canonical import plain_text
from mmedexpert_jax.mmedexpert.sources.raw_collection import Rights, check_share

QUESTION = (
    "A 23-year-old pregnant woman has burning on urination for one day. Which of the following is the best treatment?"
)
TEXTS = ("Ampicillin", "Ceftriaxone", "Doxycycline", "Nitrofurantoin")
OPTIONS = dict(zip("ABCD", TEXTS, strict=True))
PHRASES = ["pregnant", "burning"]
IN_TEXT = f"{QUESTION}\nAnswer Choices: (A) Ampicillin (B) Ceftriaxone (C) Doxycycline (D) Nitrofurantoin"
MEDQA = {
    "medqa-5-options": {
        "question": QUESTION,
        "answer": "Nitrofurantoin",
        "options": {
            "A": "Ampicillin",
            "B": "Ceftriaxone",
            "C": "Ciprofloxacin",
            "D": "Doxycycline",
            "E": "Nitrofurantoin",
        },
        "meta_info": "step2&3",
        "answer_idx": "E",
    },
    "medqa-phrases": {
        "question": QUESTION,
        "answer": "Nitrofurantoin",
        "options": OPTIONS,
        "meta_info": "step2&3",
        "answer_idx": "D",
        "metamap_phrases": PHRASES,
    },
    "medqa-4-options": {
        "question": QUESTION,
        "answer": "Nitrofurantoin",
        "options": OPTIONS | {"E": None},
        "meta_info": "step2&3",
        "answer_idx": "D",
    },
    "medqa-multiple-choice": {
        "id": "train-0",
        "sent1": QUESTION,
        "sent2": "",
        **{f"ending{i}": text for i, text in enumerate(TEXTS)},
        "label": 3,
    },
    "medqa-bigbio": {
        "question_id": "0",
        "question": QUESTION,
        "options": [{"key": key, "value": value} for key, value in OPTIONS.items()],
        "answer": ["Nitrofurantoin"],
        "answer_idx": "D",
        "meta_info": "step2&3",
    },
    "medqa-in-question": {"id": "test-00000", "question": IN_TEXT, "label": ["D"]},
}


def png(colour: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(content, "png")
    return content.getvalue()


def write(path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def kept(found, reason: str) -> int:
    return sum(count for (_, what), count in found.counts.items() if what == reason)


@pytest.mark.parametrize("name", MEDQA)
def test_medqa_is_read_in_each_of_its_six_shapes(tmp_path, name):
    found = collect([write(tmp_path / "medqa.jsonl", [MEDQA[name]])])
    record = found.records[0]
    assert record.question == QUESTION
    assert record.answer_text == "Nitrofurantoin" and record.answer == ("E" if "5" in name else "D")
    assert record.source == "medqa" and record.redistributable and record.licence == FORMATS[name].licence
    assert found.counts["medqa.jsonl", "kept"] == 1 and not found.rejected


def test_the_same_case_in_several_shapes_is_one_case(tmp_path):
    found = collect([write(tmp_path / "all.jsonl", [MEDQA[name] for name in MEDQA if "5" not in name])])
    assert len({record.id for record in found.records}) == 1
    assert [one.score for one in duplicates(found.records)] == [1.0] * 4


def test_cases_that_repeat_another_are_refused_by_file_and_row(tmp_path):
    again = MEDQA["medqa-4-options"] | {"question": QUESTION.replace("best treatment", "best next treatment")}
    other = MEDQA["medqa-4-options"] | {"question": "Another text of quite other words, which nothing else here has?"}
    sources = [
        write(tmp_path / "a.jsonl", [MEDQA["medqa-4-options"], other]),
        write(tmp_path / "b.jsonl", [again, MEDQA["medqa-4-options"]]),
    ]
    found = collect(sources)
    kept = found.records[:2]
    _without_repeats(found, duplicates(found.records, 0.6))
    assert found.records == kept
    refused = [(row["file"], row["row"], row["reason"], row["content"]["question"]) for row in found.rejected]
    assert refused == [
        ("b.jsonl", 2, "duplicate", QUESTION),
        ("b.jsonl", 1, "near-duplicate", again["question"]),
    ]
    assert found.counts["b.jsonl", "rejected:duplicate"] == found.counts["b.jsonl", "rejected:near-duplicate"] == 1


def test_letters_of_the_five_and_four_option_files_differ_and_the_text_decides(tmp_path):
    rows = [MEDQA["medqa-5-options"], MEDQA["medqa-4-options"]]
    found = collect([write(tmp_path / "both.jsonl", rows)])
    repeated = duplicates(found.records)
    assert [(one.same, one.score) for one in repeated] == [(False, 1.0)]


def test_jama_as_its_scraper_writes_it_with_a_folder_of_images(tmp_path):
    row = {
        "id": "7",
        "link": "https://jamanetwork.com/journals/jama/fullarticle/2790000",
        "question": "A man in his 50s has a rash (Figure). What Would You Do Next?",
        **{f"op{letter.lower()}": f"{letter}. {text}" for letter, text in OPTIONS.items()},
        "diagnosis": "Cystitis",
        "answer_idx": "D",
        "answer": "D. Nitrofurantoin",
        "explanation": "The key to the diagnosis is Nitrofurantoin.",
        "field": "JAMA Dermatology Clinical Challenge",
    }
    for folder, name in (("2790000", "b.png"), ("2790000", "a.jpg")):
        (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / folder / name).write_bytes(png("blue" if name < "b" else "red"))
    columns = {key: {"0": value} for key, value in row.items()}
    (tmp_path / "jama_raw.json").write_text(json.dumps(columns))
    record = collect([str(tmp_path / "jama_raw.json")], str(tmp_path / "images")).records[0]
    assert record.options == TEXTS and record.answer == "D"
    assert [picture.name for picture in record.images] == ["a.jpg", "b.png"] and record.modality == "image"
    assert record.field.startswith("JAMA Dermatology") and "key to the diagnosis" in record.explanation
    assert not record.redistributable
    (tmp_path / "bare.json").write_text(json.dumps([row]))
    bare = collect([str(tmp_path / "bare.json")]).records[0]
    assert bare.modality == "text" and bare.id != record.id


def test_jama_as_csv(tmp_path):
    lines = ["id,link,question,opa,opb,opc,opd,diagnosis,answer_idx,answer,explanation,field"]
    lines.append(
        '1,l,"A woman, 40, has a lump. Which is it?",A. Cyst,B. Abscess,C. Lipoma,D. Node,Lipoma,C,C. Lipoma,x,JAMA'
    )
    (tmp_path / "jama_raw.csv").write_text("\n".join(lines))
    record = collect([str(tmp_path / "jama_raw.csv")]).records[0]
    assert record.source == "jama" and record.answer_text == "Lipoma" and "repaired:option-prefix" in record.flags


@pytest.mark.parametrize("columns", [True, False])
def test_medbullets(tmp_path, columns):
    options = {f"op{letter.lower()}": text for letter, text in OPTIONS.items()} if columns else {"options": OPTIONS}
    row = {"question": QUESTION, **options, "answer": "Nitrofurantoin", "answer_idx": "D", "explanation": "x"}
    record = collect([write(tmp_path / "m.jsonl", [row])]).records[0]
    assert record.source == "medbullets" and record.answer == "D" and not record.redistributable


def test_a_letter_inside_an_answer_is_no_label_of_it(tmp_path):
    row = {"question": QUESTION, "opa": "Hepatitis C: acute", "opb": "B. Gout", "answer": "Hepatitis C: acute"}
    found = collect([write(tmp_path / "m.jsonl", [row | {"answer_idx": "A"}])])
    assert [one.options for one in found.records] == [("Hepatitis C: acute", "Gout")] and not found.rejected


def test_medxpertqa_dev_with_options_in_the_text_and_images(tmp_path):
    (tmp_path / "MM-0.png").write_bytes(png())
    row = {"id": "MM-0", "question": IN_TEXT, "options": OPTIONS, "label": "D", "images": ["MM-0.png"]}
    row |= {"medical_task": "Treatment", "body_system": "Urinary", "question_type": "Reasoning"}
    other = row | {"options": [{"letter": k, "content": v} for k, v in OPTIONS.items()], "label": ["D"]}
    other |= {"images": [{"image_path": "MM-0.png"}]}
    first, second = collect([write(tmp_path / "dev.jsonl", [row, other])]).records
    assert first.question == QUESTION and first.field == "Urinary" and first.images[0].plain() == png()
    assert second.id == first.id


def test_a_key_that_is_several_is_refused_in_every_shape(tmp_path):
    pairs = [{"key": letter, "value": text} for letter, text in OPTIONS.items()]
    rows = [
        {"question": IN_TEXT, "label": ["D"]},
        {"question": QUESTION, "options": pairs, "answer": ["Nitrofurantoin"]},
        {"question": QUESTION, "options": OPTIONS, "label": ["D"], "medical_task": "Treatment"},
        PLAIN | {"answer": ["B"]},
    ]
    several = [row | {key: [*row[key], "A"] for key in ("label", "answer") if key in row} for row in rows]
    found = collect([write(tmp_path / "raw.jsonl", [*rows, *several])])
    assert len(found.records) == 4 and [row["row"] for row in found.rejected] == [5, 6, 7, 8]
    assert all("2 right answers" in row["detail"] for row in found.rejected[:3])


def test_patients_are_known_by_their_numbers_and_never_by_name(tmp_path):
    told = [{"patient_id": 12}, {"PatientID": "12"}, {"subject_id": 12.0}, {"mrn": "X-7"}]
    none = [{}, {"patient": "a man of 40"}, {"subject": "anatomy"}, {"patient_id": None}, {"patient_id": 0}]
    rows = [PLAIN | row | {"question": f"{PLAIN['question']} {n}?"} for n, row in enumerate([*told, *none])]
    people = [one.person for one in collect([write(tmp_path / "raw.jsonl", rows)]).records]
    assert people[0] == people[1] == people[2] != people[3] and "" not in people[:4] and set(people[4:]) == {""}
    assert not any(person == "12" or "X-7" in person for person in people)


def test_medvlthinker(tmp_path):
    row = {
        "images": [{"bytes": None, "path": "a.png"}],
        "question": QUESTION,
        "options": json.dumps(OPTIONS),
        "answer_label": "D",
        "answer": "Nitrofurantoin",
        "dataset_name": "pmc_vqa",
        "dataset_index": 4,
        "misc": "{}",
    }
    (tmp_path / "a.png").write_bytes(png())
    record = collect([write(tmp_path / "v.jsonl", [row])]).records[0]
    assert record.source == "pmc_vqa" and record.source_id == "pmc_vqa-4" and record.images


def test_own_cases_as_parquet_with_embedded_images(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    row = {
        "question": QUESTION,
        "options": list(TEXTS),
        "answer": "nitrofurantoin.",
        "licence": "CC0",
        "specialty": "AM",
    }
    row |= {"images": [{"bytes": png(), "path": "x.png"}], "redistributable": True}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "own.parquet")
    record = collect([str(tmp_path / "own.parquet")]).records[0]
    assert record.answer == "D" and "repaired:key-from-text" in record.flags
    assert (record.licence, record.redistributable, record.specialty_by) == ("CC0", True, "source")


PLAIN = {"question": QUESTION, "options": OPTIONS, "answer": "D"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("no json", "not-an-object"),
        ({"text": "x"}, "unknown-shape"),
        (PLAIN | {"question": " "}, "empty-question"),
        (PLAIN | {"options": {"A": "x"}}, "few-options"),
        (PLAIN | {"options": [str(i) for i in range(11)]}, "many-options"),
        (PLAIN | {"options": {"A": "x", "B": " X. "}}, "equal-options"),
        (PLAIN | {"answer": "E"}, "no-such-key"),
        (PLAIN | {"answer": 9}, "no-such-key"),
        (PLAIN | {"answer": 3}, "no-such-key"),  # from 0 the last, from 1 the one before it
        (PLAIN | {"answer_idx": 2, "answer": ""}, "no-such-key"),
        (PLAIN | {"answer_idx": 2, "answer": "Ampicillin"}, "key-differs"),  # the first, by no count the second
        (MEDQA["medqa-multiple-choice"] | {"label": 4}, "no-such-key"),
        (MEDQA["medqa-phrases"] | {"answer_idx": "A"}, "key-differs"),
        (PLAIN | {"images": ["none.png"]}, "image-missing"),
        (PLAIN | {"images": ["broken.png"]}, "image-broken"),
        ({"sent1": "q", "ending0": "a", "ending1": "b", "label": "x"}, "unreadable"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(tmp_path, row, reason):
    (tmp_path / "broken.png").write_bytes(png()[:40])
    (tmp_path / "r.jsonl").write_text((row if isinstance(row, str) else json.dumps(row)) + "\n")
    found = collect([str(tmp_path / "r.jsonl")])
    assert not found.records and found.counts["r.jsonl", f"rejected:{reason}"] == 1
    assert found.rejected[0]["reason"] == reason and found.rejected[0]["row"] == 1
    with pytest.raises(DataError, match="1 of 1 raw rows were refused"):
        check_share(found, 0.5)


@pytest.mark.parametrize(
    ("row", "flag"),
    [
        (PLAIN | {"answer": "(d)"}, "repaired:key-form"),
        (MEDQA["medqa-multiple-choice"], "repaired:index-key"),
        (PLAIN | {"question": f"<p>{QUESTION}</p>"}, "repaired:mark-up"),
        (PLAIN | {"options": OPTIONS | {"E": ""}}, "repaired:empty-option"),
        (PLAIN | {"question": "The ECG is shown below. " + QUESTION}, "mentions-picture"),
        (PLAIN | {"question": "All of these hold EXCEPT which?"}, "negative-stem"),
    ],
)
def test_what_can_be_mended_or_is_odd_is_flagged(tmp_path, row, flag):
    found = collect([write(tmp_path / "f.jsonl", [row])])
    assert flag in found.records[0].flags and found.records[0].answer == "D"
    assert kept(found, flag if flag.startswith("repaired") else f"flagged:{flag}") == 1


def test_rights_can_be_stated(tmp_path):
    path = write(tmp_path / "m.jsonl", [MEDQA["medqa-phrases"]])
    assert not collect([path], rights=Rights(restricted=("medqa-phrases",))).records[0].redistributable
    stated = Rights({"m.jsonl": "by contract"}, redistributable=("plain",))
    assert collect([path], rights=stated).records[0].licence == "by contract"


def test_a_bare_name_restricts_all_files_that_have_it_and_frees_none(tmp_path):
    for site in ("site1", "site2"):
        (tmp_path / site).mkdir()
        write(tmp_path / site / "cases.jsonl", [PLAIN | {"question": f"{PLAIN['question']} At {site}?"}])

    def freed(**rights):
        return [record.redistributable for record in collect([str(tmp_path)], rights=Rights(**rights)).records]

    assert freed(redistributable=("plain",)) == [True, True]
    assert freed(redistributable=("plain",), restricted=("cases.jsonl",)) == [False, False]
    assert freed(redistributable=("plain",), restricted=("site1/cases.jsonl",)) == [False, True]
    assert freed(redistributable=("site1/cases.jsonl",)) == [True, False]
    assert freed(redistributable=("cases.jsonl",)) == [False, False]


@pytest.mark.parametrize("said", [True, "true", "yes", 1, 1.0, "1.0"])
def test_what_a_user_restricts_stands_before_what_a_row_says_of_itself(tmp_path, said):
    path = write(tmp_path / "r.jsonl", [PLAIN | {"redistributable": said}])
    assert collect([path]).records[0].redistributable
    assert collect([path], rights=Rights(restricted=("medqa-phrases", "x.jsonl"))).records[0].redistributable
    for name in ("plain", "r.jsonl"):
        assert not collect([path], rights=Rights(restricted=(name,))).records[0].redistributable
    mine = Rights(redistributable=("plain",))
    for other in (False, "no", 0, 0.0):
        path = write(tmp_path / "s.jsonl", [PLAIN | {"redistributable": other}])
        assert not collect([path], rights=mine).records[0].redistributable  # the row's own no stands
    for empty in (None, "", "nan"):
        path = write(tmp_path / "t.jsonl", [PLAIN | {"redistributable": empty}])
        assert collect([path], rights=mine).records[0].redistributable


def test_ids_depend_on_the_case_alone(tmp_path):
    rows = [PLAIN, PLAIN | {"question": "Another one?"}]
    first = collect([write(tmp_path / "a" / "x.jsonl", rows)]).records
    second = collect([write(tmp_path / "b" / "y.jsonl", rows[::-1])]).records
    assert {r.id for r in first} == {r.id for r in second} and len({r.id for r in first}) == 2


def test_wrong_sources_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no format 'medqa'"):
        collect(["medqa=x.jsonl"])
    with pytest.raises(DataError, match="holds no raw cases"):
        collect([str(tmp_path / "none.jsonl")])
    (tmp_path / "bad.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match="not a readable"):
        collect([str(tmp_path / "bad.parquet")])


@pytest.mark.parametrize(
    "text",
    [
        "question,A,B,C,answer,redistributable\nWhat is it?,Gout,Sepsis,Lupus,B,no\n",
        "Question;a;b;c;Answer; Redistributable\nWhat is it?;Gout;Sepsis;Lupus;b;false\n",
        "question,options,answer,redistributable\nWhat is it?,Gout; Sepsis; Lupus,B. Sepsis,0\n",
        'question,options,answer,redistributable\nWhat is it?,"[""A) Gout"",""B) Sepsis"",""C) Lupus""]",Sepsis,no\n',
    ],
)
def test_own_cases_from_a_spreadsheet(tmp_path, text):
    (tmp_path / "own.csv").write_text(text, encoding="utf-8-sig")
    record = collect([str(tmp_path / "own.csv")]).records[0]
    assert (record.source, record.options, record.answer) == ("plain", ("Gout", "Sepsis", "Lupus"), "B")
    assert not record.redistributable


def test_a_specialty_that_is_none_of_the_four_is_a_field_of_medicine(tmp_path):
    record = collect([write(tmp_path / "f.jsonl", [PLAIN | {"specialty": "Cardiology"}])]).records[0]
    assert record.specialty == "" and record.field == "Cardiology"


def test_files_that_cannot_be_read_say_what_to_do(tmp_path):
    (tmp_path / "cases.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cases\.xlsx: no such kind of file is read; save the cases as \.jsonl"):
        collect([str(tmp_path / "cases.xlsx")])
    (tmp_path / "cases.csv").write_bytes("question,A,B,answer\nSjögren?,a,b,A\n".encode("latin-1"))
    with pytest.raises(DataError, match="CSV UTF-8"):
        collect([str(tmp_path / "cases.csv")])


ODD = [
    None,
    True,
    4,
    -1.5,
    10**30,
    "",
    "x" * 300,
    "\ud83d",
    [],
    {},
    [[]],
    {"bytes": 5},
    {"path": 5},
    "../" * 99,
    "\x00",
]


def test_one_bad_row_is_one_refused_row_whatever_it_holds(tmp_path):
    """Every key of every shape, replaced by a value of every wrong type, between two good rows."""
    rows = [*MEDQA.values(), PLAIN, PLAIN | {"images": ["a.png"]}, PLAIN | {"id": "1"}]
    bad = [row | {key: value} for row in rows for key in row for value in ODD]
    lines = [json.dumps(row) for row in bad]
    lines += ["[" * 100_000, '{"question": NaN}', "{", '{"a": 1, "a": 2}']
    path = tmp_path / "odd.jsonl"
    path.write_bytes("\n".join([json.dumps(PLAIN), *lines]).encode() + b"\n\xff\xfe\n" + json.dumps(PLAIN).encode())
    found = collect([str(path)])
    assert found.counts["odd.jsonl", "read"] == len(lines) + 3 == len(found.records) + len(found.rejected)
    assert found.records[0].id == found.records[-1].id
    border.write_jsonl(tmp_path / "rejected.jsonl", found.rejected)


FEVER = {"question": "A man of 45 years has had fever and a cough for two weeks. What does he most likely have?"}


@pytest.mark.parametrize(
    "options",
    [
        "['Gout', 'Lupus', 'Sepsis']",  # as pandas writes a list
        "{'A': 'Gout', 'B': 'Lupus', 'C': 'Sepsis'}",
        '["Gout", "Lupus", "Sepsis"]',
        "A. Gout\nB. Lupus\nC. Sepsis",
        "A) Gout B) Lupus C) Sepsis",
        "(A) Gout (B) Lupus (C) Sepsis",
        "Gout|Lupus|Sepsis",
        "Gout\nLupus\nSepsis",
        "Gout; Lupus; Sepsis",
        [{"key": "A", "value": "Gout"}, {"key": "B", "value": "Lupus"}, {"key": "C", "value": "Sepsis"}],
        [{"label": "A", "text": "Gout"}, {"label": "B", "text": "Lupus"}, {"label": "C", "text": "Sepsis"}],
        [{"letter": "A", "content": "Gout"}, {"letter": "B", "content": "Lupus"}, {"letter": "C", "content": "Sepsis"}],
    ],
)
def test_options_are_read_in_every_form_that_tools_write(tmp_path, options):
    (record,) = collect([write(tmp_path / "a.jsonl", [FEVER | {"options": options, "answer": "B"}])]).records
    assert (record.options, record.answer) == (("Gout", "Lupus", "Sepsis"), "B")


@pytest.mark.parametrize("key", ["Option B", "answer: B", "Lupus (B)", "B (lupus)", "Ｂ", ["B"], "The answer is B"])
def test_a_key_is_read_as_an_answer_is(tmp_path, key):
    row = FEVER | {"options": ["Gout", "Lupus"], "answer": key}
    (record,) = collect([write(tmp_path / "a.jsonl", [row])]).records
    assert record.answer == "B"


@pytest.mark.parametrize("key", ["A and B", "AB", ["A", "B"], "B: Gout", "1", "not B", "B or A"])
def test_a_key_that_is_not_one_option_is_refused(tmp_path, key):
    row = FEVER | {"options": ["Gout", "Lupus"], "answer": key}
    assert not collect([write(tmp_path / "a.jsonl", [row])]).records


def test_a_letter_inside_an_option_begins_none(tmp_path):
    text = "Which?\nAnswer Choices: (A) Iron (B) Zinc (C) Copper (D) Both (A) & (C)"
    lines = "Which?\nAnswer Choices:\n(A) Vitamin (B) complex\n(B) Iron\n(C) Zinc"
    rows = [{"id": "1", "question": text, "label": ["D"]}, {"id": "2", "question": lines, "label": ["A"]}]
    one, two = collect([write(tmp_path / "medmcqa.jsonl", rows)]).records
    assert one.options == ("Iron", "Zinc", "Copper", "Both (A) & (C)") and one.answer == "D"
    assert two.options == ("Vitamin (B) complex", "Iron", "Zinc") and two.answer == "A"


@pytest.mark.parametrize(("key", "letter"), [("Aa", "B"), ("aa", "C"), ("B", "B"), ("AA", "A")])
def test_genotypes_differ_by_case(tmp_path, key, letter):
    row = PLAIN | {"options": ["AA", "Aa", "aa"], "answer": key}
    (record,) = collect([write(tmp_path / "genes.jsonl", [row])]).records
    assert record.answer == letter


def test_an_image_of_a_raw_case_says_window_slices_and_plane(tmp_path):
    """A series by its folder and the same volume as NIfTI become the same pictures; what cannot be chosen is a row."""
    from tests.processing.test_medical import LAID, a_series, as_nifti

    volume = np.random.default_rng(0).integers(0, 4096, (6, 12, 10))
    (tmp_path / "series").mkdir()
    for number, file in enumerate(a_series(volume, LAID["axial"])):
        (tmp_path / "series" / f"{number}.dcm").write_bytes(file)
    (tmp_path / "volume.nii").write_bytes(as_nifti(volume, LAID["axial"]))
    view = {"plane": "coronal", "slices": 3, "window": "bone"}
    both, wrong = [{"path": "series"} | view, {"path": "volume.nii"} | view], [{"path": "series", "slices": "x"}]
    images = [both, ["volume.nii"], wrong]
    rows = [
        {"question": f"What is shown in scan {n}?", "options": ["flu", "asthma"], "answer": "A", "images": one}
        for n, one in enumerate(images)
    ]
    (tmp_path / "raw.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = collect([str(tmp_path / "raw.jsonl")])
    (record,) = found.records
    pictures = [np.asarray(picture.picture()).tolist() for picture in record.images]
    assert len(pictures) == 6 and pictures[:3] == pictures[3:]
    assert [picture.name for picture in record.images[::3]] == ["series-1.png", "volume-1.png"]
    assert "identifying:header-removed" in record.flags
    assert [one["reason"] for one in found.rejected] == ["image-broken", "image-broken"]


@pytest.mark.parametrize(
    ("options", "key", "text"),
    [
        (["Gout", None, "Lupus"], "C", "Lupus"),
        ({"1": "Gout", "2": "Lupus", "3": "Sepsis"}, 2, "Lupus"),  # numbered by the source itself
        ({"0": "Gout", "1": "Lupus", "2": "Sepsis"}, 1, "Lupus"),
        ([13, 14, 11, 12], 12, "12"),
        ({"A": "3", "B": "2"}, 2, "2"),
    ],
)
def test_a_number_names_the_option_that_the_source_means(tmp_path, options, key, text):
    (record,) = collect([write(tmp_path / "a.jsonl", [FEVER | {"options": options, "answer": key}])]).records
    assert record.answer_text == text


@pytest.mark.parametrize(("label", "text"), [(0, "Gout"), (1, None), (2, "Lupus"), (3, "2")])
def test_where_a_shape_counts_from_zero_empty_options_count_too(tmp_path, label, text):
    row = {"sent1": FEVER["question"], "ending0": "Gout", "ending1": "", "ending2": "Lupus", "ending3": "2"}
    found = collect([write(tmp_path / "a.jsonl", [row | {"label": label}])])
    assert [one.answer_text for one in found.records] == [text] * (text is not None)
    assert [one["reason"] for one in found.rejected] == ["no-such-key"] * (text is None)


@pytest.mark.parametrize("first", [0, 1])
def test_a_number_beside_the_text_may_count_from_zero_or_one(tmp_path, first):
    row = FEVER | {"options": ["Gout", "", "Lupus"], "answer_idx": 2 + first, "answer": "Lupus"}
    (record,) = collect([write(tmp_path / "a.jsonl", [row])]).records
    assert record.answer_text == "Lupus" and "repaired:key-from-text" in record.flags


def test_the_line_of_a_number_that_is_no_key_says_what_to_give(tmp_path):
    found = collect([write(tmp_path / "a.jsonl", [FEVER | {"options": ["Gout", "Lupus"], "answer": 1}])])
    assert found.rejected[0]["detail"].startswith("key 1: it may count from 0 or from 1; give the letter or the text")


def test_hidden_copies_are_no_sources_and_suffixes_may_be_in_capitals(tmp_path):
    write(tmp_path / "cases.JSONL", [FEVER | {"options": ["Gout", "Lupus"], "answer": "B"}])
    write(tmp_path / ".ipynb_checkpoints" / "cases.jsonl", [FEVER | {"options": ["Gout", "Lupus"], "answer": "A"}])
    (tmp_path / "._cases.jsonl").write_bytes(b"\x00\x05\x16\x07")
    assert [record.answer for record in collect([str(tmp_path)]).records] == ["B"]


def test_chinese_near_duplicates_are_found(tmp_path):
    text = "".join(chr(0x4E00 + 7 * n) for n in range(80))
    rows = [{"question": one, "options": ["甲", "乙"], "answer": "A"} for one in (text, "又" + text)]
    (found,) = duplicates(collect([write(tmp_path / "a.jsonl", rows)]).records)
    assert not found.same and found.score == pytest.approx(76 / 77)


def _case(id, question, answer="yes", other="no"):
    return RawCase(id, question, (answer, other), "A")


def test_near_duplicates_are_those_of_all_pairs_in_their_order():
    rng = random.Random(5)
    stems = [[f"w{rng.randrange(60)}" for _ in range(40)] for _ in range(6)]
    records = []
    for n in range(150):
        text = list(rng.choice(stems))
        for _ in range(rng.choice((0, 0, 1, 3))):
            text[rng.choice((0, rng.randrange(40)))] = f"x{rng.randrange(9)}"
        records.append(_case(str(n), " ".join(text), rng.choice(("yes", "no")), str(n)))
    grams = [{tuple(r.question.split()[i : i + 5]) for i in range(36)} for r in records]
    wanted, dropped = [], set()
    for a, b in itertools.combinations(range(150), 2):
        score = len(grams[a] & grams[b]) / len(grams[a] | grams[b])
        if {a, b}.isdisjoint(dropped) and records[a].answer_text == records[b].answer_text and score >= 0.8:
            dropped.add(b)
            wanted.append((str(b), str(a), score))
    assert [(one.record.id, one.of, one.score) for one in duplicates(records)] == wanted and len(wanted) > 50


@pytest.mark.parametrize("answers", [1, 3000])
def test_one_question_of_thousands_of_cases_takes_seconds(answers):
    """Such as "What is shown?" of as many pictures: what must be equal is compared before what may be nearly so."""
    records = [_case(str(n), "What is shown in this picture?", f"finding {n % answers}", str(n)) for n in range(3000)]
    start = time.process_time()
    found = duplicates(records)
    assert len(found) == 3000 - answers and {one.of for one in found} <= {"0"}
    assert time.process_time() - start < 5  # some 0.5; all pairs took 70


@pytest.mark.parametrize("field", ["licences=planed=CC0", "redistributable=planed", "restricted=Raw.jsonl"])
def test_rights_of_a_name_that_nothing_has_are_refused(tmp_path, field):
    """A misspelt `restricted` would pass on what must not be."""
    path = write(tmp_path / "raw.jsonl", [PLAIN])
    key, _, value = field.partition("=")
    config = load_config("configs/dataset.py", {"data.path": path, f"data.{key}": (value,)})
    with pytest.raises(
        ConfigError, match=rf"config\.data\.{key}: '{value.partition('=')[0]}' is no format and no file"
    ):
        gather(config)
    good = load_config("configs/dataset.py", {"data.path": path, "data.restricted": ("raw.jsonl", "plain")})
    assert not gather(good).records[0].redistributable


def test_a_case_with_two_keys_and_a_number_that_means_two_options_are_refused(tmp_path):
    rows = [PLAIN, PLAIN | {"answer": "A"}, PLAIN | {"question": "Which else?"}]
    found = collect([write(tmp_path / "a.jsonl", rows)])
    assert [record.source_id for record in with_several_keys(found.records)] == ["a.jsonl:1", "a.jsonl:2"]
    true = PLAIN | {"options": ["True", "False"], "answer": True}
    assert [record.answer for record in collect([write(tmp_path / "c.jsonl", [true])]).records] == ["A"]
    counted = [PLAIN | {"options": ["1", "2", "3"], "answer": key} for key in (2, "2", 0)]
    found = collect([write(tmp_path / "b.jsonl", counted)])
    assert [record.answer for record in found.records] == ["B"]
    assert [one["detail"] for one in found.rejected] == [
        "key 2 may be an option's text or its number; give its letter",
        "key 0: it may count from 0 or from 1; give the letter or the text of the right option",
    ]


@pytest.mark.parametrize(
    "options",
    [
        [{"id": "A", "text": "gout"}, {"id": "B", "text": "flu, acute"}],
        [{"option": "gout"}, {"option": "flu, acute"}],
        "['gout' 'flu, acute']",  # as NumPy prints what a Parquet file held
        "array(['gout',\n       'flu, acute'], dtype=object)",
        "['gout'\n \"flu, acute\"]",
    ],
)
def test_options_as_objects_and_as_numpy_prints_them_are_texts(tmp_path, options):
    (record,) = collect([write(tmp_path / "a.jsonl", [PLAIN | {"options": options, "answer": "B"}])]).records
    assert (record.options, record.answer) == (("gout", "flu, acute"), "B")


def test_a_key_has_the_marks_of_its_option(tmp_path):
    row = PLAIN | {"options": ["K<sup>+</sup>", "Na<sup>+</sup>"], "answer": "Na<sup>+</sup>"}
    assert collect([write(tmp_path / "a.jsonl", [row])]).records[0].answer == "B"


def test_commas_and_equals_in_the_names_of_sources_belong_to_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a, b.jsonl", "k=v.jsonl", "c.jsonl"):
        write(tmp_path / name, [PLAIN])
    config = load_config("configs/dataset.py", {"data.path": "a, b.jsonl, plain=c.jsonl,k=v.jsonl,plain=a, b.jsonl"})
    files = [record.source_id for record in gather(config).records]
    assert files == ["a, b.jsonl:1", "c.jsonl:1", "k=v.jsonl:1", "a, b.jsonl:1"]


def _collected(folder, name, content):
    (folder / name).write_text(content)
    found = collect([str(folder / name)])
    kept = [(case.options, case.answer) for case in found.records]
    return kept, [(row["reason"], row["detail"]) for row in found.rejected]


def test_options_that_carry_letters_in_another_order_are_refused(tmp_path):
    row = {"question": "Which drug?", "options": ["B. Aspirin", "A. Colchicine"], "answer": "A"}
    kept, ((reason, detail),) = _collected(tmp_path, "a.jsonl", json.dumps(row))
    assert not kept and reason == "key-differs" and "begin with B, A" in detail
    row["options"].reverse()
    assert _collected(tmp_path, "a.jsonl", json.dumps(row))[0] == [(("Colchicine", "Aspirin"), "A")]


def test_nan_of_pandas_is_an_empty_cell(tmp_path):
    table = "question,A,B,C,answer\nWhich?,x,y,nan,B\nnan,x,y,z,A\nWhy?,x,y,NaN,C\n"
    kept, refused = _collected(tmp_path, "a.csv", table)
    assert kept == [(("x", "y"), "B")]
    assert [reason for reason, _ in refused] == ["empty-question", "no-such-key"]


def test_columns_that_differ_in_case_alone_are_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv: the columns question, Question differ in case alone"):
        _collected(tmp_path, "a.csv", "question,Question,A,B,answer\nWhich?,Why?,x,y,A\n")


def test_letters_of_the_source_may_be_roman_and_a_number_as_text_is_unclear(tmp_path):
    row = {"question": "Which?", "options": {"I": "x", "II": "y"}, "answer": "II"}
    assert _collected(tmp_path, "a.jsonl", json.dumps(row))[0] == [(("x", "y"), "B")]
    _, ((reason, detail),) = _collected(tmp_path, "a.jsonl", json.dumps(row | {"options": ["x", "y"], "answer": "1"}))
    assert reason == "no-such-key" and "may count from 0 or from 1" in detail


def test_redacted_options_that_read_the_same_are_no_options(tmp_path):
    dates = {"A": "12/12/2020", "B": "19/12/2020", "C": "26/12/2020"}
    named = {"A": "Mrs. Alice Smith", "B": "an aunt", "C": "a nurse"}
    rows = [PLAIN | {"options": dates, "answer": "B"}, PLAIN | {"options": named, "answer": "B"}]
    path = write(tmp_path / "d.jsonl", rows)
    found = collect([path], privacy="redact")
    assert [record.options for record in found.records] == [("[name]", "an aunt", "a nurse")]
    assert [row["reason"] for row in found.rejected] == ["identifying"] and "2020" not in str(found.rejected)
    assert len(collect([path], privacy="report").records) == 2


@pytest.mark.parametrize("key", [3, "3"])
def test_a_number_under_a_name_of_indices_is_no_options_text(tmp_path, key):
    texts = FEVER | {"options": ["2", "3", "4", "5"]}
    found = collect([write(tmp_path / "i.jsonl", [texts | {"answer_idx": key}])])
    assert [one["reason"] for one in found.rejected] == ["no-such-key"]
    told = collect([write(tmp_path / "t.jsonl", [texts | {"answer_idx": key, "answer": "5"}])])
    assert [record.answer_text for record in told.records] == ["5"]  # counted from 0
    named = collect([write(tmp_path / "n.jsonl", [texts | {"answer_idx": "B", "answer": "3"}])])
    assert [record.answer for record in named.records] == ["B"]
    plain = collect([write(tmp_path / "p.jsonl", [texts | {"options": ["20", "30"], "answer": "30"}])])
    assert [record.answer for record in plain.records] == ["B"]


@pytest.mark.parametrize(
    ("options", "key", "answer"),
    [
        (["O", "A", "B", "AB"], "B", None),
        (["C", "D", "A", "K"], "C", None),
        (["O", "A", "B", "AB"], "AB", "D"),
        (["O", "A", "B", "AB"], "O", "A"),
        ({"A": "O", "B": "A", "C": "B"}, "B", "B"),  # the letters are the source's own
        (["A", "B", "O"], "B", "B"),
        (["K", "Na", "Ca"], "B", "B"),
    ],
)
def test_a_letter_that_is_another_options_text_is_refused(tmp_path, options, key, answer):
    found = collect([write(tmp_path / "l.jsonl", [PLAIN | {"options": options, "answer": key}])])
    assert [record.answer for record in found.records] == [answer] * (answer is not None)
    assert [one["reason"] for one in found.rejected] == ["no-such-key"] * (answer is None)


def test_a_letter_of_two_options_is_refused(tmp_path):
    twice = [{"key": "A", "value": "K"}, {"key": "A", "value": "Na"}, {"key": "B", "value": "Ca"}]
    rows = [
        FEVER | {"options": twice, "answer": "A"},
        FEVER | {"options": {"a": "x", "A": "y", "B": "z"}, "answer": "A"},
    ]
    found = collect([write(tmp_path / "d.jsonl", rows)])
    assert not found.records and all("one letter" in one["detail"] for one in found.rejected)
    for value in (twice, rows[1]["options"]):
        with pytest.raises(DataError, match="one letter"):
            Row({"options": value}, "here", 1).choices("options")
    assert Row({"options": {"A": "x", "B": "y", "C": float("nan")}}, "here", 1).choices("options") == ("x", "y")
    assert Row({"options": "A x\nB y"}, "here", 1).choices("options") == ("x", "y")
    assert Row({"cop": "1.0"}, "here", 1).place("cop", 4) == "B"
    with pytest.raises(DataError, match="whole number"):
        Row({"cop": "1.5"}, "here", 1).place("cop", 4)


def test_exponents_charges_and_indices_stay_what_they_are():
    found = {
        "10<sup>9</sup>/L": "10⁹/L",
        "10<sup>-3</sup>": "10⁻³",
        "Ca<SUP>2+</SUP>": "Ca²⁺",
        "H<sub>2</sub>O": "H₂O",
        "X<sup>A</sup>": "X A",
        "a<b>b</b>": "a b",
        "1<sup>st</sup>": "1 st",
        "p <sup> 2": "p 2",
    }
    assert {text: plain_text(text, []) for text in found} == found


def test_two_forms_of_unicode_are_one_text(tmp_path):
    text = "Une femme \u00e2g\u00e9e de 67 ans a de la fi\u00e8vre. Quel est le diagnostic ?"
    options = ["Embolie aigu\u00eb", "Pneumonie", "\u0153d\u00e8me"]
    row = PLAIN | {"question": text, "options": options, "answer": options[0]}
    apart = {key: unicodedata.normalize("NFD", row[key]) for key in ("question", "answer")}
    apart["options"] = [unicodedata.normalize("NFD", option) for option in options]
    assert apart["question"] != text
    found = collect([write(tmp_path / "a.jsonl", [row, row | apart, row | {"answer": apart["answer"]}])])
    assert len({record.id for record in found.records}) == 1 and {record.answer for record in found.records} == {"A"}
    assert duplicates(found.records) and {record.question for record in found.records} == {text}
    assert contamination.words_in(apart["question"]) == contamination.words_in(text)
    cases = [Case(name, words * 3, (), "x") for name, words in (("a", text), ("b", apart["question"]))]
    (pair,) = contamination.find([("t", cases[0])], [("s", cases[1])]).pairs
    assert pair.containment == 1.0 and pair.decision == "drop"
    powers = PLAIN | {"options": ["10\u2079", "109"], "answer": "A"}
    assert collect([write(tmp_path / "p.jsonl", [powers])]).records[0].options == ("10\u2079", "109")


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for site, text in (("site1", "First of all?"), ("site2", "Second of all?")):
        write(tmp_path / site / "cases.jsonl", [PLAIN | {"question": text}])
    write(tmp_path / "more.jsonl", [PLAIN])
    found = collect([str(tmp_path)], rights=Rights(redistributable=("site1/cases.jsonl",)))
    assert [record.source_id for record in found.records] == [
        "more.jsonl:1",
        "site1/cases.jsonl:1",
        "site2/cases.jsonl:1",
    ]
    assert [record.redistributable for record in found.records] == [False, True, False]
    assert found.counts["site1/cases.jsonl", "read"] == found.counts["site2/cases.jsonl", "read"] == 1
    assert {*hashes(str(tmp_path))} == {"more.jsonl", "site1/cases.jsonl", "site2/cases.jsonl"}
    assert {*hashes(str(tmp_path / "site1"))} == {"cases.jsonl"}
    config = load_config("configs/dataset.py", {"data.path": str(tmp_path), "data.redistributable": ("cases.jsonl",)})
    with pytest.raises(ConfigError, match=r"'cases.jsonl' is no format and no file"):  # which of the two is not said
        gather(config)


@pytest.mark.parametrize("key", ["image_path", "img", "Figure_path", "image_1", "Images"])
def test_pictures_under_another_key_are_refused_not_dropped(tmp_path, key):
    (tmp_path / "a.png").write_bytes(png())
    row = {"question": "What is shown?", "options": ["x", "y"], "answer": "A", key: "a.png"}
    found = collect([write(tmp_path / "a.jsonl", [row, row | {"images": ["a.png"], "explanation": "see b.png"}])])
    assert (kept(found, "read"), kept(found, "rejected:image-missing"), len(found.records)) == (2, 1, 1)
    assert f"key {key} is not read; call it images" in found.rejected[0]["detail"]


@pytest.mark.parametrize(
    "more", [{"source_url": "https://x.org/fig1.png"}, {"reference": "see Figure 2.png"}, {"thumbnail": "t.jpg"}]
)
def test_a_picture_named_in_passing_is_a_remark(tmp_path, more):
    row = {"question": "Which allele makes nothing?", "options": ["x", "Null"], "answer": "B"} | more
    (found,) = collect([write(tmp_path / "a.jsonl", [row])]).records
    assert (found.options, found.flags) == (("x", "Null"), ("mentions-picture",))


def test_marks_of_images_inside_a_raw_question_are_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    row = {"options": ["x", "y"], "answer": "A"}
    rows = [row | {"question": '<img src="a.png"> Which?'}, row | {"question": "<image>What?"}]
    found = collect([write(tmp_path / "a.jsonl", rows)])
    assert [(one.question, len(one.images)) for one in found.records] == [("Which?", 1)]
    assert kept(found, "rejected:image-missing") == 1


def test_raw_cases_give_away_no_key_and_keep_small_letters_of_a_specialty(tmp_path):
    row = {"question": "Which?", "options": ["x", "y"], "answer": "A", "specialty": "cah"}
    found = collect([write(tmp_path / "a.jsonl", [row, row | {"question": "Which?\nAnswer: A"}])])
    assert [one.specialty for one in found.records] == ["CAH"] and kept(found, "rejected:key-in-question") == 1


def test_slices_of_a_folder_come_by_number_and_pictures_may_be_base64(tmp_path):
    (tmp_path / "c1").mkdir()
    for number in (1, 2, 10, 9):
        (tmp_path / "c1" / f"{number}.png").write_bytes(png())
    (tmp_path / "c1" / "._1.png").write_bytes(b"\0\5\x16\7")
    text = base64.b64encode(png()).decode()
    row = {"question": "Which?", "options": ["x", "y"], "answer": "A"}
    rows = [row | {"id": "c1"}, row | {"id": "2", "images": [f"data:image/png;base64,{text}"]}]
    one, two = collect([write(tmp_path / "a.jsonl", rows)], str(tmp_path)).records
    assert [image.name for image in one.images] == ["1.png", "2.png", "9.png", "10.png"] and len(two.images) == 1


def test_signatures_estimate_the_overlap_of_two_texts():
    """A hash that keeps the order of what it hashes would give 0 or 1 for all."""
    rng, errors = random.Random(0), []
    for _ in range(60):
        text = [f"w{rng.randrange(1000)}" for _ in range(60)]
        other = [*text[:-1], "z"] if rng.random() < 0.5 else [*text[:20], "z", *text[21:]]
        one, two = (shingles(" ".join(words)) for words in (text, other))
        _, signatures = _groups([one, two], [0, 0])
        errors.append((signatures[0] == signatures[1]).mean() - len(one & two) / len(one | two))
    assert np.std(errors) < 0.05 and np.abs(errors).max() < MARGIN  # 0.035 and five times that by theory
