"""Material of others in the recipe, shipped in materials.npz: slices with label maps, and the WHO's LMS values."""

from functools import cache
from pathlib import Path

import numpy as np

PATH = Path(__file__).parents[2] / "assets" / "mmedexpert_mini" / "materials.npz"
FIRST_LENGTH = 60  # cm, of the LMS tables


@cache
def _materials() -> dict[str, np.ndarray]:
    with np.load(PATH) as file:
        return dict(file)


def slices(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Slices and labels of a volume ("lung1", "lung2", "brain1", "brain2"): [S, H, H] uint8 each; label 0 is none."""
    return _materials()[f"{name}_image"], _materials()[f"{name}_label"]


def weight_for_length(sex: str, length: float, z: float) -> float:
    """Weight in kg at `z` standard deviations for `length` in whole cm, from L, M and S (WHO 2006)."""
    power, median, spread = _materials()[f"lms_{sex}"][round(length) - FIRST_LENGTH]
    if abs(z) <= 3:
        return float(median * (1 + power * spread * z) ** (1 / power))
    edge = 3 if z > 0 else -3
    end, before = weight_for_length(sex, length, edge), weight_for_length(sex, length, edge - np.sign(edge))
    return end + abs(end - before) * (z - edge)
