"""Each benchmark's loader on small files in the very shapes of the distributed ones, broken rows included."""

import base64
import csv
import io
import json
import re
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmedexpert_jax.data import benchmarks
from mmedexpert_jax.data.benchmarks import gmai_mmbench, omnimedvqa, registry
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.data.places import InFolder
from mmedexpert_jax.data.tables import _records, read
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.medeval.published import GMAI as GMAI_TABLE
from mmedexpert_jax.medeval.scoring import score


def png(seed=0, size=(9, 7)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def jsonl(path, rows):
    write(path, "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def parquet(path, rows, group=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def refused(name, source, *words, **settings):
    """The one line that names what is wrong."""
    with pytest.raises(DataError) as error:
        benchmarks.load(name, source, **settings)
    line = str(error.value)
    assert "\n" not in line and all(word in line for word in words), line


def texts(item):
    return item.id, item.question, item.options, item.answer, item.kind


# MedXpertQA -----------------------------------------------------------------------------------------------------------

XPERT = {
    "id": "MM-0",
    "question": "A man falls. Which step?\nAnswer Choices: (A) Repair (B) Plication",
    "options": {"A": "Repair", "B": "Plication"},
    "label": "B",
    "images": ["MM-0-a.jpeg", "MM-0-b.png"],
    "medical_task": "Treatment",
    "body_system": "Skeletal",
    "question_type": "Reasoning",
}


def xpert(root, *changes):
    jsonl(root / "MM" / "test.jsonl", [XPERT, *(XPERT | change for change in changes)])
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        archive.writestr("__MACOSX/images/._MM-0-a.jpeg", b"junk")
        archive.writestr("images/MM-0-a.jpeg", png(1))
        archive.writestr("images/MM-0-b.png", png(2))


def test_medxpertqa_of_the_hub_with_its_zip(tmp_path):
    xpert(tmp_path)
    found = benchmarks.load("medxpertqa_mm", tmp_path)
    (item,) = found.items
    assert texts(item) == ("MM-0", "A man falls. Which step?", ("Repair", "Plication"), "B", "choice")
    assert item.columns["raw_question"] == XPERT["question"]
    assert item.labels == {"question_type": "Reasoning", "medical_task": "Treatment", "body_system": "Skeletal"}
    assert [image.open() for image in item.images] == [png(1), png(2)]
    assert found.labels == ("question_type", "medical_task")
    assert "items 1 (2000)" in found.census["differs"]


def test_an_image_is_found_by_its_name_in_either_form_of_unicode(tmp_path):
    jsonl(tmp_path / "MM" / "test.jsonl", [XPERT | {"images": ["R\u00f6ntgen.png"]}])
    write(tmp_path / "images" / "Ro\u0308ntgen.png", png())
    (item,) = benchmarks.load("medxpertqa_mm", tmp_path).items
    assert item.images[0].open() == png()


def test_medxpertqa_of_the_repository_reads_the_same(tmp_path):
    xpert(tmp_path / "hub")
    row = XPERT | {
        "options": [{"letter": key, "content": text} for key, text in XPERT["options"].items()],
        "label": ["B"],
        "images": [{"image_path": name} for name in XPERT["images"]],
    }
    jsonl(tmp_path / "git" / "medxpertqa_mm_input.jsonl", [row])
    for number, name in enumerate(XPERT["images"], 1):
        write(tmp_path / "git" / "images" / name, png(number))
    (hub,), (copy,) = (benchmarks.load("medxpertqa_mm", tmp_path / name).items for name in ("hub", "git"))
    assert hub == copy and [a.sha256 for a in hub.images] == [a.sha256 for a in copy.images]


def test_medxpertqa_text_has_no_images(tmp_path):
    jsonl(tmp_path / "Text" / "test.jsonl", [{k: v for k, v in XPERT.items() if k != "images"} | {"id": "Text-0"}])
    (item,) = benchmarks.load("medxpertqa_text", tmp_path).items
    assert item.benchmark == "medxpertqa_text" and item.images == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "C"}, ("row 2", "label", "'C'", "A, B")),
        ({"label": ["A", "B"]}, ("row 2", "label")),
        ({"label": None}, ("row 2", "label")),
        ({"options": {"A": "x", "C": "y"}}, ("row 2", "options", "A, B")),
        ({"options": "A"}, ("row 2", "options")),
        ({"question": " "}, ("row 2", "question")),
        ({"images": []}, ("row 2", "images")),
        ({"images": ["MM-9-a.png"]}, ("1 of 2 items lack an image", "row 2", "MM-9-a.png", "skip_broken")),
        ({}, ("row 2", "'MM-0'", "twice")),
    ],
)
def test_a_broken_row_of_medxpertqa_is_named_or_left_out_and_counted(tmp_path, change, words):
    xpert(tmp_path, ({"id": "MM-1"} if change else {}) | change)
    refused("medxpertqa_mm", tmp_path, *words)
    found = benchmarks.load("medxpertqa_mm", tmp_path, skip_broken=True)
    assert [item.id for item in found.items] == ["MM-0"] and found.census["rows"] == 2
    assert len(found.census["malformed"]) + len(found.census["missing_images"]) == 1
    assert "left out" in benchmarks.describe(found)


def test_lines_that_are_no_objects_are_counted(tmp_path):
    xpert(tmp_path)
    jsonl(tmp_path / "MM" / "test.jsonl", ["{", XPERT, "[1]"])
    refused("medxpertqa_mm", tmp_path, "2 of 3 malformed rows", "row 1: not JSON", "row 3: an object is needed")


# PMC-VQA --------------------------------------------------------------------------------------------------------------

V2 = ("index", "Figure_path", "Caption", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer", "split")
V1 = ("Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label")


def table(path, header, *rows):
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header, *rows])
    write(path, buffer.getvalue())


def test_pmc_vqa_v2_keeps_the_cells_beside_the_clean_texts(tmp_path):
    cells = [" A: Green ", " B:\xa0Red, pale ", " C: 3:1 ", " D: Yellow"]
    table(
        tmp_path / "test_2.csv",
        V2,
        ["7", "PMC1_F1.jpg", "A, cell\nof two lines", " What colour? ", *cells, "B", "test"],
    )
    with zipfile.ZipFile(tmp_path / "images_2.zip", "w") as archive:
        archive.writestr("figures/PMC1_F1.jpg", png(3))
    found = benchmarks.load("pmc_vqa", tmp_path)
    (item,) = found.items
    assert texts(item) == ("v2-1", "What colour?", ("Green", "Red, pale", "3:1", "Yellow"), "B", "choice")
    assert item.columns["raw_options"] == tuple(cells) and item.columns["raw_question"] == " What colour? "
    assert item.images[0].open() == png(3)
    assert found.columns == {} and found.census["labels"] == {"letters": {"A, B, C, D": 1}}


@pytest.mark.parametrize(
    ("row", "options", "answer"),
    [  # rows of the distributed train.csv
        (["'One patient", " 'A:One patient ", " B:Two patients ", " C:Three ", " D:Four patients ' ", "'"], 0, "A"),
        (["Nucleus of M", " A: Nucleus of p ", " C: Nucleus of M   ", " C: Nucleus of e  ", " D: N ", "C"], 1, "B"),
        (['" Focal pattern', ' "A: Focal pattern ', " B: x ", " C: y ", ' D: occlusion" ', '"'], 2, "A"),
        (["N/A", " A: N/A ", " B: defect ", " C: arteries ", " D: None. ", "A"], 3, "A"),
        (["T: thyroid", " A: T: testes ", " B: T: trachea ", " C: T: thyroid ", " D: T: thymus ", "C"], 4, "C"),
    ],
)
def test_pmc_vqa_v1_reads_what_is_mislabelled_by_place(tmp_path, row, options, answer):
    expected = [
        ("One patient", "Two patients", "Three", "Four patients"),
        ("Nucleus of p", "Nucleus of M", "Nucleus of e", "N"),
        ("Focal pattern", "x", "y", "occlusion"),
        ("N/A", "defect", "arteries", "None."),
        ("T: testes", "T: trachea", "T: thyroid", "T: thymus"),
    ]
    table(tmp_path / "test.csv", V1, ["F.jpg", ' "What is it?" ', *row])
    write(tmp_path / "images" / "F.jpg", png())
    (item,) = benchmarks.load("pmc_vqa", tmp_path, subset="v1").items
    assert (item.question, item.options, item.answer) == ("What is it?", expected[options], answer)


def test_pmc_vqa_versions_are_kept_apart(tmp_path):
    table(tmp_path / "test_clean.csv", V1, ["F.jpg", "Q?", "x", "A:x", "B:y", "C:z", "D:w", "A"])
    write(tmp_path / "images" / "F.jpg", png())
    assert len(benchmarks.load("pmc_vqa", tmp_path, subset="v1_clean").items) == 1
    refused("pmc_vqa", tmp_path, "test_2.csv", "but F.jpg, test_clean.csv", "figures/")
    refused("pmc_vqa", tmp_path, "test split only", subset="v1_clean", split="train")
    with pytest.raises(ConfigError, match="no subset 'v3': choose one of v2, v1, v1_clean"):
        benchmarks.load("pmc_vqa", tmp_path, subset="v3")


@pytest.mark.parametrize(
    "options",
    [
        '{"A": "Repair", "B": "Plication"}',
        "{'A': 'Repair', 'B': 'Plication'}",
        ["Repair", "Plication"],
        ["A. Repair", "B. Plication"],
        {"B": "Plication", "A": "Repair", "C": "nan"},
        {"a": "Repair", "b": "Plication"},
    ],
)
def test_options_of_medxpertqa_as_tools_write_them_again(tmp_path, options):
    xpert(tmp_path, {"id": "MM-1", "options": options, "images": '["MM-0-a.jpeg"]'})
    item = benchmarks.load("medxpertqa_mm", tmp_path).items[1]
    assert (item.options, item.answer, len(item.images)) == (("Repair", "Plication"), "B", 1)


def test_images_of_one_name_in_two_folders_are_refused_unless_they_are_one_image(tmp_path):
    jsonl(tmp_path / "MM" / "test.jsonl", [XPERT | {"images": ["a.png"]}])
    write(tmp_path / "images" / "test" / "a.png", png(1))
    write(tmp_path / "images" / "copy" / "a.png", png(1))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("images\\test\\a.png", png(1))  # as some tools of Windows write it
    assert benchmarks.load("medxpertqa_mm", tmp_path).items[0].images[0].open() == png(1)
    write(tmp_path / "images" / "dev" / "a.png", png(2))
    refused("medxpertqa_mm", tmp_path, "dev/a.png", "which differ")


def test_what_is_packed_in_a_form_that_is_not_read_is_named(tmp_path):
    jsonl(tmp_path / "MM" / "test.jsonl", [XPERT])
    write(tmp_path / "images.tar.gz", b"\x1f\x8b")
    refused("medxpertqa_mm", tmp_path, "images.tar.gz is not looked into, unpack it")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("MM/test.jsonl", json.dumps(XPERT))
    content = bytearray((tmp_path / "all.zip").read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.find(mark) + place] |= 1  # encrypted
    write(tmp_path / "locked.zip", bytes(content))
    refused("medxpertqa_mm", tmp_path / "locked.zip", "locked.zip", "encrypted")


def test_parts_of_a_table_that_are_not_there_are_named(tmp_path):
    rows = [{"image": {"bytes": png(1), "path": None}, "question": "Normal?", "answer": "yes"}]
    for part in (0, 2):
        parquet(tmp_path / "data" / f"test-0000{part}-of-00003.parquet", rows)
    refused("pathvqa", tmp_path, "test-00001-of-00003 is not there")
    refused("vqa_rad", tmp_path, "test-00001-of-00003 is not there")
    parquet(tmp_path / "data" / "test-00001-of-00003.parquet", rows)
    assert [item.id for item in benchmarks.load("vqa_rad", tmp_path).items] == ["1", "2", "3"]


def test_a_broken_row_of_pmc_vqa_is_named(tmp_path):
    good = ["1", "F.jpg", "c", "Q?", "A:x", "B:y", "C:z", "D:w", "A", "test"]
    table(tmp_path / "test_2.csv", V2, good, good[:-2], [*good[:8], "E", "test"], [*good[:4], "A: ", *good[5:]])
    write(tmp_path / "figures" / "F.jpg", png())
    words = (
        "row 2: 8 cells under 10 columns",
        "row 3, key Answer: 'E'",
        "row 4, key Choice A: the right option is empty",
    )
    refused("pmc_vqa", tmp_path, "3 of 4 malformed rows", *words)
    lacking = [V2.index("Choice D")]
    table(tmp_path / "test_2.csv", [c for i, c in enumerate(V2) if i not in lacking], [*good[:7], *good[8:]])
    refused("pmc_vqa", tmp_path, "row 1, key Choice D: no such column")


# OmniMedVQA -----------------------------------------------------------------------------------------------------------

OMNI = {
    "dataset": "Chest CT Scan",
    "question_id": "Chest CT Scan_0000",
    "question_type": "Modality Recognition",
    "question": "What imaging technique was employed?",
    "gt_answer": "CT",
    "image_path": "Images/Chest CT Scan/test/000143 (6).png",
    "option_A": "Angiography",
    "option_B": "ECG",
    "option_C": "Mammogram",
    "option_D": "CT",
    "modality_type": "CT(Computed Tomography)",
}


def omni(root, *rows, name="Chest CT Scan"):
    write(root / "QA_information" / "Open-access" / f"{name}.json", json.dumps(list(rows)))
    for row in rows:
        write(root / row["image_path"], png(len(row["image_path"])))


def test_omnimedvqa_with_either_name_of_the_modality_and_options_missing(tmp_path):
    other = {key: value for key, value in OMNI.items() if key not in ("modality_type", "option_C", "option_D")}
    other |= {"modality": "X-Ray", "question_id": "B_1", "gt_answer": "ecg. ", "image_path": "Images/B/1.png"}
    omni(tmp_path, OMNI)
    omni(tmp_path, other, name="B")
    write(tmp_path / "QA_information" / "Restricted-access" / "C.json", json.dumps([OMNI]))
    second, first = sorted(benchmarks.load("omnimedvqa", tmp_path).items, key=lambda item: item.id)
    second, first = first, second
    assert (first.answer, first.columns["raw_answer"], first.labels["modality"]) == ("B", "ecg.", "X-Ray")
    assert first.options == ("Angiography", "ECG")
    assert (second.answer, second.columns["raw_answer"], second.labels["modality"]) == ("D", "D", OMNI["modality_type"])
    assert second.columns["raw_options"][3] == "D. CT" and second.images[0].open() == png(len(OMNI["image_path"]))


def test_omnimedvqa_inside_its_zip_reads_as_unpacked(tmp_path):
    omni(tmp_path / "OmniMedVQA", OMNI)
    with zipfile.ZipFile(tmp_path / "OmniMedVQA.zip", "w") as archive:
        for path in (tmp_path / "OmniMedVQA").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path))
    (a,), (b,) = (benchmarks.load("omnimedvqa", tmp_path / name).items for name in ("OmniMedVQA", "OmniMedVQA.zip"))
    assert a == b and a.images[0].sha256 == b.images[0].sha256


def test_omnimedvqa_keys_that_are_no_option_stay_and_repeated_options_count(tmp_path):
    rows = [
        OMNI | {"question_id": "1", "gt_answer": "MRI"},
        OMNI | {"question_id": "2", "option_A": "CT"},
    ]
    omni(tmp_path, *rows)
    found = benchmarks.load("omnimedvqa", tmp_path)
    assert [item.answer for item in found.items] == ["MRI", "A"]
    assert [item.columns["raw_answer"] for item in found.items] == ["MRI", "D"]  # the kit takes the last equal option
    assert found.census["keys_without_option"] == 1
    assert "keys that are no option's text: 1" in benchmarks.describe(found)


@pytest.mark.parametrize(
    ("change", "options", "answer"),
    [
        ({"gt_answer": "D", "option_B": None}, ("Angiography", "Mammogram", "CT"), "C"),  # a letter of the file
        ({"gt_answer": "D. CT"}, ("Angiography", "ECG", "Mammogram", "CT"), "D"),
        ({"gt_answer": 2, "option_A": 1, "option_B": 2, "option_C": 3}, ("1", "2", "3", "CT"), "B"),
        ({"option_C": "nan"}, ("Angiography", "ECG", "CT"), "C"),
    ],
)
def test_a_key_of_omnimedvqa_is_the_option_that_it_means(tmp_path, change, options, answer):
    omni(tmp_path, OMNI | change)
    (item,) = benchmarks.load("omnimedvqa", tmp_path).items
    assert (item.options, item.answer) == (options, answer)


def test_an_object_a_line_may_stand_behind_a_byte_order_mark(tmp_path):
    omni(tmp_path, OMNI)
    lines = [json.dumps(OMNI | {"question_id": str(number)}) for number in range(2)]
    write(tmp_path / "QA_information" / "Open-access" / "Chest CT Scan.json", "\ufeff" + "\r\n".join(lines))
    assert len(benchmarks.load("omnimedvqa", tmp_path).items) == 2


def test_omnimedvqa_names_broken_rows(tmp_path):
    rows = [OMNI | {"question_id": "2", "gt_answer": None}, OMNI | {"question_id": "3", "option_A": None}]
    rows[1] |= {"option_B": "", "option_C": None}
    omni(tmp_path, OMNI, *rows)
    refused("omnimedvqa", tmp_path, "2 of 3", "row 2, key gt_answer", "row 3, key option_A to option_D")
    write(tmp_path / "QA_information" / "Open-access" / "A.json", '{"a": 1}')
    refused("omnimedvqa", tmp_path, "A.json", "a list of objects is needed")


def test_omnimedvqas_training_part_shares_no_image_with_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(omnimedvqa, "TRAINING", 100)
    rows = [
        OMNI | {"question_id": f"q{n}", "image_path": f"Images/{min(n // 3, n - 60)}.png", "modality_type": "AB"[n % 2]}
        for n in range(300)
    ]
    write(tmp_path / "QA_information" / "Open-access" / "A.json", json.dumps(rows))
    for name in {row["image_path"] for row in rows}:
        write(tmp_path / name, b"x")
    parts = {
        split: benchmarks.load("omnimedvqa", tmp_path, split=split, seed=n).items for n, split in enumerate(SPLITS)
    }
    names = {split: {image.name for item in items for image in item.images} for split, items in parts.items()}
    assert [len(parts[split]) for split in SPLITS] == [300, 100, 200]
    assert not names["train_1000"] & names["test_rest"]
    assert parts["train_1000"] == benchmarks.load("omnimedvqa", tmp_path, split="train_1000", seed=9).items


SPLITS = ("test", "train_1000", "test_rest")

# GMAI-MMBench ---------------------------------------------------------------------------------------------------------

GMAI = ("index", "image", "question", "A", "B", "C", "D", "E", "answer", "category")
GMAI += ("clinical VQA task", "department", "perceptual granularity", "modality")


def gmai(path, *rows):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerows([GMAI, *rows])
    write(path, buffer.getvalue())


def cells(index, **changes):
    row = dict(zip(GMAI, ("", base64.b64encode(png(index)).decode(), "What is it?"), strict=False))
    row |= {"A": "cyst", "B": "stone", "C": "clip", "D": "none", "E": "", "answer": "B", "category": "stone"}
    row |= {"clinical VQA task": "Organ Recognition - Head and Neck", "department": "Urology"}
    row |= {"perceptual granularity": "image", "modality": "CT"}
    row |= {"index": str(index)} | changes
    return [row[name] for name in GMAI]


@pytest.mark.parametrize("packed", [False, True])
def test_gmai_reads_images_out_of_the_table_in_any_order(tmp_path, packed):
    path = tmp_path / "GMAI_mm_bench_VAL.tsv"
    gmai(path, cells(0), cells(1, question='two\nlines, "quoted"\tand a tab'), cells(2, E="other", answer="E"))
    if packed:
        with zipfile.ZipFile(tmp_path / "gmai.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, "GMAI/GMAI_mm_bench_VAL.tsv")
        path = tmp_path / "gmai.zip"
    found = benchmarks.load("gmai_mmbench", path)
    first, second, third = found.items
    assert [third.images[0].open(), first.images[0].open(), second.images[0].open()] == [png(2), png(0), png(1)]
    assert first.options == ("cyst", "stone", "clip") and third.options == ("cyst", "stone", "clip", "none", "other")
    assert second.question == 'two\nlines, "quoted"\tand a tab' and third.answer == "E"
    assert found.columns["task"][first.labels["task"]] == "OR-H"
    assert first.labels["department"] == "Urology" and len(found.columns["task"]) == 18


def test_gmai_of_vlmevalkits_local_copy_names_image_files(tmp_path):
    row = dict(zip(GMAI, cells(0), strict=True))
    row["image_path"] = "images/GMAI/0.jpg"
    del row["image"]
    write(tmp_path / "GMAI_mm_bench_VAL_local.tsv", "\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    write(tmp_path / "images" / "GMAI" / "0.jpg", png(5))
    assert benchmarks.load("gmai_mmbench", tmp_path).items[0].images[0].open() == png(5)


@pytest.mark.parametrize("name", ["my_subset.tsv", "GMAI_mm_bench_VAL_subset.tsv", "val.TSV"])
def test_one_table_by_its_path_is_the_benchmark_whatever_its_name(tmp_path, name):
    row = dict(zip(GMAI, cells(0), strict=True)) | {"image_path": "images/0.jpg"}
    del row["image"]
    write(tmp_path / "images" / "0.jpg", png(5))
    write(tmp_path / name, "\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    assert benchmarks.load("gmai_mmbench", tmp_path / name).items[0].images[0].open() == png(5)
    with pytest.raises(DataError, match=r"holds no GMAI.* under that name$"):
        benchmarks.load("gmai_mmbench", tmp_path)


@pytest.mark.parametrize(("benchmark", "name"), [("gmai_mmbench", "train.tsv"), ("medqa", "part.jsonl")])
def test_a_table_that_may_be_another_split_or_subset_is_not_guessed(tmp_path, benchmark, name):
    gmai(tmp_path / name, cells(0))
    refused(benchmark, tmp_path / name, "holds no", "under that name")


def test_a_broken_row_of_gmai_is_named(tmp_path):
    rows = [cells(0), cells(1, answer="D"), cells(2, B=""), cells(3)[:-1], cells(4, answer="")]
    gmai(tmp_path / "GMAI_mm_bench_VAL.tsv", *rows)
    words = ("row 2, key answer: 'D'", "row 3, key A to E", "row 4: 13 cells under 14 columns", "and 1 more")
    refused("gmai_mmbench", tmp_path, "4 of 5 malformed rows", *words)


def test_an_image_that_is_no_base64_is_one_line_when_it_is_opened(tmp_path):
    gmai(tmp_path / "GMAI_mm_bench_VAL.tsv", cells(0, image="%%%"))
    (item,) = benchmarks.load("gmai_mmbench", tmp_path).items
    with pytest.raises(DataError, match="not base64"):
        item.images[0].open()


@pytest.mark.parametrize("form", ["data:image/png;base64,{}", "{}", "{urlsafe}", "{wrapped}", "{unpadded}"])
def test_an_image_of_gmai_is_read_from_base64_as_the_field_writes_it(tmp_path, form):
    plain = base64.b64encode(png(6)).decode()
    forms = {"urlsafe": base64.urlsafe_b64encode(png(6)).decode(), "unpadded": plain.rstrip("=")}
    forms["wrapped"] = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    gmai(tmp_path / "GMAI_mm_bench_VAL.tsv", cells(0, image=form.format(plain, **forms)))
    assert benchmarks.load("gmai_mmbench", tmp_path).items[0].images[0].open() == png(6)


def test_an_image_cell_may_name_the_row_that_holds_the_image_before_or_behind_it(tmp_path):
    gmai(tmp_path / "GMAI_mm_bench_VAL.tsv", cells(0), cells(1, image="0"), cells(2, image="3"), cells(3))
    items = benchmarks.load("gmai_mmbench", tmp_path).items
    assert [item.images[0].open() for item in items] == [png(0), png(0), png(3), png(3)]


def test_a_lone_quote_inside_a_cell_is_text(tmp_path):
    lines = ["\t".join(GMAI)]
    for index, question in enumerate(('a 3" mass', 'what is "it', 'a "quoted" word')):
        lines.append("\t".join(cells(index, question=question)))
    write(tmp_path / "GMAI_mm_bench_VAL.tsv", "\n".join(lines) + "\n")
    found = benchmarks.load("gmai_mmbench", tmp_path)
    assert [item.question for item in found.items] == ['a 3" mass', 'what is "it', 'a "quoted" word']
    assert [item.images[0].open() for item in found.items] == [png(0), png(1), png(2)]


@pytest.mark.parametrize("image", ["@@@@", "a.jpg", "77", "['aGVsbG8=']"])
def test_an_image_that_cannot_be_read_is_named_by_file_and_row(tmp_path, image):
    gmai(tmp_path / "GMAI_mm_bench_VAL.tsv", cells(0), cells(1, image=image))
    item = benchmarks.load("gmai_mmbench", tmp_path).items[1]
    with pytest.raises(DataError, match=r"GMAI_mm_bench_VAL\.tsv, row 2, image: not "):
        item.images[0].picture()


def test_blank_lines_of_a_table_move_no_image(tmp_path):
    lines = ["\t".join(GMAI), *("\t".join(cells(index)) for index in range(3))]
    write(tmp_path / "GMAI_mm_bench_VAL.tsv", "\n\n".join(lines) + "\n")
    items = benchmarks.load("gmai_mmbench", tmp_path).items
    assert [item.images[0].open() for item in items] == [png(0), png(1), png(2)]


def test_a_table_that_ends_within_a_quoted_cell_is_named(tmp_path):
    lines = ["\t".join(GMAI), *("\t".join(cells(n, question=text)) for n, text in enumerate(("a", '"12 leads', "b")))]
    write(tmp_path / "GMAI_mm_bench_VAL.tsv", "\n".join(lines) + "\n")
    refused("gmai_mmbench", tmp_path, "row 2: not TSV (a quote opens a cell and is never closed)")


def test_a_lone_carriage_return_in_a_table_cuts_no_text_short(tmp_path):
    write(tmp_path / "x.tsv", "question\tanswer\nWhere?\tleft\rlung\n")
    with pytest.raises(DataError, match=r"x\.tsv, row 1: not TSV \(new-line character"):
        list(read(InFolder(tmp_path / "x.tsv"), "x.tsv"))


@given(st.lists(st.lists(st.text(alphabet='ab"\t\n ', max_size=6), min_size=2, max_size=2), min_size=1, max_size=6))
def test_records_of_a_table_are_those_of_the_csv_module(rows):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows(rows)
    reread = csv.reader(io.StringIO(buffer.getvalue(), newline=""), delimiter="\t")
    found = list(_records(io.BytesIO(buffer.getvalue().encode())))
    again = [next(csv.reader(io.StringIO(record.decode(), newline=""), delimiter="\t")) for _, record in found]
    assert again == [cells for cells, _ in found]
    blank = [row for row in again if not any(map(str.strip, row))]  # a quoted line break; other blank rows are skipped
    assert [row for row in again if row not in blank] == [row for row in reread if any(map(str.strip, row))]


def test_columns_sg_and_sr_follow_the_printed_figures():
    """Each printed figure of SG is k / 239 and of SR k / 336 to the two digits that are printed, and not exchanged."""
    headings = dict(gmai_mmbench.TASKS.values())
    places = {column.heading: place for place, column in enumerate(GMAI_TABLE.columns)}
    for heading, count in (("SG", 239), ("SR", 336)):
        figures = [figures[places[heading]] for figures in GMAI_TABLE.rows.values()]
        assert headings[heading] == count
        assert all(any(abs(100 * k / count - figure) < 0.0101 for k in range(count + 1)) for figure in figures)


# The five others ------------------------------------------------------------------------------------------------------


def test_vqa_rad_of_the_hub(tmp_path):
    rows = [
        {"image": {"bytes": png(n), "path": None}, "question": f"q{n}", "answer": a}
        for n, a in enumerate(("yes", "No", "left lung"))
    ]
    parquet(
        tmp_path / "data" / "test-00000-of-00001-abc.parquet", [*rows, {"image": None, "question": "q", "answer": "a"}]
    )
    refused("vqa_rad", tmp_path, "1 of 4 items lack an image", "row 4")
    found = benchmarks.load("vqa_rad", tmp_path, skip_broken=True)
    assert [(item.answer, item.kind, item.columns["raw_answer"]) for item in found.items] == [
        ("yes", "yes_no", "yes"),
        ("no", "yes_no", "No"),
        ("left lung", "open", "left lung"),
    ]
    assert [item.images[0].open() for item in reversed(found.items)] == [png(2), png(1), png(0)]


def test_vqa_rad_of_the_authors_holds_both_splits(tmp_path):
    row = {"qid": 1, "image_name": "synpic1.jpg", "image_organ": "HEAD", "answer": 2, "answer_type": "OPEN"}
    row |= {"question": "How many?", "question_type": "COUNT", "phrase_type": "test_freeform"}
    rows = [row, row | {"qid": 2, "phrase_type": "freeform"}, row | {"qid": 3, "phrase_type": "test_para"}]
    write(tmp_path / "VQA_RAD Dataset Public.json", json.dumps(rows))
    write(tmp_path / "VQA_RAD Image Folder" / "synpic1.jpg", png())
    assert [item.id for item in benchmarks.load("vqa_rad", tmp_path).items] == ["1", "3"]
    (item,) = benchmarks.load("vqa_rad", tmp_path, split="train").items
    assert (item.id, item.answer, item.kind, item.labels["organ"]) == ("2", "2", "open", "HEAD")


def test_pathvqa_numbers_its_rows_across_files(tmp_path):
    for part in range(2):
        rows = [{"image": {"bytes": png(n), "path": "x"}, "question": "q?", "answer": "no"} for n in range(3)]
        parquet(tmp_path / "data" / f"test-0000{part}-of-00002.parquet", rows)
    items = benchmarks.load("pathvqa", tmp_path).items
    assert [item.id for item in items] == list("123456") and items[5].images[0].open() == png(2)


def test_slake_keeps_a_language_and_knows_how_the_kit_judges(tmp_path):
    row = {"img_id": 1, "img_name": "xmlab1/source.jpg", "question": "Is it normal?", "answer": "Yes", "q_lang": "en"}
    row |= {"location": "Lung", "modality": "X-Ray", "answer_type": "CLOSED", "content_type": "Abnormality", "qid": 1}
    rows = [row, row | {"qid": 2, "q_lang": "zh", "answer": "是"}]
    rows.append(row | {"qid": 3, "answer": "Liver, Kidney", "answer_type": "OPEN"})
    write(tmp_path / "test.json", json.dumps(rows))
    with zipfile.ZipFile(tmp_path / "imgs.zip", "w") as archive:
        archive.writestr("imgs/xmlab1/source.jpg", png(8))
        archive.writestr("imgs/xmlab2/source.jpg", png(9))
    closed, answered = benchmarks.load("slake", tmp_path).items
    assert (closed.answer, closed.kind, closed.columns) == ("yes", "yes_no", {"raw_answer": "Yes", "kit": "close"})
    assert (answered.answer, answered.kind, answered.columns["kit"]) == ("Liver, Kidney", "open", "open")
    assert closed.images[0].open() == png(8)
    (chinese,) = benchmarks.load("slake", tmp_path, subset="zh").items
    assert (chinese.id, chinese.answer, chinese.kind, chinese.labels["language"]) == ("2", "是", "open", "zh")
    assert len(benchmarks.load("slake", tmp_path, subset="all").items) == 3


@pytest.mark.parametrize(
    ("kind", "options", "answer", "read"),
    [
        ("yes_no", (), "Yes", "yes"),
        ("yes_no", (), "No.", "no"),
        ("yes_no", (), "没有", "no"),
        ("choice", ("gout", "lupus"), "b", "B"),
        ("choice", ("gout", "lupus"), "lupus", "B"),
        ("choice", ("gout", "a"), "a", "B"),
        ("choice", ("gout", "lupus"), "sepsis", "sepsis"),
        ("yes_no", (), "maybe", "row 1: answer 'maybe' of kind yes_no is neither yes nor no"),
        ("closed", (), "Yes", "row 1: kind 'closed' is none of choice, yes_no, open, report, rubric"),
        ("choice", (1, 2), "A", "row 1: options (1, 2) are not all texts"),
    ],
)
def test_a_readers_key_is_read_in_any_form_or_refused_in_one_line(tmp_path, monkeypatch, kind, options, answer, read):
    def item(row, files, subset):
        return Case("1", "Which?", options, answer, kind=kind)

    spec = registry.Spec("own", "Own", rows=lambda files, split, subset: ["row"], item=item)
    monkeypatch.setitem(registry._SPECS, "own", spec)
    write(tmp_path / "test.json", "[]")
    if read.startswith("row"):
        with pytest.raises(DataError, match=re.escape(read)):
            benchmarks.load("own", tmp_path)
    else:
        assert benchmarks.load("own", tmp_path).items[0].answer == read


SUBJECTS = ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy")


def test_mmmu_reads_options_and_images_of_five_subjects(tmp_path):
    row = {
        "question": "See <image 1>. Which?",
        "options": "['<image 2>', \"it's B\"]",
        "explanation": "",
        "answer": "B",
    }
    row |= {"question_type": "multiple-choice", "topic_difficulty": "Easy", "subfield": "x", "img_type": "['CT']"}
    row |= {f"image_{n}": {"bytes": png(n), "path": f"{n}.png"} if n < 3 else None for n in range(1, 8)}
    for subject in (*SUBJECTS, "Public_Health"):
        rows = [row | {"id": f"validation_{subject}_1"}]
        rows.append(row | {"id": f"validation_{subject}_2", "question_type": "open", "options": "[]", "answer": "8"})
        parquet(tmp_path / subject / "validation-00000-of-00001.parquet", rows)
    found = benchmarks.load("mmmu_medical", tmp_path)
    choice, answered = found.items[:2]
    assert choice.options == ("<image 2>", "it's B") and [i.open() for i in choice.images] == [png(1), png(2)]
    assert (answered.kind, answered.answer, answered.columns) == ("open", "8", {"kit": "mmmu"})
    assert choice.labels["subject"] == "Basic Medical Science" and len(found.items) == 10
    several = rows[1] | {"answer": "['8', 'eight']"}
    parquet(tmp_path / "Public_Health" / "validation-00000-of-00001.parquet", [several])
    item = benchmarks.load("mmmu_medical", tmp_path).items[-1]
    assert [score(item, said, form="plain").right for said in ("Eight", "8", "9")] == [True, True, False]
    (tmp_path / "Pharmacy" / "validation-00000-of-00001.parquet").write_bytes(b"PAR1")
    refused("mmmu_medical", tmp_path, "Pharmacy", "not a readable Parquet file")


@pytest.mark.parametrize(
    ("subset", "path"), [("4_options", "phrases_no_exclude_test.jsonl"), ("5_options", "US/test.jsonl")]
)
def test_medqa_in_both_shapes(tmp_path, subset, path):
    row = {"question": "Q?", "answer": "b", "options": {"A": "a", "B": "b"}, "meta_info": "step1", "answer_idx": "B"}
    jsonl(tmp_path / path, [row])
    (item,) = benchmarks.load("medqa", tmp_path, subset=subset).items
    assert texts(item) == ("1", "Q?", ("a", "b"), "B", "choice") and item.labels == {"step": "step1"}
    jsonl(tmp_path / path, [row | {"answer": "a"}])
    refused("medqa", tmp_path, "row 1, key answer", "not the text of option B", subset=subset)


# Text benchmarks of MedEvalKit's list ---------------------------------------------------------------------------------


MEDMCQA = {"id": "a1", "question": "Which?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "subject_name": "Anatomy"}


def test_medmcqa_counts_its_keys_from_where_each_distribution_does(tmp_path):
    parquet(tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet", [MEDMCQA | {"cop": 3, "exp": None}])
    jsonl(tmp_path / "authors" / "dev.json", [MEDMCQA | {"cop": 4}, MEDMCQA | {"id": "a2", "cop": 1}])
    (hub,) = benchmarks.load("medmcqa", tmp_path / "hub").items
    last, first = benchmarks.load("medmcqa", tmp_path / "authors").items
    assert texts(hub) == ("a1", "Which?", ("w", "x", "y", "z"), "D", "choice") == texts(last)
    assert first.answer == "A" and hub.labels == {"subject": "Anatomy"}


@pytest.mark.parametrize("key", [-1, 4, "x", 1.5, None])
def test_a_key_of_medmcqa_that_is_no_place_is_named(tmp_path, key):
    jsonl(tmp_path / "validation.jsonl", [MEDMCQA | {"cop": key}])
    refused("medmcqa", tmp_path, "row 1", "key cop")


def test_pubmedqa_of_the_kit_and_of_the_authors_say_the_same(tmp_path):
    options = {"A": "yes", "B": "no", "C": "maybe"}
    kit = {"Question": "Does it?", "Context": ["one", "two"], "Options": options, "Correct Option": "C"}
    jsonl(tmp_path / "kit" / "test.jsonl", [{"id": "7", "data": kit}])
    authors = {"pubid": 7, "question": "Does it?", "context": {"contexts": ["one", "two"]}, "final_decision": "maybe"}
    parquet(tmp_path / "hub" / "pqa_labeled" / "train-00000-of-00001.parquet", [authors])
    (first,) = benchmarks.load("pubmedqa", tmp_path / "kit").items
    (second,) = benchmarks.load("pubmedqa", tmp_path / "hub", subset="labeled").items
    assert texts(first) == ("7", "Context: one\ntwo\nDoes it?", ("yes", "no", "maybe"), "C", "choice") == texts(second)
    jsonl(tmp_path / "kit" / "test.jsonl", [{"id": "7", "data": kit | {"Options": {"A": "yes"}}}])
    refused("pubmedqa", tmp_path / "kit", "row 1", "three texts")


def test_medbullets_of_the_authors_and_of_a_copy(tmp_path):
    row = {"question": "Which?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "ope": "v", "answer_idx": "D"}
    write(tmp_path / "medbullets_op4.csv", ",".join(row) + "\n" + ",".join(row.values()) + "\n")
    copy = {"question": "Which?", "options": dict(zip("ABCD", "wxyz", strict=True)), "answer_idx": "D"}
    parquet(tmp_path / "copy" / "train-00000-of-00001.parquet", [copy])
    (authors,) = benchmarks.load("medbullets", tmp_path / "medbullets_op4.csv").items
    (hub,) = benchmarks.load("medbullets", tmp_path / "copy").items
    assert texts(authors) == ("1", "Which?", ("w", "x", "y", "z"), "D", "choice") == texts(hub)
    refused("medbullets", tmp_path / "copy", "5 options are needed, got 4", subset="op5")


def test_mmlu_reads_its_subjects(tmp_path):
    from mmedexpert_jax.data.benchmarks.mmlu_medical import SIX

    row = {"question": "Which?", "choices": ["w", "x", "y", "z"], "answer": 2}
    for subject in SIX:
        parquet(tmp_path / subject / "test-00000-of-00001.parquet", [row, row | {"answer": 0}])
    items = benchmarks.load("mmlu_medical", tmp_path).items
    assert len(items) == 12 and texts(items[0]) == ("anatomy-1", "Which?", ("w", "x", "y", "z"), "C", "choice")
    parquet(tmp_path / "anatomy" / "test-00000-of-00001.parquet", [row | {"choices": ["w", "x"]}])
    refused("mmlu_medical", tmp_path, "row 1, key choices: 4 texts are needed, got 2")


def test_supergpqa_keeps_its_medicine(tmp_path):
    row = {"uuid": "u", "question": "Which?", "options": list("klmnopqrst"), "answer": "t", "answer_letter": "J"}
    row |= {"discipline": "Medicine", "field": "Surgery", "difficulty": "hard"}
    jsonl(tmp_path / "SuperGPQA-all.jsonl", [row, row | {"uuid": "v", "discipline": "Law"}])
    (item,) = benchmarks.load("supergpqa_medicine", tmp_path).items
    assert texts(item) == ("u", "Which?", tuple("klmnopqrst"), "J", "choice")
    jsonl(tmp_path / "SuperGPQA-all.jsonl", [row | {"answer": "k"}, row | {"options": "k"}])
    refused("supergpqa_medicine", tmp_path, "not the text of option J", "a list of texts is needed")


def test_medframeqa_shows_its_frames_in_order(tmp_path):
    images = {f"image_{n}": {"bytes": png(n), "path": None} if n < 4 else None for n in range(1, 6)}
    row = {"question_id": "q", "question": "Which?", "options": ["A. w", "B. x"], "correct_answer": "B"} | images
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [row, row | {"question_id": "r"}])
    first, _ = benchmarks.load("medframeqa", tmp_path).items
    assert texts(first) == ("q", "Which?", ("w", "x"), "B", "choice")
    assert [image.open() for image in first.images] == [png(1), png(2), png(3)]


# Chinese examinations of MedEvalKit's list ----------------------------------------------------------------------------


def test_cmb_joins_the_authors_keys_and_keeps_questions_with_one_right_answer(tmp_path):
    row = {"id": 1, "exam_type": "医师考试", "exam_class": "规培结业", "question_type": "单项选择题", "question": "患"}
    row |= {"option": {"A": "甲", "B": "乙", "C": ""}}
    several = row | {"id": 2, "question_type": "多项选择题"}
    write(tmp_path / "raw" / "CMB-test-choice-question-merge.json", json.dumps([row, several]))
    write(tmp_path / "raw" / "CMB-test-choice-answer.json", json.dumps([{"id": 1, "answer": "B"}]))
    listed = [{"key": "A", "value": "甲"}, {"key": "B", "value": "乙"}]
    parquet(tmp_path / "copy" / "test-00000-of-00001.parquet", [row | {"option": listed, "answer": "B"}])
    (raw,), (copy,) = (benchmarks.load("cmb", tmp_path / name).items for name in ("raw", "copy"))
    assert texts(raw) == ("1", "患", ("甲", "乙"), "B", "choice") == texts(copy)
    assert raw.columns["raw_options"] == ("A.甲", "B.乙") and raw.labels["language"] == "zh"
    write(tmp_path / "raw" / "CMB-test-choice-answer.json", "[]")
    refused("cmb", tmp_path / "raw", "row 1, key answer")


def test_cmexam_of_the_authors_and_of_a_copy_and_keys_of_several_letters(tmp_path):
    lines = "A 甲\nB 乙 丙\nC 丁"
    table = io.StringIO()
    csv.writer(table).writerows(
        [["Question", "Options", "Answer"], ["患", lines, "B"], ["者", lines, "AC"], ["x", lines, ""]]
    )
    write(tmp_path / "csv" / "test.csv", table.getvalue())
    listed = [{"key": key, "value": value} for key, value in (("A", "甲"), ("B", "乙 丙"), ("C", "丁"))]
    jsonl(tmp_path / "hub" / "test.jsonl", [{"Question": "患", "Options": listed, "Answer": "B"}])
    found = benchmarks.load("cmexam", tmp_path / "csv")
    (hub,) = benchmarks.load("cmexam", tmp_path / "hub").items
    one, several = found.items
    assert texts(one) == ("1", "患", ("甲", "乙 丙", "丁"), "B", "choice") == texts(hub)
    assert (
        several.answer == "A, C" and several.columns["raw_answer"] == "AC" and found.census["keys_without_option"] == 1
    )
    jsonl(tmp_path / "hub" / "test.jsonl", [{"Question": "患", "Options": listed, "Answer": "AD"}])
    refused("cmexam", tmp_path / "hub", "row 1, key Answer: letters among A, B, C are needed, got 'AD'")


def test_cmmlu_reads_its_seven_subjects(tmp_path):
    from mmedexpert_jax.data.benchmarks.cmmlu_medical import SUBJECTS

    for subject in SUBJECTS:
        write(tmp_path / "test" / f"{subject}.csv", ",Question,A,B,C,D,Answer\n0,患,甲,乙,丙,丁,C\n")
    found = benchmarks.load("cmmlu_medical", tmp_path)
    assert len(found.items) == 7 and texts(found.items[0]) == (
        "anatomy-1",
        "患",
        ("甲", "乙", "丙", "丁"),
        "C",
        "choice",
    )
    assert "items 7 (1333)" in found.census["differs"]


def test_medqa_mcmle_shows_its_options_as_the_kit_does(tmp_path):
    row = {
        "question": "患",
        "options": {"A": "甲", "B": "乙"},
        "answer": "乙",
        "answer_idx": "B",
        "meta_info": "卫生法规",
    }
    jsonl(tmp_path / "Mainland" / "test.jsonl", [row])
    (item,) = benchmarks.load("medqa_mcmle", tmp_path).items
    assert texts(item) == ("1", "患", ("甲", "乙"), "B", "choice") and item.columns["raw_options"] == ("甲", "乙")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"A": "x", "B": {"text": "y"}}, "every option is a text"),
        ("no letters", "an object of letters"),
        ([{"key": "A", "value": "x"}], "the letters are 'A', not A"),
        (dict.fromkeys("ABCDEFGHIJK", "x"), "the letters are"),
        (None, "an object of letters"),
    ],
)
def test_options_that_are_no_list_of_letters_are_one_line(tmp_path, options, words):
    jsonl(tmp_path / "Mainland" / "test.jsonl", [{"question": "Q", "options": options, "answer_idx": "A"}])
    refused("medqa_mcmle", tmp_path, "row 1, key options", words)


def test_values_of_another_type_are_read_or_named(tmp_path):
    parquet(tmp_path / "pandas" / "validation-0.parquet", [MEDMCQA | {"cop": 1.0}])
    assert benchmarks.load("medmcqa", tmp_path / "pandas").items[0].answer == "B"
    xpert(tmp_path / "text", {"id": "MM-9", "images": "MM-0-b.png"})
    second = benchmarks.load("medxpertqa_mm", tmp_path / "text").items[1]
    assert second.images[0].open() == png(2)
    six = {"options": dict(zip("ABCDEF", "uvwxyz", strict=True)), "answer_idx": "F", "answer": "z"}
    jsonl(tmp_path / "six" / "phrases_no_exclude_test.jsonl", [{"question": "Which?"} | six])
    assert benchmarks.load("medqa", tmp_path / "six").items[0].answer == "F"


def test_ones_own_cases_go_on_without_broken_rows_where_asked(tmp_path):
    good = {"id": "1", "question": "Which?", "options": ["gout", "flu"], "answer": "B"}
    bad = [good | {"id": "2", "answer": "E"}, good | {"id": "3", "images": ["gone.png"]}, good]
    jsonl(tmp_path / "test.jsonl", [good, *bad])
    refused("mmedexpert_mini", tmp_path, "3 of 4 malformed rows", "row 2, key answer", "row 3, key images", "row 4: id")
    found = benchmarks.load("mmedexpert_mini", tmp_path, skip_broken=True)
    assert [item.id for item in found.items] == ["1"] and len(found.census["malformed"]) == 3
    jsonl(tmp_path / "test.jsonl", bad[:1])
    with pytest.raises(DataError, match=r"no usable row .*1 of 1 malformed rows: .*row 1, key answer"):
        benchmarks.load("mmedexpert_mini", tmp_path, skip_broken=True)
