"""The splits of a data set: by case, and by the vignette that several questions share."""

import io
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmedexpert_jax.mmedexpert.dataset_build import Built, split
from mmedexpert_jax.mmedexpert.record import Check, RawCase, Trace, held

STEM = "A 67-year-old woman has had a fever, a cough and confusion for two days, patient {}. "


def built(id, question, specialty="AM", paradigm="bayesian", images=(), person=""):
    pictures = [SimpleNamespace(sha256=image) for image in images]
    case = SimpleNamespace(id=id, question=question, images=pictures, person=person)
    return Built(SimpleNamespace(case=case, specialty=specialty, id=f"{id}.{paradigm}", paradigm=paradigm), "", "none")


def places(parts):
    return {one.trace.case.id: name for name, part in parts.items() for one in part}


@given(st.integers(0, 99))
def test_questions_on_one_vignette_are_in_one_split(seed):
    asked = ("What is the diagnosis?", "What is given first?")
    rows = [
        built(f"case-{patient}-{number}", STEM.format(patient) + question, ("AM", "BS")[number])
        for patient in range(20)
        for number, question in enumerate(asked)
    ]
    found = places(split(rows, 0.2, 0.2, seed))
    assert all(found[f"case-{patient}-0"] == found[f"case-{patient}-1"] for patient in range(20))
    assert set(found.values()) == {"train", "dev", "test"}


@pytest.mark.parametrize(
    ("vignette", "asked"),
    [
        ("患者，男，{}岁，突发胸痛2小时，伴大汗、恶心。{}", ("最可能的诊断是（　　）。", "首选的治疗是")),
        ("患者，男，{}岁，突发胸痛2小时，伴大汗、恶心，{}", ("最可能的诊断是", "首选的治疗是")),
        ("{}歳の男性。2時間前からの胸痛を主訴に来院した。{}", ("診断はどれか。1つ選べ。", "治療はどれか。1つ選べ。")),
        (STEM + "{}", ("The most likely diagnosis is:", "The first treatment is:")),
        (STEM + "{}", ("What is it? Choose one.", "What helps? Select two.")),
        (STEM.strip() + "\n{}", ("What is it?", "What helps?")),
        (STEM + "{}", ('What is it?"', 'What helps?"')),
        ("{1} " + STEM.format("{0}"), ("What is it?", "What helps?")),
        (
            "رجل عمره {} عاما يعاني من ألم في الصدر منذ ساعتين مع تعرق وغثيان ودوار. {}",
            ("ما هو التشخيص؟", "ما هو العلاج؟"),
        ),
    ],
)
def test_a_vignette_is_known_whatever_mark_the_question_has(vignette, asked):
    rows = [
        built(f"case-{patient}-{number}", vignette.format(patient, question))
        for patient in range(30, 60)
        for number, question in enumerate(asked)
    ]
    found = places(split(rows, 0.1, 0.1, 0))
    assert all(found[f"case-{patient}-0"] == found[f"case-{patient}-1"] for patient in range(30, 60))
    assert set(found.values()) == {"train", "dev", "test"}


def test_short_introductions_are_shared_by_chance_and_part_nothing():
    rows = [built(f"case-{i}", f"A patient comes in. What is {i} times 2?") for i in range(10)]
    parts = split(rows, 0.2, 0.2, 0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 6, "dev": 2, "test": 2}


def test_a_long_introduction_that_all_share_parts_the_set_as_before():
    words = "Look carefully at the image below and read the clinical information before you answer the question."
    found = places(split([built(f"case-{i}", f"{words} What is shown in {i}?") for i in range(30)], 0.2, 0.2, 0))
    assert sorted(found.values()) == ["dev"] * 6 + ["test"] * 6 + ["train"] * 18


def test_a_specialty_of_one_case_gives_it_to_train():
    assert places(split([built("case-1", "Why?")], 0.2, 0.2, 0)) == {"case-1": "train"}


@given(st.integers(0, 99))
def test_questions_about_one_image_are_in_one_split(seed):
    asked = ("What does the radiograph show?", "Which drug should be given?")
    rows = [
        built(f"case-{image}-{number}", question, ("AM", "BS")[number], images=("logo", f"picture {image}"))
        for image in range(40)
        for number, question in enumerate(asked)
    ]
    found = places(split(rows, 0.1, 0.2, seed))
    assert all(found[f"case-{image}-0"] == found[f"case-{image}-1"] for image in range(40))
    assert set(found.values()) == {"train", "dev", "test"}  # a picture that all share joins none


def test_cases_of_one_patient_are_in_one_split_and_a_column_that_tells_none_apart_joins_none():
    def rows(people):
        return [built(f"case-{i}", f"What is {i} times 2?", ("AM", "BS")[i % 2], person=people[i]) for i in range(60)]

    found = places(split(rows([str(i // 3) for i in range(60)]), 0.1, 0.2, 0))
    assert all(len({found[f"case-{i}"] for i in range(at, at + 3)}) == 1 for at in range(0, 60, 3))
    assert set(found.values()) == {"train", "dev", "test"}
    assert places(split(rows(["1"] * 60), 0.1, 0.2, 0)) == places(split(rows([""] * 60), 0.1, 0.2, 0))


def test_vignettes_and_images_join_in_a_chain_and_cases_without_either_stay_where_they_were():
    alone = [built(f"case-{i}", f"What is {i} times 2?") for i in range(30)]
    before = places(split(alone, 0.2, 0.2, 0))
    chain = [built("x-1", STEM.format(1) + "Why?", images=("a",)), built("x-2", STEM.format(1) + "How?", images=("b",))]
    chain += [built("x-3", "What is seen?", images=("b", "c")), built("x-4", "And here?", images=("c",))]
    for seed in range(20):
        found = places(split([*alone, *chain], 0.2, 0.2, seed))
        assert len({found[one.trace.case.id] for one in chain}) == 1
    assert places(split([*alone, built("x-5", "And here?", images=("d",))], 0.2, 0.2, 0)).keys() > before.keys()


def test_an_image_is_named_by_what_its_file_is():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    case = RawCase("x-1", "Which?", ("a", "b"), "A", images=(held("scan.dcm", buffer.getvalue()),))
    trace = Trace("t", case, "analytical", "(1) a. (2) b.", "", "", 0, "", Check(True, "A"))
    (image,) = Built(trace, trace.text, "none").row()["images"]
    assert image["path"].endswith(".png") and image["bytes"] == buffer.getvalue()
