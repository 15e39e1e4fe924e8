"""What the trainers share: the state of a run and its checkpoints, the optimizer, and when a run must stop."""

import ast
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optax
from ml_collections import ConfigDict

from mmedexpert_jax.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from mmedexpert_jax.runtime.run import Run


@dataclass(frozen=True)
class State:
    """What a step changes, and what a checkpoint holds."""

    trained: Any  # the Lora, or all parameters in float32
    opt_state: Any
    step: int = 0
    num_tokens: int = 0  # tokens of prompts and completions so far, without padding


def optimizer(config: ConfigDict, updates: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW with the gradient's norm clipped to `max_grad_norm`, and its learning rate by update.

    The rate rises linearly over `warmup_steps`, then stays, or falls linearly to 0 at `updates`. Equal settings give
    the same object, so that several experts share their compiled programs.
    """
    linear = config.schedule == "linear"
    final, updates = (0.0, updates) if linear else (config.lr, 0)
    return _adamw(config.lr, final, config.warmup_steps, updates, config.weight_decay, config.max_grad_norm)


@functools.lru_cache
def _adamw(lr: float, final: float, warmup: int, updates: int, decay: float, max_norm: float) -> tuple:
    after = optax.linear_schedule(lr, final, max(updates - warmup, 1))
    rise = optax.linear_schedule(lr / (warmup + 1), lr, warmup)
    schedule = optax.join_schedules([rise, after], [warmup]) if warmup else after
    adam = optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=decay)
    return (optax.chain(optax.clip_by_global_norm(max_norm), adam) if max_norm else adam), schedule


def trained_part(leaves: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What a saved `State` was training: LoRA factors {module: {"a", "b"}}, or weights by tensor name.

    Args:
        leaves: by their paths as `jax.tree_util.keystr` writes them, which are Python expressions.
    """
    factors: dict[str, dict[str, Any]] = {}
    weights = {}
    for key, leaf in leaves.items():
        match _path(key):
            case ["trained", "factors", module, letter]:
                factors.setdefault(module, {})[letter] = leaf
            case ["trained", *names]:
                weights[".".join(names)] = leaf
    return factors, {} if factors else weights


def _path(key: str) -> list[Any]:
    """Names and indices of a path: "['trained'].factors['m']['a']" -> ["trained", "factors", "m", "a"]."""
    node, parts = ast.parse(f"root{key}", mode="eval").body, list[Any]()
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            parts.append(node.slice.value)
        else:
            return []
        node = node.value
    return parts[::-1]


def resume(run: "Run", state: State) -> State:
    """The state at the run's last checkpoint, or the given one; metrics and samples beyond it are dropped."""
    latest = run.checkpoints.latest()
    run.rewind(-1 if latest is None else latest)
    if latest is None:
        return state
    return State(**run.checkpoints.restore(latest, vars(state)))


def keep(run: "Run", state: State, steps: int, every: int) -> None:
    """Saves a checkpoint where one is due or a signal came; a signal then ends the run with Interrupted."""
    signum = run.interrupted()
    if signum or is_due(state.step, every, steps):
        run.checkpoints.save(state.step, vars(state))
    if signum and state.step < steps:
        raise Interrupted(f"step {state.step} of {steps} is saved; the same command resumes", signum)


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether what happens every so many steps, 0: never, and at the last one, happens after `step`."""
    return step == steps or (every > 0 and step % every == 0)


def check_finite(stats: Mapping[str, float], step: int, config: ConfigDict) -> None:
    """Raises ConfigError where the loss or the gradient's norm is not finite."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(stats[name]):
            raise ConfigError(
                f"step {step}: {name} is {stats[name]} at lr {config.lr:g}; lower config.lr or config.max_grad_norm "
                "and run again with fresh=True (earlier checkpoints stand)"
            )
