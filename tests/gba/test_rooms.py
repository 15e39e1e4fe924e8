"""Rooms of images: what is dealt over devices, what attention takes beside a strip, what fits no planned room."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmedexpert_jax.gba.rooms import ImageRows, ImageStrips, PromptSize, deal_images

images = st.lists(st.integers(1, 1000), max_size=40)


def prompt(each, tokens=100):
    return PromptSize(len(each), max(each, default=0), tokens, tuple(each))


@given(images, st.integers(1, 8))
def test_images_are_dealt_evenly(each, devices):
    dealt = deal_images(tuple(each), devices)
    part = -(-len(each) // devices)
    assert len(dealt) == devices and max(map(len, dealt)) <= part
    assert sorted(number for held in dealt for number in held) == [*range(len(each))]
    sums = [sum(each[i] for i in held) for held in dealt]
    assert max(sums) <= sum(each) / devices + max(each, default=0)


def test_no_device_idles_while_another_has_two_large_images():
    dealt = deal_images((1000,) * 6 + (100,) * 4, 8)
    assert max(sum(1000 if i < 6 else 100 for i in held) for held in dealt) == 1000


STACKS = [[], [4 * 20 * 20], [64] * 16, [100] * 16]


def test_attention_has_no_rows_for_many_images_as_wide_as_the_widest():
    """Stacks of 16 small images in some micro-batches, single large ones in others: strips of about one length."""
    groups = [[prompt(STACKS[number % 4])] * 4 for number in range(64)]
    strips = ImageStrips.of(groups, 1, 2)
    rooms = [strips.room(PromptSize.together(group), 1) for group in groups]
    assert all(room.images * room.patches <= 2 * room.strip for room in rooms) and len(set(rooms)) == 3


def test_rows_of_attention_beyond_some_strips_are_counted():
    rng = np.random.default_rng(0)
    groups = [[prompt(STACKS[kind]) for kind in rng.integers(0, 4, 4)] for _ in range(64)]
    strips = ImageStrips.of(groups, 1, 6)
    rooms = [strips.room(PromptSize.together(group), 1) for group in groups]
    assert any(room.images * room.patches > 4 * room.strip for room in rooms)
    computed = sum(max(room.strip, room.images * room.patches // 4) for room in rooms)
    real = sum(sum(one.each) for group in groups for one in group)
    assert strips.share == pytest.approx(computed / (1.3 * real))


@pytest.mark.parametrize("kind", [ImageRows, ImageStrips])
@given(st.lists(st.lists(images, min_size=2, max_size=2), min_size=1, max_size=8), images, st.integers(1, 4))
def test_every_micro_batch_has_a_room_planned_or_not(kind, mixed, other, devices):
    groups = [[prompt(each) for each in group] for group in mixed]
    rooms = kind.of(groups, devices, 3)
    for group in [*groups, [prompt(other, 400)]]:
        size = PromptSize.together(group)
        room = rooms.room(size, devices)
        longest = max(sum(size.each[i] for i in held) for held in deal_images(size.each, devices))
        assert room.tokens >= size.tokens and room.images * devices >= size.images
        assert not size.images or room.patches >= size.patches
        assert room.strip >= longest if kind is ImageStrips else room.strip == 0
