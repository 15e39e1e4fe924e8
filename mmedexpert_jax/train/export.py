"""The export of a trained run: a peft adapter, or a whole model where all parameters were trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmedexpert_jax import lora
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model, save_pretrained
from mmedexpert_jax.runtime import processes
from mmedexpert_jax.train.policy import Policy
from mmedexpert_jax.train.state import State

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run


def export(config: ConfigDict, run: "Run", model: Model, policy: Policy, state: State, processor: Any) -> Path:
    """Writes `export/adapter` over the run's base, or `export/model` in the base's dtype; returns its path."""
    adapter = isinstance(state.trained, Lora)
    path = run.path / "export" / ("adapter" if adapter else "model")
    trained = processes.whole(state.trained if adapter else policy.params)
    if not processes.is_writer():
        return path
    if adapter:
        lora.save_peft(path, trained, config.model.path, decoder_only=not model.config.vision.depth)
    else:
        save_pretrained(path, model, trained, processor)
    return path
