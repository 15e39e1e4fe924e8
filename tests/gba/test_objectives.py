"""The objectives by name: what each sets, and that a field set by the user wins, whatever the order."""

import pytest

from mmedexpert_jax.config.validate import check_fields, validate
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.launch import load_config

GBA = {
    "guided": True, "rewards.structure": 0.2, "rewards.length": 0.0, "clip": 0.2, "clip_high": None, "beta": 0.001,
    "aggregation": "sequence", "ratio_level": "token", "advantage_scale": "group", "zero_variance": "keep",
    "minibatches": 1,
}  # fmt: skip
GRPO = GBA | {"guided": False, "rewards.structure": 0.0}
EXPECTED = {
    "gba": GBA,
    "grpo": GRPO,
    "dr_grpo": GRPO | {"aggregation": "constant", "advantage_scale": "none", "beta": 0.0},
    "dapo": GRPO
    | {"aggregation": "token", "clip_high": 0.28, "beta": 0.0, "zero_variance": "refill", "rewards.length": 1.0},
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


@pytest.mark.parametrize("order", [1, -1])
def test_a_field_that_is_set_wins(order):
    pairs = [("objective", "dapo"), ("beta", 0.05), ("zero_variance", "keep"), ("clip_high", "none")][::order]
    config = load_config("configs/gba.py", dict(pairs))
    assert (config.beta, config.zero_variance, config.clip_high, config.aggregation) == (0.05, "keep", None, "token")


def test_unknown_choices_are_refused():
    for key in ("objective", "zero_variance", "ratio_level", "advantage_scale", "shard"):
        with pytest.raises(ConfigError, match=f"config.{key}=other is unknown"):
            check_fields(load_config("configs/gba.py", {key: "other"}))
