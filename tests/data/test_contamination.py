"""Contamination: containment held to its definition, images through changes they should and should not survive."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmedexpert_jax.data import benchmarks
from mmedexpert_jax.data import contamination as c
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.processing.images import ImageRef

WORDS = st.lists(st.sampled_from("abcdef"), min_size=0, max_size=60)
LONG = [f"word{n}" for n in range(40)]


def document(words, name="train", number=0, images=()):
    pictures = tuple(ImageRef("image", read) for read in images)
    return name, Case(f"{name}-{number}", " ".join(words), (), "", images=pictures)


def grams(words):
    return {" ".join(words[i : i + 8]) for i in range(len(words) - 7)}


@settings(deadline=None, max_examples=150)
@given(st.lists(WORDS, min_size=1, max_size=4), WORDS, st.integers(0, 40))
def test_containment_is_the_share_of_the_shorter_texts_8_grams(tests, case, cut):
    tests = [words[:cut] + case[cut:] for words in tests]
    index = c.TextIndex([document(words, "test", n)[1] for n, words in enumerate(tests)])
    found = index.containment(tuple(case), c.grams(case))
    for n, words in enumerate(tests):
        ours, theirs = grams(case), grams(words)
        expected = 1.0 if words == case and words else 0.0
        if min(len(ours), len(theirs)) >= c.MIN_GRAMS:
            expected = max(expected, len(ours & theirs) / min(len(ours), len(theirs)))
        assert found[n] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kept", "decision"),
    [(40, "drop"), (24, "drop"), (23, "review"), (17, "review"), (16, None), (0, None)],
)
def test_decisions_at_their_thresholds(kept, decision):
    # 40 words have 33 grams; of the first `kept` words, kept - 7 grams stay: 17/33 = 0.515, 16/33 = 0.485, 10/33, 9/33
    case = document(LONG[:kept] + [f"other{n}" for n in range(40 - kept)])
    found = c.find([case], [document(LONG, "test")])
    assert [pair.decision for pair in found.pairs] == ([decision] if decision else [])
    assert found.dropped() == ({("train", "train-0")} if decision == "drop" else set())


def test_words_count_without_case_and_punctuation():
    text = "A 40-year-old man, " + " ".join(LONG)
    tests = [document([text.upper().replace(" ", "  ;")], "test")]
    assert c.find([document([text])], tests).pairs[0].containment == 1.0


def test_soft_hyphens_and_the_ends_of_lines_part_no_words():
    text = "A man with hypertension, hyperkalaemia and a beta-blocker"
    parted = "A man with hyper\u00adten\u00adsion, hyper-\nkalaemia and a be\u200bta-blocker"
    assert c.words_in(parted) == c.words_in(text)
    for hyphen in ("T-cell", "COVID-negative", "non-small", "Well-differentiated", "beta-blocker"):
        assert c.words_in(hyphen.replace("-", "-\n")) == c.words_in(hyphen)
    assert c.words_in("A dose of 3-\n5 mg; no -\nnone") == ("a", "dose", "of", "3", "5", "mg", "no", "none")


def test_the_stem_that_all_questions_share_does_not_count():
    stem = "Which of the following is the most likely diagnosis in this patient given these findings alone today?"
    assert c.without_last_question(f"A man coughs. {stem}") == "A man coughs."
    assert c.without_last_question(stem) == stem
    items = [
        Case(str(n), f"{' '.join(f'{w}{n}' for w in LONG)}. {stem}", ("x", "y"), "A", benchmark="b") for n in range(2)
    ]
    assert not c.find([("train", items[0])], [("b", items[1])]).pairs


# Images ---------------------------------------------------------------------------------------------------------------


def scene(seed, size=(120, 160)):
    """A smooth picture: a few blobs on a slope, as scans are, not noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / max(size)
    grey = 60 * x + 40 * y
    for cy, cx, width, height in rng.uniform((0.1, 0.1, 0.03, -150), (0.7, 0.9, 0.2, 150), (9, 4)):
        grey = grey + height * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / width**2)
    return Image.fromarray(np.clip(grey + 60, 0, 255).astype(np.uint8)).convert("RGB")


def encoded(image, kind="PNG", **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def relation(first, second, **texts):
    pairs = c.find(
        [document(texts.get("train", ["short"]), images=[lambda: first])],
        [document(texts.get("test", ["question"]), "test", images=[lambda: second])],
    ).pairs
    return (pairs[0].image, pairs[0].decision) if pairs else None


def test_one_picture_in_several_files():
    image = scene(0)
    original = encoded(image)
    assert relation(original, original) == ("same file", "drop")
    assert relation(original, encoded(image, compress_level=1)) == ("same pixels", "drop")
    for copy in (encoded(image, "JPEG", quality=60), encoded(image.resize((97, 70))), encoded(image.convert("L"))):
        name, decision = relation(original, copy)
        assert decision == "drop" if name == "same pixels" else (name.startswith("alike (") and decision == "review")


def test_other_pictures_and_uniform_ones_are_not_alike():
    assert not any(relation(encoded(scene(0)), encoded(scene(seed))) for seed in range(1, 20))
    blank = [Image.new("RGB", (64, 64), (grey,) * 3) for grey in (0, 9)]
    assert relation(encoded(blank[0]), encoded(blank[1])) is None
    assert relation(encoded(blank[0]), encoded(blank[0])) == ("same file", "drop")


def test_a_short_question_counts_with_its_image_only():
    question = {"train": ["what", "modality", "is", "it"], "test": ["what", "modality", "is", "it"]}
    assert relation(encoded(scene(1)), encoded(scene(2)), **question) is None
    assert relation(encoded(scene(1)), encoded(scene(1)), **question) == ("same file", "drop")
    found = c.find([document(question["train"])], [document(question["test"], "test")])
    assert found.pairs[0].containment == 1.0  # text only: the same question


def test_an_image_that_cannot_be_read_is_named_and_the_rest_goes_on():
    broken = document(LONG, images=[lambda: b"no image"])
    found = c.find([broken], [document(LONG, "test", images=[lambda: encoded(scene(3))])])
    assert len(found.unreadable) == 1 and found.unreadable[0].startswith("train train-0, image 1:")
    assert found.pairs[0].decision == "drop"
    assert not c.find([broken], [document(LONG, "test")], images=False).unreadable


def test_many_images_are_compared_in_blocks(monkeypatch):
    monkeypatch.setattr(c, "BLOCK", 3)
    tests = [document(["t"], "test", n, [lambda n=n: encoded(scene(n))]) for n in range(8)]
    found = c.find([document(["x"], images=[lambda: encoded(scene(7), "JPEG", quality=50)])], tests)
    assert [pair.test_id for pair in found.pairs] == ["test-7"]


# Cases, items, the table ----------------------------------------------------------------------------------------------


def test_cases_against_items_written_as_a_table(tmp_path):
    picture = scene(4)
    words = " ".join(LONG)
    case = Case("c1", words, ("yes", "no"), "A", "AM", "t", images=(picture,))
    clean = Case("c2", "something else entirely", ("yes", "no"), "A", "AM", "t")
    items = [benchmarks.from_case(case, "bench"), benchmarks.from_case(clean, "bench")]
    seen = []
    found = c.find([("ours, train", case)], [("bench", item) for item in items], on_case=seen.append)
    assert seen == [1]
    (pair,) = found.pairs
    assert (pair.train_id, pair.test_set, pair.test_id, pair.decision) == ("c1", "bench", "c1", "drop")
    found.write(tmp_path / "pairs.csv")
    (row,) = csv.DictReader((tmp_path / "pairs.csv").open())
    assert row["train_set"] == "ours, train" and row["containment"] == "1.000" and row["image"].startswith("same")
    expected = {
        "training": "ours, train",
        "test": "bench",
        "drop": "1 pairs of 1 cases",
        "review": "0 pairs of 0 cases",
    }
    assert found.table() == [expected]


def test_chinese_texts_are_compared_by_character():
    """Twenty of 80 characters differ, in one place: 53 of 73 runs of eight stay, and one sentence does not."""
    text = "".join(chr(0x4E00 + 7 * n) for n in range(80))
    changed = text[:60] + "".join(chr(0x8000 + 7 * n) for n in range(20))
    stem = "。下列哪项是最可能的诊断？"
    first, second = (Case(str(n), one + stem, (), "", benchmark="b") for n, one in enumerate((text, changed)))
    (pair,) = c.find([("train", second)], [("test", first)]).pairs
    assert pair.containment == pytest.approx(53 / 73) and pair.decision == "drop"
    other = Case("2", "".join(chr(0x6000 + 7 * n) for n in range(80)) + stem, (), "", benchmark="b")
    assert not c.find([("train", other)], [("test", first)]).pairs  # the question that all share does not count
