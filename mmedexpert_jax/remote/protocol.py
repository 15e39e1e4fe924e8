"""The records of a question to an endpoint: whom to ask, the request, the reply, and each attempt."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from mmedexpert_jax.errors import ConfigError, needs

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that speaks OpenAI's protocol, and how to use it."""

    url: str  # base, such as "https://api.openai.com/v1" or "http://localhost:8000/v1"
    # name sent with every request; part of an answer's key, as are `max_tokens`, `temperature`, `seed`, `effort`,
    # `image_side`, and `top_p` where it is sent
    model: str
    # environment variable that holds the key; "" sends none. The key itself is never stored or printed.
    key_env: str = "OPENAI_API_KEY"
    max_tokens: int = 2048  # of a completion, hidden reasoning included
    temperature: float | None = None  # None leaves it to the server
    top_p: float | None = None  # mass of the tokens that are sampled from; None leaves it to the server
    seed: int | None = 0  # sent plus the request's sample number; None sends none
    effort: str = ""  # reasoning effort, such as "medium"; "" sends none
    image_side: int = 1024  # longest side in pixels of images sent; larger ones are scaled down
    concurrency: int = 16  # requests in flight at most
    requests_per_minute: int = 0  # 0: no limit
    tokens_per_minute: int = 0  # prompt and completion together; 0: no limit
    timeout: float = 300.0  # seconds for one attempt
    max_attempts: int = 8  # per request and run
    retry_wait: float = 1.0  # seconds before the first retry; doubles from retry to retry, with jitter, up to 60
    budget: float = 0.0  # dollars that all attempts recorded in the store of answers may cost; 0: no limit
    price_input: float = 0.0  # dollars per million prompt tokens
    # dollars per million prompt tokens read from the server's cache; None: as price_input
    price_cached: float | None = None
    price_output: float = 0.0  # dollars per million completion tokens
    batch_discount: float = 0.5  # factor on prices for the Batch API; 0.5 as OpenAI publishes

    def __post_init__(self):
        try:
            parts = urlsplit(self.url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # such as "http://[::1/v1", or a port that is no number
            parts, whole = None, False
        if "@" in (parts.netloc if parts else self.url):  # never shown: it would end up in files and process lists
            raise ConfigError("the endpoint's url holds a user name or password; put the key where key_env names it")
        if not whole:
            raise ConfigError(f"endpoint url {self.url[:80]!r}: give http://host:port/v1 or https://host/v1")
        if parts and parts.path.rstrip("/").endswith("/completions"):
            raise ConfigError(f"endpoint url {self.url[:80]!r}: give the base alone, without /chat/completions")
        if not self.model:
            raise ConfigError(f"endpoint {self.host}: no model is named; give one that the server lists under /models")
        if self.budget > 0 and not self.price_input + self.price_output > 0:
            raise ConfigError("a budget needs prices: set price_input and price_output in dollars per million tokens")

    @property
    def host(self) -> str:
        """Host and port, for messages and histories."""
        return host_of(self.url)

    def key(self) -> str:
        """The key from the environment; "" where none is wanted. Raises ConfigError where it is missing."""
        if not self.key_env:
            return ""
        if key := os.environ.get(self.key_env, "").strip():
            if not key.isascii() or not key.isprintable():
                raise ConfigError(f"{self.key_env} holds characters that no key has; export it again, in one line")
            return key
        raise ConfigError(f"{self.key_env} is not set: export the key of {self.host}, or set key_env to an empty text")

    def cost(self, usage: "Usage", factor: float = 1.0) -> float:
        """Dollars for the tokens of an attempt; `factor` is the discount of the Batch API."""
        cached = self.price_input if self.price_cached is None else self.price_cached
        fresh = usage.prompt - usage.cached
        dollars = fresh * self.price_input + usage.cached * cached + usage.completion * self.price_output
        return factor * dollars / 1e6


def host_of(url: str) -> str:
    """Host and port of an address; "" of none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def endpoint(group: Any, **own: Any) -> Endpoint:
    """The endpoint that a config group describes by the names of its attributes, but for `own`. Raises ConfigError,
    also where the client is not installed, so that a plan says it."""
    needs("remote")
    if "kind" in group and not group.url:
        raise ConfigError(f'kind="{group.kind}" needs url and model, such as http://localhost:8000/v1')
    return Endpoint(**{item.name: group[item.name] for item in fields(Endpoint) if item.name in group} | own)


@dataclass(frozen=True)
class Request:
    """One question to a model."""

    # Hugging Face-style message list; image parts hold a PIL image, the bytes of a file, or a path
    messages: Sequence[Mapping[str, Any]]
    sample: int = 0  # number of the candidate: each sample of the same messages is an answer of its own


@dataclass(frozen=True)
class Usage:
    """Tokens of an attempt; `cached` are among `prompt`, `reasoning` among `completion`."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0


@dataclass(frozen=True)
class EndpointReply:
    """The answer to a request, or why there is none."""

    key: str  # content address of the request; the store of answers keeps its attempts under it
    text: str = ""  # the visible answer
    finish: str = ""  # "stop", "length", "content_filter" or another reason of the server; "" where there is no answer
    reasoning: str = ""  # hidden reasoning that some servers return beside the text
    model: str = ""  # that the server says has answered
    usage: Usage = field(default_factory=Usage)  # tokens of the attempt that answered
    cost: float = 0.0  # dollars of that attempt
    # optional fields of the request that the server refused, so that it was asked without them
    left_out: tuple[str, ...] = ()
    stored: bool = False  # taken from the store of answers, not asked now
    error: str = ""  # why there is no answer; "" where there is one


@dataclass(frozen=True)
class Attempt:
    """One try at a request, as history keeps it."""

    key: str  # of the request
    started: float  # seconds since 1970
    seconds: float  # it took
    status: int  # HTTP status; 0 where none came
    # "answered", "rate-limit", "server", "timeout", "connection", "malformed", "unsupported", "rejected", "quota" or
    # "refused"
    outcome: str
    detail: str = ""  # the server's words, cut short and without the key
    usage: Usage = field(default_factory=Usage)  # tokens
    cost: float = 0.0  # dollars; where the server may have billed without saying, the most it can have been
    response_id: str = ""  # the server's id of the response
    host: str = ""  # that was asked
