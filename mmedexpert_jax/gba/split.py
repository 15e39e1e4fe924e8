"""The split of a step's prompts: into the minibatches of its updates, over devices, into micro-batches."""

import math

import numpy as np
from ml_collections import ConfigDict

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.models.packing import capacity
from mmedexpert_jax.rounding import round_up

SPARE = 3  # standard errors of a step's tokens, by which later steps may need more: a run then has one program for all
LOOSE = 1.5  # times what is needed, beyond which a smaller program repays its compilation


def prompts(config: ConfigDict, groups: int = 0) -> int:
    """Prompts of a step, each read once (`Guidelines.prompts_per_step`); with `groups` in place of the config's."""
    return (groups or config.prompts_per_step) * (config.paradigms_per_query if config.group_by == "query" else 1)


def refills(config: ConfigDict) -> int:
    """Rollouts that a step may add to its own."""
    return config.refill_rounds if config.zero_variance == "refill" else 0


def micro_batch(config: ConfigDict, devices: int, prefix: str = "") -> int:
    """Prompts of one gradient on each device: `micro_batch`, or all of a minibatch.

    Args:
        devices: of its mesh, all processes together.
        prefix: of its fields' names, such as "gba." in a pipeline.

    Raises:
        ConfigError: they cannot be split evenly. It names the least number of prompts that can, or, where the devices
            are not the cause, the largest micro-batch, which changes no result.
    """
    shards = config.minibatches * devices
    if _divides(config, shards * max(1, config.micro_batch), config.prompts_per_step):
        return config.micro_batch or prompts(config) // shards
    if _divides(config, shards, config.prompts_per_step):
        each = prompts(config) // shards
        size = max(n for n in range(1, config.micro_batch) if each % n == 0)
        raise ConfigError(
            f"config.{prefix}micro_batch={config.micro_batch} does not divide the {each} prompts of an update on each "
            f"device; set --config.{prefix}micro_batch={size}"
        )
    parts, queries = shards * max(1, config.micro_batch), _queries(config)
    unit = math.lcm(parts // math.gcd(parts, prompts(config, 1)), config.minibatches, queries)
    more = round_up(config.prompts_per_step, unit)
    raise ConfigError(
        f"config.{prefix}prompts_per_step={config.prompts_per_step}, the batch of all devices, cannot be split "
        f"evenly (devices {devices}, minibatches {config.minibatches}, micro_batch {config.micro_batch}); "
        f"set --config.{prefix}prompts_per_step={more}"
    )


def packed_length(needed: int, work: np.ndarray, held: int, full: int, sizes: int) -> int:
    """Tokens of the packed update, of which `full` would be the most: as many as are `held` from the step before, as
    long as these suffice and are not far too many; else one of `sizes` equal steps, above what is `needed` by as much
    as steps of such prompts, with `work` [N] tokens each, differ. It comes from the state and the step alone, so that
    a run that is resumed computes what it would have computed. 0: nothing is packed."""
    if not sizes or not full:
        return 0
    if needed <= held and (not needed or held <= LOOSE * needed):
        return held
    error = work.std() / (max(1.0, work.mean()) * len(work) ** 0.5)
    return capacity(min(int(needed * (1 + SPARE * error)), full), full, sizes)


def _divides(config: ConfigDict, shards: int, groups: int) -> bool:
    """True where so many groups a step can be split: their prompts into the shards, they themselves by minibatches."""
    return prompts(config, groups) % shards == groups % config.minibatches == groups % _queries(config) == 0


def _queries(config: ConfigDict) -> int:
    """Groups of one query, which stay together."""
    return 1 if config.group_by == "query" else config.paradigms_per_query
