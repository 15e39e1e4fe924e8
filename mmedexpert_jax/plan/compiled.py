"""Memory of an update's program as its compiler counts it, in the place of needs.py's estimate; nothing is loaded."""

import contextlib
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.models import Model, ModelConfig, fused
from mmedexpert_jax.plan import deviceless
from mmedexpert_jax.plan.needs import abstract_params, abstract_state
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.logprobs import packed
from mmedexpert_jax.train import Policy, State

_PIXELS = 3 * 2 * 14 * 14  # of a patch


@functools.cache
def temporary(config: FrozenConfigDict, shape: ModelConfig, dtype: str, kind: str, prompts: int, samples: int) -> int:
    """Bytes that one gradient of dsa or gba takes on a device besides its arguments and its result.

    Args:
        config: of the job; rows are taken at their full length, without images.
        shape: the model's.
        dtype: of its weights.
        kind: of a device, as `deviceless.mesh` takes it, which need not be here; "": the devices of this machine.
        prompts: of the gradient.
        samples: its completions in all.

    Raises:
        ConfigError: no compiler for such devices is installed, or it does not tell.
    """

    def place(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    sharding = NamedSharding(deviceless.mesh(kind), PartitionSpec()) if kind else None
    params = place(abstract_params(shape, dtype, config.model.quantize))
    trained = place(abstract_state(config, params)[0])
    with fused.traced_for(deviceless.capability(kind)) if kind else contextlib.nullcontext():
        lowered = _lower(config, Model(shape), params, trained, place(_abstract_batch(config, prompts, samples)))
    options = deviceless.OPTIONS if kind in deviceless.TARGETS else None
    analysis = lowered.compile(compiler_options=options).memory_analysis()
    if analysis is None:
        raise ConfigError(f"config.plan_compile: {kind or 'the device'}'s compiler tells no memory; leave it out")
    return analysis.temp_size_in_bytes


def _lower(config: FrozenConfigDict, model: Model, params: dict, trained: Any, rows: Any) -> jax.stages.Lowered:
    if config.job == "dsa":
        from mmedexpert_jax.sft.dsa import learner_of

        return learner_of(config, model, Policy(params), 1).lower_update(State(trained, ()), rows)
    from mmedexpert_jax.gba.policy_learner import PolicyLearner

    return PolicyLearner(model, params, config, (), config.num_samples, 1).lower_update(State(trained, ()), rows)


def _abstract_batch(config: FrozenConfigDict, prompts: int, samples: int) -> Any:
    """The batch that a gradient is computed from: a `PolicyBatch` of gba, a `MicroBatch` of dsa."""
    batch, limit = _batch(prompts, config.max_prompt_length), config.max_new_tokens
    if config.job == "dsa":
        from mmedexpert_jax.sft.loss import MicroBatch

        return MicroBatch(batch, np.zeros((prompts, limit), np.int32), np.full(prompts, limit, np.int32))
    from mmedexpert_jax.gba.policy_learner import PolicyBatch

    shape = (prompts, samples // prompts, limit)
    lengths, floats = np.full(shape[:2], limit, np.int32), np.zeros(shape, np.float32)
    packing = packed(lengths, limit, config.packing) if config.packing and limit > 1 else None
    return PolicyBatch(batch, np.zeros(shape, np.int32), lengths, floats, floats[..., 0], packing=packing)


def _batch(prompts: int, length: int) -> Batch:
    """Prompts of the full length without images."""
    tokens = np.zeros((prompts, length), np.int32)
    counts = np.full(prompts, length, np.int32)
    return Batch(
        tokens=tokens,
        lengths=counts,
        positions=np.zeros((prompts, 3, length), np.int32),
        next_position=counts,
        vision_index=tokens,
        patches=np.zeros((0, 4, _PIXELS), np.float32),
        patch_positions=np.zeros((0, 4, 2), np.int32),
        patch_counts=np.zeros(0, np.int32),
    )
