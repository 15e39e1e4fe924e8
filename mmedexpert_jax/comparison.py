"""Texts compared: what is the same answer in other words, signs, units and marks."""

import re
import unicodedata
from collections import Counter

from mmedexpert_jax.statements import readable

# a capital A within a text, or an a at its end, is a name: hepatitis A, vitamin a
_ARTICLES = re.compile(r"\b(?:[Aa]n|[Tt]he|AN|THE)\b|(?:^\s*A|\ba)\b(?=\s+\w)")
_PUNCTUATION = re.compile(r"[^\w\s]")
_MARKS = ("Mn", "Mc")  # signs of vowels and tones, which Indic and Thai words are told apart by
_DASH = re.compile("[\u2010-\u2015\u2212]")
# The blank of "50 mg", which is "50mg" too.
_UNITS = r"(?=(?:[mkµμn]?g|[mdµμ]?l|[mcµμ]?m|%|mmol|meq|iu|u|mmhg|kg|h|hz|°c)\b|%)"
_UNIT = re.compile(rf"(?<=\d) {_UNITS}")
_JOINED_UNIT = re.compile(rf"(?<=\d){_UNITS}")
# LaTeX's commands for signs; those of Greek letters have the letters' names.
_COMMANDS = {
    "≤": "leq le",
    "≥": "geq ge",
    "<": "lt",
    ">": "gt",
    "×": "times",
    "±": "pm",
    "≈": "approx",
    "°": "circ degree",
}
_COMMANDS |= {"↑": "uparrow", "↓": "downarrow", "→": "rightarrow to", "←": "leftarrow"}
_SIGNS_OF = {name: sign for sign, names in _COMMANDS.items() for name in names.split()}
_COMMAND = re.compile(r"\\([a-zA-Z]{2,12})(?![a-zA-Z])")
_HTML = re.compile(
    r"</?(?:b|i|u|p|br|strong|em|code|span|div|font|mark|small|h[1-6]|[uo]l|li|sub)(?:\s[^<>]{0,200}=[^<>]{0,200})?\s?/?>",
    re.IGNORECASE,
)
# Ways of writing the same number, unit or sign of one: (form, how it is compared).
_SAME_FORM = (
    (re.compile(r">=|=>(?=\s?\d)|[≧⩾]"), "≥"),
    (re.compile(r"=<|<=|[≦⩽]"), "≤"),
    # ".5", but "p.5" and "3.5" stay
    (re.compile(r"(?<![\w.,)\]])[.,](?=\d)"), "0."),
    # "12,000", "12 000"
    (re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:[,' ]\d{3})+(?![\d,])"), lambda number: re.sub(r"\D", "", number[0])),
    # "3×4 cm"
    (re.compile(r"(?<=\d)\s?[x×*]\s?(?=\d)"), " x "),
    # "HIV -ve"
    (re.compile(r"(?:(?<=\w)|\s)-\s?ve\b"), " negative"),
    (re.compile(r"\+\s?ve\b"), " positive"),
    # of LaTeX and HTML: "10^{9}", "10<sup>9</sup>", "HER2^-", "37^°C", "5 \mu g"; only behind a digit it is a power
    (re.compile(r"<sup>([^<>]*)</sup>|\^\{([^{}]*)\}"), r"^\1\2"),
    (re.compile(r"\^([+-])(?!\d)|\^(°)|(?<!\d)\^(?=\d)"), r"\1\2"),
    (re.compile(r"(?<=[A-Za-z)])_(?=\d)|(?<=μ) (?=[gmlLM]\b)"), ""),
)
# One sign each of those written in several ways; a long dash behind a word is punctuation.
_SAME_SIGN = (
    (re.compile(r"\+\s?/\s?[-\u2010-\u2013\u2212]"), "±"),
    (re.compile("[⇑⬆▲]"), "↑"),
    (re.compile("[⇓⬇▼]"), "↓"),
    (re.compile("[✘❌✖]"), "✗"),
    (re.compile(r"[⇐⟵⬅]|<-(?!\d)"), "←"),
    (re.compile("->"), "→"),
    (re.compile("[\u2014\u2015](?!\\d)"), " "),
    (_DASH, "-"),
    # the charge of an anion
    (re.compile(r"\b(Cl|Br|F|I|CN|OH|HCO3|NO[23]|H?2?PO4\d?|SO4\d?)-+(?!\w)"), r"\1"),
)
# A minus behind what is negative; a plus is what is said without a sign ("CD8+ T cells").
_NEGATIVE = (
    # "HBsAg (-)", but not an isomer, "(-)-epinephrine"
    r"\(\s?-+\s?\)(?!-\w)"
    # "HBsAg: -", but not a list, "Findings: - a mass"
    r"|(?<=:)\s?-+(?=\s*(?:$|[.,;)/])|\s+\w+\s?:)"
    # antigens, "Fy(a-b-)"
    r"|(?<=[(+-][a-z])-+(?=[a-z][+-]|\))"
    # "Babinski -"
    r"|(?<=[\w)]) -+(?=\s*(?:$|[.,;)/]))"
    # "HER2-", "Rh-", "O-", but not "HER2-positive", "IL- 6", "CT- guided", "T- and B-cells"
    r"|\b(?=\w{1,24}-)(?:[A-Z]|Rh|Ph|(?:[A-Z]\w*?|\w*?[^\W\d]\w*?)[A-Z0-9]\w*+)-+"
    r"(?![\w-]|\s+(?:\d|(?:guided|based|like|related|associated|induced|positive|negative)\b"
    r"|(?:and|or|und|oder|et|ou|y|o)\s+\w+-\w)|/\w+-\w)"
    # "4-/5", and behind any word at the end
    r"|(?<=\d)-+(?=\s*(?:$|[,;)/]))|(?<=\w)-+(?=\s*$)"
)
_SIGN = re.compile(rf"[<>≤≥≪≫±↑↓←‰√≠^♂♀✗]|(?<![\w.)-])-(?=\d)|(?P<negative>{_NEGATIVE})")
_HAN = re.compile(r"[\u4e00-\u9fff]")
# "Heart \text{failure}", "Heart\ failure": marks of LaTeX inside an answer
_LATEX = re.compile(
    r"\\(?:text(?!color)\w{0,6}|math\w{1,6})\s*\{([^{}]*)\}|\\[ ,;:!]|\\(?:q?quad|rm|bf|it|sf)\b"
    r"|\\(?:text)?color\s*\{[^{}]*\}"
)


def words_of(latex: str) -> str:
    """LaTeX without its marks of text; a command before one keeps its end."""
    return _LATEX.sub(lambda mark: mark[1] or " ", re.sub(r"(\\[a-zA-Z]{1,12})(?=\\)", r"\1 ", latex))


def normalised(text: str) -> str:
    """Text as exact match and F1 compare it: lower case, without articles and extra space (as SQuAD), with spaces for
    punctuation; each Chinese character is a word."""
    words = _HAN.sub(r" \g<0> ", _PUNCTUATION.sub(_blank, _in_one_form(text)))
    return " ".join(_JOINED_UNIT.sub(" ", _ARTICLES.sub(" ", words).casefold()).split())


def _in_one_form(text: str) -> str:
    """`readable` text with one form for what is the same number, sign or letter in LaTeX, HTML and plain text."""
    text = readable(text)
    if "<" in text:
        text = _HTML.sub(" ", re.sub(r"</?sub>", "", text))
    if "\\" in text or "$" in text:
        text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", words_of(text))
        text = re.sub(r"\$([^$]*)\$", r"\1", _COMMAND.sub(_sign_of, text)).replace("\\%", "%")
        text = re.sub(r"_(\w)|_\{([^{}]*)\}", r"\1\2", text)
    for form, one in _SAME_FORM:
        text = form.sub(one, text)
    return text


def _sign_of(command: re.Match[str]) -> str:
    """The sign that a command of LaTeX stands for; the command where it is none."""
    name = command[1]
    size = "SMALL" if name.islower() else "CAPITAL"
    letter = f"GREEK {size} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}"
    try:
        return _SIGNS_OF.get(name) or unicodedata.lookup(letter)
    except KeyError:
        return command[0]


def _blank(sign: re.Match[str]) -> str:
    """A blank for a sign of punctuation, and signs of vowels and tones as they are."""
    return sign[0] if unicodedata.category(sign[0]) in _MARKS else " "


def same_text(said: str, gold: str) -> bool:
    """True where two texts are the same `normalised`, with the same signs of numbers ("-5", "< 5 %"), or but for case
    and white space: a gold may be punctuation and articles alone ("+")."""
    wanted = normalised(gold)
    alike = bool(wanted) and normalised(said) == wanted and signs(said) == signs(gold)
    return alike or folded(said) == folded(gold)


def signs(text: str) -> list[str]:
    """Signs that change what is meant: of comparison, of powers, arrows up, down and back, minus before a number and
    behind what is negative."""
    text = _in_one_form(text)
    for form, sign in _SAME_SIGN:
        text = form.sub(sign, text)
    found = _SIGN.finditer(text)
    return [_word_before(text, sign.end()) + "-" if sign["negative"] else sign[0] for sign in found]


def _word_before(text: str, end: int) -> str:
    """The word that a sign behind it speaks of."""
    words = re.findall(r"\w+", text[max(0, end - 32) : end])
    return words[-1].casefold() if words else ""


def token_f1(gold: str, said: str) -> float:
    """F1 over the words and signs of two normalised texts, with multiplicity (as SQuAD); 1 where they are the same."""
    if same_text(said, gold):
        return 1.0
    wanted, found = [[*normalised(text).split(), *signs(text)] for text in (gold, said)]
    common = sum((Counter(wanted) & Counter(found)).values())
    return 2 * common / (len(wanted) + len(found)) if common else float(not wanted and not found)


def folded(text: str) -> str:
    """`text` as exact match compares it: case, white space, a final stop, "the" before it, the form of its dashes and
    the blank between a number and its unit aside."""
    text = " ".join(_in_one_form(text).split()).rstrip(".。").casefold()
    text = _DASH.sub("-", text.removeprefix("the ") or text)
    return _UNIT.sub("", text)
