"""NIfTI volumes as 8-bit pictures: only voxels leave this module, never a header (extra `medical`).

The closest canonical orientation, shown as `volumes.section` says; window from cal_min and cal_max, else the volume's
0.5 to 99.5 percentiles, of a map of labels all of its range; the range is the volume's too; the first volume of a
series.
"""

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mmedexpert_jax.border import one_line
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.volumes import AXES, canonical, kept, library, quiet, section
from mmedexpert_jax.processing.windows import PLANES, Frames, View, between, grey, settled, windowed

MAX_BYTES = 2**31  # of an unpacked volume
PERCENTILES = (0.5, 99.5)  # of a volume without a window: a few bright voxels would make a whole MR dark
LABELS = 32  # values up to which a volume is a map of labels
LOOKED_AT = 1 << 17  # of its values for that
_HEADER = 1024  # bytes that hold either NIfTI header


def header_size(content: bytes) -> int:
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


@quiet
def read(content: bytes, name: str, view: View) -> Frames:
    """The slices of a volume along a plane's normal. Raises DataError, and ConfigError without nibabel."""
    axis = AXES[view.plane or PLANES[0]]
    header = read_header(content, name)
    shape, spacing, axes = canonical(header.get_best_affine(), header.get_data_shape(), header.get_zooms(), name)

    @quiet
    def frame(place: int) -> Any:
        volume = kept(content, "", lambda: Volume(_values(content, axes, name), header))
        values = np.moveaxis(volume.values, axis, 0)[place].astype(np.float64)  # np.take would copy the whole volume
        if view.window is None:
            low, high = volume.limits
            levels = grey((values - low) / max(high - low, 1e-12))
        else:
            asked = {"range", "full"} & {view.window, *view.window}  # all values are looked at for these alone
            extent = volume.extent if asked else (0.0, 1.0)
            levels = windowed(values, view.window, extent, extent, name, hounsfield=True)
        return section(levels, spacing, axis)

    @quiet
    def window(place: int) -> tuple[float, float] | None:
        volume = kept(content, "", lambda: Volume(_values(content, axes, name), header))
        if view.window is None:
            return between(*volume.limits)
        return settled(view.window, volume.extent, volume.extent)

    return Frames(shape[axis], frame, window)


def read_header(content: bytes, name: str) -> Any:
    """The header, without the volume. Raises DataError, and ConfigError without nibabel."""
    nibabel = library("nibabel", name, "NIfTI", "nibabel")
    size = header_size(content)
    if content[344:347] == b"ni1" or content[4:7] == b"ni2":
        raise DataError(f"{name}: the header of a NIfTI pair (.hdr and .img); save both as one .nii")
    kind = nibabel.Nifti2Header if size == 540 else nibabel.Nifti1Header
    packed = content[:2] == b"\x1f\x8b"
    head = zlib.decompressobj(31).decompress(content[: 64 * _HEADER], _HEADER) if packed else content
    try:
        header = kind(head[:size], check=False)
        header.get_best_affine()
        offset = header.get_data_offset()  # NaN and infinity are no whole numbers
    except Exception as error:  # nibabel raises nearly anything on a broken file
        raise DataError(f"{name}: not a NIfTI file that can be read ({one_line(error)})") from None
    shape = header.get_data_shape()
    if not 2 <= len(shape) <= 4 or math.prod(shape) < 1:
        raise DataError(f"{name}: a NIfTI file of shape {shape} is no volume")
    if np.dtype(header.get_data_dtype()).kind not in "iuf":
        raise DataError(f"{name}: NIfTI values of type {header.get_data_dtype()} are not read; save them as grey")
    if offset < size:  # nibabel would show the header's own bytes
        raise DataError(f"{name}: vox_offset is {offset} in its header, which is {size} bytes; correct it")
    if math.prod(shape[:3]) * header.get_data_dtype().itemsize > MAX_BYTES:
        raise DataError(f"{name}: a volume of shape {shape} has more than {MAX_BYTES >> 30} GiB; crop it")
    return header


@dataclass(frozen=True)
class Volume:
    """Values [right, anterior, superior] and their header; what all of them decide is found once, where it is asked."""

    values: np.ndarray
    header: Any

    @cached_property
    def extent(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return float(self.values.min()), float(self.values.max())

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Darkest and brightest value by the header, where that leaves more than black and white, else by the
        percentiles; of a few labels, or where these are one, all of its range."""
        low, high = float(self.header["cal_min"]), float(self.header["cal_max"])
        if math.isfinite(high - low) and high > low:
            whole = low <= self.extent[0] and self.extent[1] <= high
            if whole or bool(((self.values > low) & (self.values < high)).any()):
                return low, high
        # drawn, since each n-th value may be of one slice alone, which may be empty
        places = np.random.default_rng(0).integers(0, self.values.size, LOOKED_AT)
        some = self.values.ravel()[places] if self.values.size > LOOKED_AT else self.values
        low, high = (float(value) for value in np.percentile(self.values, PERCENTILES))
        return (low, high) if high > low and len(np.unique(some)) > LABELS else self.extent


def _values(content: bytes, axes: np.ndarray, name: str) -> np.ndarray:
    """Values [right, anterior, superior] of the first volume. Raises DataError."""
    from nibabel import Nifti1Image, Nifti2Image, apply_orientation

    try:
        image = (Nifti2Image if header_size(content) == 540 else Nifti1Image).from_bytes(_unpacked(content, name))
        values = np.asanyarray(image.dataobj[..., 0] if len(image.shape) == 4 else image.dataobj)
        values = apply_orientation(values[..., None] if values.ndim == 2 else values, axes)
    except DataError:
        raise
    except Exception as error:  # nibabel raises nearly anything on a broken file
        raise DataError(f"{name}: not a NIfTI file that can be read ({one_line(error)})") from None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{name}: NIfTI values that are not finite; write 0 in their place")
    return values


def _unpacked(content: bytes, name: str) -> bytes:
    if content[:2] != b"\x1f\x8b":
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        plain = file.read(MAX_BYTES + 1)
    if len(plain) > MAX_BYTES:
        raise DataError(f"{name}: unpacks to more than {MAX_BYTES / 2**30:.0f} GiB; crop the volume")
    return plain
