"""Items in order from several threads; images and volumes that are read by them."""

import threading
import time

import nibabel
import numpy as np
import pytest

from mmedexpert_jax.models import load_processor
from mmedexpert_jax.processing import nifti
from mmedexpert_jax.processing.images import ImageRef
from mmedexpert_jax.processing.windows import View
from mmedexpert_jax.runtime.threads import in_order


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_and_few_are_held(threads):
    begun, held = [], []

    def double(number):
        begun.append(number)
        time.sleep(0.002 * (number % 3))
        return 2 * number

    found = []
    for result in in_order(double, range(20), threads):
        found.append(result)
        held.append(len(begun) - len(found))
    assert found == [2 * number for number in range(20)] and max(held) <= 2 * threads


def test_the_first_error_in_order_is_raised_and_what_follows_is_dropped():
    begun = []

    def fail(number):
        begun.append(number)
        if number in (3, 4):
            time.sleep(0.05 * (5 - number))  # the later one fails first
            raise ValueError(number)
        return number

    found = []
    with pytest.raises(ValueError, match="3"):
        found += in_order(fail, range(100), 2)
    assert len(begun) < 10 and not [one for one in threading.enumerate() if one.name.startswith("in-order")]


def test_a_caller_that_stops_leaves_no_thread():
    results = in_order(lambda number: number, iter(range(10**9)), 2)
    assert next(results) == 0
    results.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("in-order")]


def test_prompts_encoded_side_by_side_are_those_encoded_in_turn(monkeypatch):
    """Also where several have slices of a volume, which stands in memory one at a time: each is read once."""
    read, values = [], nifti._values

    def noted(content, *rest):
        read.append(content)
        return values(content, *rest)

    monkeypatch.setattr(nifti, "_values", noted)
    rng, processor = np.random.default_rng(0), load_processor("mini")
    volumes = [nibabel.Nifti1Image(rng.integers(0, 99, (56, 56, 6), np.int16), np.eye(4)).to_bytes() for _ in range(6)]
    talks = []
    for number in range(24):
        whole, text = volumes[number % 6], {"type": "text", "text": f"Is <|image_pad|> {number} a word?"}
        shown = [ImageRef(f"v{number}", lambda whole=whole: whole, View(slices=(place,))) for place in range(6)]
        pictures = [{"type": "image", "image": one} for one in (shown if number < 6 else ())]
        talks.append([{"role": "user", "content": [*pictures, text]}])
    found = list(in_order(processor.encode, talks, 4))
    assert len(read) == 6
    for one, talk in zip(found, talks, strict=True):
        alone = processor.encode(talk)
        assert one.tokens.tolist() == alone.tokens.tolist() and len(one.images) == len(alone.images)
        for (patches, grid), (expected, size) in zip(one.images, alone.images, strict=True):
            assert grid == size and np.array_equal(patches, expected)
