"""The answer that a row gives as right: its reasoning apart, its letter, and what would be wrong of every response."""

import difflib
import re

from mmedexpert_jax import answers, border
from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.data.question_text import behind_question
from mmedexpert_jax.data.words import stands
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.statements import NO_LABEL

LONGEST_ANSWER = 200  # characters of an answer that is held against another of its row
NEARLY = 0.85  # of difflib's likeness, from which on an answer is a slip of an option's text
# the line with the answer behind its reasoning: GSM8K's, and the words that prompts ask for; LLaVA-CoT's element
_LAST = re.compile(r"^[*_ \t]*(?:####(?!#)|(?:final\s+)?answer[*_]*[:：])[*_ \t]*(\S[^\n]*?)[*_\s]*\Z", re.I | re.M)
_CONCLUSION = re.compile(r"<CONCLUSION>(.*)</CONCLUSION>\s*\Z", re.DOTALL)
_COUNTS = re.compile(
    r"(?i)\b(?:how (?:many|much|often)|number|scores?|count|calculate|compute|sum|total|ecog|apgar|gcs|nyha|gravid\w*|"
    r"parity)\b|多少|几"
)
_SIDE = re.compile("hyper|hypo|tachy|brady|intra|extra|endo|exo|macro|micro")  # that makes another disease of one
# a species behind the letter of its genus: beside those of NO_LABEL the endings and names that no disease has alone
_NO_EPITHET = r"(?!\.\s?(?:[a-z]+(?:ica|[ae]tum|ularis|enalis|ssinus|ensis|olani|elli)|koseri|nana|simplex|zoster)\.?$)"


def taken_apart(answer: str) -> tuple[str, str]:
    """The answer itself, without marks, and the reasoning before it, of whatever mark; of one whose first mark is in
    the prompt, as R1's template has it, all before its end."""
    if concluded := _CONCLUSION.search(answer):
        return concluded[1].strip(), answer[: concluded.start()].strip()
    taken = answers.parse(answer)
    short = taken.answer or answers.spoken(answer)
    trace = taken.think or answers.headed(answer)
    for mark, end in () if trace or taken.think == "" else (*answers.REASONING_MARKS, ("", "</think>")):
        before, closed, _ = answer.partition(end)
        if closed and mark in before:
            trace = before.partition(mark)[2] if mark else before
            break
    return (answers.boxed(short) or short).strip(), (trace or "").strip()


def last_line(short: str, trace: str) -> tuple[str, str]:
    """An open answer without its name, as "Answer: gout", and the reasoning, which may stand before it."""
    if bare := _LAST.search(short):
        return (answers.boxed(bare[1]) or bare[1]).strip(), trace or short[: bare.start()].strip()
    return unnamed(short), trace


def unnamed(short: str) -> str:
    """A short open answer without words such as "The answer is" before it; any other as it is."""
    bare = answers.unwrap(short) if len(short) <= LONGEST_ANSWER else short
    named = answers.without_name(bare)
    return short if named == bare or re.search(r"[.!?]\s|\n", named) else named.strip('"* ')


def letter_of(short: str, options: list[str]) -> str | None:
    """The letter that an answer gives, or else its first line or sentence, before an explanation, or its last line.
    Raises DataError of labels alone that are not one option's: a label before another option's text, or several."""
    lines = [line for line in short.splitlines() if line.strip()]
    sentence = re.split(r"(?<=[.!?])\s", lines[0], maxsplit=1)[0] if lines else ""
    sentence = sentence if len(sentence.strip("*_ .")) > 1 else ""  # "A. fumigatus" is no A
    for said in dict.fromkeys([short, *lines[:1], *lines[1:][-1:], sentence]):
        if said and (letter := answers.choice(f"<answer>{said}</answer>", options)):
            return letter
    letters = f"[{LETTERS[: len(options)]}]"
    listed_ones = re.fullmatch(
        rf"(?:\W*(?i:both|options?|answers?|choices?)\b)?\W*{letters}(?:(?:\W+|\s+(?:and|or)\s+|[和与及或]){letters})+"
        r"(?:\s+(?:are|is)(?:\s+both)?\s+(?:correct|right|true))?\W*",
        short,
    )
    if listed_ones or (re.fullmatch(rf"{letters}{{2,}}", short) and "".join(sorted({*short})) == short):  # "A, C", "AC"
        raise DataError(f"key answer: {border.shown(short)} names several options; a case has one answer")
    texts = [option.strip().casefold() for option in options]
    label = re.fullmatch(rf"\W?{letters}[.):]\s*(.+)", short, re.DOTALL)
    if label and label[1].strip().casefold() in texts:
        raise DataError(f"key answer: {border.shown(short)} has the letter of another option than its text; give one")
    return None


def refuse_named(short: str, options: list[str], question: str) -> None:
    """Raises DataError of an answer that speaks of one option and gives none, as a number, a label beyond them or a
    text that is nearly one of theirs does: as an open one's reference it would be wrong of every right answer. One that
    speaks of several is about the list, which an open question may hold."""
    text = short.casefold()
    texts = [option.strip().casefold() for option in options]

    beyond = rf"[{LETTERS[len(options) :]}]"
    label = len(options) < len(LETTERS) and re.fullmatch(
        rf"\(?{beyond}{NO_LABEL}{_NO_EPITHET}(?:\)[.:]?|[.:]).*|(?i:option|answer|choice)s?\W+{beyond}\W*", short
    )
    number = re.fullmatch(r"(-?\d{1,2})(?:\.0)?", short)
    counts = number and -1 <= int(number[1]) <= len(options) and options[0] in behind_question(question)
    close = difflib.get_close_matches(text, texts, 1, NEARLY) if len(text) <= LONGEST_ANSWER else []
    near = close and _SIDE.findall(close[0]) == _SIDE.findall(text)
    if label or near or (counts and not _COUNTS.search(question)):
        raise DataError(f"key answer: {border.shown(short)} is none of the options; give the letter of one")

    named = [option for option in texts if stands(option, text)]
    whole = [one for one in named if not any(one != other and one in other for other in named)]
    letter = rf"(?-i:[{LETTERS[: len(options)]}])\b"
    if len(whole) == 1 or re.search(rf"(?i)\b(?:option|answer|choice)(?:\s+is)?\W{{1,3}}{letter}", short):
        raise DataError(f"key answer: {border.shown(short)} speaks of options and gives none; begin it with the letter")
