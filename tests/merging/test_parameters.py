"""Numbers of a merge by depth, path and expert."""

import pytest

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.parameters import Parameters, by_expert, evaluate, parse

NAMES = tuple(f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("mlp.up_proj", "self_attn.q_proj"))


def test_a_gradient_over_depth_and_filters_by_path():
    assert [evaluate([0, 1], ["x"], depth) for depth in (0, 0.25, 1)] == [0, 0.25, 1]
    assert evaluate([0.0, 1.0, 0.5], ["x"], 0.75) == 0.75
    spec = [{"filter": "mlp", "value": 0.2}, {"filter": "self_attn", "value": [0, 1]}]
    assert evaluate(spec, ["a.mlp.b"], 0.5) == 0.2 and evaluate(spec, ["a.self_attn.q"], 0.5) == 0.5
    assert evaluate(spec, ["model.norm"], 0.5) is None and evaluate([{"value": 3}], ["x"], 0) == 3


def test_numbers_fall_from_expert_to_all_to_default():
    numbers = {
        "density": {"AM": [{"filter": "mlp", "value": 0.1}], "": [0.2, 0.6]},
        "weight": {"RL": 2.0},
        "scale": {"": [{"filter": "layers.4.", "value": 0.5}]},
    }
    how = Parameters("ties", ("AM", "RL"), "paper", numbers, names=NAMES)
    how.check()
    middle = how("model.layers.2.mlp.up_proj.weight")
    assert middle.density == (0.1, pytest.approx(0.4)) and middle.weights == (1.0, 2.0) and middle.scale == 1.0
    last = how("model.layers.4.self_attn.q_proj.weight")
    assert last.density == pytest.approx((0.6, 0.6)) and last.scale == 0.5
    assert how("model.embed_tokens.weight").density == pytest.approx((0.2, 0.2))


def test_lines_of_a_config():
    found = parse(["AM.density@mlp=0.1", "AM.density=0.3", "scale=0.5:1", "weight@self_attn=2"], "ties")
    assert found["density"] == {"AM": [{"filter": "mlp", "value": 0.1}, {"filter": None, "value": 0.3}]}
    assert found["scale"] == {"": [{"filter": None, "value": [0.5, 1.0]}]} and "weight" in found
    for line in (
        "density",
        "density=x",
        "dens=0.1",
        "density@mlp=",
        "epsilon=0.1",
        "a.gamma@mlp=0.1",
        "weight=１",
        "weight=1_0",
    ):
        with pytest.raises(ConfigError, match="parameters"):
            parse([line], "ties")
    assert parse(["weight=1e-1"], "ties") == {"weight": {"": [{"filter": None, "value": 0.1}]}}
    assert parse(["epsilon=0.1"], "della") == {"epsilon": {"": [{"filter": None, "value": 0.1}]}}
    with pytest.raises(ConfigError, match="scale is a number of the whole merge: leave out a, or give its weight"):
        Parameters("ties", ("a",), numbers=parse(["a.scale=2"], "ties")).check()
    assert by_expert([1, 2], ("a", "b"), "weights") == {"a": 1, "b": 2}
    with pytest.raises(ConfigError, match="density names c"):
        Parameters("ties", ("a",), numbers={"density": {"c": 1}}).check()
    with pytest.raises(ConfigError, match="no number, gradient"):
        Parameters("ties", ("a",), numbers={"density": {"": "much"}}).check()


def test_filters_that_fit_nothing_are_named():
    numbers = {"density": {"": [{"filter": "mlp", "value": 0.1}, {"filter": "attention", "value": 0.2}, {"value": 1}]}}
    assert Parameters("ties", ("a",), numbers=numbers, names=NAMES).unused_filters() == ["attention"]
    stored = {NAMES[0]: "transformer.attention.0"}  # the name in the base's file counts as well
    assert Parameters("ties", ("a",), numbers=numbers, names=NAMES, stored=stored).unused_filters() == []
