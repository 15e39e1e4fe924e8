"""The algorithm of section 4.2: prompts of P_guide, G completions, rewards, group advantages, update."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmedexpert_jax import answers, border
from mmedexpert_jax.config.validate import check_groups
from mmedexpert_jax.data import Case, load_cases
from mmedexpert_jax.data.order import fingerprint
from mmedexpert_jax.data.prompts import question
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba import rewards as reward
from mmedexpert_jax.gba.advantages import (
    Estimator,
    domain_weighted,
    estimate,
    estimator,
    new_counts,
    totals,
    with_lengths,
)
from mmedexpert_jax.gba.ahead import Ahead
from mmedexpert_jax.gba.batches import Batches, Sizes, check_sizes, overlong
from mmedexpert_jax.gba.difficulty import difficulties, selected, tell_equal
from mmedexpert_jax.gba.explain import explain
from mmedexpert_jax.gba.guidelines import Difficulties, Guidelines, load_texts
from mmedexpert_jax.gba.objective import Objective, Tokens, policy_terms
from mmedexpert_jax.gba.own_functions import Files
from mmedexpert_jax.gba.padding import PromptSize
from mmedexpert_jax.gba.policy_learner import PolicyBatch, PolicyLearner
from mmedexpert_jax.gba.rollouts import Rollout
from mmedexpert_jax.gba.split import micro_batch, packed_length, refills
from mmedexpert_jax.models import Model, flops, load_policy, load_processor
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.rollout.engine import Engine, Settings
from mmedexpert_jax.runtime import costs, processes
from mmedexpert_jax.runtime.hints import hints
from mmedexpert_jax.runtime.mesh import make_mesh, row_shards
from mmedexpert_jax.runtime.progress import doing
from mmedexpert_jax.train import Evaluate, State, export, fit
from mmedexpert_jax.train.layout import Layout, read_on
from mmedexpert_jax.train.overlong import report_dropped
from mmedexpert_jax.train.state import is_due

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run

DOMAINS = "domains"  # in a state's memory: the groups met so far, by specialty and difficulty
ROOM = "room"  # in a state's memory: tokens of the packed update on a device; 0 before the first
HINTS_EVERY = 10  # steps between checks of the metrics for what goes wrong
# what to look at where a reward of ours gives no number
ABSTAINED = {
    "judge": "no reply could be read: see judge.sqlite in the run directory; raise rewards.judge.max_tokens for a "
    "model that thinks, or name one that keeps to the form",
    "similarity": "it is for open questions, and embeddings.sqlite in the run directory has what the embedder gave",
    "token_f1": "it is for open questions",
}
Round = tuple[Rollout, reward.Scores, np.ndarray]  # completions, their scores, and these by group [., G, F]


def train(config: ConfigDict, run: "Run", evaluate: Evaluate | None = None) -> Path:
    """Trains a policy with Guideline-Based Advantages, or resumes at the run's last checkpoint.

    Every step's prompts and noise are functions of (seed, step), so that a run that was killed and resumed ends
    bit-identical to one that never was.

    Args:
        run: where metrics, samples, checkpoints and the trained adapter go.
        evaluate: called with the policy's weights, the step and its deltas: before, every `eval.every` steps, after.

    Returns:
        `export/adapter` (a peft directory), or `export/model` where all parameters are trained.

    Raises:
        ConfigError: settings that do not go together, a reward that fails, a loss that is not finite.
        DataError: a model or data that cannot be read, or a prompt that is too long.
        Interrupted: a signal came; a checkpoint is saved.
    """
    job = _prepare(config, run.path)
    key, init_key = jax.random.split(jax.random.key(config.seed))
    rounds = Ahead(functools.partial(_sample, job, config, key), job.steps)
    explained = bool(config.explain)
    hinted: set[str] = set()
    silent: set[str] = set()

    def step(state: State, number: int) -> tuple[State, dict[str, float]]:
        nonlocal explained
        state, rollout, scores, metrics = _step(job, config, state, rounds, number, explained)
        explained = False  # the first step of this process alone
        _tell_silent(scores, state.step, silent)
        if config.samples_every and is_due(state.step, config.samples_every, job.steps):
            run.table("completions", state.step, _sample_rows(rollout, scores))
        if is_due(state.step, HINTS_EVERY, job.steps):
            _hint(run, hinted)
        return state, metrics

    data = fingerprint(job.guidelines.cases, job.guidelines.difficulties)
    state = fit(config, run, job.learner, step, job.steps, "gba", init_key, evaluate, data)
    path = export(config, run, job.model, job.learner.policy(state), state, job.processor)
    run.finish(_summary(run, path, state))
    return path


def _hint(run: "Run", hinted: set[str]) -> None:
    """Prints what looks wrong in the run's metrics, each kind once."""
    if not processes.is_writer():
        return
    for name, sentence in hints(run.metrics()).items():
        if name not in hinted:
            hinted.add(name)
            print(f"hint: {sentence}", flush=True)


def _tell_silent(scores: reward.Scores, step: int, told: set[str]) -> None:
    """Prints, once for each, which rewards abstained on all of a step's completions."""
    new = [name for name in scores.silent() if name not in told]
    told.update(new)
    for name in new if processes.is_writer() else ():
        print(
            f"step {step}: the reward {name} abstained on all {scores.total.size} completions, which count without it; "
            f"{ABSTAINED.get(name, 'see that it returns numbers')}",
            flush=True,
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """The parts of a run before its first step."""

    scoring: tuple[reward.WeightedReward, ...]
    guidelines: Guidelines  # the prompts of every step
    batches: Batches  # their tokens and images
    processor: Processor
    model: Model
    learner: PolicyLearner
    steps: int  # rollouts of the run
    micro_batch: int  # prompts of a micro-batch on each device
    specialties: list[str]  # of the cases, in the order in which they are counted
    estimator: Estimator  # of `advantage_scale`


def _prepare(config: ConfigDict, folder: Path) -> Job:
    """Reads data and model, and finds what is wrong with them before any work."""
    _check(config)
    files: Files = {}  # of users' functions: run anew, since `preflight` may have changed what they remember
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if config.rollout_ahead and mesh.size > 1:  # two threads would start collectives in an order of their own
        raise ConfigError(f"config.rollout_ahead=1 takes one device, and the mesh has {mesh.size}; set it to 0")
    network = functools.cache(lambda: (*_network(config, mesh), load_processor(config.model.path)))
    scoring = reward.from_config(config, folder, network, files)
    cases = load_cases(config.data.path, "train", limit=config.limit, seed=config.seed)
    _guidelines(config, cases)
    processor = load_processor(config.model.path)
    # not named, so that its weights on the mesh are gone before the learner's come
    cases, levels = selected(
        cases, config, _engine(config, mesh, *network()) if config.filter.samples else None, folder
    )
    known: Sizes = {}
    with doing(f"encoding {len(cases):,} cases"):
        guidelines, steps = _order(config, cases, levels, processor, known)
    shards = row_shards(mesh)
    size = micro_batch(config, shards)
    rounds = steps * (1 + refills(config))
    limit, minibatches = config.max_prompt_length, config.minibatches
    batches = Batches(processor, guidelines, rounds, size, limit, shards, minibatches, known)
    with doing(f"loading {config.model.path}"):
        model, params, under, _ = network()
    ban, samples = processor.special_vision_ids, guidelines.samples_per_prompt
    specialties = sorted({case.specialty for case in cases})
    memory: dict[str, Any] = {ROOM: 0}
    if config.advantage_weights != "equal":
        memory[DOMAINS] = new_counts(len(specialties))
    objective, own = Objective.from_config(config, files), estimator(config.advantage_scale, files)
    learner = PolicyLearner(model, params, config, ban, samples, steps, mesh, under, memory, objective)
    return Job(scoring, guidelines, batches, processor, model, learner, steps, size, specialties, own)


def _step(
    job: Job, config: ConfigDict, state: State, rounds: Ahead[Round], step: int, explained: bool
) -> tuple[State, Rollout, reward.Scores, dict[str, float]]:
    """One step: the state after it, the completions with their advantages and scores, and its metrics."""
    learner, began = job.learner, time.perf_counter()
    rollout, scores, values = rounds(state, step)  # y_1 .. y_G ~ pi(. | p) and r(p, y)
    rewards, eps, ddof = totals(values, scores.weights), config.advantage_eps, config.advantage_ddof
    trained = np.ones(len(rewards), bool)
    if config.zero_variance != "keep":
        trained = _first(_teaches(values, scores, config), config.prompts_per_step)
    advantages = np.zeros(rewards.shape, np.float32)
    if trained.any():  # a scale over the step is that of the groups which it trains on
        given = values[trained], scores.weights, config.advantage_scale, eps, ddof
        lengths = rollout.lengths.reshape(rewards.shape)[trained]
        advantages[trained] = estimate(*given, job.estimator, lengths)  # equation 4
    if DOMAINS in state.memory:
        advantages, state = _weighted(advantages, job, config, state, rollout, rewards, values)
    rollout = _for_update(rollout.with_advantages(advantages), trained, config, step)
    if explained:
        print(explain(rollout, scores, learner, state, job.batches, job.processor, config.explain), flush=True)
    sampled = time.perf_counter()
    if config.rollout_ahead:
        state = learner.ahead(state)
        rounds.begin(state, step + 1)
    options = job.batches, config, job.micro_batch, learner.shards, state.memory[ROOM]
    minibatches, packed = _minibatches(rollout, *options)
    state = dataclasses.replace(state, memory=state.memory | {ROOM: packed})
    state, stats = learner.update(state, minibatches, rollout.num_tokens)  # equation 5
    clocks = _clocks(began, sampled, rollout)
    costs.count(clocks["step_time"], rollout.num_read, _flops(rollout, job.model, learner, config))
    return state, rollout, scores, stats | _metrics(rollout, scores, rewards) | clocks


def _sample(job: Job, config: ConfigDict, key: jax.Array, state: State, step: int) -> Round:
    """A step's completions and their rewards: one rollout, or, with dynamic sampling, as many as it takes."""
    done: list[Round] = []
    while _wants_more(done, config):
        visit = step + len(done) * job.steps  # prompts and noise of more rounds come from beyond the last step
        prompts, encoded = (job.batches.encoded if done else job.batches.ahead)(visit)  # p in P_guide
        batches, length = job.batches.prompt_batches(encoded), job.batches.max_length
        completions = job.learner.sample(state, batches, jax.random.fold_in(key, visit), length)
        rollout = Rollout.of(prompts, encoded, completions, job.processor)
        own = config.rewards
        limits = {"timeout": own.timeout, "attempts": own.attempts, "workers": own.workers, "gated": own.gated}
        scored = reward.score(job.scoring, rollout, config.max_new_tokens, **limits)
        done.append((rollout, scored, _groups(scored.values, config, visit)))
    rollouts, scores, values = zip(*done, strict=True)
    return Rollout.join(rollouts), reward.Scores.join(scores), np.concatenate(values)


def preflight(config: ConfigDict, cases: list[Case]) -> None:
    """Raises what `train` would raise of the config, of a user's functions, and of what they say of the cases."""
    files: Files = {}
    _check(config)
    _try_out(config, files)
    reward.from_config(config, files=files)
    _guidelines(config, cases).warn_unmatched()
    if config.rewards.judge.weight and (seen := sum(case.modality == "image" for case in cases)):
        logging.getLogger(__name__).warning(
            "config.rewards.judge reads texts alone: %d of %d cases have images, which it is not shown",
            *(seen, len(cases)),
        )
    rates = dict.fromkeys((case.id for case in cases), 0.0) if config.filter.samples else None
    levels = difficulties(cases, config.curriculum, rates)
    if rates is None:
        tell_equal(config.curriculum, levels)
    if (config.perception or config.perception_entropy) and cases and not any(case.images for case in cases):
        logging.getLogger(__name__).warning(
            "config.objective=%s: no case has a picture, so that its term of perception is 0 and its second pass is in "
            "vain; set objective=grpo",
            config.objective,
        )


def check_longest(config: ConfigDict, cases: list[Case], processor: Processor, count: int) -> None:
    """Raises DataError where one of the `count` longest prompts of the first epoch is over `max_prompt_length`."""
    levels = difficulties(cases, config.curriculum, dict.fromkeys((case.id for case in cases), 0.0))
    guidelines = _guidelines(config, cases, levels)
    rounds = (config.steps or guidelines.steps(config.epochs)) * (1 + refills(config))
    check_sizes(processor, guidelines, min(rounds, guidelines.steps(1)), config.max_prompt_length, count)


def _check(config: ConfigDict) -> None:
    """Raises ConfigError where fields do not go together."""
    check_groups("", config)
    if config.rollout_ahead and not config.importance_cap:
        raise ConfigError("config.rollout_ahead=1 samples from weights one step old; set config.importance_cap=2")
    if config.ref_every and not config.beta:
        raise ConfigError("config.ref_every moves the reference of the KL, which config.beta=0 leaves out; set beta")
    if config.ref_every and config.ref_mixup < 1 and config.trainable == "lora":
        raise ConfigError(
            "config.ref_mixup below 1 mixes weights; deltas are copied: set ref_mixup=1, or trainable=full"
        )
    if config.advantage_weights != "equal":
        below = [name for name in ("length", "answer_first") if config.rewards[name]]
        below += [name for name in ("accuracy", "format", "structure", "token_f1") if config.rewards[name] < 0]
        below += [f"{name}.weight" for name in ("judge", "similarity") if config.rewards[name].weight < 0]
        below += [one for one in config.rewards.functions if one.rpartition("=")[2].strip().startswith("-")]
        if below:
            raise ConfigError(
                f"config.advantage_weights={config.advantage_weights} divides by mean rewards, which the reward "
                f"{border.shown(below[0])} may make negative; leave it out, or set advantage_weights=equal"
            )


def _try_out(config: ConfigDict, files: Files) -> None:
    """Runs the estimator, the surrogate and the terms on two groups of two. Raises ConfigError where they cannot be
    had, fail, or, as a user's own, give something else than is asked of them."""
    values, weights = np.eye(2, dtype=np.float32)[..., None], np.ones(1, np.float32)
    logprobs, advantages, mask = np.zeros((2, 3), np.float32), np.ones(2, np.float32), np.ones((2, 3), bool)
    eps, ddof, lengths = config.advantage_eps, config.advantage_ddof, np.full((2, 2), 3)

    def loss(terms: bool) -> jax.Array:
        objective = Objective.from_config(config, files)
        coefs = {name: coef for name, coef in objective.coefs.items() if terms and name in objective.terms}
        objective = dataclasses.replace(objective, coefs=coefs)
        # traced, as in a gradient
        traced = jax.jit(lambda tokens, advantages, mask: policy_terms(tokens, advantages, mask, objective).loss)
        there = {
            "reference": config.beta,
            "entropy": True,
            "old_logprobs": config.inner_epochs * config.minibatches > 1,
        }
        there |= dict.fromkeys(("masked", "masked_entropy", "shown"), config.perception or config.perception_entropy)
        given = {name: jax.device_put(logprobs) for name, is_there in there.items() if is_there and terms}
        return traced(Tokens(jax.device_put(logprobs), **given), advantages, mask)

    def advantage() -> np.ndarray:
        return np.asarray(with_lengths(estimator(config.advantage_scale, files), lengths)(values, weights, eps, ddof))

    calls: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
        "advantage_scale": (advantage, (2, 2)),
        "surrogate": (functools.partial(loss, False), ()),
        "terms": (functools.partial(loss, True), ()),
    }
    for field, (call, shape) in calls.items():
        place = f"config.{field}={border.shown(config[field])}"
        try:
            found = call()
            if found.shape != shape or not np.isfinite(found).all():
                raise ValueError(f"it gives {found.shape} for {shape}, or numbers that are not finite")
        except ConfigError:
            raise
        except Exception as error:  # the function is the user's: anything may be raised in it
            reason = border.message_of(error, 200)
            raise ConfigError(f"{place} failed on two groups of two: {reason}; see docs/extend.md") from error


def _order(
    config: ConfigDict, cases: list[Case], levels: Difficulties, processor: Processor, known: Sizes
) -> tuple[Guidelines, int]:
    """The prompts and the number of steps of the run, without the cases that `overlong` drops.

    Fewer cases are visited in another order, in which further prompts may be met: until all that are met fit.
    """
    gone: set[str] = set()
    while True:
        guidelines = _guidelines(config, [case for case in cases if case.id not in gone], levels)
        steps = config.steps or guidelines.steps(config.epochs)
        if config.overlong == "error":
            return guidelines, steps
        rounds = steps * (1 + refills(config))
        found = overlong(processor, guidelines, rounds, config.max_prompt_length, known)
        gone |= found
        if not found or len(gone) == len(cases):
            report_dropped(gone, len(cases), f"max_prompt_length {config.max_prompt_length}")
            return guidelines, steps


def _network(config: ConfigDict, mesh: Mesh) -> tuple[Model, dict, Any]:
    return load_policy(config.model.path, config.model.dtype, read_on(mesh, config.shard), config.seed)


def _engine(config: ConfigDict, mesh: Mesh, model: Model, params: dict, deltas: Any, processor: Processor) -> Engine:
    """The policy as it begins, asked as often as the filter wants, on this process's devices of the mesh."""
    layout = Layout(mesh, config.shard)
    params, deltas = (processes.local(layout.weights(tree)) for tree in (params, deltas))
    settings = Settings(
        num_samples=config.filter.samples,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        batch_size=config.eval.batch_size,
        max_prompt_length=config.max_prompt_length if config.overlong == "error" else None,
        seed=config.seed,
    )
    return Engine(model, params, processor, settings, lora=deltas)


def _guidelines(config: ConfigDict, cases: list[Case], levels: Difficulties = None) -> Guidelines:
    return Guidelines(
        cases,
        difficulties=levels,
        seed=config.seed,
        groups=config.prompts_per_step,
        num_samples=config.num_samples,
        paradigms_per_query=config.paradigms_per_query,
        group_by=config.group_by,
        guided=config.guided,
        texts=load_texts(config.guideline_text),
    )


def _wants_more(done: list[Round], config: ConfigDict) -> bool:
    """True where a step samples again: once, or, with dynamic sampling, until it has as many groups as it trains on."""
    found = sum(int(_teaches(values, scores, config).sum()) for _, scores, values in done)
    return not done or (len(done) <= refills(config) and found < config.prompts_per_step)


def _teaches(values: np.ndarray, scores: reward.Scores, config: ConfigDict) -> np.ndarray:
    """[.] bool: groups [., G, F] that `zero_variance` leaves in the update: those whose rewards differ, or, with
    `filter.online`, whose share of right answers is within the filter's bounds."""
    if not config.filter.online:
        return _differs(totals(values, scores.weights))
    right = values[..., [one.name for one in scores.rewards].index("accuracy")].mean(axis=1)
    return (right >= np.float32(config.filter.least)) & (right <= np.float32(config.filter.most))


def _differs(rewards: np.ndarray) -> np.ndarray:
    """[.] bool: groups [., G] whose rewards are not all equal; without the KL, the others teach nothing. A reward that
    is NaN, since all functions abstained, differs from none."""
    scored = ~np.isnan(rewards)
    least = np.where(scored, rewards, np.inf).min(axis=1)
    return scored.any(axis=1) & (np.where(scored, rewards, -np.inf).max(axis=1) > least)


def _first(chosen: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of those that are chosen."""
    return chosen & (np.cumsum(chosen) <= count)


def _groups(values: np.ndarray, config: ConfigDict, step: int) -> np.ndarray:
    """Rewards of prompts [N, S, F] as groups [., G, F]; as the negative control, permuted among all samples."""
    values = rearrange(values, "prompts samples rewards -> (prompts samples) rewards")
    if config.rewards.shuffle:
        values = np.random.default_rng([config.seed, step]).permutation(values)
    return rearrange(values, "(groups samples) rewards -> groups samples rewards", samples=config.num_samples)


def _weighted(
    advantages: np.ndarray,
    job: Job,
    config: ConfigDict,
    state: State,
    rollout: Rollout,
    rewards: np.ndarray,
    values: np.ndarray,
) -> tuple[np.ndarray, State]:
    """Advantages weighted by specialty and difficulty, and the state that has counted the step's groups. Raises
    ConfigError of a reward below 0: of a mean of such the weights are none."""
    if (rewards < 0).any():
        weighted = np.nan_to_num(values * np.array([one.weight for one in job.scoring], np.float32))
        name = job.scoring[int(weighted.min(axis=(0, 1)).argmin())].name
        raise ConfigError(
            f"config.advantage_weights={config.advantage_weights} divides by mean rewards, and the reward "
            f"{border.shown(name)} gave {weighted.min():g}; let it give 0 and more, or set advantage_weights=equal"
        )
    firsts = rollout.prompts[:: len(rollout.prompts) // len(rewards)]  # a prompt of each group: they share their case
    domains = np.array([job.specialties.index(prompt.case.specialty) for prompt in firsts])
    right = values[..., [one.name for one in job.scoring].index("accuracy")]
    counts, given = state.memory[DOMAINS], (domains, rewards, right)
    advantages, counts = domain_weighted(advantages, counts, *given, config.advantage_weights)
    return advantages, dataclasses.replace(state, memory=state.memory | {DOMAINS: counts})


def _for_update(rollout: Rollout, trained: np.ndarray, config: ConfigDict, step: int) -> Rollout:
    """The rollout without the groups [.] that are not `trained` on and what `mask_truncated` keeps from the update, and
    with masked images where a term reads them."""
    if config.perception or config.perception_entropy:
        rollout = rollout.with_masked(config.perception_mask, (config.seed, step))
    rollout = rollout.with_trained(trained)
    return rollout.without_truncated() if config.mask_truncated else rollout


def _metrics(rollout: Rollout, scores: reward.Scores, rewards: np.ndarray) -> dict[str, float]:
    """Of the completions and their rewards, and of groups [., G]: their number, the fraction with equal rewards."""
    groups = {"frac_reward_zero_std": float(1 - _differs(rewards).mean()), "groups": len(rewards)}
    by = scores.by("paradigms", [prompt.paradigm for prompt in rollout.prompts])
    by |= scores.by("specialties", [prompt.case.specialty for prompt in rollout.prompts])
    by |= scores.by("modalities", [prompt.case.modality for prompt in rollout.prompts])
    return scores.stats() | rollout.stats() | groups | by


def _minibatches(
    rollout: Rollout, batches: Batches, config: ConfigDict, size: int, devices: int, packed: int = 0
) -> tuple[list[list[PolicyBatch]], int]:
    """The minibatches of a step, each as its micro-batches of `size` prompts on each device; and their packed length,
    which was `packed` in the step before.

    The last micro-batch is filled up where groups were dropped; if all were, one remains in which nothing counts.
    """
    sizes, work = [PromptSize.of(one) for one in rollout.encoded], rollout.work
    minibatches = np.array_split(np.flatnonzero(rollout.trained), config.minibatches)
    dealt = [batches.dealt(rows, sizes, work) for rows in minibatches if len(rows)] or [[np.array([], int)]]
    shards = [rows[i : i + size] for cuts in dealt for rows in cuts for i in range(0, len(rows), size)]
    full = size * (rollout.tokens[0].size - len(rollout.tokens[0]))
    needed = max((int(work[rows].sum()) for rows in shards), default=0)
    packed = packed_length(needed, work, packed, full, config.packing)
    options = size * devices, config.packing, devices, packed
    return [[rollout.micro_batch(rows, batches, *options) for rows in cuts] for cuts in dealt], packed


def _flops(rollout: Rollout, model: Model, learner: PolicyLearner, config: ConfigDict) -> float:
    """Operations of a step: sampling; in every pass the gradient, and the reference where there is a KL; and the old
    policy where it is asked again."""

    def once(prompts: Sequence[int]) -> float:
        encoded = [rollout.encoded[i] for i in prompts]
        images = [count for one in encoded for count in one.patch_counts]
        lengths = np.array([len(one.tokens) for one in encoded])
        return flops.forward(model.config, lengths, rollout.lengths[list(prompts)], np.array(images))

    update = once(np.flatnonzero(rollout.trained).tolist())
    passes = 1 + bool(config.perception or config.perception_entropy)
    gradient = passes * flops.trained(update, config.trainable == "full", config.remat) + update * bool(config.beta)
    sampled = once(range(len(rollout.prompts)))
    return sampled + config.inner_epochs * gradient + update * (learner.updates > 1)


def _clocks(began: float, sampled: float, rollout: Rollout) -> dict[str, float]:
    now = time.perf_counter()
    return {
        "step_time": now - began,
        "time/rollout": sampled - began,
        "time/update": now - sampled,
        "tokens_per_second": float(rollout.lengths.sum()) / (now - began),
    }


def _sample_rows(rollout: Rollout, scores: reward.Scores) -> Iterator[dict]:
    """The completions table."""
    for i, prompt in enumerate(rollout.prompts):
        for j, text in enumerate(rollout.texts[i]):
            choice = answers.choice(text, prompt.case.options)
            choice = choice if prompt.case.options else answers.parse(text).answer
            yield {
                "id": prompt.case.id,
                "specialty": prompt.case.specialty,
                "paradigm": prompt.paradigm or "",
                "prompt": question(prompt.case, prompt.paradigm, prompt.guideline),
                "image": prompt.case.images[0].picture() if prompt.case.images and not j else None,
                "completion": text,
                "answer": prompt.case.answer,
                "choice": choice,
                "correct": answers.is_right(text, prompt.case.options, *prompt.case.golds),
                "reward": _plain(scores.total[i, j]),
                **{f"rewards/{r.name}": _plain(scores.values[i, j, k]) for k, r in enumerate(scores.rewards)},
                "advantage": float(rollout.advantages[i, j]),
                "length": int(rollout.lengths[i, j]),
                "truncated": bool(rollout.truncated[i, j]),
            }


def _plain(value: float) -> float | None:
    """A reward for a table: None where its function abstained."""
    return None if np.isnan(value) else float(value)


def _summary(run: "Run", path: Path, state: State) -> dict:
    """A run's headline figures: the rewards of the first and the last tenth of the steps behind what is exported."""
    rows = [row for row in run.metrics() if "reward" in row and row["step"] <= state.step]
    tenth = max(1, len(rows) // 10)
    summary: dict[str, Any] = {"export": str(path), "steps": state.step, "num_tokens": state.num_tokens}
    for name in ("reward", "rewards/accuracy/mean"):
        for label, some in (("first_tenth", rows[:tenth]), ("last_tenth", rows[-tenth:])):
            if found := [row[name] for row in some if isinstance(row.get(name), int | float)]:  # of what is not lost
                summary[f"{name}/{label}"] = float(np.mean(found))
    return summary
