"""RGB pictures as the patches that Qwen2-VL's vision tower reads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Protocol, TypedDict

import numpy as np
from einops import rearrange
from msgspec import Meta
from PIL import Image

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.processing.positions import mrope_positions, patch_positions

MAX_TOKENS = 512  # of an image where no limit is asked for; appendix B
MAX_PIXELS = 401_408  # the same in pixels of Qwen2-VL, whose merged token has 28 x 28
MAX_ASPECT = 200  # longest side over shortest, as in transformers
BICUBIC = int(Image.Resampling.BICUBIC)


_Size = Annotated[int, Meta(ge=1, le=4096)]
_Pixels = Annotated[int, Meta(ge=1, lt=2**31)]
Channels = Annotated[list[float], Meta(min_length=3, max_length=3)]


class _Edges(TypedDict, total=False):
    shortest_edge: _Pixels | None
    longest_edge: _Pixels | None
    min_pixels: _Pixels | None
    max_pixels: _Pixels | None


class _Settings(TypedDict, total=False):
    """The keys of preprocessor_config.json that are read, of every generation of transformers."""

    do_resize: bool | None
    do_rescale: bool | None
    do_normalize: bool | None
    resample: int | None
    rescale_factor: float | None
    size: _Edges | None
    min_pixels: _Pixels | None
    max_pixels: _Pixels | None
    patch_size: _Size
    temporal_patch_size: _Size
    merge_size: _Size
    image_mean: Channels
    image_std: Channels


Grid = tuple[int, int]  # rows and columns of patches


class Pictures(Protocol):
    """A family's way with pictures: what `Processor` asks of an image config."""

    @property
    def merged(self) -> int:
        """Patches of one text token."""

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest picture that the tower sees."""

    @property
    def patch_dim(self) -> int:
        """Values in one patch."""

    def cut(self, image: Image.Image, part: Mapping[str, Any]) -> tuple[np.ndarray, Grid]:
        """The patches [n, C] float32 of an RGB picture, and their grid; `part` is the message's. Raises DataError."""

    def positions(self, tokens: np.ndarray, image_token_id: int, grids: Sequence[Grid]) -> tuple[np.ndarray, int]:
        """Rotary positions [3, T] int32 of a prompt, and that of the token after it. Raises DataError."""

    def patch_positions(self, rows: int, columns: int) -> np.ndarray:
        """Row and column [n, 2] int32 of each patch, in the order of `cut`."""

    def to_hf(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""


@dataclass(frozen=True)
class ImageConfig:
    """The settings of preprocessor_config.json. The defaults are Qwen2-VL's, but for max_pixels."""

    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # a still image fills every frame of it
    merge_size: int = 2  # patches on a side of one text token
    min_pixels: int = 56 * 56
    max_pixels: int = MAX_PIXELS
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    stored_max_pixels: int = field(
        default=0, compare=False
    )  # the file's own limit, which an export keeps; 0: max_pixels

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

    @property
    def merged(self) -> int:
        """Patches of one text token."""
        return self.merge_size**2

    def cut(self, image: Image.Image, part: Mapping[str, Any]) -> tuple[np.ndarray, Grid]:
        """`patchify` at the size that the settings and the message's part ask for."""
        config = self.of_part(part)
        return patchify(resized_part(image, part, config), config)

    def positions(self, tokens: np.ndarray, image_token_id: int, grids: Sequence[Grid]) -> tuple[np.ndarray, int]:
        """M-RoPE (`mrope_positions`)."""
        return mrope_positions(tokens, image_token_id, grids)

    def patch_positions(self, rows: int, columns: int) -> np.ndarray:
        """Rows and columns, the four patches of a merged token together."""
        return patch_positions(rows, columns)

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], max_pixels: int | None = None) -> "ImageConfig":
        """Reads preprocessor_config.json in its old (min_pixels, max_pixels) or new (size) form.

        Args:
            values: the file's content.
            max_pixels: takes the place of the file's own limit; None caps that limit at MAX_TOKENS.

        Raises:
            DataError: a value of another type or out of bounds, or a step or size that this module does not do.
            ConfigError: `max_pixels` is too low.
        """
        place, given = "preprocessor_config.json", values.get("size")
        if not all(border.finite(values.get(key)) for key in ("image_mean", "image_std", "rescale_factor")):
            raise DataError(f"{place}: a mean, deviation or factor is not finite; copy the base model's file")
        values = border.check(
            {key: values[key] for key in _Settings.__annotations__ if key in values}, _Settings, place
        )
        refuse_other_steps(values, place, resample=BICUBIC)
        if not all(std > 0 for std in values.get("image_std", cls.std)):
            raise DataError(f"{place}: image_std {values['image_std']} must be above 0; copy the base model's file")
        size, edges = values.get("size") or {}, {key for key, edge in (given or {}).items() if edge is not None}
        if edges not in (set(), {"shortest_edge", "longest_edge"}, {"min_pixels", "max_pixels"}):
            named = border.cut(", ".join(sorted(edges)))
            raise DataError(
                f"{place}: size has {named}, not shortest_edge and longest_edge; copy the base model's file"
            )
        patch, merge = values.get("patch_size", cls.patch_size), values.get("merge_size", cls.merge_size)
        usual = MAX_TOKENS * (patch * merge) ** 2
        lowest = values.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or cls.min_pixels
        highest = values.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or usual
        stored = highest if max_pixels is None else max_pixels
        return cls(
            patch_size=patch,
            temporal_patch_size=values.get("temporal_patch_size", cls.temporal_patch_size),
            merge_size=merge,
            min_pixels=lowest,
            max_pixels=min(highest, usual) if max_pixels is None else max_pixels,
            mean=tuple(values.get("image_mean", cls.mean)),
            std=tuple(values.get("image_std", cls.std)),
            stored_max_pixels=stored,
        )

    def of_part(self, part: Mapping[str, Any]) -> "ImageConfig":
        """The settings for one image part of a message, whose own min_pixels and max_pixels come first; a size of its
        own is bounded by the file's limit (or the one asked for in its place) alone.

        As in qwen-vl-utils. Raises DataError for values that are no numbers of pixels.
        """
        own = {key: part[key] for key in ("min_pixels", "max_pixels") if part.get(key) is not None}
        border.check(own, dict[str, _Pixels], "an image part")
        least = max(own.get("min_pixels", min(self.min_pixels, own.get("max_pixels", self.max_pixels))), 1)
        sized = part.get("resized_height") is not None
        limit = max(self.max_pixels, self.stored_max_pixels) if sized else self.max_pixels
        most = own.get("max_pixels", max(limit, least))
        if most < max(least, self.factor**2):
            raise DataError(f"an image part: max_pixels {most} is below {max(least, self.factor**2)}: raise it")
        return replace(self, min_pixels=least, max_pixels=most)

    def to_hf(self) -> dict[str, Any]:
        """The content of preprocessor_config.json that transformers reads, old and new."""
        most = self.stored_max_pixels or self.max_pixels
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "resample": BICUBIC,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": most},
            "min_pixels": self.min_pixels,
            "max_pixels": most,
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


def resized_part(image: Image.Image, part: Mapping[str, Any], config: ImageConfig) -> Image.Image:
    """The picture at the resized_height and resized_width that an image part asks for, to whole merged tokens.

    As in qwen-vl-utils; both or none must be given. Raises DataError.
    """
    sides = {key: part[key] for key in ("resized_height", "resized_width") if part.get(key) is not None}
    if not sides:
        return image
    if len(sides) == 1:
        raise DataError(f"an image part has {next(iter(sides))} alone; give resized_height and resized_width")
    border.check(sides, dict[str, Annotated[int, Meta(ge=1, le=2**16)]], "an image part")
    height, width = smart_resize(sides["resized_height"], sides["resized_width"], config)
    return image.resize((width, height), Image.Resampling.BICUBIC)


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
    axes = "(r m y) (c n x) channels -> (r c m n) channels 1 (y x)"
    pixels = rearrange(pixels, axes, m=merge, n=merge, y=size, x=size)

    table = levels(config.mean, config.std)
    values = np.empty((rows * columns, 3, config.temporal_patch_size, size**2), np.float32)
    for channel in range(3):
        values[:, channel] = table[pixels[:, channel], channel]
    return rearrange(values, "patches channels frames pixels -> patches (channels frames pixels)"), (rows, columns)


def refuse_other_steps(values: Mapping[str, Any], place: str, **fixed: Any) -> None:
    """Raises DataError where image settings leave out a step that is always made, or scale by another factor.

    `fixed` are further keys with the only value that each may have; absent and null ones are the class's own.
    """
    for key, expected in {"do_resize": True, "do_rescale": True, "do_normalize": True, **fixed}.items():
        if values.get(key) not in (expected, None):
            raise DataError(f"{place}: {key} is {values[key]!r}, only {expected!r} is supported")
    if not math.isclose(values.get("rescale_factor") or 1 / 255, 1 / 255):
        raise DataError(f"{place}: rescale_factor is not 1/255, the only supported value")
    for key in ("image_mean", "image_std"):
        found = values.get(key)
        if isinstance(found, list | tuple) and any(isinstance(one, int | float) and one > 1 for one in found):
            raise DataError(
                f"{place}: {key} {border.shown(found)} is of levels to 255, and pixels are scaled to 1 before"
            )


def normalised(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Pixels [H, W, 3] uint8 -> their normalised values [3, H, W] float32."""
    table = levels(mean, std)
    return np.stack([table[pixels[..., channel], channel] for channel in range(3)])


def levels(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """The normalised value of each of the 256 levels in each channel, [256, 3] float32, as transformers computes it."""
    values = (np.arange(256) * (1 / 255)).astype(np.float32)[:, None]
    return (values - np.array(mean, np.float32)) / np.array(std, np.float32)
