"""Embeddings of texts by an endpoint, asked, bounded and stored as the answers of a chat are."""

import json
import math
from typing import Any

from mmedexpert_jax.remote import messages, outcomes
from mmedexpert_jax.remote.client import Ask, Client
from mmedexpert_jax.remote.outcomes import Outcome
from mmedexpert_jax.remote.protocol import EndpointReply, Request, Usage


class EmbeddingClient(Client):
    """Asks /embeddings for the one text of each request; the text of its reply is the vector as JSON."""

    async def _ask_one(self, key: str, request: Request) -> EndpointReply | None:
        text = request.messages[0]["content"]
        ask = Ask(
            key,
            {"model": self.endpoint.model, "input": text, "encoding_format": "float"},
            messages.estimate_tokens(request),
            self.worst_cost(request),
        )
        return await self._until_answered(ask)

    async def _send(self, body: dict[str, Any]) -> Any:
        return await self._api.embeddings.with_raw_response.create(**body)

    def _read(self, status: int, headers: dict[str, str], content: bytes) -> Outcome:
        if status != 200:
            return outcomes.classify(status, headers, content, self._key)
        body = outcomes.json_object(content, self._key)
        vector = _vector(body)
        if vector is None:
            return Outcome("malformed", "a body without data[0].embedding, numbers", billed=True)
        tokens = outcomes.detail_count(body, "usage", "prompt_tokens")
        usage = None if tokens is None else Usage(tokens)
        return Outcome("answered", reply=EndpointReply("", json.dumps(vector), "stop"), billed=True, usage=usage)


def _vector(body: Any) -> list[float] | None:
    """The first embedding of a body; None where it is no list of finite numbers."""
    data = body.get("data")
    first = data[0] if isinstance(data, list) and data else None
    vector = first.get("embedding") if isinstance(first, dict) else None
    if not isinstance(vector, list) or not vector:
        return None
    good = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in vector)
    return [float(x) for x in vector] if good else None
