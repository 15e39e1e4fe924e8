"""Whoever reads an image sees one picture: training, endpoints, torch, evaluation, contamination, review, pages."""

import base64
import hashlib
import io
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import mmedexpert_jax
from mmedexpert_jax.data import contamination, load_cases
from mmedexpert_jax.data.benchmarks import from_case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.medeval import eval_page, prompt_styles
from mmedexpert_jax.medeval.backends import torch_model
from mmedexpert_jax.medeval.controls import variants
from mmedexpert_jax.medeval.eval_job import sample_rows
from mmedexpert_jax.medeval.evaluate import Evaluation, judged
from mmedexpert_jax.mmedexpert.record import held
from mmedexpert_jax.mmedexpert.review.review_traces import encoded as shown_in_review
from mmedexpert_jax.mmedexpert.review.review_traces import from_case as from_data_set
from mmedexpert_jax.mmedexpert.sources import collect
from mmedexpert_jax.mmedexpert.sources.canonical import clean
from mmedexpert_jax.processing import open_image
from mmedexpert_jax.processing.images import ImageRef, decode, spread
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.processing.windows import View
from mmedexpert_jax.remote import Request
from mmedexpert_jax.remote.messages import content_key, data_uri, estimate_tokens, image_hash
from mmedexpert_jax.rollout import Reply

RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (30, 40, 3), np.uint8))
RAMP = np.linspace(0, 65535, 30 * 40).reshape(30, 40).astype(np.uint16)


def saved(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    if "append_images" in options:  # an image keeps the settings that it was saved with
        options["append_images"] = [Image.fromarray(np.asarray(other)) for other in options["append_images"]]
    image.copy().save(buffer, format, **options)
    return buffer.getvalue()


def oriented(number: int, format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[274] = number
    return saved(RGB, format, exif=exif)


def dicom(**header) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2"
    dataset.PatientName = "Doe^Jane"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PixelRepresentation = "MONOCHROME1", 1, 0
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 30, 40, 16, 16, 15
    dataset.PixelData = RAMP.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


LA = np.stack([RAMP // 257, 65535 - RAMP // 257], -1).astype(np.uint8)
SMALL = RGB.resize((20, 15))
FILES = {
    "rgb.png": saved(RGB),
    "grey.png": saved(RGB.convert("L")),
    "one-bit.png": saved(RGB.convert("1")),
    "palette.png": saved(RGB.quantize(16)),
    "clear-palette.png": saved(RGB.quantize(16), transparency=3),
    "rgba.png": saved(Image.fromarray(np.dstack([np.asarray(RGB), RAMP // 257]).astype(np.uint8))),
    "clear-rgb.png": saved(RGB, transparency=RGB.getpixel((3, 4))),
    "la.png": saved(Image.fromarray(LA)),
    "16.png": saved(Image.fromarray(RAMP)),
    "16.tif": saved(Image.fromarray(RAMP), "TIFF"),
    "16-big.tif": saved(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
    "float.tif": saved(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    "32.tif": saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "lzw.tif": saved(RGB, "TIFF", compression="tiff_lzw"),
    "cmyk.tif": saved(RGB.convert("CMYK"), "TIFF"),
    "lab.tif": saved(RGB.convert("RGB").convert("YCbCr"), "TIFF"),
    "cmyk.jpg": saved(RGB.convert("CMYK"), "JPEG"),
    "grey.jpg": saved(RGB.convert("L"), "JPEG"),
    "progressive.jpg": saved(RGB, "JPEG", progressive=True, quality=95, subsampling=0),
    **{f"exif-{n}.jpg": oriented(n) for n in range(1, 9)},
    "exif-6.png": oriented(6, "PNG"),
    "exif-6.webp": oriented(6, "WEBP"),
    "exif-6.tif": oriented(6, "TIFF"),
    "lossless.webp": saved(RGB, "WEBP", lossless=True),
    "still.gif": saved(RGB.quantize(16), "GIF"),
    "bmp.bmp": saved(RGB, "BMP"),
    "j2k.jp2": saved(RGB, "JPEG2000"),
    "camera.mpo": saved(RGB, "MPO", save_all=True, append_images=[SMALL]),
    "commented.png": saved(RGB, pnginfo=None, icc_profile=b"x" * 200),
    "scan.dcm": dicom(),
}
BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0) + b"\0" * 4
REFUSED = {
    "moving.gif": saved(RGB, "GIF", save_all=True, append_images=[SMALL.resize(RGB.size)]),
    "pages.tif": saved(RGB, "TIFF", save_all=True, append_images=[SMALL]),
    "moving.webp": saved(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]),
    "moving.png": saved(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)]),
    "12-bit.png": saved(Image.fromarray((RAMP >> 4).astype(np.uint16))),
    "cut.png": FILES["rgb.png"][:600],
    "cut.jpg": FILES["progressive.jpg"][: len(FILES["progressive.jpg"]) // 2],
    "words.png": b"no image at all",
    "empty.png": b"",
    "nan.tif": saved(Image.fromarray(np.full((5, 5), np.nan, np.float32)), "TIFF"),
    "bomb.png": b"\x89PNG\r\n\x1a\n"
    + b"\0\0\0\rIHDR"
    + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    + b"\0" * 4,
}


def readers(data: bytes, tmp_path, **view) -> dict[str, np.ndarray]:
    """What each reader of the product sees of one file, [H, W, 3], of which a view may choose one picture."""
    (tmp_path / "x").write_bytes(data)
    row = {"id": "1", "question": "What?", "options": ["a", "b"], "answer": "A", "images": [{"path": "x", **view}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    (case,) = load_cases(tmp_path, "train")
    (image,) = case.images
    item = from_case(case)
    (opened,) = prompt_styles.opened(prompt_styles.build(item, "think_answer").messages)
    part = next(part for part in opened["content"] if part["type"] == "image")
    (spoken,) = spread([{"type": "image", "image": data, **view}])
    uris = [data_uri(one, 4000) for one in (image, image.picture(), spoken["image"])]
    (answer,) = judged(item, [Reply("<answer>A</answer>", 1, False)])
    (raw,) = collect_row(row, tmp_path).images
    reviewed = from_data_set(case).case.images[0]
    sample = sample_rows(Evaluation((answer,)), [item])[0]["images"][0]
    (blank,) = variants([item], "blank")[0].items[0].images
    seen = {
        "training": image.picture(),
        "evaluation": open_image(part["image"]),
        "torch": torch_model._plain([{"role": "user", "content": [part]}])[0]["content"][0]["image"],
        "report of a run": sample,
        "review": shown(shown_in_review(reviewed)[0]),
        "collected": raw.picture(),
        "teacher": shown(base64.b64decode(data_uri(raw.open(), 4000).partition(",")[2])),
        **{f"data URI {n}": open_image(uri) for n, uri in enumerate(uris)},
        **{f"endpoint {n}": shown(base64.b64decode(uri.partition(",")[2])) for n, uri in enumerate(uris)},
    }
    assert blank.picture().size == seen["training"].size
    (page,) = eval_page._pictures(tmp_path, item)  # a JPEG of it
    on_page = np.asarray(Image.open(tmp_path / page), float)
    assert on_page.shape == np.asarray(seen["training"]).shape
    assert np.abs(on_page.mean() - np.asarray(seen["training"], float).mean()) < 8
    pixels = hashlib.sha256(f"{seen['training'].size}".encode() + seen["training"].tobytes()).hexdigest()
    assert contamination.look(case.images[0].plain()).pixels == pixels
    return {name: np.asarray(image) for name, image in seen.items()}


def shown(data: bytes) -> Image.Image:
    """As any program shows an ordinary file."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def collect_row(row: dict, folder):
    """The factory's record of a raw case. Raises DataError where the row is refused."""
    (folder / "raw.jsonl").write_text(json.dumps(row))
    found = collect([str(folder / "raw.jsonl")])
    if found.rejected:
        raise DataError(found.rejected[0]["detail"])
    return found.records[0]


MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I", "F")
FORMATS = ("PNG", "TIFF", "JPEG", "WEBP", "GIF", "BMP", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "MPO")


@st.composite
def image_files(draw) -> tuple[bytes, dict]:
    """A file of any mode that any format takes, perhaps turned, transparent or of several pages, and a view of it."""
    mode, format = draw(st.sampled_from(MODES)), draw(st.sampled_from(FORMATS))
    wide, high = draw(st.integers(8, 40)), draw(st.integers(8, 40))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    pages = draw(st.sampled_from((1, 1, 1, 3)))

    def page() -> Image.Image:
        if mode in ("I;16", "I;16B", "I"):
            values = rng.integers(0, 65_536, (high, wide)).astype(">u2" if mode == "I;16B" else np.uint16)
            return Image.fromarray(values.astype(np.int32) if mode == "I" else values)
        if mode == "F":
            return Image.fromarray(rng.random((high, wide), np.float32))
        colours = Image.fromarray(rng.integers(0, 256, (high, wide, 4), np.uint8), "RGBA")
        return colours.quantize(16) if mode == "P" else colours.convert(mode)

    options = {}
    if draw(st.booleans()) and format in ("PNG", "TIFF", "JPEG", "WEBP"):
        options["exif"] = Image.Exif()
        options["exif"][274] = draw(st.integers(1, 8))
    if draw(st.booleans()) and format in ("PNG", "GIF") and mode in ("P", "L"):
        options["transparency"] = draw(st.integers(0, 15))
    if pages > 1 and format in ("TIFF", "GIF", "WEBP", "PNG"):
        options |= {"save_all": True, "append_images": [page() for _ in range(pages - 1)]}
    view = draw(st.sampled_from([{}, {"slices": [0]}, {"slices": 1}, {"slices": [pages - 1]}, {"window": "full"}]))
    buffer = io.BytesIO()
    try:
        page().save(buffer, format, **options)
    except (OSError, ValueError, KeyError, TypeError):
        assume(False)  # the format does not take the mode
    return buffer.getvalue(), view


@given(image_files())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_any_file_is_one_picture_to_every_reader_or_one_line(tmp_path_factory, made):
    data, view = made
    folder = tmp_path_factory.mktemp("any")
    try:
        expected = np.asarray(open_image(data, "it", **view))
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        with pytest.raises(DataError):
            readers(data, folder, **view)
        with pytest.raises(DataError):
            collect_row(
                {"question": "What?", "options": ["a", "b"], "answer": "A", "images": [{"path": "x", **view}]}, folder
            )
        return
    for reader, pixels in readers(data, folder, **view).items():
        np.testing.assert_array_equal(pixels, expected, err_msg=f"{reader} sees another picture")


@pytest.mark.parametrize("name", FILES)
def test_every_reader_sees_the_same_pixels(name, tmp_path):
    seen = readers(FILES[name], tmp_path)
    for reader, pixels in seen.items():
        np.testing.assert_array_equal(pixels, seen["training"], err_msg=f"{reader} sees another picture")
    assert seen["training"].shape == ((40, 30, 3) if name in UPRIGHT else (30, 40, 3))
    assert len(np.unique(seen["training"])) > 1


UPRIGHT = {f"exif-{n}.jpg" for n in (5, 6, 7, 8)} | {f"exif-6.{kind}" for kind in ("png", "webp", "tif")}


@pytest.mark.parametrize("name", REFUSED)
def test_every_reader_refuses_the_same_files_in_one_line(name, tmp_path):
    from mmedexpert_jax.errors import DataError

    data = REFUSED[name]
    attempts = [lambda: open_image(data, "it"), lambda: data_uri(data, 100), lambda: clean(data, "it")]
    attempts += [lambda: contamination.look(data), lambda: shown_in_review(held("it", data))]
    attempts += [lambda: readers(data, tmp_path), lambda: held("it", data).picture()]
    for attempt in attempts:
        with pytest.raises(DataError) as error:
            attempt()
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_sixteen_bit_ramp_has_all_levels_and_says_when_it_would_be_black(tmp_path):
    assert len(np.unique(readers(FILES["16.png"], tmp_path)["endpoint 0"])) == 256
    data = REFUSED["12-bit.png"]
    by_range = np.asarray(open_image(data, window="range"))
    assert len(np.unique(by_range)) == 256 and np.asarray(open_image(data, window="full")).max() == 16
    assert np.array_equal(by_range, np.asarray(open_image(data, window=[2047.5 + 0.5, 4096])))


def test_an_image_part_may_choose_window_and_slices(tiny_tokenizer_dir):
    buffer = io.BytesIO()
    pages = [Image.fromarray(np.full((56, 56), value, np.uint16)) for value in (100, 900, 2000)]
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    data = buffer.getvalue()
    part = {"type": "image", "image": data, "window": [1000, 2000], "slices": [0, 2], "max_pixels": 56 * 56}
    talk = [{"role": "user", "content": [part, {"type": "text", "text": "Which?"}]}]
    shown = decode(data, window=[1000, 2000], slices=[0, 2])
    first, second, text = spread(talk[0]["content"])
    assert [np.array(one["image"]).tolist() for one in (first, second)] == [np.array(one).tolist() for one in shown]
    assert first["max_pixels"] == 56 * 56 and "slices" not in first and text["text"] == "Which?"
    processor = Processor.load(tiny_tokenizer_dir)
    plain = [{"role": "user", "content": [first, second, text]}]
    assert processor.encode(talk).tokens.tolist() == processor.encode(plain).tokens.tolist()
    assert estimate_tokens(Request(talk)) == estimate_tokens(Request(plain))
    other = [{"role": "user", "content": [part | {"slices": [1, 2]}, text]}]
    assert content_key(Request(talk), "m", {}) != content_key(Request(other), "m", {})
    with pytest.raises(DataError, match="no slice 7"):
        processor.encode([{"role": "user", "content": [part | {"slices": [7]}]}])


def test_two_slices_of_one_file_are_two_images_to_a_store():
    one, two = (ImageRef("v", lambda: b"file", View(slices=(place,))) for place in (0, 1))
    assert image_hash(one) != image_hash(two) and image_hash(ImageRef("v", lambda: b"file")) == image_hash(b"file")


def test_nothing_else_of_the_package_opens_images():
    """But for privacy, which reads headers and no pixel."""
    package = Path(mmedexpert_jax.__file__).parent
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"\bImage\.open\(|\bdcmread\(|\bnibabel\.load\(|\bimread\(", file.read_text())
    }
    assert found == {"processing/images.py", "processing/medical.py", "privacy.py"}
