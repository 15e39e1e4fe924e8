"""Moves, prompts and checks of the four paradigms, the gate, specialties and duplicates."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmedexpert_jax.data import contamination
from mmedexpert_jax.data.case import PARADIGMS, SPECIALTIES
from mmedexpert_jax.data.embedded import generate
from mmedexpert_jax.data.paradigms import PARADIGMS as KNOWN
from mmedexpert_jax.data.prompts import render
from mmedexpert_jax.data.words import word_count
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert import (
    decontamination,
    duplicates,
    eligibility,
    filters,
    paradigm_rules,
    specialties,
    teacher_prompts,
    trace_judge,
    trace_synthesis,
)
from mmedexpert_jax.mmedexpert.exemplars import EXEMPLARS
from mmedexpert_jax.mmedexpert.paradigm_rules import FORBIDDEN, REQUIRED
from mmedexpert_jax.mmedexpert.record import RawCase, held
from mmedexpert_jax.mmedexpert.review.rubric import RUBRIC
from mmedexpert_jax.remote import EndpointReply


def record(question="What is the most likely diagnosis?", options=("Gout", "Sepsis", "Lupus"), answer="A", **fields):
    return RawCase("x-1", question, options, answer, **fields)


SOUND = {
    "differential": "(1) Candidates are Gout, Sepsis and Lupus. (2) Sepsis is unlikely without fever. (3) Lupus is "
    "excluded by the normal titre. (4) The crystals fit Gout.",
    "intuitive": "(1) A red toe at night after beer forms one pattern. (2) It is typical of Gout.",
    "analytical": "(1) Urate crystals form because the serum is saturated. (2) They cause pain. (3) So it is Gout.",
    "bayesian": "(1) Prior: Sepsis is rare here. (2) Evidence: crystals raise gout, no fever lowers infection. "
    "(3) Posterior: Gout is most probable.",
}


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_sound_traces_and_exemplars_pass_under_their_own_paradigm_alone(paradigm):
    assert filters.check(render(SOUND[paradigm], "A"), record(), paradigm).passed
    for exemplar in EXEMPLARS:
        case = record(exemplar.question, exemplar.options, exemplar.answer)
        passed = [
            p for p in PARADIGMS if filters.check(render(exemplar.traces[paradigm], exemplar.answer), case, p).passed
        ]
        assert passed == [paradigm]


CHINESE = {
    "differential": "(1)候选诊断有痛风、败血症和狼疮。(2)患者没有发热，败血症的可能性较低。"
    "(3)抗体滴度正常，可排除狼疮。(4)关节液中的尿酸盐结晶符合痛风。",
    "intuitive": "（1）中年男性饮酒后夜间第一跖趾关节突发红肿热痛，这些表现构成一个典型的模式。"
    "（2）该模式是痛风的典型特征，因此考虑痛风。",
    "analytical": "(1)血尿酸过饱和，因此在关节内析出尿酸盐结晶。"
    "(2)结晶被吞噬后释放炎症介质，导致关节红肿热痛。(3)所以诊断为痛风。",
    "bayesian": "(1)先验：在该年龄段，败血症少见。(2)证据：偏光镜下见结晶，痛风的可能性升高；"
    "患者体温正常，感染的可能性降低。(3)后验：痛风最可能。",
}


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a_chinese_trace_is_as_long_as_its_characters_make_words_and_makes_its_moves(paradigm):
    case = record("最可能的诊断是什么？", ("痛风", "败血症", "狼疮"))
    found = {p: filters.check(render(CHINESE[paradigm], "A"), case, p, (30, 60)) for p in PARADIGMS}
    assert found[paradigm].passed, found[paradigm].reasons
    assert "too-short" in filters.check(render(CHINESE[paradigm], "A"), case, paradigm, (70, 90)).reasons
    assert not found["bayesian"].passed or paradigm == "bayesian"


@pytest.mark.parametrize(
    ("paradigm", "think", "follows"),
    [
        ("analytical", "(1) ST段抬高，提示前壁缺血。(2) 肌钙蛋白升高反映心肌坏死。(3) 诊断为痛风。", True),
        ("analytical", "(1) 闭塞使心肌缺血，从而出现ST段抬高。(2) 于是肌钙蛋白升高。", True),
        ("analytical", "(1) 患者使用胰岛素。(2) 有交通事故史，缘故不明。(3) 起搏器故障。", False),
        ("analytical", "(1) 即使没有发热，仍可考虑肺炎。(2) 患者无故跌倒两次。(3) 痛风。", False),
        ("analytical", "(1) 父亲病故，既往因故就诊。(2) 检查未提示异常，尿量未反映病情。(3) 痛风。", False),
        ("intuitive", "(1) 第一跖趾关节红肿。(2) 这是痛风的经典表现。", True),
        ("bayesian", "(1) 初始概率：痛风可能性较大。(2) 见结晶，可能性增加。(3) 修正后概率：痛风极高。", True),
    ],
)
def test_chinese_words_of_cause_and_of_probability_are_known(paradigm, think, follows):
    assert KNOWN[paradigm].follows(think, ("痛风", "败血症")) == follows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one two  three", 3),
        ("→ a", 2),
        ("患者发热三天", 4),
        ("CT 显示肺炎。", 4),
        ("ผู้ป่วยมีไข้", 3),
        ("", 0),
        ("환자는 열이 있다", 3),
    ],
)
def test_words_are_counted_in_scripts_with_and_without_blanks(text, words):
    assert word_count(text) == words


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_what_passes_follows_the_shared_rule_that_rewards_apply(paradigm):
    assert KNOWN[paradigm].follows(SOUND[paradigm], record().options)


@pytest.mark.parametrize(
    ("paradigm", "text", "lacks"),
    [
        ("differential", "(1) Gout or Sepsis. (2) Sepsis is excluded. (3) Gout fits.", "missing:candidates"),
        ("differential", "(1) Gout, Sepsis, Lupus are candidates. (2) Gout fits best.", "missing:for-and-against"),
        ("differential", SOUND["differential"] + " (5) The posterior is high.", "forbidden:probabilities"),
        ("intuitive", "(1) A red toe. (2) It is Gout.", "missing:pattern"),
        (
            "intuitive",
            "(1) A typical picture. (2) Sepsis is excluded. (3) Lupus is unlikely. (4) Gout.",
            "forbidden:list",
        ),
        ("analytical", "(1) A red toe was seen. (2) So it is Gout.", "missing:links"),
        ("bayesian", "(1) Evidence: crystals. (2) Prior: rare. (3) Posterior: Gout.", "missing:prior-to-posterior"),
        ("bayesian", "(1) Prior: rare. (2) Evidence: crystals. (3) Posterior: Gout.", "missing:updates"),
        ("intuitive", "(1) A typical picture. (2) It is Lupus.", "missing:conclusion"),
        ("analytical", "No numbers, because there are none.", "missing:statements"),
    ],
)
def test_a_missing_or_forbidden_move_is_named(paradigm, text, lacks):
    assert f"structure:{lacks}" in filters.check(render(text, "A"), record(), paradigm).reasons


def test_an_option_that_speaks_of_a_posterior_place_is_no_probability():
    options = ("Posterior urethral valves", "Ureterocele", "Occiput posterior")
    for place in (0, 2):
        text = f"(1) A valve obstructs, which leads to reflux. (2) Because of this it is {options[place]}."
        assert paradigm_rules.missing(text, "analytical", options, place) == []


def test_every_move_stands_in_the_prompt():
    for paradigm in PARADIGMS:
        told = teacher_prompts.rules(paradigm, (40, 400))
        assert all(move.demand in told for move in (*REQUIRED[paradigm], *FORBIDDEN[paradigm]))
        assert KNOWN[paradigm].definition in told and "40 to 400 words" in told


@pytest.mark.parametrize(
    ("response", "finish", "reason"),
    [
        ("", "content_filter", "no-answer-came"),
        (render(SOUND["intuitive"], "A"), "length", "cut-short"),
        (SOUND["intuitive"], "stop", "malformed"),
        (render(SOUND["intuitive"], "A or B"), "stop", "unreadable-answer"),
        (render(SOUND["intuitive"], "B"), "stop", "wrong-answer"),
        (render("(1) Typical. (2) Gout.", "A"), "stop", "too-short"),
        (render(SOUND["intuitive"] * 9, "A"), "stop", "too-long"),
        (render("(1) The answer is Gout. (2) It is the typical picture of Gout.", "A"), "stop", "answer-first"),
        (render("Answer: A " + SOUND["intuitive"], "A"), "stop", "answer-first"),
        (render(SOUND["intuitive"] + " The provided answer agrees.", "A"), "stop", "answer-leak"),
        (render(SOUND["intuitive"] + " I was asked to use intuition.", "A"), "stop", "mentions-rules"),
    ],
)
def test_every_other_reason(response, finish, reason):
    found = filters.check(response, record(), "intuitive", (8, 60), finish)
    assert not found.passed and reason in found.reasons and reason in filters.REASONS


@pytest.mark.parametrize("finish", ["stop", "", "complete", "eos_token_id", "finishreason.stop", "normal", "no such"])
def test_a_reason_to_end_that_nobody_knows_throws_no_answer_away(finish):
    assert filters.check(render(SOUND["intuitive"], "A"), record(), "intuitive", finish=finish).passed


@pytest.mark.parametrize("finish", ["content_filter", "content-filter", "SAFETY", "refusal", "tool_calls"])
def test_what_is_no_answer_stays_none(finish):
    found = filters.check(render(SOUND["intuitive"], "A"), record(), "intuitive", finish=finish)
    assert found.reasons == ("no-answer-came",)


@pytest.mark.parametrize("finish", ["length", "max_length", "limit", "max-tokens"])
def test_every_word_for_a_limit_is_a_cut(finish):
    found = filters.check(render(SOUND["intuitive"], "A"), record(), "intuitive", finish=finish)
    assert found.reasons == ("cut-short",)


LEAKS = {  # reasoning -> whether it tells of an answer that was given
    "(1) The given answer is Gout.": True,
    "(1) It fits the provided correct answer of gout.": True,
    "(1) The given answer of the question is Gout.": True,
    "(1) By the official solution it is Gout.": True,
    "(1) The given key is B.": True,
    "(1) It agrees with the known key.": True,
    "(2) The answer was given before.": True,
    "(2) Since the answer is Gout, urate is high.": True,
    "(2) Because the correct answer is Gout, urate is high.": True,
    "(1) 因为正确答案是痛风，所以疼痛。": True,
    "(1) 参考答案提示痛风。": True,
    "(1) 已知的正确答案为痛风。": True,
    "(1) Da die richtige Antwort Gicht ist, tut es weh.": True,
    "(1) Laut Musterlösung ist es Gicht.": True,
    "(1) Puisque la bonne réponse est la goutte, elle souffre.": True,
    "(1) Ya que la respuesta correcta es gota, duele.": True,
    "(1) The given solution is 5 % dextrose.": False,
    "(1) A hypertonic saline solution is given first.": False,
    "(1) The stated answer of the patient means pain.": False,
    "(1) These are the known key mediators and the listed key findings.": False,
    "(2) Since the answer is not lupus, it is Gout.": False,
    "(3) The answer is Gout.": False,
    "(3) 因此答案是痛风。": False,
    "(2) 因为答案不是狼疮，所以是痛风。": False,
    "(3) Die richtige Antwort ist daher Gicht.": False,
    "(2) Da die richtige Antwort nicht Lupus sein kann, bleibt Gicht.": False,
    "(1) Comme la réponse immunitaire est faible, le QT corrigé est long.": False,
    "(1) Como la respuesta inmune es lenta, hay fiebre.": False,
}


@pytest.mark.parametrize(("think", "leaks"), LEAKS.items())
def test_an_answer_that_was_given_is_told_from_what_is_given_else(think, leaks):
    reasons = filters.check(render(think, "A"), record(), "intuitive").reasons
    assert ("answer-leak" in reasons) == leaks


@pytest.mark.parametrize(
    ("think", "told"),
    [
        ("(1) As a language model I cannot see.", True),
        ("(1) I am a large language model.", True),
        ("(1) As an AI I cannot see.", True),
        ("(1) A language model of aphasia explains the deficit.", False),
    ],
)
def test_a_model_that_speaks_of_itself_is_told_from_models_of_speech(think, told):
    assert ("mentions-rules" in filters.check(render(think, "A"), record(), "intuitive").reasons) == told


@pytest.mark.parametrize(
    ("think", "first"),
    [
        ("(1) Answer: B.", True),
        ("(1) Answer: b. It fits.", True),
        ("(1) The correct option is (c)", True),
        ("(1) Answer A is right.", True),
        ("(1) Option B explains the pain.", True),
        ("(1) The best answer is A, as urate is high.", True),
        ("(1) Choice A fracture would show a line.", False),
        ("(1) Answer: a red toe at night is seen.", False),
        ("(1) The best choice is a drug that lowers urate.", False),
    ],
)
def test_an_article_is_no_letter(think, first):
    assert filters.states_first(think, record()) == first


@pytest.mark.parametrize(
    ("question", "think", "new"),
    [
        ("Urate is 5,8 mmol/L.", "It is 9,5 mmol/L.", True),
        ("Urate is 5,8 mmol/L.", "It is 5,8 mmol/L.", False),
        ("Urate is 5.8 mmol/L.", "It is 5,8 mmol/L.", False),
        ("It gave 1,200 mg.", "1200 mg were given.", False),
        ("It gave 1200 mg.", "1,200 mg were given.", False),
        ("It gave 1,200 mg.", "1,300 mg were given.", True),
        ("Urate is high.", "It is 9.5 mmol/L.", True),
        ("She weighs 70 kg, 3.5 kg more.", "She weighs 70 kg.", False),
    ],
)
def test_measured_values_are_read_with_a_comma_too(question, think, new):
    found = filters.check(render(f"(1) {think} (2) So it is typical of Gout.", "A"), record(question), "intuitive")
    assert ("new-numbers" in found.flags) == new


def test_flags_do_not_fail_a_trace():
    pictured = record(images=(held("a.png", b"x"),))
    found = filters.check(
        render(SOUND["intuitive"] + " (3) Urate of 540 mmol is typical of Gout.", "A"), pictured, "intuitive"
    )
    assert found.passed and found.flags == ("image-not-mentioned", "new-numbers")


CODES = [criterion.code for criterion in RUBRIC["intuitive"]]
ALL, NONE = (dict.fromkeys(CODES, met) for met in (True, False))
FIRST_ALONE = NONE | {CODES[0]: True}


@pytest.mark.parametrize(
    ("reply", "marks"),
    [
        (json.dumps(ALL), ALL),
        (f"```json\n{json.dumps(FIRST_ALONE, indent=1)}\n```", FIRST_ALONE),
        ('I answer as {"code": true or false}: ' + json.dumps(FIRST_ALONE), FIRST_ALONE),
        (json.dumps(FIRST_ALONE) + ' as {"code": true or false} asks', FIRST_ALONE),
        (f"{json.dumps(ALL)} On reflection: {json.dumps(NONE)}", NONE),
        (str(FIRST_ALONE), FIRST_ALONE),  # as Python writes it
        (json.dumps(FIRST_ALONE).replace("true", "True").replace("false", "False"), FIRST_ALONE),
        (json.dumps({code: str(met) for code, met in FIRST_ALONE.items()}), FIRST_ALONE),
        (json.dumps(FIRST_ALONE | {"note": "a set {x} and {y}"}), FIRST_ALONE),
        (json.dumps({"marks": FIRST_ALONE}), FIRST_ALONE),
        (f"<think>{json.dumps(ALL)}</think>{json.dumps(NONE)}", NONE),
        ("", None),
        ("All are met.", None),
        ("as the source says {[1]} it holds", None),
        (json.dumps(dict.fromkeys(CODES, 1)), None),
        (json.dumps(dict.fromkeys(CODES, "yes")), None),
        (json.dumps(dict(list(ALL.items())[1:])), None),
        ("{" * 10_000 + "}" * 10_000, None),
    ],
)
def test_a_judges_marks_are_read_from_the_last_object_that_has_them_all(reply, marks):
    found = trace_judge.judgement(reply, "intuitive", "j")
    assert (found and dict(found.criteria)) == marks
    assert found is None or found.score == sum(marks.values()) / len(CODES)


def test_the_key_never_reaches_a_teacher():
    case = record(explanation="SECRET discussion", options=("Gout", "Sepsis", "Lupus"))
    for paradigm in PARADIGMS:
        for style in teacher_prompts.STYLES:
            keyed = [replace(case, answer=a) for a in "ABC"]
            texts = [str(teacher_prompts.conversation(one, paradigm, style, (8, 60))) for one in keyed]
            assert len(set(texts)) == 1 and "SECRET" not in texts[0]


@pytest.mark.parametrize(
    ("question", "kind", "count"),
    [
        ("A man has pain. What is the most likely diagnosis?", "diagnosis", 4),
        ("A man has pain. Which of the following is the most likely cause of his condition?", "diagnosis", 4),
        ("A man has pain. Which is the most appropriate next step in management?", "management", 3),
        ("A man has pain. Which test will confirm the diagnosis?", "management", 3),
        ("He takes a drug. Which of the following is its mechanism of action?", "mechanism", 1),
        ("She is well. Which statement is true?", "other", 1),
        ("She refuses. Which principle of medical ethics decides?", "other", 0),
        ("A study of 100 men. Which value is the odds ratio?", "other", 0),
    ],
)
def test_the_gate(question, kind, count):
    found = eligibility.with_paradigms(record(question))
    assert (found.asks, len(found.paradigms)) == (kind, count)


@given(st.lists(st.sampled_from(["diagnosis", "management", "mechanism"]), min_size=1, max_size=60), st.integers(0, 9))
def test_assignment_is_balanced_eligible_and_independent_of_the_order(kinds, seed):
    cases = [replace(record(), id=f"c{i}", paradigms=eligibility.APPLY[kind]) for i, kind in enumerate(kinds)]
    given_ = {r.id: p for r, p in eligibility.assign(cases, "balanced", seed)}
    assert given_ == {r.id: p for r, p in eligibility.assign(cases[::-1], "balanced", seed)}
    assert all(given_[r.id] in r.paradigms for r in cases)
    if set(kinds) == {"diagnosis"}:
        counts = Counter(given_.values())
        assert max(counts.values()) - min(counts[p] for p in PARADIGMS) <= 1
    assert len(eligibility.assign(cases, "all", seed)) == sum(len(r.paradigms) for r in cases)


def test_specialties_are_those_that_the_recipe_of_the_embedded_cases_knows():
    right = 0
    made = [one.case for one in generate(3, 240, "dev")]
    for case in made:
        found = specialties.classify(record(case.question, case.options, case.answer))
        assert found.specialty in SPECIALTIES and found.specialty_by
        right += found.specialty == case.specialty
    assert right >= 0.95 * len(made)


@pytest.mark.parametrize(
    ("question", "field", "specialty", "sub"),
    [
        ("A 12-year-old boy has a brain tumor and seizures.", "", "CAH", "neurology"),
        ("A 3-week-old girl vomits.", "", "CAH", ""),
        ("A 34-year-old woman, whose child is well, has migraine.", "", "BS", "neurology"),
        ("A 60-year-old man has colon cancer and liver metastases.", "", "CSI", "oncology"),
        ("A 45-year-old man has blurred vision.", "JAMA Ophthalmology", "BS", "ophthalmology"),
        ("A 70-year-old man has heart failure and angina.", "", "AM", "cardiology"),
        ("A 50-year-old man is tired.", "", "AM", ""),
        ("A patient is seen.", "JAMA Pediatrics", "CAH", ""),
        ("A primigravida at gestational age 32 weeks has hypertension.", "", "AM", "cardiology"),
        ("病人骨折发生后3天", "", "CSI", ""),
        ("引流管取出后3天发热", "", "AM", ""),
        ("出生后3天黄疸", "", "CAH", ""),
        ("Ein Magenkarzinom.", "", "CSI", ""),
    ],
)
def test_rules_of_the_specialties(question, field, specialty, sub):
    found = specialties.classify(record(question, ("one thing", "another"), field=field))
    assert (found.specialty, found.task) == (specialty, sub)


def test_votes_overrule_the_rules_only_with_a_majority():
    case = specialties.classify(record("A 50-year-old man is tired."))
    assert specialties.settle(case, ["BS", "BS"]).specialty == "BS"
    assert specialties.settle(case, ["BS", "CSI", "CSI"]).specialty_by == "votes"
    assert specialties.settle(case, ["BS", "CSI", ""]) == case
    assert specialties.vote("C") == "BS" and specialties.vote("<think>A or B</think> <answer>D</answer>") == "CSI"
    assert specialties.vote("Adult Medicine") == "AM" and specialties.vote("A or B") == ""


def test_near_duplicates_need_the_same_answer_and_images():
    text = "A 40-year-old man has fever, cough and chest pain after a long flight from abroad, and " * 3
    first, again = record(text + "asks."), replace(record(text + "wonders."), id="x-2")
    assert [(d.of, round(d.score, 1)) for d in duplicates.duplicates([first, again])] == [("x-1", 0.9)]
    assert not duplicates.duplicates([first, replace(again, answer="B")])
    assert not duplicates.duplicates([first, replace(again, images=(held("a", b"x"),))])
    assert not duplicates.duplicates([first, replace(again, question="Another text of many other words stands here.")])


def test_minhash_finds_what_the_exact_overlap_says():
    words = [f"w{i}" for i in range(60)]
    texts = [" ".join(words[: 60 - cut] + [f"z{cut}{i}" for i in range(cut)]) for cut in range(0, 60, 6)]
    cases = [replace(record(text), id=f"c{i}") for i, text in enumerate(texts)]
    grams = [duplicates.shingles(text) for text in texts]
    expected = [i for i in range(1, len(texts)) if len(grams[0] & grams[i]) / len(grams[0] | grams[i]) >= 0.6]
    found = [int(d.record.id[1:]) for d in duplicates.duplicates(cases, 0.6) if d.of == "c0"]
    assert found == expected and expected


def test_a_folder_of_test_sets_is_joined_by_what_comes_with_the_package(tmp_path):
    with pytest.raises(DataError, match="holds no benchmark; put each there in a directory or zip of its name"):
        decontamination.test_sets([f"all={tmp_path}"])
    (tmp_path / "medqa").mkdir()
    row = {"question": "Q?", "options": {"A": "x", "B": "y"}, "answer_idx": "A", "answer": "x", "meta_info": "step1"}
    (tmp_path / "medqa" / "phrases_no_exclude_test.jsonl").write_text(json.dumps(row))
    found = decontamination.compared(decontamination.test_sets([f"all={tmp_path}"]))
    assert found["medqa"] == 1 and found["mmedexpert_mini"] == 1280 and found["pathvqa"] == 0
    assert decontamination.compared(decontamination.test_sets(["mmedexpert_mini@dev"]))["mmedexpert_mini"] == 320


def test_cases_are_held_against_every_subset_of_a_test_set_in_a_folder(tmp_path):
    asked = {
        "en": "What organ of the abdomen is shown in this axial slice here?",
        "zh": "图中所示的是腹部的哪一个器官？请回答",
    }
    rows = [
        {"qid": n, "question": text, "answer": "x", "answer_type": "OPEN", "img_name": "a.png", "q_lang": language}
        for n, (language, text) in enumerate(asked.items(), 1)
    ]
    (tmp_path / "slake" / "imgs").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "slake" / "imgs" / "a.png")
    (tmp_path / "slake" / "test.json").write_text(json.dumps(rows))
    (tmp_path / "slake" / "train.json").write_text(json.dumps([rows[0] | {"qid": 9, "question": "Of training alone?"}]))
    tests = [known for known in decontamination.test_sets([f"all={tmp_path}"]) if known.name == "slake"]
    assert decontamination.compared(tests)["slake"] == 2  # each once, though a third subset has both
    film = held("a.png", (tmp_path / "slake" / "imgs" / "a.png").read_bytes())
    held_back = decontamination.leaked([record(asked["zh"], (), "x", images=(film,))], tests)
    assert {pair.test_id for pair in held_back.pairs} == {"1", "2"}


def slake(folder, **files):
    """SLAKE's files of (id, language, question) rows."""
    (folder / "imgs").mkdir(parents=True)
    picture = Image.new("RGB", (4, 4))
    for name, rows in files.items():
        for number, _, _ in rows:
            picture.save(folder / "imgs" / f"{number}.png")
        values = [
            {"qid": number, "q_lang": language, "question": question, "answer": "Yes", "answer_type": "CLOSED"}
            | {"img_name": f"{number}.png", "modality": "CT", "content_type": "x", "location": "y"}
            for number, language, question in rows
        ]
        (folder / f"{name}.json").write_text(json.dumps(values))


IN_CHINESE = "这名三十四岁的男性病人因为发热咳嗽和胸痛三天来医院急诊室看病，他的图像里是否可以看见肺部的大片实变？"
IN_ENGLISH = (
    "Does the picture of this man of 34 years, who has had fever, a cough and chest pain for three days, look healthy?"
)
SHOWN = (
    "Is there any large opacity in the left lower lobe of the lung of this woman, who has had night sweats for a month?"
)


def test_every_part_and_split_of_a_folder_of_test_sets_is_held_against_the_cases(tmp_path):
    rows = {
        "test": [(1, "en", IN_ENGLISH), (2, "zh", IN_CHINESE)],
        "validate": [(3, "en", SHOWN)],
        "train": [(4, "en", "Q?")],
    }
    slake(tmp_path / "slake", **rows)
    tests = decontamination.test_sets([f"all={tmp_path}"])
    cases = [
        replace(record(text), id=f"x-{n}") for n, text in enumerate((IN_CHINESE, IN_ENGLISH, SHOWN, "Q?", "Why so?"))
    ]
    cases = [replace(case, options=(), answer="Yes") for case in cases]
    found = decontamination.leaked(cases, tests)
    assert {pair.train_id for pair in found.pairs} == {"x-0", "x-1", "x-2"}
    assert len(found.pairs) == 3  # not again for the part "all", which has the items of both languages
    assert {pair.test_set for pair in found.pairs} == {"slake"}
    compared = decontamination.compared(tests)
    assert compared["slake"] == 3 and not any("slake:" in name or "slake@" in name for name in compared)


def test_parts_of_test_sets_that_are_not_there_are_said(tmp_path):
    slake(tmp_path / "some" / "slake", test=[(1, "en", IN_ENGLISH)])
    (tmp_path / "some" / "medqa").mkdir()
    row = {"question": "Q?", "options": {"A": "x", "B": "y"}, "answer_idx": "A", "answer": "x", "meta_info": "step1"}
    (tmp_path / "some" / "medqa" / "phrases_no_exclude_test.jsonl").write_text(json.dumps(row))
    compared = decontamination.compared(decontamination.test_sets([f"all={tmp_path / 'some'}"]))
    assert compared["slake"] == 1 and compared["slake@validation"] == 0 == compared["medqa:5_options"]
    assert not {"slake:en", "slake@train", "medqa:4_options", "mmedexpert_mini@dev"} & set(compared)
    said = decontamination.line(contamination.Findings([], []), compared)
    assert "mmedexpert_mini (1280 items)" in said and "medqa:5_options, slake@validation: name their files" in said
    assert {"test set": "slake@validation", "items": "not at hand"} in decontamination.table(compared)

    slake(tmp_path / "train" / "slake", train=[(1, "en", IN_ENGLISH)])
    with pytest.raises(DataError, match=r"holds no test\.json"):
        decontamination.test_sets([f"all={tmp_path / 'train'}"])


@pytest.mark.parametrize(
    ("entry", "items", "missing"),
    [
        ("slake", 1, {"slake:zh", "slake:all"}),
        ("slake:zh", 1, {"slake:en", "slake:all"}),
        ("slake:all", 2, set()),
        ("slake:en@validation", 1, {"slake:en", "slake:zh", "slake:all"}),
        ("slake@test", 1, {"slake:zh", "slake:all"}),
    ],
)
def test_one_part_of_a_test_set_is_not_taken_for_the_whole(tmp_path, entry, items, missing):
    slake(tmp_path / "s", test=[(1, "en", IN_ENGLISH), (2, "zh", IN_CHINESE)], validate=[(3, "en", SHOWN)])
    compared = decontamination.compared(decontamination.test_sets([f"{entry}={tmp_path / 's'}"]))
    assert compared["slake"] == items
    assert {name for name in compared if name.startswith(("slake:", "slake@"))} == missing
    assert not any(compared[name] for name in missing)


@pytest.mark.parametrize(
    ("text", "reasoning", "whole"),
    [
        ("<answer>B</answer>", "(1) One. (2) Two.", "<think>(1) One. (2) Two.</think>\n<answer>B</answer>"),
        ("(1) One.</think><answer>B</answer>", "", "<think>(1) One.</think><answer>B</answer>"),
        ("<think>(1) One.</think><answer>B</answer>", "hidden", "<think>(1) One.</think><answer>B</answer>"),
        ("<answer>B</answer>", " ", "<answer>B</answer>"),
        ("[THINK](1) One.[/THINK]<answer>B</answer>", "", "<think>(1) One.</think><answer>B</answer>"),
        ("<thinking>(1) One.</thinking><answer>B</answer>", "", "<think>(1) One.</think><answer>B</answer>"),
        (
            "[THINK]Hm.[/THINK]<think>(1) One.</think><answer>B</answer>",
            "",
            "<think>(1) One.</think><answer>B</answer>",
        ),
    ],
)
def test_reasoning_in_a_field_of_its_own_is_the_trace(text, reasoning, whole):
    assert trace_synthesis.whole(EndpointReply("k", text, reasoning=reasoning)) == whole


OLD = [
    "A man presents with a 3-day-old rash; he is 45 years old.",
    "A woman, 65, has a 10-day-old wound.",
    "A 70yo woman with a 2-week-old infarct",
    "A 62 y/o man takes baby aspirin",
    "A 62M on baby aspirin",
    "A 45 yo woman whose child has varicella",
    "A 45.5-year-old man",
    "A 30-year-old man with a 2-day-old itchy rash",
    "A woman whose 3-year-old son has measles is 30 years old",
    "A man of 62, with an 8-week-old femoral fracture",
    "患者，男，45岁，5岁时患哮喘",
    "Un homme de 62 ans",
    "Ein 62-jähriger Mann",
    "A 25-year-old primigravida",
    "A man with chest pain",
    "A 62 y.o. man and his son",
    "A 16F catheter was placed in a man aged 60.",
    "An 8-week-old gastric ulcer",
    "Mann, seit 5 Jahren Husten",
    "45-year-old man, 3-month-old stent",
]
YOUNG = [
    "A 3-day-old girl with rash",
    "A 6-month-old with a rash",
    "A 3-week-old is brought",
    "A 2-year-old boy",
    "A 5 yo with fever",
    "患儿，男，5岁",
    "Garçon âgé de 5 ans",
    "Ein 5-jähriger Junge",
    "A mother brings her 2-year-old son",
    "A 30-year-old woman brings her 2-year-old son",
    "A mother brings her child",
    "A 10-day-old male neonate",
    "A 14-year-old gymnast, 2-day-old wound",
    "A 0.5-month-old infant",
    "A 17.5-year-old boy",
    "A girl aged 7",
    "A boy, 6, coughs",
    "A 3-week-old, previously healthy girl",
    "A newborn has a rash",
    "A 5F with fever",
    "A 3-month-old African American infant has an infection",
    "A baby with cough",
    "A 6-year-old burn victim is brought in.",
    "A 7-year-old transplant recipient has fever.",
    "A boy aged 18 months has stridor.",
    "A neonate, age 20 hours, is blue",
    "Age: 5 years. Sex: F.",
    "Patient: 12 y, male.",
    "Male, 7 yrs, fever",
    "A sixteen-year-old athlete collapses.",
    "At 6 months of age he cannot sit",
    "Ein 14 Jahre alter Junge",
    "Ein 10 Monate alter Säugling",
    "Menino de 6 anos",
    "생후 6개월 남아",
    "患者，女，3月，腹泻。",
    "生后7天，黄疸。",
    "Мальчик 8 лет",
]


OLD += [
    "Age: 55 years. Sex: F.",
    "Patient: 42 y, male.",
    "A twenty-one-year-old athlete",
    "Ein 54 Jahre alter Mann",
    "Homem de 60 anos",
    "患者，女，3月前出现腹痛。",
    "Мужчина 58 лет, болеет 5 лет",
    "A woman aged 34 with 6 months of pain",
]


@pytest.mark.parametrize("text", OLD)
def test_an_age_of_a_wound_or_of_somebody_else_makes_no_child(text):
    assert not specialties.under_age(text)


@pytest.mark.parametrize("text", YOUNG)
def test_children_are_known_by_their_age_however_it_is_written(text):
    assert specialties.under_age(text)


KINDS = {
    "患者男，45岁。发热3天。最可能的诊断是什么？": "diagnosis",
    "患者发热。首先考虑的诊断是": "diagnosis",
    "该患者最可能的诊断为": "diagnosis",
    "其病因是": "diagnosis",
    "Un homme de 62 ans tousse. Quel est le diagnostic le plus probable ?": "diagnosis",
    "Welche Diagnose ist am wahrscheinlichsten?": "diagnosis",
    "¿Cuál es el diagnóstico más probable?": "diagnosis",
    "Qual è la diagnosi più probabile?": "diagnosis",
    "Qual o diagnóstico mais provável?": "diagnosis",
    "診断は何か。": "diagnosis",
    "発熱がある。診断はどれか。1つ選べ。": "diagnosis",
    "He has fever. The diagnosis is: Choose one.": "diagnosis",
    "为明确诊断，首选的检查是？": "management",
    "首选的治疗是什么？请选择。": "management",
    "Quel traitement proposez-vous ?": "management",
    "Quel examen permet de confirmer le diagnostic ?": "management",
    "Welche Therapie ist angezeigt?": "management",
    "Welche Untersuchung sichert die Diagnose?": "management",
    "Fiebre. ¿Cuál es el tratamiento de elección?": "management",
    "Which diagnostic test is best?": "management",
    "Which diagnostic study would confirm this?": "management",
    "该药的作用机制是？": "mechanism",
    "¿Cuál es el mecanismo de acción?": "mechanism",
    "What is the capital?": "other",
    "他几岁？": "other",
    "How would you name this?": "other",
    "Wie alt ist sie?": "other",
}


@pytest.mark.parametrize("question", KINDS)
def test_what_is_asked_is_known_in_other_languages_too(question):
    assert eligibility.asks(record(question)) == KINDS[question]


@pytest.mark.parametrize(
    ("question", "applies"),
    [
        ("After informed consent a biopsy was done. What is the best treatment?", True),
        ("A woman discloses that she drinks. Which drug is best?", True),
        ("In a cohort study he took part in, he fell ill. What drug should be given?", True),
        ("She refuses. What is the most ethical next step?", False),
        ("In a cohort study 20 of 100 fell ill. What is seen?", False),
    ],
)
def test_ethics_and_statistics_are_known_by_what_is_asked(question, applies):
    assert bool(eligibility.with_paradigms(record(question)).paradigms) is applies


@pytest.mark.parametrize(
    ("question", "field", "specialty"),
    [
        ("女，50岁，乳腺癌术后化疗，最可能的诊断是？", "", "CSI"),
        ("偏瘫，最可能的诊断是？", "神经内科", "BS"),
        ("股骨骨折", "骨外科", "CSI"),
        ("胸闷，首选治疗是？", "心血管内科", "AM"),
        ("咳嗽发热三天", "儿科", "CAH"),
        ("Husten seit 3 Tagen.", "Pädiatrie", "CAH"),
    ],
)
def test_specialties_of_other_languages_are_known(question, field, specialty):
    found = specialties.classify(record(question, ("甲", "乙"), field=field))
    assert (found.specialty, found.specialty_by == "default") == (specialty, False)


def test_the_last_judgement_of_a_reply_counts_as_json_or_python_writes_it():
    codes = [criterion.code for criterion in RUBRIC["bayesian"]]
    yes, no = (dict.fromkeys(codes, met) for met in (True, False))

    def score(text):
        found = trace_judge.judgement(text, "bayesian", "judge")
        return found and found.score

    assert score(json.dumps(yes)) == 1.0 and score(str(yes)) == 1.0
    assert score(json.dumps(dict.fromkeys(codes, "true"))) == 1.0
    assert score(f'I answer as {{"code": true or false}}: {json.dumps(yes)}') == 1.0
    assert score(f"{json.dumps(yes)} On reflection: {json.dumps(no)}") == 0.0
    assert score(f"{json.dumps(no)} (a note with {{braces}})") == 0.0
    assert score(json.dumps(yes | {codes[0]: None})) is None and score("{}") is None and score("None") is None
    assert score(json.dumps(yes | {codes[0]: 1})) is None and score("{__import__('os')}") is None
