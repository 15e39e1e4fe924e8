"""Qwen2-VL and Qwen2.5-VL: the shared decoder behind a tower of their own (vision.py)."""

from typing import Any

from jax import Array

from mmedexpert_jax.models.config import ModelConfig
from mmedexpert_jax.models.decoder import NetworkBase
from mmedexpert_jax.models.layers import place_features
from mmedexpert_jax.models.vision import Images, VisionTower


class Qwen2VL(NetworkBase):
    """The whole network; attribute paths are the tensor names of the checkpoints."""

    def __init__(self, config: ModelConfig, stacked: bool = False):
        super().__init__(config, stacked)
        self.visual = VisionTower(config.vision, stacked)

    def embed(self, batch: Any, remat: bool = False) -> tuple[Array, tuple]:
        """Token embeddings [B, T, D] with the images' features in their places. No images: no vision tower."""
        x = self.model.embed_tokens(batch.tokens)
        if batch.patches.shape[0] == 0:
            return x, ()
        features = self.visual(batch.patches, batch.patch_positions, Images.of(batch), remat)
        return place_features(features, batch.vision_index, x), ()
