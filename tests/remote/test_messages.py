import base64
import io

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.images import open_image
from mmedexpert_jax.remote import Endpoint, Request
from mmedexpert_jax.remote.messages import data_uri, estimate_tokens, request_key, wire

END = Endpoint("http://localhost/v1", "m", image_side=64)


def picture(size=(100, 50), orientation: int | None = None) -> bytes:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = "patient name"
    if orientation:
        exif[0x0112] = orientation
    image.save(content, "jpeg", exif=exif)
    return content.getvalue()


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def asking(image, text="what is it?", sample=0) -> Request:
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return Request([{"role": "system", "content": "be brief"}, {"role": "user", "content": content}], sample)


def test_images_are_scaled_upright_and_without_metadata():
    sent = decoded(data_uri(picture(orientation=6), 64))
    assert sent.size == (32, 64) and not sent.getexif() and "exif" not in sent.info
    assert b"patient" not in base64.b64decode(data_uri(picture(), 64).partition("base64,")[2])


def test_the_wire_form_is_the_protocols(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(picture())
    system, user = wire(asking(path), END)
    assert system == {"role": "system", "content": "be brief"}
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]
    assert decoded(user["content"][0]["image_url"]["url"]).size == (64, 32)


def test_the_key_depends_on_all_that_shapes_the_answer_and_not_on_the_server(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(picture())
    base = request_key(asking(picture()), END)
    assert base == request_key(asking(path), END)
    assert base == request_key(asking(picture()), Endpoint("https://other/v1", "m", image_side=64, key_env=""))
    others = [
        request_key(asking(picture(), "what else?"), END),
        request_key(asking(picture((99, 50))), END),
        request_key(asking(picture(), sample=1), END),
        request_key(asking(picture()), Endpoint("http://localhost/v1", "m2", image_side=64)),
        request_key(asking(picture()), Endpoint("http://localhost/v1", "m", image_side=65)),
        request_key(asking(picture()), Endpoint("http://localhost/v1", "m", image_side=64, temperature=1.0)),
        request_key(asking(picture()), Endpoint("http://localhost/v1", "m", image_side=64, top_p=0.9)),
    ]
    assert len({base, *others}) == 8


def test_a_broken_image_is_one_line(tmp_path):
    with pytest.raises(DataError, match="an image: not an image"):
        data_uri(b"no image", 64)
    with pytest.raises(DataError, match=r"none\.png: no such image file"):
        data_uri(tmp_path / "none.png", 64)


def test_estimated_tokens_are_on_the_safe_side():
    text = "A 67-year-old woman has confusion and a respiratory rate of 32 per minute. " * 10
    assert estimate_tokens(Request([{"role": "user", "content": text}])) > len(text) / 4
    assert estimate_tokens(asking(picture())) > 1500


def test_what_is_sent_is_what_the_decoder_shows():
    """16-bit grey is neither clipped nor white, alpha lies on white."""
    sixteen = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 256, dtype=np.uint16).reshape(1, 256).repeat(4, 0)).save(sixteen, "png")
    sent = np.asarray(decoded(data_uri(sixteen.getvalue(), 256)))
    assert (sent == np.asarray(open_image(sixteen.getvalue()))).all() and len(np.unique(sent)) == 256
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(clear, "png")
    assert decoded(data_uri(clear.getvalue(), 4)).getpixel((0, 0)) == (255, 255, 255)


def test_tokens_of_scripts_other_than_latin_are_not_estimated_as_english():
    def estimated(text: str) -> int:
        return estimate_tokens(Request([{"role": "user", "content": text}]))

    assert estimated("a" * 3000) == 1000 + 8 and estimated("") == 8
    assert estimated("患者" * 800) == 1600 + 8  # most tokenizers take one for each character
    assert estimated("a" * 300 + "岁" * 5) == 100 + 5 + 8
