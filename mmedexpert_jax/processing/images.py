"""The one decoder: any image file becomes 8-bit RGB pictures, the same for whoever trains on, sends or shows them."""

import base64
import binascii
import hashlib
import io
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmedexpert_jax import border
from mmedexpert_jax.border import one_line
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing import medical, segments
from mmedexpert_jax.processing.volumes import TURNS
from mmedexpert_jax.processing.windows import Frames, View, chosen, grey, settled, windowed

Source = Image.Image | bytes | str | Path
PLAIN = View()
Made = TypeVar("Made")
VIEWED = ("window", "slices", "plane")  # keys of an image part that choose what of its file is seen
PROGRAMS = ("EPS", "WMF")  # that Pillow hands to an interpreter of the system
STUBS = ("HDF5", "GRIB", "BUFR")  # that Pillow knows by name alone
# of the files of pictures that are taken from a folder
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".avif")
LONGEST = 200  # characters of a path in an error, in whose place base64 may stand
_WEB = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # of the web, or a cloud's (s3://, gs://)
ADDRESS = re.compile(rf"data:|file:|{_WEB.pattern}", re.IGNORECASE)  # of an image that is no path; schemes have no case
BASE64 = ("iVBO", "/9j/", "R0lG", "UklG")  # beginnings of PNG, JPEG, GIF and WebP in it
TAIL = 65_536  # bytes at a JPEG's end in which its end-of-image marker is looked for
DRAWN = 32  # levels of grey up to which a picture of 16 bits is a mask or a drawing
FAINT = 2  # opacity, of 255, up to which nothing of a pixel is seen: programs leave 0 or 1 in channels they do not use
ORIENTATION = 274  # EXIF's tag; 1: upright
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339  # TIFF's tags that say what 0 means (0: white), and the type (2: signed)


@dataclass(frozen=True)
class ImageRef:
    """One picture of a question, read and decoded only when it is asked for.

    Attributes:
        name: where it stands, for errors and reports.
        read: gives the encoded file; a picklable object, so that questions can travel between processes.
        view: window, plane and the one slice to be seen, where the file needs them.
    """

    name: str
    read: Callable[[], bytes] = field(repr=False, compare=False)
    view: View = PLAIN

    def open(self) -> bytes:
        """The encoded image file. Raises DataError, one line that names it, where it cannot be read."""
        try:
            return self.read()
        except DataError as error:
            if self.name in str(error):
                raise
            raise DataError(f"{self.name}: {error}") from None
        except FileNotFoundError:
            raise DataError(f"{self.name}: the image cannot be read: no such file") from None
        except Exception as error:  # a broken archive raises nearly anything
            reason = one_line(error)
            raise DataError(f"{self.name}: the image cannot be read ({reason}); fetch the file again") from None

    def plain(self) -> bytes:
        """A file that anyone decodes to this picture without a view: the file itself, or else PNG. Raises DataError."""
        return self.open() if self.view == PLAIN else EncodedImage(self.picture())()

    def picture(self) -> Image.Image:
        """The decoded picture, RGB. Raises DataError."""
        return open_image(self)

    def expand(self) -> tuple["ImageRef", ...]:
        """One reference for each picture that the view chooses, after a look at the file.

        Headers are read, and the end of a file; only what looks cut is decoded, which makes this cheap enough for
        every row of a large set. Raises DataError.
        """
        if self.view == PLAIN and self._looks_whole():
            return (self,)
        stack = _stack(self.open(), self.name, self.view)
        if stack.count == 1 and self.view.slices is None:
            self.picture()
            return (self,)
        places = chosen(stack.count, self.view.slices, self.name)
        return tuple(
            replace(self, name=f"{self.name}, slice {place}", view=replace(self.view, slices=(place,)))
            for place in places
        )

    @cached_property
    def sha256(self) -> str:
        """Hash of the encoded file, 64 hexadecimal digits, the same wherever the file lies; of file and view where
        the view says something."""
        digest = hashlib.sha256(self.open())
        if self.view != PLAIN:
            digest.update(repr(self.view).encode())
        return digest.hexdigest()

    def _looks_whole(self) -> bool:
        """True for an ordinary PNG or JPEG file that looks whole. Raises DataError where it is too large."""
        opener = getattr(self.read, "open", None)  # a file is not read into memory for this
        try:
            with opener() if opener else io.BytesIO(self.open()) as file:
                return _whole(file, self.name)
        except (OSError, ValueError):  # no such file; a NUL in its name
            self.open()  # says why
            return False


@dataclass(frozen=True)
class EncodedImage:
    """A picture made in memory as an encoded file; by default without compression, so that the bytes do not depend on
    the library's version."""

    image: Image.Image
    compress: int = 0

    def __call__(self) -> bytes:
        """The picture as PNG."""
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG", compress_level=self.compress)
        return buffer.getvalue()


def in_turn(sources: Iterable[Any]) -> AbstractContextManager:
    """A context in which several slices of volumes are looked at, by one thread at a time; of other sources an empty
    one."""
    sliced = any(isinstance(source, ImageRef) and source.view.slices is not None for source in sources)
    return TURNS if sliced else nullcontext()


def in_memory(image: Image.Image, name: str = "image") -> ImageRef:
    """A reference to a picture that is held in memory."""
    return ImageRef(name, EncodedImage(image))


def decode(
    source: Source | ImageRef,
    *,
    name: str = "",
    window: Any = None,
    slices: int | Sequence[int] | None = None,
    plane: str | None = None,
) -> tuple[Image.Image, ...]:
    """Any image file as 8-bit RGB pictures, upright and without metadata; what is not chosen is not decoded.

    The EXIF orientation is applied. Transparency is composited on white, as transformers' `convert_to_rgb` does
    (its `load_image`, used for paths, drops alpha instead and shows whatever colour hides under it). 16-bit grey is
    scaled by its full range; one whose values lie within its lowest quarter, or nearly all within a sixteenth, is
    refused without a window, as one grey (Pillow and so transformers clip it at 255). Floats are read as 0..1 when none
    exceeds 1, else as 0..255.
    DICOM: `processing.medical`, NIfTI: `processing.nifti`.

    Args:
        source: path, encoded file, data: or file: URI, opened image, or reference (whose own view then counts).
        name: what an error calls the image; a path names itself.
        window: of grey values: (centre, width) as DICOM's linear function has it, a preset of `windows.PRESETS` for
            Hounsfield units, "range" (darkest to brightest; of a volume, those of all its slices), "full" (of the bit
            depth), or three of these, one for each colour channel; None: the file's own, or the rule above.
        slices: of a file of several pictures (pages, frames, slices): so many at even distances, or their indices
            from 0; None: there must be only one.
        plane: of a volume: "axial", "coronal" or "sagittal"; None: axial of NIfTI, of DICOM as the slices were taken.

    Raises:
        DataError: no such file, not an image, truncated, empty, too large, several pictures and no choice among them,
            or values without a known range.
        ConfigError: a medical file, and the extra that reads it is not installed.
    """
    view = View.make(window, slices, plane, name or "image")
    if isinstance(source, ImageRef):
        name, view, source = name or source.name, source.view, source.open()
    return _each(source, name or _named(source), view, lambda stack, place: stack.frame(place))


def shown_window(source: ImageRef) -> tuple[float, float] | None:
    """(centre, width) of the grey values that a reference's picture shows between black and white; None of colours and
    of 8 bits as they are. Raises as `decode`."""
    return _each(source.open(), source.name, source.view, lambda stack, place: stack.window(place))[0]


def _each(source: Source, name: str, view: View, look: Callable[[Frames, int], Made]) -> tuple[Made, ...]:
    """Each picture that a view chooses, passed through `look`. Raises DataError."""
    try:
        stack = _stack(source, name, view)
        if stack.count == 0:
            raise DataError(f"{name}: holds no picture")
        return tuple(look(stack, place) for place in chosen(stack.count, view.slices, name))
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{name}: too large to be decoded in the memory there is; scale it down") from None
    except Exception as error:  # decoders raise nearly anything on a broken file
        raise DataError(f"{name}: not an image that can be decoded ({one_line(error)})") from error


def open_image(source: Source | ImageRef, name: str = "", **view: Any) -> Image.Image:
    """The one picture of a source, as `decode` gives it. Raises DataError where there are several."""
    pictures = decode(source, name=name, **view)
    if len(pictures) != 1:
        raise DataError(f"{name or _named(source)}: {len(pictures)} pictures in the place of one; choose one slice")
    return pictures[0]


def spread(parts: Sequence[Any]) -> list[Any]:
    """The parts of a message; an image part with `window`, `slices` or `plane` becomes one for each picture
    that these choose, and its other keys stay. Raises DataError."""
    out: list[Any] = []
    for part in parts:
        view = {key: part[key] for key in VIEWED if part.get(key) is not None} if isinstance(part, Mapping) else {}
        if not view or part.get("type") != "image":
            out.append(part)
            continue
        rest = {key: value for key, value in part.items() if key not in VIEWED}
        source = part.get("image")
        name = str(source)[:80] if isinstance(source, str | Path) else "an image part"
        out += [rest | {"image": picture} for picture in decode(source, name=name, **view)]
    return out


def clean(data: bytes, name: str, view: View = PLAIN) -> bytes:
    """An encoded file that says nothing beside its pixels, and that every reader shows alike.

    The file itself where it is an ordinary PNG or JPEG without metadata, or without the parts that no pixel is drawn
    from: captions, profiles, private parts, bytes behind its end. Else what the decoder shows, as PNG. So no header of
    DICOM or EXIF enters what is stored, sent or shown. Raises DataError.
    """
    with suppress(Exception), Image.open(io.BytesIO(data)) as image:  # the decoder says what is wrong
        coarse = _coarse(image)  # before a look at its texts loads it
        silent = "transparency" not in image.info and image.getexif().get(ORIENTATION, 1) == 1
        plain = image.format in ("PNG", "JPEG") and image.mode in ("L", "RGB") and _pages(image) == 1
        if silent and plain and view == PLAIN and not coarse:
            image.load()
            if alone := segments.bare(data):
                return alone
    picture = open_image(data, name, window=view.window, slices=view.slices, plane=view.plane)
    return EncodedImage(picture, compress=6)()


def _named(source: Source | ImageRef) -> str:
    if isinstance(source, ImageRef):
        return source.name
    if isinstance(source, str) and source[:5].lower() == "data:":
        return f"{source[:40]}..."
    return border.cut(str(source), LONGEST) if isinstance(source, str | Path) else "image"


def _stack(source: Source, name: str, view: View) -> Frames:
    """The pictures of a source, none of them decoded yet. Raises DataError."""
    if isinstance(source, Image.Image):
        return _still(source, name, view)
    encoded = content(source, name)
    if not encoded:
        raise DataError(f"{name}: is empty (0 bytes); fetch the file again")
    reader = medical.reader(encoded)
    if reader is not None:
        return reader(encoded, name, view)
    if view.plane:
        raise DataError(f"{name}: a plane is of a volume (DICOM, NIfTI); leave it out")
    try:
        return _still(Image.open(io.BytesIO(encoded)), name, view)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image of a known format that can be decoded{_foreign(encoded)}") from None
    except Exception as error:  # a header that lies raises nearly anything
        raise DataError(f"{name}: not an image that can be decoded ({one_line(error)})") from error


def content(source: bytes | str | Path, name: str) -> bytes:
    """The encoded file. Raises DataError."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str) and source[:5].lower() == "data:":  # RFC 2397
        head, _, body = source.partition(",")
        try:
            if not head.lower().endswith(";base64"):
                return unquote(body).encode()
            return base64.b64decode("".join(unquote(body).split()), validate=True)  # encoders break lines
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{name}: not a base64 data URI ({error})") from None
    if isinstance(source, str) and source.startswith(BASE64) and len(source) > LONGEST:
        raise DataError(f'{name}: base64 without its head; begin it with "data:image/png;base64,"')
    if isinstance(source, str) and source[:5].lower() == "file:":
        source = unquote(urlparse(source).path)
    if not isinstance(source, str | Path):
        raise DataError(f"{name}: an image is a path, bytes or an opened image, not {type(source).__name__}")
    if _WEB.match(str(source)):
        raise DataError(f"{name}: images are not fetched from the web; no such image file, download it first")
    try:
        path = border.existing(Path(source).expanduser())
        if not path.is_dir():
            border.refuse_endless(path)
        return medical.Series(path)() if path.is_dir() else path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{name}: no such image file") from None
    except (OSError, ValueError, RuntimeError) as error:  # a folder, no permission, a NUL in the name, ~nobody/x.png
        raise DataError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _foreign(encoded: bytes) -> str:
    """Advice on content that is often taken for an image; "" where it is nothing known."""
    kinds = {
        b"version https://git-lfs": "a Git LFS pointer; run git lfs pull",
        b"ftyphei": "HEIC; save it as JPEG or PNG",
        b"%PDF-": "a PDF; save its page as PNG",
        b"<svg": "SVG; save it as PNG",
        b"<html": "a web page, perhaps an error of the server; fetch the file again",
        b"<!doctype html": "a web page, perhaps an error of the server; fetch the file again",
        b"NRRD000": "NRRD; save it as NIfTI",
        b"ObjectType =": "MetaImage; save it as NIfTI",
        b"\x93NUMPY": "a NumPy array; save it as 16-bit PNG, TIFF or NIfTI",
        b"\x1f\x8b\x08": "packed with gzip; unpack it",
        b"PK\x03\x04": "a zip without DICOM; unpack it",
        **dict.fromkeys((b"ftypmif1", b"ftypmsf1"), "HEIF; save it as JPEG or PNG"),
        b"ftypavi": "AVIF that is broken, or that Pillow was built without; save it as JPEG or PNG",
        b"jxl \r\n\x87\n": "JPEG XL; save it as JPEG or PNG",
        b"MATLAB 5": "a MATLAB file; save its array as 16-bit PNG, TIFF or NIfTI",
        **dict.fromkeys((b"ftypisom", b"ftypmp4", b"ftypqt", b"\x1aE\xdf\xa3"), "a video; save a frame of it as PNG"),
    }
    head = encoded[:256].lower()
    return next((f": {words}" for mark, words in kinds.items() if mark.lower() in head), "")


def _pages(image: Image.Image) -> int:
    """Pictures of an opened file; cameras add a preview to an MPO, which is none."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _check_size(image: Image.Image, name: str) -> None:
    if 0 in image.size:
        raise DataError(f"{name}: the image is empty ({image.width} x {image.height} pixels)")
    limit = Image.MAX_IMAGE_PIXELS  # Pillow's own limit warns; a line in a log stops nothing
    if limit and image.width * image.height > limit:
        raise DataError(
            f"{name}: {image.width} x {image.height} pixels are over the limit of {limit:,} (decompression bomb?); "
            "cut or scale it down"
        )


def _whole(file: Any, name: str) -> bool:
    try:
        end = file.seek(0, io.SEEK_END)
        file.seek(max(0, end - TAIL))
        ends = b"\xff\xd9" in file.read().rpartition(b"\xff\xda")[2]  # a preview before the scan has an end of its own
        file.seek(0)
        with Image.open(file) as image:
            _check_size(image, name)
            if image.format not in ("JPEG", "PNG") or _pages(image) > 1 or image.mode not in ("L", "RGB"):
                return False
            if _coarse(image):
                return False
            image.verify()  # a PNG's checksums; of a JPEG nothing, hence its end
            return image.format == "PNG" or ends
    except DataError:
        raise
    except Exception:  # the decoder says why
        return False


def _still(image: Image.Image, name: str, view: View) -> Frames:
    """Pages or frames of a file that Pillow reads."""
    if image.format in STUBS:
        raise DataError(f"{name}: {image.format} is not decoded; save the picture as 16-bit PNG, TIFF or NIfTI")
    _check_size(image, name)
    if image.format in PROGRAMS:
        raise DataError(f"{name}: {image.format} is a program, not a picture; save it as PNG")
    count = _pages(image)

    def frame(place: int) -> Image.Image:
        if count > 1:
            image.seek(place)
            _check_size(image, name)
        if image.mode == "L" and _tag(image, SAMPLE_FORMAT) == (2,):
            raise DataError(f"{name}: a TIFF of signed 8-bit values; save them as 0..255")
        # a TIFF whose 0 is white, of the modes in which Pillow leaves it at that; one that was turned no longer says so
        coarse, inverted = _coarse(image), _deep(image) and _tag(image, PHOTOMETRIC) == 0
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except (SyntaxError, ValueError, struct.error):  # of a PNG's words, where a JPEG's broken ones are passed over
            upright = image
        if coarse:
            _check_coarse(upright, name)
        picture = _to_rgb(upright, name, view)
        return ImageOps.invert(picture) if inverted else picture

    def window(place: int) -> tuple[float, float] | None:
        if not _graded(image, view):
            return None
        if count > 1:
            image.seek(place)
        values = np.asarray(image)
        extent = float(values.min()), float(values.max())
        return settled(view.window or "full", extent, (0.0, _limit(image.mode, extent[1])))

    return Frames(count, frame, window)


def _tag(image: Image.Image, number: int) -> Any:
    """The value of a TIFF's tag; None where it has none, and of any other format."""
    return getattr(image, "tag_v2", {}).get(number)


def _coarse(image: Image.Image) -> bool:
    """True for colours of 16 bits, of which Pillow gives the upper 8; before it is loaded."""
    return not _deep(image) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _check_coarse(image: Image.Image, name: str) -> None:
    """Raises DataError where colours of 16 bits hold 14 at most, or nearly all of them 12, whose upper 8 are nearly
    black; a few bright spots on a dark ground are shown."""
    levels = np.bincount(np.asarray(image.convert("RGB")).ravel())
    brightest, usual = len(levels) - 1, _percentile(levels, 99)
    drawn = np.count_nonzero(levels[: usual + 1]) < 8
    if 0 < brightest < 16 or (not drawn and (brightest < 64 or usual < 16)):
        bits = 12 if usual < 16 else 14
        raise DataError(
            f"{name}: a 16-bit colour image with nearly all values of {bits} bits at most; save it with 8 bits a "
            "channel"
        )


def _percentile(counts: np.ndarray, percent: int) -> int:
    """The level up to which so much of a picture lies; `counts`: of its pixels by level."""
    return int(np.searchsorted(counts.cumsum(), percent / 100 * counts.sum()))


def _check_grey(values: np.ndarray, name: str) -> None:
    """Raises DataError where grey values of 16 bits hold 14 at most, or nearly all of them 12, as scanners write and
    shift them: by the full range they are nearly one grey, and which part of it matters only the owner knows.

    The brightest and the darkest level may be a burnt-in letter's and a border's, and a hundredth of dark pixels its
    edges. A few levels are a mask or a drawing, of 8 bits at most a blank, and multiples of 257 or 256 a picture of 8
    bits, which are shown as they are.
    """
    counts = np.bincount(values.ravel().astype(np.int64))
    levels = np.flatnonzero(counts)
    highest, inner, usual = levels[-1], levels[1:-1], _percentile(counts, 99)
    ranges = [  # of which one that is narrow is told
        (levels[0], highest, highest < 16384),
        (inner[0], inner[-1], inner[-1] - inner[0] < 4096) if len(inner) else (0, 0, False),
        (levels[0], usual, usual < 4096 and np.count_nonzero(levels <= usual) > DRAWN),
    ]
    graded = len(levels) > DRAWN and bool((levels % 257).any() and (levels % 256).any())
    narrow = [(low, high) for low, high, found in ranges if found] if graded else []
    if narrow or 255 < highest < 4096:
        whole = (levels[0], highest)
        low, high = whole if highest < 256 else min(narrow, key=lambda ends: ends[1] - ends[0], default=whole)
        raise DataError(
            f"{name}: a 16-bit image with nearly all grey values from {low} to {high} only; give it a "
            '"window": [centre, width], or "range" for darkest to brightest, or "full" to scale by 65535'
        )


def _deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _graded(image: Image.Image, view: View) -> bool:
    """True where a window applies: to grey values of more than 8 bits, and to those of 8 where one is asked for."""
    return _deep(image) or (view.window is not None and image.mode == "L")


def _limit(mode: str, highest: float) -> float:
    """White of an integer or float image without a window, by its mode and its brightest value."""
    if mode.startswith("I"):
        return 65535.0  # PNG and TIFF store 16 bits, which PIL opens as 32
    return 1.0 if mode == "F" and highest <= 1 else 255.0


def _to_rgb(image: Image.Image, name: str, view: View) -> Image.Image:
    if _graded(image, view):
        values = np.asarray(image) if image.mode.startswith("I") else np.asarray(image, np.float64)
        picture = Image.fromarray(_to_uint8(values, image.mode, name, view)).convert("RGB")
        clear = image.info.get("transparency")
        if _deep(image) and isinstance(clear, int):  # the one grey value that a PNG declares transparent
            picture.paste((255, 255, 255), mask=Image.fromarray((values == clear).astype(np.uint8) * 255))
    elif view.window is not None:
        raise DataError(f"{name}: a window is of grey values, and this is a {image.mode} image; leave it out")
    elif image.mode in ("RGBa", "La") or "A" in image.getbands() or "transparency" in image.info:
        straight = {"RGBa": "RGBA", "La": "LA"}.get(image.mode, image.mode)
        layer = image.convert(straight).convert("RGBA")
        faint = np.asarray(layer.getchannel("A")).max() <= FAINT
        if faint and layer.convert("RGB").getcolors(1) is None:  # more colours than one
            raise DataError(f"{name}: a picture that is transparent everywhere; save it without transparency")
        picture = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), layer).convert("RGB")
    else:
        picture = image.convert("RGB")
    if picture is image:
        picture = image.copy()
    picture.info = {}  # comments and colour profiles would travel into whatever is saved from it
    return picture


def _to_uint8(values: np.ndarray, mode: str, name: str, view: View) -> np.ndarray:
    """Grey values [H, W] of an integer (up to 16 bits) or float image as uint8, [H, W] or [H, W, 3]."""
    lowest, highest = float(values.min()), float(values.max())
    limit = _limit(mode, highest)
    if view.window is not None:
        if not np.isfinite((lowest, highest)).all():
            raise DataError(f"{name}: grey values that are not finite; write 0 in their place")
        return windowed(values.astype(np.float64), view.window, (lowest, highest), (0.0, limit), name)
    if not (lowest >= 0 and highest <= limit):
        raise DataError(
            f"{name}: grey values from {lowest:g} to {highest:g}; window them to 0..255 and save as 8 bit, or give a "
            f'"window": [centre, width]'
        )
    if limit == 65535:
        _check_grey(values, name)
    if limit == 65535:  # looked up, since a table of 65,536 levels costs less than arithmetic on every pixel
        return grey(np.arange(65_536) / limit)[values.astype(np.uint16)]
    return grey(values / limit)
