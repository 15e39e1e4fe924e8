"""The facade's promises beyond parity: gradients, rematerialisation, LoRA, shapes of the decode loop."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax import lora
from mmedexpert_jax.models.attention import attend
from mmedexpert_jax.models.tree import flatten

PROMPTS = [[3, (4, 6), 2], [5]]
TOKENS = np.arange(2 * 2 * 3, dtype=np.int32).reshape(2, 2, 3)


def loss(params, model, batch, remat):
    logits = model.unembed(params, model.extend(params, batch, TOKENS, remat=remat)[1])
    return -jnp.mean(jax.nn.log_softmax(logits)[..., 7])


@pytest.fixture(scope="module")
def gradients(checkpoint, prompts):
    """Gradients by all parameters, without and with rematerialisation; two images of the batch are padding."""
    case = checkpoint("qwen2_5_tied")
    batch = prompts(case.reference, PROMPTS, dummy_images=2).batch
    gradient = jax.jit(jax.grad(loss), static_argnames=("model", "remat"))
    with jax.default_matmul_precision("highest"):
        return [flatten(gradient(case.params, case.model, batch, remat)) for remat in (False, True)]


def test_gradients_are_finite_with_padding_images(gradients):
    plain, _ = gradients
    assert all(np.isfinite(leaf).all() for leaf in plain.values())
    assert np.abs(plain["visual.patch_embed.proj.weight"]).max() > 0


def test_rematerialisation_changes_nothing(gradients):
    plain, remat = gradients
    for name, gradient in plain.items():
        assert np.abs(gradient - remat[name]).max() < 1e-5 * np.abs(gradient).max() + 1e-7


def test_lora_in_the_network_equals_folded_weights(checkpoint, prompts):
    case = checkpoint("qwen2_5_tied")
    batch = prompts(case.reference, PROMPTS, dummy_images=2).batch
    delta = jax.tree.map(lambda x: np.asarray(x) + 0.02, lora.init(jax.random.key(1), case.params, rank=2, alpha=4))
    attached = np.asarray(case.model.logits(case.params, batch, delta))
    folded = np.asarray(case.model.logits(lora.fold(case.params, delta), batch))
    base = np.asarray(case.model.logits(case.params, batch))
    assert np.abs(attached - folded).max() < 1e-5 * np.abs(folded).max()
    assert np.abs(attached - base).max() > 0.01 * np.abs(base).max()


def test_rows_do_not_depend_on_their_neighbours_or_padding(checkpoint, prompts):
    case = checkpoint("qwen2_untied")
    together = np.asarray(case.model.logits(case.params, prompts(case.reference, PROMPTS, dummy_images=2).batch))
    alone = np.asarray(case.model.logits(case.params, prompts(case.reference, PROMPTS[:1]).batch))
    assert np.abs(together[0, : alone.shape[1]] - alone[0]).max() < 1e-5 * np.abs(alone).max()


def test_keys_without_any_valid_one_give_finite_values_and_gradients():
    x = jnp.ones((1, 2, 4, 8))
    output = jax.jit(jax.value_and_grad(lambda q: attend(q, x, x, jnp.zeros(1, int), causal=False).sum()))
    value, gradient = output(x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("causal", [True, False])
def test_long_rows_are_attended_block_by_block(causal):
    """131 positions, which the blocks do not divide, against JAX's own attention, with gradients."""
    draw = np.random.default_rng(0)
    queries, keys, values = (draw.standard_normal((2, heads, 131, 8), np.float32) for heads in (4, 2, 2))
    lengths = np.array([131, 50])

    def ours(*arrays):
        return attend(*arrays, lengths, causal=causal)

    def theirs(*arrays):
        arrays = (jnp.swapaxes(x, 1, 2) for x in arrays)
        return jnp.swapaxes(
            jax.nn.dot_product_attention(*arrays, is_causal=causal, key_value_seq_lengths=lengths), 1, 2
        )

    @functools.partial(jax.jit, static_argnums=0)
    def with_slopes(attention, pulled):
        """The output, and what `pulled`, or the output itself, is pulled back to."""
        output, pull = jax.vjp(attention, queries, keys, values)
        return output, pull(output if pulled is None else pulled)

    expected, slopes = with_slopes(theirs, None)
    found, own_slopes = with_slopes(ours, expected)
    assert np.abs(found - expected).max() < 1e-5
    for own, their in zip(own_slopes, slopes, strict=True):
        assert np.abs(own - their).max() < 1e-4


def test_rotary_tables_are_computed_once_for_all_layers_and_heads(checkpoint, prompts):
    """Two layers and two blocks: one cosine for the decoder and one for the tower in the compiled program."""
    case = checkpoint("qwen2_tied")
    batch = prompts(case.reference, PROMPTS).batch
    program = jax.jit(case.model.prefill).lower(case.params, batch).compile().as_text()
    assert program.count(" cosine(") == program.count(" sine(") == 2


def test_decode_loop_updates_its_cache_in_place(checkpoint, prompts):
    """No copy of a cache buffer in the compiled loop, and scratch memory that is not a second cache."""
    case = checkpoint("qwen2_tied")
    batch = prompts(case.reference, [[5], [3]]).batch
    samples, steps = 3, 512

    def roll(params, prefix):
        def step(index, carry):
            cache, tokens = carry
            hidden, cache = case.model.decode(params, prefix, cache, tokens, index)
            return cache, jnp.argmax(case.model.unembed(params, hidden), -1)

        cache = case.model.init_cache(2, samples, steps, jnp.float32)
        return jax.lax.fori_loop(0, steps, step, (cache, jnp.zeros((2, samples), int)))[1]

    prefix = jax.eval_shape(case.model.prefill, case.params, batch)
    compiled = jax.jit(roll).lower(case.params, prefix).compile()
    text = case.model.config.text
    shape = f"f32[2,{samples},{text.num_kv_heads},{steps},{text.head_dim}]"
    computations = compiled.as_text().split("\n\n")  # the loop's buffers are initialised in ENTRY, once
    loop = "\n\n".join(part for part in computations if "ENTRY" not in part)
    assert shape in loop and "dynamic-update-slice" in loop
    assert not re.search(re.escape(shape) + r"\S* (copy|transpose)\(", loop)
    cache_bytes = 2 * text.num_layers * 2 * samples * text.num_kv_heads * steps * text.head_dim * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * cache_bytes
