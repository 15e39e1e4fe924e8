"""Batches made ahead, in threads."""

import threading

import pytest

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.train import Prefetched


def test_what_threads_make_comes_in_the_order_of_the_steps():
    third = threading.Event()

    def make(step):
        if step == 0:
            assert third.wait(60), "the third step is made while the first one is"
        if step == 2:
            third.set()
        if step == 4:
            raise DataError("case 4")
        return step

    batches = Prefetched(make, 6, ahead=3, threads=3)
    assert [batches(step) for step in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match="case 4"):
        batches(4)
    assert [batches(step) for step in (2, 3)] == [2, 3], "a run that goes back meets the same"
    batches.close()
