"""The only folder that knows Flax modules: models of five families as pure functions of parameters and batches."""

from typing import TYPE_CHECKING

from mmedexpert_jax.lazy import public

if TYPE_CHECKING:  # at run time a name is imported when it is first used: a merge reads tensors and needs no Flax
    from mmedexpert_jax.models.attention import Slots
    from mmedexpert_jax.models.config import ModelConfig
    from mmedexpert_jax.models.load import load_architecture, load_model, load_policy, load_processor
    from mmedexpert_jax.models.model import Cache, Model, PromptCache
    from mmedexpert_jax.models.save import save_pretrained
    from mmedexpert_jax.models.tree import stack, unstack

__all__ = [
    "Cache",
    "Model",
    "ModelConfig",
    "PromptCache",
    "Slots",
    "load_architecture",
    "load_model",
    "load_policy",
    "load_processor",
    "save_pretrained",
    "stack",
    "unstack",
]

_MODULES = {
    "ModelConfig": "config",
    "Slots": "attention",
    **dict.fromkeys(("load_architecture", "load_model", "load_policy", "load_processor"), "load"),
    **dict.fromkeys(("Cache", "Model", "PromptCache"), "model"),
    "save_pretrained": "save",
    **dict.fromkeys(("stack", "unstack"), "tree"),
}
__getattr__, __dir__ = public(__name__, __all__, _MODULES)
