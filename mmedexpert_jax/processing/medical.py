"""DICOM as 8-bit pictures: only pixels leave this module, never a header (extra `medical`).

Modality LUT or rescale, then the header's first VOI LUT or window (PS3.3 C.11), else the frame's own range without
padding; MONOCHROME1 inverted, palettes and YBR as RGB; frames in the file's order, with windows of their own where
functional groups have them. Pixels are decoded by pydicom and its plugins. A series is a folder or a zip of its files,
in the order of their places. Under a plane its slices, or a file's frames, are one volume under one window, that of
the middle slice, shown as a NIfTI volume is.
"""

import functools
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from einops import rearrange
from PIL import Image

from mmedexpert_jax.border import one_line, shown
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing import nifti
from mmedexpert_jax.processing.volumes import (
    AXES,
    canonical,
    kept,
    library,
    place_of,
    quiet,
    section,
    stacked,
)
from mmedexpert_jax.processing.windows import Frames, View, grey, settled, windowed

Reader = Callable[[bytes, str, View], Frames]

MAX_BYTES = 2**31  # of an unpacked series: 1,000 CT slices of 512 x 512 x 16 bits are 2**29
TABLE = 2**17  # stored values up to which a frame is looked up in a table, twice those of 16 bits
TILT = 0.02  # a degree: up to which slices are of one stack, whose axes are rounded; localisers are 90 apart
HEAD = 256  # bytes of a file that say whether it is DICOM
_LOOK = (  # what turns a frame's numbers into grey, where functional groups may say it by frame
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
)
_VOI = _LOOK[3:]
_DECIMALS = (  # numbers that are written out
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")


def reader(content: bytes) -> Reader | None:
    """The function that reads a medical file of this content; None for any other file."""
    if _is_dicom(content) or _is_series(content):
        return _dicom
    return nifti.read if nifti.header_size(content) else None


def _is_series(content: bytes) -> bool:
    """A zip with DICOM among its first files; a licence or an index may stand before them."""
    if content[:4] != b"PK\x03\x04":
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            return any(_is_dicom(archive.open(member).read(HEAD)) for member in members[:64])
    except Exception:  # a broken archive raises nearly anything, and is no image
        return False


def _is_dicom(content: bytes) -> bool:
    """With the standard's preamble, or without it (ACR-NEMA and early files begin with group 2 or 8)."""
    if content[128:132] == b"DICM":
        return True
    if len(content) <= 132 or content[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08"):
        return False
    # other formats may begin so too: the first data element must have a plausible length
    order: Literal["little", "big"] = "little" if content[1] == 0 else "big"
    explicit = content[4:6].isalpha() and content[4:6].isupper()
    length = int.from_bytes(content[6:8] if explicit else content[4:8], order)
    return length < 4096


@quiet
def _dicom(content: bytes, name: str, view: View) -> Frames:
    """The frames of a DICOM file, or of all files of a zipped series."""
    if view.plane:
        return kept(content, (view.window, view.plane), lambda: _planes(_placed(content, name), name, view))
    frames = kept(content, "frames", lambda: _placed(content, name))
    return Frames(
        len(frames),
        lambda place: _dicom_frame(*frames[place], name, view),
        lambda place: _dicom_window(*frames[place], name, view),
    )


def _placed(content: bytes, name: str) -> list[tuple[Any, int]]:
    """Data set and place in it of each frame, in order. Raises DataError."""
    datasets = list(dicom_datasets(content, name))
    for dataset in datasets:
        _check_dicom(dataset, name)
        _lower(dataset)
    datasets = _in_order(datasets, name) if len(datasets) > 1 else datasets
    return [(dataset, place) for dataset in datasets for place in range(_frames(dataset))]


def _check_dicom(dataset: Any, name: str) -> None:
    held = [len(dataset[key].value or b"") for key in _PIXELS if key in dataset]
    if not held:
        raise DataError(f"{name}: a DICOM file without a picture ({_kind(dataset)}); leave it out")
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    limit = Image.MAX_IMAGE_PIXELS
    if not rows * columns or (limit and rows * columns > limit):
        raise DataError(f"{name}: a DICOM picture of {columns} x {rows} pixels; 1 to {limit:,} pixels are read")
    if not 1 <= (frames := _frames(dataset)) <= max(held):  # a frame takes a byte, however it is packed
        raise DataError(
            f"{name}: NumberOfFrames is {frames} in its header, of {max(held):,} bytes of pixels; correct it"
        )


def _lower(dataset: Any) -> None:
    """Shifts values in the upper bits (HighBit), as older scanners stored them, to the lower ones, where pydicom looks.

    What fits into BitsStored is there already, whatever the header says.
    """
    bits, stored, high = (int(dataset.get(key) or 0) for key in ("BitsAllocated", "BitsStored", "HighBit"))
    shift, signed = high + 1 - stored, int(dataset.get("PixelRepresentation") or 0)
    packed = dataset.file_meta.TransferSyntaxUID.is_compressed or "PixelData" not in dataset
    if not 0 < shift <= bits - stored or bits not in (8, 16, 32) or packed:
        return
    order = "<" if dataset.original_encoding[1] else ">"
    values = np.frombuffer(dataset.PixelData, f"{order}{'ui'[signed]}{bits // 8}")
    low, high = -(2 ** (stored - 1)) * signed, 2 ** (stored - signed) - 1
    if values.min() < low or values.max() > high:
        dataset.PixelData = (values >> shift).astype(values.dtype).tobytes()
    dataset.HighBit = stored - 1


def _frames(dataset: Any) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def dicom_datasets(content: bytes, name: str) -> Iterator[Any]:
    """The data set of a DICOM file, or those of the pictures in a zipped series. Raises DataError, and ConfigError
    without pydicom."""
    if _is_dicom(content):
        yield read_dicom(content, name)
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise DataError(f"{name}: unpacks to more than {MAX_BYTES >> 30} GiB; give a part of the series")
        for member in members:
            try:
                data = archive.read(member)
            except Exception as error:  # a broken archive raises nearly anything
                raise DataError(f"{name}: its zip cannot be read ({one_line(error)}); fetch it again") from None
            dataset = read_dicom(data, f"{name}/{member.filename}") if _is_dicom(data) else {}
            if "PixelData" in dataset:  # beside pictures stand licences, DICOMDIR and the like
                yield dataset


@dataclass(frozen=True)
class Series:
    """A folder with the files of one DICOM series, read as one zip."""

    path: Path

    def __call__(self) -> bytes:
        """The zip, of the same bytes whenever the files are the same. Raises DataError."""
        files = sorted((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in self.path.iterdir())
        return _packed(self.path, tuple(files))


@functools.lru_cache(maxsize=1)
def _packed(folder: Path, files: tuple[tuple[str, int, int], ...]) -> bytes:
    """A series as a zip; `files` says whether it is still the same folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in series(folder, str(folder)):
            archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes())
    return buffer.getvalue()


def read_dicom(content: bytes, name: str) -> Any:
    """The data set of a file. Raises DataError, and ConfigError without pydicom."""
    pydicom = library("pydicom", name, "DICOM", "pydicom pylibjpeg pylibjpeg-openjpeg python-gdcm")
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        if not hasattr(dataset, "file_meta") or "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            if not hasattr(dataset, "file_meta"):
                dataset.file_meta = pydicom.dataset.FileMetaDataset()
            explicit = "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
            dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else explicit
        for key in (key for key in _DECIMALS if key in dataset):
            text = getattr(dataset.get_item(key), "value", None)  # as it stands in the file
            if isinstance(text, bytes) and b"," in text:  # of programs under German or French settings
                with suppress(ValueError):
                    setattr(dataset, key, text.decode("ascii", "replace").replace(",", ".").split("\\"))
        said = dataset.get("PhotometricInterpretation") or ""
        kind = " ".join((said if isinstance(said, str) else str(said[0])).upper().split())
        if not kind and dataset.get("SamplesPerPixel") == 1 and "RedPaletteColorLookupTableDescriptor" not in dataset:
            kind = "MONOCHROME2"
        if kind:
            dataset.PhotometricInterpretation = kind.replace("MONOCHROME ", "MONOCHROME")
        return dataset
    except Exception as error:  # pydicom raises nearly anything on a broken file
        raise DataError(f"{name}: not a DICOM file that can be read ({one_line(error)})") from None


@quiet
def series(folder: Path, name: str) -> list[Path]:
    """The files of a folder that holds one DICOM series, in the order of their places along the slices' normal.

    Raises:
        DataError: no DICOM file, several series, or one that cannot be read.
    """
    found, _ = by_series(folder, name, False)
    if not found:
        raise DataError(f"{name}: a folder without DICOM pictures; give the folder of one series, or a file")
    if len(found) > 1:
        raise DataError(f"{name}: {len(found)} series in one folder; put each into a folder of its own")
    return found[0]


@quiet
def by_series(folder: Path, name: str, apart: bool = True) -> tuple[list[list[Path]], list[Path]]:
    """The DICOM files of a folder: those of each series as `series` orders them, and the others, without a
    picture of their own; `apart` as in `_by_series`.

    Raises DataError for one that cannot be read.
    """
    held, files, rest = list[_Member](), list[Path](), list[Path]()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        with file.open("rb") as head:
            if not _is_dicom(head.read(HEAD)):
                continue
        dataset = read_dicom(file.read_bytes(), f"{name}/{file.name}")
        if "PixelData" in dataset:
            held.append(_Member.of(dataset, file.name))
            files.append(file)
        elif not any(key in dataset for key in _PIXELS):
            rest.append(file)
    groups = _by_series(held, apart)
    copies = {*range(len(held))} - {place for places in groups for place in places}
    return [[files[place] for place in places] for places in groups], rest + [files[place] for place in copies]


def _in_order(datasets: Sequence[Any], name: str) -> list[Any]:
    """The files of one series by their places. Raises DataError where there are several series."""
    found = _by_series([_Member.of(dataset, str(number)) for number, dataset in enumerate(datasets)])
    if len(found) > 1:
        raise DataError(f"{name}: {len(found)} series in one zip; give each a zip of its own")
    return [datasets[place] for place in found[0]]


@dataclass(frozen=True)
class _Member:
    """The part of a file's header that says what series it is of, and where it stands there."""

    uid: str  # of the series; "" where an anonymiser left none
    kind: Any  # what the files of a series without one have in common
    picture: tuple[Any, ...]  # the same of two copies of a file
    axes: np.ndarray  # [2, 3] along a row and a column; zeros where the header does not say it
    place: tuple[float, int]  # along their normal in mm, likewise 0, and the number in the series

    @classmethod
    def of(cls, dataset: Any, name: str) -> "_Member":
        """Of a file with a picture."""
        axes, along = np.zeros((2, 3)), 0.0
        with suppress(AttributeError, TypeError, ValueError):
            axes = np.array([float(x) for x in dataset.ImageOrientationPatient]).reshape(2, 3)
            along = float(np.cross(*axes) @ np.array([float(x) for x in dataset.ImagePositionPatient]))
        place = along, int(dataset.get("InstanceNumber") or 0)
        uid, own = (str(dataset.get(key) or "").strip() for key in ("SeriesInstanceUID", "SOPInstanceUID"))
        kind = dataset.get("Modality"), dataset.get("Rows"), dataset.get("Columns")
        return cls(uid, kind, (own or name, *place, hash(dataset.PixelData)), axes, place)


def _by_series(held: Sequence[_Member], apart: bool = True) -> list[list[int]]:
    """The places of each series' files: one stack of slices after the other, by their numbers, each slice along the
    normal, and each picture once.

    Files without a series are one where they are of one stack and no two at one place; else, where they are taken
    `apart`, each is one by itself, as the X-rays of many patients in a folder. What is named as one series, as the
    frames of a cine, is not.
    """
    stacks: dict[Any, list[np.ndarray]] = {}
    found: dict[Any, list[tuple[int, tuple[float, int], int]]] = {}
    seen = set()
    for number in sorted(range(len(held)), key=lambda number: held[number].place[1]):
        one = held[number]
        series = one.uid or one.kind
        if (series, one.picture) in seen:
            continue
        seen.add((series, one.picture))
        known = stacks.setdefault(series, [])
        stack = next((n for n, axes in enumerate(known) if np.abs(axes - one.axes).max() < TILT), len(known))
        known += [one.axes] if stack == len(known) else []
        found.setdefault((series, 0 if one.uid else stack), []).append((stack, one.place, number))
    groups = []
    for (series, _), files in found.items():
        alone = series not in {held[number].uid for *_, number in files} and len({p for _, p, _ in files}) < len(files)
        numbers = [number for *_, number in sorted(files)]
        groups += [[number] for number in numbers] if apart and alone else [numbers]
    return groups


@quiet
def _dicom_frame(dataset: Any, place: int, name: str, view: View) -> Image.Image:
    from pydicom.pixels import apply_color_lut

    values = _stored(dataset, place, name)
    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if not kind.startswith(("MONOCHROME", "RGB", "YBR", "PALETTE")):
        raise DataError(f"{name}: DICOM pictures of {kind[:20]} are not read; convert it to RGB")
    if kind.startswith("MONOCHROME"):
        return Image.fromarray(_dicom_grey(values, dataset, _look(dataset, place, name), name, view)).convert("RGB")
    if view.window is not None:
        raise DataError(f"{name}: a window is of grey values, and this DICOM picture is in colour; leave it out")
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    depth = values.dtype.itemsize * 8
    if "PALETTE" not in kind:
        depth = int(dataset.get("BitsStored") or depth)
    depth = 8 if depth == 16 and values.max() <= 255 else depth  # 8 bits in a wider table, as old ultrasound has it
    return Image.fromarray(grey(values / (2.0**depth - 1)) if depth != 8 else values.astype(np.uint8)).convert("RGB")


@quiet
def _dicom_window(dataset: Any, place: int, name: str, view: View) -> tuple[float, float] | None:
    """(centre, width) under which a frame is shown, of a VOI LUT that of its whole range; None of colours."""
    if not str(dataset.get("PhotometricInterpretation", "MONOCHROME2")).startswith("MONOCHROME"):
        return None
    look = _look(dataset, place, name)
    if view.window is None and _has_window(look) and not _has_lut(look):
        centre, width = (
            float(look[key].value if look[key].VM == 1 else look[key].value[0])
            for key in ("WindowCenter", "WindowWidth")
        )
        return centre, width
    stored = _stored(dataset, place, name)
    extent = _extent(stored[~_is_padding(stored, dataset)], stored, look)
    return settled(view.window or "range", extent, _ends(look))


def _stored(dataset: Any, place: int, name: str) -> np.ndarray:
    """Stored values of a frame, [H, W] or [H, W, 3]. Raises DataError."""
    from pydicom.pixels import pixel_array

    try:
        values = pixel_array(dataset, index=place if _frames(dataset) > 1 else None)
    except Exception as error:
        syntax = getattr(dataset.file_meta.TransferSyntaxUID, "name", "?")
        raise DataError(f"{name}: its pixels cannot be decoded ({syntax}: {one_line(error)})") from None
    if values.shape[:2] != (int(dataset.Rows), int(dataset.Columns)):  # pydicom takes what is too much for frames
        raise DataError(f"{name}: its pixels are {len(values)} pictures where its header says one; set NumberOfFrames")
    return values


def _dicom_grey(
    values: np.ndarray, dataset: Any, look: Any, name: str, view: View, extent: tuple[float, float] | None = None
) -> np.ndarray:
    """Stored values [H, W] as uint8 [H, W], or [H, W, 3] under three windows; `extent`: of a range, else their own."""
    if values.dtype.kind not in "iu" or int(values.max()) - int(values.min()) >= TABLE:
        return _levels(
            values, extent or _extent(values[~_is_padding(values, dataset)], values, look), look, dataset, name, view
        )
    # every step below is pointwise: applied to each value once, and looked up, it costs a tenth
    lowest = int(values.min())
    domain = np.arange(lowest, int(values.max()) + 1)
    index = values.astype(np.int32) - lowest
    if extent is None:
        present = np.bincount(index.ravel(), minlength=len(domain)) > 0
        extent = _extent(domain[present & ~_is_padding(domain, dataset)], domain, look)
    return _levels(domain, extent, look, dataset, name, view)[index]


def _is_padding(values: np.ndarray, dataset: Any) -> np.ndarray:
    """True for stored values that fill the frame where nothing was measured: one, or a range of them."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(values.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    bits, signed = int(dataset.get("BitsAllocated") or 16), int(dataset.get("PixelRepresentation") or 0)
    ends = [int(value), int(value if limit is None else limit)]
    # scanners write a negative value as if it had no sign
    low, high = sorted(end - 2**bits if signed and end >= 2 ** (bits - 1) else end for end in ends)
    return (values >= low) & (values <= high)


def _extent(held: np.ndarray, values: np.ndarray, look: Any) -> tuple[float, float]:
    """Lowest and highest value after the modality LUT of the stored values `held`, or of all `values` if none is."""
    from pydicom.pixels import apply_modality_lut

    units = apply_modality_lut(held if held.size else values, look)
    return float(units.min()), float(units.max())


def _levels(
    values: np.ndarray, extent: tuple[float, float], look: Any, dataset: Any, name: str, view: View
) -> np.ndarray:
    """Stored values [...] as uint8 [...] or [..., 3]; `extent`: (darkest, brightest) after the modality LUT."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    units = apply_modality_lut(values, look)
    if view.window is not None:
        # Hounsfield units are CT's alone; PET, MR and X-ray rescale to units of their own
        hounsfield = dataset.get("Modality") == "CT" and "RescaleSlope" in look
        levels = windowed(units.astype(np.float64), view.window, extent, _ends(look), name, hounsfield)
    elif _has_lut(look):
        levels = grey(_looked_up(units, look.VOILUTSequence[0], look.original_encoding[1] is not False))
    else:
        if _has_window(look):
            _check_window(look, name)
        shown, (low, high) = (apply_voi_lut(units, look), _full(look)) if _has_window(look) else (units, extent)
        levels = grey((shown.astype(np.float64) - low) / ((high - low) or 1.0))
    return 255 - levels if look.PhotometricInterpretation == "MONOCHROME1" else levels


def _looked_up(units: np.ndarray, lut: Any, little: bool) -> np.ndarray:
    """Shares of full white by a VOI LUT (PS3.3 C.11.2.1.1), whose entries of 8 bits may be packed. White is the LUT's
    own maximum where that is beyond its bits, or of 12 bits at most where it says 16."""
    count, first, bits = (int(number) for number in lut.LUTDescriptor)
    count, data = count or 1 << 16, lut.LUTData
    if isinstance(data, bytes):
        wide = "<u2" if little else ">u2"
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * count else wide)
    entries = np.asarray(data, np.float64)[:count]
    white, top = 2.0**bits - 1, entries.max()
    if top > white or top < white / 15:
        white = top or 1.0
    return entries[np.clip(units - first, 0, len(entries) - 1).astype(np.intp)] / white


def _look(dataset: Any, place: int, name: str) -> Any:
    """The attributes that make grey of one frame's stored values: the frame's own where functional groups say it.

    Raises DataError for a rescale that makes all values one.
    """
    from pydicom import Dataset

    look = Dataset()
    look.file_meta = dataset.file_meta
    look.set_original_encoding(*dataset.original_encoding)
    for key in ("PhotometricInterpretation", "BitsStored", "PixelRepresentation"):
        setattr(look, key, dataset.get(key, {"BitsStored": 16, "PixelRepresentation": 0}.get(key, "MONOCHROME2")))
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())[place : place + 1]
    held = [dataset, *(item for group in (*shared, *own) for key in _GROUPS for item in group.get(key) or ())]
    for item in held:
        for key in _LOOK:
            if key in item and item[key].VM:
                look[key] = item[key]
    if "RescaleSlope" in look or "RescaleIntercept" in look:  # pydicom passes over one alone
        look.RescaleSlope, look.RescaleIntercept = look.get("RescaleSlope", 1), look.get("RescaleIntercept", 0)
    slope = look.get("RescaleSlope")
    if slope is not None and not 0 < abs(float(slope)) < math.inf:  # one grey for all values
        raise DataError(f"{name}: RescaleSlope is {float(slope):g} in its header, which leaves no picture; correct it")
    if not _has_window(look):
        for key in ("WindowCenter", "WindowWidth"):
            look.pop(key, None)
    if not _has_lut(look):
        look.pop("VOILUTSequence", None)
    return look


def _check_window(look: Any, name: str) -> None:
    """Raises DataError where the first window lies outside all values that the bits can hold: one grey for all; and for
    a function that DICOM does not know."""
    function = str(look.get("VOILUTFunction", "LINEAR"))
    if function.upper() not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DataError(
            f"{name}: VOILUTFunction is {shown(function)} in its header, which is none of LINEAR, LINEAR_EXACT and "
            "SIGMOID; correct it"
        )
    centre, width = (float(np.ravel(look[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
    ends = _ends(look)
    if not (centre + width / 2 > ends[0] and centre - width / 2 < ends[1]):
        raise DataError(
            f"{name}: WindowCenter is {centre:g} and WindowWidth {width:g} in its header, outside its values from "
            f"{ends[0]:g} to {ends[1]:g}, which leaves no picture; correct it"
        )


def _has_lut(look: Any) -> bool:
    luts = look.get("VOILUTSequence")
    return bool(luts) and "LUTDescriptor" in luts[0] and "LUTData" in luts[0]


def _has_window(look: Any) -> bool:
    """True where the first window of a header can be applied: both numbers, and a width that its function takes."""
    if look.get("WindowCenter") is None or look.get("WindowWidth") is None:
        return False
    width = look.WindowWidth
    width = float(width[0] if look["WindowWidth"].VM > 1 else width)
    linear = str(look.get("VOILUTFunction", "LINEAR")).upper() == "LINEAR"
    return width > 1 if linear else width > 0


def _ends(look: Any) -> tuple[float, float]:
    """Lowest and highest value after the modality LUT that the bit depth allows."""
    low, high = sorted(_full(look))
    return low, high


def _full(look: Any) -> tuple[float, float]:
    """The values of the lowest and the highest bits after the modality LUT, at which pydicom's windows end."""
    bits, signed = int(look.BitsStored), int(look.PixelRepresentation)
    low, high = -(2.0 ** (bits - 1)) * signed, 2.0 ** (bits - signed) - 1
    if "ModalityLUTSequence" in look:
        return 0.0, 2.0 ** int(look.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    if "RescaleSlope" in look and "RescaleIntercept" in look:
        slope, intercept = float(look.RescaleSlope), float(look.RescaleIntercept)
        return low * slope + intercept, high * slope + intercept
    return low, high


def _kind(dataset: Any) -> str:
    return str(getattr(dataset.get("SOPClassUID"), "name", None) or "no SOP class")[:80]


def _planes(frames: Sequence[tuple[Any, int]], name: str, view: View) -> Frames:
    """The slices of a stack of DICOM frames along a plane's normal. Raises DataError where the frames are no volume."""
    if not str(frames[0][0].get("PhotometricInterpretation", "")).startswith("MONOCHROME"):
        raise DataError(f"{name}: a plane is of grey values, and this DICOM picture is in colour; leave it out")
    affine, order = stacked([place_of(*frame, name) for frame in frames], name)
    sizes = {(int(dataset.Columns), int(dataset.Rows)) for dataset, _ in frames}
    if len(sizes) > 1:
        raise DataError(f"{name}: slices of {len(sizes)} sizes; give one stack, or leave plane out")
    shape = (*sizes.pop(), len(frames))
    if 2 * math.prod(shape) > MAX_BYTES:
        raise DataError(f"{name}: a volume of shape {shape} has more than {MAX_BYTES >> 30} GiB; give a part of it")
    axis = AXES[view.plane]
    size, spacing, axes = canonical(affine, shape, np.linalg.norm(affine[:3, :3], axis=0), name)
    ordered = [frames[place] for place in order]

    levels = functools.cache(lambda: _dicom_volume(ordered, axes, name, view))
    return Frames(
        size[axis],
        lambda place: section(np.moveaxis(levels(), axis, 0)[place], spacing, axis),
        lambda place: _dicom_window(*ordered[len(ordered) // 2], name, view),
    )


def _dicom_volume(frames: Sequence[tuple[Any, int]], axes: np.ndarray, name: str, view: View) -> np.ndarray:
    """uint8 [right, anterior, superior], or with 3 channels, of frames in the order of their places.

    The middle frame's window counts for all, and a range is that of all: windows of their own would be stripes.
    """
    from nibabel import apply_orientation

    middle = _look(*frames[len(frames) // 2], name)
    values = [_stored(dataset, place, name) for dataset, place in frames]
    looks = [_look(dataset, place, name) for dataset, place in frames]
    for look in looks:
        for key in _VOI:
            look.pop(key, None)
            if key in middle:
                look[key] = middle[key]
    ends = []
    for (dataset, _), stored, look in zip(frames, values, looks, strict=True):
        ends.append(_extent(stored[~_is_padding(stored, dataset)], stored, look))
    extent = min(low for low, _ in ends), max(high for _, high in ends)
    levels = [
        _dicom_grey(stored, dataset, look, name, view, extent)
        for (dataset, _), stored, look in zip(frames, values, looks, strict=True)
    ]
    return apply_orientation(rearrange(levels, "slice row column ... -> column row slice ..."), axes)
