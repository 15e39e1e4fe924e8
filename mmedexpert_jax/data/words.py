"""Words of a text, also in scripts that set no blanks between them."""

import re
import unicodedata

from mmedexpert_jax.comparison import plain_letters

CHINESE_JAPANESE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
# Chinese and Japanese; Thai, Lao, Burmese and Khmer: each with its characters a word.
_SCRIPTS = ((CHINESE_JAPANESE.pattern, 1.5), ("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]", 4.0))
_SIGNS = str.maketrans(dict.fromkeys("’‘ʼ", "'") | dict.fromkeys("‐‑‒–—−", "-"))
UNSPACED = re.compile("|".join(script for script, _ in _SCRIPTS))


def word_count(text: str) -> int:
    """Words of a text: what blanks divide, and of scripts without blanks as many as their characters commonly make."""
    if not UNSPACED.search(text):
        return len(text.split())
    unspaced = 0.0
    for script, characters in _SCRIPTS:
        text, number = re.subn(script, " ", text)
        unspaced += number / characters
    return round(unspaced) + sum(any(map(str.isalnum, word)) for word in text.split())


def plain(text: str) -> str:
    """A text in one form of Unicode, with plain apostrophes, dashes and blanks in the place of typographic ones, and
    `plain_letters`, Greek ones joined so that "TNFα" stays one word."""
    return plain_letters(" ".join(unicodedata.normalize("NFKC", text.translate(_SIGNS)).split()), joint="_")


def pattern(phrase: str) -> str:
    """The regular expression of a `plain` phrase, with any joint beside a Greek letter: "TNF-alpha" is "TNFα"."""
    return re.sub(r"\\-|_", "[-_]", re.escape(phrase))


def stands(phrase: str, text: str) -> bool:
    """True for a phrase that stands in a text as whole words, whatever signs and line ends either is written with, and
    perhaps in the plural, if its script divides words: "MS" does not in "symptoms"."""
    phrase, text = plain(phrase), plain(text)
    if UNSPACED.search(phrase):
        return phrase in text
    return bool(re.search(rf"(?<!\w){pattern(phrase)}(?:(?<=[^\W\d_])e?s)?(?!\w)", text))
