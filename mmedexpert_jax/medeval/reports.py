"""Measures of a generated report against the written one, as MedEvalKit computes them (git 9b12e3b).

Texts are lower case; BLEU and METEOR take words between spaces with full stops apart, ROUGE sentences between full
stops. METEOR needs nltk with its WordNet (`python -m nltk.downloader wordnet`) and is absent without. What the kit
measures by a model of its own or over a whole corpus is not here: RaTEScore, GREEN, BERTScore and CIDEr.
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

HEADLINE = "ROUGE-L"


def measures(reference: str, report: str) -> dict[str, float]:
    """The measures by name, each from 0 to 1; a report without a word has 0 in all."""
    reference, report = reference.lower(), report.lower()
    wanted, said = _words(reference), _words(report)
    found = {f"BLEU-{order}": bleu(wanted, said, order) for order in (1, 2, 3, 4)}
    sentences = _sentences(reference), _sentences(report)
    found |= {f"ROUGE-{order}": rouge_n(*sentences, order) for order in (1, 2)} | {HEADLINE: rouge_l(*sentences)}
    if meteor := _meteor():
        found["METEOR"] = float(meteor(reference=wanted, hypothesis=said)) if said else 0.0
    return found


def bleu(reference: Sequence[str], said: Sequence[str], order: int) -> float:
    """Sentence BLEU up to `order` (Papineni et al. 2002), unsmoothed: 0 where an order has no n-gram in common."""
    if not said:
        return 0.0
    logs = []
    for size in range(1, order + 1):
        wanted, found = Counter(_grams(reference, size)), Counter(_grams(said, size))
        common = sum((wanted & found).values())
        if not common:
            return 0.0
        logs.append(math.log(common / found.total()))
    brevity = min(0.0, 1 - len(reference) / len(said))
    return math.exp(brevity + sum(logs) / order)


def rouge_n(reference: Sequence[list[str]], said: Sequence[list[str]], order: int) -> float:
    """ROUGE-n's F1 over the sets of n-grams, across sentences, as the package `rouge` has it."""
    wanted, found = (set(_grams(list(chain(*text)), order)) for text in (reference, said))
    return _f1(len(wanted & found), len(wanted), len(found))


def rouge_l(reference: Sequence[list[str]], said: Sequence[list[str]]) -> float:
    """ROUGE-L's F1 at summary level over sets of words: those of the longest common subsequences of all pairs of
    sentences, as the package `rouge` has it."""
    union: set[str] = set()
    for sentence in reference:
        for other in said:
            union |= set(_common(sentence, other))
    wanted, found = (set(chain(*text)) for text in (reference, said))
    return _f1(len(union), len(wanted), len(found))


def _common(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """A longest common subsequence; of equally long ones that which, going back, drops words of the second text."""
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if a == b else max(lengths[i][j + 1], lengths[i + 1][j])
    found, i, j = [], len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.append(first[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _f1(common: int, wanted: int, found: int) -> float:
    precision, recall = common / max(1, found), common / max(1, wanted)
    return 2 * precision * recall / (precision + recall + 1e-8)  # the package's epsilon


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def _words(text: str) -> list[str]:
    return [word for word in text.replace(".", " .").split(" ") if word]


def _sentences(text: str) -> list[list[str]]:
    """Words by sentence; a sentence of spaces alone is one empty word, as in the package."""
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


@functools.cache
def _meteor():
    """nltk's METEOR where it and its WordNet are installed, else None."""
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import single_meteor_score

        wordnet.ensure_loaded()
    except (ImportError, LookupError):
        return None
    return single_meteor_score
