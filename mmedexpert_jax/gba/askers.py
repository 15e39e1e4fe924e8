"""Models that rewards ask, at endpoints and in process. A reply is stored, and its text not sent again.

An asker maps texts to replies, "" where there is none. Equal texts are asked once.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmedexpert_jax import border, privacy
from mmedexpert_jax.errors import RemoteError
from mmedexpert_jax.rounding import round_up
from mmedexpert_jax.runtime import processes

Asker = Callable[[Sequence[str]], list[str]]
Network = Callable[[], tuple[Any, dict, Any, Any]]  # model, parameters, deltas, processor
OWN = "policy"  # path of the run's own model, as it begins
BATCH = 16  # texts that a model in process reads together
UNREACHED = "connection: ConnectError"  # begins the error of a request that no try could bring to a server


def endpoint_asker(endpoint: Any, store: Path, embeds: bool = False) -> Asker:
    """Asks a chat, or with `embeds` /embeddings. Raises RemoteError when it is called."""
    from mmedexpert_jax import remote

    def ask(texts: Sequence[str]) -> list[str]:
        store.parent.mkdir(parents=True, exist_ok=True)
        distinct = list(dict.fromkeys(texts))
        with contextlib.closing(remote.Answers(store)) as history:
            client = (remote.EmbeddingClient if embeds else remote.Client)(endpoint, history)
            role = "embedding" if embeds else "user"
            requests = [remote.Request([{"role": role, "content": text}]) for text in distinct]
            replies = client.ask(requests)
        # A text may be what a server fails on; where it cannot be reached, or fails on every text, it is no opinion.
        failed = [reply.error for reply in replies if reply.error]
        if down := [error for error in failed if error.startswith(UNREACHED) or len(failed) == len(replies) > 1]:
            raise RemoteError(
                f"{endpoint.host} answers nothing ({border.cut(down[0], 120)}); see that it is up and takes such "
                "texts, then run the same command"
            )
        by_text = {text: reply.text for text, reply in zip(distinct, replies, strict=True)}
        return [by_text[text] for text in texts]

    return ask


def stored(answer: Asker, name: str, store: Path) -> Asker:
    """The asker of a model in process, over the same kind of store as an endpoint's. `name` is part of the keys, so
    that another model, or the same for another purpose, is asked anew. Of several processes each has a file of its
    own, since machines that share a file system must not share one of SQLite's."""
    from mmedexpert_jax import remote
    from mmedexpert_jax.remote.messages import content_key

    if processes.index():
        store = store.with_stem(f"{store.stem}-{processes.index()}")

    def ask(texts: Sequence[str]) -> list[str]:
        store.parent.mkdir(parents=True, exist_ok=True)
        keys = {
            text: content_key(remote.Request([{"role": "user", "content": text}]), name, {})
            for text in dict.fromkeys(texts)
        }
        with contextlib.closing(remote.Answers(store)) as history:
            known = {text: reply.text for text, key in keys.items() if (reply := history.get(key))}
            rest = [text for text in keys if text not in known]
            for text, new in zip(rest, answer(rest), strict=True) if rest else ():
                history.put([], [remote.EndpointReply(keys[text], new, "stop", model=name)])
                known[text] = new
        return [known[text] for text in texts]

    return ask


def guarded(ask: Asker, mode: str) -> Asker:
    """An asker that sends what the privacy mode allows; under "refuse" one that may identify a person gets no reply."""

    def careful(texts: Sequence[str]) -> list[str]:
        if mode == "redact":
            return ask([privacy.redact(text) for text in texts])
        kept = [text for text in texts if mode != "refuse" or not privacy.scan(text, "question")]
        replies = dict(zip(kept, ask(kept), strict=True))
        return [replies.get(text, "") for text in texts]

    return careful


def network_of(path: str, own: Network | None) -> Network:
    """The model at a path, loaded when it is first asked, or the run's own for "policy"."""
    if path == OWN and own is not None:
        return own

    @functools.cache
    def network() -> tuple[Any, dict, Any, Any]:
        from mmedexpert_jax.models import load_policy, load_processor
        from mmedexpert_jax.models.load import chosen

        with chosen():  # the base, quantisation and images that the job chose are the policy's
            return (*load_policy(path), load_processor(path))

    return network


def chat_of(network: Network, max_tokens: int) -> Asker:
    """A model's greedy answers to texts."""

    def answer(texts: Sequence[str]) -> list[str]:
        from mmedexpert_jax.rollout.engine import Engine, Settings

        model, params, deltas, processor = network()
        settings = Settings(max_new_tokens=max_tokens, temperature=0.0, batch_size=BATCH)
        engine = Engine(model, params, processor, settings, lora=deltas)
        replies = dict(engine.answer([{"role": "user", "content": text}] for text in texts))
        return [replies[place][0].text for place in range(len(texts))]

    return answer


def tower_of(network: Network) -> Asker:
    """Means of a decoder's last hidden states over a text's tokens, as JSON."""

    def embed(texts: Sequence[str]) -> list[str]:
        model, params, deltas, processor = network()
        batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        rows = (row for batch in batches for row in _means(model, params, deltas, processor, batch))
        return [json.dumps([round(float(x), 6) for x in row]) for row in rows]

    return embed


def _means(model: Any, params: dict, deltas: Any, processor: Any, texts: Sequence[str]) -> np.ndarray:
    """[texts, D] float32; batches of BATCH texts, their lengths in multiples of 64, are few shapes to compile."""
    import jax
    import jax.numpy as jnp

    filled = [*texts, *[""] * (BATCH - len(texts))]
    encoded = [processor.encode([{"role": "user", "content": text}]) for text in filled]
    longest = max(len(one.tokens) for one in encoded)
    batch = processor.collate(encoded, min_length=round_up(longest, 64))
    # of the class, which is one object: a bound method is another at every call, and would be compiled at every call
    prefill = jax.jit(type(model).prefill, static_argnums=0)
    hidden = prefill(model, params, batch, deltas).hidden.astype(jnp.float32)
    mask = jnp.arange(hidden.shape[1]) < batch.lengths[:, None]
    means = jnp.where(mask[..., None], hidden, 0).sum(axis=1) / batch.lengths[:, None]
    return np.asarray(means)[: len(texts)]
