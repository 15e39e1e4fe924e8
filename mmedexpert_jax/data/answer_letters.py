"""Letters for the answers of a whole table, which may give an option's text, its label, or its number from 0 or 1."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmedexpert_jax import answers, border
from mmedexpert_jax.data import case_rows
from mmedexpert_jax.data.case import LETTERS

# A column -> the key of ours that it stands for: of spreadsheets and published sets those that `case_rows.ALIASES`, the
# keys which a set may nearly have, lacks.
MEANT = case_rows.ALIASES | {
    **dict.fromkeys(("cop", "answer_index", "correct_answer", "correct_option", "answerkey", "answer_key"), "answer"),
    **dict.fromkeys(("query", "input", "stem", "question_text", "vignette"), "question"),
    **dict.fromkeys(("exp", "explanation"), "trace"),
    **dict.fromkeys(("gt_answer", "ground_truth"), "answer"),  # OmniMedVQA
}
_LABEL = re.compile(r"\W*(?:(?:option|answer|choice)\W*)?[A-J]\W*", re.IGNORECASE)  # "B.", "Option B"
_LABEL_AND_TEXT = re.compile(  # "b) Lupus"
    r"\W*(?:(?:option|answer|choice)\W*)?([A-J])[.):]\s*(\S.*)", re.IGNORECASE | re.DOTALL
)


def with_letters(rows: list[dict[str, Any]], source: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows with letters for answers that are an option's text or number, and a line for each that is refused.

    Numbers count from 0 or from 1 as the whole table shows; where it shows neither its rows are refused, since a wrong
    key is worse than none.
    """
    refused: list[str] = []

    def refuse(place: int, why: str) -> None:
        refused.append(f"{source}, row of {rows[place]['id']}: {why}")
        rows[place] = {}

    numbers: dict[int, tuple[int, int]] = {}  # place of the row -> number, number of options
    of_text: dict[int, int] = {}  # the same of one that is an option's text -> the number
    # "A" of the options O, A, B and AB: the text where other rows give texts, else the letter, as in rows read directly
    of_texts = any(len(_key(row)) > 1 and _key(row) in map(str, row.get("options", ())) for row in rows)
    for place, row in enumerate(rows):
        answer, options = _key(row), [str(option).strip() for option in row.get("options", ())]
        texts = dict(zip(LETTERS, options, strict=False))
        same = _letters(texts, answer)
        said = answers.choice(f"<answer>{answer}</answer>", options) if 2 <= len(options) <= len(LETTERS) else None
        told = _LABEL_AND_TEXT.fullmatch(answer)
        both = told and said == told[1].upper() and said in _letters(texts, told[2])  # a letter and its text
        if answer.upper() in texts and not (of_texts and len(same) == 1):
            row["answer"] = answer.upper()
        elif len(same) == 1:
            row["answer"] = same[0]
            of_text |= {place: int(answer)} if re.fullmatch(r"\d{1,2}", answer) else {}
        elif said and (both or _LABEL.fullmatch(answer)):
            row["answer"] = said
        elif options and re.fullmatch(r"\d{1,2}", answer):
            numbers[place] = int(answer), len(options)
        if other := _contradiction(row, texts):
            refuse(place, other)
            numbers.pop(place, None)
            of_text.pop(place, None)

    first = 0 if any(number == 0 for number, _ in numbers.values()) else 1
    known = first == 0 or any(number == count for number, count in numbers.values())
    why = f"is no number of an option from {first}" if known else "may count from 0 or from 1"
    for place, (number, count) in numbers.items():
        if known and 0 <= number - first < count:
            rows[place]["answer"] = LETTERS[number - first]
        else:
            refuse(place, f"key answer: {number} {why}; give letters")
    bases = (first,) if known else (0, 1)
    for place, number in of_text.items() if numbers else ():  # the table's numbers are places
        counted = {LETTERS[number - base] for base in bases if 0 <= number - base < len(rows[place]["options"])}
        if counted - {rows[place]["answer"]}:
            refuse(place, f"key answer: {number} may be an option's text or its number; give its letter")
    return [row for row in rows if row], refused


def _key(row: Mapping[str, Any]) -> str:
    """A row's answer as text: of a list of one its member, of 2.0, as pandas writes whole numbers, 2."""
    answer = row.get("answer", "")
    answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    return re.sub(r"^(\d{1,2})\.0+$", r"\1", str(answer).strip())


def _letters(texts: Mapping[str, str], said: str) -> list[str]:
    """Letters of the options with this text, whatever its case."""
    return [letter for letter, text in texts.items() if text.lower() == said.lower()]


def _contradiction(row: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """The fault of a row in which another key of answers gives another option's letter or text; "" of any other. A
    number that is an option's text may count the options instead."""
    key = row.get("answer")
    if key not in list(texts):
        return ""
    for name, value in row.items():
        if MEANT.get(name.lower().replace(" ", "_")) != "answer":
            continue
        said = str(value).strip()
        if said.isdecimal() and LETTERS.index(key) in (int(said), int(said) - 1):
            continue
        letter = said.upper() if said.upper() in texts else "".join(_letters(texts, said))
        if letter and letter != key:
            return f"key answer: {key}, but key {border.cut(name)}: {border.shown(value)}; one of them is wrong"
    return ""
