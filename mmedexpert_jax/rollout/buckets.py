"""Prompts that are decoded together, and their shape, so that little is compiled and little is padded."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmedexpert_jax.processing.processor import Encoded
from mmedexpert_jax.rounding import round_up

MULTIPLE = 32  # of the padded length, so that alike sets of prompts share shapes
WASTE = 1.3  # a shape that is there serves a group if it is at most so many times as large as needed


@dataclass(frozen=True)
class Size:
    """The size of a prompt: tokens, patches of its largest image, images."""

    tokens: int
    patches: int
    images: int

    @classmethod
    def of(cls, encoded: Encoded) -> "Size":
        """Of an encoded prompt."""
        return cls(len(encoded.tokens), max(encoded.patch_counts, default=0), len(encoded.images))


@dataclass(frozen=True)
class Shape:
    """Of a batch: prompts, tokens of each, images of each, patches of each image."""

    rows: int
    tokens: int
    images: int
    patches: int

    @property
    def cost(self) -> int:
        """Tokens and patches that are computed."""
        return self.rows * (self.tokens + self.images * self.patches)

    def holds(self, other: "Shape") -> bool:
        """True where prompts of shape `other` fit into this one, with as many images each."""
        large = self.rows >= other.rows and self.tokens >= other.tokens and self.patches >= other.patches
        return large and self.images == other.images


@dataclass
class Shapes:
    """The shapes in use, of at most `batch_size` rows in multiples of the number of devices."""

    batch_size: int
    devices: int = 1
    known: list[Shape] = field(default_factory=list)

    def fit(self, sizes: Sequence[Size]) -> Shape:
        """The shape for a bucket's prompts: the cheapest known one that wastes little, or a new one."""
        rows = round_up(min(self.batch_size, len(sizes)), self.devices)
        tokens, patches = max(size.tokens for size in sizes), max(size.patches for size in sizes)
        wanted = Shape(rows, round_up(tokens, MULTIPLE), sizes[0].images, round_up(patches, MULTIPLE))
        fitting = [shape for shape in self.known if shape.holds(wanted) and shape.cost <= WASTE * wanted.cost]
        if fitting:
            return min(fitting, key=lambda shape: shape.cost)
        self.known.append(wanted)
        return wanted


def buckets(sizes: Sequence[Size], least: int) -> list[list[int]]:
    """Groups prompts with as many images and lengths alike within a factor of two, longest first.

    A group of fewer than `least` joins the next longer one with as many images.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i].images, -sizes[i].tokens, -sizes[i].patches, i))
    groups: list[list[int]] = []
    for number in order:
        if groups and _alike(sizes[groups[-1][0]], sizes[number]):
            groups[-1].append(number)
        else:
            groups.append([number])
    merged: list[list[int]] = []
    for group in groups:
        if merged and len(group) < least and sizes[merged[-1][0]].images == sizes[group[0]].images:
            merged[-1] += group
        else:
            merged.append(group)
    return merged


def _alike(first: Size, size: Size) -> bool:
    short = 2 * size.tokens <= first.tokens or 4 * size.patches < first.patches
    return first.images == size.images and not short
