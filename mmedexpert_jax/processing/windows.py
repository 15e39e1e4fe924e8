"""Grey values to 8 bits by a window, and the choice of slices among many: what a case may say of an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmedexpert_jax.border import shown
from mmedexpert_jax.errors import DataError

# (centre, width) in Hounsfield units; Radiopaedia, "Windowing (CT)"
PRESETS: dict[str, tuple[float, float]] = {
    "lung": (-600, 1500),
    "bone": (400, 1800),
    "brain": (40, 80),
    "soft tissue": (50, 400),
    "mediastinum": (50, 350),
    "liver": (30, 150),
    "stroke": (40, 40),
    "wide": (0, 2048),
}
PLANES = ("axial", "coronal", "sagittal")
Window = str | tuple  # a preset, "range", "full", (centre, width), or three of these


@dataclass(frozen=True)
class View:
    """The view of a file that holds several pictures or more than 8 bits."""

    window: Window | None = None  # as in `images.decode`; None: the file's own
    # so many at even distances, or their indices; None: the file holds one picture
    slices: int | tuple[int, ...] | None = None
    plane: str = ""  # one of PLANES; "": as taken of DICOM, else axial

    @classmethod
    def make(cls, window: Any = None, slices: Any = None, plane: Any = None, name: str = "image") -> "View":
        """A view of what a row says of an image. Raises DataError, a line that begins with `name`."""
        if isinstance(slices, list | tuple) and slices and all(_whole(k) for k in slices):
            slices = tuple(int(k) for k in slices)
        elif not (slices is None or (_whole(slices) and slices > 0)):
            raise DataError(f"{name}, slices: {shown(slices)} is no count from 1 and no list of indices from 0")
        if plane is not None and plane not in ("", *PLANES):
            raise DataError(f"{name}, plane: {shown(plane)} is none of {', '.join(PLANES)}")
        return cls(None if window is None else _window(window, name), slices, plane or "")


@dataclass(frozen=True)
class Frames:
    """The pictures of one file: how many, and a function that decodes the one of an index."""

    count: int
    frame: Callable[[int], Image.Image]
    # (centre, width) under which a picture of more than 8 bits is shown; None of colours and plain pictures
    window: Callable[[int], tuple[float, float] | None] = lambda place: None


def between(low: float, high: float) -> tuple[float, float]:
    """(centre, width) of the window from black at `low` to white at `high`, by `linear`."""
    return low + (high - low + 1) / 2, high - low + 1


def settled(window: Window, extent: tuple[float, float], full: tuple[float, float]) -> tuple[float, float] | None:
    """(centre, width) of a window; None of three, one for each colour. `extent`, `full`: of "range" and of "full"."""
    if isinstance(window, tuple):
        return None if len(window) == 3 else window
    ends = {"range": extent, "full": full}
    return between(*ends[window]) if window in ends else PRESETS[window]


def chosen(count: int, slices: int | Sequence[int] | None, name: str) -> tuple[int, ...]:
    """Indices of the pictures to be seen among `count`.

    n at even distances are the middles of n equal parts, since the ends of a volume are mostly air; all of them where
    there are fewer. Raises DataError.
    """
    if slices is None:
        if count != 1:
            raise DataError(
                f'{name}: {count} frames or slices; choose with "slices": 4 (so many at even distances) or [0, 9], '
                "or save the one to be seen as a still image"
            )
        return (0,)
    if isinstance(slices, int):
        wanted = min(slices, count)
        return tuple((2 * i + 1) * count // (2 * wanted) for i in range(wanted))
    outside = [k for k in slices if not 0 <= k < count]
    if outside:
        raise DataError(f"{name}: no slice {outside[0]}; it has {count}, from 0 to {count - 1}")
    return tuple(slices)


def windowed(
    values: np.ndarray,
    window: Window,
    extent: tuple[float, float],
    full: tuple[float, float],
    name: str,
    hounsfield: bool = False,
) -> np.ndarray:
    """Grey values as uint8.

    Args:
        values: [H, W] float.
        window: as in `images.decode`.
        extent: (lowest, highest) value of "range": of all slices of a volume, so that these have one scale.
        full: (lowest, highest) value that the bit depth allows.
        name: of the image, for errors.
        hounsfield: the values are Hounsfield units, which presets are stated in.

    Returns:
        [H, W], or [H, W, 3] for three windows.
    """
    if isinstance(window, tuple) and len(window) == 3:
        return np.stack([windowed(values, one, extent, full, name, hounsfield) for one in window], axis=-1)
    if window in ("range", "full"):
        lowest, highest = extent if window == "range" else full
        return grey((values - lowest) / max(highest - lowest, 1e-12))
    if isinstance(window, str):
        if not hounsfield:
            raise DataError(f"{name}: the window {window!r} is of Hounsfield units (CT); give [centre, width] or range")
        window = PRESETS[window]
    return grey(linear(values, *window))


def linear(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Shares of full white, not clipped, by DICOM's linear VOI function (PS3.3 C.11.2.1.2.1); of widths up to 1, which
    it does not know (a volume scaled to 0..1), by LINEAR_EXACT (C.11.2.1.3.2)."""
    if width <= 1:
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / (width - 1) + 0.5


def grey(fractions: np.ndarray) -> np.ndarray:
    """Shares of full white as uint8; halves go to the even level."""
    return np.round(np.clip(fractions, 0, 1) * 255).astype(np.uint8)


def _window(value: Any, name: str) -> Window:
    value = value.replace("_", " ") if isinstance(value, str) else value
    if isinstance(value, str) and value in (*PRESETS, "range", "full"):
        return value
    if isinstance(value, list | tuple) and len(value) == 2 and all(_number(v) for v in value) and value[1] > 0:
        return (float(value[0]), float(value[1]))
    if isinstance(value, list | tuple) and len(value) == 3 and not any(_number(v) for v in value):
        return tuple(_window(one, name) for one in value)
    known = ", ".join((*PRESETS, "range", "full"))
    raise DataError(f"{name}, window: {shown(value)} is no [centre, width > 0], none of {known}, and no three of these")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
