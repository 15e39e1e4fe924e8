"""The policy of a GBA run: how it samples, and its update by `objective.policy_loss`."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmedexpert_jax import train
from mmedexpert_jax.gba.objective import Objective, Terms, Tokens, policy_terms, truncated_weights
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model
from mmedexpert_jax.models.packing import Packing
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout import Completions, completion_logprobs, generate
from mmedexpert_jax.rollout.decode import programs
from mmedexpert_jax.train import Policy, State

REFERENCE = "reference"  # in a state's memory: what is trained, as the reference has it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyBatch:
    """Some prompts of a step with their S completions each: what one gradient is computed from."""

    batch: Batch  # B prompts
    tokens: np.ndarray  # [B, S, R] int32
    lengths: np.ndarray  # [B, S] int32, the end token counted; 0 for a completion without a loss
    logprobs: np.ndarray  # [B, S, R] float32, the sampler's
    advantages: np.ndarray  # [B, S] float32
    counted: np.ndarray | None = None  # [B, S] float32, 1 for a completion that the mean is over; None: all
    packing: Packing | None = None  # of the completions' tokens; None: rows stay padded
    old_logprobs: jax.Array | None = None  # [B, S, R], the trainer's before the first update; None: the policy's own
    reference: jax.Array | None = None  # [B, S, R], of a reference that is not the base
    masked: np.ndarray | None = None  # [I, P, C] float32, the batch's patches with some of them masked


class PolicyLearner(train.Learner):
    """Samples from the policy and updates it by equation 5.

    Args:
        params: base weights; also the reference, since with the adapter off the policy is the base.
        ban: token ids of probability zero, for the sampler and the trainer alike.
        num_samples: S, completions of each prompt.
        steps: rollouts of the run, for the learning-rate schedule.
        lora: deltas that belong to the base.
        memory: what the first state remembers.
        objective: None: that of the config.
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
        memory: dict[str, Any] | None = None,
        objective: Objective | None = None,
    ):
        base, updates = Policy.of(params, lora), config.inner_epochs * config.minibatches
        keeps_base = bool(config.beta) and not config.ref_every
        super().__init__(config, base, self._terms, steps, updates, mesh, keeps_base=keeps_base)
        self._model, self._config, self._sampled = model, config, len(programs)
        self._memory, self._objective = memory or {}, objective or Objective.from_config(config)
        self._sampling: dict[str, Any] = {
            "num_samples": num_samples,
            "max_new_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "top_k": config.top_k,
            "top_p": config.top_p,
            "ban": tuple(ban),
        }
        self._scoring: dict[str, Any] = {"temperature": config.temperature, "ban": tuple(ban), "remat": config.remat}
        self._score = self.compile(self._score_fn)
        self._gather = jax.jit(self.layout.whole)
        self._copy = jax.jit(lambda trained: jax.tree.map(jnp.copy, trained))

    def init(self, key: jax.Array) -> State:
        """The state before the first step, the policy as it is in what is remembered and for rollouts ahead."""
        state, memory = super().init(key), dict(self._memory)
        if self._config.ref_every and self._config.beta:
            memory[REFERENCE] = self._copy(state.trained)
        state = dataclasses.replace(state, memory=memory)
        return self.ahead(state) if self._config.rollout_ahead else state

    def ahead(self, state: State) -> State:
        """The state with a copy of its weights, from which the next rollouts come after the update too."""
        return dataclasses.replace(state, behind=self._copy(state.trained))

    @property
    def compilations(self) -> int:
        """Programs compiled so far, those of the sampler included."""
        return super().compilations + len(programs) - self._sampled

    def sample(
        self, state: State, prompts: Sequence[tuple[np.ndarray, Batch]], key: jax.Array, length: int = 0
    ) -> Completions:
        """S completions of each prompt, on the host.

        Args:
            state: of the policy; one with weights `behind` samples from these.
            prompts: of `Batches.prompt_batches`: rows, and these as a batch whose images are numbered through.
            key: of the noise, which a prompt has by its row, not by the batch in which it is read.
            length: tokens of the run's longest prompt.
        """
        policy = self.policy(state if state.behind is None else dataclasses.replace(state, trained=state.behind))
        rows, batches = zip(*((np.asarray(rows, np.int32), batch) for rows, batch in prompts), strict=True)
        # as a mesh returns them: device by device, on each batch by batch
        returned = [np.split(some, self.shards)[device] for device in range(self.shards) for some in rows]
        order = np.argsort(np.concatenate(returned))
        placed, ids = self.layout.rows((batches, rows))
        key, options = (
            self.layout.whole(jax.random.key_data(key)),
            self._sampling | {"rows": ids, "prompt_length": length},
        )
        done = generate(self._model, policy.params, placed, key=key, lora=policy.lora, **options)
        done = jax.device_get(done if self.layout.mesh.size == 1 else self._gather(done))
        return jax.tree.map(lambda leaf: leaf[order], done)

    def update(
        self, state: State, minibatches: Sequence[Iterable[PolicyBatch]], tokens: int = 0
    ) -> tuple[State, dict[str, float]]:
        """One pass, or `inner_epochs`, over a step's minibatches, each of them a list of micro-batches.

        With one update per rollout the old policy is the current one and is not computed again.
        """
        if self.updates > 1 or REFERENCE in state.memory:
            minibatches = [[self._with_logprobs(state, micro) for micro in minibatch] for minibatch in minibatches]
        after, stats = super().update(state, [*minibatches] * self._config.inner_epochs, tokens)
        memory, every = state.memory, self._config.ref_every
        if REFERENCE in memory and after.step % every == 0:
            memory = memory | {REFERENCE: self._mixed(memory[REFERENCE], after.trained)}
        return dataclasses.replace(after, behind=state.behind, memory=memory), stats

    def _mixed(self, reference: Any, trained: Any) -> Any:
        """The reference moved towards the policy by `ref_mixup` (TRL's SyncRefModelCallback)."""
        weight = self._config.ref_mixup
        if weight == 1:  # deltas, which are products, are only ever copied
            return self._copy(trained)
        return jax.tree.map(lambda old, new: (1 - weight) * old + weight * new, reference, trained)

    def _with_logprobs(self, state: State, micro: PolicyBatch) -> PolicyBatch:
        """The rows with their log-probabilities before the step's updates, and under a reference that moved."""
        micro, base = self.layout.rows(micro), self._held(stacked=True)
        plain = dataclasses.replace(micro, masked=None)
        old = self._score((state.trained, base), plain) if self.updates > 1 else None
        reference = state.memory.get(REFERENCE)
        reference = None if reference is None else self._score((reference, base), plain)
        return dataclasses.replace(micro, old_logprobs=old, reference=reference)

    def _score_fn(self, whole: tuple[Any, Policy], micro: PolicyBatch) -> jax.Array:
        policy, _ = self._policies(*whole)
        logprobs = self.layout.by_shard(self._logprobs, policy, micro)
        return rearrange(logprobs, "shards batch ... -> (shards batch) ...")

    def _logprobs(self, policy: Policy, micro: PolicyBatch, **options) -> Any:
        options |= self._scoring | {"lora": policy.lora, "packing": micro.packing}
        return completion_logprobs(self._model, policy.params, micro.batch, micro.tokens, micro.lengths, **options)

    def _terms(self, policy: Policy, base: Policy, micro: PolicyBatch) -> Terms:
        """`objective.policy_loss` of its rows, and statistics of the completions."""
        config, old = self._config, micro.old_logprobs
        reference = micro.reference
        if config.beta and reference is None:
            reference = self._logprobs(base, micro)
        logprobs, entropy = self._logprobs(policy, micro, entropy=True)
        masked, masked_entropy, shown = None, None, None
        if config.perception or config.perception_entropy:
            masked, masked_entropy = logprobs, entropy  # prompts without images read the same
            if micro.masked is not None:
                blind = dataclasses.replace(micro, batch=dataclasses.replace(micro.batch, patches=micro.masked))
                masked, masked_entropy = self._logprobs(policy, blind, entropy=True)
            pictured = jnp.any(micro.batch.vision_index >= 0, axis=-1)[:, None, None]
            shown = jnp.broadcast_to(pictured, logprobs.shape).astype(jnp.float32)
        mask = jnp.arange(micro.tokens.shape[-1]) < micro.lengths[..., None]
        behaviour = jax.lax.stop_gradient(logprobs) if old is None else old  # log-probabilities of what sampled
        weights = truncated_weights(behaviour, micro.logprobs, config.importance_cap) if config.importance_cap else None
        tokens = Tokens(logprobs, old, weights, reference, entropy, masked, masked_entropy, shown)
        merged = "batch samples length -> (batch samples) length"
        tokens, valid = jax.tree.map(lambda rows: rearrange(rows, merged), (tokens, mask))
        num_rows = None if micro.counted is None else jnp.sum(micro.counted)
        terms = policy_terms(tokens, jnp.reshape(micro.advantages, -1), valid, self._objective, num_rows)
        sums, peaks = {"entropy": entropy.sum()}, {}
        if not config.top_k and config.top_p == 1:  # else it is the mass that was cut off, and no gap of the sampler's
            difference = jnp.where(mask, jnp.abs(behaviour - micro.logprobs), 0.0)
            sums["sampling/logp_difference/mean"] = difference.sum()
            peaks["sampling/logp_difference/max"] = difference.max()
        if weights is not None:
            sums["sampling/importance_sampling_ratio/mean"] = jnp.where(mask, weights, 0.0).sum()
        sums, peaks = jax.lax.stop_gradient((terms.sums | sums, terms.peaks | peaks))
        return dataclasses.replace(terms, sums=sums, peaks=peaks)
