"""The only folder that knows Flax modules: Qwen2-VL and Qwen2.5-VL as pure functions of parameters and batches."""

from mmedexpert_jax.models.config import ModelConfig
from mmedexpert_jax.models.layers import Slots
from mmedexpert_jax.models.load import load_architecture, load_model, load_policy, load_processor
from mmedexpert_jax.models.model import Cache, Model, Prefix
from mmedexpert_jax.models.save import save_pretrained
from mmedexpert_jax.models.tree import stack, unstack

__all__ = [
    "Cache",
    "Model",
    "ModelConfig",
    "Prefix",
    "Slots",
    "load_architecture",
    "load_model",
    "load_policy",
    "load_processor",
    "save_pretrained",
    "stack",
    "unstack",
]
