"""Volumes along the axes of the patient: where DICOM slices stand, and sections as radiologists look at them."""

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from einops import rearrange
from PIL import Image

from mmedexpert_jax.errors import ConfigError, DataError

AXES = {"axial": 2, "coronal": 1, "sagittal": 0}  # that a plane's normal follows, of right, anterior, superior
UNEVEN = 0.1  # of the usual distance by which two slices' may differ; more is a missing slice, or several stacks
Place = tuple[np.ndarray, np.ndarray, np.ndarray]  # position [3] and axes [2, 3] of a slice, its pixel spacing [2]
Made = TypeVar("Made")

_kept: list[tuple[bytes, Any, Any]] = []
_keeping = threading.RLock()
TURNS = threading.RLock()  # held by who looks at several slices: threads in turn at two volumes would read both anew


def kept(content: bytes, view: Any, make: Callable[[], Made]) -> Made:
    """The result of `make` for a file under a view, made once: a volume's slices are asked for in turn."""
    with _keeping:  # slices asked for side by side would read the volume twice
        for file, seen, made in _kept:
            if seen == view and file == content:  # at once where it is the same object, else by its bytes
                return made
        made = make()
        _kept[:] = [(content, view, made)]  # one volume may fill much of the memory
        return made


def canonical(
    affine: np.ndarray, shape: Sequence[int], sizes: Sequence[float], name: str
) -> tuple[tuple[int, ...], tuple[float, ...], np.ndarray]:
    """Shape and voxel sizes in mm along right, anterior, superior, and nibabel's orientation that leads there.

    Args:
        affine: [4, 4], from voxels to mm right, anterior, superior.
        shape: of the voxels, two axes or more.
        sizes: of a voxel in mm, by its axes.
        name: of the image, for errors.

    Raises:
        DataError: an affine without three directions.
    """
    from nibabel import io_orientation

    axes = io_orientation(affine)
    if np.isnan(axes).any():
        raise DataError(f"{name}: the orientation of its header is void; write a proper affine")
    shape, sizes = ([*values[:3], 1, 1][:3] for values in (shape, sizes))
    places = [int(np.flatnonzero(axes[:, 0] == axis)[0]) for axis in range(3)]
    return tuple(shape[place] for place in places), tuple(float(sizes[place]) for place in places), axes


def section(levels: np.ndarray, spacing: Sequence[float], axis: int) -> Image.Image:
    """A section across `axis` as radiologists see it, the patient face to face, RGB, its pixels as high as wide.

    The patient's right is on the left of axial and coronal pictures, anterior or superior on top; sagittal pictures
    look to the left. `levels` is uint8 [first, second axis that is left, ...]; `spacing` in mm, of all three axes.
    """
    # canonical axes point right, anterior, superior: both are reversed
    picture = Image.fromarray(
        np.ascontiguousarray(rearrange(levels[::-1, ::-1], "across up ... -> up across ..."))
    ).convert("RGB")
    wide, high = (size for i, size in enumerate(spacing) if i != axis)
    return _square(picture, wide, high)


def _square(picture: Image.Image, wide: float, high: float) -> Image.Image:
    """A picture of pixels `wide` by `high` mm with pixels as high as wide, of the smaller of the two."""
    if not (wide > 0 and high > 0) or abs(wide / high - 1) < 0.01:  # nearly square is not worth a resampling
        return picture
    side = min(wide, high)
    size = (max(1, round(picture.width * wide / side)), max(1, round(picture.height * high / side)))
    limit = Image.MAX_IMAGE_PIXELS
    if limit and size[0] * size[1] > limit:  # a header that lies
        return picture
    return picture.resize(size, Image.Resampling.BILINEAR)


def stacked(places: Sequence[Place], name: str) -> tuple[np.ndarray, list[int]]:
    """The affine of parallel slices, from (column, row, slice) to mm right, anterior, superior, and their order.

    Raises:
        DataError: fewer than two, of several directions or spacings, two at one place, or at uneven distances.
    """
    if len(places) < 2:
        raise DataError(f"{name}: a plane is of a volume, and this is one slice; leave it out")
    _, axes, spacing = places[0]
    # a thousandth, of a unit vector or in mm: files give these in decimal digits, rounded by each scanner
    if any(np.abs(one[1] - axes).max() > 1e-3 or np.abs(one[2] - spacing).max() > 1e-3 for one in places):
        raise DataError(f"{name}: slices of several directions or pixel sizes; give one stack, or leave plane out")
    along = np.array([np.cross(*axes) @ position for position, _, _ in places])
    order = np.argsort(along, kind="stable").tolist()
    gaps = np.diff(along[order])
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3:
        raise DataError(
            f"{name}: two slices at one place (a series over time, say); give one stack, or leave plane out"
        )
    if np.abs(gaps - usual).max() > UNEVEN * usual:
        raise DataError(
            f"{name}: slices {gaps.min():.3g} to {gaps.max():.3g} mm apart; fetch what is missing, or leave plane out"
        )
    first, last = (places[place][0] for place in (order[0], order[-1]))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * spacing[1], axes[1] * spacing[0]  # along a row the column changes
    affine[:3, 2], affine[:3, 3] = (last - first) / (len(places) - 1), first
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, order  # DICOM's axes point left, posterior, superior


def place_of(dataset: Any, frame: int, name: str) -> Place:
    """The place of a DICOM file's frame in the patient, by its functional groups or the file. Raises DataError."""
    groups = [
        *list(dataset.get("PerFrameFunctionalGroupsSequence") or ())[frame : frame + 1],
        *list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1],
    ]

    def numbers(sequence: str, key: str, count: int) -> np.ndarray:
        holders = [item for group in groups for item in group.get(sequence) or ()]
        value = next((held[key].value for held in (*holders, dataset) if key in held), None)
        found = np.array([float(number) for number in value or ()])
        if len(found) != count or not np.isfinite(found).all():
            raise DataError(f"{name}: no {key} in its header, so that no plane can be cut; leave plane out")
        return found

    position = numbers("PlanePositionSequence", "ImagePositionPatient", 3)
    axes = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
    spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    offsets = dataset.get("GridFrameOffsetVector")  # of doses (RTDOSE), along the normal
    if offsets:
        position = position + np.cross(*axes) * (float(offsets[frame]) - float(offsets[0]))
    return position, axes, spacing


def library(name: str, file: str, kind: str, packages: str) -> Any:
    """A module of the extra `medical`. Raises ConfigError where it is not installed."""
    try:
        return __import__(name)
    except ImportError:
        raise ConfigError(f'{file} is {kind}, read by the extra "medical": pip install {packages}') from None


def quiet(function: Callable) -> Callable:
    """The function without the libraries' warnings about the standards' finer points; what is wrong raises."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        with TURNS, warnings.catch_warnings():  # its filters are those of all threads
            warnings.simplefilter("ignore")
            return function(*args)

    return wrapped
