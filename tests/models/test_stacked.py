"""Stacked layers, scanned, against the same layers one by one: logits, gradients, LoRA, packing, remat, decoding."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmedexpert_jax import lora
from mmedexpert_jax.models import load, save_pretrained, stack, unstack
from mmedexpert_jax.models.tree import flatten, stacked_name
from mmedexpert_jax.rollout.logprobs import completion_logprobs, packed

PROMPTS = [[3, (4, 18), 2], [5]]
LENGTHS = np.array([[4, 1], [2, 3]], np.int32)
TOKENS = np.arange(2 * 2 * 4, dtype=np.int32).reshape(2, 2, 4)


@pytest.fixture(scope="module", params=["qwen2_tied", "qwen2_5_untied"])
def case(request, checkpoint, prompts):
    """A model of two layers and two blocks (of which one attends in windows), its prompts, and a LoRA that matters."""
    found = checkpoint(request.param)
    deltas = jax.tree.map(lambda x: np.asarray(x) + 0.02, lora.init(jax.random.key(1), found.params, 2, 4))
    return found, prompts(found.reference, PROMPTS, dummy_images=1).batch, deltas


@functools.partial(jax.jit, static_argnames=("model", "remat", "packing"))
def loss(trained, rest, model, batch, remat, packing):
    """Of `trained`: parameters, or deltas over the parameters `rest`."""
    params, deltas = (trained, None) if rest is None else (rest, trained)
    layout = packed(LENGTHS, TOKENS.shape[-1], 2) if packing else None
    logprobs = completion_logprobs(model, params, batch, TOKENS, LENGTHS, lora=deltas, remat=remat, packing=layout)
    return -logprobs.sum()


def test_gradients_equal_those_of_layers_one_by_one(case):
    """By LoRA with packing and rematerialisation, by all parameters without."""
    found, batch, deltas = case
    gradient = functools.partial(jax.value_and_grad(loss), model=found.model, batch=batch)
    for trained, rest, better in ((deltas, found.params, True), (found.params, None, False)):
        how = {"remat": better, "packing": better}
        value, expected = gradient(trained, rest, **how)
        own_value, own = gradient(stack(trained), None if rest is None else stack(rest), **how)
        own = unstack(own)
        np.testing.assert_allclose(own_value, value, rtol=1e-6)
        chex.assert_trees_all_equal_structs(own, expected)
        for theirs, ours in zip(jax.tree.leaves(expected), jax.tree.leaves(own), strict=True):
            assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max() + 1e-6


def test_logits_and_decoding_equal_those_of_layers_one_by_one(case):
    found, batch, deltas = case

    def run(params, deltas):
        prefix = found.model.prefill(params, batch, deltas)
        cache = found.model.init_cache(2, 2, 3, jnp.float32)
        hidden = []
        for step in range(3):
            new, cache = found.model.decode(params, prefix, cache, TOKENS[..., step], step, deltas)
            hidden.append(new)
        return prefix.hidden, jnp.stack(hidden)

    expected = jax.jit(run)(found.params, deltas)
    own = jax.jit(run)(stack(found.params), stack(deltas))
    for theirs, ours in zip(expected, own, strict=True):
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_a_program_has_one_layer_however_many_there_are(case):
    """Two layers of nine products each in the traced program, or one."""
    found, batch, _ = case
    programs = (
        jax.jit(found.model.prefill).lower(params, batch).as_text() for params in (found.params, stack(found.params))
    )
    one_by_one, scanned = (program.count("dot_general") for program in programs)
    assert one_by_one - scanned >= 9


def test_there_and_back_keeps_every_leaf(case):
    found, _, deltas = case
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    for tree in (found.params, deltas, (deltas, optimizer.init(deltas)), jax.eval_shape(lambda: found.params)):
        back = unstack(stack(tree))
        chex.assert_trees_all_equal_structs(back, tree)
        chex.assert_trees_all_equal_shapes_and_dtypes(back, tree)
        if not isinstance(jax.tree.leaves(tree)[0], jax.ShapeDtypeStruct):
            chex.assert_trees_all_equal(back, tree)
    chex.assert_trees_all_equal(stack(stack(found.params)), stack(found.params))


def test_a_lora_of_some_layers_is_zero_in_the_others(case):
    found, _, deltas = case
    some = {name: pair for name, pair in deltas.factors.items() if name.startswith("model.layers.1.mlp")}
    stacked = stack(lora.Lora(some, 2, 4.0)).factors["model.layers.*.mlp.up_proj"]
    assert stacked["a"].shape[0] == found.model.config.text.num_layers
    assert not np.any(stacked["b"][0]) and np.any(stacked["b"][1])
    first = {name: pair for name, pair in deltas.factors.items() if name.startswith("model.layers.0.mlp")}
    stacked = stack(lora.Lora(first, 2, 4.0), found.params).factors["model.layers.*.mlp.up_proj"]
    assert stacked["a"].shape[0] == found.model.config.text.num_layers
    assert np.any(stacked["b"][0]) and not np.any(stacked["b"][1])


def test_deltas_do_not_depend_on_the_layout(case):
    found, _, deltas = case
    chex.assert_trees_all_equal(
        lora.init(jax.random.key(3), stack(found.params), 2), stack(lora.init(jax.random.key(3), found.params, 2))
    )
    chex.assert_trees_all_close(
        unstack(lora.fold(stack(found.params), stack(deltas))), lora.fold(found.params, deltas), rtol=1e-6
    )
    chex.assert_trees_all_close(
        unstack(lora.stack([stack(deltas), stack(deltas)])), lora.stack([deltas, deltas]), rtol=1e-6
    )


def test_files_have_the_checkpoints_names(case, tmp_path):
    found, _, deltas = case
    save_pretrained(tmp_path / "model", found.model, stack(found.params))
    lora.save_peft(tmp_path / "adapter", stack(deltas), str(tmp_path / "model"))
    _, params, adapter = load.load_policy(tmp_path / "adapter")
    chex.assert_trees_all_equal((params, adapter), (found.params, deltas))


def test_names_of_stacks():
    assert stacked_name("model.layers.12.mlp.up_proj.weight") == ("model.layers.*.mlp.up_proj.weight", 12)
    assert stacked_name("visual.merger.mlp.0.weight") == ("visual.merger.mlp.0.weight", None)
    assert set(flatten(stack({"blocks": {"0": {"w": np.ones(2)}, "1": {"w": np.ones(2)}}}))) == {"blocks.*.w"}
