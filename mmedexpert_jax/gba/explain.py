"""A step taken apart: completions from prompt to tokens, their rewards, advantages and shares of the gradient."""

import numpy as np
import optax

from mmedexpert_jax.gba.batches import Batches
from mmedexpert_jax.gba.policy_learner import PolicyBatch, PolicyLearner, State
from mmedexpert_jax.gba.rewards import Scores
from mmedexpert_jax.gba.rollouts import Rollout
from mmedexpert_jax.processing.processor import Processor


def gradient_norms(rollout: Rollout, learner: PolicyLearner, state: State, batches: Batches) -> np.ndarray:
    """Norm [N, S] of each completion's own gradient, its KL term included, before clipping and division; 0 of one that
    is not in the loss."""
    norms = np.zeros_like(rollout.lengths, np.float64)
    counted = _counted(rollout)
    for i, encoded in enumerate(rollout.encoded):
        batch = batches.collate([encoded])
        for j in np.flatnonzero(counted[i]):
            one = slice(i, i + 1), slice(j, j + 1)
            tokens, lengths, logprobs = rollout.tokens[one], rollout.lengths[one], rollout.logprobs[one]
            micro = PolicyBatch(batch, tokens, lengths, logprobs, rollout.advantages[one])
            norms[i, j] = optax.global_norm(learner.gradient(state, micro)[0])
    return norms


def _counted(rollout: Rollout) -> np.ndarray:
    """[N, S] bool: completions that the update is made from."""
    return rollout.scored & rollout.trained[:, None]


def explain(
    rollout: Rollout,
    scores: Scores,
    learner: PolicyLearner,
    state: State,
    batches: Batches,
    processor: Processor,
    count: int,
) -> str:
    """The first `count` completions of a step as text.

    A completion's share is the norm of its gradient over the sum of all the step's norms.
    """
    norms = gradient_norms(rollout, learner, state, batches)
    counted = _counted(rollout)
    shares = norms / max(norms.sum(), np.finfo(np.float64).tiny)
    samples = norms.shape[1]
    lines = []
    for number in range(min(count, norms.size)):
        i, j = divmod(number, samples)
        prompt, length = rollout.prompts[i], rollout.lengths[i, j]
        ids = rollout.tokens[i, j, :length]
        pieces = [f"{processor.tokenizer.decode([int(token)])!r}" for token in ids]
        given = zip(scores.rewards, scores.values[i, j], strict=True)
        paradigm = prompt.paradigm or "no paradigm"
        share = f"{shares[i, j]:.2%} (norm {norms[i, j]:.3g})" if counted[i, j] else "none, it is not in the loss"
        lines += [
            f"-- completion {number + 1}: case {prompt.case.id}, {paradigm}, sample {j + 1} of {samples}",
            f"prompt ({len(rollout.encoded[i].tokens)} tokens): {processor.decode(rollout.encoded[i].tokens)}",
            f"completion ({length} tokens{', truncated' if rollout.truncated[i, j] else ''}): {rollout.texts[i][j]}",
            "tokens: " + " ".join(f"{p}:{q:.2f}" for p, q in zip(pieces, rollout.logprobs[i, j, :length], strict=True)),
            "rewards: "
            + ", ".join(f"{r.name} {value:g} x {r.weight:g}" for r, value in given)
            + f"; sum {scores.total[i, j]:g} (key {prompt.case.answer})",
            f"advantage: {rollout.advantages[i, j]:+.4f}",
            f"share of the gradient: {share}",
            "",
        ]
    return "\n".join(lines)
