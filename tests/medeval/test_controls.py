"""Controls: what they change, and what is found of models whose behaviour is known."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.config import field_of
from mmedexpert_jax.data.benchmarks import ImageRef
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.medeval.control_tables import consistency, letter_bias, sentence, table
from mmedexpert_jax.medeval.controls import CONTROLS, near_pairs, variants
from mmedexpert_jax.medeval.evaluate import Evaluation, judged
from mmedexpert_jax.processing.images import open_image
from mmedexpert_jax.rollout import Reply


def picture(seed, size=(8, 6)):
    def read():
        buffer = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return ImageRef(f"image {seed}", read)


def item(number, images=1, options=("one", "two", "three", "four"), answer=None):
    pictures = tuple(picture(10 * number + i, (8 + number, 6)) for i in range(images))
    answer = answer or "ABCD"[number % len(options)]
    return Case(
        str(number),
        "q",
        options,
        answer,
        images=pictures,
        columns={"raw_options": options, "kit": "choice"},
        benchmark="b",
    )


ITEMS = [item(n) for n in range(8)] + [item(8, images=2), item(9, images=0)]


def pixels(image):
    return np.asarray(open_image(image.open(), image.name))


def answered(items, say):
    return Evaluation(tuple(r for i in items for r in judged(i, [Reply(f"<answer>{say(i)}</answer>", 1, False)])))


def items_of(items, name, **settings):
    return [one.items for one in variants(items, name, **settings)]


def asked(control, say):
    return replace(control, evaluation=answered(control.items, say))


def test_blank_keeps_number_and_size_and_nothing_of_the_picture():
    (changed,) = items_of(ITEMS, "blank")
    assert [i.id for i in changed] == [i.id for i in ITEMS if i.images]
    for before, after in zip(ITEMS, changed, strict=False):
        assert [pixels(i).shape for i in before.images] == [pixels(i).shape for i in after.images]
        assert all((pixels(image) == 128).all() for image in after.images)
        assert after.question == before.question and after.answer == before.answer


def test_other_images_are_a_cycle_without_a_fixed_place():
    (changed,) = items_of(ITEMS, "other_image", seed=3)
    assert [i.id for i in changed] == [str(n) for n in range(8)]  # the only item of two images has no other
    names = [i.images[0].name for i in changed]
    assert sorted(names) == sorted(i.images[0].name for i in ITEMS[:8])
    assert all(after.images[0].name != before.images[0].name for before, after in zip(ITEMS, changed, strict=False))
    assert [i.images[0].name for i in items_of(ITEMS, "other_image", seed=3)[0]] == names


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shown", "left"), [("aabbccd", 7), ("aaab", 4), ("aaaabbc", 7), ("abcdefgh", 8), ("aaa", 0)])
def test_another_image_is_another_picture_also_where_questions_share_theirs(shown, left, seed):
    films = {letter: picture(ord(letter)).read() for letter in shown}
    items = [
        replace(item(n), images=(ImageRef(f"row {n}", lambda letter=letter: films[letter]),))
        for n, letter in enumerate(shown)
    ]
    (changed,) = items_of(items, "other_image", seed=seed)
    assert len(changed) == left
    for after in changed:
        assert after.images[0].open() != films[shown[int(after.id)]]
    if 2 * max(map(shown.count, shown)) <= len(shown):  # then each image is used once
        assert sorted(one.images[0].name for one in changed) == sorted(one.images[0].name for one in items)


def test_question_only_has_no_image():
    (changed,) = items_of(ITEMS, "question_only")
    assert len(changed) == 9 and not any(i.images for i in changed)


def test_rotations_move_every_option_and_its_key():
    made = variants(ITEMS, "shuffle", rotations=5)
    assert [one.rotation for one in made if one.items] == [1, 2, 3]  # four options have three other orders
    for control in made:
        places = control.rotation
        for before, after in zip(ITEMS, control.items, strict=False):
            assert after.options[(0 + places) % 4] == before.options[0]
            right = after.options["ABCD".index(after.answer)]
            assert right == before.options["ABCD".index(before.answer)]
            assert "raw_options" not in after.columns and after.columns["kit"] == "choice"


OTHERS = ["Both A and B", "(A) & (B)", "All of the above", "None of the above", "A, B and C", "neither a nor b"]
OTHERS += ["A and C only", "Only A", "Both of the above", "以上都是", "A和B", "A/B", "Options A and B"]
OWN = [
    "Hepatitis A and B",
    "Above the knee",
    "Vitamins A, D and K",
    "A and alpha blockers",
    "A Colles fracture",
    "Both",
]
OWN += ["All of them", "A or an O cell", "AB", "A", "Influenza A", "A. fumigatus and A. niger", "IgA and B cells"]
OWN += ["60岁以上", "38℃以上", "E/A ratio", "C and D antigens"]


@pytest.mark.parametrize("option", [*OTHERS, *OWN])
def test_an_option_that_names_others_is_not_rotated(option):
    asked = [replace(item(n), options=("Fever", "Rash", "Cough", option)) for n in range(2)]
    (control,) = variants(asked, "shuffle")
    assert len(control.items) == (0 if option in OTHERS else 2)


def test_options_that_are_letters_are_not_rotated():
    (control,) = variants([replace(item(0), options=("A", "B", "AB", "O")), item(1)], "shuffle")
    assert [one.id for one in control.items] == [item(1).id]


def controls(say, *names, rotations=1):
    return [asked(one, say) for name in names for one in variants(ITEMS, name, rotations)]


def test_a_model_that_reads_is_consistent_and_one_that_likes_a_letter_is_not():
    def knows(i):
        return i.answer

    made = controls(knows, "shuffle", rotations=3)
    assert consistency(answered(ITEMS, knows), made) == 1.0
    assert letter_bias(answered(ITEMS, knows), made).endswith("+0.0")
    always = controls(lambda i: "C", "shuffle", rotations=3)
    assert consistency(answered(ITEMS, lambda i: "C"), always) == 0.0
    assert letter_bias(answered(ITEMS, lambda i: "C"), always) == "C +75.0"  # a quarter of the keys is C in any order
    once = answered(ITEMS, lambda i: ("A" if i.answer == "D" else "B") if i.id == ITEMS[0].id else "")
    assert 0 < float(letter_bias(once, []).split()[1]) <= 100 / len(ITEMS)


def test_a_model_that_looks_loses_what_the_image_gave_it():
    def looks(i):
        seen = i.images and not (pixels(i.images[0]) == 128).all()
        return i.answer if seen else "A"

    plain, made = answered(ITEMS, looks), controls(looks, "blank", "question_only")
    rows = {row["control"]: row for row in table({"m": plain}, {"m": made})}
    keyed_a = sum(i.answer == "A" for i in ITEMS if i.images)
    assert rows["a grey image"]["plain"].value == 1
    assert rows["a grey image"]["changed"] == rows["no image"]["changed"]
    assert str(rows["no image"]["changed"]) == f"{100 * keyed_a / 9:.1f}"
    told = sentence("m", plain, made)
    assert told.startswith(
        "m: of 100.0 % right on the 9 items with images 33.3 % remain with a grey image; 66.7 points ["
    )
    assert "not shown" not in told


def test_a_model_that_does_not_look_is_told_so():
    plain, made = answered(ITEMS, lambda i: "A"), controls(lambda i: "A", "blank")
    assert sentence("m", plain, made).endswith("The interval holds 0: that the image is used is not shown.")
    assert sentence("m", plain, controls(lambda i: "A", "shuffle")) == ""


@pytest.mark.parametrize("name", ["blank", "other_image", "question_only", "shuffle", "pairs"])
def test_nothing_to_change_leaves_no_row(name):
    bare = [Case("x", "q", (), "gold", kind="open", benchmark="b")]
    made = [asked(one, lambda i: "A") for one in variants(bare, name)]
    assert table({"m": answered(bare, lambda i: "A")}, {"m": made}) == []


def film(seed, spot=None):
    """A large smooth picture, a small bright spot in it if one is given: near-identical to that without the spot."""
    pixels = np.asarray(
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 9), np.uint8)).resize((160, 160))
    )
    pixels = pixels.copy()
    if spot:
        pixels[spot : spot + 6, spot : spot + 6] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return ImageRef(f"film {seed} {spot}", buffer.getvalue)


def finding(id, seed, spot, answer, question="Is there a nodule?", options=("nodule", "none"), kind="choice"):
    return Case(id, question, options, answer, images=(film(seed, spot),), kind=kind, benchmark="b")


PAIRED = [
    finding("sick", 1, 40, "A"),
    finding("well", 1, None, "B", "is there a  NODULE?"),
    finding("turned", 2, None, "A", options=("none", "nodule")),  # the same key as "well", another order
    finding("sick too", 2, 70, "A"),
    finding("far", 3, 40, "A"),  # no image is near it
    finding("yes", 4, 20, "yes", options=(), kind="yes_no"),
    finding("no", 4, None, "no", options=(), kind="yes_no"),
    finding("same key", 5, None, "yes", "Lung?", (), "yes_no"),
    finding("same key too", 5, 9, "yes", "Lung?", (), "yes_no"),
    finding("open", 6, 9, "a mass", "Shown?", (), "open"),
    finding("open too", 6, None, "mass", "Shown?", (), "open"),
]


def test_pairs_are_one_question_on_nearly_one_image_with_two_keys():
    found = [(one.id, other.id) for one, other in near_pairs(PAIRED)]
    assert found == [("sick", "well"), ("turned", "sick too"), ("yes", "no")]
    (flat,) = items_of(PAIRED, "pairs")
    assert [item.id for item in flat] == [id for pair in found for id in pair]
    assert all(item is next(i for i in PAIRED if i.id == item.id) for item in flat)  # nothing new is asked


def knows(item):
    return item.answer


def blindly(item):
    return {"choice": "A", "yes_no": "yes"}.get(item.kind, "mass")


def always_none(item):
    return "AB"[item.options.index("none")] if item.options else "yes"


@pytest.mark.parametrize(
    ("say", "plain", "both", "apart"),
    [
        (knows, "100.0", "100.0", "100.0"),
        (blindly, "66.7", "33.3", "33.3"),  # of "turned" A is another text
        (always_none, "50.0", "0.0", "0.0"),
    ],
)
def test_a_pair_counts_where_both_are_right_and_is_told_apart_by_texts(say, plain, both, apart):
    made = [asked(one, say) for one in variants(PAIRED, "pairs")]
    (row,) = table({"m": answered(PAIRED, say)}, {"m": made})
    shown = [str(row[key]) for key in ("control", "items", "plain", "changed", "told apart")]
    assert shown == ["near-identical pairs", "6", plain, both, apart]
    assert abs(row["loss"].value - (float(plain) - float(both))) < 0.1
    told = sentence("m", answered(PAIRED, say), made)
    assert told.startswith(f"m: of 3 pairs of near-identical images with different keys {both} % are right on both")


def test_refused_questions_leave_no_row_where_nothing_is_left_to_compare():
    (pairs,) = variants(PAIRED, "pairs")
    alone = replace(pairs, evaluation=answered(pairs.items[::2], knows))  # of no pair both were answered
    blind = [asked(one, knows) for one in variants(ITEMS, "question_only")]
    text_only = answered(ITEMS[9:], knows)  # every question with an image was refused as it stands
    assert table({"m": answered(PAIRED, knows), "n": text_only}, {"m": [alone], "n": blind}) == []
    assert sentence("m", answered(PAIRED, knows), [alone]) == sentence("n", text_only, blind) == ""


def test_the_field_takes_the_controls_that_there_are():
    assert field_of("controls").choices == CONTROLS
