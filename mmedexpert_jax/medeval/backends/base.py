"""The interface between evaluation and whatever answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.medeval.prompt_styles import Question
from mmedexpert_jax.rollout import Reply

OnReply = Callable[[int, list[Reply]], None]
Refuse = Callable[[int, DataError], None]
STOPPED = "stopped; what was answered is stored, and the same command goes on"


class Backend(Protocol):
    """A model behind any of the ways to reach it."""

    identity: Mapping[str, Any]  # what tells the model apart, for the key of an answer; plain JSON

    def answer(
        self, asked: Sequence[Question], num_samples: int, on_reply: OnReply, refuse: Refuse | None = None
    ) -> None:
        """Gives (number, `num_samples` replies) to `on_reply` as they come, each number at most once.

        A conversation that the model cannot take goes to `refuse`, or is raised where that is None.
        """
        ...

    def close(self) -> None:
        """Gives back what the model holds."""
        ...
