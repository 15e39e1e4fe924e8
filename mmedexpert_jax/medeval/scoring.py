"""The verdict on a response, under the readings of several scorers, and how it was found."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmedexpert_jax import answers
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.medeval import kit
from mmedexpert_jax.statements import WORDS, YES_AND_NO, opening, stated, stated_texts

SCORERS = ("strict", "medevalkit", "medxpertqa")
FORMS = ("tags", "boxed", "plain")
_LABELLED = re.compile(r"\(?([A-J])[.):]")
# Two that differ, on one line or joined by a word; of those that a blank line parts the last counts.
_TWO_BOXES = re.compile(
    r"\\boxed\s*\{(?P<one>[^{}]*)\}(?!\s*\n\s*\n)(?:[\s$\\()\[\],;./&]|or|and)*"
    r"\\boxed\s*\{(?!(?P=one)\})(?P<two>[^{}]*)\}\W*\Z"
)
_CHANGED = re.compile(r"\b(?:wait|actually|sorry|correction|i\s+mean)\b", re.IGNORECASE)
_NOT = re.compile(
    r"\b(?:not|never|cannot\s+be|n['’]t(?:\s+be)?)\s+(?:a\s+|necessarily\s+)?[\"“]?(?:yes|no)\b", re.IGNORECASE
)
# A reply that ends in its answer: "but the answer to the question is yes", "Is there none? Yes", "answer": true.
_ENDS_IN = re.compile(
    r"(?:\banswer\b(?:\s+to\s+[^.,:;\n]{1,40})?[\"”*]*\s*(?:is|:)|\?)\s*[\"“*]*(yes|no|true|false)\W*\Z", re.IGNORECASE
)
# A "no" that is no answer: of what is not there to see, of what nobody can tell, and before a number.
_NO_ANSWER = re.compile(
    r"\b(?:there\s+is\s+)?no\s+(?:doubt|question|idea|clue|opinion|problem|worries|clear\s+view)\b"
    r"|\bno\s+(?:\w+\s+)?(?:images?|pictures?|photos?|photographs?|scans?|x-?rays?|radiographs?|attachments?|files?)\b"
    r"(?=\s*(?:$|[.,;:!?])|\s+(?:is|was|are|were|has|have|to|attached|provided|available|given|shown|included"
    r"|uploaded|here|with|for|from|so|and|but)\b)"
    r"|\bno\s+(?:\w+\s+)?(?:information|context|access)\b"
    r"(?=\s*(?:$|[.,;])|\s+(?:to|about|on|for|that|from|is|was|provided|available|given)\b)"
    r"|\bno\s+(?:way|means)\s+(?:to|of|for)\b"
    r"|\bno\s+(?:\w+\s+)?(?:answer|conclusion|determination)\s+(?:can|could|may|is\s+possible)\b"
    r"|\bno\s+(?:lo\s+)?(?:sé|puedo)\b"
    r"|\bno(?:\.\s?|\s)(?=\d)",
    re.IGNORECASE,
)
# A reply of one that has no image to look at, whatever yes or no it is polite with.
_IMAGES = r"(?:images?|pictures?|photos?|scans?|x-?rays?|radiographs?|attachments?|files?)\b"
_SEES_NOTHING = re.compile(
    rf"\bplease\s+(?:upload|provide|attach|share|send)\s+(?:it\b|(?:(?:the|an?|your|another)\s+)?(?:\w+\s+)?{_IMAGES})"
    rf"|\bno\s+(?:\w+\s+)?{_IMAGES}\s+(?:(?:is|was|were|has\s+been)\s+)?"
    r"(?:attached|provided|uploaded|included|given|shared)\b"
    rf"|\b(?:can(?:not|['’]t)|unable\s+to)\s+(?:\w+\s+)?(?:view|see|analy[sz]e|access|process|interpret)\s+(?:\w+\s+){{0,2}}{_IMAGES}",
    re.IGNORECASE,
)
READ_WHOLE = ("pmc_vqa",)  # benchmarks whose answers MedEvalKit does not first cut to their tags


@dataclass(frozen=True)
class Score:
    """A scorer's verdict on one response."""

    right: bool  # the verdict; an open answer is right if it is exact
    answer: str | None  # what was read: a letter, "yes" or "no", or text; None where nothing was
    guessed: bool = False  # the scorer could not read the response and took the most similar option ("medevalkit" only)
    f1: float = 0.0  # token F1 of an open answer; else 1.0 where right and 0.0 where not


def score(item: Case, response: str, scorer: str = "strict", form: str = "tags") -> Score:
    """Judges one response.

    Args:
        item: the question.
        response: the whole completion (of the last turn).
        scorer: "strict": ambiguous or absent is wrong (`read_choice`); "medevalkit": the kit's rule for the item's
            kind (`medeval.kit`), which guesses where it cannot read; "medxpertqa": that benchmark's official rule.
        form: what the prompt asked the answer to stand in, `Question.form`; "strict" holds to it.

    Raises:
        ConfigError: an unknown scorer or form.
    """
    if form not in FORMS:
        raise ConfigError(f"no form of answer {form!r}: choose one of {', '.join(FORMS)}")
    if scorer == "medevalkit":
        return _kit(item, response)
    if scorer not in SCORERS:
        raise ConfigError(f"no scorer {scorer!r}: choose one of {', '.join(SCORERS)}")
    if item.kind == "choice":
        official = scorer == "medxpertqa"
        read = read_official(response, len(item.options)) if official else read_choice(response, item.options, form)
        right = read is not None and _same(item, read)
    elif item.kind == "yes_no":
        read = read_yes_no(response, form)
        right = read == item.answer
    else:
        read = read_text(response, form)
        right = read is not None and answers.gives(read, item.golds)
        return Score(right, read, f1=answers.open_f1(read or "", item.golds))
    return Score(right, read, f1=float(right))


def judge_choice(response: str, options: Sequence[str], answer: str, scorer: str = "strict") -> bool:
    """True where `response` chooses the option with the letter `answer`.

    Args:
        response: the whole completion.
        options: option texts in order, all with their labels ("A. text") or all without.
        answer: letter of the right option.
        scorer: "strict": `answers.choice`, the parser of the rewards, where ambiguous or absent is wrong; "medevalkit":
            that kit's `judge_multi_choice`, which guesses where it cannot read (an empty response counts as "A");
            "medxpertqa": that benchmark's official rule.

    Raises:
        ConfigError: an unknown scorer.
    """
    if scorer == "strict":
        return answers.choice(response, answers.unlabelled(options)) == answer
    if scorer == "medevalkit":
        return kit.judge_multi_choice(options, answer, response).right
    if scorer == "medxpertqa":
        return read_official(response, len(options)) == answer
    raise ConfigError(f"no scorer {scorer!r}: choose one of {', '.join(SCORERS)}")


def read_choice(response: str, options: Sequence[str], form: str = "tags") -> str | None:
    r"""Letter that a response chooses, or None: the strict reading.

    Tags: the last answer block outside the reasoning, as the rewards read it (`answers.choice`), or nothing. Boxed:
    such a block if there is one, else the last \boxed{...}, or nothing. Plain: such a block or box if there is one;
    else the whole text outside the reasoning if it is a label, a label and its text, or an option's text; else the one
    letter that the weightiest statements name (`statements.stated`: "final answer: B" before "the answer is B"), which
    are not read where they deny, hedge or ask; else the first or last line read like the whole, and the texts that are
    stated ("the diagnosis is asthma"), if these do not contradict each other; else the one option that is remarked on
    ("option B fits").

    Args:
        response: the whole completion.
        options: option texts without letters.
        form: one of FORMS.
    """
    tagged = _tagged(response)
    if form == "tags" or tagged is not None:
        return answers.choice(response, options)
    if (content := _boxed(response, options)) is not None:
        return _choice(content, options)
    if form == "boxed":
        return None
    text = answers.spoken(response).strip()
    if whole := _choice(text, options) or _choice(text.strip("* \n"), options):
        return whole
    letters = answers.LETTERS[: len(options)]
    told = answers.set_apart(answers.without_list(text, options), options)
    if stated(told, letters, remarks=False):
        return answers.one_stated(told, options)
    read = {_choice(line, options) for line in (*_ends(told), *stated_texts(told))} | {answers.yes_or_no(text, options)}
    read -= {None}
    if not read:
        return answers.one_stated(told, options, remarks=True)
    return read.pop() if len(read) == 1 else None


def read_official(response: str, count: int) -> str | None:
    """MedXpertQA's rule (git f21247d, `answer_cleansing`): the first free-standing letter after the trigger of the
    second turn, else after " answer is ", else anywhere; case counts."""
    last = answers.LETTERS[count - 1]
    for mark in (f"Therefore, among A through {last}, the answer is", " answer is "):
        if mark in response:
            response = response.split(mark)[1]
            break
    for phrase in ("I understand", "A through J", "A through E", "A through D"):
        response = response.replace(phrase, "")
    found = re.search(rf"\b[A-{last}]\b", response)
    return found[0] if found else None


def read_yes_no(response: str, form: str = "tags") -> str | None:
    """ "yes" or "no", or None.

    The word of either that the answer (`read_text`) ends in behind "the answer is" or a question; the one, in any of
    the languages of `statements.WORDS`, that opens it and ends its clause, unless both stand side by side; else "yes"
    or "no" if exactly one of these two stands in it, undenied. Nothing is read of one who sees no image.
    """
    text = read_text(response, form) or ""
    if _SEES_NOTHING.search(text):
        return None
    text = answers.unwrap(_NO_ANSWER.sub("", text))
    said = {word.lower() for word in re.findall(r"\b(?:yes|no)\b", text, re.IGNORECASE)}
    if YES_AND_NO.search(text) or (len(said) > 1 and _CHANGED.search(text)):
        return None
    first, last = opening(text), _ENDS_IN.search(text)
    if last and not (first and last[0].startswith("?")):  # "Yes. Is this urgent? No." has answered before
        return WORDS[last[1].lower()]
    if first:
        return first[1]
    return said.pop() if len(said) == 1 and not _NOT.search(text) else None


def read_text(response: str, form: str = "tags") -> str | None:
    """The answer as text: of the last answer block; unless `form` is tags, of the last box; in a plain form, else all
    that is said outside the reasoning. None where it is empty or absent."""
    text = _tagged(response)
    if text is None and form != "tags":
        text = _boxed(response)
    if text is None and form == "plain":
        text = answers.spoken(response)
    return None if text is None else text.strip() or None


def kit_rule(item: Case) -> str:
    """MedEvalKit's rule for an item: "choice", "judgement" (yes or no), "close" (a word or phrase), "open", "report";
    "mmmu" for MMMU, with a parser of its own."""
    return item.columns.get("kit", {"yes_no": "judgement"}.get(item.kind, item.kind))


def _kit(item: Case, response: str) -> Score:
    """MedEvalKit's verdict, on the options and key as the file has them."""
    gold = item.columns.get("raw_answer", item.answer)
    rule = kit_rule(item)
    if rule == "choice":
        labelled = answers.lettered(item.options)
        text = response if item.benchmark in READ_WHOLE else kit.extract(response)
        verdict = kit.judge_multi_choice(item.columns.get("raw_options", labelled), gold, text)
        said = verdict.said.upper() if len(verdict.said) == 1 else verdict.said
        return Score(verdict.right, said, verdict.guessed, f1=float(verdict.right))
    if rule == "mmmu":
        if item.kind != "choice":  # the kit looks for the key in single characters of the response, and finds none
            return Score(False, kit.final(response) or None)
        verdict = kit.judge_mmmu(item.options, gold, response, item.id)
        return Score(verdict.right, verdict.said, verdict.guessed, f1=float(verdict.right))
    text = kit.final(response)
    if rule == "open":
        verdict = kit.judge_open_end(gold, text)
        return Score(verdict.right, verdict.said, f1=kit.token_f1(gold, verdict.said))
    verdict = kit.judge_judgement(gold, text) if rule == "judgement" else kit.judge_close_end(gold, text)
    return Score(verdict.right, verdict.said or None, f1=float(verdict.right))


def _same(item: Case, letter: str) -> bool:
    """True where a letter is the key, or names an option with the very same text."""
    if item.answer not in tuple(answers.LETTERS[: len(item.options)]):
        return False
    key = item.options[answers.LETTERS.index(item.answer)]
    return letter == item.answer or item.options[answers.LETTERS.index(letter)] == key


def _ends(text: str) -> list[str]:
    """The first and the last line, unless a line of a list of options, with another label, stands next to it."""
    lines = [re.sub(r"^[-•>#*]+\s", "", line.strip()).strip("* \t") for line in text.strip().splitlines()]
    labels = [found[1] if (found := _LABELLED.match(line)) else "" for line in lines]
    pairs = [(0, 1), (-1, -2)] if len(lines) > 1 else []
    ends = [lines[own] for own, beside in pairs if not (labels[own] and labels[beside] not in ("", labels[own]))]
    return ends if pairs else lines


def _choice(text: str, options: Sequence[str]) -> str | None:
    """`answers.chosen` of a text that holds something."""
    return answers.chosen(text, options) if text.strip() else None


def _tagged(response: str) -> str | None:
    return answers.parse(response).answer


def _boxed(response: str, options: Sequence[str] = ()) -> str | None:
    """Content of the last box outside the reasoning, "" where it is one of two ("\\boxed{B} or \\boxed{C}") that do not
    choose the same of `options`; None where there is none or it is not closed."""
    text = answers.spoken(response)
    if two := _TWO_BOXES.search(text):
        return two["two"] if _choice(two["one"], options) == _choice(two["two"], options) is not None else ""
    return answers.boxed(text)
