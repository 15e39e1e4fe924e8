"""Post-training of medical vision-language models in JAX: the system of MMedExpert-R1, from data to merged model."""

import sys
from typing import TYPE_CHECKING

from mmedexpert_jax.lazy import public

__version__ = "0.1.0"

if sys.platform == "win32":  # locks, signals and limits are those of POSIX
    print("error: Windows is not supported; run it in WSL (wsl --install), a Linux within Windows", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:  # what a type checker and an editor see; at run time a name is imported when it is first used
    from mmedexpert_jax import (
        answers,
        data,
        errors,
        gba,
        lora,
        medeval,
        merging,
        models,
        processing,
        rollout,
        runtime,
        sft,
    )
    from mmedexpert_jax.launch import launch, load_config
    from mmedexpert_jax.models import load_model, load_policy, load_processor, save_pretrained
    from mmedexpert_jax.rollout.generate import generate as generate

__all__ = [
    "__version__",
    "answers",
    "data",
    "errors",
    "gba",
    "generate",
    "launch",
    "load_config",
    "load_model",
    "load_policy",
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

__getattr__, __dir__ = public(
    __name__,
    __all__,
    dict.fromkeys(("load_model", "load_policy", "save_pretrained", "load_processor"), "models")
    | {"generate": "rollout", "load_config": "launch"},
)
