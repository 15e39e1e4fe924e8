"""The text of a question: options that stand at its end, the places of its images, and answers that it gives away."""

import re
from collections.abc import Sequence
from typing import Any

from mmedexpert_jax import answers, border
from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.data.cells import IMAGE_FILE, labelled, without_separators
from mmedexpert_jax.errors import DataError

# where LLaVA, verl, LLaMA-Factory and chat templates put an image; ours come first
_PLACE = re.compile(
    r"(?:<image>|<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>|<\|image_pad\|>|<\|image\|>|<start_of_image>|"
    r"<ImageHere>|<image_placeholder>|\[IMAGE\])\s?"
)
_NUMBERED = re.compile(r"<(?:\|image_(\d+)\||image[ _](\d+))>")  # the name of one that is shown, as MMMU writes it
# a picture that is named where it stands: Qwen-VL's form, HTML, Markdown
_INLINE = re.compile(
    r"(?:Picture \d+:\s*)?(?:<img>([^<>\n]+)</img>|<img\s[^<>]*?src=[\"']([^\"'<>]+)[\"'][^<>]*>|"
    r"!\[[^\]\n]{0,200}\]\(([^()\s]+)\))\s?"
)
# roles and ends of turns as chat templates write them, and the ends of prompts that leave the turn to the model
_TEMPLATE = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|eot_id|begin_of_text|user|assistant)\|>|<(?:start|end)_of_turn>|\[/?INST\]|"
    r"<｜(?:User|Assistant)｜>|^(?:### Response|Assistant):\s*(?:<think>\s*)?\Z",
    re.MULTILINE,
)
# "A. text", also as "(a) text", "- A) text", "**A.** text", "A、text", "Option A - text"
_OPTION = re.compile(
    r"^\s*(?:[-*•]\s+)?(?:(?i:option)\s+)?(?:\*\*|__)?[(（\[]?([A-Ja-j])(?:\*\*|__)?(?:[.):\]．）：、]|\s?[-–]\s)"
    r"(?:\*\*|__)?\s*(.*\S)\s*$"
)
_LISTED = r"(?m)^[^\w\n]*{}\s*[.):\]．）：、]\s*(?=\D)"  # the label of a line, and no number
_GIVEN = re.compile(
    r"(?im)(?:^[^\w\n]*|[.?!]\s+)(?:(?:the\s+)?(?:correct\s+)?(?:answer|ans|key)\s*[:：]|答案[:：])\s*(.+)$"
)


def split_options(text: str) -> tuple[str, list[str]]:
    """A question and the lettered options at its end, A, B, ... a line each; (text, []) where there are none.

    Letters are of one case; blank lines may stand between.
    """
    lines = text.splitlines()
    found = [_OPTION.match(line) for line in lines]
    places = (i for letter in "Aa" for i, match in enumerate(found) if match and match[1] == letter)  # capitals first
    first = next(places, len(lines))
    letters = LETTERS if first == len(lines) or found[first][1] == "A" else LETTERS.lower()  # type: ignore[index]
    run: list[str] = []
    listed: list[str] = []
    end = first
    for place, match in enumerate(found[first:], first):
        if match and len(run) < len(LETTERS) and match[1] == letters[len(run)]:
            run.append(match[2])
            listed.append(lines[place])
            end = place + 1
        elif lines[place].strip():
            break
    if len(run) < 2 or answers.are_things(listed):
        return text, []
    after = [line for line in lines[end:] if line.strip()]
    stem = "\n".join([*lines[:first], *after]).strip()
    return re.sub(r"\n?\s*(?:options|choices|answer choices)\s*:\s*$", "", stem, flags=re.I), without_separators(run)


def split_line_of_options(question: str) -> tuple[str, list[str]]:
    """A question and the lettered options behind its last question mark, in one line, as "Which? A) one, B) two";
    (question, []) where there are none."""
    listed = behind_question(question)
    texts = labelled(re.sub(r"(?i)^\s*(?:options|choices|answer choices)\s*:", "", listed))
    if len(texts) < 2 or listed == question or not all(texts):
        return question, []
    texts[-1], _, after = texts[-1].partition("\n")
    return f"{question.removesuffix(listed).strip()}\n{after}".strip(), texts


def inline(question: str, images: Sequence[Any]) -> tuple[str, list[Any]]:
    """A question without the pictures that are named inside it, and the images with those that they lack."""
    found = ["".join(filter(None, match.groups())).strip() for match in _INLINE.finditer(question)]
    if not found or not all(IMAGE_FILE.search(name) or name[:5] == "data:" for name in found):
        return question, list(images)
    return _INLINE.sub("", question).strip(), [*images, *(name for name in found if name not in images)]


def placed(question: str, images: set[int]) -> str:
    """A question without the marks of its images' places, which come first. Raises DataError where the marks are of
    another number than the images, of which inline parts may or may not be counted."""
    if mark := _TEMPLATE.search(question):
        raise DataError(
            f"key question: {border.shown(mark[0])} of a chat template stands in it; give the message's text alone, "
            "since the model's own template is added"
        )
    if "<video>" in question:
        raise DataError("key question: <video>; videos are not read, give frames of it as images")
    numbers = [int(one or other) for one, other in _NUMBERED.findall(question)]
    if numbers and max(numbers) > max(images):
        raise DataError(f"key question: <image {max(numbers)}> is named, of {max(images)} images; give all in images")
    marks = len(found := _PLACE.findall(question))
    if marks and marks not in images:
        raise DataError(
            f"key question: {found[0].strip()} stands {marks} times, for {max(images)} images; write it for each or "
            "none"
        )
    return _PLACE.sub("", question).strip() if marks else question


def gives_away(question: str, options: Sequence[str], answer: str) -> str:
    """The line behind what is asked that gives its own answer, as "Answer: B" does; "" of none. Before it stand worked
    examples with their answers."""
    for line in _GIVEN.finditer(behind_question(question)):
        said = line[1].strip()
        named = answers.choice(f"<answer>{said}</answer>", options) if options else said
        if named and named.casefold() == answer.casefold():
            return line[0].strip(" .?!\n")
    return ""


def lists(question: str, label: str) -> bool:
    """True where a line behind what is asked begins with a label, as "2. Gout" does; with a number where another line
    has the one before or behind it."""
    listed = behind_question(question)
    labels = [label]
    if label.isdecimal():
        labels.append(str(int(label) - 1 if int(label) > 1 else int(label) + 1))
    return all(re.search(_LISTED.format(re.escape(one)), listed) for one in labels)


def behind_question(question: str) -> str:
    """The text behind the last question mark; all of it where there is none."""
    return re.split("[?？]", question)[-1]
