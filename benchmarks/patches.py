"""Images to patches: ours against transformers' PIL processor, in turn in one process.

    python benchmarks/patches.py

Prints one JSON line: milliseconds an image (median of the turns) by size, and whether the patches are equal to the last
bit.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from mmedexpert_jax.processing import ImageConfig, patchify

SIZES = ((224, 224), (448, 336), (1024, 768))
TURNS = 15


def measure(function: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    config = ImageConfig()
    peer = Qwen2VLImageProcessorPil(min_pixels=config.min_pixels, max_pixels=config.max_pixels)
    rows = []
    for width, height in SIZES:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        equal = bool(np.array_equal(patchify(image, config)[0], peer(image, return_tensors="np")["pixel_values"]))
        turns = [
            (measure(lambda: patchify(image, config)), measure(lambda: peer(image, return_tensors="np")))  # noqa: B023
            for _ in range(TURNS)
        ]
        ours, theirs = (statistics.median(column) for column in zip(*turns, strict=True))
        row = {"size": f"{width}x{height}", "ours_ms": round(ours, 2), "transformers_ms": round(theirs, 2)}
        rows.append(row | {"times": round(theirs / ours, 2), "equal": equal})
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
