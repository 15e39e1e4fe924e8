"""A step's completions on the host, between the sampler, the rewards and the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmedexpert_jax.gba.batches import Batches
from mmedexpert_jax.gba.guidelines import Prompt
from mmedexpert_jax.gba.padding import PromptSize
from mmedexpert_jax.gba.policy_learner import PolicyBatch
from mmedexpert_jax.processing.processor import Encoded, Processor
from mmedexpert_jax.rollout import Completions
from mmedexpert_jax.rollout.logprobs import packed


@dataclass(frozen=True)
class Rollout:
    """S completions of each of N prompts."""

    prompts: Sequence[Prompt]  # N prompts
    encoded: Sequence[Encoded]  # their tokens and patches
    texts: list[list[str]]  # N times S decoded completions
    tokens: np.ndarray  # [N, S, R] int32
    lengths: np.ndarray  # [N, S] int32, the end token counted
    logprobs: np.ndarray  # [N, S, R] float32, the sampler's
    truncated: np.ndarray  # [N, S] bool, ran into the limit
    advantages: np.ndarray  # [N, S] float32; zeros until they are known
    trained: np.ndarray  # [N] bool, whether a prompt's completions enter the update
    # [N, S] bool, whether a completion has a loss; it counts for the mean over completions in any case
    scored: np.ndarray
    # the prompts with some of their patches masked; None where no term reads them
    masked: Sequence[Encoded] | None = None

    @classmethod
    def of(
        cls, prompts: Sequence[Prompt], encoded: Sequence[Encoded], done: Completions, processor: Processor
    ) -> "Rollout":
        """Takes completions over from the sampler and decodes them."""
        tokens, lengths = np.asarray(done.tokens), np.asarray(done.lengths)
        texts = [
            [processor.decode(row[:length]) for row, length in zip(*group, strict=True)]
            for group in zip(tokens, lengths, strict=True)
        ]
        logprobs, truncated = np.asarray(done.logprobs), np.asarray(done.truncated)
        advantages, trained = np.zeros(lengths.shape, np.float32), np.ones(len(prompts), bool)
        return cls(
            prompts, encoded, texts, tokens, lengths, logprobs, truncated, advantages, trained, np.ones_like(truncated)
        )

    @classmethod
    def join(cls, rollouts: Sequence["Rollout"]) -> "Rollout":
        """The rollouts of a step as one."""
        if len(rollouts) == 1:
            return rollouts[0]
        fields: dict[str, Any] = {}
        for name, first in vars(rollouts[0]).items():
            if first is None:
                continue
            values = [getattr(rollout, name) for rollout in rollouts]
            fields[name] = np.concatenate(values) if isinstance(first, np.ndarray) else [x for v in values for x in v]
        return cls(**fields)

    def with_advantages(self, advantages: np.ndarray) -> "Rollout":
        """The rollout with advantages [., G] in the groups' order, which is the prompts' order."""
        return replace(self, advantages=advantages.reshape(self.lengths.shape))

    def with_trained(self, groups: np.ndarray) -> "Rollout":
        """The rollout of which only some groups [.] bool, in the prompts' order, enter the update."""
        return replace(self, trained=np.repeat(groups, len(self.prompts) // len(groups)))

    def without_truncated(self) -> "Rollout":
        """The rollout in which completions that ran into the limit have no loss."""
        return replace(self, scored=~self.truncated)

    def with_masked(self, ratio: float, seed: Sequence[int]) -> "Rollout":
        """The rollout with some of each image's patches masked: 0 once normalised, the mean colour (as TRL's PAPO). A
        prompt's masks come from `seed` and its place, however the step is split into micro-batches."""

        def kept(place: int, encoded: Encoded) -> Encoded:
            rng = np.random.default_rng([*seed, place])
            images = [(patches * (rng.random((len(patches), 1)) >= ratio), grid) for patches, grid in encoded.images]
            return replace(encoded, images=[(patches.astype(np.float32), grid) for patches, grid in images])

        return replace(self, masked=[kept(*pair) for pair in enumerate(self.encoded)])

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompts, once for each completion, and of the completions: TRL's count."""
        return int(sum(len(e.tokens) for e in self.encoded) * self.lengths.shape[1] + self.lengths.sum())

    @property
    def num_read(self) -> int:
        """Tokens of the prompts, each once, and of the completions."""
        return int(sum(len(e.tokens) for e in self.encoded) + self.lengths.sum())

    @property
    def work(self) -> np.ndarray:
        """[N], tokens of each prompt's completions that go through the network in an update: of each all but the last,
        which predicts nothing."""
        return np.maximum(np.where(self.scored, self.lengths, 0) - 1, 0).sum(axis=1)

    def micro_batch(
        self,
        rows: slice | Sequence[int] | np.ndarray,
        batches: Batches,
        size: int = 0,
        capacities: int = 0,
        devices: int = 1,
        packed_length: int = 0,
    ) -> PolicyBatch:
        """The prompts `rows` and their completions, for a gradient.

        Args:
            rows: of the prompts.
            batches: of the run.
            size: prompts of the micro-batch; where `rows` are fewer, it is filled up with prompts that do not count.
            capacities: among which the packing's is chosen; 0: rows stay padded.
            devices: among which the prompts are split.
            packed_length: of the packing; 0: the least of the capacities that suffices.
        """
        chosen = np.arange(len(self.prompts))[rows if isinstance(rows, slice) else np.asarray(rows, int)]
        smallest = min(range(len(self.encoded)), key=lambda i: PromptSize.of(self.encoded[i]))  # no image, if it can be
        index = np.concatenate([chosen, np.full(max(0, size - len(chosen)), smallest)]).astype(int)
        counted = np.broadcast_to((np.arange(len(index)) < len(chosen))[:, None], (len(index), self.lengths.shape[1]))
        lengths = np.where(counted & self.scored[index], self.lengths[index], 0).astype(np.int32)
        limit = self.tokens.shape[-1]
        batch = batches.collate([self.encoded[i] for i in index], devices)
        blind = None
        if self.masked is not None and len(batch.patches):
            blind = batches.collate([self.masked[i] for i in index], devices).patches
        return PolicyBatch(
            batch,
            self.tokens[index],
            lengths,
            self.logprobs[index],
            self.advantages[index],
            counted=counted.astype(np.float32),
            packing=packed(lengths, limit, capacities, devices, packed_length) if capacities and limit > 1 else None,
            masked=blind,
        )

    def stats(self) -> dict[str, float]:
        """Lengths in tokens and the fraction of truncated completions, under TRL's names."""
        ended = self.lengths[~self.truncated]
        stats = {"completions/clipped_ratio": float(self.truncated.mean())}
        for kind, lengths in (("", self.lengths), ("terminated_", ended if ended.size else np.zeros(1))):
            for name in ("mean", "min", "max"):
                stats[f"completions/{name}_{kind}length"] = float(getattr(lengths, name)())
        return stats
