"""The one learner: gradients of a loss, summed over micro-batches and devices, and updates of what is trained.

A stage gives its loss as sums (`LossTerms`) of one micro-batch; the learner adds them up and divides once, so that
neither loss nor gradient depends on how a step is split into micro-batches or over devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models.tree import flatten, is_deep, is_stacked, restacked, stack, stacked_name, unstack
from mmedexpert_jax.runtime.mesh import make_mesh
from mmedexpert_jax.runtime.signals import SIGNALS
from mmedexpert_jax.train.layout import Layout
from mmedexpert_jax.train.optimizer import Rule, optimizer
from mmedexpert_jax.train.policy import Policy
from mmedexpert_jax.train.state import State


class LossTerms(Protocol):
    """Sums over some of an update's rows; a pytree."""

    @property
    def loss(self) -> jax.Array:
        """[] summed."""

    @property
    def denominator(self) -> jax.Array:
        """[] the divisor of loss and gradient."""

    def __add__(self, other: Any) -> Any:
        """Those of both together."""

    def joined(self) -> Any:
        """Those of all shards, which are stacked along a first axis of every array."""

    def stats(self) -> dict[str, jax.Array]:
        """The loss and the statistics of the whole, as named scalars."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """The least that a loss gives: sums over tokens, float32, whose quotient is the loss."""

    loss: jax.Array  # [] nats
    tokens: jax.Array  # [] their number, or the sum of their weights

    @property
    def denominator(self) -> jax.Array:
        """[] what the loss is divided by: the mean is over tokens."""
        return self.tokens

    def __add__(self, other: Any) -> Any:
        return jax.tree.map(jnp.add, self, other)

    def joined(self) -> Any:
        """The sum of sums that are stacked along a first axis."""
        return jax.tree.map(lambda values: values.sum(axis=0), self)

    def stats(self) -> dict[str, jax.Array]:
        """The mean loss."""
        return {"loss": self.loss / self.tokens}


Loss = Callable[[Policy, Policy, Any], LossTerms]  # of the policy, what it started from, a micro-batch


class Learner:
    """Holds the frozen weights and the compiled programs of a run; all that changes is in a `State`.

    Layers have their numbers in all that is saved, sampled from and evaluated. With `scan_layers` the programs of a
    deep model take them stacked, so that one layer is compiled for all. The base is held once, in the form that was
    asked for last; deltas are stacked once an update, weights inside the programs. Moments of deltas stay stacked: the
    updates of each layer apart would take longer to compile than a gradient does.

    Args:
        base: the policy before the run; also the reference, since with the adapter off the policy is the base.
        loss: of a micro-batch, any pytree of the host's arrays whose first axes are split over the devices.
        steps: of the run, for the learning-rate schedule.
        updates: planned in a step.
        keeps_base: False where all is trained and no loss reads the base, which is then freed.
        rule: the optimizer but for its rate, and the rate by update; None: those of the config.
    """

    def __init__(
        self,
        config: ConfigDict,
        base: Policy,
        loss: Loss,
        steps: int,
        updates: int = 1,
        mesh: Mesh | None = None,
        keeps_base: bool = True,
        rule: Rule | None = None,
    ):
        self.layout = Layout(mesh or make_mesh(1), config.shard)
        self.shards = self.layout.shards  # parts that a micro-batch's rows are split into, each on devices of its own
        self._config, self._loss, self.updates, self._compiled = config, loss, updates, 0
        self._keeps_base = keeps_base or config.trainable != "full"
        self._dtypes = jax.tree.map(lambda leaf: leaf.dtype, base.params)
        self._scans = config.scan_layers and is_deep(base.params)
        # A sampler beside the update needs the other form at the same time: the programs then stack it inside.
        self._turns = self._scans and not config.get("rollout_ahead", 0)
        self._stack, self._unstack = (
            jax.jit(lambda tree, change=change: self.layout.weights(change(tree))) for change in (stack, unstack)
        )
        self._base = self.layout.weights(base)
        self._optimizer, self._schedule = rule or optimizer(config, steps * updates)
        self._gradient = self.compile(self._gradient_fn)
        # A single row, as `gradient` is asked for, cannot be split over the devices.
        alone = functools.partial(self._gradient_fn, split=False)
        self._alone = self._gradient if self.shards == 1 else self.compile(alone)
        self._add = self.compile(lambda a, b: (jax.tree.map(jnp.add, a[0], b[0]), a[1] + b[1]), donate_argnums=0)
        # Stacked deltas leave the program under their numbers: no result has their shape, and donating them would warn.
        donated = (1,) if self._scans and config.trainable == "lora" else (0, 1)
        self._apply = self.compile(self._apply_fn, donate_argnums=donated)
        self._cast = self.compile(self._policy) if config.trainable == "full" else self._policy

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._compiled

    def init(self, key: jax.Array) -> State:
        """The state before the first step: fresh deltas, or the base weights."""
        trained = self.layout.weights(self._held(stacked=False).trainable(self._config, key))
        self._base = self._base if self._keeps_base else Policy(None)  # all is trained: a second copy, read by nobody
        return State(trained, self.layout.optimizer(self._optimizer.init(self._given(trained))))

    def policy(self, state: State) -> Policy:
        """The policy of a state."""
        return self._cast(state.trained, self._held(stacked=False))

    def _held(self, stacked: bool) -> Policy:
        """The base, its layers stacked as a gradient reads them, or under their numbers as a sampler does."""
        base = self._base
        if self._turns and base.params is not None and is_stacked(base.params) != stacked:
            if isinstance(jax.tree.leaves(base.params)[0], jax.ShapeDtypeStruct):  # to be looked at, as in a plan
                return dataclasses.replace(
                    base, params=self.layout.weights(stack(base.params)) if stacked else base.params
                )
            flat, deltas = flatten(base.params), base.lora
            base = self._base = Policy(None)  # frees the other form
            base = self._base = Policy(restacked(flat, self._stack if stacked else self._unstack), deltas)
        return base

    @SIGNALS.held()  # the arrays that it gives up are not there to be saved until it returns
    def update(
        self, state: State, minibatches: Sequence[Iterable[Any]], tokens: int = 0
    ) -> tuple[State, dict[str, float]]:
        """One update for each minibatch, an iterable of micro-batches.

        Args:
            state: its arrays are donated.
            tokens: read in it, for the state's count.

        Returns:
            The new state and statistics, means over the updates, `learning_rate` among them, and of names that end in
            "/max" the largest; without the updates that had no tokens, whose statistics are NaN.
        """
        trained, opt_state, base, rows = state.trained, state.opt_state, self._held(stacked=True), []
        number = state.step * self.updates  # also where some of the planned ones were not made
        for place, minibatch in enumerate(minibatches):
            trained = _instead(trained, self._given(trained))
            # A generator: of a minibatch no more than two gradients are there at a time, the sum and the next.
            gradients = (self._gradient(trained, base, self.layout.rows(micro)) for micro in minibatch)
            total = functools.reduce(self._add, gradients)
            trained, opt_state, stats = self._apply(trained, opt_state, total, jnp.int32(number + place))
            rows.append(stats)
        found = jax.device_get(rows)
        stats = {name: _joined(name, [row[name] for row in found]) for name in found[0]}
        step, tokens = state.step + 1, state.num_tokens + tokens
        return dataclasses.replace(state, trained=trained, opt_state=opt_state, step=step, num_tokens=tokens), stats

    def gradient(self, state: State, micro: Any) -> tuple[Any, Any]:
        """Summed gradient of the trained tree, and the terms that go with it, before the division.

        The micro-batch, which may be of any size, is not split over the devices.
        """
        return self._alone(state.trained, self._held(stacked=True), micro)

    def lower_update(self, state: State, micro: Any) -> jax.stages.Lowered:
        """The gradient's program for such a micro-batch, for inspection of its memory and instructions."""
        return self._gradient.lower(self._given(state.trained), self._held(stacked=True), self.layout.rows(micro))

    def lower_apply(self, state: State, found: tuple[Any, Any]) -> jax.stages.Lowered:
        """The program that applies such a gradient, `found` with its terms, for inspection."""
        gradient, terms = found
        given = self._given(state.trained), state.opt_state, (self.layout.optimizer(gradient), terms)
        return self._apply.lower(*given, jax.ShapeDtypeStruct((), jnp.int32))

    def compile(self, function: Callable, **options: Any) -> Any:
        """`function` compiled, and counted once for each program."""

        def traced(*args):
            self._compiled += 1
            return function(*args)

        return jax.jit(traced, **options)

    def _given(self, trained: Any) -> Any:
        """The trained tree as an update's programs read it: deltas of every layer are stacked, once for all
        micro-batches, so that a gradient holds neither them nor its own in both forms."""
        if not self._scans or not isinstance(trained, Lora) or not _in_all_layers(trained):
            return trained
        if isinstance(jax.tree.leaves(trained)[0], jax.ShapeDtypeStruct):
            return self.layout.weights(stack(trained))
        return self._stack(trained)

    def _policy(self, trained: Any, base: Policy) -> Policy:
        return base.trained(trained, self._dtypes)

    def _policies(self, trained: Any, base: Policy) -> tuple[Policy, Policy]:
        """The policy and the base as a loss reads them."""
        if not self._scans:
            return self._policy(trained, base), base
        if isinstance(trained, Lora):
            base = Policy(base.params, stack(base.lora, base.params))
            trained = stack(trained, base.params)
        policy = self._policy(trained, base)
        stacked = self.layout.weights(stack(policy, policy.params))
        if policy.params is base.params:  # the same weights are stacked once
            deltas = self.layout.weights(stack(base.lora, base.params))
            return stacked, Policy(stacked.params, deltas)
        return stacked, self.layout.weights(stack(base, base.params))

    def _gradient_fn(self, trained: Any, base: Policy, micro: Any, split: bool = True) -> tuple[Any, Any]:
        def of_shard(policies: tuple[Policy, Policy], rows: Any) -> Any:
            return self._loss(*policies, rows)

        def loss(trained: Any) -> tuple[jax.Array, Any]:
            policies = self._policies(trained, base)
            if split and self.shards > 1:
                terms = self.layout.by_shard(of_shard, policies, micro).joined()
            else:
                terms = of_shard(policies, micro)
            return terms.loss, terms

        gradient, terms = jax.grad(loss, has_aux=True)(trained)
        return self.layout.optimizer(gradient), terms

    def _apply_fn(
        self, trained: Any, opt_state: Any, total: tuple[Any, Any], number: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        denominator = jnp.maximum(total[1].denominator, 1)  # 0 where every group was dropped
        gradient = jax.tree.map(lambda leaf: leaf / denominator, total[0])
        updates, opt_state = self._optimizer.update(gradient, opt_state, trained)
        rate = self._schedule(number)  # outside the optimizer, whose own count of updates may lag (`optimizer`)
        trained = jax.tree.map(lambda weight, update: weight - rate * update, trained, updates)
        stats = total[1].stats() | {"grad_norm": optax.global_norm(gradient), "learning_rate": jnp.float32(rate)}
        trained = unstack(trained) if self._scans else trained
        return self.layout.weights(trained), self.layout.optimizer(opt_state), stats


def _joined(name: str, values: list[Any]) -> float:
    if name not in ("loss", "grad_norm"):  # in which NaN is a divergence
        values = [value for value in values if not np.isnan(value)] or values
    return float(np.max(values) if name.endswith("/max") else np.mean(values))


def _in_all_layers(deltas: Lora) -> bool:
    """True where stacking adds no layer that has no delta."""
    whole = jax.eval_shape(lambda tree: unstack(stack(tree)), deltas)
    return whole.factors.keys() == deltas.factors.keys()


def _instead(trained: Any, given: Any) -> Any:
    """`given`; deltas that it has in another form are let go."""
    if given is not trained:
        for name, factors in trained.factors.items():
            if stacked_name(name)[1] is not None:
                jax.tree.map(lambda leaf: leaf.delete(), factors)
    return given
