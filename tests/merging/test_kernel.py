"""Programs of XLA over blocks, against numpy on the same entries: the same merge bit for bit, and the same report."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmedexpert_jax.merging import blockwise, kernel
from mmedexpert_jax.merging.blockwise import Merge
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.merging.settings import PRESETS
from mmedexpert_jax.merging.vectors import Adapter, Expert

BLOCK = 128
SIZES = (8, 40)  # two blocks and a half
BF16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
# Few values: equal magnitudes, zeros and cancellations; many: the rest.
COARSE, FINE = st.integers(-4, 4).map(lambda i: i / 8), st.floats(-4, 4, width=32, allow_subnormal=False)


def job(stack, base, density, weights, scale, preset="paper"):
    experts = [str(number) for number in range(len(stack))]
    numbers = {"density": {"": density}, "weight": dict(zip(experts, weights, strict=True)), "scale": {"": scale}}
    how = Parameters("ties", tuple(experts), preset, numbers, names=("w",))
    return Merge({"w": base}, tuple(Expert(name, {"w": own}) for name, own in zip(experts, stack, strict=True)), how)


def merged(merge, dtype):
    """The merged entries and what was measured."""
    out = np.zeros(merge.base["w"].size, F32 if dtype is None else dtype)

    def write(start, entries):
        out[start : start + len(entries)] = entries

    sums = merge.tensor("w", dtype, write)
    return out, sums


def both(make, dtype):
    """What programs and what numpy make of the same merge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "BLOCK", BLOCK)
        assert make().compiles("w")
        programs = merged(make(), dtype)
        patch.setattr(kernel, "DTYPES", ())
        assert not make().compiles("w")
        return programs, merged(make(), dtype)


def check(make, dtype):
    (found, sums), (expected, reference) = both(make, dtype)
    assert found.tobytes() == expected.tobytes() or np.array_equal(found, expected)  # -0 is 0
    assert (sums is None) == (reference is None)
    for key, value in (reference or {}).items():
        scale = np.max(np.abs(value), initial=1e-30)
        np.testing.assert_allclose(sums[key], value, rtol=1e-5, atol=1e-5 * scale, err_msg=key)


# weights, scale and output dtype: a program each
NUMBERS = (((1, 1, 1), 1.0, BF16), ((1, 1, 1), 0.3, None), ((0.3, 1, 0.7), 1.0, F32))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from((COARSE, FINE)).flatmap(lambda e: hnp.arrays(np.float32, (4, *SIZES), elements=e)),
    st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    st.sampled_from(NUMBERS),
)
def test_the_paper_s_ties(tensors, density, numbers):
    weights, scale, dtype = numbers
    check(lambda: job(tensors[1:], tensors[0], density, weights, scale), dtype)


@pytest.mark.parametrize("preset", ["official", "mergekit", "peft", replace(PRESETS["peft"], elect="count")])
def test_presets_in_bf16(preset):
    rng = np.random.default_rng(0)
    base = rng.standard_normal(SIZES).astype(BF16)
    stack = [(base.astype(F32) + np.round(rng.standard_normal(SIZES) * 4) / 4).astype(BF16) for _ in range(3)]
    for density in (0.2, 0.6):
        check(lambda density=density: job(stack, base, density, (0.5, 1, 2), 1.0, preset), BF16)


@pytest.mark.parametrize("rescale", ["l1", "l2"])
def test_a_rescaled_trim_is_rescaled_in_large_tensors_too(rescale):
    rng = np.random.default_rng(3)
    base, *stack = rng.standard_normal((4, *SIZES)).astype(F32)
    rule = replace(PRESETS["mergekit"], rescale=rescale)
    check(lambda: job(stack, base, 0.3, (1, 1, 1), 1.0, rule), F32)


@pytest.mark.parametrize("normalize", ["none", "tensor", "median"])
def test_more_experts_than_one_program_marks(normalize):
    rng = np.random.default_rng(2)
    base = rng.standard_normal(SIZES).astype(BF16)
    stack = [(base.astype(F32) + np.round(rng.standard_normal(SIZES) * 4) / 4).astype(BF16) for _ in range(7)]
    rule = replace(PRESETS["mergekit"], normalize=normalize)
    check(lambda: job(stack, base, 0.4, range(1, 8), 1.0, rule), BF16)


def test_adapters_and_models_together():
    rng = np.random.default_rng(1)
    base, own = rng.standard_normal((2, *SIZES)).astype(F32)

    def adapter():
        factors = rng.standard_normal((SIZES[0], 2)).astype(F32), rng.standard_normal((2, SIZES[1])).astype(F32)
        return Adapter({"w": factors}, 0.5)

    experts = (
        Expert("a", {"w": own}),
        Expert("b", None, (adapter(), adapter())),
        Expert("c", {"w": own}, (adapter(),)),
    )
    how = Parameters("ties", ("a", "b", "c"), "paper", {"density": {"": 0.3}}, names=("w",))
    check(lambda: Merge({"w": base}, experts, how), BF16)


@settings(max_examples=10, deadline=None)
@given(hnp.arrays(np.float32, (4, *SIZES), elements=COARSE), st.sampled_from((0.1, 0.5)))
def test_breadcrumbs_take_their_bounds_from_programs(tensors, density):
    experts = tuple(Expert(str(number), {"w": own}) for number, own in enumerate(tensors[1:]))
    numbers = {"density": {"": density}, "gamma": {"": 0.2}}
    how = Parameters("breadcrumbs", ("0", "1", "2"), "mergekit", numbers, names=("w",))
    check(lambda: Merge({"w": tensors[0]}, experts, how), F32)


def test_tensors_that_programs_do_not_take():
    base = np.zeros((BLOCK, BLOCK))
    for own in (base, base.astype(np.float16)):
        assert not job([own], base, 0.5, (1,), 1.0).compiles("w")
    assert not job([np.zeros(4, F32)], np.zeros(4, F32), 0.5, (1,), 1.0).compiles("w")
