"""Patches against transformers' PIL processor, bit by bit, and the images that people really have."""

import base64
import gzip
import io
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_resize

from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.processing import ImageConfig, open_image, patchify, smart_resize
from mmedexpert_jax.processing.images import ImageRef, clean

ORIENTATION = 274  # EXIF tag


def noise(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    if mode == "1":
        return Image.fromarray(values[..., 0]).convert("1")
    if mode == "P":
        return Image.fromarray(values[..., 0]).convert("RGB").quantize(16)
    return Image.frombytes(mode, (width, height), values.tobytes())


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def reference_patches(image: Image.Image, min_pixels: int, max_pixels: int) -> tuple[np.ndarray, tuple[int, int]]:
    features = Qwen2VLImageProcessorPil(min_pixels=min_pixels, max_pixels=max_pixels)(image, return_tensors="np")
    _, rows, columns = features["image_grid_thw"][0].tolist()
    return features["pixel_values"], (rows, columns)


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["RGB", "L", "1", "P", "LA", "RGBA", "PA", "CMYK", "YCbCr", "HSV"]),
    width=st.integers(1, 330),
    height=st.integers(1, 330),
    max_pixels=st.sampled_from([3136, 3920, 25_088, 50_176, 401_408]),
)
@example(mode="RGB", width=1, height=1, max_pixels=401_408)
@example(mode="RGB", width=200, height=1, max_pixels=401_408)
@example(mode="L", width=3, height=600, max_pixels=401_408)
@example(mode="RGB", width=1400, height=900, max_pixels=401_408)
@example(mode="RGB", width=70, height=98, max_pixels=401_408)  # 2.5 and 3.5 steps: to the even ones
def test_patches_equal_transformers(mode: str, width: int, height: int, max_pixels: int):
    if max(width, height) > 200 * min(width, height):
        height = width = max(width, height)
    image = noise(mode, width, height, seed=width * 1000 + height)
    patches, grid = patchify(open_image(image), ImageConfig(max_pixels=max_pixels))
    expected, expected_grid = reference_patches(image, 3136, max_pixels)
    assert grid == expected_grid
    assert patches.dtype == np.float32
    assert np.array_equal(patches, expected)


@settings(max_examples=500, deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    min_pixels=st.integers(1, 20_000),
    extra=st.integers(784, 2_000_000),
)
@example(height=42, width=70, min_pixels=3136, extra=398_272)  # both sides half-way between two steps
def test_size_equals_transformers(height: int, width: int, min_pixels: int, extra: int):
    config = ImageConfig(min_pixels=min_pixels, max_pixels=min_pixels + extra)
    try:
        expected = reference_resize(height, width, 28, min_pixels, min_pixels + extra)
    except ValueError:
        with pytest.raises(DataError, match="200 to 1"):
            smart_resize(height, width, config)
    else:
        assert smart_resize(height, width, config) == expected


def test_half_steps_go_to_the_even_multiple():
    assert smart_resize(70, 98) == (56, 112)  # 2.5 -> 2, 3.5 -> 4


def test_other_patch_sizes_equal_transformers():
    image = noise("RGB", 123, 77)
    options = {"patch_size": 16, "temporal_patch_size": 4, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}
    expected = Qwen2VLImageProcessorPil(min_pixels=4096, max_pixels=401_408, **options)(image, return_tensors="np")
    patches, grid = patchify(image, ImageConfig.from_hf({"min_pixels": 4096, **options}))
    assert np.array_equal(patches, expected["pixel_values"])
    assert [1, *grid] == expected["image_grid_thw"][0].tolist()


def test_transparent_palette_and_grey_are_composited_on_white():
    palette = noise("P", 40, 30)
    transparent = open_image(encoded(palette, transparency=3))
    expected = reference_patches(Image.open(io.BytesIO(encoded(palette, transparency=3))), 3136, 401_408)
    assert np.array_equal(patchify(transparent)[0], expected[0])
    hidden = np.asarray(palette) == 3
    assert hidden.any()
    assert (np.asarray(transparent)[hidden] == 255).all()
    clear = Image.new("LA", (8, 8), (0, 0))
    assert np.asarray(open_image(clear)).min() == 255
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert np.unique(np.asarray(open_image(half))).tolist() == [127]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("opacity", [0, 1])
def test_a_picture_under_a_channel_that_hides_it_is_no_white_square(mode: str, opacity: int):
    """Programs leave alpha at 0, or write 1 for 255; transformers would show white."""
    picture = noise("RGB", 20, 16).convert(mode)
    picture.putalpha(opacity)
    for format in ("PNG", "TIFF"):
        with pytest.raises(DataError, match=r"scan\.png: a picture that is transparent everywhere; save it without"):
            open_image(encoded(picture, format), "scan.png")
    picture.putalpha(Image.fromarray(np.diag(np.full(20, 255, np.uint8))[:16]))
    assert len(np.unique(np.asarray(open_image(encoded(picture))))) > 2


def test_a_jpeg_cut_behind_its_preview_is_found_before_it_is_decoded():
    """A preview in a header has an end-of-image marker of its own."""
    preview = encoded(noise("RGB", 8, 8), "JPEG")
    whole = encoded(noise("RGB", 64, 48), "JPEG")
    data = whole[:2] + b"\xff\xe5" + struct.pack(">H", len(preview) + 2) + preview + whole[2:]
    assert ImageRef("scan.jpg", lambda: data).expand()[0].picture().size == (64, 48)
    with pytest.raises(DataError, match=r"scan\.jpg: .*truncated"):
        ImageRef("scan.jpg", lambda: data[:-200]).expand()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(noise("RGB", 48, 32), "JPEG", exif=exif)
    expected = np.asarray(load_image(Image.open(io.BytesIO(data))))
    assert np.array_equal(np.asarray(open_image(data)), expected)
    assert np.array_equal(np.asarray(open_image(Image.open(io.BytesIO(data)))), expected)
    assert expected.shape[:2] == ((48, 32) if orientation > 4 else (32, 48))


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_sixteen_bit_grey_is_scaled_by_its_full_range(byte_order: str):
    values = np.linspace(0, 65535, 64 * 48).astype(byte_order).reshape(48, 64)
    image = Image.fromarray(values)
    assert image.mode.startswith("I;16")
    for source in (image, encoded(image, "TIFF"), encoded(Image.fromarray(values.astype("<u2")), "PNG")):
        pixels = np.asarray(open_image(source))
        assert pixels.shape == (48, 64, 3)
        assert np.array_equal(pixels[..., 0], np.round(values.astype(np.float64) / 257).astype(np.uint8))


def test_integer_and_float_grey():
    ramp = np.linspace(0, 1, 100).reshape(10, 10).astype(np.float32)
    expected = np.round(ramp.astype(np.float64) * 255).astype(np.uint8)
    assert np.array_equal(np.asarray(open_image(Image.fromarray(ramp)))[..., 1], expected)
    assert np.array_equal(np.asarray(open_image(Image.fromarray(expected.astype(np.float32))))[..., 1], expected)
    wide = Image.fromarray(expected.astype(np.int32) * 257)
    assert np.array_equal(np.asarray(open_image(wide))[..., 1], expected)
    for values in (np.full((4, 4), -1000, np.int32), np.full((4, 4), 70_000, np.int32), np.full((4, 4), np.nan, "f4")):
        with pytest.raises(DataError, match=r"scan: grey values from .*; window them to 0..255"):
            open_image(Image.fromarray(values), "scan")


def test_bad_files_are_refused_by_name(tmp_path):
    whole = encoded(noise("RGB", 200, 200), "JPEG")
    frames = [noise("RGB", 20, 20, seed) for seed in range(3)]
    bad = {
        "cut.jpg": whole[: len(whole) // 2],
        "cut.png": encoded(noise("RGB", 200, 200))[:5000],
        "words.png": b"not an image",
        "nothing.png": b"",
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "pages.tif": encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name) as caught:
            open_image(tmp_path / name)
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match=r"row 7"):
            open_image(data, "row 7")
    for missing in (tmp_path / "gone.png", tmp_path, "https://example.org/a.png"):
        with pytest.raises(DataError, match=str(missing).split("/")[-1]):
            open_image(missing)
    with pytest.raises(DataError, match="empty"):
        open_image(Image.new("RGB", (0, 5)))
    with pytest.raises(DataError, match="image"):
        open_image(None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:a", "run git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC; save it as JPEG or PNG"),
        (b"%PDF-1.4\n", "a PDF; save its page as PNG"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG; save it as PNG"),
        (b"<!DOCTYPE html><title>403 Forbidden</title>", "a web page, perhaps an error of the server"),
        (b"NRRD0004\ntype: short\n", "NRRD; save it as NIfTI"),
        (b"\x93NUMPY\x01\0", "a NumPy array; save it"),
        (gzip.compress(b"no volume", mtime=0), "packed with gzip; unpack it"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc" + bytes(99), "HEIF; save it as JPEG or PNG"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(99), "AVIF that is broken"),
        (b"", "is empty (0 bytes); fetch the file again"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "EPS is a program, not a picture"),
    ],
)
def test_what_is_often_taken_for_an_image_is_named(content, words):
    with pytest.raises(DataError, match=re.escape(words)) as error:
        open_image(content, "scan.png")
    assert str(error.value).startswith("scan.png: ") and "\n" not in str(error.value)


def test_a_camera_preview_frame_is_not_an_animation():
    picture, preview = noise("RGB", 64, 48), noise("RGB", 16, 12)
    data = encoded(picture, "MPO", save_all=True, append_images=[preview])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert open_image(data).size == (64, 48)


def test_a_huge_image_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"slide: .*decompression bomb"):
        open_image(encoded(Image.new("L", (100, 100))), "slide")


def test_config_reads_old_and_new_files_and_caps_their_limit():
    old = {"min_pixels": 3136, "max_pixels": 12_845_056}
    new = {"size": {"shortest_edge": 3136, "longest_edge": 12_845_056}}
    assert ImageConfig.from_hf(old) == ImageConfig.from_hf(new) == ImageConfig.from_hf({}) == ImageConfig()
    assert ImageConfig.from_hf(old, max_pixels=1_003_520).max_pixels == 1_003_520
    assert ImageConfig.from_hf({"max_pixels": 50_176}).max_pixels == 50_176
    config = ImageConfig(min_pixels=784, max_pixels=50_176, mean=(0.1, 0.2, 0.3))
    assert ImageConfig.from_hf(config.to_hf()) == config
    reference = Qwen2VLImageProcessorPil(**config.to_hf())
    assert dict(reference.size) == {"shortest_edge": 784, "longest_edge": 50_176}
    assert ImageConfig.from_hf(reference.to_dict()) == config


def test_config_refuses_what_it_does_not_do():
    for values in ({"do_resize": False}, {"do_normalize": False}, {"resample": 2}, {"rescale_factor": 1.0}):
        with pytest.raises(DataError, match=next(iter(values))):
            ImageConfig.from_hf(values)
    for size in ({"height": 224, "width": 224}, {"longest_edge": 50_176}):
        with pytest.raises(DataError, match="not shortest_edge and longest_edge"):
            ImageConfig.from_hf({"size": size})
        with pytest.raises(ValueError, match="'shortest_edge' and 'longest_edge'"):  # transformers' word
            Qwen2VLImageProcessorPil(size=size)(Image.new("RGB", (56, 56)))
    for key, levels in (("image_mean", [122.77, 116.75, 104.09]), ("image_std", [68.5, 66.63, 70.32])):  # of OpenCV's
        with pytest.raises(DataError, match=rf"{key} \[.*\] is of levels to 255"):
            ImageConfig.from_hf({key: levels})
    with pytest.raises(DataError, match="merge_size"):
        ImageConfig(merge_size=4)
    with pytest.raises(ConfigError, match="below the 3136"):
        ImageConfig(max_pixels=1000)


def white_is_zero(image: Image.Image) -> bytes:
    """A TIFF of these stored values whose photometric interpretation says that 0 is white."""
    data, entry = encoded(image, "TIFF"), struct.pack("<HHI", 262, 3, 1)
    assert data.count(entry + b"\1\0") == 1
    return data.replace(entry + b"\1\0", entry + b"\0\0")


def test_a_tiff_whose_0_is_white_is_shown_so_at_any_depth():
    """Of 8 bits Pillow turns it itself; of 16 and of floats it leaves the values as they are stored."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.asarray(open_image(white_is_zero(Image.fromarray(grey))))
    assert expected[0, 0].tolist() == [255] * 3 and expected[-1, -1].tolist() == [0] * 3
    for deep in (grey.astype(np.uint16) * 257, (grey / 255).astype(np.float32)):
        assert np.array_equal(open_image(white_is_zero(Image.fromarray(deep))), expected)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("words", [b"Exif\0\0junk", b"MM", b"II*\0\xff\xff\xff\xff"])
def test_broken_words_of_a_png_hide_no_picture(words):
    image = noise("RGB", 30, 20)
    data = encoded(image)
    assert np.array_equal(open_image(data[:33] + chunk(b"eXIf", words) + data[33:]), image)


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colours [H, W, 3], which Pillow does not write."""

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_12_bits_in_16_are_refused_rather_than_black(tmp_path):
    colours = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    assert np.array_equal(open_image(deep_png(colours)), colours >> 8)
    assert not np.asarray(open_image(deep_png(0 * colours))).any(), "a blank is no scan"
    (tmp_path / "scope.png").write_bytes(deep_png(colours >> 4))
    for reader in (open_image, lambda path: clean(path.read_bytes(), "scope.png")):
        with pytest.raises(
            DataError, match=r"scope\.png: a 16-bit colour image with nearly all values of 12 bits at most"
        ):
            reader(tmp_path / "scope.png")
    spotted = colours >> 4
    spotted[3, 4] = 65535
    for content, bits in ((spotted, 12), (colours >> 2, 14)):
        with pytest.raises(DataError, match=f"a 16-bit colour image with nearly all values of {bits} bits at most"):
            open_image(deep_png(content))


@pytest.mark.parametrize("window", ["range", "full", (0.5, 1.0)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_window_hides_values_that_are_not_finite(value, window):
    """One of them would make the whole range, and so the picture, black."""
    values = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    values[2, 3] = value
    with pytest.raises(DataError, match="scan: grey values that are not finite"):
        open_image(Image.fromarray(values), "scan", window=window)


def test_base64_may_have_lines_and_needs_its_head():
    data = encoded(noise("RGB", 40, 30))
    lines = base64.encodebytes(data).decode()
    assert np.array_equal(open_image(f"data:image/png;base64,{lines}"), open_image(data))
    with pytest.raises(DataError, match="base64 without its head; begin it with") as caught:
        open_image(lines.replace("\n", ""))
    assert len(str(caught.value)) < 400


def test_schemes_have_no_case_and_base64_may_be_quoted(tmp_path):
    """RFC 3986, 3.1, and RFC 2397, whose data may hold %2B in the place of +."""
    data = encoded(noise("RGB", 40, 30))
    body = base64.b64encode(data).decode()
    for address in (f"DATA:image/png;base64,{body}", "data:image/png;BASE64," + body.replace("+", "%2B")):
        assert np.array_equal(open_image(address), open_image(data))
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(open_image(f"FILE://{tmp_path}/a.png"), open_image(data))
    for address in ("HTTPS://example.org/a.png", "s3://bucket/a.png"):
        with pytest.raises(DataError, match=f"{address}: images are not fetched from the web; .*download it first"):
            open_image(address)


def test_a_tiff_of_signed_bytes_and_a_name_alone_are_refused():
    signed = encoded(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)), "TIFF", tiffinfo={339: 2})
    with pytest.raises(DataError, match="scan: a TIFF of signed 8-bit values"):
        open_image(signed, "scan")
    with pytest.raises(DataError, match="scan: HDF5 is not decoded; save the picture as"):
        open_image(b"\x89HDF\r\n\x1a\n" + bytes(100), "scan")


@pytest.mark.parametrize(
    "shown",
    [
        lambda ramp: np.where(np.arange(ramp.size).reshape(ramp.shape) == 0, 65535, ramp * 16),  # a burnt-in letter
        lambda ramp: ramp,
        lambda ramp: ramp - 1,  # 8 bits in 16
        lambda ramp: (ramp - 1) // 2,  # 7 bits, as labels of many regions have them
        lambda ramp: 100 + ramp // 2,
        lambda ramp: ramp * 16 - 1024 + 32768,  # a CT, shifted
        lambda ramp: ramp * 63,  # 14 bits of a mammogram
        # 12 bits beside a letter with soft edges
        lambda ramp: np.where(np.arange(ramp.size).reshape(ramp.shape) < 40, 20000 + 200 * ramp, ramp * 15),
    ],
)
def test_grey_values_of_16_bits_that_would_be_nearly_one_grey_are_refused(shown):
    ramp = np.tile(np.arange(1, 257), (64, 1))
    data = encoded(Image.fromarray(shown(ramp).astype(np.uint16)), "PNG")
    with pytest.raises(DataError, match=r'nearly all grey values from .*give it a "window"'):
        open_image(data)
    assert np.asarray(open_image(data, window="full")).shape == (64, 256, 3)
    mask = Image.fromarray((ramp > 200).astype(np.uint16))  # two levels
    assert np.asarray(open_image(encoded(mask, "PNG"))).max() == 0


@pytest.mark.parametrize(
    "shown",
    [
        lambda ramp: np.where(ramp == 9, 0, 65535),  # a line on white
        lambda ramp: np.where(ramp == 9, 32768, np.where(ramp == 1, 65535, 0)),  # a mask with small regions
        lambda ramp: 15000 + 40 * ramp,  # little contrast
        lambda ramp: (11 + ramp // 16) * 257,  # a dark picture of 8 bits
        lambda ramp: ramp + 60000 // (1 + (ramp - 9) ** 2),  # a bright spot with an edge
        lambda ramp: np.where(np.arange(ramp.size).reshape(ramp.shape) < 90, ramp * 250, 0),  # thin lines on black
        lambda ramp: np.where(np.arange(ramp.size).reshape(ramp.shape) < 90, ramp * 250, 65535),  # a plot
        lambda ramp: (ramp % 60) * 256,  # a dark picture of 8 bits, shifted
    ],
)
def test_grey_values_of_16_bits_that_are_dark_or_few_are_shown(shown):
    values = shown(np.tile(np.arange(1, 257), (64, 1)))
    found = np.asarray(open_image(encoded(Image.fromarray(values.astype(np.uint16)), "PNG")))
    assert np.abs(found[..., 0] - values / 257).max() <= 1


def test_a_small_bright_spot_in_colours_of_16_bits_is_shown():
    colours = np.full((60, 60, 3), 2000, np.uint16)
    colours[30, 30] = 65535
    assert np.array_equal(open_image(deep_png(colours)), colours >> 8)
    dark = np.random.default_rng(0).integers(0, 16384, (60, 60, 3)).astype(np.uint16)
    dark[:20] = np.random.default_rng(0).integers(0, 65536, (20, 60, 3))  # a third of it is bright
    assert np.array_equal(open_image(deep_png(dark)), dark >> 8)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_cameras_words_are_cut_and_its_pixels_stay_as_they_were_packed(form):
    exif = Image.Exif()
    exif[271], exif[ORIENTATION] = "Canon", 1
    plain, told = (encoded(noise("RGB", 48, 32), form, **more) for more in ({}, {"exif": exif}))
    assert b"Canon" in told and clean(told, "x") == clean(plain, "x")
    exif[ORIENTATION] = 6
    assert clean(encoded(noise("RGB", 48, 32), "JPEG", exif=exif), "x").startswith(b"\x89PNG")
