"""The scores of baselines without reasoning on the test split: `python -m mmedexpert_jax.data.embedded.baselines`."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from mmedexpert_jax.data.case import SPECIALTIES, Case
from mmedexpert_jax.data.case_files import load_cases
from mmedexpert_jax.report.text_tables import markdown

_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?")


def constant_letter(train: list[Case], test: list[Case]) -> list[bool]:
    """Answers every case with the letter that is right most often in train."""
    letter = Counter(case.answer for case in train).most_common(1)[0][0]
    return [case.answer == letter for case in test]


def frequent_option(train: list[Case], test: list[Case]) -> list[bool]:
    """Answers with the option text that is right most often for the task in train, without reading the findings."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in train:
        counts[case.task][case.answer_text] += 1
    return [max(case.options, key=lambda text: counts[case.task][text]) == case.answer_text for case in test]


def nearest_question(train: list[Case], test: list[Case]) -> list[bool]:
    """Answers as the train question with the most similar words (TF-IDF, cosine); never looks at an image."""
    words = [_WORD.findall(case.question.lower()) for case in train]
    index = {word: i for i, word in enumerate(sorted({word for text in words for word in text}))}
    counts = _counts(words, index)
    idf = np.log(len(train) / (counts > 0).sum(0))
    vectors = counts * idf
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    queries = _counts([_WORD.findall(case.question.lower()) for case in test], index) * idf
    nearest = (queries @ vectors.T).argmax(1)
    return [train[i].answer_text == case.answer_text for i, case in zip(nearest, test, strict=True)]


def _counts(texts: list[list[str]], index: dict[str, int]) -> np.ndarray:
    """The count of each word of `index` in each text: [N, W]."""
    counts = np.zeros((len(texts), len(index)))
    for row, text in zip(counts, texts, strict=True):
        for word in text:
            if word in index:
                row[index[word]] += 1
    return counts


def rows(train: list[Case], test: list[Case]) -> list[tuple[str, list[float]]]:
    """Accuracies by baseline: all cases, each of SPECIALTIES, text cases, image cases."""
    hits: dict[str, Sequence[float]] = {
        "chance": [1 / len(case.options) for case in test],
        "constant letter": constant_letter(train, test),
        "most frequent option of the task": frequent_option(train, test),
        "nearest train question": nearest_question(train, test),
    }
    groups = [[True] * len(test)]
    groups += [[case.specialty == specialty for case in test] for specialty in SPECIALTIES]
    groups += [[case.modality == modality for case in test] for modality in ("text", "image")]
    return [(name, [_mean(hit, group) for group in groups]) for name, hit in hits.items()]


def _mean(hits: Sequence[float], chosen: list[bool]) -> float:
    return sum(float(hit) for hit, use in zip(hits, chosen, strict=True) if use) / sum(chosen)


def table(train: list[Case], test: list[Case]) -> str:
    """The accuracies as a Markdown table, in per cent."""
    heads = ("all", *SPECIALTIES, "text", "image")
    shares = [(name, (100 * value for value in values)) for name, values in rows(train, test)]
    return markdown([{"baseline": name, **dict(zip(heads, each, strict=True))} for name, each in shares], 1).rstrip(
        "\n"
    )


if __name__ == "__main__":
    print(table(load_cases("mini", "train"), load_cases("mini", "test")))
