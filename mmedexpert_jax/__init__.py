"""Post-training of medical vision-language models in JAX: the system of MMedExpert-R1, from data to merged model."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what a type checker and an editor see; at run time a name is imported when it is first used
    from mmedexpert_jax import answers, data, gba, lora, medeval, merging, models, processing, rollout, runtime, sft
    from mmedexpert_jax.launch import launch, load_config
    from mmedexpert_jax.models import load_model, load_processor, save_pretrained
    from mmedexpert_jax.rollout.generate import generate as generate

_EXPORTS = {
    "load_model": "mmedexpert_jax.models",
    "load_policy": "mmedexpert_jax.models",
    "save_pretrained": "mmedexpert_jax.models",
    "load_processor": "mmedexpert_jax.models",
    "generate": "mmedexpert_jax.rollout",
    "load_config": "mmedexpert_jax.launch",
}
_MODULES = (
    *("lora", "merging", "gba", "medeval", "models", "rollout", "data", "processing", "runtime", "answers", "sft"),
    "launch",  # a package that can be called: mx.launch(config)
)

__all__ = [
    "__version__",
    "answers",
    "data",
    "gba",
    "generate",
    "launch",
    "load_config",
    "load_model",
    "load_processor",
    "lora",
    "medeval",
    "merging",
    "models",
    "processing",
    "rollout",
    "runtime",
    "save_pretrained",
    "sft",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import mmedexpert_jax` costs nothing."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"mmedexpert_jax.{name}")
    raise AttributeError(f"module 'mmedexpert_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
