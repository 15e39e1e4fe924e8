"""MedEvalKit's rules of judgement (git 9b12e3b), oddities included, so that figures compare with those made by it."""

import difflib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmedexpert_jax.answers import LETTERS

PATTERNS = (
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


@dataclass(frozen=True)
class KitReading:
    """The kit's reading of a response."""

    right: bool  # its judgement
    said: str  # the letter, option text or words that it read or guessed
    guessed: bool = False  # it read nothing and took the most similar option


def extract(response: str) -> str:
    """`extract(response, "answer")`: contents of the answer tags with spaces between, else the response as it is."""
    blocks = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
    return " ".join(blocks).strip() or response


def boxed(response: str) -> str:
    r"""mathruler's `extract_boxed_content`: the last \boxed{...}, braces balanced; "None" where there is none."""
    _, mark, content = response.rpartition(r"\boxed{")
    depth = 1
    for end, char in enumerate(content if mark else ""):
        depth += (char == "{") - (char == "}")
        if not depth:
            return content[:end].strip()
    return "None"


def parse_response(response: str) -> str:
    """The last box or the answer tags, then what follows each pattern's last occurrence, one pattern after another."""
    response = response.lower()
    if "boxed" in response:
        response = boxed(response)
    elif "<answer>" in response:
        response = extract(response)
    for pattern in PATTERNS:
        response = response.split(pattern)[-1]
    return response


def judge_multi_choice(choices: Sequence[str], answer: str, response: str) -> KitReading:
    """The kit's verdict on a choice: by letter, by text of a choice, else by similarity (`difflib`, the first best).

    Args:
        choices: as the kit shows them ("A. text").
        answer: letter, or text where a benchmark's key is none of its options.
        response: the completion.
    """
    letters = [chr(ord("a") + i) for i in range(len(choices))]
    texts = [choice.lower() for choice in choices]
    response, gold = response.lower(), answer.strip().lower()
    paragraphs = response.split("\n\n")
    if paragraphs[0] in letters:
        response = paragraphs[0]
    elif paragraphs[-1].split(".")[0] in letters:
        response = paragraphs[-1].split(".")[0]
    response = parse_response(response).strip().lower().replace("\n", "")
    said = response.split(".")[0].split(":")[-1]
    if said == gold:
        return KitReading(True, said)
    if said in letters:
        return KitReading(texts[letters.index(said)] == gold, said)
    if said in texts:
        right = gold in letters and said == texts[letters.index(gold)]
        return KitReading(right, letters[texts.index(said)])
    ratios = [difflib.SequenceMatcher(None, text, response).ratio() for text in texts]
    guess = ratios.index(max(ratios))
    return KitReading(gold in (letters[guess], texts[guess]), letters[guess], guessed=True)


def judge_mmmu(options: Sequence[str], answer: str, response: str, seed: str) -> KitReading:
    """The kit's verdict on a choice of MMMU, which has a parser of its own: of the letters in brackets, else between
    spaces, else of the options' texts in more than five words, the last to appear. Where it finds none the kit draws a
    letter from an unseeded generator; here `seed` (the item's id) decides.
    """
    text = extract(response)
    if boxed(text) != "None" or ("\\boxed" in text and "<answer>" not in text):
        text = boxed(text)
    text = text.strip()
    for char in ",.!?;:'":
        text = text.strip(char)
    text, letters = f" {text} ", LETTERS[: len(options)]
    for form in ("({})", " {} "):
        if places := {letter: text.rfind(form.format(letter)) for letter in letters if form.format(letter) in text}:
            break
    if not places and len(text.split()) > 5:
        texts = zip(letters, map(str.lower, options), strict=True)
        places = {letter: text.lower().rfind(option) for letter, option in texts if option in text.lower()}
    said = max(places, key=places.__getitem__) if places else random.Random(seed).choice(letters)
    return KitReading(said == answer, said, guessed=not places)


def judge_judgement(answer: str, response: str) -> KitReading:
    """The kit's verdict on yes or no: exactly one of the two occurs, be it inside a word, and it is the answer."""
    response = _closed(response)
    said = [word for word in ("yes", "no") if word in response]
    return KitReading(len(said) == 1 and answer.lower() in response, said[0] if len(said) == 1 else "")


def judge_close_end(answer: str, response: str) -> KitReading:
    """The kit's verdict on a word or phrase: equal but for case, line breaks and stops."""
    response = _closed(response)
    return KitReading(response == answer.lower(), response)


def judge_open_end(answer: str, response: str) -> KitReading:
    """The kit's verdict on an open answer without a judge model: equal but for case and outer white space."""
    response = parse_response(response.strip())
    return KitReading(response == answer.lower().strip(), response)


def token_f1(answer: str, response: str) -> float:
    """The kit's F1 over the sets of words; its reports swap it with precision and recall."""
    said, gold = set(response.lower().split()), set(answer.lower().split())
    common = len(said & gold)
    return 2 * common / (len(said) + len(gold)) if common else 0.0


def final(response: str) -> str:
    """The box, else the answer tags, else all: what the kit passes on to its rules for yes/no and open answers."""
    content = boxed(response)
    return content if content != "None" else extract(response)


def _closed(response: str) -> str:
    return parse_response(response).replace("\n", "").replace(".", "")
