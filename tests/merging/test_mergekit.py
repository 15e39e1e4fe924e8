"""mergekit's files: the same merge as mergekit 0.1.5 makes of them, element by element, or a refusal by name."""

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
from mergekit.options import MergeOptions
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.launch.cli import main
from mmedexpert_jax.merging.checkpoint import Checkpoint
from mmedexpert_jax.merging.merge_recipe import merge_to_disk
from mmedexpert_jax.merging.mergekit import METHODS, read_mergekit


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


def compare(folder, text):
    """Ours against mergekit's result of one file."""
    (folder / "m.yaml").write_text(text)
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, lora_merge_cache=str(folder / "loras"))
    with mock.patch("transformers.Qwen2Config.validate"):  # it refuses the config that mergekit writes of a stack
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(folder / "theirs"), options)
    merge_to_disk(read_mergekit(folder / "m.yaml"), folder / "ours")
    ours, theirs = Checkpoint(folder / "ours"), Checkpoint(folder / "theirs")
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        coarse = {"float16": 1e-3, "bfloat16": 8e-3}.get(tensor.dtype.name, 1e-5)  # one step of rounding
        mine, peer = ours[name].astype(np.float32), tensor.astype(np.float32)
        np.testing.assert_allclose(mine, peer, rtol=coarse, atol=2e-6, err_msg=f"{name} {text}")
    configs = [json.loads((folder / name / "config.json").read_text()) for name in ("ours", "theirs")]
    assert configs[0]["num_hidden_layers"] == configs[1]["num_hidden_layers"]
    dtypes = {(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.") for config in configs}
    assert dtypes == {next(iter(theirs.values())).dtype.name}


@pytest.mark.parametrize("method", FILES)
def test_a_mergekit_file_does_the_same_merge(models, tmp_path, method):
    compare(tmp_path, FILES[method].format(models))


def test_a_union_of_vocabularies_has_every_token_s_row(models, tmp_path):
    """Base, an expert with another order and a token more, one with another token more: row by token as mergekit's."""
    words = ["<|endoftext|>", *(f"w{number}" for number in range(19))]  # which the tokenizers of Qwen2 add
    vocabularies = {"base": words, "one": [*words[::-1], "fever"], "two": [*words, "cough"]}
    for name, tokens in vocabularies.items():
        shutil.copytree(models / name, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text()) | {"vocab_size": len(tokens)}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        tensors = load_file(models / name / "model.safetensors")
        more = np.full((len(tokens) - 20, 8), len(name), np.float32)
        tensors["model.embed_tokens.weight"] = np.concatenate([tensors["model.embed_tokens.weight"], more])
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        model = tokenizers.models.WordLevel({token: row for row, token in enumerate(tokens)}, words[0])
        PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model)).save_pretrained(tmp_path / name)
    text = FILES["ties"].format(tmp_path) + "tokenizer_source: union\n"
    (tmp_path / "m.yaml").write_text(text)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(tmp_path / "theirs"), MergeOptions())
    merge_to_disk(read_mergekit(tmp_path / "m.yaml"), tmp_path / "ours")
    ours, theirs = Checkpoint(tmp_path / "ours"), Checkpoint(tmp_path / "theirs")
    rows = [AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("ours", "theirs")]
    assert set(rows[0]) == set(rows[1]) == {*words, "fever", "cough"}
    assert len(ours["model.embed_tokens.weight"]) == 22
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["vocab_size"] == 22
    for token, row in rows[0].items():
        mine, peer = ours["model.embed_tokens.weight"][row], theirs["model.embed_tokens.weight"][rows[1][token]]
        np.testing.assert_allclose(mine, peer, rtol=1e-5, atol=2e-6, err_msg=token)
    np.testing.assert_allclose(ours["model.norm.weight"], theirs["model.norm.weight"], rtol=1e-5)


NUMBER = st.sampled_from((0.0, 0.25, 0.6, 1.0))
POSITIVE = st.sampled_from((0.25, 0.5, 1.0, "5e-1"))


def setting(values):
    """A parameter of a file: a number, a gradient over depth, or filters."""
    scalar = st.one_of(values, st.lists(values, min_size=1, max_size=4))
    named = st.builds(lambda name, value: {"filter": name, "value": value}, st.sampled_from(("mlp", "q_proj")), scalar)
    filters = st.builds(lambda first, rest: [*first, {"value": rest}], st.lists(named, max_size=2), scalar)
    return st.one_of(scalar, filters)


DRAWN = {  # by parameter: values; dare and della draw at random, and are compared where they keep everything
    "weight": setting(POSITIVE), "density": setting(NUMBER), "gamma": setting(st.sampled_from((0.0, 0.1, 0.3))),
    "epsilon": st.just(0.1), "lambda": setting(POSITIVE), "t": setting(NUMBER), "scale": setting(NUMBER),
    "max_iter": st.sampled_from((3, 10)), "tol": st.just("1e-5"), "r": st.just(0.3), "alpha": st.just(0.1),
    "select_topk": st.sampled_from((0.3, 0.7, 1.0)),
}  # fmt: skip


@st.composite
def drawn_files(draw):
    """A file of any method: parameters beside the models or in them, with and without the base among them."""
    name = draw(st.sampled_from(sorted(METHODS)))
    method = METHODS[name]
    alone = name in ("slerp", "nearswap", "arcee_fusion")
    models = ["passthrough"] if name == "passthrough" else ["two"] if alone else ["one", "two"]
    models = ["one"] if name == "passthrough" else models
    base = method.base or (name != "passthrough" and draw(st.booleans()))
    if name == "slerp" or (base and draw(st.booleans())):
        models = [*models, "base"]

    def value(key):
        random = name.startswith(("dare", "della")) and key == "density"
        return st.just(1.0) if random else st.sampled_from((1e-3, 1e-2)) if key == "epsilon" and "ram" in name else (
            st.sampled_from((0.05, 0.2)) if name == "nearswap" else DRAWN[key]
        )  # fmt: skip

    shared = {key: draw(value(key)) for key in method.own if key in method.required or draw(st.booleans())}
    shared |= {key: draw(value(key)) for key in method.shared if key in method.required or draw(st.booleans())}
    shared |= {key: draw(st.booleans()) for key in method.flags if key != "normalize_weights" and draw(st.booleans())}
    entries = []
    for model in models:
        own = {key: draw(value(key)) for key in method.own if draw(st.booleans())}
        entries.append({"model": f"{{0}}/{model}"} | ({"parameters": own} if own else {}))
    content = {"merge_method": name, "models": entries} | ({"parameters": shared} if shared else {})
    content |= {"base_model": "{0}/base"} if base else {}
    return content | ({"dtype": "float32"} if draw(st.booleans()) else {})


def placed(content, folder):
    return json.loads(json.dumps(content).replace("{0}", str(folder)))


@settings(
    max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate), derandomize=True,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.function_scoped_fixture),
)  # fmt: skip
@given(content=drawn_files())
def test_drawn_files_do_the_same_merge(models, tmp_path_factory, content):
    compare(tmp_path_factory.mktemp("drawn"), yaml.safe_dump(placed(content, models)))


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
        "named twice": f"{{{ties}, models: [{{model: {one}}}, {{model: {one}}}]}}",
        "ends at 4, but .* has 3 layers": f"{{merge_method: passthrough, "
        f"slices: [{{sources: [{{model: {one}, layer_range: [0, 4]}}]}}]}}",
        "chat_template: 'chatml' has no counterpart": f"{{{ties}, {pair}, chat_template: chatml}}",
    }.items():
        (tmp_path / "m.yaml").write_text(text)
        with pytest.raises(ConfigError, match=match):
            read_mergekit(tmp_path / "m.yaml")
    (tmp_path / "m.yaml").write_text(f"{{{ties}, models: [{{model: {one}}}]}}")
    with pytest.raises(ConfigError, match="weight of one has no value for model"):
        read_mergekit(tmp_path / "m.yaml").open()


def test_a_file_alone_is_enough_on_the_command_line(models, tmp_path, capsys):
    """Nothing but the file: the config's own experts, which are not there, are not asked for."""
    (tmp_path / "m.yaml").write_text(FILES["ties"].format(models))
    arguments = ["--config=configs/merge.py", f"--config.mergekit={tmp_path / 'm.yaml'}"]
    assert main([*arguments, f"--config.workdir={tmp_path / 'run'}"]) == 0
    merge_to_disk(read_mergekit(tmp_path / "m.yaml"), tmp_path / "ours")
    written = tmp_path / "run" / "export" / "model" / "model.safetensors"
    assert written.read_bytes() == (tmp_path / "ours" / "model.safetensors").read_bytes()
    for text, code, said in (("merge_method: [", 2, "YAML"), (FILES["ties"].format("/gone"), 3, "/gone/base")):
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
