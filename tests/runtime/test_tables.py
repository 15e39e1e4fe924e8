import numpy as np

from mmedexpert_jax.merging.merge import merge_with_report
from mmedexpert_jax.report.text_tables import markdown


def test_columns_stand_in_order_of_appearance_and_may_be_missing():
    assert markdown([{"a": "1"}, {"b": 2.0}]) == "| a | b |\n| --- | --- |\n| 1 |  |\n|  | 2.0 |\n"
    assert markdown([]) == ""


def test_floats_have_the_decimals_that_are_asked_for():
    assert markdown([{"a": 0.00012, "b": 3, "c": "x"}], 3).endswith("| 0.000 | 3 | x |\n")
    assert markdown([{"a": 0.00012}]).endswith("| 0.00012 |\n")


def test_a_cell_stays_a_cell():
    """A bar would start another cell, and a line break another row: in names of tests and experts as in headings."""
    assert markdown([{"a|b": "c|d\ne"}]) == "| a\\|b |\n| --- |\n| c\\|d e |\n"


def test_the_name_of_an_expert_may_hold_a_bar():
    base = {"w": {"weight": np.ones((2, 3), np.float32)}}
    _, report = merge_with_report(base, {"a|b": {"w": {"weight": np.full((2, 3), 2, np.float32)}}}, density=1.0)
    assert "| a\\|b | 1.000 | 1.000 |" in report.markdown()
