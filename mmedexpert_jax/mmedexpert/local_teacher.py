"""Teachers write the traces: an endpoint by chat or by batch, or, here, a model in this process."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mmedexpert_jax.remote import Answers, Attempt, EndpointReply, Request, Usage
from mmedexpert_jax.remote.messages import content_key

OnReply = Callable[[int, EndpointReply], None]
Answer = Callable[[list[list[dict[str, Any]]], list[int]], list[tuple[str, int, bool]]]


class Teacher(Protocol):
    """A model that is asked for traces, votes or judgements; the clients of `remote` have the same `ask`."""

    def ask(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[EndpointReply]:
        """Replies in the order of the requests, each once to `on_reply` as it comes; stored ones first."""
        ...


class LocalTeacher:
    """A model in this process: no key, no cost, and the same store of answers.

    Requests are answered in batches of fixed membership, each stored whole, so that a killed run asks for the same
    batches again and gets the same answers.
    """

    def __init__(
        self,
        name: str,
        settings: dict[str, Any],
        answer: Answer,
        answers: Answers,
        batch_size: int = 64,
        stop: Callable[[], None] = lambda: None,
    ):
        """Makes a teacher.

        Args:
            name: identity of the weights, part of an answer's key.
            settings: of the sampling, likewise.
            answer: (conversations, a number below 2**32 for the randomness of each) -> (text, tokens, cut short).
            batch_size: requests answered together.
            stop: called between batches; raises where the run should end.
        """
        self.name, self._settings, self._answer, self._answers = name, settings, answer, answers
        self._batch_size, self._stop = batch_size, stop

    def ask(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[EndpointReply]:
        """Replies in the order of the requests."""
        keys = [content_key(request, self.name, self._settings) for request in requests]
        replies: dict[str, EndpointReply] = {}
        for start in range(0, len(keys), self._batch_size):
            batch = range(start, min(start + self._batch_size, len(keys)))
            if any(self._answers.get(keys[i]) is None for i in batch):
                self._stop()
                self._ask([requests[i] for i in batch], [keys[i] for i in batch])
            for i in batch:
                replies[keys[i]] = self._answers.get(keys[i]) or EndpointReply(keys[i], error="no answer")
                if on_reply is not None:
                    on_reply(i, replies[keys[i]])
        return [replies[key] for key in keys]

    def _ask(self, requests: list[Request], keys: list[str]) -> None:
        started, clock = time.time(), time.monotonic()
        texts = self._answer([list(map(dict, r.messages)) for r in requests], [int(key[:8], 16) for key in keys])
        seconds = (time.monotonic() - clock) / len(keys)
        attempts, replies = [], []
        for key, (text, tokens, cut) in zip(keys, texts, strict=True):
            usage = Usage(completion=tokens)
            attempts.append(Attempt(key, started, seconds, 0, "answered", usage=usage, host="in-process"))
            replies.append(EndpointReply(key, text, "length" if cut else "stop", model=self.name, usage=usage))
        self._answers.put(attempts, replies)
