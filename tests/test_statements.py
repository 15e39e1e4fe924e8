"""What the strict scorer reads in responses of every form, against a table made by hand and against a grammar."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax import answers
from mmedexpert_jax.medeval.scoring import read_choice

FOUR = ("Pneumonia", "Heart failure", "Asthma", "Pulmonary embolism")
TEN = tuple(f"diagnosis {number}" for number in range(10))


def _table():
    for line in Path(__file__).with_name("responses.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            form, letter, response = line.split("|", 2)
            text = response.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
            yield form, None if letter == "-" else letter, text


TABLE = list(_table())


def test_the_table_has_its_three_hundred_responses():
    assert len(TABLE) >= 300
    assert len({(form, text) for form, _, text in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("form", "letter", "response"), TABLE, ids=lambda value: repr(value)[:40])
def test_every_form_that_people_read_is_read(form, letter, response):
    options = TEN if form == "ten" else FOUR
    assert read_choice(response, options, "plain" if form == "ten" else form) == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("答案：C非小细胞肺癌", "C"),
        ("答案：B排除妊娠", "B"),
        ("Jawaban: D Tidak ada", "D"),
        ("答案：A不稳定型心绞痛", "A"),
    ],
)
def test_an_options_own_words_deny_no_letter_before_them(response, letter):
    options = ("不稳定型心绞痛", "排除妊娠", "非小细胞肺癌", "Tidak ada")
    assert read_choice(response, options, "plain") == letter


NAMES = (
    "letter",
    "choice",
    "OPTION",
    "final_answer",
    "finalAnswer",
    "best-option",
    "Response",
    "predicted_label",
    "key",
)


@pytest.mark.parametrize("name", NAMES)
def test_an_element_that_holds_a_label_is_an_answer(name):
    for held in ("B", " b ", "(B)", "\nB\n", "B. Heart failure", "[B]", "B)"):
        for text in (f"<{name}>{held}</{name}>", f"Rales. So\n[{name}]{held}[/{name}]"):
            assert read_choice(text, FOUR, "plain") == "B", text
    assert answers.choice(f"<answer><{name}>A</{name}></answer>", FOUR) == "A"
    for text in (
        "not <{0}>B</{0}>",
        "<{0}>B</{0}> is wrong",
        "<{0}>B</{0}> or <{0}>C</{0}>",
        "<{0}>C. difficile</{0}>",
    ):
        assert read_choice(text.format(name), FOUR, "plain") is None, text
    listed = "".join(f"<option>{letter}</option> {text}\n" for letter, text in zip("ABCD", FOUR, strict=True))
    assert read_choice(f"{listed}<{name}>B</{name}>", FOUR, "plain") == (None if name == "OPTION" else "B")
    assert read_choice(f"<{name}>A 45-year-old man has a cough.</{name}>", FOUR, "plain") is None
    assert read_choice(f"<step>A</step>\n<wrong>C</wrong>\n<{name}>B</{name}>", FOUR, "plain") == "B"


@pytest.mark.parametrize(
    "marks",
    [
        "<unused94>thought\n{}<unused95>",  # MedGemma's
        "<unused94>{}<unused95>",
        "<|channel>thought\n{}<channel|>",
        "<|begin_of_thought|>{}<|end_of_thought|>",
        "<|START_THINKING|>{}<|END_THINKING|>",
        "<cot>{}</cot>",
        "<analysis>{}</analysis>",
        "<scratchpad>{}</scratchpad>",
        "<reflection>{}</reflection>",
        "<think>{}</thinking>",
    ],
)
def test_reasoning_in_any_model_s_marks_is_no_answer(marks):
    for inside in ("Let me think. The answer is A.", "Answer: A", "<answer>A</answer>", "So it is A, no wait.\n"):
        for said in ("B", "\n**B**", "The answer is B.", "Heart failure", "<answer>B</answer>"):
            assert read_choice(marks.format(inside) + said, FOUR, "plain") == "B", inside + said
        assert read_choice(f"{marks.format(inside)}<answer>B</answer>", FOUR) == "B"
        assert read_choice(marks.format(inside), FOUR, "plain") is None


def test_an_element_that_is_never_closed_is_a_heading():
    for name in ("analysis", "reflection"):
        assert read_choice(f"<{name}>\nThe ventricle fails.\n<answer>B</answer>", FOUR) == "B"
    assert read_choice("<unused94>thought\nThe answer is B.", FOUR, "plain") is None


SPECIES = ("S. aureus", "C. acnes", "S. epidermidis", "B. cereus")
DOSES = ("Aspirin", "Aspirin, clopidogrel", "5", "5,000 units")


@pytest.mark.parametrize(
    ("said", "options", "letter"),
    [
        ("C. acnes", SPECIES, "B"),
        ("B. C. acnes", SPECIES, "B"),
        ("C. S. epidermidis", SPECIES, "C"),
        ("C. staphylococci of the skin", SPECIES, "C"),
        ("C. acnes infection", SPECIES, None),
        ("C. acnes, a Gram-positive rod", SPECIES, None),
        ("The answer is C. acnes (Cutibacterium acnes).", SPECIES, None),
        ("C. pecorum infection", ("C. pecorum", "E. coli", "Gout"), None),  # a species that no list holds
        ("C. pecorum", ("C. pecorum", "E. coli", "Gout"), "A"),
        ("B. abortus", ("Gout", "Lupus"), None),
        ("B) Aspirin, clopidogrel", DOSES, "B"),
        ("D) 5,000 units", DOSES, "D"),
        ("A) Aspirin, clopidogrel", DOSES, None),
    ],
)
def test_initials_of_species_and_options_that_begin_alike(said, options, letter):
    for form, text in (("tags", f"<answer>{said}</answer>"), ("plain", said), ("plain", f"Answer: {said}")):
        assert read_choice(text, options, form) == letter, text


LETTER = st.sampled_from("BCD")
WRAPS = ("{}", "({})", "**{}**", "`{}`", "${}$", '"{}"', "[{}]")
STATED = (
    "The answer is {}.",
    "Answer: {}",
    "So the correct option is {}.",
    "I would choose {}.",
    "My answer is {}, since it fits",
)
PRAISED = ("Option {} is correct.", "{} is the most likely diagnosis.")
DENIED = (
    "The answer is not {}.",
    "I would rule out option {}.",
    "Option {} is wrong.",
    "Option {}: incorrect.",
    "The answer may be {}.",
    "Is the answer {}?",
    "We can exclude option {}.",
)
FILLER = ("The fever is high.", "Edema is seen on both sides.", "", "Vitamin D is low.", "This was considered.")


@st.composite
def response(draw):
    """Sentences that state, praise, deny or only talk, in any order, and the letters that they leave: the reference is
    the grammar itself, which knows what it wrote. Where several others are called correct, the exception is asked for.
    """
    lines, letters = [], {"stated": set(), "praised": set()}
    for kind in draw(st.lists(st.sampled_from(("stated", "praised", "denied", "filler")), min_size=1, max_size=5)):
        letter, wrap = draw(LETTER), draw(st.sampled_from(WRAPS))
        forms = {"stated": STATED, "praised": PRAISED, "denied": DENIED, "filler": FILLER}[kind]
        lines.append(draw(st.sampled_from(forms)).format(wrap.format(letter)))
        if kind in letters:
            letters[kind].add(letter)
    stated, praised = letters["stated"], letters["praised"]
    left = stated if stated and len(praised) > 1 and not stated & praised else stated | praised
    return draw(st.sampled_from(("\n", " ", "\n\n"))).join(lines), left


@settings(deadline=None, max_examples=300)
@given(response())
def test_what_a_grammar_wrote_is_read(made):
    text, letters = made
    assert read_choice(text, FOUR, "plain") == (next(iter(letters)) if len(letters) == 1 else None)


@settings(deadline=None, max_examples=200)
@given(response(), LETTER, st.sampled_from(WRAPS))
def test_a_final_answer_outweighs_what_stood_before(made, letter, wrap):
    assert read_choice(f"{made[0]}\nFinal answer: {wrap.format(letter)}", FOUR, "plain") == letter


@pytest.mark.parametrize(
    "piece",
    [
        "x",
        "<think>",
        "<answer>",
        "</think>",
        "\\boxed{",
        "Option B ",
        "(",
        "**",
        "answer ",
        "B or ",
        "B and ",
        "B, C or ",
        "answer is ",
        "option B, ",
        "the answer is the answer is ",
        "is is is ",
        "<thinking>",
        "[THINK]",
        "~~",
        "A or ",
        "<unused94>",
        "<analysis>",
        "<cot></cot",
        "B) ",
        "B>",
        "Answer B (",
        "B: 20%, ",
        "B. Heart failure ",
    ],
)
def test_reading_is_linear_in_the_length(piece):
    """A hundred thousand characters of a hostile reply, which a quadratic reader takes minutes for."""
    text = piece * (100_000 // len(piece))
    for form in ("tags", "boxed", "plain"):
        assert read_choice(text, FOUR, form) in (None, "B")


@pytest.mark.parametrize("blanks", [" ", "\n", " \n", "\t "])
@pytest.mark.parametrize(
    "before", ["", "x", "answer", "答案", "answer is that", "option B,", "it is B", "not B", "|", "so"]
)
def test_a_run_of_blanks_is_read_in_time_linear_in_its_length(before, blanks):
    """Of which each could be matched by either of two patterns, or begin one."""
    text = before + blanks * (50_000 // len(blanks)) + "x"
    start = time.process_time()
    for said in (text, f"<answer>{text}</answer>", f"{text} The answer is C."):
        read_choice(said, FOUR, "plain")
        answers.choice(said, FOUR)
    assert time.process_time() - start < 4  # some 0.1
    assert read_choice(f"{text} The answer is C.", FOUR, "plain") == "C"


@pytest.mark.parametrize("piece", ["* ", "~~x~~ ", "` ", "** \n"])
def test_marks_between_blanks_leave_no_longer_run(piece):
    text = piece * 30_000
    start = time.process_time()
    assert read_choice(f"{text} The answer is C.", FOUR, "plain") == "C"
    assert time.process_time() - start < 4  # some 0.1


@pytest.mark.parametrize("count", [1, 127, 300, 5000])
def test_a_run_of_blanks_says_the_same_however_long_it_is(count):
    blanks = " " * count
    for said, letter in (
        (f"The answer is{blanks}B", "B"),
        (f"B{blanks}is correct", "B"),
        (f"not B,{blanks}but C", "C"),
    ):
        assert read_choice(said, FOUR, "plain") == letter
    for said in (f"The answer is B{blanks}?", f"Option B{blanks}is wrong", f"answer:{blanks}B or{blanks}C"):
        assert read_choice(said, FOUR, "plain") is None
    assert read_choice(f"I rule out{blanks}\n{blanks}So the answer is D", FOUR, "plain") == "D"
    for said in (f"Heart failure{blanks}(B)", f"B{blanks}Heart failure"):
        assert answers.choice(f"<answer>{said}</answer>", FOUR) == "B"
