import pytest

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.medeval.scoring import judge_choice

PLAIN = ["Pneumonia", "Heart failure", "Pulmonary embolism", "None of these"]
LETTERED = [f"{letter}. {text}" for letter, text in zip("ABCD", PLAIN, strict=True)]


def kit(response, options=LETTERED):
    """The letter that MedEvalKit's rule scores as right."""
    letters = [letter for letter in "ABCDE"[: len(options)] if judge_choice(response, options, letter, "medevalkit")]
    assert len(letters) <= 1
    return letters[0] if letters else None


@pytest.mark.parametrize("options", [PLAIN, LETTERED])
def test_strict(options):
    def right(text):
        return judge_choice(f"<think>B or A?</think><answer>{text}</answer>", options, "B")

    assert all(map(right, ("B", "(b)", "B.", "B: Heart failure", "heart failure", "\nB\n")))
    assert not any(map(right, ("", "A", "A or B", "E", "Heart", "B: Pneumonia")))
    assert not judge_choice("The answer is B", options, "B")
    assert not judge_choice("", options, "A")


def test_options_that_only_look_labelled_keep_their_text():
    options = ["A. fib", "B. cereus", "D. dimer"]
    assert judge_choice("<answer>D. dimer</answer>", options, "C")


# Outcomes that MedEvalKit's own code gives (knowledge of its quirks, run on the five options below).
FIVE = [
    f"{letter}. {text}" for letter, text in zip("ABCDE", ("Asthma", "Gout", "Lupus", "Angina", "Mumps"), strict=True)
]


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("B\n\nBecause of the urate.", "B"),
        ("Urate is high.\n\nB. Gout", "B"),
        (r"So \boxed{B}", "B"),
        (r"\boxed{A} no, \boxed{ C }", "C"),
        ("<answer>B</answer>", "B"),
        ("<think>A</think><answer>\nD\n</answer>", "D"),
        ("The answer is B", "B"),
        ("Final answer: C. Lupus", "C"),
        ("**Answer:** E", "E"),
        ("Answer: Option: D", None),  # what follows the colon is " D", not stripped: a guess by similarity
        ("B. Gout", "B"),
        ("", "A"),
        ("Z", "A"),
    ],
)
def test_medevalkit(response, letter):
    found = kit(response, FIVE)
    assert found == letter if letter else found in "ABCDE"


def test_medevalkit_on_texts():
    assert judge_choice("gout", ["asthma", "gout"], "B", "medevalkit")  # the exact text of a choice
    assert not judge_choice("gout", ["asthma", "gout"], "A", "medevalkit")
    assert judge_choice("B", ["asthma", "gout"], "Gout", "medevalkit")  # gold given as text (OmniMedVQA)
    assert kit("It is probably heart failurre", LETTERED) == "B"  # nearest by difflib
    assert kit("a box, boxed in words", LETTERED) == kit("None", LETTERED) == "D"  # "boxed" without a box reads "None"


def test_unknown_scorer():
    with pytest.raises(ConfigError, match="strict, medevalkit"):
        judge_choice("A", PLAIN, "A", "fuzzy")
