"""The policy of a GBA run: what is trained, how it samples, and one update of equation 5."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from mmedexpert_jax.gba.objective import Terms, policy_terms, truncated_weights
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model
from mmedexpert_jax.models.packing import Packing
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout import Completions, completion_logprobs, generate
from mmedexpert_jax.rollout.decode import programs
from mmedexpert_jax.runtime import training
from mmedexpert_jax.runtime.mesh import ROWS, make_mesh, replicate, shard, shard_batch, shardings
from mmedexpert_jax.runtime.training import State
from mmedexpert_jax.train.policy import Policy

_WHOLE = PartitionSpec()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """Some prompts of a step with their S completions each: what one gradient is computed from."""

    batch: Batch  # B prompts
    tokens: np.ndarray  # [B, S, R] int32
    lengths: np.ndarray  # [B, S] int32, the end token counted; 0 for a completion without a loss
    logprobs: np.ndarray  # [B, S, R] float32, the sampler's
    advantages: np.ndarray  # [B, S] float32
    counted: np.ndarray | None = None  # [B, S] float32, 1 for a completion that the mean is over; None: all
    packing: Packing | None = None  # of the completions' tokens; None: rows stay padded
    old_logprobs: jax.Array | None = None  # [B, S, R], the trainer's before the first update; None: the policy's own


class Learner:
    """Samples from the policy and updates it. Programs are compiled once for each shape; `compilations` counts them.

    On several devices every one works on its share of the prompts, and only sums over the completions (the gradient
    of what is trained, the loss and its statistics) pass between them. With `shard` the optimizer state, or the
    weights too, lie in parts on the devices between steps; a step gathers what it needs of them.

    Args:
        model: the network.
        params: base weights; also the reference, since with the adapter off the policy is the base.
        config: of the run.
        ban: token ids of probability zero, for the sampler and the trainer alike.
        num_samples: S, completions of each prompt.
        steps: rollouts of the run, for the learning-rate schedule.
        mesh: of devices; None: one.
        lora: deltas that belong to the base.
    """

    def __init__(
        self,
        model: Model,
        params: dict,
        config: ConfigDict,
        ban: Sequence[int],
        num_samples: int,
        steps: int,
        mesh: Mesh | None = None,
        lora: Lora | None = None,
    ):
        self._compiled, self._sampled = 0, len(programs)
        self._mesh = mesh or make_mesh(1)
        self._model, self._config = model, config
        self._full = config.trainable == "full"
        self._dtypes = jax.tree.map(lambda leaf: leaf.dtype, params)
        self._base = self._place(Policy.of(params, lora), "full")
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
        self._policy = self._compile(self._current) if self._full else self._current
        self._gather = jax.jit(self._place)
        self._gradient = self._compile(self._on_rows(self._gradient_fn, summed=True))
        self._gradient_alone = self._gradient if self.devices == 1 else self._compile(self._gradient_fn)
        self._apply = self._compile(self._apply_fn, donate_argnums=(0, 1))
        self._score = self._compile(self._on_rows(self._score_fn))
        self._add = self._compile(lambda a, b: (jax.tree.map(jnp.add, a[0], b[0]), a[1] + b[1]), donate_argnums=0)

    @property
    def compilations(self) -> int:
        """Programs compiled so far, those of the sampler included."""
        return self._compiled + len(programs) - self._sampled

    @property
    def devices(self) -> int:
        """Devices among which prompts are split."""
        return self._mesh.size

    def init(self, key: jax.Array) -> State:
        """The state before the first step: fresh deltas, or the base weights."""
        trained = self._base.trainable(self._config, key)
        if self._full:
            self._base = self._base if self._config.beta else Policy(None)
        return State(self._place(trained, "full"), self._place(self._optimizer.init(trained), "optimizer", "full"))

    def policy(self, state: State) -> Policy:
        """The policy of a state."""
        return self._current(state.trained, self._base)

    def sample(self, state: State, batch: Batch, key: jax.Array) -> Completions:
        """S completions of each prompt, on the host. The images of `batch` are numbered through for all prompts."""
        policy = self._policy(state.trained, self._base)
        batch, rows = self._split((batch, np.arange(len(batch.tokens), dtype=np.int32)))
        done = generate(
            self._model,
            policy.params,
            batch,
            key=self._place(jax.random.key_data(key)),
            rows=rows,
            lora=policy.lora,
            **self._sampling,
        )
        return jax.device_get(done if self.devices == 1 else self._gather(done))

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
            total = functools.reduce(
                self._add, (self._gradient((trained, self._base), self._split(p)) for p in minibatch)
            )
            trained, opt_state, stats = self._apply(trained, opt_state, total)
            rows.append(stats)
        stats = {name: float(np.mean([row[name] for row in jax.device_get(rows)])) for name in rows[0]}
        stats["learning_rate"] = float(self._schedule(state.step * self.updates))
        return dataclasses.replace(state, trained=trained, opt_state=opt_state, step=state.step + 1), stats

    def gradient(self, state: State, part: Part) -> tuple[Any, Terms]:
        """Summed gradient of the trained tree, and the sums that go with it, before the division.

        The part, which may be of any size, is not split over the devices.
        """
        return self._gradient_alone((state.trained, self._base), part)

    def lower_update(self, state: State, part: Part) -> jax.stages.Lowered:
        """The gradient's program for such a part, to look at: its memory, its instructions."""
        return self._gradient.lower((state.trained, self._base), self._split(part))

    def _with_old(self, state: State, part: Part) -> Part:
        part = self._split(part)
        return dataclasses.replace(part, old_logprobs=self._score((state.trained, self._base), part))

    def _current(self, trained: Any, base: Policy) -> Policy:
        return base.trained(trained, self._dtypes)

    def _score_fn(self, whole: tuple[Any, Policy], part: Part) -> jax.Array:
        return self._logprobs(self._current(*whole), part)

    def _gradient_fn(self, whole: tuple[Any, Policy], part: Part) -> tuple[Any, Terms]:
        trained, base = whole
        reference = self._logprobs(base, part) if self._config.beta else None

        def loss(trained: Any) -> tuple[jax.Array, Terms]:
            logprobs, entropy = self._logprobs(self._current(trained, base), part, entropy=True)
            terms = self._terms(part, logprobs, reference, entropy)
            return terms.loss, terms

        return jax.grad(loss, has_aux=True)(trained)

    def _logprobs(self, policy: Policy, part: Part, **options) -> Any:
        return completion_logprobs(
            self._model,
            policy.params,
            part.batch,
            part.tokens,
            part.lengths,
            lora=policy.lora,
            packing=part.packing,
            **self._scoring,
            **options,
        )

    def _terms(self, part: Part, logprobs: jax.Array, reference: jax.Array | None, entropy: jax.Array) -> Terms:
        """The loss of equation 5 with clip and KL, and what else is watched of the completions."""
        config, old = self._config, part.old_logprobs
        mask = jnp.arange(part.tokens.shape[-1]) < part.lengths[..., None]
        own = jax.lax.stop_gradient(logprobs) if old is None else old  # of the policy that sampled
        weights = truncated_weights(own, part.logprobs, config.importance_cap) if config.importance_cap else None
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
            ratio_level=config.ratio_level,
            weights=None if weights is None else _flat(weights),
            num_rows=None if part.counted is None else jnp.sum(part.counted),
        )
        difference = jnp.where(mask, jnp.abs(own - part.logprobs), 0.0)
        sums = {"entropy": entropy.sum(), "sampling/logp_difference/mean": difference.sum()}
        if weights is not None:
            sums["sampling/importance_sampling_ratio/mean"] = jnp.where(mask, weights, 0.0).sum()
        peaks = {"sampling/logp_difference/max": difference.max()}
        watched = jax.lax.stop_gradient((terms.sums | sums, terms.peaks | peaks))
        return dataclasses.replace(terms, sums=watched[0], peaks=watched[1])

    def _apply_fn(self, trained: Any, opt_state: Any, total: tuple[Any, Terms]) -> tuple[Any, Any, dict]:
        denominator = jnp.maximum(total[1].denominator, 1)  # 0 where every group was dropped
        gradient = self._place(jax.tree.map(lambda leaf: leaf / denominator, total[0]), "optimizer", "full")
        updates, opt_state = self._optimizer.update(gradient, opt_state, trained)
        stats = total[1].stats() | {"grad_norm": optax.global_norm(gradient)}
        trained = self._place(optax.apply_updates(trained, updates), "full")
        return trained, self._place(opt_state, "optimizer", "full"), stats

    def _place(self, tree: Any, *modes: str) -> Any:
        """The tree as it lies on the devices between steps: in parts where `shard` is one of `modes`, else whole."""
        if self.devices == 1:
            return tree
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
        if self._config.shard in modes:
            if traced:
                return jax.lax.with_sharding_constraint(tree, shardings(tree, self._mesh))
            return shard(tree, self._mesh)
        if traced:
            return jax.lax.with_sharding_constraint(tree, jax.sharding.NamedSharding(self._mesh, _WHOLE))
        return replicate(tree, self._mesh)

    def _split(self, rows: Any) -> Any:
        """Arrays of the host, each device's share of the prompts sent to it."""
        return rows if self.devices == 1 else shard_batch(rows, self._mesh)

    def _on_rows(self, function: Callable, summed: bool = False) -> Callable:
        """`function(whole, split)` run by every device on its share of `split`; one device runs the function itself.

        What it returns is split in the same way, or, with `summed`, is (a tree, Terms) to add up over the devices.
        """
        if self.devices == 1:
            return function

        def share(whole: Any, split: Any) -> Any:
            result = function(whole, split)
            if not summed:
                return result
            return jax.lax.psum(result[0], ROWS[0]), result[1].across(ROWS[0])

        return jax.shard_map(
            share,
            mesh=self._mesh,
            in_specs=(_WHOLE, ROWS),
            out_specs=_WHOLE if summed else ROWS,
            check_vma=False,
        )

    def _compile(self, function: Callable, **options) -> Any:
        @functools.wraps(function)
        def traced(*args):
            self._compiled += 1
            return function(*args)

        return jax.jit(traced, **options)


def _flat(rows: jax.Array) -> jax.Array:
    """[B, S, R] -> [B * S, R]."""
    return rows.reshape(-1, rows.shape[-1])
