"""Domain-Specific Adaptation (section 4.1): a model learns one specialty's reasoning traces, as a LoRA expert."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.data import SPECIALTIES, Case, load_cases
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model, flops, load_policy, load_processor, save_pretrained
from mmedexpert_jax.runtime import costs, processes, training
from mmedexpert_jax.runtime.training import State
from mmedexpert_jax.sft.examples import Examples
from mmedexpert_jax.sft.loss import MicroBatch, Sums, loss_sums
from mmedexpert_jax.train.policy import Evaluate, Policy

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run

Total = tuple[Any, Sums]  # gradient and sums of the micro-batches so far, before the division


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiled functions depend on besides shapes."""

    model: Model
    dtype: str  # of the weights in the forward pass
    remat: bool


def train(
    config: ConfigDict, run: "Run", evaluate: Evaluate | None = None, cases: Sequence[Case] | None = None
) -> Path:
    """Trains an expert on equation 2, or resumes at the run's last checkpoint.

    The data order is a function of (seed, step), so that a run that was killed and resumed ends bit-identical to one
    that never was. Several processes share the micro-batches of a step, each with one device, and add up what they
    found.

    Args:
        config: of the job dsa; `specialty` is one of the four, or "mixed".
        run: where metrics, checkpoints and the expert go.
        evaluate: called with the expert's weights, the step and its deltas: before, every `eval.every` steps, after.
        cases: training cases in the place of those of `data.path`.

    Returns:
        `export/adapter` (a peft directory), or `export/model` where all parameters are trained.

    Raises:
        ConfigError: an unknown specialty, or a loss that is not finite.
        DataError: a model or data that cannot be read, or a case that is too long.
        Interrupted: a signal came; a checkpoint is saved.
    """
    processor = load_processor(config.model.path)
    examples = Examples(cases or _load(config), processor, config)
    model, params, lora = load_policy(config.model.path, dtype=config.model.dtype, seed=config.seed)
    program = Program(model, str(jax.tree.leaves(params)[0].dtype), config.remat)
    optimizer, schedule = training.optimizer(config, examples.steps)
    base, state = _start(config, Policy.of(params, lora), optimizer)
    state = training.resume(run, state)
    start = state.step
    if evaluate and not start:
        policy = _policy(base, state.trained, program.dtype)
        run.log(0, evaluate(policy.params, 0, policy.lora))

    with run.progress(examples.steps, start, f"sft {config.specialty}") as progress:
        for step in range(start, examples.steps):
            began = time.perf_counter()
            total, tokens, work = _gradient(program, config, base, state.trained, examples.micro_batches(step))
            trained, opt_state, stats = _update(optimizer, state.trained, state.opt_state, total)
            state = State(trained, opt_state, step + 1, state.num_tokens + tokens)

            metrics = {name: float(value) for name, value in jax.device_get(stats).items()}
            training.check_finite(metrics, state.step, config)
            seconds = time.perf_counter() - began
            costs.count(seconds, tokens, work)
            metrics |= {"learning_rate": float(schedule(step)), "epoch": examples.epoch(state.step)}
            metrics |= {"num_tokens": state.num_tokens, "compilations": len(examples.shapes)}
            metrics |= {"step_time": seconds, "tokens_per_second": tokens / seconds}
            run.log(state.step, metrics)
            progress.update(state.step, metrics)
            if evaluate and training.is_due(state.step, config.eval.every, examples.steps):
                policy = _policy(base, state.trained, program.dtype)
                run.log(state.step, evaluate(policy.params, state.step, policy.lora))
            training.keep(run, state, examples.steps, config.checkpoint_every)
    path = _export(config, run, model, _policy(base, state.trained, program.dtype).params, state, processor)
    run.finish({"export": str(path), "steps": state.step, "num_tokens": state.num_tokens} | _losses(run))
    return path


def _gradient(
    program: Program, config: ConfigDict, base: Policy, trained: Any, micro_batches: Iterable[MicroBatch]
) -> tuple[Total, int, float]:
    """The sum of the gradients of a step's micro-batches, those of all processes; its tokens and operations."""
    total, tokens, work = _zero(trained), 0, 0.0
    for micro in micro_batches:
        total = _accumulate(program, base, trained, total, micro)
        tokens += int(micro.prompts.lengths.sum() + micro.lengths.sum())
        work += _flops(program, config, micro)
    total, tokens, work = processes.total((total, np.int32(tokens), np.float32(work)))
    return total, int(tokens), float(work)


def lower_update(config: ConfigDict, model: Model, params: dict, trained: Any, micro: MicroBatch) -> jax.stages.Lowered:
    """The gradient's program for such a micro-batch, to look at: its memory, its instructions."""
    program = Program(model, str(jax.tree.leaves(params)[0].dtype), config.remat)
    base = Policy(params if isinstance(trained, Lora) else None)
    return _accumulate.lower(program, base, trained, jax.eval_shape(_zero, trained), micro)


def _flops(program: Program, config: ConfigDict, micro: MicroBatch) -> float:
    """Operations of a micro-batch's gradient."""
    prompts, completions = micro.prompts.lengths, micro.lengths[:, None]
    once = flops.forward(program.model.config, prompts, completions, micro.prompts.patch_counts)
    return flops.trained(once, config.trainable == "full", config.remat)


def _load(config: ConfigDict) -> list[Case]:
    known = (*SPECIALTIES, "mixed")
    if config.specialty not in known:
        raise ConfigError(
            f"config.specialty={config.specialty} is unknown to a single run: choose one of {', '.join(known)}"
        )
    specialty = None if config.specialty == "mixed" else config.specialty
    return load_cases(config.data.path, "train", specialty=specialty, limit=config.limit, seed=config.seed)


def _start(config: ConfigDict, base: Policy, optimizer: optax.GradientTransformation) -> tuple[Policy, State]:
    """What stays as it is, and the state before the first step: fresh deltas, or all weights in float32."""
    trained = base.trainable(config, jax.random.key(config.seed))
    state = State(trained, optimizer.init(trained))
    return Policy(None) if config.trainable == "full" else base, state


@jax.jit
def _zero(trained: Any) -> Total:
    """Nothing accumulated yet."""
    return jax.tree.map(jnp.zeros_like, trained), Sums(*(jnp.zeros(()) for _ in dataclasses.fields(Sums)))


@functools.partial(jax.jit, static_argnames="program", donate_argnames="total")
def _accumulate(program: Program, base: Policy, trained: Any, total: Total, micro: MicroBatch) -> Total:
    """Adds a micro-batch's gradient and sums. A Lora stays in low-rank form: no gradient of a weight is ever made."""

    def loss(trained: Any) -> tuple[jax.Array, Sums]:
        policy = _policy(base, trained, program.dtype)
        sums = loss_sums(program.model, policy.params, micro, policy.lora, program.remat)
        return sums.loss, sums

    return jax.tree.map(jnp.add, total, jax.grad(loss, has_aux=True)(trained))


@functools.partial(jax.jit, static_argnames="optimizer", donate_argnames=("trained", "opt_state"))
def _update(
    optimizer: optax.GradientTransformation, trained: Any, opt_state: Any, total: Total
) -> tuple[Any, Any, dict]:
    """One AdamW step on the mean over the completion tokens of all micro-batches."""
    gradient, sums = total
    gradient = jax.tree.map(lambda leaf: leaf / sums.tokens, gradient)
    updates, opt_state = optimizer.update(gradient, opt_state, trained)
    stats = {
        "loss": sums.loss / sums.tokens,
        "mean_token_accuracy": sums.correct / sums.tokens,
        "grad_norm": optax.global_norm(gradient),
    }
    return optax.apply_updates(trained, updates), opt_state, stats


def _policy(base: Policy, trained: Any, dtype: str) -> Policy:
    return base.trained(trained, jax.tree.map(lambda _: dtype, trained))


def _export(config: ConfigDict, run: "Run", model: Model, params: dict, state: State, processor: Any) -> Path:
    adapter = isinstance(state.trained, Lora)
    path = run.path / "export" / ("adapter" if adapter else "model")
    if not processes.is_writer():
        return path
    if adapter:
        lora_module.save_peft(path, state.trained, config.model.path)
    else:
        save_pretrained(path, model, params, processor)
    return path


def _losses(run: "Run") -> dict[str, float]:
    """The first and the last step's loss."""
    losses = [row["loss"] for row in run.metrics() if "loss" in row]
    return {"loss/first": losses[0], "loss/last": losses[-1]}
