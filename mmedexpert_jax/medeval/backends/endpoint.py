"""Answers by an endpoint of the OpenAI protocol: vLLM, SGLang, a hosted model."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmedexpert_jax.errors import DataError, RemoteError
from mmedexpert_jax.medeval.backends.base import OnReply, Refuse
from mmedexpert_jax.medeval.prompt_styles import Question, opened
from mmedexpert_jax.remote import Answers, Client, Endpoint, EndpointReply, Request
from mmedexpert_jax.remote.client import UNREADABLE
from mmedexpert_jax.rollout import Reply

PART = 16  # requests for each one in flight that are prepared together, their images in memory


class EndpointBackend:
    """A model behind an endpoint; attempts and costs stand in an SQLite file beside the answers."""

    def __init__(self, endpoint: Endpoint, history: Answers, interrupted: Callable[[], int | None] = lambda: None):
        """Raises ConfigError where the key's variable is not set."""
        self.identity: Mapping[str, Any] = {
            "endpoint": endpoint.model,
            "effort": endpoint.effort,
            "image_side": endpoint.image_side,
        }
        self._history = history
        history.say_elsewhere(endpoint.host)
        self._client = Client(endpoint, history, interrupted)
        self._part = PART * endpoint.concurrency

    def answer(
        self, asked: Sequence[Question], num_samples: int, on_reply: OnReply, refuse: Refuse | None = None
    ) -> None:
        """As in `Backend`.

        Raises:
            RemoteError: the endpoint refuses, has no quota left, or gives no answer to a conversation, by its name, and
                `refuse` is None.
            DataError: an image of a conversation cannot be read, and `refuse` is None.
        """
        size = max(1, self._part // num_samples)
        for start in range(0, len(asked), size):
            self._answer(asked, range(start, min(start + size, len(asked))), num_samples, on_reply, refuse)

    def _answer(
        self, asked: Sequence[Question], numbers: range, num_samples: int, on_reply: OnReply, refuse: Refuse | None
    ) -> None:
        places, requests = [], []
        for number in numbers:
            try:
                messages = opened(asked[number].messages)
            except DataError as error:
                if refuse is None:
                    raise
                refuse(number, error)
                continue
            requests += [Request(messages, sample) for sample in range(num_samples)]
            places += [(number, sample) for sample in range(num_samples)]
        found: dict[int, dict[int, EndpointReply]] = defaultdict(dict)

        def settle(index: int, reply: EndpointReply) -> None:
            number, sample = places[index]
            found[number][sample] = reply
            if len(found[number]) == num_samples and not any(reply.error for reply in found[number].values()):
                on_reply(number, [_reply(found[number][sample]) for sample in range(num_samples)])

        self._client.ask(requests, settle)
        for number, replies in found.items():
            if errors := [reply.error for reply in replies.values() if reply.error]:
                unreadable = errors[0].startswith(UNREADABLE)
                said = errors[0] if unreadable else f"{self._client.endpoint.host} gave no answer ({errors[0]})"
                problem = DataError(f"{asked[number].name}: {said}")
                if refuse is not None:
                    refuse(number, problem)
                elif unreadable:
                    raise problem
                else:
                    raise RemoteError(f"{problem}; the same command asks again, skip_broken=True goes on without it")

    def close(self) -> None:
        """Closes the history."""
        self._history.close()


def _reply(reply: EndpointReply) -> Reply:
    return Reply(reply.text, reply.usage.completion, reply.finish == "length", reply.reasoning)
