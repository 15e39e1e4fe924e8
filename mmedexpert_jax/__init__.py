"""Post-training of medical vision-language models in JAX: the system of MMedExpert-R1, from data to merged model."""

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "load_model": "mmedexpert_jax.models",
    "load_policy": "mmedexpert_jax.models",
    "save_pretrained": "mmedexpert_jax.models",
    "load_processor": "mmedexpert_jax.models",
    "generate": "mmedexpert_jax.rollout",
    "load_config": "mmedexpert_jax.launch",
}
_MODULES = ("lora", "merging", "gba", "medeval", "models", "rollout", "data", "processing", "runtime", "answers", "sft")

__all__ = ["__version__", *_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import mmedexpert_jax` costs nothing."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"mmedexpert_jax.{name}")
    raise AttributeError(f"module 'mmedexpert_jax' has no attribute {name!r}")
