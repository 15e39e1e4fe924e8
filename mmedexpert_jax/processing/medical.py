"""DICOM and NIfTI as 8-bit pictures: only pixels leave this module, never a header (extra `medical`).

DICOM: modality LUT or rescale, then the header's first VOI LUT or window (PS3.3 C.11), else the frame's own range
without padding; MONOCHROME1 inverted, palettes and YBR as RGB; frames in the file's order, with windows of their own
where functional groups have them. Pixels are decoded by pydicom and its plugins.

NIfTI: the closest canonical orientation, shown as radiologists see it (the patient's right on the left of axial and
coronal pictures, anterior or superior on top; sagittal looks to the left), slices from inferior, posterior or left up;
pixels as high as wide by the voxel sizes; window from cal_min and cal_max, else the volume's 0.5 to 99.5 percentiles;
the first volume of a series.
"""

import functools
import gzip
import io
import math
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.processing.windows import PLANES, Frames, View, grey, windowed

Reader = Callable[[bytes, str, View], Frames]

MAX_BYTES = 2**31  # of an unpacked volume: 1,000 CT slices of 512 x 512 x 16 bits are 2**29
PERCENTILES = (0.5, 99.5)  # of a volume without a window: a few bright voxels would make a whole MR dark
TABLE = 2**17  # stored values up to which a frame is looked up in a table, twice those of 16 bits
_HEADER = 1024  # bytes that hold either NIfTI header
_LOOK = (  # what turns a frame's numbers into grey, where functional groups may say it by frame
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
)
_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")


def reader(content: bytes) -> Reader | None:
    """The function that reads a medical file of this content; None for any other file."""
    if _is_dicom(content):
        return _dicom
    return _nifti if _nifti_size(content) else None


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


def _quiet(function: Callable) -> Callable:
    """Warnings of the libraries about the standard's finer points stay silent; what is wrong raises."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args)

    return wrapped


# ---------------------------------------------------------------------------------------------------- DICOM


@_quiet
def _dicom(content: bytes, name: str, view: View) -> Frames:
    """The frames of a DICOM file."""
    dataset = read_dicom(content, name)
    if view.plane:
        raise DataError(f"{name}: a plane is of a NIfTI volume; DICOM frames are shown as they were taken")
    if not any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DataError(f"{name}: a DICOM file without a picture ({_kind(dataset)}); leave it out")
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    limit = Image.MAX_IMAGE_PIXELS
    if not rows * columns or (limit and rows * columns > limit):
        raise DataError(f"{name}: a DICOM picture of {columns} x {rows} pixels; 1 to {limit:,} pixels are read")
    return Frames(int(dataset.get("NumberOfFrames") or 1), lambda place: _dicom_frame(dataset, place, name, view))


def read_dicom(content: bytes, name: str) -> Any:
    """The data set of a file. Raises DataError, and ConfigError without pydicom."""
    pydicom = _library("pydicom", name, "DICOM", "pydicom pylibjpeg pylibjpeg-openjpeg python-gdcm")
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        if not hasattr(dataset, "file_meta") or "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            if not hasattr(dataset, "file_meta"):
                dataset.file_meta = pydicom.dataset.FileMetaDataset()
            explicit = "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
            dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else explicit
        return dataset
    except Exception as error:  # pydicom raises nearly anything on a broken file
        raise DataError(f"{name}: not a DICOM file that can be read ({_line(error)})") from None


@_quiet
def series(folder: Path, name: str) -> list[Path]:
    """The files of a folder that holds one DICOM series, in the order of their places along the slices' normal.

    Raises:
        DataError: no DICOM file, several series, or one that cannot be read.
    """
    found: list[tuple[float, int, Path]] = []
    ids = set()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        with file.open("rb") as head:
            if head.read(132)[128:] != b"DICM":
                continue
        dataset = read_dicom(file.read_bytes(), f"{name}/{file.name}")
        if "PixelData" not in dataset:
            continue
        ids.add(str(dataset.get("SeriesInstanceUID", "")))
        found.append((_along_normal(dataset), int(dataset.get("InstanceNumber") or 0), file))
    if not found:
        raise DataError(f"{name}: a folder without DICOM pictures; give the folder of one series, or a file")
    if len(ids) > 1:
        raise DataError(f"{name}: {len(ids)} series in one folder; put each into a folder of its own")
    return [file for _, _, file in sorted(found)]


def _along_normal(dataset: Any) -> float:
    """Place of a slice along its normal in mm; 0 where the header does not say it."""
    try:
        axes = np.array([float(x) for x in dataset.ImageOrientationPatient]).reshape(2, 3)
        return float(np.cross(*axes) @ np.array([float(x) for x in dataset.ImagePositionPatient]))
    except (AttributeError, TypeError, ValueError):
        return 0.0


@_quiet
def _dicom_frame(dataset: Any, place: int, name: str, view: View) -> Image.Image:
    from pydicom.pixels import apply_color_lut, pixel_array

    try:
        values = pixel_array(dataset, index=place if int(dataset.get("NumberOfFrames") or 1) > 1 else None)
    except Exception as error:
        syntax = getattr(dataset.file_meta.TransferSyntaxUID, "name", "?")
        raise DataError(f"{name}: its pixels cannot be decoded ({syntax}: {_line(error)})") from None
    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind.startswith("MONOCHROME"):
        return Image.fromarray(_dicom_grey(values, dataset, place, name, view)).convert("RGB")
    if view.window is not None:
        raise DataError(f"{name}: a window is of grey values, and this DICOM picture is in colour; leave it out")
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    depth = values.dtype.itemsize * 8
    if "PALETTE" not in kind:
        depth = int(dataset.get("BitsStored") or depth)
    return Image.fromarray(grey(values / (2.0**depth - 1)) if depth != 8 else values.astype(np.uint8)).convert("RGB")


def _dicom_grey(values: np.ndarray, dataset: Any, place: int, name: str, view: View) -> np.ndarray:
    """Stored values [H, W] as uint8 [H, W], or [H, W, 3] under three windows."""
    look = _look(dataset, place)
    padding = dataset.get("PixelPaddingValue")
    if values.dtype.kind not in "iu" or int(values.max()) - int(values.min()) >= TABLE:
        return _levels(values, values != padding, look, dataset, name, view)
    # every step below is pointwise: applied to each value once, and looked up, it costs a tenth
    lowest = int(values.min())
    domain = np.arange(lowest, int(values.max()) + 1)
    index = values.astype(np.int32) - lowest
    present = np.bincount(index.ravel(), minlength=len(domain)) > 0
    return _levels(domain, present & (domain != padding), look, dataset, name, view)[index]


def _levels(values: np.ndarray, held: np.ndarray, look: Any, dataset: Any, name: str, view: View) -> np.ndarray:
    """Stored values [...] as uint8 [...] or [..., 3]; `held` [...]: those that count for a range."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    units = apply_modality_lut(values, look)
    inside = units[held] if held.any() else units
    extent = float(inside.min()), float(inside.max())
    if view.window is not None:
        # Hounsfield units are CT's alone; PET, MR and X-ray rescale to units of their own
        hounsfield = dataset.get("Modality") == "CT" and "RescaleSlope" in look
        full = extent if view.window == "range" else _full(look)
        window = "full" if view.window == "range" else view.window
        levels = windowed(units.astype(np.float64), window, full, name, hounsfield)
    elif _has_lut(look):
        levels = grey(apply_voi_lut(units, look) / (2.0 ** int(look.VOILUTSequence[0].LUTDescriptor[2]) - 1))
    else:
        shown, (low, high) = (apply_voi_lut(units, look), _full(look)) if _has_window(look) else (units, extent)
        levels = grey((shown.astype(np.float64) - low) / ((high - low) or 1.0))
    return 255 - levels if look.PhotometricInterpretation == "MONOCHROME1" else levels


def _look(dataset: Any, place: int) -> Any:
    """The attributes that make grey of one frame's stored values: the frame's own where functional groups say it."""
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
    if not _has_window(look):
        for key in ("WindowCenter", "WindowWidth"):
            look.pop(key, None)
    if not _has_lut(look):
        look.pop("VOILUTSequence", None)
    return look


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


def _full(look: Any) -> tuple[float, float]:
    """Lowest and highest value after the modality LUT that the bit depth allows; pydicom's windows end there."""
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


# ---------------------------------------------------------------------------------------------------- NIfTI


def _nifti_size(content: bytes) -> int:
    """348 or 540, the size of a NIfTI header, of a file that begins with one, packed or not; 0 for any other file."""
    head = content[:_HEADER]
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(31).decompress(content[: 64 * _HEADER], _HEADER)
        except zlib.error:
            return 0
    for size, place in ((348, 344), (540, 4)):
        if head[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")) and head[place : place + 2] in (
            b"n+",
            b"ni",
        ):
            return size
    return 0


@_quiet
def _nifti(content: bytes, name: str, view: View) -> Frames:
    """The slices of a volume along a plane's normal."""
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[view.plane or PLANES[0]]

    def frame(place: int) -> Image.Image:
        volume, spacing, limits = _volume(content, name)
        values = np.take(volume, place, axis=axis).astype(np.float64)
        window = view.window
        if window is None:
            levels = grey((values - limits[0]) / max(limits[1] - limits[0], 1e-12))
        else:
            levels = windowed(values, window, (float(volume.min()), float(volume.max())), name, hounsfield=True)
        # canonical axes point right, anterior, superior: both are reversed to show the patient face to face
        picture = Image.fromarray(levels[::-1, ::-1].swapaxes(0, 1)).convert("RGB")
        wide, high = (size for i, size in enumerate(spacing) if i != axis)
        return _square(picture, wide, high)

    return Frames(_canonical(_header(content, name), name)[0][axis], frame)


def _square(picture: Image.Image, wide: float, high: float) -> Image.Image:
    """A picture of pixels `wide` by `high` mm with pixels as high as wide, of the smaller of the two."""
    if not (wide > 0 and high > 0) or abs(wide / high - 1) < 0.01:
        return picture
    side = min(wide, high)
    size = (max(1, round(picture.width * wide / side)), max(1, round(picture.height * high / side)))
    limit = Image.MAX_IMAGE_PIXELS
    if limit and size[0] * size[1] > limit:  # a header that lies
        return picture
    return picture.resize(size, Image.Resampling.BILINEAR)


def _header(content: bytes, name: str) -> Any:
    """The header, without the volume. Raises DataError, and ConfigError without nibabel."""
    nibabel = _library("nibabel", name, "NIfTI", "nibabel")
    size = _nifti_size(content)
    kind = nibabel.Nifti2Header if size == 540 else nibabel.Nifti1Header
    packed = content[:2] == b"\x1f\x8b"
    head = zlib.decompressobj(31).decompress(content[: 64 * _HEADER], _HEADER) if packed else content
    try:
        header = kind(head[:size], check=False)
        header.get_best_affine()
    except Exception as error:  # nibabel raises nearly anything on a broken file
        raise DataError(f"{name}: not a NIfTI file that can be read ({_line(error)})") from None
    shape = header.get_data_shape()
    if not 2 <= len(shape) <= 4 or math.prod(shape) < 1:
        raise DataError(f"{name}: a NIfTI file of shape {shape} is no volume")
    if np.dtype(header.get_data_dtype()).kind not in "iuf":
        raise DataError(f"{name}: NIfTI values of type {header.get_data_dtype()} are not read; save them as grey")
    if math.prod(shape[:3]) * header.get_data_dtype().itemsize > MAX_BYTES:
        raise DataError(f"{name}: a volume of shape {shape} has more than {MAX_BYTES >> 30} GiB; crop it")
    return header


def _canonical(header: Any, name: str) -> tuple[tuple[int, ...], tuple[float, ...], np.ndarray]:
    """Shape and voxel sizes in mm along right, anterior, superior, and nibabel's orientation that leads there."""
    from nibabel import io_orientation

    axes = io_orientation(header.get_best_affine())
    if np.isnan(axes).any():
        raise DataError(f"{name}: the orientation of its NIfTI header is void; write a proper affine")
    shape, sizes = ([*values[:3], 1, 1][:3] for values in (header.get_data_shape(), header.get_zooms()))
    places = [int(np.flatnonzero(axes[:, 0] == axis)[0]) for axis in range(3)]
    return tuple(shape[place] for place in places), tuple(float(sizes[place]) for place in places), axes


@functools.lru_cache(maxsize=1)  # the slices of one volume are asked for one after another
def _volume(content: bytes, name: str) -> tuple[np.ndarray, tuple[float, ...], tuple[float, float]]:
    """Values [right, anterior, superior], voxel sizes in mm in that order, and the limits of the grey scale."""
    from nibabel import Nifti1Image, Nifti2Image, apply_orientation

    header = _header(content, name)
    _, spacing, axes = _canonical(header, name)
    try:
        image = (Nifti2Image if _nifti_size(content) == 540 else Nifti1Image).from_bytes(_unpacked(content, name))
        values = np.asanyarray(image.dataobj[..., 0] if len(image.shape) == 4 else image.dataobj)
        values = apply_orientation(values[..., None] if values.ndim == 2 else values, axes)
    except DataError:
        raise
    except Exception as error:  # nibabel raises nearly anything on a broken file
        raise DataError(f"{name}: not a NIfTI file that can be read ({_line(error)})") from None
    if not np.isfinite(values).all():
        raise DataError(f"{name}: NIfTI values that are not finite; write 0 in their place")
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if not high > low:
        low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return values, spacing, (low, high)


def _unpacked(content: bytes, name: str) -> bytes:
    if content[:2] != b"\x1f\x8b":
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        plain = file.read(MAX_BYTES + 1)
    if len(plain) > MAX_BYTES:
        raise DataError(f"{name}: unpacks to more than {MAX_BYTES / 2**30:.0f} GiB; crop the volume")
    return plain


def _library(name: str, file: str, kind: str, packages: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise ConfigError(f'{file} is {kind}, read by the extra "medical": pip install {packages}') from None


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]
