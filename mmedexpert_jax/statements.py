"""Statements of an answer in running text: "the answer is B", "Option B is correct", "I would rule out option C".

A statement is a trigger ("answer", "option", a verb of choice) and a letter. It counts unless its clause denies it,
it asks, or it hedges; statements of a final answer outweigh those of an answer, which outweigh remarks about options.
"""

import re
import unicodedata

_DECORATION = re.compile(r"[*`$\"“”]|\\[()\[\]]|\\(?:boxed|text|textbf|textit|mathrm|mathbf)\s*(?=\{)")
# A lone A or I may be a word; as a label it ends its clause or is followed by a connective.
_END = (
    r"(?=\s*(?:$|[.,;:!?()\[\]{}/\n]|[-–—]\s)"
    r"|\s+(?:because|since|as|due|for|based|given|is|are|was|and|or|not|but|rather|which)\b)"
)
_LETTER = rf"(?:[B-HJ](?![\w'’])|[AI](?![\w'’]){_END}|[a-j](?=[.,;:)\]}}](?!\w)|\s*$))"
_BRACKETED = rf"[(\[{{]?\s*(?P<letter>{_LETTER})\s*[)\]}}]?"
# Further letters beside the first: "B and C", "B/C", "B, C or D"; not "B, and C is wrong", which starts a clause.
_MORE = (
    r"(?P<more>(?:\s*(?:/|,?\s*\b(?:and|or)\b|,|&|\+)\s*(?:(?i:options?)\s+)?[(\[]?[A-J][)\]]?(?![\w'’])"
    r"(?!\s+(?:is|are|was|were|has|does|can|would|because)\b|:\s))+)?"
)
_LINK = (
    r"\s*(?:[:=]|->|→|[-–—](?=\s))*\s*"
    r"(?:(?i:is|would\s+be|should\s+be|must\s+be|will\s+be|remains|choice|letter|option)\b\s*[:=]?\s*)*"
    r"(?:(?i:i\s+(?:think|believe|conclude|would\s+say)(?:\s+that)?|it(?:'s|’s|\s+is|\s+would\s+be)|that|the\s+answer\s+is"
    r"|option|choice|letter|clearly|therefore|thus|most\s+likely|probably|definitely)\b[\s:,]*)*"
)
_FINAL = re.compile(
    rf"\b(?i:final\s+(?:answer|choice)|最终答案)(?i:\s+(?:is|:))?{_LINK}{_BRACKETED}{_MORE}", re.MULTILINE
)
_ANSWER = re.compile(
    rf"(?:\b(?i:answers?|choices?|correct\s+option|best\s+option|i(?:'d|’d|\s+would|\s+will)?(?:\s+not)?\s+"
    rf"(?:choose|pick|select|go\s+with|answer))\b|答案(?:是|为)?){_LINK}{_BRACKETED}{_MORE}",
    re.MULTILINE,
)
_PRAISED = re.compile(
    rf"(?:\b(?i:options?|choices?)\s+)?(?<![\w'’])[(\[]?(?P<letter>[A-J])[)\]]?{_MORE}\s*(?:is|:)\s+"
    r"(?i:(?:the\s+)?(?:clearly\s+)?(?:correct|right|true|best|most\s+likely|most\s+appropriate)\b)"
)
_OPTION = re.compile(rf"\b(?i:options?)\b{_LINK}{_BRACKETED}{_MORE}", re.MULTILINE)
_TIERS = ((_FINAL,), (_ANSWER, _PRAISED), (_OPTION,))

_CLAUSE = re.compile(r"[.:;!?\n,]|\b(?:but|so|thus|hence|therefore|while|whereas)\b", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"\b(?:not|never|cannot|neither|nor|no|rul(?:e|ed|es|ing)\s+out|exclud\w+|eliminat\w+|reject\w*|discard\w*|avoid\w*|"
    r"unlikely|incorrect|wrong|false|except|rather\s+than|instead\s+of|other\s+than|unlike|against)\b|n['’]t\b",
    re.IGNORECASE,
)
_HEDGED = re.compile(r"\b(?:might|may|could|either|possibly|perhaps|unsure|uncertain|whether|if)\b", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    r"\s*[)\]]?(?:\s+\([^)]*\))?\s*(?:[:–—-]\s*)?(?:(?:is|are|was|can\s+be|could\s+be|should\s+be|has\s+been|would\s+be|seems)\s+)?"
    r"(?:clearly\s+|also\s+|therefore\s+|definitely\s+)*"
    r"(?:not\b|isn['’]t|n['’]t|wrong|incorrect|false\b|unlikely|less\s+likely|ruled\s+out|excluded|eliminated|a\s+distractor|"
    r"cannot|can['’]t|out\b)",
    re.IGNORECASE,
)
_ASKED = re.compile(r"\s*[)\]]?\s*\?")


def stated(text: str, letters: str) -> set[str] | None:
    """Letters that the text's weightiest statements give as its answer.

    Args:
        text: what stands outside the reasoning.
        letters: labels of the options, e.g. "ABCD"; a statement of another letter is passed over.

    Returns:
        The letters; more than one where statements differ or one names several. None where nothing is stated.
    """
    plain = _DECORATION.sub("", unicodedata.normalize("NFKC", text))
    for tier in _TIERS:
        found: set[str] = set()
        for pattern in tier:
            for match in pattern.finditer(plain):
                if not _withdrawn(plain, match):
                    found |= {match["letter"].upper(), *re.findall(r"\b[A-J]\b", match["more"] or "")}
        if found := found & set(letters):
            return found
    return None


def _withdrawn(text: str, match: re.Match) -> bool:
    """True where the statement's clause denies, hedges or asks instead of stating."""
    start = max((mark.end() for mark in _CLAUSE.finditer(text, max(0, match.start() - 200), match.start())), default=0)
    before = text[max(start, match.start() - 200) : match.start("letter")]
    if _DENIED_BEFORE.search(before) or _HEDGED.search(before):
        return True
    end = match.end()
    return bool(_DENIED_AFTER.match(text, end) or _ASKED.match(text, end))
