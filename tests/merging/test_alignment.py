"""Experts as they come: other vocabularies, text models under a VLM, extra heads, adapters over unnamed bases."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.merging.checkpoint import Checkpoint, check_finite, copy_settings
from mmedexpert_jax.merging.merge_recipe import Recipe, merge_to_disk
from mmedexpert_jax.merging.parameters import Parameters

EMBEDDING, UP, VISION = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "visual.merger.weight"
F32 = np.float32


def tokens(words, added=()):
    vocabulary = {word: number for number, word in enumerate(words)}
    return {
        "model": {"type": "BPE", "vocab": vocabulary},
        "added_tokens": [{"content": w, "id": len(words) + i} for i, w in enumerate(added)],
    }


def save(path, tensors, words=None, added=(), **config):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"vocab_size": len(tensors[EMBEDDING])} | config))
    if words:
        (path / "tokenizer.json").write_text(json.dumps(tokens(words, added)))
    save_file(tensors, path / "model.safetensors")
    return path


def drawn(seed, rows=6, vision=True):
    rng = np.random.default_rng(seed)
    shapes = {EMBEDDING: (rows, 4), UP: (5, 4)} | ({VISION: (3, 4)} if vision else {})
    return {name: rng.standard_normal(shape).astype(F32) for name, shape in shapes.items()}


def merged(tmp_path, base, expert, method="task_arithmetic", **more):
    """The merged tensors, and the notes of the expert."""
    job = Recipe(str(base), {"X": str(expert)}, Parameters(method, ("X",), "paper", {}), **more)
    merge_to_disk(job, tmp_path / "out")
    return load_file(tmp_path / "out" / "model.safetensors"), job.open().experts[0].notes


def test_rows_of_tokens_are_put_where_the_base_has_them(tmp_path):
    """The expert has the words in another order, lacks one, and has two of its own."""
    ours, theirs = drawn(0), drawn(1, rows=7)
    base = save(tmp_path / "base", ours, ["a", "b", "c", "d"], ["<pad>"])  # a sixth row is padding
    expert = save(tmp_path / "X", theirs, ["b", "a", "new", "d", "newer"], ["<pad>"])
    found, notes = merged(tmp_path, base, expert)
    expected = ours[EMBEDDING].copy()
    for row, other in ((0, 1), (1, 0), (3, 3), (4, 5)):
        expected[row] = theirs[EMBEDDING][other]
    np.testing.assert_allclose(found[EMBEDDING], expected, atol=1e-6)
    assert notes == ("another vocabulary: 2 of the base's 6 rows are unknown to it and stay",)


def test_a_padded_vocabulary_is_the_same_vocabulary(tmp_path):
    ours, theirs = drawn(0), drawn(1, rows=8)
    base = save(tmp_path / "base", ours, "abcdef")
    found, _ = merged(tmp_path, base, save(tmp_path / "X", theirs, "abcdef"))
    np.testing.assert_allclose(found[EMBEDDING], theirs[EMBEDDING][:6], atol=1e-6)


def test_a_vocabulary_of_another_family_is_refused(tmp_path):
    base = save(tmp_path / "base", drawn(0), "abcdef")
    with pytest.raises(DataError, match=r"expert X: .* \(another vocabulary\)"):
        merged(tmp_path, base, save(tmp_path / "X", drawn(1, rows=8), "ghijklmn"))


def test_a_tokenizer_of_another_family_with_as_many_rows_is_refused(tmp_path):
    base = save(tmp_path / "base", drawn(0), "abcdef")
    with pytest.raises(DataError, match=r"X: shares 1 of the 6 tokens of .*base: it has another tokenizer"):
        merged(tmp_path, base, save(tmp_path / "X", drawn(1), "fghijk"))


def test_a_text_model_is_merged_into_the_decoder_of_a_vlm(tmp_path):
    ours, theirs = drawn(0), drawn(1, vision=False)
    found, notes = merged(tmp_path, save(tmp_path / "base", ours), save(tmp_path / "X", theirs))
    np.testing.assert_array_equal(found[VISION], ours[VISION])
    np.testing.assert_allclose(found[UP], theirs[UP], atol=1e-6)
    assert notes == ("a text model: the base's vision tower stays",)


def test_heads_of_a_trainer_are_dropped_by_name(tmp_path):
    theirs = drawn(1) | {"v_head.summary.weight": np.ones((1, 4), F32), "v_head.summary.bias": np.ones(1, F32)}
    found, notes = merged(tmp_path, save(tmp_path / "base", drawn(0)), save(tmp_path / "X", theirs))
    assert set(found) == {EMBEDDING, UP, VISION} and "v_head.summary.weight" in notes[0]


def test_a_classifier_s_missing_output_layer_is_the_base_s(tmp_path):
    """Its head took the place of lm_head, which is then not tied to its embedding; a tied model's is."""
    head = {"lm_head.weight": np.full((6, 4), 3, F32)}
    base = save(tmp_path / "base", drawn(0) | head)
    scored = save(tmp_path / "X", drawn(1) | {"score.weight": np.ones((2, 4), F32)})
    found, notes = merged(tmp_path, base, scored)
    np.testing.assert_array_equal(found["lm_head.weight"], head["lm_head.weight"])
    assert notes[1] == "no output layer of its own: the base's lm_head.weight stays"
    found, _ = merged(tmp_path, base, save(tmp_path / "untied", drawn(1), tie_word_embeddings=False))
    np.testing.assert_array_equal(found["lm_head.weight"], head["lm_head.weight"])
    found, _ = merged(tmp_path, base, save(tmp_path / "tied", drawn(1)))
    np.testing.assert_allclose(found["lm_head.weight"], drawn(1)[EMBEDDING], atol=1e-6)


def pair(seed):
    rng = np.random.default_rng(seed)
    factors = {"a": rng.standard_normal((2, 4)).astype(F32), "b": rng.standard_normal((5, 2)).astype(F32)}
    return Lora({UP.removesuffix(".weight"): factors}, 2, 4.0)


def test_an_adapter_stands_on_the_base_that_it_is_given(tmp_path):
    """Its own base is gone, as with adapters that name a quantised or a moved model."""
    base = save(tmp_path / "base", drawn(0))
    other = save(tmp_path / "other", drawn(2))
    adapters.save_peft(tmp_path / "A", pair(0), "unsloth/gone-bnb-4bit/x")
    with pytest.raises(DataError, match=r"expert X: the base that its adapter names is not there .*X=.*base\+.*A"):
        merged(tmp_path, base, tmp_path / "A")
    product = 2 * pair(0).factors[UP.removesuffix(".weight")]["b"] @ pair(0).factors[UP.removesuffix(".weight")]["a"]
    found, _ = merged(tmp_path, base, f"{base}+{tmp_path / 'A'}")
    np.testing.assert_allclose(found[UP], drawn(0)[UP] + product, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[EMBEDDING], drawn(0)[EMBEDDING])
    found, _ = merged(tmp_path, base, f"{other}+{tmp_path / 'A'}")
    np.testing.assert_allclose(found[UP], drawn(2)[UP] + product, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[EMBEDDING], drawn(2)[EMBEDDING], atol=1e-6)


def test_what_an_adapter_holds_whole_takes_the_place_of_the_base_s(tmp_path):
    """peft's modules_to_save, with ensure_weight_tying: an embedding and its tied head, trained beside the factors."""
    base = save(tmp_path / "base", drawn(0))
    adapters.save_peft(tmp_path / "A", pair(0), str(base))
    file, whole = tmp_path / "A" / "adapter_model.safetensors", drawn(7)[EMBEDDING]
    both = {f"base_model.model.{name}": whole for name in (EMBEDDING, "lm_head.weight")}
    save_file(load_file(file) | both, file)
    product = 2 * pair(0).factors[UP.removesuffix(".weight")]["b"] @ pair(0).factors[UP.removesuffix(".weight")]["a"]
    found, _ = merged(tmp_path, base, tmp_path / "A")
    np.testing.assert_allclose(found[EMBEDDING], whole, atol=1e-6)
    np.testing.assert_allclose(found[UP], drawn(0)[UP] + product, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[VISION], drawn(0)[VISION])
    save_file(load_file(file) | {f"base_model.model.{EMBEDDING}": 2 * whole}, file)
    with pytest.raises(DataError, match=r"expert X: .*the base ties the two"):
        merged(tmp_path, base, tmp_path / "A")
    save_file(load_file(file) | {f"base_model.model.{EMBEDDING}": np.ones((8, 4), F32)}, file)
    with pytest.raises(DataError, match=r"expert X: .*its rows were resized, merge it with peft"):
        merged(tmp_path, base, tmp_path / "A")


def test_a_rounded_copy_of_the_base_is_the_base(tmp_path):
    """An adapter over a bf16 copy of a float32 base: its rounding is no part of the task vector."""
    base = save(tmp_path / "base", drawn(0))
    copy = save(tmp_path / "copy", {n: t.astype(ml_dtypes.bfloat16) for n, t in drawn(0).items()})
    adapters.save_peft(tmp_path / "A", pair(0), str(copy))
    found, _ = merged(tmp_path, base, tmp_path / "A")
    for name in (EMBEDDING, VISION):
        np.testing.assert_array_equal(found[name], drawn(0)[name])


def test_config_and_tokenizer_are_copied_and_a_trainer_s_leftovers_are_not(tmp_path):
    base = save(tmp_path / "base", drawn(0), torch_dtype="bfloat16", architectures=["Q"], text_config={"dtype": "x"})
    for name in ("optimizer.pt", "rng_state.pth", "trainer_state.json", "tokenizer_config.json", "merges.txt", "a.py"):
        (base / name).write_text("{}")
    merged(tmp_path, base, save(tmp_path / "X", drawn(1)), dtype="float16")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "config.json", "tokenizer_config.json", "merges.txt", "model.safetensors", ".mmedexpert.json"
    }  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "float16" and config["text_config"]["dtype"] == "float16"
    assert next(iter(Checkpoint(tmp_path / "out").values())).dtype == np.float16


def test_the_experts_chat_template_is_carried_where_the_base_has_none_or_another(tmp_path):
    base, expert = save(tmp_path / "base", drawn(0)), save(tmp_path / "X", drawn(1))
    (expert / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    merged(tmp_path, base, expert)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    copy_settings(expert, base)
    assert Recipe(str(base), {"X": str(expert)}, Parameters("ties", ("X",))).changes() == {}
    adapters.save_peft(tmp_path / "A", pair(0), str(base))
    (tmp_path / "A" / "chat_template.jinja").write_text("{{ trained }}")  # the template of its training, not the base's
    for paths, template in (((tmp_path / "A",), "{{ trained }}"), ((tmp_path / "A", expert), None)):
        experts = {path.name: str(path) for path in paths}
        changes = Recipe(str(base), experts, Parameters("ties", tuple(experts))).changes()
        assert changes.get("chat_template") == template


@pytest.mark.parametrize("untouched", [False, True])
def test_an_output_that_its_dtype_cannot_hold_is_refused(tmp_path, untouched):
    ours, theirs = drawn(0), drawn(1)
    (ours if untouched else theirs)[UP][0, 0] = 7e4
    if untouched:
        theirs[UP] = ours[UP]
    base, expert = save(tmp_path / "base", ours), save(tmp_path / "X", theirs)
    with pytest.raises(ConfigError, match=f"{UP}: .* float16; write bfloat16 or float32"):
        merged(tmp_path, base, expert, dtype="float16")
    found, _ = merged(tmp_path, base, expert, dtype="bfloat16")
    assert np.isfinite(found[UP].astype(F32)).all()


def test_numbers_beyond_float32_are_refused():
    for numbers in ({"scale": {"": 1e308}}, {"weight": {"X": 1e39}}):
        with pytest.raises(ConfigError, match="finite in float32"):
            Parameters("ties", ("X",), numbers=numbers).check()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_what_is_not_finite_is_found_by_its_bits(dtype):
    whole = np.array([0, -1, np.finfo(F32).tiny, 6e4], F32).astype(dtype)
    check_finite("w", whole)
    for bad in (np.inf, -np.inf, np.nan):
        with pytest.raises(ConfigError, match="w: holds values that are not finite"):
            check_finite("w", np.append(whole, np.array(bad, F32).astype(dtype)))
