"""Domain-Specific Adaptation (section 4.1): a model learns one specialty's reasoning traces, as a LoRA expert."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from ml_collections import ConfigDict

from mmedexpert_jax.data import SPECIALTIES, Case, load_cases
from mmedexpert_jax.data.order import fingerprint
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.models import Model, flops, load_policy, load_processor
from mmedexpert_jax.runtime import costs
from mmedexpert_jax.runtime.mesh import make_mesh, row_shards
from mmedexpert_jax.runtime.progress import doing
from mmedexpert_jax.sft.examples import Examples
from mmedexpert_jax.sft.loss import MicroBatch, TokenSums, loss_sums
from mmedexpert_jax.train import Evaluate, Learner, Policy, Prefetched, State, export, fit
from mmedexpert_jax.train.layout import read_on

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run


# Steps made ahead, each in a thread: a step's images take a core about as long as an H100 takes the step
# (benchmarks/fed.py), and 8 images of 512 tokens are 77 MB of patches.
AHEAD = 3


def train(
    config: ConfigDict, run: "Run", evaluate: Evaluate | None = None, cases: Sequence[Case] | None = None
) -> Path:
    """Trains an expert on equation 2, or resumes at the run's last checkpoint.

    The data order is a function of (seed, step), so that a run that was killed and resumed ends bit-identical to one
    that never was. The micro-batches of a step are shared out to the devices of the mesh, and their gradients added up.

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
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    shards = row_shards(mesh)
    with doing("encoding the cases"):
        examples = Examples(cases or _load(config), processor, config, shards)
    with doing(f"loading {config.model.path}"):
        held = read_on(mesh, config.shard)
        model, params, lora = load_policy(config.model.path, config.model.dtype, held, config.seed)
    learner = learner_of(config, model, Policy.of(params, lora), examples.steps, mesh)
    del params  # the learner's alone, which lets go of them when it changes their form
    batches = Prefetched(examples.micro_batches, examples.steps, AHEAD, AHEAD)

    def step(state: State, number: int) -> tuple[State, dict[str, float]]:
        began = time.perf_counter()
        micro_batches = batches(number)
        waited = time.perf_counter() - began
        tokens = sum(micro.num_tokens for micro in micro_batches)
        state, stats = learner.update(state, [micro_batches], tokens)
        seconds = time.perf_counter() - began
        costs.count(seconds, tokens, sum(_flops(model, config, micro) for micro in micro_batches))
        clocks = {"step_time": seconds, "tokens_per_second": tokens / seconds, "time/wait": waited}
        return state, stats | {"epoch": examples.epoch(state.step)} | clocks

    key = jax.random.key(config.seed)
    label, data = f"sft {config.specialty}", fingerprint(examples.cases)
    state = fit(config, run, learner, step, examples.steps, label, key, evaluate, data)
    path = export(config, run, model, learner.policy(state), state, processor)
    losses = [row["loss"] for row in run.metrics() if "loss" in row and row["step"] <= state.step]
    summary = {"export": str(path), "steps": state.step, "num_tokens": state.num_tokens}
    ends = {"loss/first": losses[0], "loss/last": losses[-1]} if losses else {}  # none: metrics.jsonl was lost
    run.finish(summary | ends)
    return path


def learner_of(
    config: ConfigDict, model: Model, base: Policy, steps: int, mesh: jax.sharding.Mesh | None = None
) -> Learner:
    """The learner whose loss is equation 2."""

    def loss(policy: Policy, _: Policy, micro: MicroBatch) -> TokenSums:
        return loss_sums(model, policy, micro, config.remat)

    return Learner(config, base, loss, steps, mesh=mesh, keeps_base=False)


def _flops(model: Model, config: ConfigDict, micro: MicroBatch) -> float:
    """Operations of a micro-batch's gradient."""
    prompts, completions = micro.prompts.lengths, micro.lengths[:, None]
    once = flops.forward(model.config, prompts, completions, micro.prompts.patch_counts)
    return flops.trained(once, config.trainable == "full", config.remat)


def _load(config: ConfigDict) -> list[Case]:
    known = (*SPECIALTIES, "mixed")
    if config.specialty not in known:
        raise ConfigError(
            f"config.specialty={config.specialty} is unknown to a single run: choose one of {', '.join(known)}"
        )
    specialty = None if config.specialty == "mixed" else config.specialty
    return load_cases(config.data.path, "train", specialty=specialty, limit=config.limit, seed=config.seed)
