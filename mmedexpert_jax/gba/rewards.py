"""r(p, y) of equation 4: small functions, each a number for one completion, and their weighted sum."""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from mmedexpert_jax import answers
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba.rollouts import Rollout
from mmedexpert_jax.runtime import processes

Reward = Callable[..., float]


def accuracy(case: Case, text: str, **_) -> float:
    """1 if the parsed answer chooses the key, or is the reference answer of an open question, else 0."""
    return float(answers.is_right(text, case.options, case.answer))


def format(case: Case, text: str, **_) -> float:
    """1 if the completion is one think block and one answer block, else 0."""
    return float(answers.parse(text).well_formed)


def structure(case: Case, text: str, *, paradigm: str | None, **_) -> float:
    """1 if the reasoning has the structure of the prompt's paradigm (paper appendix A), else 0."""
    think = answers.parse(text).think
    return float(paradigm is not None and think is not None and PARADIGMS[paradigm].follows(think, case.options))


def length(case: Case, text: str, *, length: int, max_new_tokens: int, **_) -> float:
    """0 up to four fifths of the token limit, then falling linearly to -1 at the limit (DAPO's overlong punishment)."""
    margin = max_new_tokens / 5
    return -max(0.0, length - (max_new_tokens - margin)) / margin


REWARDS: dict[str, Reward] = {"accuracy": accuracy, "format": format, "structure": structure, "length": length}


@dataclass(frozen=True)
class Weighted:
    """A reward function and its weight in the sum."""

    name: str
    weight: float
    function: Reward


def from_config(config: ConfigDict) -> tuple[Weighted, ...]:
    """The rewards of a run: those of `config.rewards` with a weight, and accuracy even without, since it is watched.

    `rewards.functions` adds a user's own, each as
    "module.function=weight"; a function is called as `f(case, text, *, paradigm, length, truncated, max_new_tokens)`
    and should swallow what it does not use in `**_`.

    Raises:
        ConfigError: a function that cannot be imported, a weight that is no number, a name that stands twice.
    """
    weights = {name: config.rewards[name] for name in REWARDS}
    chosen = [Weighted(name, w, REWARDS[name]) for name, w in weights.items() if w or name == "accuracy"]
    chosen += [_custom(spec) for spec in config.rewards.functions]
    names = [reward.name for reward in chosen]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"config.rewards.functions: two rewards are called {name}; rename one")
    return tuple(chosen)


def _custom(spec: str) -> Weighted:
    path, _, weight = spec.partition("=")
    module, _, name = path.strip().rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
        return Weighted(name, float(weight or 1), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f'config.rewards.functions: {spec!r} is not "module.function=weight" ({error})') from None


@dataclass(frozen=True)
class Scores:
    """Rewards of a step's completions.

    Attributes:
        values: [N, S, F] what each function gave, in the order of `rewards`.
        total: [N, S] weighted sum.
        rewards: the functions.
    """

    values: np.ndarray
    total: np.ndarray
    rewards: tuple[Weighted, ...]

    @classmethod
    def join(cls, scores: Sequence["Scores"]) -> "Scores":
        """The scores of a step's rollouts as one."""
        values, total = (np.concatenate([getattr(s, name) for s in scores]) for name in ("values", "total"))
        return cls(values, total, scores[0].rewards)

    def stats(self) -> dict[str, float]:
        """Mean and deviation (ddof 1) by function and in all, under TRL's names."""
        stats = {}
        for i, reward in enumerate(self.rewards):
            stats[f"rewards/{reward.name}/mean"] = float(self.values[..., i].mean())
            stats[f"rewards/{reward.name}/std"] = float(self.values[..., i].std(ddof=1))
        return {**stats, "reward": float(self.total.mean()), "reward_std": float(self.total.std(ddof=1))}

    def by_paradigm(self, paradigms: Sequence[str | None]) -> dict[str, float]:
        """Means under each of the paradigms that the N prompts ask for: of the sum, and by function."""
        stats = {}
        for name in sorted({paradigm for paradigm in paradigms if paradigm}):
            chosen = [paradigm == name for paradigm in paradigms]
            stats[f"paradigms/{name}/reward"] = float(self.total[chosen].mean())
            for i, reward in enumerate(self.rewards):
                stats[f"paradigms/{name}/{reward.name}"] = float(self.values[chosen][..., i].mean())
        return stats


def score(rewards: tuple[Weighted, ...], rollout: Rollout, max_new_tokens: int) -> Scores:
    """Scores the completions of a step; of several processes, each those of its share of the prompts.

    Raises:
        ConfigError: a function failed or gave no finite number; it names function and case.
    """
    values = np.zeros((*rollout.lengths.shape, len(rewards)), np.float32)
    own = processes.block(len(values))
    for (i, j), length in np.ndenumerate(rollout.lengths[own]):
        i += own.start
        prompt = rollout.prompts[i]
        context = {
            "paradigm": prompt.paradigm,
            "length": int(length),
            "truncated": bool(rollout.truncated[i, j]),
            "max_new_tokens": max_new_tokens,
        }
        for k, reward in enumerate(rewards):
            values[i, j, k] = _value(reward, prompt.case, rollout.texts[i][j], context)
    values = processes.concatenate(values[own])
    return Scores(values, values @ np.array([reward.weight for reward in rewards], np.float32), rewards)


def _value(reward: Weighted, case: Case, text: str, context: dict) -> float:
    try:
        value = float(reward.function(case, text, **context))
    except Exception as error:
        raise ConfigError(f"reward {reward.name} failed on case {case.id}: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise ConfigError(f"reward {reward.name} gave {value} on case {case.id}; rewards must be finite numbers")
    return value
