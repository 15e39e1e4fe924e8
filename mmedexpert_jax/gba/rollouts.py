"""A step's completions on the host, between the sampler, the rewards and the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmedexpert_jax.gba.batches import Batches
from mmedexpert_jax.gba.guidelines import Prompt
from mmedexpert_jax.gba.learner import Part
from mmedexpert_jax.processing.processor import Encoded, Processor
from mmedexpert_jax.rollout import Completions


@dataclass(frozen=True)
class Rollout:
    """S completions of each of N prompts.

    Attributes:
        prompts: N prompts.
        encoded: their tokens and patches.
        texts: N times S decoded completions.
        tokens: [N, S, R] int32.
        lengths: [N, S] int32, the end token counted.
        logprobs: [N, S, R] float32, the sampler's.
        truncated: [N, S] bool, ran into the limit.
        advantages: [N, S] float32; zeros until they are known.
    """

    prompts: Sequence[Prompt]
    encoded: Sequence[Encoded]
    texts: list[list[str]]
    tokens: np.ndarray
    lengths: np.ndarray
    logprobs: np.ndarray
    truncated: np.ndarray
    advantages: np.ndarray

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
        return cls(prompts, encoded, texts, tokens, lengths, logprobs, truncated, np.zeros(lengths.shape, np.float32))

    def with_advantages(self, advantages: np.ndarray) -> "Rollout":
        """The rollout with advantages [., G] in the groups' order, which is the prompts' order."""
        return replace(self, advantages=advantages.reshape(self.lengths.shape))

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompts, once for each completion, and of the completions: TRL's count."""
        return int(sum(len(e.tokens) for e in self.encoded) * self.lengths.shape[1] + self.lengths.sum())

    def part(self, rows: slice, batches: Batches) -> Part:
        """The prompts `rows` and their completions, for a gradient."""
        return Part(
            batches.collate(self.encoded[rows]),
            self.tokens[rows],
            self.lengths[rows],
            self.logprobs[rows],
            self.advantages[rows],
        )

    def stats(self) -> dict[str, float]:
        """Lengths in tokens and the share of truncated completions, under TRL's names."""
        ended = self.lengths[~self.truncated]
        stats = {"completions/clipped_ratio": float(self.truncated.mean())}
        for kind, lengths in (("", self.lengths), ("terminated_", ended if ended.size else np.zeros(1))):
            for name in ("mean", "min", "max"):
                stats[f"completions/{name}_{kind}length"] = float(getattr(lengths, name)())
        return stats
