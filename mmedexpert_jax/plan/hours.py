"""Hours and money of what a job has left, from the roofline of its devices or from steps that were measured here.

A product of a token with the weights takes two operations a parameter. A training step has a forward pass and a
backward one (through the activations; one more for the weights where all are trained; another forward with `remat`);
one of GBA has a forward pass of the reference too, and what perception and several updates of a rollout add; each token
that is sampled reads all weights once, whatever the batch.
"""

import statistics
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from mmedexpert_jax.plan import budget
from mmedexpert_jax.plan.hardware import MEMORY, Devices
from mmedexpert_jax.runtime import costs, metrics

# Bytes a second from the memory of one device, as its vendor states it, by the names of `costs.PEAKS`.
BANDWIDTH = {
    "V100": 0.9e12, "T4": 0.32e12, "L4": 0.3e12, "L40S": 0.864e12, "A10": 0.6e12, "A10G": 0.6e12, "A100": 2.0e12,
    "H100": 3.35e12, "H200": 4.8e12, "GH200": 4.0e12, "TPU v4": 1.23e12, "TPU v5 lite": 0.82e12, "TPU v5e": 0.82e12,
    "TPU v5p": 2.77e12, "TPU v5": 2.77e12, "TPU v6": 1.64e12, "TPU v6e": 1.64e12,
}  # fmt: skip
# Shares of the roofline that are assumed: matrix products of a training step at a third of the peak and decoding at
# half of the bandwidth are what well-kept trainers reach; a first step's time replaces them.
UPDATE_FRACTION, DECODE_FRACTION = 0.33, 0.5


def roofline(devices: Devices) -> tuple[float, float]:
    """Operations and bytes a second of one device; zeros where it is not known. A CPU's are measured here."""
    if devices.kind == "cpu":
        return costs.peak_flops(), _bandwidth()
    kind = name_of(devices)
    return costs.figure(costs.PEAKS, kind), costs.figure(BANDWIDTH, kind)


def name_of(devices: Devices) -> str:
    """JAX's name of such devices, or that of `costs.PEAKS` of those that `plan_mesh` names."""
    if devices.kind in MEMORY:
        return f"TPU {devices.kind}" if devices.kind.startswith("v") else devices.kind
    import jax

    return jax.devices()[0].device_kind


@cache
def _bandwidth() -> float:
    """Bytes a second that this machine reads and writes in copying an array beyond its caches."""
    source = np.ones(2**25, np.float32)  # 128 MiB, more than most sockets cache
    began = time.perf_counter()
    source.copy()
    return 2 * source.nbytes / (time.perf_counter() - began)


def seconds(stage: ConfigDict, train: Mapping[str, int], answers: int = 0) -> float:
    """Seconds that a stage takes at its limits, by the roofline; 0 where that is not known.

    Args:
        stage: of the jobs dsa, gba, evaluate; any other has no roofline here.
        train: training cases by specialty.
        answers: of an evaluation, or of each held-out one of a training.
    """
    needs, devices, dtype = budget.count(stage)
    peak, bandwidth = roofline(devices)
    if not (peak and bandwidth) or stage.job not in ("dsa", "gba", "evaluate"):
        return 0.0
    prompt, completion = stage.max_prompt_length, stage.max_new_tokens
    weights = needs.parameters * (4 if dtype == "float32" else 2)
    used = 1 if stage.job == "evaluate" else devices.mesh(**stage.mesh).size

    def product(tokens: float, passes: float) -> float:
        return 2 * needs.parameters * tokens * passes / (peak * UPDATE_FRACTION * used)

    def decoded(waves: float) -> float:
        return waves * completion * weights / (bandwidth * DECODE_FRACTION)

    if stage.job == "evaluate":
        total = answers * stage.num_samples
        return product(total * (prompt + completion), 1) + decoded(np.ceil(total / stage.batch_size))
    steps = budget.training_steps(stage, train)
    passes = 2 + (stage.trainable == "full") + stage.remat
    if stage.job == "gba":
        looks = 1 + bool(stage.perception or stage.perception_entropy)
        updates = stage.inner_epochs * stage.minibatches
        passes = stage.inner_epochs * (looks * passes + bool(stage.beta)) + (updates > 1)
    found = product(steps * budget.tokens_per_step(stage), passes)
    if stage.job == "gba":
        asked = budget.filter_answers(stage, train)
        rows = stage.eval.batch_size * max(1, stage.filter.samples)
        found += decoded(steps) + product(asked * (prompt + completion), 1) + decoded(np.ceil(asked / rows))
    if stage.eval.every >= 0:
        times = 2 + ((steps - 1) // stage.eval.every if stage.eval.every else 0)
        held_out = times * min(stage.eval.limit or answers, answers) * stage.eval.num_samples
        found += product(held_out * (prompt + completion), 1) + decoded(np.ceil(held_out / stage.eval.batch_size))
    return found


def measured(config: ConfigDict, steps: int) -> tuple[float, float]:
    """(seconds of a step, seconds that are left) from the steps that the run directory has; zeros without any."""
    rows = [] if config.fresh else metrics.read(Path(config.workdir))
    taken = [row["step_time"] for row in rows if row.get("step_time")]
    if not taken:
        return 0.0, 0.0
    step = statistics.median(taken)  # the first ones compile
    return step, step * max(0, steps - max(row["step"] for row in rows))


def duration(taken: float) -> str:
    """Seconds in the unit in which people think of them."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if taken >= 2 * size:
            return f"{taken / size:.1f} {unit}"
    return f"{max(1, round(taken))} seconds"


def line(taken: float, devices: Devices, price: float, what: str) -> str:
    """The line of a plan: time, devices, money at `price` dollars an hour and device, and where it is from."""
    source = "measured here" if devices.kind == "cpu" else "as its vendor states it"
    fractions = f"{UPDATE_FRACTION:.0%} of peak and {DECODE_FRACTION:.0%} of bandwidth, {source}"
    return (
        f"time     about {duration(taken)} on {devices.count} x {devices.kind}{money(taken, devices, price)}: {what} "
        f"({fractions}; not a run)"
    )


def money(taken: float, devices: Devices, price: float) -> str:
    """Words on the dollars of so many seconds at `price` an hour and device; none where it is 0."""
    return f", about {taken / 3600 * devices.count * price:,.2f} dollars" if price else ""
