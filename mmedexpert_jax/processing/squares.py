"""RGB pictures as squares of one size, cut into patches: what CLIP and SigLIP read in LLaVA's family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import numpy as np
from einops import rearrange
from msgspec import Meta
from PIL import Image

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.patches import BICUBIC, Channels, Grid, normalised, refuse_other_steps
from mmedexpert_jax.processing.positions import counted, patch_positions

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP = {"image_processor_type": "SiglipImageProcessor"}  # what a SigLIP tower wants where no file says more
PLACE = "preprocessor_config.json"
_Pixels = Annotated[int, Meta(ge=1, le=2**14)]


class _Sides(TypedDict, total=False):
    shortest_edge: _Pixels | None
    height: _Pixels | None
    width: _Pixels | None


class _SquareSettings(TypedDict, total=False):
    """The keys of preprocessor_config.json that are read; older files give a size as one number."""

    do_resize: bool | None
    do_center_crop: bool | None
    do_rescale: bool | None
    do_normalize: bool | None
    do_pad: bool | None
    resample: int | None
    rescale_factor: float | None
    size: _Sides | _Pixels | None
    crop_size: _Sides | _Pixels | None
    image_mean: Channels
    image_std: Channels


@dataclass(frozen=True)
class Squares:
    """Pictures as squares of one size: sides, patches and their places, the same in every family that sees them so."""

    size: int  # side of the square in pixels
    patch_size: int  # side of a patch in pixels

    @property
    def merge_size(self) -> int:
        """Patches on a side of a text token."""
        return 1

    @property
    def merged(self) -> int:
        """Patches of one text token."""
        return self.merge_size**2

    @property
    def max_pixels(self) -> int:
        """Pixels of the square."""
        return self.size**2

    @property
    def patch_dim(self) -> int:
        """Values in one patch: channels, rows, columns."""
        return 3 * self.patch_size**2

    def refuse_sizes(self, part: Mapping[str, Any]) -> None:
        """Raises DataError where an image part of a message asks for a size."""
        if own := [key for key in part if key != "image"]:
            raise DataError(f"an image part has {own[0]}, but this model sees every image at {self.size} x {self.size}")

    def patch_positions(self, rows: int, columns: int) -> np.ndarray:
        """Row and column [n, 2] int32 of each patch, in the order of `cut`."""
        return patch_positions(rows, columns, self.merge_size)


@dataclass(frozen=True)
class SquareConfig(Squares):
    """The way from a picture to a square of `size` pixels, and the normalisation. The defaults are CLIP's."""

    size: int = 336  # side of the square
    patch_size: int = 14  # side of a patch
    # the shorter side becomes `size` and the middle of the longer one is kept; False: both sides become it
    crop: bool = True
    pad: bool = False  # first the shorter side is filled up with the mean colour (`image_aspect_ratio: pad` of LLaVA)
    resample: int = BICUBIC  # Pillow's number of a filter
    mean: tuple[float, float, float] = CLIP_MEAN  # of each channel
    std: tuple[float, float, float] = CLIP_STD  # likewise

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], size: int, patch_size: int, pad: bool = False) -> "SquareConfig":
        """Reads the preprocessor_config.json of a CLIPImageProcessor, LlavaImageProcessor or SiglipImageProcessor.

        Args:
            values: the file's content; absent keys are as in the class that it names, CLIPImageProcessor without one.
            size: side in pixels of what the tower reads, which the file must say too.
            patch_size: side of a patch.
            pad: pictures become square by padding, whatever the file says (config.json of the original LLaVA).

        Raises:
            DataError: a value of another type or out of bounds, or pictures of another size.
        """
        found = read_settings(values)
        siglip = "Siglip" in str(values.get("image_processor_type"))
        usual = ((0.5,) * 3, (0.5,) * 3) if siglip else (CLIP_MEAN, CLIP_STD)
        mean, std = tuple(found.get("image_mean", usual[0])), tuple(found.get("image_std", usual[1]))
        cropped = found.get("do_center_crop")
        crop = not siglip if cropped is None else cropped
        sides = sides_of(found.get("size"), (size, size) if siglip else (size,))
        said = {*sides, *(sides_of(found.get("crop_size"), (size, size)) if crop else ())}
        if said != {size} or (not crop and len(sides) == 1):
            raise DataError(
                f"{PLACE}: pictures become {sorted(said)} pixels, and the vision tower reads squares of {size}"
            )
        resample = found.get("resample")
        return cls(
            *(size, patch_size, crop and len(sides) == 1, pad or bool(found.get("do_pad"))),
            *(BICUBIC if resample is None else resample, mean, std),
        )

    def cut(self, image: Image.Image, part: Mapping[str, Any]) -> tuple[np.ndarray, Grid]:
        """Patches [side**2, C] of the square, bit-equal to transformers' processors on Pillow. Raises DataError where
        `part` asks for a size."""
        self.refuse_sizes(part)
        if self.pad:
            image = squared(image, tuple(int(255 * value) for value in self.mean))
        width, height = (self.size, self.size) if not self.crop else _shorter_to(image, self.size)
        pixels = np.asarray(image.resize((width, height), self.resample))
        top, left = (height - self.size) // 2, (width - self.size) // 2
        pixels = pixels[top : top + self.size, left : left + self.size]
        values = normalised(pixels, self.mean, self.std)
        side = self.size // self.patch_size
        used = side * self.patch_size  # what is left at the lower and right edge, a convolution leaves out too
        values = rearrange(values[:, :used, :used], "channels (r y) (c x) -> (r c) (channels y x)", r=side, c=side)
        return np.ascontiguousarray(values), (side, side)

    def positions(self, tokens: np.ndarray, image_token_id: int, grids: Sequence[Grid]) -> tuple[np.ndarray, int]:
        """0, 1, 2, ... for text and images alike. Raises DataError where the pads are not those of the images."""
        pads, expected = int((tokens == image_token_id).sum()), sum(rows * columns for rows, columns in grids)
        if pads != expected:
            raise DataError(f"the prompt has {pads} image pads where its {len(grids)} images need {expected}")
        return counted(len(tokens))

    def to_hf(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        square = {"height": self.size, "width": self.size}
        common = {
            "do_convert_rgb": True,
            "do_resize": True,
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if not self.crop and not self.pad:
            return {"image_processor_type": "SiglipImageProcessor", "size": square} | common
        kind = "LlavaImageProcessor" if self.pad else "CLIPImageProcessor"
        size = {"shortest_edge": self.size} if self.crop else square
        cropped = {"do_center_crop": self.crop, "crop_size": square, "do_pad": self.pad}
        return {"image_processor_type": kind, "size": size} | cropped | common


def squared(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of a square of its longer side (`expand2square` of LLaVA)."""
    side = max(image.size)
    if image.width == image.height:
        return image
    ground = Image.new(image.mode, (side, side), colour)
    ground.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return ground


def _shorter_to(image: Image.Image, size: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `size`, the longer one cut to whole pixels."""
    longer = int(size * max(image.size) / min(image.size))
    return (size, longer) if image.width <= image.height else (longer, size)


def read_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a preprocessor_config.json that are read, checked. Raises DataError."""
    if not all(border.finite(values.get(key)) for key in ("image_mean", "image_std", "rescale_factor")):
        raise DataError(f"{PLACE}: a mean, deviation or factor is not finite; copy the base model's file")
    found = border.check(
        {key: values[key] for key in _SquareSettings.__annotations__ if key in values}, _SquareSettings, PLACE
    )
    refuse_other_steps(found, PLACE)
    if min(std := found.get("image_std", [1])) <= 0:
        raise DataError(f"{PLACE}: image_std {std} must be above 0; copy the base model's file")
    if found.get("resample") not in (None, *Image.Resampling):
        raise DataError(f"{PLACE}: resample is {found['resample']}, no filter of Pillow")
    return found


def sides_of(value: Any, usual: tuple[int, ...]) -> tuple[int, ...]:
    """The sides that a size names, as many as usual where it is one number: a shortest edge, or height and width."""
    if value is None:
        return usual
    if isinstance(value, int):
        return (value,) * len(usual)
    named = [value.get(key) for key in ("shortest_edge", "height", "width")]
    return tuple(side for side in named if side is not None)
