"""Questions with a reference answer and no options, through collection, prompt, filter and review."""

import json
from dataclasses import replace

import pytest

from mmedexpert_jax.data.case import PARADIGMS
from mmedexpert_jax.data.case_files import load_cases
from mmedexpert_jax.data.prompts import render
from mmedexpert_jax.mmedexpert import filters, funnel, teacher_prompts, trace_synthesis
from mmedexpert_jax.mmedexpert.dataset_build import Built, identifies, write
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.record import Check, RawCase, Trace
from mmedexpert_jax.mmedexpert.review.checks import problems
from mmedexpert_jax.mmedexpert.review.import_export import case_text
from mmedexpert_jax.mmedexpert.review.review_traces import from_case
from mmedexpert_jax.mmedexpert.sources import collect
from tests.mmedexpert import fake_teacher

RECORD = RawCase("x-1", "What is the most likely diagnosis?", (), "Gout", "AM")
SOUND = {
    "differential": "(1) Candidates are Gout, sepsis and lupus. (2) Sepsis is unlikely without fever. (3) Lupus is "
    "excluded by the normal titre. (4) The crystals fit Gout.",
    "intuitive": "(1) A red toe at night after beer forms one pattern. (2) It is typical of Gout.",
    "analytical": "(1) Urate crystals form because the serum is saturated. (2) They cause pain. (3) So it is Gout.",
    "bayesian": "(1) Prior: sepsis is rare here. (2) Evidence: crystals raise Gout, no fever lowers infection. "
    "(3) Posterior: Gout is most probable.",
}


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a_trace_is_filtered_by_its_reference_answer_and_its_moves(paradigm):
    assert filters.check(render(SOUND[paradigm], "gout."), RECORD, paradigm).passed  # case and full stop aside
    assert filters.check(render(SOUND[paradigm], "Lupus"), RECORD, paradigm).reasons == ("wrong-answer",)
    assert "malformed" in filters.check(SOUND[paradigm], RECORD, paradigm).reasons
    first = filters.check(render("(1) The answer is Gout. (2) Because of crystals.", "Gout"), RECORD, paradigm)
    assert "answer-first" in first.reasons


def test_a_teacher_is_asked_for_words_and_never_told_the_reference():
    system, *_, asked = teacher_prompts.conversation(RECORD, "bayesian", "full", (40, 400))
    assert "only your answer, in as few words as it takes, inside <answer>" in system["content"]
    assert asked["content"][-1]["text"] == RECORD.question and "Gout" not in str(asked)
    choice = teacher_prompts.rules("bayesian", (40, 400))
    assert "then only the letter of your answer inside <answer></answer>" in choice


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a_reviewers_edit_is_checked_against_the_reference(paradigm):
    trace = Trace("t", RECORD, paradigm, SOUND[paradigm], "", "someone", 0, "", Check(True, "Gout", ()))
    assert problems(trace, SOUND[paradigm]) == []
    assert problems(trace, "(1) Only one statement.") != []


def test_rows_without_options_are_collected(tmp_path):
    (tmp_path / "own.jsonl").write_text(
        '{"id": "a", "question": "What is it?", "answer": "Gout", "specialty": "AM"}\n'
        '{"id": "b", "question": "What is it?", "answer": "B"}\n'
    )
    found = collect([str(tmp_path / "own.jsonl")])
    assert [(one.question, one.options, one.answer, one.answer_text) for one in found.records] == [
        ("What is it?", (), "Gout", "Gout")
    ]


def test_numbers_signs_and_yes_or_no_are_open_answers_and_a_lone_letter_is_none(tmp_path):
    answers = [3, 2.5, 4.0, "7", "肝", "K", True, False, "B", "j"]
    rows = [json.dumps({"question": f"How many of {n}?", "answer": answer}) for n, answer in enumerate(answers)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    found = collect([str(tmp_path / "own.jsonl")])
    assert [one.answer for one in found.records] == ["3", "2.5", "4", "7", "肝", "K", "yes", "no"]
    assert [(row["row"], "no options for the answer" in row["detail"]) for row in found.rejected] == [
        (9, True),
        (10, True),
    ]
    rows = [json.dumps(json.loads(row) | {"id": str(n)}) for n, row in enumerate(rows[:8])]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    read = load_cases(tmp_path / "own.jsonl", "train")
    assert [one.answer for one in read] == [one.answer for one in found.records]


def test_candidates_of_open_questions_are_counted_and_luck_finds_no_words():
    tally = trace_synthesis.Tally()
    for text in ("gout.", "Lupus"):
        response = render(SOUND["intuitive"], text)
        check = filters.check(response, RECORD, "intuitive")
        trace_synthesis.count(tally, Trace("t", RECORD, "intuitive", "", response, "someone", 0, "", check))
    assert (tally.asked, tally.matched, tally.passed, tally.by_luck) == (2, 1, 1, 0.0)


def test_a_reference_answer_in_other_capitals_is_matched_in_the_funnel():
    checks = [filters.check(render(SOUND["bayesian"], said), RECORD, "bayesian") for said in ("gout.", "Lupus")]
    traces = [
        Trace(str(place), RECORD, "bayesian", "", "", "teacher", place, "", check) for place, check in enumerate(checks)
    ]
    for trace, matched in zip(traces, (1, 0), strict=True):
        row = funnel.funnel([(RECORD, "bayesian")], [trace], {}, [])[-1]
        assert (row["traced"], row["matched"], row["passed"]) == (1, matched, matched)


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_stand_in_answers_a_question_without_options(paradigm):
    messages = teacher_prompts.conversation(RECORD, paradigm, "full", (40, 400))
    check = filters.check(fake_teacher.answer({"messages": messages, "seed": 1}), RECORD, paradigm, (40, 400))
    assert "malformed" not in check.reasons and "too-short" not in check.reasons and check.answer


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.jsonl", '{"question": "What is it?", "answer": "Gout", "accepted": ["podagra", "uric arthritis"]}'),
        ("own.csv", "Question,Answer,Accepted\nWhat is it?,Gout,podagra; uric arthritis\n"),
        ("own.csv", 'question,answer,accepted\nWhat is it?,Gout,"[""podagra"", ""uric arthritis""]"\n'),
    ],
)
def test_what_else_is_right_stays_from_the_row_to_the_set_that_is_built(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    (found,) = collect([str(tmp_path / name)]).records
    (tmp_path / "bare.jsonl").write_text('{"question": "What is it?", "answer": "Gout"}')
    (bare,) = collect([str(tmp_path / "bare.jsonl")]).records
    assert found.id == bare.id and bare.golds == ("Gout",)

    store = Store(tmp_path / "factory.sqlite")
    store.replace_cases([replace(found, specialty="AM", id="x-1"), replace(bare, specialty="AM", id="x-2")])
    for (record,) in store.read("SELECT record FROM cases WHERE id = 'x-2'"):
        assert "accepted" not in json.loads(record)  # as files of before have it
    case, other = store.cases()
    assert case.golds == ("Gout", "podagra", "uric arthritis") and other.golds == ("Gout",)

    reasoning = "(1) Urate crystals form because it is saturated. (2) They cause pain. (3) So it is podagra."
    said = render(reasoning, "Podagra")
    assert filters.check(said, case, "analytical").passed
    assert filters.check(said, other, "analytical").reasons == ("wrong-answer",)
    listed = SOUND["differential"].replace("Gout", "podagra")
    assert filters.check(render(listed, "podagra"), case, "differential").passed
    first = filters.check(render("(1) The answer is podagra. (2) Because.", "podagra"), case, "analytical")
    assert "answer-first" in first.reasons

    trace = Trace("t", case, "analytical", reasoning, said, "someone", 0, "", Check(True, "Podagra"))
    assert problems(trace, reasoning) == [] and case_text(trace).endswith("Answer: Gout or podagra or uric arthritis")
    unlike = Trace("u", other, "analytical", SOUND["analytical"], "", "someone", 0, "", Check(True, "Gout"))
    write(tmp_path / "built", {"train": [Built(one, one.text, "none") for one in (trace, unlike)]})
    read = load_cases(tmp_path / "built", "train")
    assert [one.golds for one in read] == [case.golds, ("Gout",)]
    assert from_case(read[0]).case.golds == case.golds


def test_a_text_of_a_person_is_found_among_what_else_is_right():
    told = replace(RECORD, columns={"accepted": ["gout, call 617-555-0134"]})
    traces = [Trace("t", one, "intuitive", "", "", "", 0, "", Check(True, "Gout")) for one in (told, RECORD)]
    made = [Built(trace, trace.text, "none") for trace in traces]
    assert [identifies(one) for one in made] == [True, False]
