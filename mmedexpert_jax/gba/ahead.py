"""Rounds of completions drawn while the step before them updates."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from mmedexpert_jax.train import State

Round = TypeVar("Round")


class Ahead(Generic[Round]):
    """`draw(state, step)` for rising steps; of states with weights `behind`, begun before the update before it.

    A round comes from its state's weights `behind` alone, so that it is the same whether it was begun in time or, as
    the first of a process that resumes, only when it is asked for. All are drawn in one thread: settings of JAX that
    belong to a thread are then the same for all of them. An interrupted run, whose state is saved by then, ends when
    the round that was begun is drawn: XLA aborts a process whose threads still compute.
    """

    def __init__(self, draw: Callable[[State, int], Round], steps: int):
        self._draw, self._steps = draw, steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._begun: Future[Round] | None = None

    def __call__(self, state: State, step: int) -> Round:
        """The round of `step`; raises what its draw raised."""
        if state.behind is None:  # on-policy
            return self._draw(state, step)
        begun, self._begun = self._begun or self._pool.submit(self._draw, state, step), None
        return begun.result()

    def begin(self, state: State, step: int) -> None:
        """Begins the round of `step`, which is asked for next; none beyond the last."""
        if step < self._steps:
            self._begun = self._pool.submit(self._draw, state, step)
