"""Stage 1 (section 3.2): exact match by the shared strict parser, and the checks that a machine can make."""

import re

from mmedexpert_jax import answers
from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.data.words import word_count
from mmedexpert_jax.mmedexpert import paradigm_rules
from mmedexpert_jax.mmedexpert.record import Check, RawCase
from mmedexpert_jax.remote.outcomes import ending

REASONS = {
    "no-answer-came": "the teacher gave no answer: refused, filtered or failed",
    "cut-short": "the answer ran into the limit of its length",
    "malformed": "not one think block and one answer block",
    "unreadable-answer": "the strict parser reads no option",
    "wrong-answer": "another option than the key",
    "too-short": "fewer words than the lower bound",
    "too-long": "more words than the upper bound",
    "answer-first": "the first statement already gives the answer",
    "answer-leak": "speaks of an answer that was given, or of a key",
    "mentions-rules": "speaks of the way of reasoning as of an order",
    "structure": "a required move is missing or a forbidden one is made",
}
FLAGS = {
    "image-not-mentioned": "a case with an image, and no word about what is seen",
    "new-numbers": "measured values that the case does not give",
}
_UNANSWERED = ("content_filter", "refusal", "tool_calls", "function_call")  # ends of what is no answer
_LEAK = re.compile(
    r"\b(?:answer key|ground truth|gold (?:standard )?answer|"
    # not the patient's answer, a key finding, or a solution that is infused
    r"(?:given|provided|supplied|stated|listed|known|official) (?:(?:correct )?answer"
    r"(?! (?:of|by|from) (?:the|this|a|his|her) (?!question|case|key|exam))|(?:correct )?key"
    r"(?=\W*$|[.,;:)]| (?:is|was|says|states|gives)\b)|correct solution)|official solution|"
    r"(?:answer|key|(?:correct|official) solution) (?:is|was) (?:given|provided|known|supplied)|"
    r"we (?:know|are told) (?:that )?the (?:correct )?answer|"
    r"(?:since|because|given that|as) the (?:correct )?answer is(?! not| neither| unlikely))\b|"
    r"(?:因为|由于|既然|鉴于)(?:正确)?答案(?:是|为)(?!不|否)|(?:标准|参考)答案|(?:给定|给出|所给|已知|提供)的?(?:正确)?答案|"
    r"答案已(?:知|经?给)|"
    r"\b(?:da|weil) die (?:richtige|korrekte) Antwort\b(?! nicht)|\b(?:Muster|Beispiel)lösung|"
    r"\b(?:Lösungs|Antwort)schlüssel|\b(?:vor|an)gegebenen? (?:richtigen? )?Antwort|"
    r"\b(?:puisque|comme|parce que|étant donné que|car) la (?:bonne réponse|réponse correcte) est(?! pas)\b|"
    r"\b(?:ya que|puesto que|porque|dado que|como) la respuesta correcta es(?! no)\b",
    re.I,
)
_RULES = re.compile(
    r"\b(?:(?:asked|told|instructed|required|requested|supposed) to (?:use|reason|apply|follow)|"
    r"as (?:requested|instructed)|(?:designated|requested|required|assigned) (?:way|method|paradigm|style|reasoning)|"
    r"as an AI|(?:AI|large) language model|(?:as|am|I'm) a language model)\b",
    re.I,
)
_FIRST = re.compile(
    r"^\W*(?:the )?(?:final |correct |right |best )*(?:answer|option|choice)\b\W*(?:is|would be|:)?\W*", re.I
)
_LOOKED = re.compile(
    r"图|影像|片|可见|显示|\b(?:image|picture|figure|photo\w*|film|radiograph|x-?ray|scan|slice|CT|MR\w?|ultrasound|ECG|trac(?:e|ing)|smear|"
    r"biops\w+|histolog\w+|chart|graph|shows?|shown|seen|visible|mark\w*|line|dot|field|lesion|opaci\w+|bright|dark|white|"
    r"shaded)\b",
    re.I,
)
# A letter, not the article: "A" before no noun, and a small one where its clause ends.
_LETTER = re.compile(
    r"\(?(?:[B-J]\b|A\b(?! (?!is\b|was\b|fits\b|matches\b|explains\b|because\b|since\b|as\b|best\b|and\b|or\b)[a-z])|"
    r"[a-j](?=\W*$|[).:,;]))"
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_VALUE = re.compile(r"\b\d+(?:[.,]\d+)*(?=\s?(?:mm|mg|g|cm|mL|mmol|µmol|umol|kg|bpm|/min|U/L|IU|mEq|ng|pg|dB)\b)")


def check(
    response: str, record: RawCase, paradigm: str, words: tuple[int, int] = (1, 10_000), finish: str = "stop"
) -> Check:
    """Stage 1's check of a response.

    Args:
        response: the whole answer, tags and all; for an edited trace `trace.with_text(text)`.
        paradigm: the designated one.
        words: bounds of the reasoning's length.
        finish: why the teacher stopped; a reason that nobody knows is an end like any other.
    """
    finish = ending(finish)
    if finish in _UNANSWERED:
        return Check(False, None, ("no-answer-came",))
    parsed = answers.parse(response)
    letter = answers.choice(response, record.options) if record.options else parsed.answer or None
    think = parsed.think or ""
    count = word_count(think)
    found = {
        "cut-short": finish == "length",
        "malformed": not parsed.well_formed,
        "unreadable-answer": letter is None,
        "wrong-answer": letter is not None and not answers.is_right(response, record.options, *record.golds),
        "too-short": count < words[0],
        "too-long": count > words[1],
        "answer-first": states_first(think, record),
        "answer-leak": bool(_LEAK.search(think)),
        "mentions-rules": bool(_RULES.search(think)),
    }
    reasons = [name for name, there in found.items() if there]
    if not found["malformed"]:
        texts, key = record.named(think)
        chosen = LETTERS.index(letter) if letter and record.options else key
        lacks = paradigm_rules.missing(think, paradigm, texts, chosen)
        reasons += [f"structure:{lack}" for lack in lacks]
    flags = {
        "image-not-mentioned": bool(record.images) and not _LOOKED.search(think),
        "new-numbers": _has_new_numbers(think, record.question),
    }
    return Check(not reasons, letter, tuple(reasons), tuple(name for name, there in flags.items() if there))


def states_first(think: str, record: RawCase) -> bool:
    """True for reasoning that opens with its answer, as "Answer: B" or "(1) The correct answer is ..."."""
    opening = re.sub(r"^\s*\(1\)\s*", "", think)
    found = _FIRST.match(opening)
    if found is None:
        return False
    rest = opening[found.end() :]
    texts = [option.lower() for option in record.options or record.golds]
    return bool(_LETTER.match(rest)) or any(rest.lower().startswith(text) for text in texts)


def _has_new_numbers(think: str, question: str) -> bool:
    """True where a measured value stands in the reasoning alone; "9,5" is read as 9.5 and "1,200" as 1200 too."""
    known = {reading for number in _NUMBER.findall(question) for reading in _readings(number)}
    return any(not known & _readings(value) for value in _VALUE.findall(think))


def _readings(number: str) -> set[str]:
    thousands = re.fullmatch(r"\d{1,3}(?:,\d{3})+", number)
    return {number.replace(",", "."), *([number.replace(",", "")] if thousands else [])}
