"""Numbers by depth, path and expert, and mergekit's files: the same merge as mergekit makes of them."""

import json

import numpy as np
import pytest
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.numpy import save_file

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.checkpoint import Checkpoint
from mmedexpert_jax.merging.mergekit import read_mergekit
from mmedexpert_jax.merging.parameters import Parameters, by_expert, evaluate, parse
from mmedexpert_jax.merging.recipe import merge_to_disk

NAMES = tuple(f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("mlp.up_proj", "self_attn.q_proj"))


def test_a_gradient_over_depth_and_filters_by_path():
    assert [evaluate([0, 1], "x", depth) for depth in (0, 0.25, 1)] == [0, 0.25, 1]
    assert evaluate([0.0, 1.0, 0.5], "x", 0.75) == 0.75
    spec = [{"filter": "mlp", "value": 0.2}, {"filter": "self_attn", "value": [0, 1]}]
    assert evaluate(spec, "a.mlp.b", 0.5) == 0.2 and evaluate(spec, "a.self_attn.q", 0.5) == 0.5
    assert evaluate(spec, "model.norm", 0.5) is None and evaluate([{"value": 3}], "x", 0) == 3


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
    found = parse(["AM.density@mlp=0.1", "AM.density=0.3", "scale=0.5:1", "weight@self_attn=2"])
    assert found["density"] == {"AM": [{"filter": "mlp", "value": 0.1}, {"filter": None, "value": 0.3}]}
    assert found["scale"] == {"": [{"filter": None, "value": [0.5, 1.0]}]} and "weight" in found
    for line in ("density", "density=x", "dens=0.1", "density@mlp="):
        with pytest.raises(ConfigError, match="parameters"):
            parse([line])
    assert by_expert([1, 2], ("a", "b"), "weights") == {"a": 1, "b": 2}
    with pytest.raises(ConfigError, match="density names c"):
        Parameters("ties", ("a",), numbers={"density": {"c": 1}}).check()
    with pytest.raises(ConfigError, match="no number, gradient"):
        Parameters("ties", ("a",), numbers={"density": {"": "much"}}).check()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Qwen2 models of three layers that mergekit knows, in float32."""
    folder = tmp_path_factory.mktemp("qwen2")
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 3,
        "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 20,
        "tie_word_embeddings": True, "torch_dtype": "float32",
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (20, 8), "model.norm.weight": (8,)}
    for layer in range(3):
        for name, rows in (("q", 8), ("k", 4), ("v", 4)):
            shapes[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = (rows, 8)
            shapes[f"model.layers.{layer}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"model.layers.{layer}.self_attn.o_proj.weight"] = (8, 8)
        shapes |= {f"model.layers.{layer}.mlp.{name}_proj.weight": (12, 8) for name in ("gate", "up")}
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (8, 12)
        shapes |= {f"model.layers.{layer}.{n}_layernorm.weight": (8,) for n in ("input", "post_attention")}
    rng = np.random.default_rng(0)
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for number, name in enumerate(("base", "one", "two")):
        moved = {
            n: t + np.float32(0.1 * number) * rng.standard_normal(t.shape).astype(np.float32) for n, t in base.items()
        }
        (folder / name).mkdir()
        save_file(moved, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


FILES = {
    "ties": """
merge_method: ties
base_model: {0}/base
models:
- model: {0}/one
  parameters: {{weight: [0.2, 1.0], density: [{{filter: mlp, value: 0.3}}, {{value: 0.6}}]}}
- model: {0}/two
  parameters: {{weight: 0.5}}
- model: {0}/base
parameters: {{density: [0.2, 0.9], lambda: 0.8, normalize: true, int8_mask: true}}
dtype: float32
""",
    "slerp": """
merge_method: slerp
base_model: {0}/base
slices:
- sources:
  - {{model: {0}/base, layer_range: [0, 3]}}
  - {{model: {0}/two, layer_range: [0, 3]}}
parameters: {{t: [{{filter: self_attn, value: [0, 0.5, 1]}}, {{filter: mlp, value: [1, 0]}}, {{value: 0.5}}]}}
dtype: float32
""",
    "linear": """
merge_method: linear
models:
- {{model: {0}/one, parameters: {{weight: 0.3}}}}
- {{model: {0}/two, parameters: {{weight: 1}}}}
dtype: float32
""",
    "breadcrumbs_ties": """
merge_method: breadcrumbs_ties
base_model: {0}/base
models:
- {{model: {0}/one, parameters: {{weight: 1, gamma: 0.1}}}}
- {{model: {0}/two, parameters: {{weight: 1}}}}
parameters: {{density: 0.5}}
dtype: float32
""",
}


@pytest.mark.parametrize("method", FILES)
def test_a_mergekit_file_does_the_same_merge(models, tmp_path, method):
    text = FILES[method].format(models)
    (tmp_path / "m.yaml").write_text(text)
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(text)),
        str(tmp_path / "theirs"),
        MergeOptions(copy_tokenizer=False),
    )
    merge_to_disk(read_mergekit(tmp_path / "m.yaml"), tmp_path / "ours")
    ours, theirs = Checkpoint(tmp_path / "ours"), Checkpoint(tmp_path / "theirs")
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_a_mergekit_file_asks_for_in_vain(tmp_path):
    for match, text in {
        "merge_method is missing": "models: []",
        "merge_method evolve is unknown here": "merge_method: evolve",
        "tokenizer_source has no": "{merge_method: ties, tokenizer_source: union, base_model: a, models: []}",
        "parameter filter_wise": "{merge_method: model_stock, base_model: a, models: [{model: b, "
        "parameters: {filter_wise: 1}}]}",
        "ties needs base_model": "{merge_method: ties, models: [{model: b}]}",
        "one slice of whole models": "{merge_method: ties, base_model: a, slices: []}",
        "cannot be read as YAML": "a: [",
    }.items():
        (tmp_path / "m.yaml").write_text(text)
        with pytest.raises(ConfigError, match=match):
            read_mergekit(tmp_path / "m.yaml")
