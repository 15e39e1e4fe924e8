"""RGB pictures as the patches that Qwen2-VL's vision tower reads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmedexpert_jax.errors import ConfigError, DataError

MAX_PIXELS = 401_408  # 512 merged tokens
MAX_ASPECT = 200  # longest side over shortest, as in transformers
BICUBIC = int(Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class ImageConfig:
    """What preprocessor_config.json fixes. The defaults are Qwen2-VL's, but for max_pixels."""

    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # a still image fills every frame of it
    merge_size: int = 2  # patches on a side of one text token
    min_pixels: int = 56 * 56
    max_pixels: int = MAX_PIXELS
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        if self.merge_size != 2:
            raise DataError(f"merge_size is {self.merge_size}: only 2 is supported, the one of Qwen2-VL and Qwen2.5-VL")
        if self.max_pixels < max(self.min_pixels, self.factor**2):
            least = max(self.min_pixels, self.factor**2)
            raise ConfigError(f"max_pixels is {self.max_pixels}, below the {least} that this processor needs: raise it")

    @property
    def factor(self) -> int:
        """Sides of a resized image are multiples of this, in pixels."""
        return self.patch_size * self.merge_size

    @property
    def patch_dim(self) -> int:
        """Values in one patch: 3 channels, frames, rows, columns."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], max_pixels: int | None = None) -> "ImageConfig":
        """Reads preprocessor_config.json in its old (min_pixels, max_pixels) or new (size) form.

        Args:
            values: the file's content.
            max_pixels: takes the place of the file's own limit; None caps that limit at MAX_PIXELS.

        Raises:
            DataError: the file asks for a step or size that this module does not do.
            ConfigError: `max_pixels` is too low.
        """
        fixed = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": BICUBIC}
        for key, expected in fixed.items():
            if values.get(key, expected) != expected:
                raise DataError(f"preprocessor_config.json: {key} is {values[key]!r}, only {expected!r} is supported")
        if not math.isclose(values.get("rescale_factor", 1 / 255), 1 / 255):
            raise DataError("preprocessor_config.json: rescale_factor is not 1/255, the only supported value")
        size = values.get("size") or {}
        lowest = values.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or cls.min_pixels
        highest = values.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or MAX_PIXELS
        return cls(
            patch_size=values.get("patch_size", cls.patch_size),
            temporal_patch_size=values.get("temporal_patch_size", cls.temporal_patch_size),
            merge_size=values.get("merge_size", cls.merge_size),
            min_pixels=lowest,
            max_pixels=min(highest, MAX_PIXELS) if max_pixels is None else max_pixels,
            mean=tuple(values.get("image_mean", cls.mean)),
            std=tuple(values.get("image_std", cls.std)),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of preprocessor_config.json that transformers reads, old and new."""
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "resample": BICUBIC,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
        }


def smart_resize(height: int, width: int, config: ImageConfig = ImageConfig()) -> tuple[int, int]:
    """Size in pixels that an image is resized to: multiples of `factor`, area in [min_pixels, max_pixels].

    The rule is transformers' `smart_resize`, half-way cases to the even multiple included.

    Raises:
        DataError: one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise DataError(f"an image of {width} x {height} pixels is longer than {MAX_ASPECT} to 1; crop it")
    factor = config.factor
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > config.max_pixels:
        scale = math.sqrt(height * width / config.max_pixels)
        rows = max(factor, math.floor(height / scale / factor) * factor)
        columns = max(factor, math.floor(width / scale / factor) * factor)
    elif rows * columns < config.min_pixels:
        scale = math.sqrt(config.min_pixels / (height * width))
        rows = math.ceil(height * scale / factor) * factor
        columns = math.ceil(width * scale / factor) * factor
    return rows, columns


def patchify(image: Image.Image, config: ImageConfig = ImageConfig()) -> tuple[np.ndarray, tuple[int, int]]:
    """Resized, normalised patches, bit-equal to transformers' `Qwen2VLImageProcessorPil`.

    Args:
        image: RGB, as `images.decode` gives it.
        config: sizes, limits and normalisation.

    Returns:
        patches [rows * columns, 3 * frames * patch_size**2] float32, the four patches of a merged token together,
        and (rows, columns) of the patch grid, both even.
    """
    height, width = smart_resize(image.height, image.width, config)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    size, merge = config.patch_size, config.merge_size
    rows, columns = height // size, width // size
    pixels = pixels.reshape(rows // merge, merge, size, columns // merge, merge, size, 3)
    pixels = pixels.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, 1, size**2)

    levels = (np.arange(256) * (1 / 255)).astype(np.float32)[:, None]
    table = (levels - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)  # [256, 3]
    values = np.empty((rows * columns, 3, config.temporal_patch_size, size**2), np.float32)
    for channel in range(3):
        values[:, channel] = table[pixels[:, channel], channel]
    return values.reshape(rows * columns, config.patch_dim), (rows, columns)
