"""The objectives by name: what each sets, and that a field set by the user wins, whatever the order."""

import pytest

from mmedexpert_jax.config.fields import facts_of
from mmedexpert_jax.config.validate import check_fields, validate
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba import trainer
from mmedexpert_jax.launch import load_config

GBA = {
    "guided": True, "rewards.structure": 0.2, "rewards.length": 0.0, "clip": 0.2, "clip_high": None, "beta": 0.001,
    "aggregation": "sequence", "ratio_level": "token", "advantage_scale": "group", "zero_variance": "keep",
    "minibatches": 1, "surrogate": "clip", "perception": 0.0, "perception_entropy": 0.0, "advantage_weights": "equal",
    "entropy_coef": 0.0, "ref_every": 0, "rewards.format": 0.2, "inner_epochs": 1,
}  # fmt: skip
GRPO = GBA | {"guided": False, "rewards.structure": 0.0}
EXPECTED = {
    "gba": GBA,
    "grpo": GRPO,
    "dr_grpo": GRPO | {"aggregation": "constant", "advantage_scale": "none", "beta": 0.0},
    "dapo": GRPO
    | {"aggregation": "token", "clip_high": 0.28, "beta": 0.0, "zero_variance": "refill", "rewards.length": 1.0},
    "sapo": GRPO | {"surrogate": "sapo", "beta": 0.0},
    "cispo": GRPO | {"surrogate": "cispo", "clip_high": 4.0, "aggregation": "token", "beta": 0.0},
    "rloo": GRPO | {"advantage_scale": "leave_one_out"},
    "reinforce_pp": GRPO | {"advantage_scale": "global", "aggregation": "token"},
    "gdpo": GBA | {"advantage_scale": "decoupled"},
    "papo": GRPO | {"perception": 0.02, "perception_entropy": 0.03},
    "drpo": GRPO | {"advantage_weights": "drpo"},
    "gspo": GRPO | {"ratio_level": "sequence", "clip": 3e-4, "clip_high": 4e-4, "beta": 0.0, "minibatches": 4},
}


def value(config, key):
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("name", list(EXPECTED))
def test_an_objective_sets_its_fields(name):
    config = load_config("configs/gba.py", {"objective": name})
    assert {key: value(config, key) for key in GBA} == EXPECTED[name]
    assert value(load_config("configs/pipeline.py", {"gba.objective": name}).gba, "beta") == EXPECTED[name]["beta"]
    validate(config)


def test_no_objective_is_left_out():
    assert {*EXPECTED} == {*facts_of(load_config("configs/gba.py"))["objective"].choices}


@pytest.mark.parametrize("order", [1, -1])
def test_a_field_that_is_set_wins(order):
    pairs = [("objective", "dapo"), ("beta", 0.05), ("zero_variance", "keep"), ("clip_high", "none")][::order]
    config = load_config("configs/gba.py", dict(pairs))
    assert (config.beta, config.zero_variance, config.clip_high, config.aggregation) == (0.05, "keep", None, "token")


def test_unknown_choices_are_refused():
    for key in ("objective", "zero_variance", "ratio_level", "advantage_weights", "shard"):
        with pytest.raises(ConfigError, match=f"config.{key}=other is unknown"):
            check_fields(load_config("configs/gba.py", {key: "other"}))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("advantage_scale", "other", "config.advantage_scale='other' is unknown; choose one of group, none, batch, "),
        ("advantage_scale", "leave_one", "did you mean leave_one_out?"),
        (
            "surrogate",
            "clop",
            "config.surrogate='clop' is unknown; did you mean clip? choose one of clip, cispo, sapo, or",
        ),
        ("terms", ("confidence=0.1",), "config.terms='confidence' is unknown"),
        ("terms", ("entropy_coef=0.1",), "config.terms: 'entropy_coef' is weighed already"),
        ("terms", ("own.py:f=x",), "config.terms: 'own.py:f=x': the weight 'x' is no finite number"),
        ("terms", ("own.py:f",), "config.terms='own.py:f' is not"),
    ],
)
def test_names_are_checked_against_the_tables_before_any_work(key, value, said):
    config = load_config("configs/gba.py", {key: value})
    check_fields(config)  # which knows none of them
    with pytest.raises(ConfigError) as error:
        trainer.preflight(config, [])
    assert said in str(error.value)
