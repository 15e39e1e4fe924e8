"""Texts compared: what is the same answer in other words, signs, units and marks."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from mmedexpert_jax.statements import readable

_COMMA = re.compile(r"(?<=\d),\s?(?=\d{1,2}(?!\d))")  # a decimal mark, or that of a list


def same_text(said: str, gold: str) -> bool:
    """True where two texts are the same `normalised`, with the same signs of numbers ("-5", "< 5 %"), or but for case
    and white space: a gold may be punctuation and articles alone ("+"). Words with other accents are others."""
    if _other_accents(said, gold):
        return False
    said, gold = _as_lists(said, gold)
    alike = bool(normalised(gold)) and signs(said) == signs(gold) and _meets(said, gold, normalised)
    return alike or _meets(said, gold, folded)


def token_f1(gold: str, said: str) -> float:
    """F1 over the words and signs of two normalised texts, with multiplicity (as SQuAD); 1 where they are the same."""
    if same_text(said, gold):
        return 1.0
    wanted, found = [[*normalised(text).split(), *signs(text)] for text in _as_lists(gold, said)]
    others = {normalised(word) for word in _other_accents(said, gold)}  # which are no common words
    common = sum(count for word, count in (Counter(wanted) & Counter(found)).items() if word not in others)
    return 2 * common / (len(wanted) + len(found)) if common else float(not wanted and not found)


def _other_accents(said: str, gold: str) -> set[str]:
    """The words, without accents, that have some in both texts and others in each ("pécheur", "pêcheur"), or of Arabic
    a letter with signs in both, neither with all of the other's ("أذن", "إذن")."""
    texts = [unicodedata.normalize("NFC", readable(text)).casefold() for text in (said, gold)]
    one, other = ({"".join(map(_unaccented, word)): word for word in _LONG.findall(text)} for text in texts)
    differ = {plain for plain, word in one.items() if other.get(plain, word) != word}
    one, other = ({word.translate(_ARABIC): word for word in _ARABIC_WORD.findall(text)} for text in texts)
    pairs = [(plain, _signed(word), _signed(other[plain])) for plain, word in one.items() if plain in other]
    return differ | {
        plain for plain, *pair in pairs if any(not (a <= b or b <= a) for a, b in zip(*pair, strict=False))
    }


def _signed(word: str) -> list[set[str]]:
    """The signs of each letter of an Arabic word: vowels, and the hamza or madda of an alif."""
    letters: list[set[str]] = []
    for sign in unicodedata.normalize("NFD", word.replace("\u0640", "")):
        if unicodedata.category(sign) == "Mn":
            letters[-1:] = [{*letters[-1], sign}] if letters else []
        else:
            letters.append(set())
    return letters


def _as_lists(said: str, gold: str) -> tuple[str, str]:
    """Two texts with commas of lists between numbers, "9, 10", where both have such commas; as they are where a comma
    may be the other's decimal point."""
    said, gold = readable(said), readable(gold)
    if _COMMA.search(said) and _COMMA.search(gold):
        return _COMMA.sub(", ", said), _COMMA.sub(", ", gold)
    return said, gold


def _meets(said: str, gold: str, form: Callable[[str], str]) -> bool:
    """True where two texts are alike in a form, umlauts in one letter or in two."""
    return form(said) == form(gold) or form(spelled(said)) == form(spelled(gold))


# Forms under which texts are compared.

# a capital A within a text, or an a at its end, is a name: hepatitis A, vitamin a
_ARTICLES = re.compile(r"\b(?:[Aa]n|[Tt]he|AN|THE)\b|(?:^\s*A|\ba)\b(?=\s+\w)")
# but a mark between two digits, which tells numbers, ranges and ratios apart
_PUNCTUATION = re.compile(r"(?!(?<=\d)[-./:](?=\d))[^\w\s]")
_MARKS = ("Mn", "Mc")  # signs of vowels and tones, which Indic and Thai words are told apart by
_HAN = re.compile(r"[\u4e00-\u9fff]")
_DASH = re.compile("[\u2010-\u2015\u2212]")
# The blank of "50 mg", which is "50mg" too.
_UNITS = r"(?=(?:[mkµμn]?g|[mdµμ]?l|[mcµμ]?m|%|mmol|meq|iu|u|mmhg|kg|h|hz|°c)\b|%)"
_UNIT = re.compile(rf"(?<=\d) {_UNITS}")
_BESIDE_SIGN = re.compile(r" ?([<>≤≥=±/;:+]|(?<!\d),|,(?!\s?\d)) ?")
_JOINED_UNIT = re.compile(rf"(?<=\d){_UNITS}")


def normalised(text: str) -> str:
    """Text as exact match and F1 compare it: lower case, without articles and extra space (as SQuAD), with spaces for
    punctuation; each Chinese character is a word."""
    words = _HAN.sub(r" \g<0> ", _PUNCTUATION.sub(_blank, _in_one_form(text)))
    return " ".join(_JOINED_UNIT.sub(" ", _ARTICLES.sub(" ", words).casefold()).split())


def _blank(sign: re.Match[str]) -> str:
    """A blank for a sign of punctuation, and signs of vowels and tones as they are."""
    return sign[0] if unicodedata.category(sign[0]) in _MARKS else " "


def folded(text: str) -> str:
    """`text` as exact match compares it: case, white space, also beside signs, a final stop, "the" before it, the form
    of its dashes and the blank between a number and its unit aside."""
    text = " ".join(_in_one_form(text).split()).rstrip(".。").casefold()
    text = _DASH.sub("-", text.removeprefix("the ") or text)
    return _UNIT.sub("", _BESIDE_SIGN.sub(r"\1", text))


@lru_cache(64)
def folding(options: tuple[str, ...]) -> Callable[[str], str]:
    """`folded`, but for texts that would then be several of `options`, as "0.5 mg" and ".5 mg": these but for case and
    white space."""

    def plain(text: str) -> str:
        return " ".join(readable(text).split()).rstrip(".。").casefold()

    counts = Counter({plain(option): folded(option) for option in options}.values())
    several = {form for form, count in counts.items() if count > 1}
    return lambda text: plain(text) if several and folded(text) in several else folded(text)


# Signs that change what is meant.

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


# One form for what is the same number or sign in LaTeX, HTML and plain text.

_DASHES = "[-~\u2010-\u2015\u2212]{1,3}"  # of a range
_ALONE = r"(?<![\w.,])"  # before a number that is not the end of a name or of another one
# Marks between the numbers of a name that is written with either: levels of the spine, grades, genes and markers.
_IN_NAMES = (
    r"(?<=\b[CLST]\d)/(?=\d\d?\b)|(?<=\b[CLST]\d\d)/(?=\d\d\b)|(?<=\bgrade \d)/(?=\d\b)|(?<=\bHPV[ -]\d\d)/(?=\d\d\b)"
    r"|(?<=\bBRCA1)(?:/|,\s?)(?=2\b)|(?<=\bCA 19)\.(?=9\b)"
)
# Ways of writing the same number, unit or sign of one, in any case: (form, how it is compared).
_SAME_FORM = tuple(
    (re.compile(form, re.IGNORECASE), one)
    for form, one in (
        (r">=|=>(?=\s?\d)|[≧⩾]", "≥"),
        (r"=<|<=|[≦⩽]", "≤"),
        (r",?\s?\\?&\s?|,\s?and\s", " and "),
        # ".5", but "p.5" and "3.5" stay
        (r"(?<![\w.,)\]])[.,](?=\d)", "0."),
        # "12,000", "12 000"
        (r"(?<![\d.,])[1-9]\d{0,2}(?:[,' ]\d{3})+(?![\d,])", lambda number: re.sub(r"\D", "", number[0])),
        # "3×4 cm", "5·10^3"; "2·5" is a decimal
        (r"(?<=\d)\s?(?:[x×*]\s?(?=\d)|[·⋅]\s?(?=10(?!\d)))", " x "),
        # "1,2 and 3" is a list, any other comma or dot between digits a decimal mark
        (
            rf"{_ALONE}\d{{1,2}}(?:(?:,\d{{1,2}}){{2,}}(?![\d.,])|(?:,\d{{1,2}})+(?=\s(?:and|und|et|y)\s\d+(?![.,]?\d)))",
            lambda number: number[0].replace(",", ", "),
        ),
        (r"(?<=\d)[,·⋅](?=\d)", "."),
        # "7.0", "0.50", but not a code ("E11.0", "250.00" alone) nor what may be thousands ("1.000")
        (
            rf"{_ALONE}(?!0*[1-9]\d{{0,2}}\.\d{{3}}(?!\d)|\A[1-9]\d\d\.\d\d?[\s.]*\Z)(\d+)(?:\.0+|(\.\d*?[1-9])0+)(?![\d.])",
            r"\1\2",
        ),
        # dates, ranges, ratios; translocations; inches, but no quotes
        (rf"{_ALONE}(\d{{1,4}})([-/.])(\d{{1,2}})\2(\d{{1,4}})(?![\w./-])", r"\1/\3/\4"),
        (rf"(?<=\d)(?:{_DASHES}|\s{_DASHES}\s| to )(?=\d)|{_IN_NAMES}", "-"),
        (r"(?<=\d)\s?[/\u2044]\s?(?=\d)", "/"),
        # a titre, "1/160"
        (rf"(?<=\d)\s?:\s?(?=\d)|(?<={_ALONE}1)/(?=\d+(?![\d./]))", ":"),
        (r"\bt\s?\((\d+)[;:./](?:\s?)(\d+)\)", r"t(\1;\2)"),
        (r"(?<=\d)(?:′′|'')|\A([^\"]*\d)\"(?=[^\"]*\Z)", r"\1 inch"),
        # units in words
        (r"(?<=\d)\s?(?:u|mc|µ|μ)g\b", " μg"),
        (r"(?<=\d)\s?(?:percent|per\scent)\b", "%"),
        (r"(?<=\d)\s?degrees?\s(?=[CF]\b)", "°"),
        # "HIV -ve"
        (r"(?:(?<=\w)|\s)-\s?ve\b", " negative"),
        (r"\+\s?ve\b", " positive"),
        # of LaTeX and HTML: "10^{9}", "10<sup>9</sup>", "HER2^-", "37^°C", "5 \mu g"; only behind a digit it is a power
        (r"<sup>([^<>]*)</sup>|\^\{([^{}]*)\}", r"^\1\2"),
        (r"\^([+-])(?!\d)|\^(°)|(?<!\d)\^(?=\d)", r"\1\2"),
        (r"(?<=[A-Za-z)])_(?=\d)|(?<=μ) (?=[gmlLM]\b)", ""),
    )
)
_HTML = re.compile(
    r"</?(?:b|i|u|p|br|strong|em|code|span|div|font|mark|small|h[1-6]|[uo]l|li|sub)(?:\s[^<>]{0,200}=[^<>]{0,200})?\s?/?>",
    re.IGNORECASE,
)
# "Heart \text{failure}", "Heart\ failure": marks of LaTeX inside an answer
_LATEX = re.compile(
    r"\\(?:text(?!color)\w{0,6}|math\w{1,6})\s*\{([^{}]*)\}|\\[ ,;:!]|\\(?:q?quad|rm|bf|it|sf)\b"
    r"|\\(?:text)?color\s*\{[^{}]*\}"
)
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
    "↑": "uparrow",
    "↓": "downarrow",
    "→": "rightarrow to",
    "←": "leftarrow",
}
_SIGNS_OF = {name: sign for sign, names in _COMMANDS.items() for name in names.split()}
_COMMAND = re.compile(r"\\([a-zA-Z]{2,12})(?![a-zA-Z])")


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
    return plain_letters(text)


def words_of(latex: str) -> str:
    """LaTeX without its marks of text; a command before one keeps its end."""
    return _LATEX.sub(lambda mark: mark[1] or " ", re.sub(r"(\\[a-zA-Z]{1,12})(?=\\)", r"\1 ", latex))


def _sign_of(command: re.Match[str]) -> str:
    """The sign that a command of LaTeX stands for; the command where it is none."""
    name = command[1]
    size = "SMALL" if name.islower() else "CAPITAL"
    letter = f"GREEK {size} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}"
    try:
        return _SIGNS_OF.get(name) or unicodedata.lookup(letter)
    except KeyError:
        return command[0]


# Letters in one form.

_LONG = re.compile(r"\b(?=\w*[À-ɏ])(?:[^\W\d_]{5,}|(?i:café))\b")
_ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0308\u030a\u030b\u030c\u0327\u0328"
_LIGATURES = {"ß": "ss", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ł": "l", "Ł": "L"}
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})
_NUMBERED = re.compile(r"(?<![a-z])(alpha|beta|gamma|delta|epsilon|kappa|lambda)(?=\d)", re.IGNORECASE)
# no part of a Greek word, and no "μg"
_GREEK = re.compile(r"(?<![Ͱ-Ͽἀ-῿])(?![μΜ][a-zA-Z])[Α-Ρα-ρΣ-Ωσ-ω](?![Ͱ-Ͽἀ-῿])")
# Arabic is written with its short vowels and without, as are the hamza and madda of an alif; U+0640 only fills a line.
_ARABIC_WORD = re.compile("[\u0621-\u065f\u0670\u0671]+")
_ARABIC = str.maketrans(dict.fromkeys("أإآٱ", "ا")) | dict.fromkeys([*range(0x064B, 0x0653), 0x0640, 0x0670])


def plain_letters(text: str, joint: str = "-") -> str:
    """`text` with Latin letters without accents in words of five letters and more ("Barré", "Sjögren"), since shorter
    ones are told apart by them in many languages ("côte", "côté"), Arabic without signs of vowels, and lone Greek
    letters by name ("β-blocker")."""
    text = _NUMBERED.sub(rf"\1{joint}", text)
    if text.isascii():
        return text
    text = _LONG.sub(lambda word: "".join(map(_unaccented, word[0])), unicodedata.normalize("NFC", text))
    text = text.translate(_ARABIC)
    return _GREEK.sub(lambda letter: _name_of(letter, joint), text)


def spelled(text: str) -> str:
    """`text` with umlauts in two letters, "Loeffler" for "Löffler"."""
    return readable(text).translate(_UMLAUTS)


def _unaccented(letter: str) -> str:
    """A Latin letter without its one mark; of Vietnamese, whose marks are tones, those with two or other marks stay."""
    base, *marks = list(unicodedata.normalize("NFD", letter))
    plain = base.isascii() and len(marks) == 1 and marks[0] in _ACCENTS
    return base if plain else _LIGATURES.get(letter, letter)


def _name_of(letter: re.Match[str], joint: str) -> str:
    """The name of a Greek letter, with a joint where a letter or digit stands beside it."""
    name = unicodedata.name(letter[0]).split()[-1].lower().replace("lamda", "lambda")
    before, behind = (letter.string[place : place + 1].isalnum() for place in (letter.start() - 1, letter.end()))
    return joint * (letter.start() > 0 and before) + name + joint * behind
