"""The only folder that knows Flax modules: models of five families as pure functions of parameters and batches."""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time a name is imported when it is first used: a merge reads tensors and needs no Flax
    from mmedexpert_jax.models.attention import Slots
    from mmedexpert_jax.models.config import ModelConfig
    from mmedexpert_jax.models.load import load_architecture, load_model, load_policy, load_processor
    from mmedexpert_jax.models.model import Cache, Model, PromptCache
    from mmedexpert_jax.models.save import save_pretrained
    from mmedexpert_jax.models.tree import stack, unstack

_EXPORTS = {
    "ModelConfig": "config",
    "Slots": "attention",
    **dict.fromkeys(("load_architecture", "load_model", "load_policy", "load_processor"), "load"),
    **dict.fromkeys(("Cache", "Model", "PromptCache"), "model"),
    "save_pretrained": "save",
    **dict.fromkeys(("stack", "unstack"), "tree"),
}

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


def __getattr__(name: str) -> Any:
    """A public name, or a module of this folder."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    if importlib.util.find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
