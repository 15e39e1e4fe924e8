"""Agreement statistics against values worked by hand and published examples."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax.mmedexpert.review.agreement import agreement


def table(both_yes: int, first_yes: int, second_yes: int, both_no: int) -> list[dict[str, str]]:
    """Ratings of two people, from a two by two table."""
    cells = [("y", "y", both_yes), ("y", "n", first_yes), ("n", "y", second_yes), ("n", "n", both_no)]
    return [{"anna": a, "ben": b} for a, b, count in cells for _ in range(count)]


def test_two_raters_by_hand():
    """50 items: raw (20 + 15) / 50 = 0.7. Chance by Cohen: 25/50 x 30/50 + 25/50 x 20/50 = 0.5, so kappa 0.4. Mean
    share of yes 0.55, chance by Gwet 2 x 0.55 x 0.45 = 0.495, so AC1 (0.7 - 0.495) / 0.505."""
    found = agreement(table(20, 5, 10, 15), ("y", "n"))
    assert (found.traces, found.raters) == (50, 2)
    assert found.raw.value == pytest.approx(0.7)
    assert found.kappa.value == pytest.approx(0.4)
    assert found.ac1.value == pytest.approx(0.205 / 0.505)


def test_kappa_falls_where_nearly_all_is_accepted():
    """The paradox of Feinstein and Cicchetti (1990): 100 items, 88 accepted by both, 4 rejected by both, 8 apart.

    Raw 0.92; chance by Cohen 0.92 x 0.92 + 0.08 x 0.08 = 0.8528, by Gwet 2 x 0.92 x 0.08 = 0.1472.
    """
    found = agreement(table(88, 4, 4, 4), ("y", "n"))
    assert found.raw.value == pytest.approx(0.92)
    assert found.kappa.value == pytest.approx(0.0672 / 0.1472)
    assert found.ac1.value == pytest.approx(0.7728 / 0.8528)
    assert found.raw.low < 0.92 < found.raw.high and found.ac1.low > found.kappa.low


def test_three_categories_count_in_ac1():
    """4 items, raw 3/4. Cohen's chance 2/4 x 1/4 + 1/4 x 2/4 + 1/4 x 1/4 = 5/16. Mean shares (3/8, 3/8, 2/8), Gwet's
    chance (3/8 x 5/8 + 3/8 x 5/8 + 2/8 x 6/8) / 2 = 42/128."""
    pairs = ["aa", "ab", "bb", "cc"]
    found = agreement([{"anna": x, "ben": y} for x, y in pairs], ("a", "b", "c"))
    assert found.kappa.value == pytest.approx((3 / 4 - 5 / 16) / (11 / 16))
    assert found.ac1.value == pytest.approx((3 / 4 - 42 / 128) / (86 / 128))


def test_three_raters_by_hand():
    """Pairs that agree: 3/3, 1/3, 1/3 of the traces of three, 1/1 of the trace of two: raw (1 + 1/3 + 1/3 + 1) / 4.

    Shares of yes: anna 2/3, ben 2/4, carl 2/4. Conger's chance is the mean over the pairs of raters of Cohen's:
    anna-ben and anna-carl 2/3 x 1/2 + 1/3 x 1/2 = 1/2, ben-carl 1/2. AC1: mean share of yes (1 + 2/3 + 1/3) / 4.
    """
    ratings = [
        {"anna": "y", "ben": "y", "carl": "y"},
        {"anna": "y", "ben": "n", "carl": "y"},
        {"anna": "n", "ben": "y", "carl": "n"},
        {"ben": "n", "carl": "n"},
    ]
    found = agreement(ratings, ("y", "n"))
    assert found.raters == 3
    assert found.raw.value == pytest.approx(2 / 3)
    assert found.kappa.value == pytest.approx((2 / 3 - 1 / 2) / (1 / 2))
    assert found.ac1.value == pytest.approx((2 / 3 - 1 / 2) / (1 / 2))


def test_nothing_to_compare_and_no_variation():
    alone = agreement([{"anna": "y"}, {}], ("y", "n"))
    assert alone.traces == 0 and alone.raw.value is None and alone.kappa.value is None
    same = agreement([{"anna": "y", "ben": "y"}] * 9, ("y", "n"))
    assert same.raw.value == 1 and same.kappa.value is None and same.ac1.value == 1
    assert same.raw.low == pytest.approx(9 / (9 + 1.959963984540054**2))  # Wilson's lower end where all agree


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("yn"), st.sampled_from("yn")), min_size=1, max_size=30))
def test_bounds_and_symmetry(pairs):
    one = agreement([{"anna": a, "ben": b} for a, b in pairs], ("y", "n"))
    two = agreement([{"anna": b, "ben": a} for a, b in pairs], ("n", "y"))
    for first, second in zip((one.raw, one.kappa, one.ac1), (two.raw, two.kappa, two.ac1), strict=True):
        assert (first.value is None) == (second.value is None)
        if first.value is not None:
            assert math.isclose(first.value, second.value, abs_tol=1e-9)
            assert -1 - 1e-9 <= first.low <= first.high <= 1 + 1e-9
