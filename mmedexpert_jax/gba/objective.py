"""Equation 5 as a clipped surrogate with a KL term: the loss of one update, kept as sums until it is divided once."""

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba.own_functions import Files, find_function, weighted

AGGREGATIONS = ("sequence", "token", "constant")
RATIO_LEVELS = ("token", "sequence")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["loss", "denominator", "tokens", "sums", "peaks"], meta_fields=[]
)
@dataclass(frozen=True)
class Terms:
    """Sums over some of an update's rows. Terms of micro-batches add up; the whole is divided once, so neither the loss
    nor its gradient depends on the split (as Tunix's deferred division)."""

    loss: jax.Array  # [] summed loss
    denominator: jax.Array  # [] what `loss` is divided by
    tokens: jax.Array  # [] trained tokens
    sums: dict[str, jax.Array]  # statistics summed over tokens
    peaks: dict[str, jax.Array]  # statistics of which the largest counts

    def __add__(self, other: "Terms") -> "Terms":
        return Terms(
            self.loss + other.loss,
            self.denominator + other.denominator,
            self.tokens + other.tokens,
            jax.tree.map(operator.add, self.sums, other.sums),
            jax.tree.map(jnp.maximum, self.peaks, other.peaks),
        )

    def joined(self) -> "Terms":
        """The sum of terms that are stacked along a first axis, one of each shard of the rows."""
        added = self.loss, self.denominator, self.tokens, self.sums
        loss, denominator, tokens, sums = jax.tree.map(lambda values: values.sum(axis=0), added)
        return Terms(loss, denominator, tokens, sums, jax.tree.map(lambda values: values.max(axis=0), self.peaks))

    def stats(self) -> dict[str, jax.Array]:
        """The loss and the statistics, means over tokens, as named scalars; NaN of no tokens, which have no mean."""
        means = {k: v / self.tokens for k, v in self.sums.items()}
        peaks = {k: jnp.where(self.tokens > 0, v, jnp.nan) for k, v in self.peaks.items()}
        return {"loss": self.loss / jnp.maximum(self.denominator, 1), **means, **peaks}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """The loss's view of the completions' tokens: arrays [B, T] float32; None where one is not there."""

    logprobs: jax.Array  # under the policy
    old_logprobs: jax.Array | None = None  # under the policy that sampled; None: `logprobs` without gradient
    weights: jax.Array | None = None  # factors of the surrogate, without gradient; the terms are not weighted (TRL)
    reference: jax.Array | None = None  # log-probabilities under the reference
    entropy: jax.Array | None = None  # of the policy's distributions, in nats
    # log-probabilities under the policy that sees the images with some of their patches masked
    masked: jax.Array | None = None
    masked_entropy: jax.Array | None = None  # of its distributions
    shown: jax.Array | None = None  # 1 where the prompt has images


@dataclass(frozen=True)
class Objective:
    """The loss that is chosen, with the names and defaults of `policy_loss`."""

    clip: float = 0.2
    clip_high: float | None = None
    aggregation: str = "sequence"
    max_tokens: int | None = None
    ratio_level: str = "token"
    surrogate: "str | Surrogate" = "clip"
    coefs: Mapping[str, float] = field(default_factory=dict)  # weights of TERMS and of `terms`
    terms: "Mapping[str, Term]" = field(default_factory=dict)  # beside TERMS, by the names of their functions

    def __post_init__(self):
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"no aggregation {self.aggregation!r}: one of {', '.join(AGGREGATIONS)}")
        if self.ratio_level not in RATIO_LEVELS:
            raise ValueError(f"no ratio_level {self.ratio_level!r}: one of {', '.join(RATIO_LEVELS)}")
        if self.aggregation == "constant" and not self.max_tokens:
            raise ValueError('aggregation "constant" divides by max_tokens, which is not given')

    @classmethod
    def from_config(cls, config: ConfigDict, files: Files | None = None) -> "Objective":
        """That of a run; a surrogate and terms of the user's own are of `files` where their files were run before.

        Raises:
            ConfigError: there is no such surrogate or term, or a term stands twice.
        """
        coefs = {name: config[name] for name in TERMS if name in config}
        terms = {}
        for spec in config.terms:
            path, name, weight = weighted(spec, "config.terms")
            if name in coefs:
                raise ConfigError(f"config.terms: {border.shown(name)} is weighed already; leave one of the two out")
            terms[name], coefs[name] = find_function(path, TERMS, "config.terms", files), weight
        return cls(
            clip=config.clip,
            clip_high=config.clip_high,
            aggregation=config.aggregation,
            max_tokens=config.max_new_tokens,
            ratio_level=config.ratio_level,
            surrogate=find_function(config.surrogate, SURROGATES, "config.surrogate", files),
            coefs=coefs,
            terms=terms,
        )


def policy_terms(
    tokens: Tokens,
    advantages: jax.Array,
    mask: jax.Array,
    objective: Objective,
    num_rows: jax.Array | int | None = None,
) -> Terms:
    """`policy_loss` before its division, of some rows [B], of which `num_rows` count for the mean (None: all)."""
    logprobs = tokens.logprobs.astype(jnp.float32)
    chex.assert_rank([logprobs, advantages], [2, 1])
    chex.assert_equal_shape([logprobs, mask])
    mask = mask.astype(bool)
    lengths = mask.sum(axis=1)

    ratio = _ratio(logprobs, tokens.old_logprobs, mask, objective.ratio_level)
    clip, high = objective.clip, objective.clip_high
    bounds = 1 - clip, 1 + (clip if high is None else high)
    surrogate = objective.surrogate
    if isinstance(surrogate, str):
        surrogate = find_function(surrogate, SURROGATES, "config.surrogate")
    loss, stats = surrogate(ratio, logprobs, advantages.astype(jnp.float32)[:, None], *bounds)
    if tokens.weights is not None:
        loss = loss * jax.lax.stop_gradient(tokens.weights)
    valid = jax.tree.map(lambda values: jnp.where(mask, values, 0.0), replace(tokens, logprobs=logprobs))
    for name, coef in objective.coefs.items():
        if coef and (term := {**TERMS, **objective.terms}[name](valid)) is not None:
            loss, stats = loss + coef * term[0], stats | term[1]  # after clipping, as in TRL

    loss = jnp.where(mask, loss, 0.0)
    rows = len(mask) if num_rows is None else num_rows
    total = {
        "sequence": lambda: ((loss.sum(axis=1) / jnp.maximum(lengths, 1)).sum(), rows),  # 1/G sum_i 1/|y_i| sum_t
        "token": lambda: (loss.sum(), lengths.sum()),
        "constant": lambda: (loss.sum(), rows * (objective.max_tokens or 0)),
    }[objective.aggregation]()
    sums = {name: jnp.where(mask, value, 0).sum(dtype=jnp.float32) for name, value in stats.items()}
    return Terms(total[0], jnp.float32(total[1]), jnp.float32(lengths.sum()), jax.lax.stop_gradient(sums), {})


def _ratio(logprobs: jax.Array, old_logprobs: jax.Array | None, mask: jax.Array, level: str) -> jax.Array:
    """pi / pi_old of each token, [B, T], or of each sequence, [B, 1]: GSPO's geometric mean over its tokens."""
    old = jax.lax.stop_gradient(logprobs if old_logprobs is None else old_logprobs)
    log_ratio = jnp.where(mask, logprobs - old, 0.0)
    if level == "sequence":
        log_ratio = log_ratio.sum(axis=1, keepdims=True) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    return jnp.exp(log_ratio)


# -- surrogates --------------------------------------------------------------------------------------------------------
# Each takes the ratio pi / pi_old [B, T] or [B, 1], the log-probabilities [B, T], the advantages [B, 1] and the clip
# range, and gives the loss of each token and its statistics. To add one: a function and a line in SURROGATES.

Surrogate = Callable[[jax.Array, jax.Array, jax.Array, float, float], tuple[jax.Array, dict[str, jax.Array]]]


def clipped(
    ratio: jax.Array, logprobs: jax.Array, advantage: jax.Array, low: float, high: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """PPO's pessimistic bound, the larger of the plain and the clipped loss (appendix B gives the range)."""
    loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, low, high) * advantage)
    return loss, _clip_stats((ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0))


def cispo(
    ratio: jax.Array, logprobs: jax.Array, advantage: jax.Array, low: float, high: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """REINFORCE under a ratio that is cut from above and has no gradient, so that every token keeps one (CISPO, MiniMax
    2025, arXiv 2506.13585). There is no lower end; TRL's epsilon_high is the cut itself, ours is the cut less 1."""
    loss = -jax.lax.stop_gradient(jnp.minimum(ratio, high)) * advantage * logprobs
    return loss, _clip_stats(jnp.zeros_like(ratio, bool), (ratio > high) & (advantage > 0))


def sapo(
    ratio: jax.Array, logprobs: jax.Array, advantage: jax.Array, low: float, high: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A soft gate in the place of the clip, sigmoid(t (ratio - 1)) * 4 / t, whose slope is 1 at ratio 1 (SAPO, Gao et
    al. 2025, arXiv 2511.20347); t is 1 for a gain and 1.05 for a loss, as in TRL. The clip range is not used."""
    temperature = jnp.where(advantage > 0, 1.0, 1.05)
    loss = -jax.nn.sigmoid(temperature * (ratio - 1)) * 4 / temperature * advantage
    return loss, _clip_stats((ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0))


SURROGATES: dict[str, Surrogate] = {"clip": clipped, "cispo": cispo, "sapo": sapo}


def _clip_stats(below: jax.Array, above: jax.Array) -> dict[str, jax.Array]:
    """Tokens outside the clip range on either side, under TRL's names."""
    names = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
    return dict(zip(names, (below, above, below | above), strict=True))


# -- terms beside the surrogate ----------------------------------------------------------------------------------------
# Each takes the tokens and gives what its field, times this, adds to their loss, and its statistics; None where what it
# reads is not there. They are summed as the surrogate is, by `aggregation` (verl's rule; TRL's entropy bonus is a mean
# over tokens always). To add one: a function and a line in TERMS; the field of its name weighs it, or, without one,
# `terms`.

Term = Callable[[Tokens], tuple[jax.Array, dict[str, jax.Array]] | None]


def kl(tokens: Tokens) -> tuple[jax.Array, dict[str, jax.Array]] | None:
    """The k3 estimate of the KL to the reference (appendix B)."""
    if tokens.reference is None:
        return None
    value = k3(jax.lax.stop_gradient(tokens.reference), tokens.logprobs)
    return value, {"kl": value}


def entropy_bonus(tokens: Tokens) -> tuple[jax.Array, dict[str, jax.Array]] | None:
    """The policy's entropy, which is raised (verl's entropy_coeff)."""
    return None if tokens.entropy is None else (-tokens.entropy, {})


def perception(tokens: Tokens) -> tuple[jax.Array, dict[str, jax.Array]] | None:
    """The KL to the policy that sees masked images, which is raised: what it says is to hang on what it sees (PAPO,
    Wang et al. 2025, arXiv 2507.06448; gradient through both). 0 for a prompt without images."""
    if tokens.masked is None:
        return None
    value = k3(tokens.masked, tokens.logprobs)
    return -value, {"perception_kl": value}


def double_entropy(tokens: Tokens) -> tuple[jax.Array, dict[str, jax.Array]] | None:
    """Entropy with and without the masked patches, which is lowered, since `perception` alone may raise it without end
    (PAPO's double entropy loss). 0 for a prompt without images."""
    if tokens.entropy is None or tokens.masked_entropy is None:
        return None
    shown = 1.0 if tokens.shown is None else tokens.shown
    return shown * (tokens.entropy + tokens.masked_entropy), {"masked_entropy": tokens.masked_entropy}


def k3(other: jax.Array, logprobs: jax.Array) -> jax.Array:
    """Schulman's estimate of KL(policy, other) from the policy's samples: q / p - 1 - log(q / p), never below 0."""
    gap = other - logprobs
    return jnp.expm1(gap) - gap


TERMS: dict[str, Term] = {
    "beta": kl,
    "entropy_coef": entropy_bonus,
    "perception": perception,
    "perception_entropy": double_entropy,
}


def truncated_weights(logprobs: jax.Array, sampled: jax.Array | np.ndarray, cap: float) -> jax.Array:
    """Importance weights min(pi / pi_sampler, cap) of each token: they correct for a sampler that rounds otherwise.

    Truncated importance sampling (Ionides 2008) as in TRL's "token_truncate" and verl's rollout correction.

    Args:
        logprobs: [B, T] under the trainer's policy that sampled.
        sampled: [B, T] as the sampler reported them.
        cap: the largest weight.
    """
    return jnp.minimum(jnp.exp(jax.lax.stop_gradient(logprobs) - sampled), cap)


def policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array | None,
    ref_logprobs: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    clip: float = 0.2,
    beta: float = 0.001,
    aggregation: str = "sequence",
    clip_high: float | None = None,
    max_tokens: int | None = None,
    ratio_level: str = "token",
    weights: jax.Array | None = None,
    surrogate: str = "clip",
    entropy: jax.Array | None = None,
    entropy_coef: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of GBA, to be minimised: PPO's clipped surrogate plus `beta` times the k3 estimate of the KL.

    Equation 5 is J = E[1/G sum_i A_i / |y_i| sum_t log pi(y_it | p, y_i<t)], whose gradient is followed upwards. With
    `old_logprobs=None` the ratio is 1 and, at beta 0, the gradient of "sequence" is that of -J. Appendix B
    gives clip and beta.

    Args:
        logprobs: [B, T] log-probabilities of the completions' tokens under the policy.
        old_logprobs: [B, T] those under the policy that sampled; None takes `logprobs` without gradient.
        ref_logprobs: [B, T] those under the reference; None leaves the KL out.
        advantages: [B].
        mask: [B, T], true on the completion's tokens, the end token included.
        clip: half-width of the ratio's clip range (lower side).
        beta: weight of the KL term.
        aggregation: "sequence" averages over |y| and then over rows (equation 5; TRL's grpo), "token" over all tokens
            (dapo), "constant" divides by rows times `max_tokens` (dr_grpo).
        clip_high: upper side of the clip range; None takes `clip` (dapo raises it).
        max_tokens: length limit of a completion, for "constant".
        ratio_level: "token" clips each token's ratio, "sequence" one geometric mean for each row (gspo).
        weights: [B, T] factors of the surrogate, without gradient; the KL is not weighted (TRL's order).
        surrogate: "clip" (equation 5 with appendix B's clip), "cispo", "sapo", or one's own, "path.py:function".
        entropy: [B, T] of the policy's distributions, in nats, for a bonus.
        entropy_coef: weight of the bonus.

    Returns:
        The loss and its statistics under TRL's names.
    """
    coefs = {"beta": beta, "entropy_coef": entropy_coef}
    objective = Objective(clip, clip_high, aggregation, max_tokens, ratio_level, surrogate, coefs)
    tokens = Tokens(logprobs, old_logprobs, weights, ref_logprobs, entropy)
    stats = policy_terms(tokens, advantages, mask, objective).stats()
    return stats.pop("loss"), stats
