"""Terms beside the surrogate, the moved reference, weights by specialty: formulas written out, and runs."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax.errors import ConfigError, Interrupted
from mmedexpert_jax.gba import advantages, trainer
from mmedexpert_jax.gba.objective import policy_terms
from mmedexpert_jax.runtime import Run
from mmedexpert_jax.runtime.checkpoints import Checkpoints
from mmedexpert_jax.runtime.metrics import is_clock

LENGTHS = np.array([4, 1, 3])
MASK = np.arange(4) < LENGTHS[:, None]


def made(seed):
    rng = np.random.default_rng(seed)
    own, masked = (np.where(MASK, -rng.exponential(1, MASK.shape), 1e3).astype(np.float32) for _ in range(2))
    entropy, blind = (rng.exponential(1, MASK.shape).astype(np.float32) for _ in range(2))
    return own, {"entropy": entropy, "masked": masked, "masked_entropy": blind}, rng.normal(size=3).astype(np.float32)


def loss(own, watched, advantage, coefs, aggregation="sequence"):
    """[] after the division, and the statistics."""
    options = {"beta": 0.0, "aggregation": aggregation, "max_tokens": 4, "watched": watched, "coefs": coefs}
    stats = policy_terms(own, None, None, advantage, MASK, **options).stats()
    return stats["loss"], stats


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
def test_terms_are_verls_and_papos(aggregation):
    """Sums over tokens in plain loops, divided as the policy's loss is (verl's agg_loss); PAPO's equations 3 to 5."""
    own, watched, advantage = made(0)
    coefs = {"entropy_coef": 0.2, "perception": 0.5, "perception_entropy": 0.3}
    means = []
    for i, n in enumerate(LENGTHS):
        row = []
        for t in range(n):
            gap = watched["masked"][i, t] - own[i, t]
            seen, blind = watched["entropy"][i, t], watched["masked_entropy"][i, t]
            row.append(-advantage[i] - 0.2 * seen - 0.5 * (math.exp(gap) - gap - 1) + 0.3 * (seen + blind))
        means.append(row)
    tokens = [value for row in means for value in row]
    expected = {"sequence": np.mean([np.mean(row) for row in means]), "token": np.mean(tokens)}[aggregation]
    value, stats = loss(own, watched, advantage, coefs, aggregation)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    gaps = (watched["masked"] - own)[MASK]
    np.testing.assert_allclose(stats["perception_kl"], np.mean(np.exp(gaps) - gaps - 1), rtol=1e-5)


def test_perception_pulls_both_passes_apart_and_entropy_is_raised():
    own, watched, _ = made(1)
    none = np.zeros(3, np.float32)

    def of(own, masked, entropy):
        coefs = {"perception": 1.0, "entropy_coef": 1.0}
        return loss(own, {"masked": masked, "entropy": entropy}, none, coefs, "token")[0]

    own = np.where(MASK, own, 0)
    slopes = jax.grad(of, (0, 1, 2))(*map(jnp.asarray, (own, watched["masked"], watched["entropy"])))
    ratio = np.where(MASK, np.exp(np.where(MASK, watched["masked"] - own, 0)) - 1, 0) / MASK.sum()
    np.testing.assert_allclose(slopes[0], ratio, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slopes[1], -ratio, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slopes[2], -1.0 * MASK / MASK.sum(), rtol=1e-5)


def test_weights_by_specialty_and_difficulty_are_drpos():
    """QoQ-Med's formula in loops, its clusters the quarters of the share that is right, over two steps."""
    rng = np.random.default_rng(0)
    counts, met = advantages.new_counts(2), []
    for _ in range(2):
        domains, right = np.array([0, 0, 0, 1]), rng.integers(0, 2, (4, 4))
        rewards = right + 0.5 * rng.random((4, 4))
        advantage = np.asarray(advantages.group_advantages(rewards))
        level = [min(int(row.mean() * 4), 3) for row in right]
        met += [(d, q, row.mean()) for d, q, row in zip(domains, level, rewards, strict=True)]
        expected = []
        for d, q, row in zip(domains, level, advantage, strict=True):
            clusters = {c: [m for e, f, m in met if (e, f) == (d, c)] for c in {f for e, f, _ in met if e == d}}
            sizes = {c: 1 / len(v) for c, v in clusters.items()}
            mu = sum(w * np.mean(clusters[c]) for c, w in sizes.items()) / sum(sizes.values())
            size = sum(len(v) for v in clusters.values())
            expected.append(row / (math.sqrt(size) * mu) / (math.sqrt(len(clusters[q])) * np.mean(clusters[q])))
        got, counts = advantages.domain_weighted(advantage, counts, domains, rewards, right, "drpo")
        np.testing.assert_allclose(got, np.array(expected) / np.std(expected, ddof=1), rtol=1e-3)
    assert counts[..., 0].sum() == 8


def test_a_rare_specialty_weighs_more():
    right = np.tile([[1.0, 0.0]], (4, 1))
    advantage = np.asarray(advantages.group_advantages(right))
    domains = np.array([0, 0, 0, 1])
    got, _ = advantages.domain_weighted(advantage, advantages.new_counts(2), domains, right, right, "specialty")
    np.testing.assert_allclose(got[3] / got[0], math.sqrt(3), rtol=1e-5)


# Runs -----------------------------------------------------------------------------------------------------------------


def train(config):
    with Run.open(config.workdir, config) as run:
        path = trainer.train(config, run)
        rows = [{k: v for k, v in row.items() if not is_clock(k)} for row in run.metrics() if "reward" in row]
        return SimpleNamespace(path=path, rows=rows, run=run)


def weights(done):
    return next(done.path.glob("*.safetensors")).read_bytes()


@pytest.fixture(scope="module")
def plain(run_config, tmp_path_factory):
    return weights(train(run_config(tmp_path_factory.mktemp("plain") / "run", steps=3)))


@pytest.mark.parametrize(
    "overrides",
    [
        {"entropy_coef": 0.1},
        {"ref_every": 1, "beta": 0.5},
        {"advantage_weights": "drpo"},
        {"perception": 0.5, "perception_entropy": 0.03},
        {"surrogate": "sapo", "minibatches": 2, "inner_epochs": 2},
        {"surrogate": "cispo", "minibatches": 2, "inner_epochs": 2},
        {"advantage_scale": "decoupled"},
        {"num_samples": 2, "prompts_per_step": 8},
    ],
    ids=lambda overrides: next(iter(overrides)) + str(next(iter(overrides.values()))),
)
def test_every_objective_trains_and_resumes_bit_identically(run_config, tmp_path, monkeypatch, plain, overrides):
    """Three steps against the plain run's; killed before the last checkpoint, the resumed run ends with the same."""
    done = train(run_config(tmp_path / "whole", steps=3, **overrides))
    assert all(np.isfinite([row["loss"], row["grad_norm"]]).all() for row in done.rows)
    assert weights(done) != plain
    cut = run_config(tmp_path / "cut", steps=3, checkpoint_every=1, **overrides)
    save = Checkpoints.save

    def killed(self, step, *args):
        if step == 3:
            raise Interrupted("killed", 15)
        return save(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(Interrupted):
            train(cut)
    resumed = train(cut)
    assert weights(resumed) == weights(done) and resumed.rows == done.rows


def test_the_reference_is_the_policy_of_the_last_update_of_it(run_config, tmp_path):
    """At ref_every=2 the KL falls back to 0 in the step after the second, whose reference is the policy itself."""
    rows = train(run_config(tmp_path / "run", steps=4, ref_every=2)).rows
    kl = [row["kl"] for row in rows]
    assert kl[0] < 1e-9 < kl[1] and kl[2] < 1e-9 < kl[3]


def test_a_reference_of_weights_is_mixed_as_trls(run_config, tmp_path):
    config = run_config(tmp_path / "run", steps=1, trainable="full", ref_every=1, ref_mixup=0.6, lr=1e-3)
    with Run.open(config.workdir, config) as run:
        trainer.train(config, run)
        saved = run.checkpoints.read(1)
    from mmedexpert_jax.models import load_model
    from mmedexpert_jax.models.tree import flatten

    base = flatten(load_model(config.model.path)[1])
    for name in ("model.layers.0.mlp.down_proj.weight", "visual.patch_embed.proj.weight"):
        path = "".join(f"['{part}']" for part in name.split("."))
        mixed = (1 - 0.6) * np.asarray(base[name]) + 0.6 * saved[f"['trained']{path}"]
        np.testing.assert_allclose(saved[f"['memory']['reference']{path}"], mixed, rtol=1e-6, atol=1e-8)
        assert np.abs(mixed - np.asarray(base[name])).max() > 0


def test_masks_do_not_depend_on_the_micro_batches_and_text_has_none(run_config, tmp_path):
    rows = []
    for size in (1, 4):
        overrides = {"perception": 0.5, "micro_batch": size, "steps": 2, "packing": 0}
        rows.append(train(run_config(tmp_path / str(size), **overrides)).rows)
    first, second = ([row["perception_kl"] for row in found if "perception_kl" in row] for found in rows)
    assert first[0] == pytest.approx(second[0], rel=1e-4) and max(first) > 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"ref_every": 2, "beta": 0.0}, "config.ref_every moves the reference"),
        ({"ref_every": 2, "ref_mixup": 0.5}, "config.ref_mixup below 1 mixes weights"),
        ({"surrogate": "nowhere.py:f"}, "config.surrogate=nowhere.py:f is not"),
        ({"advantage_scale": "nowhere.f"}, "config.advantage_scale=nowhere.f is not"),
        ({"surrogate": "clap"}, "config.surrogate=clap is unknown"),
    ],
)
def test_settings_that_do_not_go_together(run_config, tmp_path, overrides, said):
    config = run_config(tmp_path / "run", **overrides)
    with pytest.raises(ConfigError, match=said):
        train(config)


def test_an_own_surrogate_and_estimator_are_files(run_config, tmp_path, plain):
    (tmp_path / "mine.py").write_text(
        "def half(ratio, logprobs, advantage, low, high):\n    return -0.5 * ratio * advantage, {}\n\n"
        "def raw(values, weights, eps, ddof):\n    return values @ weights\n"
    )
    own = {"surrogate": f"{tmp_path}/mine.py:half", "advantage_scale": f"{tmp_path}/mine.py:raw"}
    done = train(run_config(tmp_path / "run", steps=1, **own))
    assert np.isfinite(done.rows[0]["loss"]) and weights(done) != plain
