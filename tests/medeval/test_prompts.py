"""Prompts: snapshots of every style, word for word."""

import pytest

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.data import prompts as training
from mmedexpert_jax.data.benchmarks import ImageRef, from_case
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.medeval import prompt_styles


class Bytes:
    """Reads as fixed bytes."""

    def __call__(self):
        return b"pixels"


IMAGES = (ImageRef("a.png", Bytes()), ImageRef("b.png", Bytes()))
FULL = "A man falls. Which step?\nAnswer Choices: (A) Repair (B) Plication"
XPERT = Case(
    "MM-0",
    "A man falls. Which step?",
    ("Repair", "Plication"),
    "A",
    images=IMAGES[:1],
    columns={"raw_question": FULL},
    benchmark="medxpertqa_mm",
)
PMC = Case(
    "v2-1",
    "What colour?",
    ("Green", "Red"),
    "A",
    images=IMAGES[:1],
    columns={"raw_question": " What colour? ", "raw_options": (" A: Green ", " B: Red ")},
    benchmark="pmc_vqa",
)
YES_NO = Case("1", "Is it normal?", (), "yes", images=IMAGES[:1], kind="yes_no", benchmark="vqa_rad")
OPEN = Case(
    "2", "Where is it?", (), "left lung", images=IMAGES[:1], kind="open", columns={"kit": "open"}, benchmark="slake"
)
CLOSE = Case(
    "3", "Which organ?", (), "lung", images=IMAGES[:1], kind="open", columns={"kit": "close"}, benchmark="slake"
)


def shown(prompt):
    """Roles and parts, an image as its name in angle brackets."""
    lines = []
    for message in prompt.messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = [part["text"] if part["type"] == "text" else f"<{part['image'].name}>" for part in parts]
        lines.append((message["role"], *texts))
    return lines


DIRECT = "Answer with the option's letter from the given choices directly."
BOXED = 'Answer with the option\'s letter from the given choices and put the letter in one "\\boxed{}".'
R1 = (
    "Think through the question step by step in <think>...</think> tags. Then provide the correct single-letter choice "
    "(A, B, C, D,...) inside <answer>...</answer> tags."
)
ITEMS = {"pmc": PMC, "xpert": XPERT, "yes_no": YES_NO, "open": OPEN, "close": CLOSE}
SNAPSHOTS = {
    ("think_answer", "pmc"): (
        "tags",
        [
            (
                "user",
                "<a.png>",
                "What colour?\nA. Green\nB. Red\nThink in numbered statements inside <think></think>, then give the "
                "letter of the answer inside <answer></answer>.",
            )
        ],
    ),
    ("medevalkit", "pmc"): (
        "plain",
        [("user", "<a.png>", f"\nQuestion:  What colour? \nOptions: \n A: Green \n B: Red \n{DIRECT}")],
    ),
    ("medevalkit_reasoning", "pmc"): (
        "boxed",
        [("user", "<a.png>", f"\nQuestion:  What colour? \nOptions: \n A: Green \n B: Red \n{BOXED}")],
    ),
    ("medevalkit", "xpert"): (
        "plain",
        [("user", "<image_1>: ", "<a.png>", f"\nQuestion: {FULL}\nOptions: \nA. Repair\nB. Plication\n{DIRECT}")],
    ),
    ("medxpertqa", "xpert"): (
        "plain",
        [
            ("system", "You are a helpful medical assistant."),
            ("user", f"Q: {FULL}\nA: Let's think step by step.", "<a.png>"),
        ],
    ),
    ("medxpertqa", "pmc"): (
        "plain",
        [
            ("system", "You are a helpful medical assistant."),
            (
                "user",
                "Q: What colour?\nAnswer Choices: (A) Green (B) Red\nA: Let's think step by step.",
                "<a.png>",
            ),
        ],
    ),
    ("medvlm_r1", "xpert"): (
        "tags",
        [
            (
                "user",
                "<a.png>",
                "\n    A man falls. Which step?\nA) Repair\nB) Plication \n    Your task: \n    1. Think through the "
                "question step by step, enclose your reasoning process in <think>...</think> tags. \n    2. Then "
                "provide the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags.\n    3. "
                "No extra information or text outside of these tags.\n    ",
            )
        ],
    ),
    ("med_r1", "pmc"): ("tags", [("user", "<a.png>", f"What colour? A)Green, B)Red {R1}")]),
    ("medvlthinker", "xpert"): (
        "tags",
        [
            (
                "user",
                "<a.png>",
                "You will solve a problem/request. You should provide your thoughts within <think> </think> tags "
                "before providing the answer.\\nWrite your final answer within <answer> </answer> tags.\n\nQuestion: A "
                "man falls. Which step?\n\nOptions:\n\nA. Repair\n\nB. Plication",
            )
        ],
    ),
    ("medevalkit", "yes_no"): (
        "plain",
        [("user", "<a.png>", "Is it normal?\nPlease output 'yes' or 'no'(no extra output).")],
    ),
    ("medevalkit_reasoning", "yes_no"): (
        "boxed",
        [("user", "<a.png>", 'Is it normal?\nPlease output "yes" or "no" and put the answer in one "\\boxed{}".')],
    ),
    ("medevalkit", "open"): ("plain", [("user", "<a.png>", "Where is it?\nPlease answer the question concisely.")]),
    ("medevalkit", "close"): (
        "plain",
        [("user", "<a.png>", "Which organ?\nAnswer the question using a single word or phrase.")],
    ),
    ("medevalkit_reasoning", "close"): (
        "boxed",
        [
            (
                "user",
                "<a.png>",
                "Which organ?\nAnswer the question using a single word or phrase and put the answer in one "
                '"\\boxed{}".',
            )
        ],
    ),
    ("think_answer", "yes_no"): (
        "tags",
        [
            (
                "user",
                "<a.png>",
                "Is it normal?\nThink in numbered statements inside <think></think>, then give yes or no inside "
                "<answer></answer>.",
            )
        ],
    ),
    ("think_answer", "open"): (
        "tags",
        [
            (
                "user",
                "<a.png>",
                "Where is it?\nThink in numbered statements inside <think></think>, then give the answer in a few "
                "words inside <answer></answer>.",
            )
        ],
    ),
}


@pytest.mark.parametrize(("style", "item"), SNAPSHOTS)
def test_snapshot(style, item):
    prompt = prompt_styles.build(ITEMS[item], style)
    assert (prompt.form, shown(prompt)) == SNAPSHOTS[style, item]
    assert prompt.style == style


def test_every_style_has_a_snapshot():
    assert {style for style, _ in SNAPSHOTS} == set(prompt_styles.styles())


def test_several_images_are_named_for_the_kit():
    item = Case("1", "Which?", ("x", "y"), "A", images=IMAGES, benchmark="mine")
    (message,) = shown(prompt_styles.build(item, "medevalkit"))
    assert message[1:5] == ("<image_1>: ", "<a.png>", "<image_2>: ", "<b.png>")


def test_the_kit_shows_mmmu_in_a_form_of_its_own_with_the_first_image():
    item = Case(
        "1", "See <image 1>. Which?", ("x", "y"), "A", images=IMAGES, columns={"kit": "mmmu"}, benchmark="mmmu_medical"
    )
    (message,) = shown(prompt_styles.build(item, "medevalkit"))
    asks = "Answer with the option's letter from the given choices directly."
    assert message == ("user", "<a.png>", f"\nSee <image 1>. Which?\n\n(A) x\n(B) y\n\n\n        {asks}")
    answered = Case(
        "2", "How many?", (), "8", images=IMAGES[:1], kind="open", columns={"kit": "mmmu"}, benchmark="mmmu_medical"
    )
    (message,) = shown(prompt_styles.build(answered, "medevalkit_reasoning"))
    asks = 'Answer the question using a single word or phrase and put the answer in one "\\boxed{}".'
    assert message == ("user", "<a.png>", f"\nHow many?\n\n        {asks}")


def test_the_kit_asks_in_chinese_where_the_question_is():
    item = Case(
        "1", "图中是什么？", (), "肝", images=IMAGES[:1], kind="open", labels={"language": "zh"}, benchmark="slake"
    )
    (message,) = shown(prompt_styles.build(item, "medevalkit"))
    assert message == ("user", "<a.png>", "图中是什么？\n请简要回答该问题。")
    meta = {"raw_options": ("A.甲", "B.乙")}
    item = Case("1", "患？", ("甲", "乙"), "B", labels={"language": "zh"}, columns=meta, benchmark="cmb")
    (message,) = shown(prompt_styles.build(item, "medevalkit"))
    assert message == ("user", "\n问题： 患？\n选项： \nA.甲\nB.乙\n请直接使用给定选项中的选项字母来回答该问题。")


def test_the_second_turn_of_medxpertqa():
    prompt = prompt_styles.build(XPERT, "medxpertqa")
    first, *turns = prompt.then(" The capsule tears. \n").messages[1:]
    assert first == prompt.messages[1]
    assert turns == [
        {"role": "assistant", "content": "The capsule tears."},
        {"role": "user", "content": "Therefore, among A through B, the answer is"},
    ]
    assert not any(
        prompt_styles.build(XPERT, style).follow_up for style in prompt_styles.styles() if style != "medxpertqa"
    )


def test_think_answer_is_the_prompt_of_training():
    case = next(case for case in load_cases("mini", "test") if not case.images)
    for paradigm in (None, "bayesian"):
        built = prompt_styles.build(from_case(case), "think_answer", paradigm)
        assert built.messages == training.conversation(case, paradigm)


def test_images_are_opened_when_asked_for():
    messages = prompt_styles.build(XPERT, "medxpertqa").messages
    opened = prompt_styles.opened(messages)
    assert opened[0] == messages[0] and opened[1]["content"][1] == {"type": "image", "image": b"pixels"}
    assert messages[1]["content"][1]["image"] is IMAGES[0]


@pytest.mark.parametrize(
    ("item", "style", "paradigm", "words"),
    [
        (XPERT, "mine", None, "no prompt 'mine': choose one of think_answer, medevalkit"),
        (XPERT, "medevalkit", "bayesian", "no place for a paradigm"),
        (OPEN, "med_r1", None, "med_r1 asks for a letter, and slake 2 has no options"),
    ],
)
def test_what_cannot_be_asked_is_one_line(item, style, paradigm, words):
    with pytest.raises(ConfigError, match=words):
        prompt_styles.build(item, style, paradigm)
