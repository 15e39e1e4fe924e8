"""Terms beside the surrogate, the moved reference, weights by specialty: formulas written out, and runs."""

import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError, Interrupted
from mmedexpert_jax.gba import advantages, trainer
from mmedexpert_jax.gba.objective import Objective, Tokens, policy_terms
from mmedexpert_jax.gba.rollouts import Rollout
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.processing.processor import Encoded
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
    objective = Objective(aggregation=aggregation, max_tokens=4, coefs=coefs)
    stats = policy_terms(Tokens(own, **watched), advantage, MASK, objective).stats()
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


def test_a_prompt_without_images_has_no_term_of_perception():
    own, watched, advantage = made(2)
    shown = np.array([1, 0, 1], np.float32)[:, None] * np.ones_like(own)
    watched["masked"] = np.where(shown == 1, watched["masked"], own)  # text reads the same with its images masked
    coefs = {"perception": 0.5, "perception_entropy": 0.3}

    def of(entropy):
        return loss(own, watched | {"shown": shown, "entropy": entropy}, advantage, coefs, "token")[0]

    slope = jax.grad(of)(jnp.asarray(watched["entropy"]))
    np.testing.assert_allclose(slope, np.where(MASK, 0.3 * shown / MASK.sum(), 0), rtol=1e-5)


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


# A reference, counts or masks must come back from a checkpoint; the others keep nothing from step to step.
REMEMBERING = {
    "reference": {"ref_every": 1, "beta": 0.5},
    "weights": {"advantage_weights": "drpo"},
    "perception": {"perception": 0.5, "perception_entropy": 0.03, "limit": 0},
}
STATELESS = {
    "entropy": {"entropy_coef": 0.1},
    "sapo": {"surrogate": "sapo", "minibatches": 2},
    "cispo": {"surrogate": "cispo", "minibatches": 2},
    "gdpo": {"advantage_scale": "decoupled"},
    "pairs": {"num_samples": 2},
}


@pytest.fixture(scope="module")
def short(run_config):
    """`make(workdir, **overrides)`: two steps over two cases without images, one shape."""

    def make(workdir, **overrides):
        base = {"steps": 2, "limit": 2, "micro_batch": 0, "packing": 0, "samples_every": 0, "eval.every": -1}
        return run_config(workdir, **base | {"checkpoint_every": 1} | overrides)

    return make


@pytest.fixture(scope="module")
def plain(short, tmp_path_factory):
    return weights(train(short(tmp_path_factory.mktemp("plain") / "run")))


def checked(config, plain):
    """A finished run of finite numbers that ended elsewhere than the plain one."""
    done = train(config)
    assert all(np.isfinite([row["loss"], row["grad_norm"]]).all() for row in done.rows)
    assert weights(done) != plain
    return done


@pytest.mark.parametrize("name", STATELESS)
def test_an_objective_trains(short, tmp_path, plain, name):
    checked(short(tmp_path / "run", **STATELESS[name]), plain)


@pytest.mark.parametrize("name", REMEMBERING)
def test_an_objective_that_remembers_resumes_bit_identically(short, tmp_path, monkeypatch, plain, name):
    """Killed while the last checkpoint is written: the resumed run ends with the weights of one that never was."""
    done = checked(short(tmp_path / "whole", **REMEMBERING[name]), plain)
    cut, save = short(tmp_path / "cut", **REMEMBERING[name]), Checkpoints.save

    def killed(self, step, *args):
        if step == 2:
            raise Interrupted("killed", 15)
        return save(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(Interrupted):
            train(cut)
    resumed = train(cut)
    assert weights(resumed) == weights(done) and resumed.rows == done.rows
    assert ("perception_kl" in str(done.rows)) == (name == "perception")
    assert name != "perception" or max(row.get("perception_kl", 0) for row in done.rows) > 0


def test_the_reference_is_the_policy_of_the_last_update_of_it(short, tmp_path):
    """At ref_every=2 the KL falls back to 0 in the step after the second, whose reference is the policy itself."""
    rows = train(short(tmp_path / "run", steps=4, ref_every=2)).rows
    kl = [row["kl"] for row in rows]
    assert kl[0] < 1e-9 < kl[1] and kl[2] < 1e-9 < kl[3]


def test_a_reference_of_weights_is_mixed_as_trls(short, tmp_path):
    config = short(tmp_path / "run", steps=1, trainable="full", ref_every=1, ref_mixup=0.6, lr=1e-3)
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


def test_a_prompts_masks_are_its_own_whatever_the_micro_batches():
    images = [(np.ones((50, 3), np.float32), (5, 10))]
    encoded = [Encoded(np.zeros(4, np.int32), np.zeros((3, 4), np.int32), 4, np.zeros(4, np.int32), images)] * 2
    empty = np.zeros((2, 2))
    rollout = Rollout([], encoded, [], empty, empty, empty, empty > 0, empty, np.ones(2, bool), empty == 0)
    first, second = (rollout.with_masked(0.6, (0, step)).masked for step in (1, 2))
    again = rollout.with_masked(0.6, (0, 1)).masked
    masks = [one.images[0][0].any(axis=1) for one in (*first, *second)]
    assert 0.2 < np.mean(masks) < 0.6 and len({mask.tobytes() for mask in masks}) == 4
    assert all((a.images[0][0] == b.images[0][0]).all() for a, b in zip(first, again, strict=True))
    assert (first[0].images[0][0].all(axis=1) == masks[0]).all()  # a patch is masked whole


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"ref_every": 2, "beta": 0.0}, "config.ref_every moves the reference"),
        ({"ref_every": 2, "ref_mixup": 0.5}, "config.ref_mixup below 1 mixes weights"),
        ({"surrogate": "nowhere.py:f"}, "config.surrogate='nowhere.py:f' is not"),
        ({"advantage_scale": "nowhere.f"}, "config.advantage_scale='nowhere.f' is not"),
        ({"surrogate": "clap"}, "config.surrogate='clap' is unknown"),
    ],
)
def test_settings_that_do_not_go_together(short, tmp_path, overrides, said):
    config = short(tmp_path / "run", **overrides)
    with pytest.raises(ConfigError, match=said):
        train(config)


def test_an_own_term_is_added_to_the_loss_by_its_weight(short, tmp_path):
    """The KL as a user writes it, beside the one of `beta`: together they weigh as one of twice the beta."""
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp\n\n"
        "def pull(tokens):\n"
        "    gap = tokens.reference - tokens.logprobs\n"
        "    return jnp.expm1(gap) - gap, {'pulled': tokens.entropy}\n"
    )
    own, watched, advantage = made(3)
    tokens = Tokens(own, reference=watched["masked"], entropy=watched["entropy"])
    found = {}
    for name, fields in {"own": {"terms": (f"{tmp_path}/mine.py:pull=0.5",)}, "twice": {"beta": 1.0}}.items():
        objective = Objective.from_config(short(tmp_path / name, **{"beta": 0.5} | fields))
        found[name] = policy_terms(tokens, advantage, MASK, objective).stats()
    np.testing.assert_allclose(found["own"]["loss"], found["twice"]["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["own"]["pulled"], watched["entropy"][MASK].mean(), rtol=1e-6)
    assert "pulled" not in found["twice"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return tokens.masked + 1, {}", "config.terms=.* failed on two groups of two: .*NoneType"),
        (
            "raise ValueError('mine')",
            "config.terms=.* failed on two groups of two: ValueError: mine; see docs/extend.md",
        ),
        ("return 0 * tokens.logprobs / 0, {}", "failed on two groups of two: .*not finite"),
    ],
)
def test_an_own_term_that_fails_is_one_line_before_any_work(short, tmp_path, body, said):
    (tmp_path / "mine.py").write_text(f"def f(tokens):\n    {body}\n")
    with pytest.raises(ConfigError, match=said):
        trainer.preflight(short(tmp_path / "run", terms=(f"{tmp_path}/mine.py:f=0.1",)), [])


def test_a_term_of_perception_without_pictures_is_told(caplog):
    text = Case("c1", "Her score?", ("1", "2"), "A")
    seen = replace(text, images=(Image.new("RGB", (28, 28)),))
    for objective, cases in (("papo", [text]), ("papo", [text, seen]), ("grpo", [text])):
        trainer.preflight(load_config("configs/gba.py", {"objective": objective}), cases)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["config.objective=papo"]


def test_an_own_surrogate_estimator_and_term_are_files(short, tmp_path, plain):
    (tmp_path / "mine.py").write_text(
        "def half(ratio, logprobs, advantage, low, high):\n    return -0.5 * ratio * advantage, {}\n\n"
        "def raw(values, weights, eps, ddof):\n    return values @ weights\n\n"
        "def sure(tokens):\n    return 0.5 * tokens.logprobs**2, {'doubt': -tokens.logprobs}\n"
    )
    own = {"surrogate": f"{tmp_path}/mine.py:half", "advantage_scale": f"{tmp_path}/mine.py:raw"}
    done = checked(short(tmp_path / "run", steps=1, terms=(f"{tmp_path}/mine.py:sure=0.1",), **own), plain)
    assert done.rows[-1]["doubt"] > 0
