"""r(p, y) of equation 4: small functions, each a number for one completion, and their weighted sum."""

import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from ml_collections import ConfigDict

from mmedexpert_jax import answers, border
from mmedexpert_jax.data.case import LETTERS, Case
from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba.advantages import totals
from mmedexpert_jax.gba.calls import Call, call_all
from mmedexpert_jax.gba.own_functions import LARGEST, Files, load_function, module_of, weighted
from mmedexpert_jax.runtime import processes
from mmedexpert_jax.statements import stated

if TYPE_CHECKING:
    from mmedexpert_jax.gba.askers import Network
    from mmedexpert_jax.gba.rollouts import Rollout

Reward = Callable[..., Any]


# Before a first statement.
_NUMBER = re.compile(r"\A\W*(?:(?:step|statement)\s*)?\d{1,2}(?:\s*[.):]+(?!\d)|\n)\W*", re.IGNORECASE)


def accuracy(case: Case, text: str, **_) -> float:
    """1 if the parsed answer chooses the key, or is the reference answer of an open question, else 0."""
    return float(answers.is_right(text, case.options, *case.golds))


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


def token_f1(case: Case, text: str, **_) -> float | None:
    """F1 over the words of the answer block and the reference answer (as SQuAD); abstains on multiple choice."""
    given = answers.parse(text).answer
    return answers.open_f1(given or "", case.golds) if case.kind == "open" else None


def answer_first(case: Case, text: str, **_) -> float:
    """-1 if the first sentence of the reasoning states an answer, else 0: the paper's own samples (appendix D) do, and
    what follows is then no reasoning towards it."""
    parsed = answers.parse(text)
    think = _NUMBER.sub("", (parsed.think or "").strip())
    first, *rest = re.split(r"(?<=[.!?])\s+|\n", think, maxsplit=2)
    if not case.options:
        known = {answers.vote(one) for one in (parsed.answer or "", *case.golds)} - {""}
        return -float(any(answers.vote(one) in known for one in (first, *answers.stated_texts(first))))
    named = stated(first, LETTERS[: len(case.options)], remarks=False)
    letter = answers.chosen(first, case.options)
    if letter and rest and rest[0].lower().startswith(case.options[LETTERS.index(letter)].lower()):
        first = f"{first} {rest[0]}"  # the stop stood behind the label: "B. Septic arthritis is a candidate."
    own = f"{letter}. {case.options[LETTERS.index(letter)]}" if letter else ""
    # a label alone or with its option, not "A: airway patent"
    bare = answers.vote(re.sub(r"\A(?:option|choice)\s+", "", first, flags=re.IGNORECASE))
    alone = letter and bare in map(answers.vote, (letter, own, own[3:]))
    return -float(bool(named or alone))


REWARDS: dict[str, Reward] = {
    "accuracy": accuracy,
    "format": format,
    "structure": structure,
    "length": length,
    "token_f1": token_f1,
    "answer_first": answer_first,
}

# Parameters of rewards of TRL, verl, EasyR1, R1-V and others.
FOREIGN = {"prompt", "prompts", "completion", "completions", "completion_ids", "response", "responses", "response_str"}
FOREIGN |= {"solution", "solution_str", "predict", "predicts", "predict_str", "ground_truth", "ground_truths"}
FOREIGN |= {"data_source", "extra_info", "reward_input", "reward_inputs"}
# and what they call the key of a case
KEYS = {"ground_truth", "ground_truths", "solution", "label", "labels", "target", "targets", "reference", "gold"}
GATED = ("format", "structure")  # rewards of form
SURE = ("accuracy", "format", "structure", "length", "answer_first")  # of ours, which never abstain


@dataclass(frozen=True)
class WeightedReward:
    """A reward function and its weight in the sum."""

    name: str  # in the metrics
    weight: float  # in the sum
    # `f(case, text, *, paradigm, length, truncated, max_new_tokens)` for one completion, or, where its first parameter
    # is called `cases`, `f(cases, texts, *, paradigms, lengths, truncated, max_new_tokens)` for all of a rollout at
    # once. Either may be `async`. It gives a number, or None to abstain.
    function: Reward
    # the file or module of a user's function, which is called in parallel, timed and tried again; "": it is ours
    own: str = ""

    @property
    def whole(self) -> bool:
        """True for a function of all completions of a rollout."""
        return next(iter(inspect.signature(self.function).parameters), "") == "cases"

    @property
    def asks(self) -> bool:
        """True for a reward of ours that asks an endpoint."""
        return not self.own and getattr(self.function, "sends", False)


def from_config(
    config: ConfigDict, folder: Path | None = None, own: "Network | None" = None, files: Files | None = None
) -> tuple[WeightedReward, ...]:
    """The rewards of a run: those of `config.rewards` with a weight, and accuracy even without, since it is watched.

    `rewards.functions` adds a user's own, each as "module.function=weight" or "path.py:function=weight".

    Args:
        folder: of the run, where a judge's answers are kept; None: they are not asked for, as in a plan.
        own: the run's network, for rewards that ask it.
        files: of users' functions that were run before; those that are run here are added.

    Raises:
        ConfigError: a function that cannot be imported, a weight that is no finite number, a name that stands twice, a
            judge without a URL or key.
    """
    weights = {name: config.rewards[name] for name in REWARDS}
    chosen = [WeightedReward(name, w, REWARDS[name]) for name, w in weights.items() if w or name == "accuracy"]
    if config.rewards.judge.weight:
        from mmedexpert_jax.gba.judge_reward import JudgeReward

        function = JudgeReward.from_config(config, folder, own)
        chosen.append(WeightedReward("judge", config.rewards.judge.weight, function))
    if config.rewards.similarity.weight:
        from mmedexpert_jax.gba.similarity import SimilarityReward

        similar = SimilarityReward.from_config(config, folder, own)
        chosen.append(WeightedReward("similarity", config.rewards.similarity.weight, similar))
    files = {} if files is None else files
    chosen += [_custom(spec, files) for spec in config.rewards.functions]
    twice = [name for name, count in Counter(reward.name for reward in chosen).items() if count > 1]
    if twice:
        raise ConfigError(f"config.rewards.functions: two rewards are called {twice[0]}; rename one")
    if not any(reward.weight for reward in chosen):
        raise ConfigError(
            "config.rewards: all weights are 0, so that every completion is worth the same; set one of them"
        )
    return tuple(chosen)


def _custom(spec: str, files: Files) -> WeightedReward:
    """A user's function from "module.function=weight" or "path.py:function=weight"."""
    path, name, number = weighted(spec, "config.rewards.functions")
    place = f"config.rewards.functions: {border.shown(spec)}"
    reward = WeightedReward(name, number, load_function(path, place, files), own=os.path.realpath(module_of(path)))
    keywords = ("paradigms", "lengths") if reward.whole else ("paradigm", "length")
    _check_takes(reward.function, ("cases" if reward.whole else "case", "text"), keywords, place)
    return reward


def _check_takes(function: Reward, positional: Sequence[str], keywords: Sequence[str], place: str) -> None:
    """Raises ConfigError where a function cannot be called as it will be, at the first step, or has the names of what
    another trainer gives it."""
    try:
        signature = inspect.signature(function)
        signature.bind(*positional, **dict.fromkeys((*keywords, "truncated", "max_new_tokens")))
        needed = {name for name, one in signature.parameters.items() if one.default is one.empty}
        names = list(signature.parameters)
        if names[:2] in (["text", "case"], ["texts", "cases"]):
            raise TypeError("it takes the text before the case")
        # a second parameter is given the completion by its place, whatever its name, unless that means the key
        second = {*names[1:2]}
        if names[0] != positional[0] and (FOREIGN & (needed - second) or KEYS & second):
            raise TypeError(f"it takes {min(FOREIGN & needed | KEYS & second)}, as rewards of another trainer do")
    except TypeError as error:
        raise ConfigError(
            f"{place}: {error}; define it as f(case, text, **_), or for all completions at once as f(cases, texts, **_)"
        ) from None


@dataclass(frozen=True)
class Scores:
    """Rewards of a step's completions."""

    values: np.ndarray  # [N, S, F] float32, what each function gave, in the order of `rewards`; NaN where it abstained
    rewards: tuple[WeightedReward, ...]  # the functions

    @property
    def weights(self) -> np.ndarray:
        """[F] float32."""
        return np.array([reward.weight for reward in self.rewards], np.float32)

    @property
    def total(self) -> np.ndarray:
        """[N, S] weighted sum; NaN for a completion about which all functions abstained."""
        return totals(self.values, self.weights)

    @classmethod
    def join(cls, scores: Sequence["Scores"]) -> "Scores":
        """The scores of a step's rollouts as one."""
        return cls(np.concatenate([one.values for one in scores]), scores[0].rewards)

    def stats(self) -> dict[str, float]:
        """Mean and deviation (ddof 1) by function and in all, over what was scored, under TRL's names; of one that may
        abstain also the share of the completions on which it did."""
        stats: dict[str, float] = {}
        for i, reward in enumerate(self.rewards):
            stats |= _moments(self.values[..., i], f"rewards/{reward.name}/mean", f"rewards/{reward.name}/std")
            if reward.name not in SURE:
                stats[f"rewards/{reward.name}/abstained"] = float(np.isnan(self.values[..., i]).mean())
        return stats | _moments(self.total, "reward", "reward_std")

    def silent(self) -> list[str]:
        """The functions that abstained on every completion."""
        nothing = np.isnan(self.values).all(axis=(0, 1))
        return [reward.name for reward, all_of in zip(self.rewards, nothing, strict=True) if all_of]

    def by(self, kind: str, groups: Sequence[str | None]) -> dict[str, float]:
        """Means over the prompts of each group, e.g. "paradigms/bayesian/reward": of the sum, and by function.

        Args:
            kind: "paradigms", "specialties" or "modalities".
            groups: of the N prompts; None and "" are of none.
        """
        stats = {}
        for name in sorted({group for group in groups if group}):
            chosen = [group == name for group in groups]
            stats[f"{kind}/{name}/reward"] = _mean(self.total[chosen])
            for i, reward in enumerate(self.rewards):
                stats[f"{kind}/{name}/{reward.name}"] = _mean(self.values[chosen][..., i])
        return {key: value for key, value in stats.items() if np.isfinite(value)}


def _mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN where nothing is."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else float("nan")


def _moments(values: np.ndarray, mean: str, std: str) -> dict[str, float]:
    found = values[~np.isnan(values)]
    if not found.size:
        return {}
    return {mean: float(found.mean()), std: float(found.std(ddof=1)) if found.size > 1 else 0.0}


def score(
    rewards: tuple[WeightedReward, ...],
    rollout: "Rollout",
    max_new_tokens: int,
    timeout: float = 60.0,
    attempts: int = 3,
    workers: int = 16,
    gated: bool = False,
) -> Scores:
    """Scores the completions of a step; of several processes, each those of its block of the prompts.

    An endpoint is asked by process 0 alone, about all of them: its limits and its budget hold for the job, and its
    answers are stored by SQLite, whose files several machines would damage.

    Args:
        rewards: the functions.
        rollout: N prompts, S completions of each.
        max_new_tokens: limit of a completion.
        timeout: seconds of one call of a user's function; 0: no limit.
        attempts: calls of a user's function that fails, before the step is given up.
        workers: calls of users' functions at once.
        gated: format and structure count only where the answer is right.

    Raises:
        ConfigError: a function failed, gave no finite number, or not one for each completion; it names function and
            case.
        RemoteError: a judge's endpoint.
    """
    prompts, group = len(rollout.prompts), rollout.lengths.shape[1]
    block = processes.block(prompts)
    own = slice(block.start * group, block.stop * group)
    completions = [_context(rollout, i, j, max_new_tokens) for i in range(prompts) for j in range(group)]
    limits = {"timeout": timeout, "attempts": attempts, "workers": workers}

    columns = _columns(rewards, completions, own, max_new_tokens, limits)
    if gated:
        right = columns[[reward.name for reward in rewards].index("accuracy")]
        for place, reward in enumerate(rewards):
            if reward.name in GATED:
                columns[place] = [value * ok for value, ok in zip(columns[place], right, strict=True)]
    values = np.array(columns, np.float32).T
    values = rearrange(values, "(prompts samples) rewards -> prompts samples rewards", samples=group)
    return Scores(processes.concatenate(values), rewards)


def _context(rollout: "Rollout", i: int, j: int, max_new_tokens: int) -> dict[str, Any]:
    """The arguments of a function for one completion."""
    prompt = rollout.prompts[i]
    return {
        "case": prompt.case,
        "text": rollout.texts[i][j],
        "paradigm": prompt.paradigm,
        "length": int(rollout.lengths[i, j]),
        "truncated": bool(rollout.truncated[i, j]),
        "max_new_tokens": max_new_tokens,
    }


def _columns(
    rewards: Sequence[WeightedReward],
    completions: Sequence[Mapping[str, Any]],
    own: slice,
    max_new_tokens: int,
    limits: Mapping[str, Any],
) -> list[list[float]]:
    """The values of each function for this process's `own` completions; NaN where it abstains.

    Users' functions of different files and what asks an endpoint run beside each other; functions of one file, which
    may share what it holds, take turns. So does a model in process, since two threads would start collectives in an
    order of their own.
    """
    asked = {place: completions if processes.is_writer() else () for place, one in enumerate(rewards) if one.asks}
    given = {place: asked.get(place, completions[own]) for place in range(len(rewards))}
    beside: dict[int, list[int]] = {}  # turn -> rewards
    met = Counter[str]()
    for place, one in enumerate(rewards):
        if (one.own or one.asks) and given[place]:
            beside.setdefault(met[one.own] if one.own else 0, []).append(place)
            met[one.own] += 1
    alone = [[place] for place, one in enumerate(rewards) if not (one.own or one.asks) and given[place]]
    turns = [beside[turn] for turn in sorted(beside)] + alone
    columns: dict[int, list[float]] = {place: [] for place in given}
    for turn in turns:
        calls = [_calls(rewards[place], given[place], max_new_tokens) for place in turn]
        every = [call for some in calls for call in some]
        threaded = any(rewards[place].whole or rewards[place].own for place in turn)
        results = iter(call_all(every, **limits) if threaded else [call.function() for call in every])
        for place, some in zip(turn, calls, strict=True):
            columns[place] = _values(rewards[place], given[place], [next(results) for _ in some])
    for place in asked:  # in the order of the rewards, in which the other processes wait for them
        columns[place] = processes.gather(columns[place])[0][own]
    return list(columns.values())


def _calls(reward: WeightedReward, completions: Sequence[Mapping[str, Any]], max_new_tokens: int) -> list[Call]:
    """The calls of a function that give its values: one of all completions, or one of each."""
    if not reward.whole:
        return [
            Call(partial(_call, reward.function, one), f"reward {reward.name}, case {one['case'].id}")
            for one in completions
        ]
    names = {"cases": "case", "texts": "text", "paradigms": "paradigm", "lengths": "length"}
    arguments: dict[str, Any] = {many: [one[name] for one in completions] for many, name in names.items()}
    arguments |= {"truncated": [one["truncated"] for one in completions], "max_new_tokens": max_new_tokens}
    cases, texts = arguments.pop("cases"), arguments.pop("texts")
    return [Call(partial(reward.function, cases, texts, **arguments), f"reward {reward.name}", bool(reward.own))]


def _values(reward: WeightedReward, completions: Sequence[Mapping[str, Any]], given: Any) -> list[float]:
    """The number of each completion, of what the calls of a function gave. Raises ConfigError."""
    if reward.whole:
        name, (given,) = f"reward {reward.name}", given
        given = _plainly(given, "tolist", name) if hasattr(given, "tolist") else given  # of any library
        each = isinstance(given, list | tuple)
        if not each or len(given) != len(completions):
            found = len(given) if each else type(given).__name__
            raise ConfigError(f"{name} gave {found} for {len(completions)} completions; give one number or None each")
    return [_number(reward, one["case"], value) for one, value in zip(completions, given, strict=True)]


def _plainly(value: Any, method: str, place: str) -> Any:
    """An array or a scalar of another library in Python's own numbers. Raises ConfigError where it fails at that."""
    try:
        return getattr(value, method)()
    except Exception as error:  # a device of that library that has gone, say
        raise ConfigError(f"{place}: what it gave cannot be read: {border.message_of(error, 200)}") from error


def _call(function: Reward, arguments: Mapping[str, Any]) -> Any:
    keywords = {name: value for name, value in arguments.items() if name not in ("case", "text")}
    return function(arguments["case"], arguments["text"], **keywords)


def _number(reward: WeightedReward, case: Case, value: Any) -> float:
    """A reward as a float; NaN for None. Raises ConfigError for anything else that is no finite number."""
    if value is None:
        return float("nan")
    place = f"reward {reward.name}, case {case.id}"
    number = _plainly(value, "item", place) if getattr(value, "ndim", None) == 0 else value  # numpy, JAX or torch
    if isinstance(number, bool | int | float) and abs(number) <= LARGEST:
        return float(number)
    raise ConfigError(
        f"reward {reward.name} gave {border.shown(value)} on case {case.id}; rewards must be finite numbers, or None, "
        "which abstains"
    )
