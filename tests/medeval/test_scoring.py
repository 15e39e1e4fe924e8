"""Scores: the strict reading by form of answer, the kit's and MedXpertQA's official reading, open answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax import answers, comparison
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba import rewards
from mmedexpert_jax.medeval.scoring import (
    FORMS,
    SCORERS,
    judge_choice,
    read_choice,
    read_official,
    read_yes_no,
    score,
)

PLAIN = ["Pneumonia", "Heart failure", "Pulmonary embolism", "None of these"]
LETTERED = [f"{letter}. {text}" for letter, text in zip("ABCD", PLAIN, strict=True)]


def choice(answer="B", options=tuple(PLAIN), benchmark="omnimedvqa", **meta):
    return Case("1", "Which?", options, answer, columns=meta, benchmark=benchmark)


def open_item(answer, **meta):
    return Case("1", "Where?", (), answer, kind="open", columns=meta, benchmark="slake")


# The stable name ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [PLAIN, LETTERED])
def test_judge_choice_strict(options):
    def right(text):
        return judge_choice(f"<think>B or A?</think><answer>{text}</answer>", options, "B")

    assert all(map(right, ("B", "(b)", "B.", "B: Heart failure", "heart failure", "\nB\n")))
    assert not any(map(right, ("", "A", "A or B", "E", "Heart", "B: Pneumonia")))
    assert not judge_choice("The answer is B", options, "B")
    assert not judge_choice("", options, "A")


def test_options_that_only_look_labelled_keep_their_text():
    options = ["A. fib", "B. cereus", "D. dimer"]
    assert judge_choice("<answer>D. dimer</answer>", options, "C")


def test_judge_choice_by_the_other_scorers():
    assert judge_choice("", LETTERED, "A", "medevalkit")  # the kit's guess
    assert judge_choice("B", ["asthma", "gout"], "Gout", "medevalkit")  # a key given as text
    assert judge_choice("The answer is B.", LETTERED, "B", "medxpertqa")


@pytest.mark.parametrize("judge", [lambda s: judge_choice("A", PLAIN, "A", s), lambda s: score(choice(), "A", s)])
def test_unknown_scorer(judge):
    with pytest.raises(ConfigError, match="strict, medevalkit, medxpertqa"):
        judge("fuzzy")


def test_unknown_form():
    with pytest.raises(ConfigError, match="tags, boxed, plain"):
        score(choice(), "A", form="free")


# Strict, choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "tags", "boxed", "plain"),
    [
        ("<answer>B</answer>", "B", "B", "B"),
        ("<answer>B or C</answer> so \\boxed{B}", None, None, None),  # what stands in the tags counts
        ("\\boxed{B}", None, "B", "B"),
        ("\\boxed{A}, rather \\boxed{\\text{B}}", None, "B", "B"),
        ("\\boxed {B}", None, "B", "B"),
        ("\\boxed{}", None, None, None),
        ("\\boxed{B", None, None, None),
        ("<think>\\boxed{A} the answer is A</think> B", None, None, "B"),
        ("<think>the answer is A", None, None, None),
        ("B", None, None, "B"),
        ("(b)", None, None, "B"),
        ("B. Heart failure", None, None, "B"),
        ("**B. Heart failure**", None, None, "B"),
        ("heart failure.", None, None, "B"),
        ("B. Pneumonia", None, None, None),  # label and text contradict each other
        ("The answer is B because there is no sign of C.", None, None, "B"),
        ("Final answer: (B)", None, None, "B"),
        ("**Answer:** B", None, None, "B"),
        ("Answer - B", None, None, "B"),
        ("I choose option B.", None, None, "B"),
        ("The answer is A. On reflection, the answer is B.", None, None, None),  # ambiguous
        ("The answer is Z", None, None, None),
        ("The best option is a CT scan.", None, None, None),  # the article is no label
        ("The answer is a combination of B and C, so B", None, None, None),
        ("One choice is e.g. a CT scan.", None, None, None),
        ("The ANSWER IS b\nbecause the ventricle fails", None, None, "B"),
        ("The answer is (b) because of that", None, None, "B"),
        ("The answer is **b**, not a", None, None, "B"),
        ("I choose option b.", None, None, "B"),
        ("The answer is because of sepsis", None, None, None),  # no label
        ("Answer: BNP is raised", None, None, None),
        ("B\n\nBecause the ventricle fails.", None, None, "B"),
        ("The ventricle fails.\n\nB. Heart failure", None, None, "B"),
        ("B\nfirst, then\nC", None, None, None),
        ("Answer: B (heart failure)", None, None, "B"),
        ("Answer: B (pneumonia)", None, None, None),  # which is another option
        ("Answer: B. Pneumonia", None, None, None),
        ("Answer: B. Pneumonia would give a fever.", None, None, "B"),
        ("**B**: Heart failure", None, None, "B"),
        ("The ventricle fails.\n- B. Heart failure", None, None, "B"),
        ("{'answer': 'B'}", None, None, "B"),
        ("I go for B.", None, None, "B"),
        ("A and B are both possible", None, None, None),
        ("", None, None, None),
        ("I cannot tell.", None, None, None),
    ],
)
def test_read_choice_by_what_the_prompt_asked_for(response, tags, boxed, plain):
    assert tuple(read_choice(response, PLAIN, form) for form in FORMS) == (tags, boxed, plain)


@settings(deadline=None)
@given(st.text(alphabet="ABCDabcd()<>/\\{}boxedanswer .:\n", max_size=60))
def test_strict_reading_under_tags_is_the_rewards_and_never_leaves_the_options(response):
    assert read_choice(response, PLAIN) == answers.choice(response, PLAIN)
    assert all(read_choice(response, PLAIN[:2], form) in (None, "A", "B") for form in FORMS)


def test_what_is_not_read_is_wrong_and_counted():
    verdict = score(choice(), "no idea")
    assert (verdict.right, verdict.answer, verdict.guessed) == (False, None, False)
    wrong = score(choice(), "<answer>A</answer>")
    assert (wrong.right, wrong.answer) == (False, "A")


def test_an_option_with_the_keys_text_is_right_too():
    item = choice("A", ("CT", "MRI", "CT"))
    assert [score(item, f"<answer>{letter}</answer>").right for letter in "ABC"] == [True, False, True]


def test_no_letter_is_right_where_the_key_is_no_option():
    item = choice("Echo", ("CT", "MRI"), raw_answer="Echo")
    assert not any(score(item, f"<answer>{said}</answer>").right for said in ("A", "B", "Echo"))
    assert score(item, "Echo", "medevalkit").right


# The kit and MedXpertQA -----------------------------------------------------------------------------------------------


def test_no_single_letter_is_right_where_the_key_holds_several():
    item = choice("A, B", benchmark="cmexam", raw_answer="AB")
    for said in ("<answer>A</answer>", "<answer>B</answer>", "<answer>AB</answer>"):
        assert not any(score(item, said, scorer).right for scorer in ("strict", "medxpertqa"))
    assert not score(item, "A", "medevalkit").right and score(item, "AB", "medevalkit").right


def test_the_kit_guesses_and_says_so():
    verdict = score(choice("A"), "", "medevalkit")
    assert (verdict.right, verdict.answer, verdict.guessed) == (True, "A", True)
    read = score(choice("B"), "<think>A</think>\n<answer>B</answer>", "medevalkit")
    assert (read.right, read.answer, read.guessed) == (True, "B", False)


def test_the_kit_reads_pmc_vqa_whole_and_by_its_cells():
    cells = (" A: Green ", " B: Red ")
    response = "C\n\n<answer>B</answer>"  # cut to the tags first, this is B
    pmc = choice("B", ("Green", "Red"), "pmc_vqa", raw_options=cells)
    other = choice("B", ("Green", "Red"), "omnimedvqa", raw_options=cells)
    assert score(pmc, "A\n\n<answer>B</answer>", "medevalkit").right is False
    assert score(other, "A\n\n<answer>B</answer>", "medevalkit").right is True
    assert score(pmc, response, "medevalkit").right
    assert score(pmc, " B: Red ", "medevalkit").guessed  # equal to no cell once stripped


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("(E).", "E"),
        ("Therefore, among A through E, the answer is D.", "D"),
        ("A is wrong; the answer is C, not B", "C"),
        ("Among A through E it is B", "B"),
        ("A fall", "A"),  # any free-standing letter, articles too
        ("b", None),
        ("Both", None),
        ("", None),
    ],
)
def test_medxpertqas_official_rule(response, letter):
    assert read_official(response, 5) == letter
    item = choice("B", ("a", "b", "c", "d", "e"), "medxpertqa_mm")
    verdict = score(item, response, "medxpertqa", "plain")
    assert (verdict.right, verdict.answer) == (letter == "B", letter)


# Yes or no, open ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "form", "read"),
    [
        ("<answer>Yes</answer>", "tags", "yes"),
        ("<answer>No, it is not.</answer>", "tags", "no"),
        ("Yes", "tags", None),
        ("\\boxed{no}", "boxed", "no"),
        ("Yes, there is.", "plain", "yes"),
        ("It is normal", "plain", None),  # "no" inside a word is not said
        ("yes and no", "plain", None),
    ],
)
def test_yes_or_no(response, form, read):
    for answer in ("yes", "no"):
        verdict = score(Case("1", "Is it?", (), answer, kind="yes_no", benchmark="vqa_rad"), response, form=form)
        assert (verdict.right, verdict.answer) == (read == answer, read)
    kit = score(Case("1", "Is it?", (), "no", kind="yes_no", benchmark="vqa_rad"), "It is normal", "medevalkit")
    assert kit.right  # the kit's rule


def test_of_several_right_answers_each_is_right():
    item = open_item("gout", accepted=("gouty arthritis",))
    for said in ("Gout", "The answer is gouty arthritis."):
        assert score(item, said, form="plain").right and score(item, f"<answer>{said}</answer>").f1 == 1.0
        assert (
            rewards.accuracy(item, f"<answer>{said}</answer>")
            == rewards.token_f1(item, f"<answer>{said}</answer>")
            == 1
        )
    assert not rewards.accuracy(item, "<answer>arthritis</answer>")


def test_open_answers_are_exact_or_partly_right():
    item = open_item("The left lung")
    exact = score(item, "<answer>left lung.</answer>")
    assert (exact.right, exact.f1) == (True, 1.0)
    part = score(item, "<answer>left upper lung</answer>")
    assert (part.right, part.f1) == (False, pytest.approx(2 * 2 / (2 + 3)))
    absent = score(item, "left lung")
    assert (absent.right, absent.answer, absent.f1) == (False, None, 0.0)
    assert score(item, "left lung", form="plain").right
    kit = score(item, "left lung", "medevalkit")
    assert (kit.right, kit.f1) == (False, pytest.approx(2 * 2 / (3 + 2)))


@pytest.mark.parametrize(
    "said",
    [
        "Asthma<|im_end|>",
        "Asthma</s>",
        "Asthma<end_of_turn>\n",
        "Asthma<｜end▁of▁sentence｜>",
        "<|begin_of_box|>Asthma<|end_of_box|>",
        "<unused94>thought\nGout, or not.<unused95>Asthma",
    ],
)
def test_what_a_server_leaves_in_is_no_part_of_an_open_answer(said):
    found = score(open_item("asthma"), said, form="plain")
    assert (found.right, found.answer, found.f1) == (True, "Asthma", 1.0)


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("\\boxed{B}\\boxed{C}", None),
        ("\\boxed{B}, \\boxed{C}", None),
        ("$\\boxed{B}$\n$\\boxed{C}$", None),
        ("\\boxed{B}, \\boxed{B}", "B"),
        ("\\boxed{5}\n\n\\boxed{C}", "C"),
        ("\\boxed{B}, rather \\boxed{C}", "C"),
        ("\\boxed{B}\n\\boxed{Heart failure}", "B"),
        ("\\boxed{B. Heart failure} \\boxed{B}", "B"),
        ("\\boxed{B}\n\\boxed{Pneumonia}", None),
    ],
)
def test_two_boxes_side_by_side_that_differ_are_no_answer(said, letter):
    assert read_choice(said, PLAIN, "plain") == read_choice(said, PLAIN, "boxed") == letter


def test_the_kit_holds_slakes_closed_answers_to_their_words():
    item = Case(
        "1", "Normal?", (), "yes", kind="yes_no", columns={"raw_answer": "Yes", "kit": "close"}, benchmark="slake"
    )
    assert score(item, "Yes.", "medevalkit").right
    assert not score(item, "Yes, it is", "medevalkit").right


def test_the_kit_never_holds_an_open_answer_of_mmmu_right():
    item = Case("1", "How many?", (), "8", kind="open", columns={"kit": "mmmu"}, benchmark="mmmu_medical")
    assert score(item, "8", form="plain").right and not score(item, "8", "medevalkit").right


def test_the_kits_guess_on_mmmu_is_the_same_every_time_and_counted():
    item = Case("1", "Which?", ("x", "y"), "A", columns={"kit": "mmmu"}, benchmark="mmmu_medical")
    guesses = {score(item, "unclear", "medevalkit") for _ in range(9)}
    assert len(guesses) == 1 and guesses.pop().guessed
    verdict = score(item, "<answer>(A)</answer>", "medevalkit")
    assert (verdict.right, verdict.answer, verdict.guessed) == (True, "A", False)


def test_chinese_answers_are_compared_by_character():
    item = Case("1", "?", (), "左肺", kind="open", benchmark="slake")
    assert score(item, "左肺。", form="plain").right
    assert score(item, "肺", form="plain").f1 == pytest.approx(2 * 1 / (2 + 1))


def test_normalised_text_and_token_f1():
    normalised, token_f1 = comparison.normalised, comparison.token_f1
    assert normalised(" The  Left-lung, a lobe.") == "left lung lobe"
    assert token_f1("liver liver kidney", "liver spleen") == pytest.approx(2 * 1 / (3 + 2))
    assert token_f1("the", "") == 1.0 and token_f1("liver", "") == 0.0


@pytest.mark.parametrize("name", ["Hepatitis A", "hepatitis a", "Vitamin A deficiency", "Blood group A"])
def test_a_letter_that_names_a_disease_is_no_article(name):
    without = " ".join(word for word in name.split() if word.lower() != "a")
    assert comparison.same_text(name, name.lower()) and comparison.same_text(name.upper(), name)
    assert not comparison.same_text(without, name)
    assert comparison.same_text(f"A {name}", name) and comparison.same_text(f"the {name}.", name)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["liver", "lung", "left"]), max_size=5), st.lists(st.sampled_from(["liver", "lung"])))
def test_token_f1_is_the_harmonic_mean_of_precision_and_recall(gold, said):
    common = sum(min(gold.count(word), said.count(word)) for word in set(gold))
    found = comparison.token_f1(" ".join(gold), " ".join(said))
    if common:
        precision, recall = common / len(said), common / len(gold)
        assert found == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert found == (not gold and not said)


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=40), st.sampled_from(SCORERS), st.sampled_from(FORMS))
def test_no_response_breaks_a_scorer(response, scorer, form):
    for item in (choice(), open_item("lung"), Case("1", "q", (), "yes", kind="yes_no", benchmark="b")):
        verdict = score(item, response, scorer, form)
        assert not (verdict.answer is None and verdict.right) and 0 <= verdict.f1 <= 1


@pytest.mark.parametrize(
    ("gold", "said", "right"),
    [
        ("+", "-", False),  # nothing is left of either without punctuation
        ("+", "+", True),
        ("the A", "an", False),
        ("na\u00efve", "nai\u0308ve", True),
        ("H2O", "H\u2082O", True),
        ("Aortic regurgitation", "\\boxed{\\text{aortic regurgitation}}", True),
        ("Aortic regurgitation", "**Aortic regurgitation**", True),
    ],
)
def test_signs_are_compared_and_marks_around_an_open_answer_do_not_matter(gold, said, right):
    found = score(Case("1", "q", (), gold), f"<answer>{said}</answer>")
    assert (found.right, found.f1) == (right, float(right))


@pytest.mark.parametrize(
    ("said", "options", "letter"),
    [
        ("10-20%", ("5–10%", "10–20%"), "B"),
        ("50mg", ("5 mg", "50 mg"), "B"),
        ("5 mg", ("5 mg", "50 mg"), "A"),
        ("C. 5 mg", ("5 mg", "50 mg", "0.5 mg"), None),
        ("the left ventricle", ("Left atrium", "Left ventricle"), "B"),
        ("Type 1 diabetes", ("Type 1 diabetes", "Type 1 diabetes with ketoacidosis"), "A"),
        ("Ja, es liegt eine Fraktur vor.", ("Ja", "Nein"), "A"),
        ("No.", ("Ja", "Nein"), "B"),
        ("是的，有骨折。", ("是", "否"), "A"),
        ("لا، لا يوجد", ("نعم", "لا"), "B"),
        ("No, the lesion is not visible.", ("Yes", "No", "Maybe"), "B"),
        ("Yes and no", ("Yes", "No"), None),
        ("答案是心力衰竭。", ("肺炎", "心力衰竭"), "B"),
        ("最可能的诊断是心力衰竭（B）。", ("肺炎", "心力衰竭"), "B"),
        ("الإجابة هي فشل القلب.", ("التهاب رئوي", "فشل القلب"), "B"),
    ],
)
def test_options_that_are_numbers_or_words_of_any_language(said, options, letter):
    assert read_choice(said, options, "plain") == letter


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("Sí.", "yes"),
        ("Nein, keine Fraktur", "no"),
        ("是", "yes"),
        ("没有", "no"),
        ("いいえ", "no"),
        ("Yes, there is no effusion.", "yes"),
        ("There is no doubt that a fracture is seen", None),
        ("The answer is not yes", None),
        ("No, wait: yes", None),
        ("Non-contrast CT", None),
        ("no evidence of fracture", "no"),
        ("Yes, this is actually a chest X-ray.", "yes"),
        ("No, surgery can wait.", "no"),
        ("HAYIR", "no"),
        ("hayir.", "no"),
        # what is not there to see, and what nobody can tell
        ("I'm sorry, but I see no image; please upload it.", None),
        ("There is no image provided.", None),
        ("No image was provided.", None),
        ("I have no way of telling without the image.", None),
        ("Sorry, there is no picture, so I cannot answer.", None),
        ("There is no information to decide.", None),
        ("I have no idea.", None),
        ("No definite answer can be given.", None),
        ("No sé", None),
        ("No. 3 rib is fractured: yes", "yes"),
        ("No scan abnormality is seen", "no"),
        ("There is no x-ray evidence of fracture", "no"),
        ("There is no picture of pneumonia", "no"),
        ("No se observa fractura", "no"),
        ("No way.", "no"),
        # of one who is polite and sees nothing
        ("No problem! Please upload the image.", None),
        ("No worries, I can help with that.", None),
        ("No, I can't view images.", None),
        ("Yes, I can help. Please upload the image.", None),
        ("Yes, I can analyze this, but no image was attached.", None),
        ("No, I can't see a fracture.", "no"),
        ("Not necessarily no", None),
        # what a reply ends in
        ("Initially I thought yes. Final answer: no", "no"),
        ("No effusion is seen, but the answer to the question is yes.", "yes"),
        ("Is there no effusion? Yes.", "yes"),
        ('{"answer": true}', "yes"),
        ("Yes or no?", None),
    ],
)
def test_yes_and_no_of_any_language_as_a_person_reads_them(said, verdict):
    assert read_yes_no(said, "plain") == verdict
