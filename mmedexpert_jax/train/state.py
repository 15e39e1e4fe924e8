"""The state of a run, its checkpoints, and how they are read by others."""

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import optax
from ml_collections import ConfigDict

from mmedexpert_jax.errors import ConfigError, DataError, Interrupted
from mmedexpert_jax.models.tree import stack, unstack
from mmedexpert_jax.runtime import processes

if TYPE_CHECKING:
    from mmedexpert_jax.runtime.run import Run


@dataclass(frozen=True)
class State:
    """All that a step changes, and what a checkpoint holds."""

    trained: Any  # the Lora, or all parameters in float32
    opt_state: Any
    step: int = 0
    num_tokens: int = 0  # tokens of prompts and completions so far, without padding
    behind: Any = None  # what was trained, before the last step: where rollouts are drawn a step ahead
    data: int = 0  # `fingerprint` of the cases that it was trained on
    memory: dict[str, Any] = field(default_factory=dict)  # what an objective keeps from step to step, by name


def resume(run: "Run", state: State) -> State:
    """The state at the checkpoint that the run goes on from, or the given one; metrics and samples beyond it are
    dropped. A line says so where the cases are not those that it was trained on."""
    step = run.last_checkpoint()
    run.rewind(-1 if step is None else step)
    if step is None:
        return state
    try:
        found = restore(run, step, state)
    except DataError:  # of another form, or broken: nothing of the run has been changed by this command
        run.keep_config()
        raise
    if found.data != state.data and processes.is_writer():
        print(
            f"the training cases are not those of step {step} (their fingerprint was {found.data:08x}, is "
            f"{state.data:08x}): it goes on with the new ones, whose order is another",
            flush=True,
        )
    return replace(found, data=state.data)


def keep(run: "Run", state: State, steps: int, every: int) -> None:
    """Saves a checkpoint where one is due or a signal came, which then raises Interrupted, unless the step has one."""
    signum = run.interrupted()
    if signum or is_due(state.step, every, steps):
        save_once(run, state)
    if signum and state.step < steps:
        raise Interrupted(f"step {state.step} of {steps} is saved; the same command resumes", signum)


def save(run: "Run", state: State, score: float | None = None) -> None:
    """Saves a checkpoint, with its held-out score if it has one."""
    run.checkpoints.save(state.step, _saved(state), score)


def save_once(run: "Run", state: State) -> None:
    """Saves a checkpoint, unless the step has one."""
    if run.checkpoints.latest() != state.step:
        save(run, state)


def restore(run: "Run", step: int, state: State) -> State:
    """The state of a checkpoint, its arrays in the form and the place of those of `state`."""
    found = State(**run.checkpoints.restore(step, _saved(state)))
    if len(jax.tree.leaves(found.opt_state)) == len(jax.tree.leaves(state.opt_state)):
        return found
    # The moments lie stacked in memory, and in the file layer by layer (`_saved`).
    places = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)
    return replace(found, opt_state=jax.jit(stack, out_shardings=places)(found.opt_state))


def _saved(state: State) -> dict[str, Any]:
    """A checkpoint's content: moments have the names of what is trained, so that a resume may stack layers or not."""
    return vars(state) | {"opt_state": unstack(state.opt_state)}


def is_due(step: int, every: int, steps: int) -> bool:
    """True after the last step, and after every `every`-th (0: of none)."""
    return step == steps or (every > 0 and step % every == 0)


def check_statistics(stats: Mapping[str, float], step: int, config: ConfigDict) -> None:
    """Raises ConfigError where the loss or the gradient's norm is not finite."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(stats[name]):
            raise ConfigError(
                f"step {step}: {name} is {stats[name]} at lr {config.lr:g}; lower config.lr or config.max_grad_norm; "
                "with config.allow_changes=lr the run goes on from its last checkpoint (by config.resume_from from an "
                "earlier one, where that is broken too), with config.fresh=True it begins anew"
            )


def check_weights(state: State, config: ConfigDict) -> None:
    """Raises ConfigError of weights from which no loss can be computed: the next step would find it, behind a
    checkpoint or an export of them."""
    if not math.isfinite(jax.jit(optax.global_norm)(state.trained)):
        raise ConfigError(
            f"step {state.step}: the update at lr {config.lr:g} left weights without a finite norm, which are not "
            "saved; lower config.lr or config.max_grad_norm; with config.allow_changes=lr the run goes on from its "
            "last checkpoint, with config.fresh=True it begins anew"
        )


def trained_part(leaves: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The trained part of a saved `State`: LoRA factors {module: {"a", "b"}}, or weights by tensor name.

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
