"""Host side, no JAX: images to patches, conversations to token ids, 3-D rotary positions, padded batches."""

import os

from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.images import ImageRef, decode, open_image
from mmedexpert_jax.processing.patches import ImageConfig, patchify, smart_resize
from mmedexpert_jax.processing.positions import mrope_positions, patch_positions
from mmedexpert_jax.processing.processor import Encoded, Processor

# transformers, whose tokenizers are read, would advise to install torch, which nothing here needs
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__all__ = [
    "Batch",
    "Encoded",
    "ImageConfig",
    "ImageRef",
    "Processor",
    "decode",
    "mrope_positions",
    "open_image",
    "patch_positions",
    "patchify",
    "smart_resize",
]
