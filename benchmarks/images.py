"""Decoding of medical and 16-bit images beside pydicom and Pillow alone: pictures a second of one core's time, best of
three.

python benchmarks/images.py
"""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from mmedexpert_jax.processing import decode


def by_pydicom(content: bytes) -> Image.Image:
    """A grey DICOM frame by pydicom's LUTs and Pillow, as its documentation shows."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    values = (values - values.min()) / max(values.max() - values.min(), 1e-12)
    return Image.fromarray(np.round(values * 255).astype(np.uint8)).convert("RGB")


def by_pillow(content: bytes) -> Image.Image:
    """A 16-bit image scaled by its full range."""
    values = np.asarray(Image.open(io.BytesIO(content)), np.float64)
    return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")


def rate(function: Callable[[bytes], object], content: bytes, seconds: float = 0.3) -> float:
    """Calls a second of the processor's time, which no other work takes; the best of three rounds."""
    best = 0.0
    for _ in range(3):
        began, calls = time.process_time(), 0
        while time.process_time() - began < seconds:
            function(content)
            calls += 1
        best = max(best, calls / (time.process_time() - began))
    return best


def main() -> None:
    """Prints a table and one JSON line."""
    ramp = np.linspace(0, 65535, 2000 * 2000).reshape(2000, 2000).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    get = pydicom.data.get_testdata_file
    files = {
        "CT 128 x 128": (Path(get("CT_small.dcm")).read_bytes(), by_pydicom),
        "MR 1024 x 1024, JPEG 2000": (Path(get("MR2_J2KR.dcm")).read_bytes(), by_pydicom),
        "CR 1955 x 1841": (Path(get("RG1_UNCR.dcm")).read_bytes(), by_pydicom),
        "PNG 2000 x 2000 of 16 bits": (buffer.getvalue(), by_pillow),
    }
    results = {}
    for name, (content, peer) in files.items():
        results[name] = (rate(decode, content), rate(peer, content))
        print(f"{name:28} ours {results[name][0]:8.1f} /s   pydicom or Pillow alone {results[name][1]:8.1f} /s")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
