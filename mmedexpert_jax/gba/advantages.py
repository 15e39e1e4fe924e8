"""Equation 4: rewards relative to their group."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mmedexpert_jax.errors import ConfigError


def group_advantages(
    rewards: jax.Array | np.ndarray, eps: float = 1e-4, ddof: int = 1, scale: bool = True
) -> jax.Array:
    """Normalises each reward against its group: (r - mean) / (std + eps), paper equation 4.

    Args:
        rewards: [N, G], the G rewards of each of N groups.
        eps: added to the standard deviation; the paper gives none, 1e-4 is TRL's and the R1-V family's.
        ddof: 1 for the sample deviation (TRL, R1-V), 0 for the population's.
        scale: divide by the deviation; Dr. GRPO (Liu et al. 2025) does not, so that hard and easy groups weigh alike.

    Returns:
        Advantages [N, G] float32; exactly 0 where all rewards of a group are equal.

    Raises:
        ConfigError: fewer than two samples in a group, or, outside jit, a reward that is not finite.
    """
    chex.assert_rank(rewards, 2)
    if rewards.shape[1] < 2:
        raise ConfigError(
            f"group advantages compare at least 2 samples, got groups of {rewards.shape[1]}; raise num_samples"
        )
    if not isinstance(rewards, jax.core.Tracer):
        bad = np.argwhere(~np.isfinite(np.asarray(rewards)))
        if len(bad):
            group, sample = bad[0]
            value = float(rewards[group, sample])
            raise ConfigError(f"the reward of sample {sample} in group {group} is {value}; rewards must be finite")
    return _normalise(jnp.asarray(rewards, jnp.float32), eps, ddof, scale)


@partial(jax.jit, static_argnames=("eps", "ddof", "scale"))
def _normalise(rewards: jax.Array, eps: float, ddof: int, scale: bool) -> jax.Array:
    shifted = rewards - rewards[:, :1]  # equal rewards become exact zeros, whatever their mean rounds to
    centred = shifted - shifted.mean(axis=1, keepdims=True)
    if not scale:
        return centred
    deviation = jnp.sqrt(jnp.square(centred).sum(axis=1, keepdims=True) / (rewards.shape[1] - ddof))
    return centred / (deviation + eps)
