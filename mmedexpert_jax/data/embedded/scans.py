"""Real images: a marked spot on a slice of a chest CT or a brain MR. Subjects of the test pool occur nowhere else."""

from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from mmedexpert_jax.data.embedded.materials import slices
from mmedexpert_jax.data.embedded.problem import Step
from mmedexpert_jax.data.embedded.seen import ImageTask, Scene

_SOURCE = "pyradiomics 3.0.1 sample data"
_LICENCE = "BSD-3-Clause (pyradiomics)"
SIZE = 84  # pixels, 3 x 3 merged tokens
_MARK = (255, 220, 0)
# sides of a brain MR, where a viewer prints R, L, A and P: a tower of Qwen2-VL has no places of its own (charts.py)
_SIDES = {"left": (60, 60, 255), "right": (255, 60, 60), "top": (255, 255, 255), "bottom": (0, 200, 0)}

TISSUES = ("lung", "fat", "soft tissue", "bone")
_SHADES = ("black", "dark grey", "light grey", "white")
QUARTERS = ("right front", "left front", "right back", "left back")


def subject(kind: str, pool: str) -> str:
    """The volume that a pool draws on: the second subject is the test pool's alone."""
    return f"{kind}{2 if pool == 'test' else 1}"


@cache
def _places(name: str, label: int) -> np.ndarray:
    """Every (slice, row, column) of volume `name` where the label map reads `label`: [N, 3]."""
    return np.argwhere(slices(name)[1] == label)


def _spot(rng: Random, name: str, label: int) -> tuple[int, int, int]:
    """A random one of `_places`."""
    places = _places(name, label)
    index, row, column = (int(i) for i in places[rng.randrange(len(places))])
    return index, row, column


@dataclass(frozen=True)
class _Cut:
    """A square of a slice, scaled to SIZE pixels, with a mark of half width `half` centred on a spot of it."""

    name: str
    index: int
    corner: tuple[int, int]
    side: int
    mark: tuple[int, int]
    half: int

    @classmethod
    def round(cls, name: str, spot: tuple[int, int, int], corner: tuple[int, int], side: int, half: int) -> "_Cut":
        """The cut at `corner` (top, left) whose mark is centred on `spot` (slice, row, column)."""
        row, column = (round((c - o + 0.5) * SIZE / side) for c, o in zip(spot[1:], corner, strict=True))
        return cls(name, spot[0], corner, side, (row, column), half)

    @property
    def values(self) -> dict[str, object]:
        """The parameters of the picture."""
        return {"subject": self.name, "slice": self.index, "corner": self.corner, "mark": self.mark}

    def draw(self) -> Image.Image:
        """The picture, SIZE x SIZE."""
        (top, left), (row, column) = self.corner, self.mark
        pixels = slices(self.name)[0][self.index][top : top + self.side, left : left + self.side]
        image = Image.fromarray(pixels).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        box = (column - self.half, row - self.half, column + self.half, row + self.half)
        ImageDraw.Draw(image).rectangle(box, outline=_MARK, width=2)
        return image


def framed(image: Image.Image) -> Image.Image:
    """The picture with a bar of 4 pixels along each side, in the side's colour."""
    draw, end = ImageDraw.Draw(image), SIZE - 1
    bars = {"left": (0, 0, 3, end), "right": (end - 3, 0, end, end), "top": (4, 0, end - 4, 3)}
    for side, bar in (bars | {"bottom": (4, end - 3, end - 4, end)}).items():
        draw.rectangle(bar, fill=_SIDES[side])
    return image


def chest_scene(rng: Random, band: int, pool: str) -> Scene:
    """A spot on a chest CT; the Hounsfield units under it name the tissue."""
    name = subject("lung", pool)
    spot = _spot(rng, name, band + 1)
    side = 64
    limit = slices(name)[0].shape[1] - side
    top, left = (min(limit, max(0, c - rng.randint(16, side - 16))) for c in spot[1:])
    cut = _Cut.round(name, spot, (top, left), side, 9)
    steps = (Step(f"{_SHADES[band]} in the mark", f"is {TISSUES[band]}", band),)
    return Scene(cut.draw(), steps, cut.values)


CHEST = ImageTask(
    task="chest_ct",
    specialty="AM",
    title="Hounsfield scale",
    doi="10.1259/0007-1285-46-552-1016",
    source=_SOURCE,
    licence=_LICENCE,
    contexts=("a chest CT with a mark", "a mark on a chest CT", "a CT of the chest with one mark"),
    what="tissue in the mark",
    options=TISSUES,
    prior="lung",
    mechanism="Denser tissue absorbs more and looks brighter",
    scene=chest_scene,
    ordered=False,
)


def brain_scene(rng: Random, band: int, pool: str) -> Scene:
    """A spot on a brain MR; the header's axes give side and depth. The right of the image is the patient's left."""
    name = subject("brain", pool)
    spot = _spot(rng, name, band + 1)
    cut = _Cut.round(name, spot, (0, 0), slices(name)[0].shape[1], 7)
    # an image shows the patient from the feet: what is on its right is the patient's left
    side, seen = (("right", "left"), ("left", "right"))[band % 2]
    half = "lower" if band >= 2 else "upper"
    steps = (
        Step(f"mark on the image {seen}", f"is the {side} side", band % 2),
        Step(f"mark in the {half} half", f"is {QUARTERS[band]}", band),
    )
    return Scene(framed(cut.draw()), steps, cut.values)


BRAIN = ImageTask(
    task="brain_mr",
    specialty="BS",
    title="Radiological orientation",
    doi="10.1158/0008-5472.CAN-17-0339",
    source=_SOURCE,
    licence=_LICENCE,
    contexts=("an axial brain MR with a mark", "a mark on a brain MR", "a contrast MR of the brain with one mark"),
    what="quarter of the brain in the mark",
    options=QUARTERS,
    prior="left front",
    mechanism="Axial slices are seen from below, face up",
    scene=brain_scene,
    ordered=False,
)

TASKS = (CHEST, BRAIN)
