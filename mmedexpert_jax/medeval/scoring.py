"""The verdict on a response, under the readings of several scorers, and how it was found."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmedexpert_jax import answers
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.medeval import kit

SCORERS = ("strict", "medevalkit", "medxpertqa")
FORMS = ("tags", "boxed", "plain")
_LABELLED = re.compile(r"\(?([A-J])[.):]")
# Two that differ, on one line or joined by a word; of those that a blank line parts the last counts.
_TWO_BOXES = re.compile(
    r"\\boxed\s*\{(?P<one>[^{}]*)\}(?!\s*\n\s*\n)(?:[\s$\\()\[\],;./&]|or|and)*"
    r"\\boxed\s*\{(?!(?P=one)\})(?P<two>[^{}]*)\}\W*\Z"
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
    if form == "tags" or answers.parse(response).answer is not None:
        return answers.choice(response, options)
    if (content := _boxed(response, options)) is not None:
        return answers.chosen(content, options)
    if form == "boxed":
        return None
    text = answers.spoken(response).strip()
    if whole := answers.chosen(text, options) or answers.chosen(text.strip("* \n"), options):
        return whole
    told = answers.set_apart(answers.without_list(text, options), options)
    others = [answers.yes_or_no(text, options), *(answers.chosen(line, options) for line in _ends(told))]
    return answers.by_statements(told, options, others, remarks=True)


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
    """ "yes" or "no", as `answers.yes_no` reads it in the answer (`read_text`), or None."""
    return answers.yes_no(read_text(response, form) or "")


def read_text(response: str, form: str = "tags") -> str | None:
    """The answer as text: of the last answer block; unless `form` is tags, of the last box; in a plain form, else all
    that is said outside the reasoning. None where it is empty or absent."""
    text = answers.parse(response).answer
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


def _boxed(response: str, options: Sequence[str] = ()) -> str | None:
    """Content of the last box outside the reasoning, "" where it is one of two ("\\boxed{B} or \\boxed{C}") that do not
    choose the same of `options`; None where there is none or it is not closed."""
    text = answers.spoken(response)
    if two := _TWO_BOXES.search(text):
        one, other = (answers.chosen(two[name], options) for name in ("one", "two"))
        return two["two"] if one == other is not None else ""
    return answers.boxed(text)
