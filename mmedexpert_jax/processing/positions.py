"""Places of tokens and patches: 3-D rotary positions of a prompt, row and column of each patch."""

from collections.abc import Sequence

import numpy as np
from einops import rearrange, repeat

from mmedexpert_jax.errors import DataError

MERGE_SIZE = 2  # patches on a side of one text token


def mrope_positions(
    tokens: np.ndarray, image_token_id: int, grids: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, int]:
    """M-RoPE positions of one prompt without padding (Qwen2-VL, `get_rope_index` of transformers 5).

    Text counts 0, 1, 2, ... in all three rows. An image that starts at position p has time p, height p + row and
    width p + column over its merged grid; the text after it goes on at p plus the grid's longer side.

    Args:
        tokens: [T] ids, image pads expanded.
        image_token_id: id of the image pad.
        grids: rows and columns of each image in patches, in order of appearance.

    Returns:
        positions [3, T] int32, and the position of the first token after the prompt.

    Raises:
        DataError: the image pads are not those of the images.
    """
    tokens = np.asarray(tokens)
    positions = np.empty((3, len(tokens)), np.int32)
    is_pad = tokens == image_token_id
    expected = sum(rows * columns for rows, columns in grids) // MERGE_SIZE**2
    if is_pad.sum() != expected:
        raise DataError(f"the prompt has {is_pad.sum()} image pads where its {len(grids)} images need {expected}")
    cursor = following = 0
    for rows, columns in grids:
        rows, columns = rows // MERGE_SIZE, columns // MERGE_SIZE
        start = cursor + int(np.argmax(is_pad[cursor:]))
        end = start + rows * columns
        if not is_pad[start:end].all():
            raise DataError(f"the image pads from token {start} on are fewer than the {end - start} of their image")
        positions[:, cursor:start] = np.arange(following, following + start - cursor)
        following += start - cursor
        height, width = np.divmod(np.arange(rows * columns), columns)
        positions[:, start:end] = following + np.stack([np.zeros_like(height), height, width])
        following += max(rows, columns)
        cursor = end
    positions[:, cursor:] = np.arange(following, following + len(tokens) - cursor)
    return positions, following + len(tokens) - cursor


def counted(length: int) -> tuple[np.ndarray, int]:
    """Positions [3, T] int32 of a prompt that counts 0, 1, 2, ... through text and images alike, and the next one."""
    return repeat(np.arange(length, dtype=np.int32), "token -> three token", three=3), length


def patch_positions(rows: int, columns: int, side: int = MERGE_SIZE) -> np.ndarray:
    """Row and column of each patch [rows * columns, 2] int32, those of a merged token, `side` by `side`, together."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).astype(np.int32)
    return rearrange(grid, "(r m) (c n) place -> (r c m n) place", m=side, n=side)
