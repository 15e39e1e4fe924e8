"""Conversations on the wire: image parts become data URIs, and a request gets its content address."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmedexpert_jax.processing.images import ImageRef, content, open_image, spread
from mmedexpert_jax.remote.protocol import Endpoint, Request

IMAGE_TOKENS = 1500  # estimate for limits and budgets: a 1024 x 1024 image costs 765 to 1,445 tokens with OpenAI
CHARACTERS_PER_TOKEN = 3.0  # of ASCII, estimate on the safe side; English runs at about 4. Chinese runs at about 1


def wire(request: Request, endpoint: Endpoint) -> list[dict[str, Any]]:
    """The messages as the protocol has them. Images lose their metadata and are scaled to `endpoint.image_side`."""

    def encode(image: Any) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": data_uri(image, endpoint.image_side)}}

    return _mapped(request.messages, encode)


def content_key(request: Request, model: str, settings: Mapping[str, Any]) -> str:
    """Content address of a request: hash of model, settings, messages, images and sample number.

    Neither the server's address nor anything of our code enters it, so that answers outlive both;
    `Answers.say_elsewhere` tells where they come from another address.
    """

    def hashed(image: Any) -> dict[str, Any]:
        return {"type": "image", "sha256": image_hash(image)}

    asked = {
        "model": model,
        "settings": dict(settings),
        "messages": _mapped(request.messages, hashed),
        "sample": request.sample,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def request_key(request: Request, endpoint: Endpoint) -> str:
    """`content_key` of a request to an endpoint."""
    names = ("max_tokens", "temperature", "seed", "effort", "image_side")
    settings = {name: getattr(endpoint, name) for name in names}
    if endpoint.top_p is not None:
        settings["top_p"] = endpoint.top_p
    return content_key(request, endpoint.model, settings)


def estimate_tokens(request: Request) -> int:
    """Prompt tokens, estimated before anything is sent."""
    parts = [part for message in request.messages for part in _parts(message)]
    text = "".join(part.get("text", "") for part in parts)
    plain = len(text.encode("ascii", "ignore"))
    images = sum(part["type"] == "image" for part in parts)
    return round(plain / CHARACTERS_PER_TOKEN) + len(text) - plain + IMAGE_TOKENS * images + 8 * len(request.messages)


def image_hash(image: Any) -> str:
    """Hash of an image's file, or of its pixels where it is an open PIL image."""
    if isinstance(image, Image.Image):
        return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()
    if isinstance(image, ImageRef):
        return image.sha256  # of file and view: two slices of a volume are two images
    return hashlib.sha256(content(image, str(image)[:80])).hexdigest()


def data_uri(image: Any, side: int) -> str:
    """An image as a data URI: what the one decoder shows, at most `side` pixels long; PNG up to 512 kB, else JPEG.

    No metadata goes along, since the pixels are encoded anew. Raises DataError.
    """
    picture = open_image(image, name="" if isinstance(image, str | Path | ImageRef) else "an image")
    picture.thumbnail((side, side))
    clean = Image.frombytes("RGB", picture.size, picture.tobytes())
    encoded, kind = io.BytesIO(), "png"
    clean.save(encoded, "png")
    if encoded.tell() > 512 * 1024:
        encoded, kind = io.BytesIO(), "jpeg"
        clean.save(encoded, "jpeg", quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else spread(content)


def _mapped(messages: Sequence[Mapping[str, Any]], image: Callable[[Any], dict]) -> list[dict[str, Any]]:
    """Messages with every image part passed through `image`; a text alone becomes a plain string."""
    out = []
    for message in messages:
        parts = [
            image(part["image"]) if part["type"] == "image" else {"type": "text", "text": part["text"]}
            for part in _parts(message)
        ]
        alone = len(parts) == 1 and parts[0]["type"] == "text"
        out.append({"role": message["role"], "content": parts[0]["text"] if alone else parts})
    return out
