"""Directories in, directories out: names, dtypes, shards, adapters, runs, and what is wrong with broken ones."""

import itertools
import json
import math
import os
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import load_file, save_file

from mmedexpert_jax import lora
from mmedexpert_jax.errors import ConfigError, DataError, ResourceError
from mmedexpert_jax.models import load_model, load_processor, random, save_pretrained
from mmedexpert_jax.models.config import PUBLISHED, ModelConfig, TextConfig, VisionConfig
from mmedexpert_jax.models.hub_card import adapter_card, training_of
from mmedexpert_jax.models.load import chosen, load_architecture
from mmedexpert_jax.models.locate import MINI, origin
from mmedexpert_jax.models.random import random_tensors
from mmedexpert_jax.models.save import check_repository
from mmedexpert_jax.models.tree import flatten, nest
from mmedexpert_jax.runtime.mesh import partition

PROMPTS = [[3, (4, 6), 2], [5]]


def same(left: dict, right: dict) -> bool:
    left, right = flatten(left), flatten(right)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy of a checkpoint whose tensors and config a function may change."""

    def build(change_tensors=None, change_config=None):
        directory = tmp_path / "broken"
        shutil.copytree(checkpoint("qwen2_tied").directory, directory)
        if change_tensors:
            tensors = load_file(directory / "model.safetensors")
            change_tensors(tensors)
            save_file(tensors, directory / "model.safetensors")
        if change_config:
            config = json.loads((directory / "config.json").read_text())
            config.update(change_config)
            (directory / "config.json").write_text(json.dumps(config))
        return directory

    return build


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen2_5_untied"])
def test_saved_directory_gives_the_same_logits_in_transformers(name, checkpoint, prompts, tmp_path):
    case = checkpoint(name)
    save_pretrained(tmp_path / "out", case.model, case.params, max_shard_bytes=40_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    reloaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    inputs = prompts(case.reference, PROMPTS).inputs
    with torch.no_grad():
        assert torch.equal(reloaded(**inputs).logits, case.reference(**inputs).logits)
    model, params = load_model(tmp_path / "out")
    assert model == case.model and same(params, case.params)


def test_written_keys_are_those_of_the_checkpoint(checkpoint, tmp_path):
    case = checkpoint("qwen2_tied")
    save_pretrained(tmp_path / "out", case.model, case.params)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == load_file(case.directory / "model.safetensors").keys()


def test_names_of_transformers_memory_layout_are_accepted(checkpoint, broken):
    def rename(tensors):
        for name in list(tensors):
            new = "model." + name if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)
            tensors[new] = tensors.pop(name)

    assert same(load_model(broken(rename))[1], checkpoint("qwen2_tied").params)


def test_bfloat16_is_kept_and_cast_on_request(checkpoint, tmp_path):
    case = checkpoint("qwen2_tied")
    half = jax.tree.map(lambda value: np.asarray(value).astype(jnp.bfloat16), case.params)
    save_pretrained(tmp_path / "out", case.model, half)
    assert {value.dtype.name for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {"bfloat16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert same(load_model(tmp_path / "out", dtype="bfloat16")[1], half)
    loaded = load_model(tmp_path / "out")[1]  # float32 on CPU
    assert same(loaded, jax.tree.map(lambda value: value.astype(np.float32), half))
    assert flatten(loaded)["model.norm.weight"].dtype == jnp.float32


def test_weights_that_overflow_their_dtype_are_refused_with_one_that_holds_them(checkpoint, tmp_path):
    case = checkpoint("qwen2_tied")
    large = jax.tree.map(lambda value: np.asarray(value, np.float32) * np.float32(1e7), case.params)
    for dtype in (np.float16, np.float32):
        cast = jax.tree.map(lambda value, dtype=dtype: value.astype(dtype), large)
        if dtype is np.float16:
            with pytest.raises(ConfigError, match="not finite in float16; bfloat16 and float32 hold larger ones"):
                save_pretrained(tmp_path / "out", case.model, cast)
            assert not any(tmp_path.iterdir())
        else:
            save_pretrained(tmp_path / "out", case.model, cast)


def test_a_cast_that_overflows_says_nothing_by_itself(broken):
    """NumPy's warning would stand before the refusal of whoever writes the weights."""

    def enlarge(tensors):
        tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], 1e30)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = load_model(broken(enlarge), dtype="float16")[1]
    assert np.isinf(np.asarray(params["model"]["norm"]["weight"])).all()


def test_a_repository_needs_its_owner():
    for name in ("name", "owner/name/more", "owner/na me"):
        with pytest.raises(ConfigError, match=r"config\.push: .*; give owner/name"):
            check_repository(name)
    check_repository("owner/name")


def test_numpy_parameters_are_accepted(checkpoint, prompts, tmp_path):
    case = checkpoint("qwen2_tied")
    host = jax.tree.map(np.asarray, case.params)
    save_pretrained(tmp_path / "out", case.model, host)
    assert same(load_model(tmp_path / "out")[1], case.params)


def test_integer_weights_are_refused(broken):
    def quantise(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)

    with pytest.raises(DataError, match=r"model\.norm\.weight has dtype I8"):
        load_model(broken(quantise))


def test_random_sizes_are_seeded_and_unknown_ones_refused(monkeypatch):
    config = ModelConfig(
        TextConfig(32, 32, 32, num_layers=1, num_heads=4, num_kv_heads=4, mrope_section=(1, 1, 2)),
        VisionConfig("qwen2_vl", depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=32),
    )
    monkeypatch.setitem(PUBLISHED, "tiny", config)
    model, params = load_model("random:tiny", seed=3)
    assert model.config == config
    assert same(params, load_model("random:tiny", seed=3)[1]) and not same(params, load_model("random:tiny", seed=4)[1])
    weight = flatten(params)["visual.merger.mlp.0.weight"]
    assert weight.dtype == jnp.float32 and abs(float(weight.std()) - 0.02) < 1e-3
    with pytest.raises(DataError, match="qwen2_vl_2b"):
        load_model("random:qwen2_vl_72b")


def test_a_random_tensor_is_drawn_once_for_the_parts_of_all_devices(monkeypatch):
    drawn = []
    monkeypatch.setattr(random, "draw", lambda name, shape, seed: drawn.append(name) or np.ones(shape, np.float32))
    tensors = random_tensors(PUBLISHED["qwen2_vl_2b"], seed=0)
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    for name in names:
        rows = tensors[name].shape[0] // 4
        parts = [tensors[name].read((slice(rows * part, rows * (part + 1)),)) for part in range(4)]
        assert np.concatenate(parts).shape == tensors[name].shape
    assert drawn == names


def test_missing_extra_and_misshapen_tensors_are_all_named(broken):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.9.bogus"] = np.zeros(3, np.float32)
        tensors["visual.blocks.0.attn.proj.bias"] = np.zeros(5, np.float32)

    with pytest.raises(DataError) as caught:
        load_model(broken(change))
    message = str(caught.value)
    assert "\n" not in message
    assert "missing: model.norm.weight;" in message and "unexpected: model.layers.9.bogus;" in message
    assert "visual.blocks.0.attn.proj.bias (5,) instead of (32,)" in message


def test_tied_head_in_the_file_must_be_the_embedding(broken, checkpoint):
    def copy(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    directory = broken(copy)
    assert same(load_model(directory)[1], checkpoint("qwen2_tied").params)
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"][0] += 1
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(DataError, match="tie_word_embeddings"):
        load_model(directory)


def test_a_tied_file_may_hold_the_head_alone(broken, checkpoint):
    """safetensors' own save_model keeps one of two names of a shared tensor."""

    def rename(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    assert same(load_model(broken(rename))[1], checkpoint("qwen2_tied").params)


def test_one_file_beside_shards_is_refused(broken):
    """transformers would take the single file, an older reader the shards."""
    directory = broken()
    index = {
        "weight_map": dict.fromkeys(load_file(directory / "model.safetensors"), "model-00001-of-00001.safetensors")
    }
    shutil.copy(directory / "model.safetensors", directory / "model-00001-of-00001.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"both model\.safetensors and shards"):
        load_model(directory)
    (directory / "model.safetensors").unlink()
    load_model(directory)
    index["weight_map"]["model.norm.weight"] = "../model.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="shard's name"):
        load_model(directory)


def test_an_index_of_the_one_file_that_there_is_says_nothing_else(broken):
    """As mlx-lm and some converters write it always."""
    directory = broken()
    expected = load_model(directory)[1]
    index = {"weight_map": dict.fromkeys(load_file(directory / "model.safetensors"), "model.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load_model(directory)[1], expected)


def test_shards_of_two_versions_are_refused(broken):
    """An index says whose a tensor is; transformers takes that of the last shard that has one of its name."""
    directory = broken()
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    for factor in (1, 2):
        for file, own in shards.items():
            again = {names[0]: factor * tensors[names[0]]} if file == "b.safetensors" else {}
            save_file({name: tensors[name] for name in own} | again, directory / file)
        if factor == 1:
            assert load_model(directory)[1]["model"]["norm"]["weight"].shape == tensors["model.norm.weight"].shape
    with pytest.raises(
        DataError, match=rf"b\.safetensors: holds {names[0]} too, which the index puts into a\.safetens"
    ):
        load_model(directory)


def test_a_quantization_config_left_over_in_a_16_bit_checkpoint_is_ignored(broken, checkpoint):
    directory = broken(change_config={"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    assert same(load_model(directory)[1], checkpoint("qwen2_tied").params)


def test_what_is_not_a_whole_model_directory_is_one_line(broken, tmp_path):
    directory = broken()
    (directory / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:-100])
    cases = [(directory, "model.safetensors")]
    (tmp_path / "empty").mkdir()
    cases.append((tmp_path / "empty", "config.json"))
    (tmp_path / "weightless").mkdir()
    shutil.copy(directory / "config.json", tmp_path / "weightless")
    cases.append((tmp_path / "weightless", "no weights"))
    (tmp_path / "shardless").mkdir()
    shutil.copy(directory / "config.json", tmp_path / "shardless")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "shardless" / "model.safetensors.index.json").write_text(json.dumps(index))
    cases.append((tmp_path / "shardless", "model-00001-of-00002"))
    cases.append((tmp_path / "absent", "no such model directory"))
    cases.append((directory / "config.json", "is a file"))
    for path, named in cases:
        with pytest.raises(DataError, match=named) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)


def test_a_gguf_file_beside_a_checkpoint_is_not_the_model(broken, checkpoint):
    """Repositories hold several formats: config.json is that of the safetensors."""
    directory = broken()
    (directory / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert same(load_model(directory)[1], checkpoint("qwen2_tied").params)


def test_a_folder_with_another_gguf_is_refused(tmp_path):
    (tmp_path / "Llama-3-Q4_K_M.gguf").write_bytes(b"GGUF")
    for load in (load_model, load_processor):
        with pytest.raises(DataError, match="GGUF is not read; take the 16-bit safetensors"):
            load(tmp_path)


def test_a_hub_id_brings_the_model_and_no_other_weights_of_its_repository(checkpoint, monkeypatch):
    asked = {}
    folder = checkpoint("qwen2_tied").directory
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.update(how) or str(folder))
    load_architecture("owner/name")
    names = ["config.json", "model-00001-of-00002.safetensors", "checkpoint-500/model.safetensors"]
    names += ["original/model.safetensors", "consolidated.safetensors", "global_step_100/actor/model.safetensors"]
    how = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(names, **how)) == names[:2]


def test_tensors_that_zero3_left_empty_are_told(broken):
    directory = broken()
    file = directory / "model.safetensors"
    save_file({name: np.zeros(0, np.float32) for name in load_file(file)}, file)
    with pytest.raises(DataError, match=r"are empty, as DeepSpeed's ZeRO-3 .*zero_to_fp32\.py"):
        load_model(directory)


def test_weights_under_another_name_are_named(broken):
    directory, file = broken(), "model.safetensors"
    for name, fix in {
        "model.fp16.safetensors": r"rename model\.fp16\.safetensors to model\.safetensors",
        "model-00001-of-00002.safetensors": r"model-00001-of-00002\.safetensors are shards without it: download",
    }.items():
        file = (directory / file).rename(directory / name).name
        with pytest.raises(DataError, match=f"no weights; .*{fix}"):
            load_model(directory)


def test_pointers_of_git_lfs_are_named(broken):
    directory = broken()
    for name in ("model.safetensors", "config.json"):
        (directory / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(DataError, match=f"{name}: a Git LFS pointer in the place of the file; run git lfs pull"):
            load_model(directory)
    shutil.copytree(MINI, directory, dirs_exist_ok=True)
    (directory / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"tokenizer\.json: a Git LFS pointer"):
        load_processor(directory)


def test_one_tensor_under_two_names_must_be_one(broken, checkpoint):
    """A file that holds the names of transformers 4 beside those of 5."""
    file = (directory := broken()) / "model.safetensors"
    tensors = load_file(file)
    norm = tensors["model.norm.weight"]
    save_file(tensors | {"model.language_model.norm.weight": norm.copy()}, file)
    assert same(load_model(directory)[1], checkpoint("qwen2_tied").params)
    save_file(tensors | {"model.language_model.norm.weight": 2 * norm}, file)
    with pytest.raises(DataError, match=r"norm\.weight and model\.\S*norm\.weight are one tensor and differ"):
        load_model(directory)


@pytest.mark.parametrize(("key", "value"), [("patch_size", 16), ("temporal_patch_size", 1)])
def test_image_settings_of_another_tower_are_refused(key, value, tmp_path):
    directory = shutil.copytree(MINI, tmp_path / "other")
    settings = json.loads((MINI / "preprocessor_config.json").read_text()) | {key: value}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r"preprocessor_config\.json makes patches of \d+ values, .* reads 1176 "):
        load_processor(directory)


def test_unsupported_architecture_names_the_file(broken):
    directory = broken(change_config={"model_type": "mllama"})
    with pytest.raises(DataError, match=r"config\.json.*mllama") as caught:
        load_model(directory)
    assert str(directory) in str(caught.value)


def test_adapter_and_run_directories_are_folded_into_their_base(checkpoint, tmp_path):
    case = checkpoint("qwen2_tied")
    delta = lora.init(jax.random.key(0), case.params, rank=2, alpha=4, targets="text")
    delta = jax.tree.map(lambda value: np.asarray(value) + 0.1, delta)
    lora.save_peft(tmp_path / "run" / "export" / "adapter", delta, base=str(case.directory))
    expected = lora.fold(case.params, delta)
    model, params = load_model(tmp_path / "run" / "export" / "adapter")
    assert model == case.model and same(params, expected)
    assert same(load_model(tmp_path / "run")[1], expected)
    lora.save_peft(tmp_path / "second", delta, base=str(tmp_path / "run"))  # an adapter over an adapter
    both = load_model(tmp_path / "second")[1]  # the sum of the deltas is rounded once, where folds in turn round twice
    assert same(both, lora.fold(case.params, lora.stack([delta, delta])))
    in_turn = flatten(lora.fold(expected, delta))
    assert all(np.allclose(leaf, in_turn[name], rtol=0, atol=1e-6) for name, leaf in flatten(both).items())
    save_pretrained(tmp_path / "merged" / "export" / "model", case.model, expected)
    assert same(load_model(tmp_path / "merged")[1], expected)
    lora.save_peft(tmp_path / "circle", delta, base=str(tmp_path / "circle"))
    with pytest.raises(DataError, match="leads back"):
        load_model(tmp_path / "circle")


def test_the_base_of_an_adapter_that_names_another_machines_can_be_given(checkpoint, tmp_path):
    case = checkpoint("qwen2_tied")
    delta = lora.init(jax.random.key(0), case.params, rank=2)
    lora.save_peft(tmp_path / "adapter", delta, base="/home/else/model")
    with pytest.raises(DataError, match=r"adapter_config\.json names it as its base.*--config\.model\.base="):
        load_model(tmp_path / "adapter")
    with chosen(base=str(case.directory)):
        assert same(load_model(tmp_path / "adapter")[1], case.params)
        assert origin(tmp_path / "adapter") == str(case.directory)
    with pytest.raises(DataError, match="names it as its base"):
        load_model(tmp_path / "adapter")


def test_an_adapters_own_template_and_image_settings_come_before_its_bases(tmp_path):
    params = load_model("mini")[1]
    lora.save_peft(tmp_path, lora.init(jax.random.key(0), params, rank=2), base="mini")
    usual = load_processor(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    settings = json.loads((MINI / "preprocessor_config.json").read_text()) | {"max_pixels": 50176, "size": None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    own = load_processor(tmp_path)
    assert own.tokenizer.chat_template != usual.tokenizer.chat_template
    assert own.image_config.max_pixels == 50176
    with chosen(max_pixels=100_352):
        assert load_processor(tmp_path).image_config.max_pixels == 100_352


def test_a_tokenizer_beyond_the_embedding_is_refused(tmp_path):
    directory = shutil.copytree(MINI, tmp_path / "added")
    tokenizer = load_processor("mini").tokenizer
    tokenizer.add_tokens([f"<new{number}>" for number in range(9)])
    tokenizer.save_pretrained(directory)
    with pytest.raises(DataError, match="resize the embedding"):
        load_processor(directory)


def test_answers_that_no_token_would_end_are_a_line(tmp_path, caplog):
    """A base model ends at <|endoftext|> alone, and an assistant's turn, as it is trained, at <|im_end|>."""
    directory = shutil.copytree(MINI, tmp_path / "base")
    load_processor(directory)
    assert not caplog.messages
    vocabulary = load_processor("mini").tokenizer.get_vocab()
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": vocabulary["<|endoftext|>"]}))
    for _ in range(2):
        load_processor(directory)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{directory}: <|im_end|> ({vocabulary['<|im_end|>']}) closes an answer and")


def test_a_template_that_opens_the_reasoning_is_a_line(tmp_path, caplog):
    """Qwen3-VL-Thinking's and R1's end a prompt with <think>; those that close it again have none left open."""
    for name, end in (("closed", "<think>\\n\\n</think>\\n\\n"), ("opened", "<think>\\n")):
        directory = shutil.copytree(MINI, tmp_path / name)
        template = load_processor("mini").tokenizer.chat_template
        assert template.count("<|im_start|>assistant\\n'") == 1
        template = template.replace("<|im_start|>assistant\\n'", f"<|im_start|>assistant\\n{end}'")
        (directory / "chat_template.jinja").write_text(template)
        load_processor(directory)
        load_processor(directory)
    assert [message.partition(",")[0] for message in caplog.messages] == [
        f"{directory}: the chat template ends a prompt with <think>"
    ]


def test_generation_settings_and_dtype_of_a_checkpoint_are_kept(checkpoint, tmp_path):
    directory = shutil.copytree(checkpoint("qwen2_tied").directory, tmp_path / "base")
    ids = {"eos_token_id": [199, 198], "temperature": 0.01, "top_k": 1}
    (directory / "generation_config.json").write_text(json.dumps(ids))
    model, params = load_model(directory, dtype="bfloat16")
    save_pretrained(tmp_path / "half", model, params)
    model, params = load_model(tmp_path / "half", dtype="checkpoint")
    assert params["model"]["norm"]["weight"].dtype == jnp.bfloat16
    save_pretrained(tmp_path / "again", model, params)
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()).items() >= ids.items()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_an_adapter_and_its_folded_model_have_our_logits_in_peft_and_transformers(checkpoint, prompts, tmp_path):
    """The two exports of a LoRA run. The folded model has the tensors of its base."""
    case = checkpoint("qwen2_5_untied")
    given = prompts(case.reference, PROMPTS)
    delta = lora.init(jax.random.key(0), case.params, rank=2, alpha=4)
    delta = jax.tree.map(lambda value: np.asarray(value) + 0.02, delta)
    ours = np.asarray(case.model.logits(case.params, given.batch, delta))
    lora.save_peft(tmp_path / "adapter", delta, base=str(case.directory))
    save_pretrained(tmp_path / "model", case.model, lora.fold(case.params, delta))
    base, folded = map(transformers.AutoModelForImageTextToText.from_pretrained, (case.directory, tmp_path / "model"))
    valid = given.inputs["attention_mask"].numpy().astype(bool)
    for reloaded in (peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), folded.eval()):
        with torch.no_grad():
            theirs = reloaded(**given.inputs).logits.numpy()
        assert np.abs(ours - theirs)[valid].max() < 1e-4 * theirs[valid].std()
    written = load_file(tmp_path / "model" / "model.safetensors")
    of_base = load_file(case.directory / "model.safetensors")
    assert {name: value.shape for name, value in written.items()} == {k: v.shape for k, v in of_base.items()}


def test_cores_are_counted_where_a_process_has_no_affinity(checkpoint, monkeypatch):
    """macOS, whose `os` lacks the call."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    case = checkpoint("qwen2_tied")
    assert same(load_model(case.directory)[1], case.params)


def test_a_path_never_asks_the_hub(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    load_model(checkpoint("qwen2_tied").directory)
    with pytest.raises(DataError, match="no such model directory"):
        load_model(str(tmp_path / "absent"))


def test_each_device_reads_only_its_own_slices(checkpoint, tmp_path, monkeypatch):
    """On a mesh that splits weights, what is copied for a device is its part of every tensor."""
    case, mesh = checkpoint("qwen2_tied"), jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    read = {}

    def record(stored_shape, sharding, callback):
        parts = sharding.shard_shape(stored_shape)
        found = callback(tuple(slice(0, size) for size in parts))
        assert found.shape == parts
        read[len(read)] = found.nbytes
        return jnp.zeros(stored_shape)

    monkeypatch.setattr(jax, "make_array_from_callback", record)
    load_model(case.directory, mesh=mesh)
    shapes = {name: value.shape for name, value in flatten(case.params).items()}
    expected = 0
    for name, shape in shapes.items():
        axes = [axis if isinstance(axis, tuple) else (axis,) for axis in partition(name, len(shape)) if axis]
        pieces = [mesh.shape[axis] for axis in itertools.chain(*axes)]
        expected += 4 * math.prod(shape) // math.prod(pieces)
    assert sum(read.values()) == expected
    assert expected < 0.5 * sum(value.nbytes for value in flatten(case.params).values())


def test_the_card_says_what_the_model_is(checkpoint, tmp_path, monkeypatch):
    case = checkpoint("qwen2_5_tied")
    save_pretrained(tmp_path / "out", case.model, case.params, origin="Qwen/Qwen2.5-VL-3B-Instruct")
    card = (tmp_path / "out" / "README.md").read_text()
    count = sum(value.size for value in flatten(case.params).values())
    for part in (
        'base_model: "Qwen/Qwen2.5-VL-3B-Instruct"',
        "library_name: transformers",
        f"{count:,} (float32)",
        "Qwen2_5_VLForConditionalGeneration",
    ):
        assert part in card
    save_pretrained(tmp_path / "out", case.model, case.params, origin="runs/gba-mini")
    assert "base_model" not in (tmp_path / "out" / "README.md").read_text()
    card = adapter_card("Qwen/Qwen2-VL-2B-Instruct", 16)
    for part in ('base_model: "Qwen/Qwen2-VL-2B-Instruct"', "library_name: peft", "rank 16", "PeftModel"):
        assert part in card
    assert card.count("AutoModelForImageTextToText") == 2
    assert adapter_card("google/medgemma-27b-text-it", 16, sees=False).count("AutoModelForCausalLM") == 2
    monkeypatch.chdir(tmp_path)
    assert "base_model" in adapter_card("out/model", 16)
    (tmp_path / "out" / "model").mkdir()
    assert "base_model" not in adapter_card("out/model", 16)


def test_the_card_of_a_run_says_what_was_trained_on_what(checkpoint, tmp_path):
    run = {"job": "gba", "model": {"path": "mini"}, "data": {"path": "cases.jsonl"}, "objective": "gba", "seed": 3}
    (tmp_path / "config.json").write_text(json.dumps(run))
    case = checkpoint("qwen2_tied")
    save_pretrained(tmp_path / "out", case.model, case.params, about=training_of(tmp_path))
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("GBA, section 4.2", "from `mini`", "`cases.jsonl`", "seed 3", "<answer></answer>", "scan.png"):
        assert part in card
    assert training_of(case.directory) == training_of(tmp_path / "out") == ""


def test_a_card_names_no_place_of_a_machine(checkpoint, tmp_path):
    place = "/home/dr.smith/st-mary/patients_2024.csv"
    run = {"job": "gba", "model": {"path": "~/base"}, "data": {"path": place}, "objective": "gba", "seed": 3}
    (tmp_path / "config.json").write_text(json.dumps(run))
    said = training_of(tmp_path)
    assert "from `base`" in said and "`patients_2024.csv`" in said and "smith" not in said
    run |= {"model": {"path": "Qwen/Qwen2-VL-2B-Instruct"}, "data": {"path": "benchmark:medqa"}}
    (tmp_path / "config.json").write_text(json.dumps(run))
    assert "`Qwen/Qwen2-VL-2B-Instruct`" in training_of(tmp_path) and "`benchmark:medqa`" in training_of(tmp_path)
    case = checkpoint("qwen2_tied")
    save_pretrained(tmp_path / "out", case.model, case.params, origin="/home/dr.smith/base")
    assert "Made from `base`" in (tmp_path / "out" / "README.md").read_text()
    assert "smith" not in adapter_card("/home/dr.smith/base", 4) and "over base" in adapter_card(
        "/home/dr.smith/base", 4
    )


def test_saving_replaces_a_model_whole_and_nothing_else(checkpoint, tmp_path):
    case = checkpoint("qwen2_tied")
    save_pretrained(tmp_path / "out", case.model, case.params, max_shard_bytes=40_000)
    save_pretrained(tmp_path / "out", case.model, case.params)
    assert not list((tmp_path / "out").glob("model-*"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("keep")
    with pytest.raises(ConfigError, match="notes"):
        save_pretrained(tmp_path / "notes", case.model, case.params)
    (tmp_path / "file").write_text("keep")
    with pytest.raises(ResourceError, match="file"):
        save_pretrained(tmp_path / "file" / "out", case.model, case.params)
    with pytest.raises(DataError, match="not those of the model"):
        save_pretrained(tmp_path / "other", case.model, nest({"model.norm.weight": np.ones(3)}))
    assert not (tmp_path / "other").exists()
