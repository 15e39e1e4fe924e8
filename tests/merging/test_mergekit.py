"""mergekit's files: the same merge as mergekit 0.1.5 makes of them, element by element, or a refusal by name."""

import itertools
import json
import shutil
from unittest import mock

import numpy as np
import pytest
import tokenizers
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import BasePolicy, registered_methods
from mergekit.merge_methods import get as mergekit_method
from mergekit.options import MergeOptions
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.merging.checkpoint import Checkpoint
from mmedexpert_jax.merging.merge_recipe import merge_to_disk, tensors_of
from mmedexpert_jax.merging.mergekit import METHODS, read_mergekit
from mmedexpert_jax.merging.parameters import Parameters

WORDS = ["<|endoftext|>", *(f"w{number}" for number in range(19))]  # the first is what tokenizers of Qwen2 add


def save_tokenizer(folder, words):
    model = tokenizers.models.WordLevel({token: row for row, token in enumerate(words)}, words[0])
    PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model)).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Qwen2 models of three layers that mergekit knows, in float32: a base, two others and one that hardly differs.

    As in real ones some biases are 0, and some tensors are the base's.
    """
    folder = tmp_path_factory.mktemp("qwen2")
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 3,
        "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 20,
        "tie_word_embeddings": False, "torch_dtype": "float32",
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (20, 8), "model.norm.weight": (8,), "lm_head.weight": (20, 8)}
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
    base |= {name: np.zeros_like(tensor) for name, tensor in base.items() if name.endswith("v_proj.bias")}
    same = {"near": ("model.layers.1.mlp", "model.layers.2.input_layernorm"), "two": ("model.layers.1.self_attn",)}
    for name, size in {"base": 0.0, "one": 0.1, "two": 0.2, "near": 0.003}.items():
        sizes = {n: 0 if n.startswith(same.get(name, ("-",))) or "post_attention" in n else size for n in base}
        moved = {n: t + np.float32(sizes[n]) * rng.standard_normal(t.shape).astype(np.float32) for n, t in base.items()}
        (folder / name).mkdir()
        save_tokenizer(folder / name, WORDS)
        save_file(moved, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config))
    factors = {
        f"model.layers.{layer}.mlp.up_proj": {
            "a": rng.standard_normal((2, 8)).astype(np.float32),
            "b": rng.standard_normal((12, 2)).astype(np.float32),
        }
        for layer in range(3)
    }
    adapters.save_peft(folder / "lora", adapters.Lora(factors, 2, 2.0), str(folder / "base"), decoder_only=True)
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
    "linear, not normalised": """
merge_method: linear
models:
- {{model: {0}/one, parameters: {{weight: 0.5}}}}
- {{model: {0}/two, parameters: {{weight: 0.7}}}}
parameters: {{normalize: false}}
""",
    "linear over a base that counts": """
merge_method: linear
base_model: {0}/base
models:
- {{model: {0}/one}}
- {{model: {0}/two}}
parameters: {{weight: 1e-1}}
out_dtype: float16
""",
    "revisions and a name": """
name: mine
merge_method: task_arithmetic
base_model: {0}/base@main
models:
- {{model: {0}/one@main, parameters: {{weight: 0.3}}}}
- {{model: "{0}/two", parameters: {{weight: 1}}}}
dtype: float32
""",
    "two of three layers": """
merge_method: ties
base_model: {0}/base
slices:
- sources:
  - {{model: {0}/base, layer_range: [0, 2]}}
  - {{model: {0}/two, layer_range: [0, 2], parameters: {{density: [0.2, 0.8]}}}}
  - {{model: {0}/one, layer_range: [1, 3]}}
  parameters: {{weight: [{{filter: mlp, value: 0.5}}]}}
parameters: {{weight: 1, density: 0.5}}
""",
    "passthrough": """
merge_method: passthrough
slices:
- sources: [{{model: {0}/one, layer_range: [0, 2]}}]
- sources:
  - model: {0}/two
    layer_range: [1, 3]
    parameters: {{scale: [{{filter: o_proj, value: 0.0}}, {{filter: down_proj, value: 0.5}}, {{value: 1.0}}]}}
dtype: bfloat16
""",
    "an adapter first": """
merge_method: linear
models:
- {{model: {0}/base+{0}/lora, parameters: {{weight: 0.3}}}}
- {{model: {0}/two, parameters: {{weight: 1}}}}
out_dtype: torch.bfloat16
""",
    "layers of an adapted model": """
merge_method: passthrough
slices:
- sources: [{{model: {0}/base+{0}/lora, layer_range: [1, 3]}}]
- sources: [{{model: {0}/two, layer_range: [0, 1]}}]
""",
    "nuslerp by columns": """
merge_method: nuslerp
base_model: {0}/base
models:
- {{model: {0}/one, parameters: {{weight: 0.3}}}}
- {{model: {0}/two, parameters: {{weight: 0.9}}}}
parameters: {{nuslerp_flatten: false, nuslerp_row_wise: true}}
""",
}


def theirs(folder, text):
    """Writes mergekit's result of a file; its refusal, None for none."""
    options = MergeOptions(
        copy_tokenizer=False, write_model_card=False, quiet=True, lora_merge_cache=str(folder.parent / "loras")
    )
    try:
        with mock.patch("transformers.Qwen2Config.validate"):  # it refuses the config that mergekit writes of a stack
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(folder / "theirs"), options)
    except (RuntimeError, ValueError) as refusal:
        return refusal
    return None


def compare(folder, text):
    """Ours against mergekit's result of one file: every tensor, config.json, or that both refuse it."""
    (folder / "m.yaml").write_text(text)
    if refusal := theirs(folder, text):
        if "weighted sum of the input tensors is zero" in str(refusal):  # of a tensor that no model changed: it stays
            return merge_to_disk(read_mergekit(folder / "m.yaml"), folder / "ours")
        with pytest.raises((ConfigError, DataError)):
            merge_to_disk(read_mergekit(folder / "m.yaml"), folder / "ours")
        return refusal
    merge_to_disk(read_mergekit(folder / "m.yaml"), folder / "ours")
    ours, peers = Checkpoint(folder / "ours"), Checkpoint(folder / "theirs")
    assert set(ours) == set(peers)
    for name, tensor in peers.items():
        assert ours[name].dtype == tensor.dtype, name
        coarse = {"float16": 1e-3, "bfloat16": 8e-3}.get(tensor.dtype.name, 1e-5)  # one step of rounding
        mine, peer = ours[name].astype(np.float32), tensor.astype(np.float32)
        np.testing.assert_allclose(mine, peer, rtol=coarse, atol=2e-6, err_msg=f"{name} {text}")
    file = folder / "theirs" / "config.json"
    file.write_text(file.read_text().replace('"torch.', '"'))  # a dtype that transformers does not read
    with mock.patch("transformers.Qwen2Config.validate"):
        configs = [AutoConfig.from_pretrained(folder / name).to_dict() for name in ("ours", "theirs")]
    for config in configs:  # mergekit leaves as many `layer_types` as the base has
        assert config.pop("layer_types") and config.pop("_name_or_path")
    assert configs[0] == configs[1]
    assert configs[0]["dtype"] == next(iter(peers.values())).dtype.name
    return None


@pytest.mark.parametrize("method", FILES)
def test_a_mergekit_file_does_the_same_merge(models, tmp_path, method):
    compare(tmp_path, FILES[method].format(models))


@pytest.mark.parametrize("method", ["ties", "linear over a base that counts", "nuslerp by columns"])
def test_a_union_of_vocabularies_has_every_token_s_row(models, tmp_path, method):
    """Base, an expert with another order and a token more, one with another token more: row by token as mergekit's."""
    vocabularies = {"base": WORDS, "one": [*WORDS[::-1], "fever"], "two": [*WORDS, "cough"]}
    for name, tokens in vocabularies.items():
        shutil.copytree(models / name, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text()) | {"vocab_size": len(tokens)}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        tensors = load_file(models / name / "model.safetensors")
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            more = np.full((len(tokens) - 20, 8), len(name) + len(key), np.float32)
            tensors[key] = np.concatenate([tensors[key], more])
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        save_tokenizer(tmp_path / name, tokens)
    marked = AutoTokenizer.from_pretrained(tmp_path / "two")
    marked.add_special_tokens({"additional_special_tokens": ["cough"]})
    marked.save_pretrained(tmp_path / "two")
    text = FILES[method].format(tmp_path) + "tokenizer_source: union\n"
    (tmp_path / "m.yaml").write_text(text)
    assert theirs(tmp_path, text) is None
    merge_to_disk(read_mergekit(tmp_path / "m.yaml"), tmp_path / "ours")
    ours, peers = Checkpoint(tmp_path / "ours"), Checkpoint(tmp_path / "theirs")
    read_mergekit(tmp_path / "m.yaml").write(tmp_path / "recipe")
    for name, tensor in tensors_of(tmp_path / "recipe").items():
        np.testing.assert_array_equal(tensor.read(()), ours[name], err_msg=name)
    over = FILES["ties"].format(tmp_path).replace(f"{tmp_path}/one", f"{tmp_path}/recipe")
    (tmp_path / "over.yaml").write_text(over)
    with pytest.raises(DataError, match=r"recipe\.json: a union of vocabularies.*: merge that recipe first"):
        merge_to_disk(read_mergekit(tmp_path / "over.yaml"), tmp_path / "over")
    both = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("ours", "theirs")]
    rows = [one.get_vocab() for one in both]
    said = [
        one.decode([vocab[t] for t in ("w1", "cough", "fever")], skip_special_tokens=True)
        for one, vocab in zip(both, rows, strict=True)
    ]
    assert said == ["w1fever", "w1fever"]
    assert set(rows[0]) == set(rows[1]) == {*WORDS, "fever", "cough"}
    assert len(ours["model.embed_tokens.weight"]) == 22
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["vocab_size"] == 22
    coarse = 1e-3 if "float16" in text else 1e-5
    for (token, row), key in itertools.product(rows[0].items(), ("model.embed_tokens.weight", "lm_head.weight")):
        np.testing.assert_allclose(ours[key][row], peers[key][rows[1][token]], rtol=coarse, atol=2e-6, err_msg=token)
    np.testing.assert_allclose(ours["model.norm.weight"], peers["model.norm.weight"], rtol=coarse)


@pytest.mark.parametrize("changed", ["base", "one"])
def test_a_merge_does_not_go_on_over_another_order_of_the_tokens(models, tmp_path, changed):
    for name in ("base", "one", "two"):
        shutil.copytree(models / name, tmp_path / name)
    (tmp_path / "m.yaml").write_text(FILES["ties"].format(tmp_path))
    recipe = read_mergekit(tmp_path / "m.yaml")

    def stop(done, total):
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_to_disk(recipe, tmp_path / "out", stop)
    save_tokenizer(tmp_path / changed, [*WORDS[:3], WORDS[4], WORDS[3], *WORDS[5:]])
    found = [Checkpoint(tmp_path / name) for name in ("out", "new") if merge_to_disk(recipe, tmp_path / name)]
    for name, tensor in found[0].items():
        np.testing.assert_array_equal(tensor, found[1][name], err_msg=name)


def test_every_method_of_mergekit_is_read_with_its_parameters_and_defaults():
    specs = {method.spec.name: method.spec for method in registered_methods()}
    assert set(METHODS) == set(specs)
    for name, method in METHODS.items():
        shared = {one.name: one for one in specs[name].shared_parameters if one.name != "eps"}  # refused by name
        assert set(method.own) == {one.name for one in specs[name].input_parameters}, name
        assert {*method.shared, *method.flags} == set(shared), name
        assert set(method.required) == {one.name for one in specs[name].parameters if one.required}, name
        for parameter in specs[name].parameters:
            ours = (method.own | method.shared).get(parameter.name)
            if not parameter.required and parameter.default is not None and parameter.name in shared | method.own:
                assert (method.flags | Parameters.DEFAULTS)[ours or parameter.name] == parameter.default, name


NUMBER = st.sampled_from((0.0, 0.25, 0.6, 1.0))
POSITIVE = st.sampled_from((0.25, 0.5, 1.0, "5e-1"))
SIGNED = st.sampled_from((0.25, 1.0, "5e-1", 0.0, -0.5))
FILTER = st.sampled_from(("mlp", "q_proj", "layers.1.", "norm", "lm_head", "*"))


def setting(values):
    """A parameter of a file: a number, a gradient over depth, or filters, which may leave tensors without a number."""
    scalar = st.one_of(values, st.lists(values, min_size=1, max_size=4))
    named = st.builds(lambda name, value: {"filter": name, "value": value}, FILTER, scalar)
    rest = st.builds(lambda value: {"value": value}, scalar)
    filters = st.builds(lambda first, last: [*first, *last], st.lists(named, max_size=2), st.lists(rest, max_size=1))
    return st.one_of(scalar, filters.filter(bool))


def values(method, key):
    """Values of a parameter. DARE and DELLA draw at random: they are compared where they keep all or nothing."""
    if method.startswith(("dare", "della")) and key == "density":
        return st.sampled_from((0, 1, [{"filter": "mlp", "value": 0.0}, {"value": 1}]))
    if key == "weight":
        return setting(POSITIVE if method in ("linear", "nuslerp", "multislerp") else SIGNED)
    if key == "epsilon":
        return st.sampled_from((1e-3, 1e-2) if "ram" in method else (0.1,))
    if key == "t" and method == "nearswap":
        return setting(st.sampled_from((0.05, 0.2)))
    return {
        "density": setting(NUMBER), "gamma": setting(st.sampled_from((0.0, 0.1, 0.3))), "lambda": setting(SIGNED),
        "t": setting(NUMBER), "scale": setting(NUMBER), "max_iter": st.sampled_from((0, 3, 10)),
        "tol": st.just("1e-5"), "r": setting(NUMBER), "alpha": setting(NUMBER), "select_topk": setting(NUMBER),
    }[key]  # fmt: skip


@st.composite
def drawn_files(draw):
    """A file of any method: whole models or layers of them, parameters at any level, with and without a base."""
    name = draw(st.sampled_from(sorted(METHODS)))
    method, contract = METHODS[name], mergekit_method(name).spec.contract
    least, most = contract.min_non_base or 1, contract.max_non_base or 3
    needs_base, sliced = contract.base == BasePolicy.REQUIRED, draw(st.booleans())
    base = needs_base or (draw(st.booleans()) and (sliced or contract.max_inputs != 1))
    if contract.max_inputs:
        least = most = contract.max_inputs - needs_base
    elif contract.base != BasePolicy.OPTIONAL:
        least = max(least, contract.min_inputs - needs_base)

    def given(keys, required=()):
        return {key: draw(values(name, key)) for key in keys if key in required or draw(st.booleans())}

    def parameters(entry, keys, required=()):
        own = given(keys, required)
        return entry | ({"parameters": own} if own else {})

    def inputs():
        pool = ["{0}/one", "{0}/two", "{0}/base+{0}/lora"]
        if name != "arcee_fusion":  # of a model so near the divergences are rounding, and the choice among them too
            pool.append("{0}/near")
        models = draw(st.permutations(pool))[: draw(st.integers(least, most))]
        must = sliced and contract.base != BasePolicy.IGNORED
        among = base and contract.max_inputs != 1 and (must or draw(st.booleans()))
        return draw(st.permutations([*models, "{0}/base"])) if among else models

    def part():
        count = draw(st.integers(1, 3))
        spans = [draw(st.integers(0, 3 - count)) for _ in range(4)]
        sources = [
            parameters({"model": model, "layer_range": [span, span + count]}, method.own)
            for model, span in zip(inputs(), spans, strict=False)
        ]
        return parameters({"sources": sources}, (*method.own, *method.shared))

    content = {"merge_method": name} | ({"base_model": "{0}/base"} if base else {})
    if sliced:  # as many sources in each: mergekit 0.1.5 takes as many of the last slice's as the first has
        parts = [part() for _ in range(draw(st.integers(1, 2)))]
        content["slices"] = [one for one in parts if len(one["sources"]) == len(parts[0]["sources"])]
    else:
        content["models"] = [parameters({"model": model}, method.own) for model in inputs()]
    content = parameters(content, (*method.own, *method.shared), method.required)
    flags = {key: draw(st.booleans()) for key in method.flags if draw(st.booleans())}
    if flags:
        content["parameters"] = content.get("parameters", {}) | flags
    content |= {"dtype": "float32"} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        content["out_dtype"] = draw(st.sampled_from(("float16", "bfloat16", "torch.float32")))
    if base and draw(st.booleans()):
        content["tokenizer_source"] = draw(st.sampled_from(("base", "union", "{0}/one")))
    return content


def placed(content, folder):
    return yaml.safe_dump(json.loads(json.dumps(content).replace("{0}", str(folder))))


def examples(count, **more):
    checks = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
    return settings(max_examples=count, phases=(Phase.generate,), suppress_health_check=checks, deadline=None, **more)


@examples(25, derandomize=True)
@given(content=drawn_files())
def test_drawn_files_do_the_same_merge(models, tmp_path_factory, content):
    compare(tmp_path_factory.mktemp("drawn"), placed(content, models))


@pytest.mark.slow
@examples(200)
@given(content=drawn_files())
def test_many_drawn_files_do_the_same_merge(models, tmp_path_factory, content):
    """Others each time; `--hypothesis-seed=N` draws the same again."""
    folder = tmp_path_factory.mktemp("drawn")
    compare(folder, placed(content, models))
    shutil.rmtree(folder)


def test_what_a_mergekit_file_asks_for_in_vain(models, tmp_path):
    one, two, base = (f"{models}/{name}" for name in ("one", "two", "base"))
    ties = f"merge_method: ties, base_model: {base}"
    pair = f"models: [{{model: {one}, parameters: {{weight: 1}}}}]"
    for match, text in {
        "lacks the key merge_method": "models: []",
        "merge_method 'evolve' is unknown here": f"{{merge_method: evolve, {pair}}}",
        "parameter filter_wise must be true or false": f"{{merge_method: model_stock, base_model: {base}, "
        f"models: [{{model: {one}}}, {{model: {two}}}], parameters: {{filter_wise: 1}}}}",
        "base_model .* has an adapter": f"{{merge_method: ties, base_model: {base}+{base}, {pair}}}",
        "ties needs base_model": f"{{merge_method: ties, {pair}}}",
        "slices is empty": f"{{{ties}, slices: []}}",
        "either models or slices": f"{{{ties}}}",
        "YAML": "a: [",
        "unknown key weight": f"{{{ties}, models: [{{model: {one}, weight: 1}}]}}",
        "unknown key modules": f"{{{ties}, modules: {{}}}}",
        "key models: must be ": f"{{{ties}, models: abc}}",
        r"key models\[0\].parameters: must be object": f"{{{ties}, models: [{{model: {one}, parameters: [1, 2]}}]}}",
        "key dtype must be float32, float16 or bfloat16; found 'int3'": f"{{{ties}, {pair}, dtype: int3}}",
        r"key slices\[0\]: must be object": f"{{{ties}, slices: [null]}}",
        "parameter 'gamma' of one is none of its own": f"{{{ties}, models: [{{model: {one}, "
        "parameters: {weight: 1, gamma: 1}}]}",
        "parameter 'normalize' of one stands beside models": f"{{{ties}, models: [{{model: {one}, "
        "parameters: {weight: 1, normalize: true}}]}",
        "parameter weight of one must be a number": f"{{{ties}, models: [{{model: {one}, "
        "parameters: {weight: x}}]}",
        "parameter weight of one must be a number, .* found True": f"{{{ties}, models: [{{model: {one}, "
        "parameters: {weight: yes}}]}",
        "parameter density of one must be a number": f"{{{ties}, models: [{{model: {one}, "
        "parameters: {weight: 1, density: nan}}]}",
        r"density of one must be .* found \[{'value': 1}, 0.5\]": f"{{{ties}, models: [{{model: {one}, "
        "parameters: {weight: 1, density: [{value: 1}, 0.5]}}]}",
        "parameter 'densty' of base is none of its own": f"{{{ties}, models: [{{model: {one}, "
        f"parameters: {{weight: 1}}}}, {{model: {base}, parameters: {{densty: 9}}}}]}}",
        "parameter weight of base must be a number": f"{{{ties}, models: [{{model: {one}, "
        f"parameters: {{weight: 1}}}}, {{model: {base}, parameters: {{weight: abc}}}}]}}",
        "base_model .* is not among its sources": f"{{merge_method: multislerp, base_model: {base}, slices: "
        f"[{{sources: [{{model: {one}, layer_range: [0, 2], parameters: {{weight: 1}}}}]}}]}}",
        "named twice": f"{{{ties}, models: [{{model: {one}}}, {{model: {one}}}]}}",
        "ends at 4, but .* has 3 layers": f"{{merge_method: passthrough, "
        f"slices: [{{sources: [{{model: {one}, layer_range: [0, 4]}}]}}]}}",
        "chat_template: 'chatml' has no counterpart": f"{{{ties}, {pair}, chat_template: chatml}}",
        r"chat_template is no Jinja \(Expected": f"{{{ties}, {pair}, chat_template: '{{% if %}}'}}",
    }.items():
        (tmp_path / "m.yaml").write_text(text)
        with pytest.raises(ConfigError, match=match):
            read_mergekit(tmp_path / "m.yaml")
    known = f"models: [{{model: {one}, parameters: {{weight: 1}}}}, {{model: {base}, parameters: {{weight: 1e-1}}}}]"
    (tmp_path / "m.yaml").write_text(f"{{{ties}, {known}}}")
    assert list(read_mergekit(tmp_path / "m.yaml").experts) == ["one"]
    (tmp_path / "m.yaml").write_text(f"{{{ties}, {pair}, tokenizer_source: nowhere}}")
    with pytest.raises(DataError, match=r"tokenizer_source: 'nowhere': nowhere: no such model .*; give base or union"):
        read_mergekit(tmp_path / "m.yaml")
    slerp = f"merge_method: slerp, base_model: {base}"
    karcher = f"merge_method: karcher, models: [{{model: {one}}}, {{model: {two}}}]"
    for match, text in {
        "weight of one has no value for (model|lm_head)": f"{{{ties}, models: [{{model: {one}}}]}}",
        "t of the merge has no value for (lm_head|model)": f"{{{slerp}, models: [{{model: {one}}}], "
        "parameters: {t: [{filter: layers, value: 0.5}]}}",
        "max_iter counts iterations": f"{{{karcher}, parameters: {{max_iter: [1, 4]}}}}",
    }.items():
        (tmp_path / "m.yaml").write_text(text)
        with pytest.raises(ConfigError, match=match):
            read_mergekit(tmp_path / "m.yaml").open()


def test_a_folder_whose_own_name_holds_a_plus_is_one_model(models, tmp_path):
    """As a base, whose first half is no folder; a stack of its layers is counted by its own config."""
    plus = shutil.copytree(models / "base", tmp_path / "base+two")
    merges = (
        f"""merge_method: passthrough
slices:
- sources: [{{model: {plus}, layer_range: [0, 1]}}]
- sources: [{{model: {models}/two, layer_range: [1, 3]}}]
""",
        f"""merge_method: linear
models:
- {{model: {plus}, parameters: {{weight: 1}}}}
- {{model: {models}/two, parameters: {{weight: 1}}}}
""",
    )
    for number, text in enumerate(merges):
        file, out = tmp_path / f"{number}.yaml", tmp_path / f"out{number}"
        file.write_text(text)
        assert read_mergekit(file).base == str(plus)
        merge_to_disk(read_mergekit(file), out)
        assert len(Checkpoint(out)) == len(Checkpoint(plus))
    file.write_text(f"merge_method: passthrough\nslices:\n- sources: [{{model: {plus}, layer_range: [0, 4]}}]\n")
    with pytest.raises(ConfigError, match="has 3 layers"):
        read_mergekit(file)


def test_a_file_alone_is_enough_on_the_command_line(models, tmp_path, capsys):
    """Nothing but the file: the config's own experts, which are not there, are not asked for."""
    (tmp_path / "m.yaml").write_text(FILES["ties"].format(models))
    arguments = ["--config=configs/merge.py", f"--config.mergekit={tmp_path / 'm.yaml'}"]
    assert main([*arguments, f"--config.workdir={tmp_path / 'run'}", "--config.plan=True"]) == 0
    told = capsys.readouterr().out
    assert "set      mergekit = " in told and "set      experts" not in told and "set      model.path" not in told
    assert main([*arguments, f"--config.workdir={tmp_path / 'run'}"]) == 0
    merge_to_disk(read_mergekit(tmp_path / "m.yaml"), tmp_path / "ours")
    written = tmp_path / "run" / "export" / "model" / "model.safetensors"
    assert written.read_bytes() == (tmp_path / "ours" / "model.safetensors").read_bytes()
    dense = FILES["ties"].format(models) + "\nparameters: {density: 1.5}\n"
    wrong = (("merge_method: [", 2, "YAML"), (FILES["ties"].format("/gone"), 3, "/gone/base"), (dense, 2, "m.yaml: "))
    for text, code, said in wrong:
        (tmp_path / "m.yaml").write_text(text)
        assert main([*arguments, f"--config.workdir={tmp_path / 'other'}"]) == code
        assert said in capsys.readouterr().err


def test_an_adapter_of_a_text_model_has_the_names_that_peft_looks_for(models, tmp_path):
    """merged at rank r over a text-only base, loaded by peft: its logits are those of the merged model."""
    rng = np.random.default_rng(0)
    for name in ("A", "B"):
        factors = {
            f"model.layers.{layer}.mlp.up_proj": {
                "a": rng.standard_normal((2, 8)).astype(np.float32),
                "b": rng.standard_normal((12, 2)).astype(np.float32),
            }
            for layer in range(3)
        }
        adapters.save_peft(tmp_path / name, adapters.Lora(factors, 2, 2.0), str(models / "base"), decoder_only=True)
    config = ["--config=configs/merge.py", f"--config.model.path={models / 'base'}", "--config.method=task_arithmetic"]
    config += [f"--config.experts={tmp_path / 'A'},{tmp_path / 'B'}", "--config.rank=4"]
    assert main([*config, f"--config.workdir={tmp_path / 'low'}"]) == 0
    assert main([*config[:-1], f"--config.workdir={tmp_path / 'whole'}"]) == 0
    tokens = torch.arange(10)[None]
    base = AutoModelForCausalLM.from_pretrained(models / "base")
    low = PeftModel.from_pretrained(base, tmp_path / "low" / "export" / "adapter")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "export" / "model")
    with torch.no_grad():
        expected, found = whole(tokens).logits, low(tokens).logits
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
