"""A run of a tiny model: what it writes and how it resumes, and what its gradient holds and does not depend on."""

import dataclasses
import json
import signal
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax import lora
from mmedexpert_jax.data import load_cases
from mmedexpert_jax.errors import ConfigError, DataError, Interrupted, RemoteError
from mmedexpert_jax.gba import policy_learner as learner_module
from mmedexpert_jax.gba import rewards, trainer
from mmedexpert_jax.gba.batches import Batches
from mmedexpert_jax.gba.explain import gradient_norms
from mmedexpert_jax.gba.guidelines import Prompt
from mmedexpert_jax.gba.policy_learner import PolicyLearner
from mmedexpert_jax.gba.rollouts import Rollout
from mmedexpert_jax.models import load_model, load_processor
from mmedexpert_jax.runtime import Run
from mmedexpert_jax.runtime.metrics import is_clock

STEPS = 5


def score(params, step, deltas=None):
    """Stands for the held-out evaluation."""
    params = params if deltas is None else lora.fold(params, deltas)
    weight = np.asarray(params["model"]["layers"]["1"]["mlp"]["down_proj"]["weight"])
    return {"eval/weight": float(np.abs(weight).sum(dtype=np.float64)), "eval/step": step}


def train(config, evaluate=score):
    with Run.open(config.workdir, config) as run:
        path = trainer.train(config, run, evaluate)
        rows = [{k: v for k, v in row.items() if not is_clock(k)} for row in run.metrics()]
        return SimpleNamespace(run=run, path=path, rows=rows)


@pytest.fixture(scope="module")
def finished(run_config, tmp_path_factory):
    """A run that was never interrupted, the batches and keys that its sampler saw, and what it printed."""
    calls, printed = [], []
    sample = PolicyLearner.sample

    def recorded(self, state, prompts, key, length):
        completions = sample(self, state, prompts, key, length)
        calls.append((jax.random.key_data(key).tolist(), completions))
        return completions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyLearner, "sample", recorded)
        patch.setattr(trainer, "print", lambda text, **_: printed.append(text), raising=False)
        done = train(run_config(tmp_path_factory.mktemp("runs") / "whole", explain=3))
    return SimpleNamespace(**vars(done), calls=calls, printed=printed)


@pytest.fixture(scope="module")
def setup(run_config, tmp_path_factory):
    """Learner, state and a scored rollout over four prompts, two of them with an image of their own."""
    config = run_config(tmp_path_factory.mktemp("setup"))
    cases = load_cases(config.data.path, "train")
    model, params = load_model(config.model.path)
    processor = load_processor(config.model.path)
    prompts = [Prompt(cases[i], "analytical") for i in (2, 0, 5, 1)]
    order = SimpleNamespace(prompts=lambda step: prompts)
    batches = Batches(processor, order, 1, 2, config.max_prompt_length)
    encoded = [batches.encode(prompt) for prompt in prompts]
    memory = {trainer.ROOM: 0}
    # by the trainer's name, so that its programs are those of the finished run
    learner = trainer.PolicyLearner(
        model, params, config, processor.special_vision_ids, config.num_samples, STEPS, None, None, memory
    )
    state = learner.init(jax.random.key(1))
    rng = np.random.default_rng(2)
    moved = jax.tree.map(lambda x: np.asarray(x) + 0.05 * rng.normal(size=x.shape).astype(np.float32), state.trained)
    state = dataclasses.replace(state, trained=moved)
    done = learner.sample(state, batches.prompt_batches(encoded), jax.random.key(3))
    rollout = Rollout.of(prompts, encoded, done, processor)
    rollout = rollout.with_advantages(np.random.default_rng(0).normal(size=rollout.lengths.shape).astype(np.float32))
    # A sampler that is away from the trainer by more than rounding, which the order of sums would change.
    away = rollout.logprobs + 0.1 * rng.random(rollout.logprobs.shape).astype(np.float32)
    away = dataclasses.replace(rollout, logprobs=away)
    return SimpleNamespace(**locals())


def summed(setup, parts):
    total = [setup.learner.gradient(setup.state, part) for part in parts]
    terms = total[0][1]
    for _, more in total[1:]:
        terms = terms + more
    return jax.tree.map(lambda *leaves: sum(leaves), *(gradient for gradient, _ in total)), terms


def assert_close(got, expected, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * (float(np.abs(y).max()) + 1e-6))


def test_a_run_logs_evaluates_and_exports(finished):
    trained = [row for row in finished.rows if "reward" in row]
    assert [row["step"] for row in trained] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in finished.rows if "eval/weight" in row] == [0, 2, 4, 5]
    names = {
        "loss", "kl", "entropy", "grad_norm", "learning_rate", "reward", "reward_std", "frac_reward_zero_std",
        "rewards/accuracy/mean", "rewards/vowels/std", "completions/mean_length", "completions/clipped_ratio",
        "clip_ratio/region_mean", "sampling/logp_difference/mean", "num_tokens",
    }  # fmt: skip
    assert all(names <= row.keys() for row in finished.run.metrics() if "reward" in row)
    assert trained[0]["kl"] < 1e-9 < trained[-1]["kl"]
    assert all(row["grad_norm"] > 0 for row in trained)
    compilations = {row["compilations"] for row in finished.run.metrics() if "reward" in row}
    # decode, join, explain's gradient, add, apply; prefill and gradient for 0, 1 and 2 images of a micro-batch
    assert max(compilations) == 5 + 2 * 3
    held_out = [row["eval/weight"] for row in finished.rows if "eval/weight" in row]
    assert len(set(held_out)) == len(held_out)
    assert "rewards/accuracy/mean/last_tenth" in finished.run.summary


def test_the_exported_adapter_is_the_trained_policy(finished, run_config, tmp_path):
    config = run_config(tmp_path)
    _, params = load_model(config.model.path)
    adapter = lora.load_peft(finished.path, params)
    assert score(lora.fold(params, adapter), 0)["eval/weight"] == finished.rows[-1]["eval/weight"]


def test_sampler_and_trainer_agree_on_log_probabilities_at_any_temperature(finished):
    assert max(row["sampling/logp_difference/max"] for row in finished.rows if "reward" in row) < 1e-4


def test_every_step_has_noise_of_its_own(finished):
    keys = [tuple(key) for key, _ in finished.calls]
    assert len(set(keys)) == len(keys) == STEPS
    tokens = [done.tokens.tobytes() for _, done in finished.calls]
    assert len(set(tokens)) == STEPS


def test_special_vision_tokens_are_never_sampled_nor_given_probability(finished, setup):
    ban = setup.processor.special_vision_ids
    assert ban
    assert not any(np.isin(done.tokens, ban).any() for _, done in finished.calls)
    part = setup.rollout.micro_batch(slice(0, 2), setup.batches)
    banned = dataclasses.replace(part, tokens=np.full_like(part.tokens, ban[0]))
    assert not np.isfinite(setup.learner.gradient(setup.state, banned)[1].loss)


def test_the_table_shows_completions_as_text(finished):
    rows = [json.loads(line) for line in (finished.run.path / "samples/completions/000004.jsonl").open()]
    assert len(rows) == 16
    assert {"prompt", "completion", "paradigm", "rewards/vowels", "advantage", "choice", "truncated"} <= rows[0].keys()
    assert sorted(path.name for path in (finished.run.path / "samples/completions").iterdir()) == [
        "000002.jsonl", "000004.jsonl", "000005.jsonl"
    ]  # fmt: skip


def test_explain_goes_from_prompt_to_share(finished):
    (text,) = finished.printed
    blocks = text.split("-- completion ")[1:]
    assert len(blocks) == 3
    for part in ("prompt (", "tokens: ", "vowels", "advantage: ", "share of the gradient: ", "What is her score?"):
        assert all(part in block for block in blocks)


def test_killed_and_resumed_is_bit_identical(finished, run_config, tmp_path, monkeypatch):
    config = run_config(tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "interrupted", lambda self: signal.SIGTERM)
        with pytest.raises(Interrupted, match="step 1 of 5 is saved") as stopped:
            train(config)
        assert stopped.value.exit_code == 143
    with monkeypatch.context() as patch:  # killed at step 4, after its metrics and before its checkpoint
        patch.setattr("mmedexpert_jax.runtime.checkpoints.Checkpoints.save", fail_at(4))
        with pytest.raises(RuntimeError, match="killed"):
            train(config)
    resumed = train(config)
    assert resumed.run.checkpoints.latest() == STEPS
    assert resumed.rows == finished.rows
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (resumed.path / file).read_bytes() == (finished.path / file).read_bytes()
    tables = [sorted((r.run.path / "samples/completions").iterdir()) for r in (resumed, finished)]
    assert [path.read_bytes() for path in tables[0]] == [path.read_bytes() for path in tables[1]]


def fail_at(step):
    from mmedexpert_jax.runtime.checkpoints import Checkpoints

    save = Checkpoints.save

    def saved(self, at, tree, *args):
        if at == step:
            raise RuntimeError("killed")
        return save(self, at, tree, *args)

    return saved


def test_the_gradient_does_not_depend_on_the_micro_batches(setup):
    # prompts with images of their own in either half: rows and images must stay together
    whole = summed(setup, [setup.away.micro_batch(slice(0, 4), setup.batches)])
    halves = summed(setup, [setup.away.micro_batch(slice(i, i + 2), setup.batches) for i in (0, 2)])
    assert_close(halves, whole)


def test_packed_and_filled_up_the_gradient_is_that_of_the_groups_that_were_kept(setup):
    kept = [1, 2]
    expected = setup.learner.gradient(setup.state, setup.away.micro_batch(kept, setup.batches))
    order = SimpleNamespace(prompts=lambda step: setup.prompts)
    batches = Batches(setup.processor, order, 1, 3, setup.config.max_prompt_length)
    part = setup.away.micro_batch(kept, batches, size=3, capacities=4)
    assert part.tokens.shape[0] == 3 and part.lengths[2].max() == 0 and part.packing is not None
    got = setup.learner.gradient(setup.state, part)
    assert_close(got, expected)
    assert float(got[1].denominator) == 2 * setup.config.num_samples


def test_masked_truncated_completions_count_for_the_mean_alone(setup):
    cut = dataclasses.replace(setup.rollout, truncated=np.eye(4, dtype=bool))
    part = cut.without_truncated().micro_batch(slice(0, 2), setup.batches)
    assert part.lengths[0, 0] == part.lengths[1, 1] == 0 < part.lengths[0, 1]
    terms = setup.learner.gradient(setup.state, part)[1]
    assert float(terms.denominator) == 2 * setup.config.num_samples
    assert float(terms.tokens) == part.lengths.sum() < setup.rollout.lengths[:2].sum()


def test_dynamic_sampling_goes_on_until_enough_groups_differ(run_config, tmp_path):
    config = run_config(tmp_path, objective="dapo", refill_rounds=2)
    scores = SimpleNamespace(weights=np.ones(1, np.float32))
    equal, mixed = np.ones((4, 4, 1)), np.eye(4)[..., None]
    rounds = [(None, scores, equal)]
    assert trainer._wants_more([], config) and trainer._wants_more(rounds, config)
    assert not trainer._wants_more([(None, scores, mixed)], config)
    assert not trainer._wants_more(rounds * 3, config)
    half = [(None, scores, np.concatenate([mixed[:2], equal[:2]]))]
    assert trainer._wants_more(half, config) and not trainer._wants_more(half * 2, config)
    assert not trainer._wants_more(rounds, run_config(tmp_path, zero_variance="drop"))
    chosen = trainer._first(np.array([0, 1, 1, 0, 1, 1], bool), 3)
    assert chosen.tolist() == [False, True, True, False, True, False]


def test_a_hint_is_printed_once(tmp_path, capsys):
    with Run.open(tmp_path / "run", {"job": "gba"}) as run:
        hinted = set()
        for step in range(1, 21):
            run.log(step, {"reward": 0.0, "frac_reward_zero_std": 0.95, "rewards/accuracy/mean": 0.0})
            trainer._hint(run, hinted)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hint: ")]
    assert len(printed) == 1 and printed[0].startswith("hint: 95% of the groups have equal rewards and teach nothing")


@pytest.mark.parametrize("bounds", [(0.05, 0.95), (0.25, 0.5), (0.0, 1.0)])
def test_a_filter_while_it_trains_is_by_pass_rate(run_config, tmp_path, bounds):
    """Groups of 0 to 4 right of 4, all of them of rewards that differ, since their form does; bounds are inclusive."""
    least, most = bounds
    options = {"filter.online": True, "filter.least": least, "filter.most": most, "prompts_per_step": 3}
    config = run_config(tmp_path, objective="dapo", refill_rounds=2, **options)
    right = (np.arange(4) < np.arange(5)[:, None]).astype(np.float32)
    values = np.stack([np.broadcast_to(np.eye(4, dtype=np.float32)[0], right.shape), right], axis=-1)
    names = tuple(rewards.WeightedReward(name, 1.0, rewards.REWARDS[name]) for name in ("format", "accuracy"))
    scores = rewards.Scores(values, names)
    kept = [least <= n / 4 <= most for n in range(5)]
    assert trainer._teaches(values, scores, config).tolist() == kept
    assert trainer._wants_more([(None, scores, values)], config) == (sum(kept) < 3)
    assert not trainer._wants_more([(None, scores, values)] * 2, config)
    config = run_config(tmp_path, objective="dapo")
    assert trainer._teaches(values, scores, config).tolist() == trainer._differs(values.sum(axis=-1)).tolist()


def test_parts_hold_the_kept_prompts_in_order(setup, run_config, tmp_path):
    config = run_config(tmp_path, zero_variance="drop", minibatches=2, packing=0)
    calls = []
    rollout = SimpleNamespace(
        trained=np.array([1, 0, 1, 1], bool),
        encoded=setup.encoded[1:2] * 4,
        tokens=np.zeros((4, 2, 6), np.int32),
        work=np.array([4, 10, 3, 5]),
        micro_batch=lambda rows, *args: calls.append([*rows]) or calls[-1],
    )
    order = SimpleNamespace(prompts=lambda step: setup.prompts)
    batches = Batches(setup.processor, order, 1, 1, setup.config.max_prompt_length)
    assert trainer._minibatches(rollout, batches, config, 1, 1) == ([[[0], [2]], [[3]]], 0)
    rollout.trained[:] = False
    assert trainer._minibatches(rollout, batches, config, 1, 1) == ([[[]]], 0)


def test_the_packed_size_is_kept_from_step_to_step(setup, run_config, tmp_path):
    """Of the state and the step alone: the packed length that fits goes on, also where all groups are dropped."""
    config = run_config(tmp_path, packing=5)
    lengths = []
    rollout = SimpleNamespace(
        trained=np.ones(4, bool),
        encoded=setup.encoded[1:2] * 4,
        tokens=np.zeros((4, 2, 51), np.int32),
        work=np.array([20, 9, 20, 20]),
        micro_batch=lambda rows, batches, size, capacities, devices, packed: lengths.append(packed) or [*rows],
    )
    order = SimpleNamespace(prompts=lambda step: setup.prompts)
    batches = Batches(setup.processor, order, 1, 2, setup.config.max_prompt_length)
    minibatches, packed = trainer._minibatches(rollout, batches, config, 2, 1)
    assert sorted(row for cuts in minibatches for rows in cuts for row in rows) == [0, 1, 2, 3]
    assert packed == 80 and set(lengths) == {80}  # two fifths of 200, for 40 and what steps differ by
    rollout.work = rollout.work * 3 // 2
    assert trainer._minibatches(rollout, batches, config, 2, 1, packed)[1] == 80
    rollout.trained[:] = False
    assert trainer._minibatches(rollout, batches, config, 2, 1, packed)[1] == 80
    rollout.trained[:], rollout.work = True, rollout.work * 2
    assert trainer._minibatches(rollout, batches, config, 2, 1, packed)[1] == 200


def test_every_prompt_is_scored_with_its_own_image(setup):
    part = setup.rollout.micro_batch(slice(0, 2), setup.batches)
    other = setup.batches.collate([setup.encoded[2], setup.encoded[1]])  # the first prompt with the third's image
    swapped = setup.learner.gradient(setup.state, dataclasses.replace(part, batch=other))[1]
    right = setup.learner.gradient(setup.state, part)[1]
    assert float(right.peaks["sampling/logp_difference/max"]) < 1e-4
    assert float(swapped.peaks["sampling/logp_difference/max"]) > 1e-4


def test_the_end_token_is_trained(setup):
    part = setup.rollout.micro_batch(slice(0, 2), setup.batches)
    (end,) = setup.model.config.eos_token_ids
    tokens = np.full_like(part.tokens, setup.model.config.pad_token_id)
    tokens[..., 0] = end
    ones = np.ones_like(part.lengths)
    only_end = dataclasses.replace(part, tokens=tokens, lengths=ones, advantages=ones.astype(np.float32))
    gradient, terms = setup.learner.gradient(setup.state, only_end)
    assert float(terms.tokens) == ones.size
    assert all(float(jnp.abs(f["b"]).max()) > 0 for name, f in gradient.factors.items() if name.startswith("model."))


def test_gradients_are_for_what_is_trained_and_beta_zero_has_no_reference(setup, run_config, tmp_path, monkeypatch):
    """By abstract evaluation: nothing is compiled."""
    calls = []
    real = learner_module.completion_logprobs
    monkeypatch.setattr(
        learner_module, "completion_logprobs", lambda *args, **kwargs: calls.append(kwargs) or real(*args, **kwargs)
    )
    part = setup.rollout.micro_batch(slice(0, 2), setup.batches)
    for trainable, beta in (("lora", 0.01), ("lora", 0.0), ("full", 0.01), ("full", 0.0)):
        calls.clear()
        config = run_config(tmp_path, trainable=trainable, beta=beta)
        learner = PolicyLearner(setup.model, setup.params, config, (), config.num_samples, 10)
        state = learner.init(jax.random.key(0))
        gradient, _ = jax.eval_shape(
            lambda trained, learner=learner, state=state: learner.gradient(
                dataclasses.replace(state, trained=trained), part
            ),
            state.trained,
        )
        expected = setup.params if trainable == "full" else setup.state.trained
        assert jax.tree.structure(gradient) == jax.tree.structure(expected) == jax.tree.structure(state.trained)
        assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
        references = [kwargs for kwargs in calls if kwargs.get("lora") is None and not kwargs.get("entropy")]
        assert len(references) == (beta > 0)


@pytest.mark.parametrize(("cut", "known"), [({}, True), ({"top_p": 0.9}, False), ({"top_k": 5}, False)])
def test_a_gap_between_sampler_and_trainer_is_told_where_no_token_was_cut_off(setup, run_config, tmp_path, cut, known):
    """Else the difference would be the mass that the sampler left out. By abstract evaluation."""
    config = run_config(tmp_path, **cut)
    learner = PolicyLearner(setup.model, setup.params, config, (), config.num_samples, 10)
    part = setup.rollout.micro_batch(slice(0, 2), setup.batches)
    _, terms = jax.eval_shape(lambda part: learner.gradient(setup.state, part), part)
    assert ("sampling/logp_difference/mean" in terms.sums) == ("sampling/logp_difference/max" in terms.peaks) == known


def test_shuffled_rewards_are_the_same_values_elsewhere(run_config, tmp_path):
    rewards = np.arange(16.0).reshape(4, 4, 1)
    config = run_config(tmp_path, **{"rewards.shuffle": True})
    shuffled = trainer._groups(rewards, config, 3)
    assert sorted(shuffled.ravel()) == sorted(rewards.ravel())
    assert shuffled.tolist() != rewards.tolist()
    assert (
        shuffled.tolist()
        == trainer._groups(rewards, config, 3).tolist()
        != trainer._groups(rewards, config, 4).tolist()
    )
    assert trainer._groups(rewards, run_config(tmp_path), 3) is not shuffled


def test_shuffled_rewards_of_several_functions_stay_together(run_config, tmp_path):
    rewards = np.stack([np.arange(16.0), np.arange(16.0) + 100], -1).reshape(4, 4, 2)
    shuffled = trainer._groups(rewards, run_config(tmp_path, **{"rewards.shuffle": True}), 3)
    assert (shuffled[..., 1] - shuffled[..., 0] == 100).all()


def test_groups_differ_over_what_was_scored():
    nan = np.nan
    rewards = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, nan], [nan, nan], [0.0, 0.0]])
    assert trainer._differs(rewards).tolist() == [False, True, False, False, False]


def test_a_reward_that_fails_leaves_the_state_of_the_last_step(run_config, tmp_path, monkeypatch):
    """A server that is down in step 2: the checkpoint of step 1 stands, and the run goes on from it."""
    calls = []
    real = trainer.reward.score

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RemoteError("the judge is down")
        return real(*args, **kwargs)

    monkeypatch.setattr(trainer.reward, "score", failing)
    config = run_config(tmp_path / "run", steps=2, checkpoint_every=50)
    with pytest.raises(RemoteError):
        train(config, None)
    with Run.open(tmp_path / "run", config) as run:
        assert run.checkpoints.latest() == 1
        trainer.train(config, run)
    assert len(calls) == 3


def test_a_query_group_joins_the_samples_of_its_prompts(run_config, tmp_path):
    rewards = np.arange(16.0).reshape(8, 2, 1)  # 8 prompts x 2 samples: 4 queries under 2 paradigms
    groups = trainer._groups(rewards, run_config(tmp_path), 0)
    assert groups.shape == (4, 4, 1)
    assert groups[1, :, 0].tolist() == [4, 5, 6, 7]


def test_a_loss_that_is_not_finite_stops_the_run(run_config, tmp_path):
    config = run_config(tmp_path / "run", lr=1e35)
    with pytest.raises(ConfigError, match=r"step \d: (loss|grad_norm) is (nan|inf) at lr 1e\+35; lower config.lr"):
        train(config, None)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"num_samples": 1}, ConfigError, "config.num_samples must be at least 2"),
        ({"temperature": 0.0}, ConfigError, "config.temperature"),
        ({"minibatches": 3}, ConfigError, "minibatches 3, micro_batch 2.; set --config.prompts_per_step=6"),
        ({"micro_batch": 3}, ConfigError, "set --config.micro_batch=2"),
        ({"paradigms_per_query": 3}, ConfigError, "config.prompts_per_step"),
        ({"filter.online": True}, ConfigError, "set --config.zero_variance=drop or refill"),
        ({"rewards.functions": ("nowhere.f",)}, ConfigError, "nowhere.f"),
        ({"max_prompt_length": 40}, DataError, r"case case-\d: a prompt of \d+ tokens"),
    ],
)
def test_bad_input_is_refused_before_any_work(run_config, tmp_path, monkeypatch, overrides, error, message):
    monkeypatch.setattr(trainer, "load_policy", lambda *_, **__: pytest.fail("the model was loaded"))
    config = run_config(tmp_path / "run", **overrides)
    with pytest.raises(error, match=message):
        train(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"inner_epochs": 2, "minibatches": 2, "lr": 0.3},
        {"trainable": "full", "lr": 1e-3},
        {"group_by": "query", "paradigms_per_query": 2, "schedule": "linear", "warmup_steps": 2},
        {"objective": "grpo", "beta": 0.0, "aggregation": "constant", "remat": True},
        {"objective": "dr_grpo", "packing": 4},
        {"objective": "dapo", "packing": 2, "refill_rounds": 1},
        {"objective": "gspo", "lr": 0.3, "micro_batch": 1},
        {"zero_variance": "drop", "mask_truncated": True, "importance_cap": 2.0, "micro_batch": 1},
    ],
)
def test_other_ways_to_train(run_config, tmp_path, overrides):
    done = train(run_config(tmp_path / "run", steps=3, **overrides))
    assert done.path.is_dir()
    rows = [row for row in done.rows if "reward" in row]
    assert rows[0]["loss"] is not None
    if "inner_epochs" in overrides:
        assert sum(row["clip_ratio/region_mean"] for row in rows) > 0
    if "schedule" in overrides:
        np.testing.assert_allclose([row["learning_rate"] for row in rows], [1e-2 / 3, 2e-2 / 3, 1e-2], rtol=1e-5)


def test_a_reward_below_zero_ends_a_run_that_divides_by_its_means(run_config, tmp_path):
    config = run_config(tmp_path)  # makes the module
    sys.modules["own_rewards"].punishes = lambda case, text, **_: -1.0
    config = run_config(tmp_path, advantage_weights="drpo", **{"rewards.functions": ("own_rewards.punishes",)})
    with pytest.raises(ConfigError, match="the reward 'punishes' gave -1; let it give 0 and more"):
        train(config)


def test_what_is_not_in_the_loss_has_no_share_of_the_gradient(setup):
    left = setup.rollout.with_trained(np.array([True, False, True, True]))
    left = dataclasses.replace(left, scored=np.array([[False] + [True] * 3] * 4))
    norms = gradient_norms(left, setup.learner, setup.state, setup.batches)
    assert not norms[1].any() and not norms[:, 0].any() and (norms[[0, 2, 3], 1:] > 0).all()
