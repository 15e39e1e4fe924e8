"""Gemma 3's prompts: squares cut into patches by soft token, pan-and-scan, and the text around every picture."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from einops import rearrange
from PIL import Image

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.chat_template import shipped
from mmedexpert_jax.processing.patches import Grid, normalised
from mmedexpert_jax.processing.positions import counted
from mmedexpert_jax.processing.processor import Marks, Processor, Shown
from mmedexpert_jax.processing.squares import PLACE, Squares, read_settings, sides_of

START, SOFT, END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
MARKS = Marks(SOFT, "<end_of_turn>", (START, SOFT, END))
# The template of google/gemma-3-*-it in our words: the system's text opens the first turn, turns alternate.
GEMMA3_TEMPLATE = shipped("gemma3")
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"  # of the number of a token that stands spelt out in a message; for private use
_MARKED = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True)
class SoftTokens(Squares):
    """The way from a picture to squares, by pan-and-scan to several, and the normalisation. Defaults are Gemma 3's."""

    size: int = 896  # side of the square in pixels
    patch_size: int = 14  # side of a patch in pixels
    merge_size: int = 4  # patches on a side of a soft token
    resample: int = int(Image.Resampling.BILINEAR)  # Pillow's number of a filter
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of each channel
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # likewise
    # whether a long picture is shown in parts too, after the whole of it (pan-and-scan). As in transformers'
    # Gemma3Processor, no file sets this or the next three.
    scan: bool = False
    least_part: int = 256  # pixels on a side of a part
    most_parts: int = 4  # of a picture
    ratio: float = 1.2  # longer over shorter side from which on a picture is long

    @property
    def soft_tokens(self) -> int:
        """Soft tokens of a square."""
        return (self.size // self.patch_size // self.merge_size) ** 2

    @classmethod
    def from_hf(
        cls, values: Mapping[str, Any], size: int, patch_size: int, merge_size: int, scan: bool = False
    ) -> "SoftTokens":
        """Reads the preprocessor_config.json of a Gemma3ImageProcessor; the sizes are those of config.json.

        Raises DataError for a value of another type or out of bounds, and for pictures of another size.
        """
        found = read_settings({key: value for key, value in values.items() if value is not None})
        if sides_of(found.get("size"), (size, size)) != (size, size):
            said = border.shown(found["size"])
            raise DataError(f"{PLACE}: size is {said}, and the vision tower reads squares of {size}")
        mean, std = tuple(found.get("image_mean", cls.mean)), tuple(found.get("image_std", cls.std))
        return cls(size, patch_size, merge_size, found.get("resample", cls.resample), mean, std, scan)

    def parts(self, image: Image.Image) -> list[Image.Image]:
        """The parts of a long picture side by side along its longer side; none of others (Gemma 3's pan-and-scan)."""
        longer, shorter = max(image.size), min(image.size)
        if not self.scan or longer / shorter < self.ratio:
            return []
        count = max(2, min(longer // self.least_part, math.floor(longer / shorter + 0.5)))
        count = min(self.most_parts, count)
        wide = image.width >= image.height
        across, down = (count, 1) if wide else (1, count)
        width, height = math.ceil(image.width / across), math.ceil(image.height / down)
        if min(width, height) < self.least_part:
            return []
        corners = itertools.product(range(0, height * down, height), range(0, width * across, width))
        edge = image.width, image.height
        return [
            image.crop((left, top, min(left + width, edge[0]), min(top + height, edge[1]))) for top, left in corners
        ]

    def cut(self, image: Image.Image, part: Mapping[str, Any]) -> tuple[np.ndarray, Grid]:
        """Patches [side**2, C] of the square, those of a soft token together; bit-equal to transformers' on Pillow."""
        self.refuse_sizes(part)
        pixels = np.asarray(image.resize((self.size, self.size), self.resample))
        values = normalised(pixels, self.mean, self.std)
        side, merge = self.size // self.patch_size, self.merge_size
        blocks = {"r": side // merge, "m": merge, "n": merge, "y": self.patch_size}
        values = rearrange(values, "channels (r m y) (c n x) -> (r c m n) (channels y x)", **blocks, x=self.patch_size)
        return np.ascontiguousarray(values), (side, side)

    def positions(self, tokens: np.ndarray, image_token_id: int, grids: Sequence[Grid]) -> tuple[np.ndarray, int]:
        """0, 1, 2, ... for text and images alike. Raises DataError where the soft tokens are not the images'."""
        soft, expected = int((tokens == image_token_id).sum()), self.soft_tokens * len(grids)
        if soft != expected:
            raise DataError(f"the prompt has {soft} soft tokens where its {len(grids)} images need {expected}")
        return counted(len(tokens))

    def to_hf(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        return {
            "image_processor_type": "Gemma3ImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": self.size, "width": self.size},
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_pan_and_scan": None,
            "image_seq_length": self.soft_tokens,
        }


@dataclass(frozen=True)
class NoPictures:
    """The image config of a model that reads text alone."""

    merged: int = 1
    max_pixels: int = 0
    patch_dim: int = 1

    def parts(self, image: Image.Image) -> list[Image.Image]:
        """An empty list."""
        return []

    def cut(self, image: Image.Image, part: Mapping[str, Any]) -> tuple[np.ndarray, Grid]:
        """Raises DataError."""
        raise DataError("this model reads text alone; leave out cases with images, or take a size that sees")

    def positions(self, tokens: np.ndarray, image_token_id: int, grids: Sequence[Grid]) -> tuple[np.ndarray, int]:
        """0, 1, 2, ..."""
        return counted(len(tokens))

    def patch_positions(self, rows: int, columns: int) -> np.ndarray:
        """No rows: [0, 2]."""
        return np.zeros((0, 2), np.int32)

    def to_hf(self) -> dict[str, Any]:
        """An empty object."""
        return {}


class GemmaProcessor(Processor):
    """Tokenizer, pictures and chat template of a Gemma 3 checkpoint, equal to transformers' Gemma3Processor.

    A picture is a run of soft tokens between empty lines, which the tokenizer joins with the text around them: a prompt
    is written out whole before it is cut into tokens.
    """

    def __init__(self, tokenizer: Any, pictures: SoftTokens | NoPictures, template: str, family: str):
        marks = MARKS if isinstance(pictures, SoftTokens) else Marks(MARKS.end, MARKS.end, ())
        settings = {"image_seq_length": pictures.soft_tokens} if isinstance(pictures, SoftTokens) else None
        super().__init__(tokenizer, pictures, template, family, marks, settings)
        if isinstance(pictures, NoPictures):
            self.image_token_id = -1
        tokens = [token for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
        control = [token.content for token in tokens if token.special or token.content in template]
        self.control = sorted(control, key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, self.control)))

    def _views(self, image: Image.Image) -> list[Image.Image]:
        return [image, *cast(SoftTokens | NoPictures, self.image_config).parts(image)]

    def _tokens(
        self, messages: list[dict[str, Any]], shown: Sequence[Shown], add_generation_prompt: bool
    ) -> np.ndarray:
        """The ids [T] of a conversation, every picture's text and soft tokens in its place."""
        text = self._render(messages, add_generation_prompt)
        gaps = text.split(START)
        if len(gaps) != len(shown) + 1:
            raise DataError(
                f"the chat template wrote {len(gaps) - 1} places for {len(shown)} images; the checkpoint needs the "
                "template of a Gemma 3"
            )
        written = "".join(itertools.chain(*zip(gaps, [*map(self._picture, shown), ""], strict=True)))
        ids: list[int] = []
        with self._tokenizing:
            for number, piece in enumerate(_MARKED.split(written)):
                spelt = number % 2 == 1  # the number of a token that a message spells out: ordinary text
                piece = self.control[int(piece)] if spelt else piece
                ids += self.tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=spelt)
        return np.array(ids, np.int32)

    def _picture(self, shown: Shown) -> str:
        """The text of a picture; of one in parts, the words of Gemma3Processor around them."""
        one = f"\n\n{START}{SOFT * getattr(self.image_config, 'soft_tokens', 0)}{END}\n\n"
        if len(shown) == 1:
            return one
        parts = " ".join([one] * (len(shown) - 1))
        return f"Here is the original image {one} and here are some crops to help you see better {parts}"

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        def marked(text: str) -> str:
            text = text.replace(_OPEN, "").replace(_CLOSE, "")
            return self._spelt.sub(lambda found: f"{_OPEN}{self.control.index(found[0])}{_CLOSE}", text)

        def of_part(part: dict[str, Any]) -> dict[str, Any]:
            return part | {"text": marked(part["text"])} if "text" in part else part

        turns = [
            turn | {"content": marked(said) if isinstance(said := turn["content"], str) else [*map(of_part, said)]}
            for turn in messages
        ]
        return self._template_applied(turns, add_generation_prompt=add_generation_prompt, tokenize=False)
