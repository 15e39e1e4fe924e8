"""The batch that the host hands to the model: numpy in, the same names as arrays on the device."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Batch:
    """B right-padded prompts and the I images in them.

    Images are rows of their own, padded to P patches, in the order of their appearance; or, where unlike ones would be
    padded much, they stand side by side in strips of N patches, one on each of S devices: `patches` and
    `patch_positions` are then [S, N, .], and images in the order of the strips. A text token knows its image feature by
    index. Batches without images have I = 0. All fields are numpy arrays on the host and leaves of a pytree in JAX.
    """

    tokens: np.ndarray  # [B, T] int32, image pads expanded, right-padded with the pad id
    lengths: np.ndarray  # [B] int32, valid tokens of each row
    positions: np.ndarray  # [B, 3, T] int32, rows of M-RoPE: time, height, width (0 on padding)
    next_position: np.ndarray  # [B] int32, position of the first token after the prompt
    vision_index: np.ndarray  # [B, T] int32, row of the merged features, back to back [I * P // merged, D]; -1 on text
    patches: np.ndarray  # [I, P, C] float32, normalised pixels in the processor's order (C: its `patch_dim`)
    patch_positions: np.ndarray  # [I, P, 2] int32, row and column of each patch in its image
    patch_counts: np.ndarray  # [I] int32, valid patches of each image
    # [I, P] int32, the place of each image's patches in its strip [N], -1 behind the last; [0, 0] without strips
    patch_places: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))

    def __repr__(self) -> str:
        """One line: how many prompts, how wide, and how many images of how many patches."""
        tokens, patches = ("x".join(map(str, getattr(part, "shape", "?")[:2])) for part in (self.tokens, self.patches))
        rows = "strips" if getattr(self.patch_places, "size", 0) else "images"
        return f"Batch(tokens int32[{tokens}] = prompts x tokens, {patches} {rows} x patches)"
