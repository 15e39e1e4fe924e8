"""AdamW, its learning rate by update, and which parameters decay."""

import math
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

Rule = tuple[optax.GradientTransformation, optax.Schedule]  # an optimizer but for its rate, and the rate by update


def schedule(lr: float, kind: str, warmup: int, updates: int) -> optax.Schedule:
    """Learning rate by update: a linear rise over `warmup`, then constant, or linear or cosine to 0 at `updates`.

    The rise starts at lr / (warmup + 1), not at 0: with few updates none of them should do nothing.
    """
    length = max(updates - warmup, 1)
    after = {
        "constant": optax.linear_schedule(lr, lr, 1),
        "linear": optax.linear_schedule(lr, 0.0, length),
        "cosine": optax.cosine_decay_schedule(lr, length),
    }[kind]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(lr / (warmup + 1), lr, warmup), after], [warmup])


def unreached(config: ConfigDict, updates: int) -> str:
    """A sentence on a warm-up that ends no sooner than the run, whose rate then never is `lr`; empty for any other."""
    if not 0 < updates <= _warmup(config, updates):
        return ""
    if not config.warmup_steps:
        share = f"warmup_ratio {config.warmup_ratio:g} is all of the run"
        return f"{share}, so that the rate never is lr {config.lr:g}; lower it"
    return (
        f"warmup_steps {config.warmup_steps:,} is not below the run's number of updates, {updates:,}, so that the rate "
        f"never is lr {config.lr:g}; lower it, or set it to 0 and warmup_ratio to a share of the run, such as 0.1"
    )


def _warmup(config: ConfigDict, updates: int) -> int:
    """Updates of the rate's rise."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * updates)


def optimizer(config: ConfigDict, updates: int) -> Rule:
    """AdamW but for its rate, with the gradient's norm clipped to `max_grad_norm`, and the rate by update.

    The rate is applied by the learner, which knows how far a run is: a step whose groups were all dropped makes fewer
    updates than planned, and a count of updates would then lag behind the schedule's end.
    """
    rate = schedule(config.lr, config.schedule, _warmup(config, updates), updates)
    return adam(tuple(config.adam_betas), config.weight_decay, config.max_grad_norm), rate


def adam(betas: tuple[float, float], decay: float, max_norm: float) -> optax.GradientTransformation:
    """The optimizer but for its rate; 0 leaves decay or clipping out, and their part of the state."""
    parts = [optax.clip_by_global_norm(max_norm)] if max_norm else []
    parts.append(optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=1e-8))
    if decay:  # after Adam and before the rate: decoupled, as in AdamW
        parts.append(optax.add_decayed_weights(decay, mask=decays))
    return optax.chain(*parts)


def decays(params: Any) -> Any:
    """True for the leaves that weight decay pulls to 0: matrices, not norms and biases (transformers' rule)."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
