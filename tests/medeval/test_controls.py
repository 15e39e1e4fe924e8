"""Controls: what they change, and what is found of models whose behaviour is known."""

import io

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.data.benchmarks import ImageRef
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.medeval.controls import Control, consistency, letter_bias, sentence, table, variants
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


def test_blank_keeps_number_and_size_and_nothing_of_the_picture():
    ((_, changed),) = variants(ITEMS, "blank")
    assert [i.id for i in changed] == [i.id for i in ITEMS if i.images]
    for before, after in zip(ITEMS, changed, strict=False):
        assert [pixels(i).shape for i in before.images] == [pixels(i).shape for i in after.images]
        assert all((pixels(image) == 128).all() for image in after.images)
        assert after.question == before.question and after.answer == before.answer


def test_other_images_are_a_cycle_without_a_fixed_place():
    ((_, changed),) = variants(ITEMS, "other_image", seed=3)
    assert [i.id for i in changed] == [str(n) for n in range(8)]  # the only item of two images has no other
    names = [i.images[0].name for i in changed]
    assert sorted(names) == sorted(i.images[0].name for i in ITEMS[:8])
    assert all(after.images[0].name != before.images[0].name for before, after in zip(ITEMS, changed, strict=False))
    assert [i.images[0].name for i in variants(ITEMS, "other_image", seed=3)[0][1]] == names


def test_question_only_has_no_image():
    ((_, changed),) = variants(ITEMS, "question_only")
    assert len(changed) == 9 and not any(i.images for i in changed)


def test_rotations_move_every_option_and_its_key():
    made = variants(ITEMS, "shuffle", rotations=5)
    assert [places for places, items in made if items] == [1, 2, 3]  # four options have three other orders
    for places, items in made:
        for before, after in zip(ITEMS, items, strict=False):
            assert after.options[(0 + places) % 4] == before.options[0]
            right = after.options["ABCD".index(after.answer)]
            assert right == before.options["ABCD".index(before.answer)]
            assert "raw_options" not in after.columns and after.columns["kit"] == "choice"


def controls(say, *names, rotations=1):
    return [
        Control(name, items, answered(items, say), places)
        for name in names
        for places, items in variants(ITEMS, name, rotations)
    ]


def test_a_model_that_reads_is_consistent_and_one_that_likes_a_letter_is_not():
    def knows(i):
        return i.answer

    made = controls(knows, "shuffle", rotations=3)
    assert consistency(answered(ITEMS, knows), made) == 1.0
    assert letter_bias(answered(ITEMS, knows), made).endswith("+0.0")
    always = controls(lambda i: "C", "shuffle", rotations=3)
    assert consistency(answered(ITEMS, lambda i: "C"), always) == 0.0
    assert letter_bias(answered(ITEMS, lambda i: "C"), always) == "C +75.0"  # a quarter of the keys is C in any order


def test_a_model_that_looks_loses_what_the_image_gave_it():
    def looks(i):
        seen = i.images and not (pixels(i.images[0]) == 128).all()
        return i.answer if seen else "A"

    plain, made = answered(ITEMS, looks), controls(looks, "blank", "question_only")
    rows = {row["control"]: row for row in table({"m": plain}, {"m": made})}
    keyed_a = sum(i.answer == "A" for i in ITEMS if i.images)
    assert rows["a grey image"]["plain"] == "100.0"
    assert rows["a grey image"]["changed"] == rows["no image"]["changed"] == f"{100 * keyed_a / 9:.1f}"
    told = sentence("m", plain, made)
    assert told.startswith(
        "m: of 100.0 % right on the 9 items with images 33.3 % remain with a grey image; 66.7 points ["
    )
    assert "not shown" not in told


def test_a_model_that_does_not_look_is_told_so():
    plain, made = answered(ITEMS, lambda i: "A"), controls(lambda i: "A", "blank")
    assert sentence("m", plain, made).endswith("The interval holds 0: that the image is used is not shown.")
    assert sentence("m", plain, controls(lambda i: "A", "shuffle")) == ""


@pytest.mark.parametrize("name", ["blank", "other_image", "question_only", "shuffle"])
def test_nothing_to_change_leaves_no_row(name):
    bare = [Case("x", "q", (), "gold", kind="open", benchmark="b")]
    made = [Control(name, items, answered(items, lambda i: "A"), places) for places, items in variants(bare, name)]
    assert table({"m": answered(bare, lambda i: "A")}, {"m": made}) == []
