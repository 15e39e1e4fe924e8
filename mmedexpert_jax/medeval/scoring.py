"""Whether a response to a multiple-choice question is right, under two readings of it."""

import difflib
import re
from collections.abc import Sequence

from mmedexpert_jax import answers
from mmedexpert_jax.errors import ConfigError

SCORERS = ("strict", "medevalkit")

_PATTERNS = (
    "**answer**:",
    "**answer**",
    "*answer*:",
    "**answer:**",
    "answer is",
    "answer:",
    "答案:",
    "final answer",
    "final answer is",
)


def judge_choice(response: str, options: Sequence[str], answer: str, scorer: str = "strict") -> bool:
    """Whether `response` chooses the option with the letter `answer`.

    Args:
        response: the whole completion.
        options: option texts in order, all with their labels ("A. text") or all without.
        answer: letter of the right option.
        scorer: "strict": `answers.choice`, the parser of the rewards, where ambiguous or absent is wrong; "medevalkit":
            that kit's `judge_multi_choice`, which guesses where it cannot read (an empty response counts as "A").

    Raises:
        ConfigError: an unknown scorer.
    """
    if scorer == "strict":
        return strict_choice(response, options) == answer
    if scorer == "medevalkit":
        return _medevalkit(response, options, answer)
    raise ConfigError(f"no scorer {scorer!r}: choose one of {', '.join(SCORERS)}")


def strict_choice(response: str, options: Sequence[str]) -> str | None:
    """Letter that `answers.choice` reads in `response`; labels before the options are taken off first."""
    return answers.choice(response, _unlabelled(options))


def _unlabelled(options: Sequence[str]) -> list[str]:
    """Options without their labels, if each has its own ("A. text", "(A) text", "A: text")."""
    parts = [re.match(r"\s*(?:\((\w)\)|(\w)[.:)])\s*(.*)", option, re.DOTALL) for option in options]
    labels = [(part[1] or part[2]).upper() for part in parts if part]
    return [part[3] for part in parts if part] if labels == list(answers.LETTERS[: len(options)]) else list(options)


def _medevalkit(response: str, options: Sequence[str], answer: str) -> bool:
    """MedEvalKit's rule (git 9b12e3b, `judge_multi_choice`), fuzzy guess and oddities included."""
    letters = [chr(ord("a") + i) for i in range(len(options))]
    texts = [option.lower() for option in options]
    response, gold = response.lower(), answer.strip().lower()
    paragraphs = response.split("\n\n")
    if paragraphs[0] in letters:
        response = paragraphs[0]
    elif paragraphs[-1].split(".")[0] in letters:
        response = paragraphs[-1].split(".")[0]
    response = _medevalkit_answer(response).strip().lower().replace("\n", "")
    said = response.split(".")[0].split(":")[-1]
    if said == gold:
        return True
    if said in letters:
        return texts[letters.index(said)] == gold
    if said in texts:
        return gold in letters and said == texts[letters.index(gold)]
    ratios = [difflib.SequenceMatcher(None, text, response).ratio() for text in texts]
    guess = ratios.index(max(ratios))
    return gold in (letters[guess], texts[guess])


def _medevalkit_answer(response: str) -> str:
    """The kit's `parse_response`: the last box or the answer tags, then what follows each pattern's last occurrence."""
    if "boxed" in response:
        response = _boxed(response)
    elif blocks := re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL):
        response = " ".join(blocks).strip() or response
    for pattern in _PATTERNS:
        response = response.split(pattern)[-1]
    return response


def _boxed(text: str) -> str:
    r"""Content of the last \boxed{...}, braces balanced; "None" where there is none or it is not closed."""
    _, mark, content = text.rpartition(r"\boxed{")
    depth = 1
    for end, char in enumerate(content if mark else ""):
        depth += (char == "{") - (char == "}")
        if not depth:
            return content[:end].strip()
    return "None"
