"""The one parser of `<think>` and `<answer>`, shared by rewards, filters and evaluation."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = "ABCDEFGHIJ"

_FLAGS = re.DOTALL | re.IGNORECASE
_THINK = re.compile(r"<think>(.*?)</think>", _FLAGS)
_REASONING = re.compile(r"<think>.*?(?:</think>|\Z)", _FLAGS)
_THINK_END = re.compile(r".*</think>", _FLAGS)
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", _FLAGS)
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_FORM = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", _FLAGS)
_LABEL = re.compile(r"\(([A-Ja-j])\)(.*)|([A-Ja-j])(?:[.):](.*))?", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """A response taken apart.

    Attributes:
        think: text of the first think block; None where there is none.
        answer: text of the last answer block outside the reasoning, stripped; None where there is none.
        well_formed: the response is one think block and one answer block, neither empty nor nested, and nothing
            else but white space.
    """

    think: str | None
    answer: str | None
    well_formed: bool


def parse(text: str) -> Answer:
    """Takes a response apart. Tags may be of either case and span lines; what stands in a think block, closed or
    not, is never read as an answer."""
    think = _THINK.search(text)
    blocks = _ANSWER.findall(spoken(text))
    form = _FORM.fullmatch(text)
    well_formed = form is not None and all(part.strip() and not _TAG.search(part) for part in form.groups())
    return Answer(think[1].strip() if think else None, blocks[-1].strip() if blocks else None, well_formed)


def spoken(text: str) -> str:
    """What stands outside the reasoning: `text` without its think blocks, closed or not."""
    return _THINK_END.sub("", _REASONING.sub("", text))


def choice(response: str, options: Sequence[str]) -> str | None:
    """Letter of the option that a response chooses, or None.

    Only the last answer block counts. It may hold a label ("C", "(C)", "C.", "C)", "C:", of either case), a label and
    text ("C: text"), or the exact text of one option (case, white space and a final stop aside). A label wins over an
    option whose text is that same letter. A label and text that name two different options, a label beyond the
    options, and any other text choose nothing.

    Args:
        response: the whole completion.
        options: option texts without letters, in order; at most 10.
    """
    answer = parse(response).answer
    if not answer:
        return None
    texts = [_plain(option) for option in options]
    named = [LETTERS[i] for i, text in enumerate(texts) if text == _plain(answer)]
    label = _LABEL.fullmatch(answer)
    if label is None:
        return named[0] if len(named) == 1 else None
    letter = (label[1] or label[3]).upper()
    if letter not in LETTERS[: len(options)]:
        return named[0] if len(named) == 1 else None
    text = (label[2] or label[4] or "").strip()
    return None if _names_another(letter, text, texts) else letter


def _names_another(letter: str, text: str, texts: list[str]) -> bool:
    """Whether the text after a label names an option other than the label's."""
    own, plain = texts[LETTERS.index(letter)], _plain(text)
    if not plain:
        return False
    if plain == own or plain in texts:
        return plain != own
    beside = re.sub(re.escape(own), " ", text, flags=re.IGNORECASE) if own else text
    if any(label != letter for label in re.findall(rf"\b[{LETTERS[: len(texts)]}]\b", beside)):
        return True
    others = [other for other in texts if other != own and len(other) > 1]
    return any(re.search(rf"(?<!\w){re.escape(o)}(?!\w)", plain if own in o else _plain(beside)) for o in others)


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
