"""Buckets of images: what is dealt over devices, what attention takes beside a strip, what fits no planned bucket."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmedexpert_jax.gba.padding import PromptSize, RowBuckets, StripBuckets, deal_images

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
    strips = StripBuckets.of(groups, 1, 2)
    buckets = [strips.bucket(PromptSize.together(group), 1) for group in groups]
    assert all(bucket.images * bucket.patches <= 2 * bucket.strip for bucket in buckets) and len(set(buckets)) == 3


def test_rows_of_attention_beyond_some_strips_are_counted():
    rng = np.random.default_rng(0)
    groups = [[prompt(STACKS[kind]) for kind in rng.integers(0, 4, 4)] for _ in range(64)]
    strips = StripBuckets.of(groups, 1, 6)
    buckets = [strips.bucket(PromptSize.together(group), 1) for group in groups]
    assert any(bucket.images * bucket.patches > 4 * bucket.strip for bucket in buckets)
    computed = sum(max(bucket.strip, bucket.images * bucket.patches // 4) for bucket in buckets)
    real = sum(sum(one.each) for group in groups for one in group)
    assert strips.overhead == pytest.approx(computed / (1.3 * real))


@pytest.mark.parametrize("kind", [RowBuckets, StripBuckets])
@given(st.lists(st.lists(images, min_size=2, max_size=2), min_size=1, max_size=8), images, st.integers(1, 4))
def test_every_micro_batch_has_a_bucket_planned_or_not(kind, mixed, other, devices):
    groups = [[prompt(each) for each in group] for group in mixed]
    buckets = kind.of(groups, devices, 3)
    for group in [*groups, [prompt(other, 400)]]:
        size = PromptSize.together(group)
        bucket = buckets.bucket(size, devices)
        longest = max(sum(size.each[i] for i in held) for held in deal_images(size.each, devices))
        assert bucket.tokens >= size.tokens and bucket.images * devices >= size.images
        assert not size.images or bucket.patches >= size.patches
        assert bucket.strip >= longest if kind is StripBuckets else bucket.strip == 0
