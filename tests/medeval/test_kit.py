"""MedEvalKit's rules, held to an oracle written from their description, step by step, and to outcomes of its code."""

import difflib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmedexpert_jax.medeval import kit

FIVE = [
    f"{letter}. {text}" for letter, text in zip("ABCDE", ("Asthma", "Gout", "Lupus", "Angina", "Mumps"), strict=True)
]
PMC = [" A: Green ", " B: Red ", " C: Light blue ", " D: Yellow"]
OPTIONS = (FIVE, FIVE[:4], FIVE[:2], PMC, ["A. gout", "B. Gout", "C. x"], ["asthma", "gout"], ["A. ", "B. ", "D. a"])
PIECES = (
    *(
        "A",
        "B",
        "b",
        "C.",
        "D",
        "E",
        "Z",
        "\n\n",
        "\n",
        " ",
        ".",
        ":",
        "None",
        "gout",
        "Gout",
        "A. Asthma",
        "yes",
        "no",
    ),
    *("**answer**:", "**Answer**", "*answer*:", "**Answer:**", "answer is ", "Answer:", "答案:", "final answer is "),
    *("\\boxed{", "}", "{", "boxed", "<answer>", "</answer>", "<think>", "</think>", "normal", "The ", " because "),
)
RESPONSES = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def last_box(text):
    """The content of the last box, by counting braces; the word None where it is absent or open."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return "None"
    content, depth = "", 0
    for char in text[start + 7 :]:
        if char == "}" and depth == 0:
            return content.strip()
        depth += {"{": 1, "}": -1}.get(char, 0)
        content += char
    return "None"


def tagged(text):
    """All that stands between answer tags, one after the other."""
    found, rest = [], text
    while "<answer>" in rest:
        rest = rest[rest.index("<answer>") + 8 :]
        if "</answer>" not in rest:
            break
        found.append(rest[: rest.index("</answer>")])
        rest = rest[rest.index("</answer>") + 9 :]
    joined = "".join(part + " " for part in found).strip()
    return joined or text


def cut(text):
    """Box or tags, then the text after the last of each phrase in turn."""
    text = text.lower()
    if "boxed" in text:
        text = last_box(text)
    elif "<answer>" in text:
        text = tagged(text)
    for phrase in ("**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "答案:"):
        text = text.rsplit(phrase, 1)[-1]
    for phrase in ("final answer", "final answer is"):
        text = text.rsplit(phrase, 1)[-1]
    return text


def oracle(choices, answer, response):
    """Right or not, by the rules in their order."""
    alphabet = "abcdefghij"[: len(choices)]
    lowered = [choice.lower() for choice in choices]
    text, gold = response.lower(), answer.strip().lower()
    first, final = text.split("\n\n")[0], text.split("\n\n")[-1].split(".")[0]
    if len(first) == 1 and first in alphabet:
        text = first
    elif len(final) == 1 and final in alphabet:
        text = final
    text = "".join(cut(text).strip().lower().split("\n"))
    short = text.split(".")[0].rsplit(":", 1)[-1]
    if short == gold:
        return True
    if len(short) == 1 and short in alphabet:
        return lowered[alphabet.index(short)] == gold
    if short in lowered:
        return len(gold) == 1 and gold in alphabet and lowered[alphabet.index(gold)] == short
    best, at = 0.0, 0
    for place, choice in enumerate(lowered):
        likeness = difflib.SequenceMatcher(a=choice, b=text).ratio()
        if likeness > best:
            best, at = likeness, place
    return gold in (alphabet[at], lowered[at])


@settings(max_examples=400, deadline=None)
@given(RESPONSES, st.sampled_from(OPTIONS), st.sampled_from(("A", "B", "C", "D", "E", "Gout", "gout", " B ")))
@example("", FIVE, "A")
@example("<answer>A</answer><answer>B</answer>", FIVE, "A")
def test_every_response_is_judged_as_the_oracle_judges(response, choices, answer):
    assert kit.extract(response) == tagged(response)
    assert kit.boxed(response) == last_box(response)
    assert kit.parse_response(response) == cut(response)
    assert kit.judge_multi_choice(choices, answer, response).right == oracle(choices, answer, response)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("The answer is B because there is no sign of C.", "E"),  # nothing reads the B: a guess by likeness
        ("", "A"),
        ("Z", "A"),
        ("<answer>A</answer><answer>B</answer>", "A"),
        ("<answer>B</answer>", "B"),
        ("boxed in words only", "B"),  # read as the word None
        (r"\boxed{\text{B}}", "C"),
    ],
)
def test_odd_answers(response, letter):
    options = ["A. Gout", "B. None", "C. text", "D. Mumps", "E. because of a sign"]
    verdicts = {name: kit.judge_multi_choice(options, name, kit.extract(response)) for name in "ABCDE"}
    assert [name for name, verdict in verdicts.items() if verdict.right] == [letter]
    assert {verdict.guessed for verdict in verdicts.values()} == {response != "<answer>B</answer>"}


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        ("yes", "Yes.", True),
        ("yes", "Yes, there is no effusion", False),  # both words
        ("no", "The heart is normal", True),  # "no" inside a word
        ("no", "abnormal", True),
        ("yes", "", False),
        ("yes", r"no, \boxed{yes}", True),
        ("no", "the answer is no", True),
    ],
)
def test_yes_or_no(answer, response, right):
    assert kit.judge_judgement(answer, response).right is right


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("(B)", "B"),
        ("B.", "B"),
        ("The answer is B because A is rare", "A"),  # the last letter between spaces
        ("(B), not C ", "B"),  # brackets go before bare letters
        ("B\nbecause", None),  # neither in brackets nor between spaces
        ("Most likely this is a case of gout", "B"),  # an option's text, in more than five words
        ("gout", None),
        (r"\boxed{C}", "C"),
        (r"so \boxed{C", None),
        (r"<answer>\boxed{D}</answer> A ", "D"),
        ("", None),
    ],
)
def test_mmmu_is_read_by_its_own_parser(response, letter):
    verdict = kit.judge_mmmu(("Asthma", "Gout", "Lupus", "Angina"), letter or "A", response, "seed")
    assert verdict.guessed is (letter is None)
    if letter:
        assert verdict.right and verdict.said == letter


def test_words_and_open_answers():
    assert kit.judge_close_end("Left Lung", "left lung.\n").right
    assert not kit.judge_close_end("Left Lung", "the left lung").right
    assert kit.judge_open_end("Left Lung ", " Left lung").right
    assert not kit.judge_open_end("left lung", "left lung.").right
    assert kit.token_f1("left lung", "the left lung lung") == pytest.approx(2 * 2 / (3 + 2))
    assert kit.token_f1("left", "") == 0


@given(RESPONSES)
@settings(deadline=None)
def test_what_goes_on_to_the_rules_is_the_box_before_the_tags(response):
    assert kit.final(response) == (last_box(response) if last_box(response) != "None" else tagged(response))
