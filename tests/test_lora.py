"""LoRA deltas against peft on a tiny Qwen2-VL: modules, logits, gradients, files in both directions."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.errors import ConfigError, DataError, ResourceError
from mmedexpert_jax.merging.merge_recipe import Recipe
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.models import load_model
from mmedexpert_jax.models.load import check_files, load_policy
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.positions import mrope_positions, patch_positions

IMAGE = 197
GRID = (4, 6)  # patches


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    """A random checkpoint as transformers writes it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 199, "bos_token_id": 198,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=IMAGE, vision_start_token_id=195, vision_end_token_id=196, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    directory = tmp_path_factory.mktemp("base")
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(base_dir):
    return load_model(base_dir)


def reference(base_dir):
    return Qwen2VLForConditionalGeneration.from_pretrained(base_dir, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def adapted(base_dir, tmp_path_factory):
    """(a peft model with random deltas, the directory it saved them to)."""
    torch.manual_seed(1)
    settings = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(reference(base_dir), settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    directory = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(directory)
    return model, directory


@pytest.fixture(scope="module")
def inputs():
    """One prompt with an image, as transformers' arguments and as our batch, and a weight for every logit."""
    rng = np.random.default_rng(0)
    tokens = np.array([5, 9, 195, *[IMAGE] * 6, 196, 40, 41, 7], np.int32)
    patches = rng.normal(size=(24, 1176)).astype(np.float32)
    positions, next_position = mrope_positions(tokens, IMAGE, [GRID])
    is_image = tokens == IMAGE
    batch = Batch(
        tokens=tokens[None],
        lengths=np.array([len(tokens)], np.int32),
        positions=positions[None].astype(np.int32),
        next_position=np.array([next_position], np.int32),
        vision_index=np.where(is_image, np.cumsum(is_image) - 1, -1)[None].astype(np.int32),
        patches=patches[None],
        patch_positions=patch_positions(*GRID)[None].astype(np.int32),
        patch_counts=np.array([24], np.int32),
    )
    torch_inputs = {
        "input_ids": torch.tensor(tokens[None], dtype=torch.long),
        "attention_mask": torch.ones(1, len(tokens), dtype=torch.long),
        "pixel_values": torch.tensor(patches),
        "image_grid_thw": torch.tensor([[1, *GRID]]),
        "mm_token_type_ids": torch.tensor(is_image[None].astype(np.int64)),
    }
    return torch_inputs, batch, rng.normal(size=(1, len(tokens), 200)).astype(np.float32)


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_all_linear_are_the_modules_and_shapes_of_peft(adapted, base):
    saved = {name: t.shape for name, t in load_file(adapted[1] / "adapter_model.safetensors").items()}
    lora = lora_module.init(jax.random.key(0), base[1], rank=4)
    own = {
        f"base_model.model.{lora_module.memory_name(module)}.lora_{letter.upper()}.weight": factor.shape
        for module, factors in lora.factors.items()
        for letter, factor in factors.items()
    }
    assert own == saved
    text = lora_module.init(jax.random.key(0), base[1], rank=4, targets="text")
    assert set(text.factors) == {name for name in lora.factors if name.startswith("model.layers.")}


def test_init_is_that_of_peft(base):
    lora = lora_module.init(jax.random.key(0), base[1], rank=64)
    draws = []
    for factors in lora.factors.values():
        assert factors["a"].dtype == factors["b"].dtype == jnp.float32 and not factors["b"].any()
        draws.append(np.ravel(factors["a"]) * factors["a"].shape[1] ** 0.5)
    draws = np.concatenate(draws)
    assert np.abs(draws).max() <= 1 and abs(draws.mean()) < 0.02 and abs(draws.std() - 3**-0.5) < 0.01


def test_logits_and_gradients_equal_peft(adapted, base, inputs):
    model, params = base
    torch_inputs, batch, weights = inputs
    expected = adapted[0](**torch_inputs).logits
    (expected * torch.tensor(weights)).sum().backward()
    lora = lora_module.load_peft(adapted[1], params)

    def loss(lora):
        logits = model.logits(params, batch, lora)
        return jnp.sum(logits * weights), logits

    with jax.default_matmul_precision("highest"):
        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(lora)
    assert relative(logits, expected.detach()) < 1e-5
    gradients = {name: p.grad for name, p in adapted[0].named_parameters() if p.grad is not None}
    assert len(gradients) == 2 * len(gradient.factors)
    for module, factors in gradient.factors.items():
        for letter, found in factors.items():
            name = f"base_model.model.{lora_module.memory_name(module)}.lora_{letter.upper()}.default.weight"
            assert relative(found, gradients[name]) < 1e-5, name


def test_peft_loads_what_we_save(adapted, base, base_dir, inputs, tmp_path):
    lora = lora_module.load_peft(adapted[1], base[1])
    lora_module.save_peft(tmp_path / "own", lora, "first")
    lora_module.save_peft(tmp_path / "own", lora, str(base_dir))  # in the place of the first
    model = PeftModel.from_pretrained(reference(base_dir), tmp_path / "own")
    with torch.no_grad():
        assert torch.equal(model(**inputs[0]).logits, adapted[0](**inputs[0]).logits)
    again = lora_module.load_peft(tmp_path / "own", base[1])
    jax.tree.map(np.testing.assert_array_equal, lora, again)
    assert json.loads((tmp_path / "own" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        base_dir
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


@pytest.mark.parametrize(
    ("base_name", "revision"), [("owner/name@v1", "v1"), ("owner/name", None), ("/no/folder", None)]
)
def test_a_base_on_the_hub_keeps_its_revision_as_peft_has_it(base, tmp_path, base_name, revision):
    lora = lora_module.init(jax.random.key(0), base[1], 2, 4, "text")
    lora_module.save_peft(tmp_path / "own", lora, base_name)
    theirs = LoraConfig.from_pretrained(tmp_path / "own")
    assert (theirs.base_model_name_or_path, theirs.revision) == (base_name.partition("@")[0], revision)
    file = tmp_path / "own" / "adapter_config.json"
    assert lora_module.base_of(json.loads(file.read_text())) == base_name
    lora_module.load_peft(tmp_path / "own", base[1])


def test_a_good_adapter_outlives_a_save_that_fails_at_its_end(base, tmp_path, monkeypatch):
    lora = lora_module.init(jax.random.key(0), base[1], 2, 4, "text")
    lora_module.save_peft(tmp_path / "own", lora, "first")

    def refuse(path, target):
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="own: the adapter cannot be written"):
        patch.setattr(Path, "rename", refuse)
        lora_module.save_peft(tmp_path / "own", lora_module.init(jax.random.key(1), base[1], 2, 4, "text"), "first")
    kept = lora_module.load_peft(tmp_path / "own", base[1])
    for one, two in zip(jax.tree.leaves(lora), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_part_of_the_modules_is_loaded_as_a_part(base, base_dir, tmp_path):
    lora_module.save_peft(tmp_path / "text", lora_module.init(jax.random.key(0), base[1], 2, 4, "text"), str(base_dir))
    model = PeftModel.from_pretrained(reference(base_dir), tmp_path / "text")
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(adapted) == 7 and not any("visual" in name for name in adapted)


def test_fold_is_the_merge_of_peft(adapted, base, base_dir):
    params = base[1]
    folded = lora_module.fold(params, lora_module.load_peft(adapted[1], params))
    merged = PeftModel.from_pretrained(reference(base_dir), adapted[1]).merge_and_unload().state_dict()
    found = folded["model"]["layers"]["0"]["self_attn"]["q_proj"]["weight"]
    expected = merged["model.language_model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    found = folded["visual"]["merger"]["mlp"]["2"]["weight"]
    np.testing.assert_allclose(found, merged["model.visual.merger.mlp.2.weight"], atol=1e-6)
    assert folded["model"]["norm"]["weight"] is params["model"]["norm"]["weight"]


def test_fold_adds_in_float32_and_keeps_the_dtype(base):
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), base[1])
    lora = jax.tree.map(lambda f: f + 0.1, lora_module.init(jax.random.key(0), params, 2, 4, "text"))
    path = "model.layers.0.mlp.down_proj"
    weight = params["model"]["layers"]["0"]["mlp"]["down_proj"]["weight"]
    found = lora_module.fold(params, lora)["model"]["layers"]["0"]["mlp"]["down_proj"]["weight"]
    expected = (weight.astype(jnp.float32) + 2.0 * lora.factors[path]["b"] @ lora.factors[path]["a"]).astype(
        jnp.bfloat16
    )
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(lora_module.delta(lora, path), 2.0 * lora.factors[path]["b"] @ lora.factors[path]["a"])


def test_names_of_older_transformers_are_read(adapted, base, tmp_path):
    shutil.copytree(adapted[1], tmp_path / "old")
    file = tmp_path / "old" / "adapter_model.safetensors"
    names = {
        name: name.replace("model.language_model.", "model.").replace("model.model.visual.", "model.visual.")
        for name in load_file(file)
    }
    save_file({names[name]: tensor for name, tensor in load_file(file).items()}, file)
    jax.tree.map(
        np.testing.assert_array_equal,
        lora_module.load_peft(tmp_path / "old", base[1]),
        lora_module.load_peft(adapted[1], base[1]),
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True), ("bias", "all"), ("peft_type", "LOHA"), ("init_lora_weights", "pissa"),
        ("alora_invocation_tokens", [1, 2]), ("a_field_of_a_later_peft", True), ("layer_replication", [[0, 1]]),
        ("r", 0), ("r", 4.0), ("r", True), ("lora_alpha", float("nan")), ("lora_alpha", "32"), ("use_rslora", "false"),
        ("rank_pattern", [8]), ("rank_pattern", {"q_proj": -1}), ("alpha_pattern", {"q_proj": float("inf")}),
    ],
)  # fmt: skip
def test_other_adapters_are_refused_by_name(adapted, base, tmp_path, key, value):
    shutil.copytree(adapted[1], tmp_path / "other")
    file = tmp_path / "other" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(DataError, match=rf"{key}(=|: |\.q_proj: )"):
        lora_module.load_peft(tmp_path / "other", base[1])


@pytest.mark.parametrize(
    "name", ["non_lora_trainables.bin", "non_lora_state_dict.bin", "mm_projector.bin", "vit.safetensors"]
)
def test_weights_beside_an_adapter_are_not_passed_over(name, adapted, base, base_dir, tmp_path):
    """LLaVA's own trainer writes its projector into such a file, and one without a tensor where it trained none."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapted[1], folder)
    whole = {"visual.merger.mlp.0.weight": torch.ones(4, 4)}
    if name.endswith(".bin"):
        torch.save({}, folder / name)
        lora_module.load_peft(folder, base[1])
        torch.save(whole, folder / name)
    else:
        save_file({key: tensor.numpy() for key, tensor in whole.items()}, folder / name)
    for read in (load_model, check_files, lambda path: lora_module.load_peft(path, base[1])):
        with pytest.raises(DataError, match=rf"{name}: holds weights that were trained whole beside the adapter"):
            read(folder)


KINDS = {
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 8, r"layers\.0\.mlp\..*": 2},
        "alpha_pattern": {"visual.*fc1": 3, "q_proj": 40},
        "use_rslora": True,
    },
    "everywhere": {"target_modules": ["q_proj", "lm_head", "embed_tokens", "patch_embed.proj"]},
    "saved": {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["lm_head", "embed_tokens"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_kind_that_is_linear_give_the_logits_of_peft(kind, base_dir, base, inputs, tmp_path):
    torch_inputs, batch, _ = inputs
    torch.manual_seed(2)
    model = get_peft_model(reference(base_dir), LoraConfig(r=4, lora_alpha=12, **KINDS[kind])).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    with torch.no_grad():
        expected = model(**torch_inputs).logits.numpy()
    model.save_pretrained(tmp_path / "adapter")
    params = lora_module.with_saved_modules(tmp_path / "adapter", base[1])
    lora = lora_module.load_peft(tmp_path / "adapter", params)
    with jax.default_matmul_precision("highest"):
        plain = base[0].logits(base[1], batch)
        assert relative(plain, expected) > 0.05
        assert relative(base[0].logits(params, batch, lora), expected) < 2e-6
        assert relative(base[0].logits(lora_module.fold(params, lora), batch), expected) < 2e-6
    if kind == "saved":
        with pytest.raises(DataError, match="modules_to_save"):
            lora_module.load_peft(tmp_path / "adapter", base[1])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), base[1])  # as merging reads it
        with pytest.raises(DataError, match=r"modules_to_save.*merge it with peft first"):
            lora_module.load_peft(tmp_path / "adapter", shapes)
        return
    lora_module.save_peft(tmp_path / "again", lora, str(base_dir))
    again = PeftModel.from_pretrained(reference(base_dir), tmp_path / "again")
    with torch.no_grad():
        assert relative(again(**torch_inputs).logits.numpy(), expected) < 2e-6


@pytest.mark.parametrize(
    "lower", [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}]
)
def test_an_adapter_above_another_that_holds_a_module_whole_has_it_of_its_own(lower, base_dir, inputs, tmp_path):
    """As in peft, whose second adapter is trained over the first one merged: what was below of that module is gone."""
    torch_inputs, batch, _ = inputs
    torch.manual_seed(3)
    model = reference(base_dir)
    upper = {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["lm_head"]}
    for name, settings in (("lower", lower), ("upper", upper)):
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, **settings)).eval()
        for key, parameter in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                torch.nn.init.normal_(parameter, 0.0, 0.2)
        with torch.no_grad():
            expected = model(**torch_inputs).logits.numpy()
        model.save_pretrained(tmp_path / name)
        model = model.merge_and_unload()
    file = tmp_path / "upper" / "adapter_config.json"
    content = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "lower")}
    file.write_text(json.dumps(content))
    ours, params, lora = load_policy(tmp_path / "upper")
    with jax.default_matmul_precision("highest"):
        assert relative(ours.logits(params, batch, lora), expected) < 2e-6
    # a merge of that one expert is that model
    experts = {"upper": str(tmp_path / "upper")}
    alone = Recipe(str(base_dir), experts, Parameters("task_arithmetic", ("upper",)), (), "float32")
    head = np.asarray(params["lm_head"]["weight"])
    below = np.asarray(load_policy(base_dir)[1]["lm_head"]["weight"])
    update = np.asarray(alone.open().update("lm_head.weight", 0, head.size)).reshape(head.shape)
    np.testing.assert_allclose(below + update, head, atol=1e-6)


@pytest.mark.parametrize("values", ["nan", "int8", "bool", "none", "float8_e4m3fn"])
def test_factors_that_are_no_finite_floats_are_refused(values, adapted, base, tmp_path):
    shutil.copytree(adapted[1], tmp_path / "bad")
    file = tmp_path / "bad" / "adapter_model.safetensors"
    tensors = load_file(file)
    some = next(iter(tensors))
    if values == "nan":
        tensors[some] = np.full_like(tensors[some], np.nan)
    elif values == "none":
        tensors = {}
    else:
        tensors[some] = tensors[some].astype(jnp.dtype(values))
    save_file(tensors, file)
    with pytest.raises(DataError, match=r"adapter_model\.safetensors: "):
        lora_module.load_peft(file.parent, base[1])


def test_factors_that_do_not_fit_are_named(adapted, base, tmp_path):
    file = tmp_path / "bad" / "adapter_model.safetensors"
    shutil.copytree(adapted[1], file.parent)
    tensors = load_file(file)
    some = next(name for name in tensors if "q_proj.lora_A" in name)
    wrong = {
        "q_proj: A and B have shapes": tensors | {some: np.zeros((4, 31), np.float32)},
        "r=4": tensors | {some: np.zeros((3, 32), np.float32)},
        "lora_B, both": {name: tensor for name, tensor in tensors.items() if name != some},
        "model.layers.9.mlp is not": tensors | {
            f"base_model.model.model.layers.9.mlp.lora_{x}.weight": np.zeros((4, 4), np.float32) for x in "AB"
        },
        "is not a LoRA factor": tensors | {"base_model.model.lm_head.weight": np.zeros((4, 4), np.float32)},
        "leaves the adapter's name out": {name.replace(".weight", ".default.weight"): x for name, x in tensors.items()},
    }  # fmt: skip
    for message, content in wrong.items():
        save_file(content, file)
        with pytest.raises(DataError, match=message) as caught:
            lora_module.load_peft(file.parent, base[1])
        assert str(file.parent) in str(caught.value)
    save_file(tensors | {some: tensors[some].astype(jnp.dtype("float8_e4m3fn"))}, file)
    with pytest.raises(DataError, match=r"holds tensors of '?float8_e4m3fn'?, which is not read"):
        lora_module.load_peft(file.parent, base[1])
    file.write_bytes(b"half a file")
    with pytest.raises(DataError, match="cannot be read"):
        lora_module.load_peft(file.parent, base[1])
    with pytest.raises(DataError, match=r"adapter_config\.json"):
        lora_module.load_peft(tmp_path, base[1])


def test_modules_that_were_saved_whole_must_be_there(adapted, base, tmp_path):
    """adapter_config.json says what was trained; a name that the base has no module of says nothing (peft's score)."""
    folder = Path(shutil.copytree(adapted[1], tmp_path / "half"))
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    for named, match in ((["lm_head"], "lacks lm_head, which .* was trained whole"), ("lm_head", "is no list")):
        file.write_text(json.dumps(content | {"modules_to_save": named}))
        for read in (lora_module.load_peft, lora_module.with_saved_modules):
            with pytest.raises(DataError, match=match):
                read(folder, base[1])
    file.write_text(json.dumps(content | {"modules_to_save": ["classifier", "score"]}))
    assert lora_module.load_peft(folder, base[1]).rank == 4


def test_a_tied_base_takes_an_embedding_only_where_its_head_is_that_too(tmp_path):
    """In peft the head stays the base's where the embedding alone was saved, and the other way round."""
    q_proj, rows = {"weight": jnp.ones((4, 4))}, jnp.arange(12.0).reshape(3, 4)
    params = {"model": {"embed_tokens": {"weight": rows}, "layers": {"0": {"self_attn": {"q_proj": q_proj}}}}}
    lora_module.save_peft(tmp_path, lora_module.init(jax.random.key(0), params, 2, targets="text"), "base")
    file = tmp_path / "adapter_model.safetensors"
    factors, old, new = load_file(file), np.asarray(rows), np.asarray(rows) + 1
    names = {"embedding": "base_model.model.model.language_model.embed_tokens.weight"}
    names["head"] = "base_model.model.lm_head.weight"
    same = [({"embedding": new, "head": new}, new), ({"embedding": old}, old), ({"head": old}, old), ({}, old)]
    for held, expected in same:
        save_file(factors | {names[one]: tensor for one, tensor in held.items()}, file)
        found = lora_module.with_saved_modules(tmp_path, params)
        np.testing.assert_array_equal(found["model"]["embed_tokens"]["weight"], expected)
        assert "lm_head" not in found and lora_module.load_peft(tmp_path, found).rank == 2
    for held in ({"embedding": new}, {"head": new}, {"embedding": new, "head": old}):
        save_file(factors | {names[one]: tensor for one, tensor in held.items()}, file)
        with pytest.raises(DataError, match="of its own, and the base ties the two"):
            lora_module.with_saved_modules(tmp_path, params)


def test_one_module_under_two_names_is_refused(adapted, base, tmp_path):
    folder = Path(shutil.copytree(adapted[1], tmp_path / "double"))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    old = {name.replace("language_model.", ""): 2 * tensor for name, tensor in tensors.items() if "q_proj" in name}
    save_file(tensors | old, file)
    with pytest.raises(DataError, match=r"holds model\.\S+q_proj and model\.\S+q_proj, which are one module"):
        lora_module.load_peft(folder, base[1])


TARGETED = {
    "leaves": {"target_modules": ["q_proj", "down_proj", "fc1", "proj"]},
    "expression": {"target_modules": r".*language_model.*\.(q_proj|up_proj)"},
    "all": {"target_modules": "all-linear"},
    "excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.0\.self_attn\.v_proj"},
    "layers": {"target_modules": ["q_proj", "qkv"], "layers_to_transform": [0], "layers_pattern": ["layers"]},
    "numbers": {"target_modules": ["q_proj", "qkv"], "layers_to_transform": 0},
    "saved": {"target_modules": ["q_proj", "lm_head", "mlp.0"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("kind", TARGETED)
def test_factors_that_its_own_config_misses_are_named(kind, base_dir, base, tmp_path, caplog):
    """Each module that peft gives factors to must have them, and none that it does not."""
    get_peft_model(reference(base_dir), LoraConfig(r=2, **TARGETED[kind])).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    params = lora_module.with_saved_modules(tmp_path, base[1])
    assert lora_module.load_peft(tmp_path, params).factors and not caplog.messages
    modules = {name.partition(".lora_")[0] for name in tensors if ".lora_" in name}
    for module in modules:
        save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(f"{module}.")}, file)
        own = re.escape(module.removeprefix("base_model.model."))
        if sum(other.split(".")[3] == module.split(".")[3] for other in modules) > 1:
            with pytest.raises(DataError, match=rf"{file}: lacks the factors of {own}, which .*target_modules"):
                lora_module.load_peft(tmp_path, params)


def test_a_part_without_factors_and_factors_without_a_target_are_lines(adapted, base, tmp_path, caplog):
    folder = Path(shutil.copytree(adapted[1], tmp_path / "cut"))
    weights, file = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, content = load_file(weights), json.loads(file.read_text())
    save_file({name: tensor for name, tensor in tensors.items() if "visual" not in name}, weights)
    assert all(module.startswith("model.") for module in lora_module.load_peft(folder, base[1]).factors)
    said = f"{weights}: has no factors of visual, which target_modules names too: it stays the base's"
    assert caplog.messages == [said]
    save_file(tensors, weights)
    file.write_text(json.dumps(content | {"target_modules": ["q_proj", "qkv"]}))
    lora_module.load_peft(folder, base[1])
    assert "target_modules does not name model.language_model.layers.0.mlp.down_proj, " in caplog.messages[1]
    for value in (5, "(q_proj", {"q_proj": 4}, [["q_proj"]]):
        file.write_text(json.dumps(content | {"target_modules": value}))
        with pytest.raises(DataError, match=r"adapter_config\.json: target_modules=.* is no list and no regular expr"):
            lora_module.load_peft(folder, base[1])


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "base_model.model."])
def test_a_wrapper_in_the_names_is_told_from_another_base(wrapper, adapted, base, tmp_path):
    folder = Path(shutil.copytree(adapted[1], tmp_path / "wrapped"))
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("model.model.", f"model.{wrapper}model."): x for name, x in load_file(file).items()}, file)
    with pytest.raises(DataError, match=r"the name of a wrapper before the model's; save .*unwrap_model"):
        lora_module.load_peft(folder, base[1])


def test_bad_settings_are_refused(base):
    with pytest.raises(ConfigError, match="targets"):
        lora_module.init(jax.random.key(0), base[1], targets="vision")
    with pytest.raises(ConfigError, match="rank"):
        lora_module.init(jax.random.key(0), base[1], rank=0)
    with pytest.raises(DataError, match="no module lm_head"):
        lora_module.delta(lora_module.init(jax.random.key(0), base[1]), "lm_head")
