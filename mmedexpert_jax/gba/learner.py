"""The policy of a GBA run: what is trained, how it samples, and one update of equation 5."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.gba.objective import Terms, policy_terms
from mmedexpert_jax.models import Model
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout import Completions, completion_logprobs, generate
from mmedexpert_jax.runtime import training
from mmedexpert_jax.runtime.training import State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """Some prompts of a step with their S completions each: what one gradient is computed from."""

    batch: Batch  # B prompts
    tokens: np.ndarray  # [B, S, R] int32
    lengths: np.ndarray  # [B, S] int32, the end token counted
    logprobs: np.ndarray  # [B, S, R] float32, the sampler's
    advantages: np.ndarray  # [B, S] float32
    old_logprobs: jax.Array | None = None  # [B, S, R], the trainer's before the first update; None: the policy's own


class Learner:
    """Samples from the policy and updates it. Its programs are compiled once each; `compilations` counts them.

    Args:
        model: the network.
        params: base weights; also the reference, since with the adapter off the policy is the base.
        config: of the run.
        ban: token ids of probability zero, for the sampler and the trainer alike.
        num_samples: S, completions of each prompt.
        steps: rollouts of the run, for the learning-rate schedule.
    """

    def __init__(
        self, model: Model, params: dict, config: ConfigDict, ban: Sequence[int], num_samples: int, steps: int
    ):
        self.compilations = 0
        self._model, self._config = model, config
        self._params: Any = params  # None once they are trained and no reference is kept
        self._full = config.trainable == "full"
        self._dtypes = jax.tree.map(lambda leaf: leaf.dtype, params)
        self._sampling: dict[str, Any] = {
            "num_samples": num_samples,
            "max_new_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "top_k": config.top_k,
            "top_p": config.top_p,
            "ban": tuple(ban),
        }
        self._scoring: dict[str, Any] = {"temperature": config.temperature, "ban": tuple(ban), "remat": config.remat}
        self.updates = config.inner_epochs * config.minibatches
        self._optimizer, self._schedule = training.optimizer(config, steps * self.updates)
        self._sample = self._compile(self._sample_fn)
        self._gradient = self._compile(self._gradient_fn)
        self._apply = self._compile(self._apply_fn, donate_argnums=(0, 1))
        self._score = self._compile(self._score_fn)
        self._add = self._compile(lambda a, b: (jax.tree.map(jnp.add, a[0], b[0]), a[1] + b[1]), donate_argnums=0)

    def init(self, key: jax.Array) -> State:
        """The state before the first step: fresh deltas, or the base weights."""
        if self._full:
            trained = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), self._params)
            self._params = self._params if self._config.beta else None
        else:
            lora = self._config.lora
            trained = lora_module.init(key, self._params, lora.rank, lora.alpha, lora.targets)
        return State(trained, self._optimizer.init(trained))

    def policy(self, state: State) -> dict:
        """The policy as plain parameters, the adapter folded in."""
        params, lora = self._parts(state.trained, self._params)
        return params if lora is None else lora_module.fold(params, lora)

    def sample(self, state: State, batch: Batch, key: jax.Array) -> Completions:
        """S completions of each prompt, on the host."""
        return jax.device_get(self._sample(state.trained, self._params, batch, key))

    def update(self, state: State, parts: list[list[Part]]) -> tuple[State, dict[str, float]]:
        """One pass, or `inner_epochs`, over a step's minibatches, each of them a list of micro-batches.

        With one update per rollout the old policy is the current one and is not computed again.

        Returns:
            The new state (the old one's arrays are given up) and statistics, means over the updates.
        """
        if self.updates > 1:
            parts = [[self._with_old(state, part) for part in minibatch] for minibatch in parts]
        trained, opt_state, rows = state.trained, state.opt_state, []
        for minibatch in parts * self._config.inner_epochs:
            total = functools.reduce(self._add, (self._gradient(trained, self._params, part) for part in minibatch))
            trained, opt_state, stats = self._apply(trained, opt_state, total)
            rows.append(stats)
        stats = {name: float(np.mean([row[name] for row in jax.device_get(rows)])) for name in rows[0]}
        stats["learning_rate"] = float(self._schedule(state.step * self.updates))
        return dataclasses.replace(state, trained=trained, opt_state=opt_state, step=state.step + 1), stats

    def gradient(self, state: State, part: Part) -> tuple[Any, Terms]:
        """Summed gradient of the trained tree, and the sums that go with it, before the division."""
        return self._gradient(state.trained, self._params, part)

    def _with_old(self, state: State, part: Part) -> Part:
        return dataclasses.replace(part, old_logprobs=self._score(state.trained, self._params, part))

    def _parts(self, trained: Any, params: dict) -> tuple[dict, Any]:
        """Parameters and deltas that make the policy."""
        if self._full:
            return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), trained, self._dtypes), None
        return params, trained

    def _sample_fn(self, trained: Any, params: dict, batch: Batch, key: jax.Array) -> Completions:
        policy, lora = self._parts(trained, params)
        return generate(self._model, policy, batch, key=key, lora=lora, **self._sampling)

    def _score_fn(self, trained: Any, params: dict, part: Part) -> jax.Array:
        policy, lora = self._parts(trained, params)
        return completion_logprobs(
            self._model, policy, part.batch, part.tokens, part.lengths, lora=lora, **self._scoring
        )

    def _gradient_fn(self, trained: Any, params: dict, part: Part) -> tuple[Any, Terms]:
        completions = part.batch, part.tokens, part.lengths
        reference = (
            completion_logprobs(self._model, params, *completions, **self._scoring) if self._config.beta else None
        )

        def loss(trained: Any) -> tuple[jax.Array, Terms]:
            policy, lora = self._parts(trained, params)
            logprobs, entropy = completion_logprobs(
                self._model, policy, *completions, lora=lora, entropy=True, **self._scoring
            )
            terms = self._terms(part, logprobs, reference, entropy)
            return terms.loss, terms

        return jax.grad(loss, has_aux=True)(trained)

    def _terms(self, part: Part, logprobs: jax.Array, reference: jax.Array | None, entropy: jax.Array) -> Terms:
        """The loss of equation 5 with clip and KL, and what else is watched of the completions."""
        config, old = self._config, part.old_logprobs
        mask = jnp.arange(part.tokens.shape[-1]) < part.lengths[..., None]
        terms = policy_terms(
            _flat(logprobs),
            None if old is None else _flat(old),
            None if reference is None else _flat(reference),
            jnp.reshape(part.advantages, -1),
            mask.reshape(-1, mask.shape[-1]),
            clip=config.clip,
            beta=config.beta,
            aggregation=config.aggregation,
            clip_high=config.clip_high,
            max_tokens=config.max_new_tokens,
        )
        difference = jnp.where(mask, jnp.abs((logprobs if old is None else old) - part.logprobs), 0.0)
        sums = {"entropy": entropy.sum(), "sampling/logp_difference/mean": difference.sum()}
        peaks = {"sampling/logp_difference/max": difference.max()}
        watched = jax.lax.stop_gradient((terms.sums | sums, terms.peaks | peaks))
        return dataclasses.replace(terms, sums=watched[0], peaks=watched[1])

    def _apply_fn(self, trained: Any, opt_state: Any, total: tuple[Any, Terms]) -> tuple[Any, Any, dict]:
        gradient = jax.tree.map(lambda leaf: leaf / total[1].denominator, total[0])
        updates, opt_state = self._optimizer.update(gradient, opt_state, trained)
        stats = total[1].stats() | {"grad_norm": optax.global_norm(gradient)}
        return optax.apply_updates(trained, updates), opt_state, stats

    def _compile(self, function: Callable, **options) -> Callable:
        @functools.wraps(function)
        def traced(*args):
            self.compilations += 1
            return function(*args)

        return jax.jit(traced, **options)


def _flat(rows: jax.Array) -> jax.Array:
    """[B, S, R] -> [B * S, R]."""
    return rows.reshape(-1, rows.shape[-1])
