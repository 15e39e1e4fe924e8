"""The network against transformers on random checkpoints of both families."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmedexpert_jax.models import load_model

NAMES = ("qwen2_tied", "qwen2_untied", "qwen2_5_untied", "qwen2_5_tied")
TOLERANCE = 1e-4  # of the logits' standard deviation
# unequal lengths; text alone, two images in a prompt, odd aspects, sides that are and are not multiples of a window (8)
MIXED = [[9], [3, (4, 18), 2, (16, 8), 4], [1, (2, 30), 5]]
TEXT = [[17], [4], [11]]
STEPS = 32


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def decode_greedily(model, params, batch, steps):
    """Tokens [B, 2, steps] of a prefill and a cached decode loop, and the logits [B, 2, steps, V] they come from."""
    prefix = model.prefill(params, batch)
    rows = jnp.arange(batch.tokens.shape[0])
    first = model.unembed(params, prefix.hidden[rows, prefix.lengths - 1])
    first = jnp.broadcast_to(first[:, None], (len(rows), 2, first.shape[-1]))

    def step(carry, index):
        logits, cache = carry
        tokens = jnp.argmax(logits, -1)
        hidden, cache = model.decode(params, prefix, cache, tokens, index)
        return (model.unembed(params, hidden), cache), (tokens, logits)

    cache = model.init_cache(len(rows), 2, steps, jnp.float32)
    _, (tokens, logits) = jax.lax.scan(step, (first, cache), jnp.arange(steps))
    return tokens.transpose(1, 2, 0), logits.transpose(1, 2, 0, 3)


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_images_and_text_equal_transformers(name, checkpoint, prompts):
    """One padding image is in the batch."""
    case = checkpoint(name)
    mixed = prompts(case.reference, MIXED, dummy_images=1)
    logits = np.asarray(case.model.logits(case.params, mixed.batch))
    with torch.no_grad():
        expected = case.reference(**mixed.inputs).logits.numpy()
    valid = mixed.inputs["attention_mask"].numpy().astype(bool)
    assert np.abs(logits - expected)[valid].max() < TOLERANCE * expected[valid].std()
    assert np.isfinite(logits).all()


def test_logits_of_text_equal_transformers_without_the_vision_tower(checkpoint, prompts):
    case = checkpoint("qwen2_untied")
    text, mixed = prompts(case.reference, TEXT), prompts(case.reference, MIXED)
    tower = "erf"  # the exact GELU of the tower's merger
    assert tower in str(jax.make_jaxpr(case.model.prefill)(case.params, mixed.batch))
    assert tower not in str(jax.make_jaxpr(case.model.prefill)(case.params, text.batch))
    logits = np.asarray(case.model.logits(case.params, text.batch))
    with torch.no_grad():
        expected = case.reference(**text.inputs).logits.numpy()
    valid = text.inputs["attention_mask"].numpy().astype(bool)
    assert np.abs(logits - expected)[valid].max() < TOLERANCE * expected[valid].std()


@pytest.mark.parametrize("name", NAMES)
def test_greedy_continuation_equals_transformers(name, checkpoint, prompts):
    """Token by token, up to where the reference's two best logits are closer than twice the tolerance."""
    case = checkpoint(name)
    mixed = prompts(case.reference, MIXED, dummy_images=1)
    tokens, _ = map(np.asarray, decode_greedily(case.model, case.params, mixed.batch, STEPS))
    assert np.array_equal(tokens[:, 0], tokens[:, 1])
    agreed = 0
    for row in range(len(MIXED)):
        expected, logits = _generate(case.reference, mixed.inputs, row)
        top = np.sort(logits, -1)
        close = np.flatnonzero(top[:, -1] - top[:, -2] <= 2 * TOLERANCE * logits.std())
        end = close[0] if len(close) else STEPS
        assert tokens[row, 0, :end].tolist() == expected[:end].tolist()
        agreed += end
    assert agreed > 2 * STEPS


def _generate(reference, inputs, row):
    """transformers' greedy tokens [STEPS] of one row, alone and without padding, and their logits [STEPS, V]."""
    length = int(inputs["attention_mask"][row].sum())
    images = [sum(isinstance(part, tuple) for part in prompt) for prompt in MIXED]
    first, last = sum(images[:row]), sum(images[: row + 1])
    patches = inputs["image_grid_thw"].prod(-1).tolist()
    single = {key: inputs[key][row : row + 1, :length] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
    if last > first:
        single["image_grid_thw"] = inputs["image_grid_thw"][first:last]
        single["pixel_values"] = inputs["pixel_values"][sum(patches[:first]) : sum(patches[:last])]
    reference.generation_config.eos_token_id = None
    output = reference.generate(
        **single, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return output.sequences[0, length:].numpy(), torch.stack(output.logits)[:, 0].numpy()


@pytest.mark.parametrize("name", ["qwen2_untied", "qwen2_5_untied"])
def test_cached_decode_and_extend_equal_the_full_forward(name, checkpoint, prompts):
    """Logits of 32 cached steps and of one teacher-forced pass, against prompt and continuation in one row."""
    case = checkpoint(name)
    model, params = case.model, case.params
    batch = prompts(case.reference, MIXED, dummy_images=1).batch
    tokens, decoded = map(np.asarray, decode_greedily(model, params, batch, STEPS))
    whole = prompts(case.reference, MIXED, dummy_images=1, tail=tokens[:, 0]).batch
    full = np.asarray(model.logits(params, whole))
    full = np.stack([full[row, length - 1 : length - 1 + STEPS] for row, length in enumerate(batch.lengths)])
    assert np.abs(decoded[:, 0] - full).max() < 1e-5 * np.abs(full).max()

    @jax.jit
    def extend(params, batch, tokens):
        return model.unembed(params, model.extend(params, batch, tokens)[1])

    other = np.random.default_rng(1).integers(0, 190, tokens[:, 1].shape)  # a second continuation of the same prompts
    extended = np.asarray(extend(params, batch, np.stack([tokens[:, 0], other], axis=1)))
    assert np.abs(extended[:, 0, :-1] - full[:, 1:]).max() < 1e-5 * np.abs(full).max()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_any_shape_of_both_families_equals_transformers(seed, shape_writer, prompts, tmp_path):
    """Random depths, patterns of full blocks, heads, windows and grids, up to three images in a prompt."""
    rng = np.random.default_rng(seed)
    depth, kv_heads = int(rng.integers(1, 6)), int(rng.choice([1, 2, 4]))
    full_blocks = tuple(np.flatnonzero(rng.random(depth) < 0.4).tolist())
    family, tied = ("qwen2_vl", "qwen2_5_vl")[seed % 2], bool(rng.integers(2))
    shape = (family, tied, 4, kv_heads, int(rng.integers(1, 4)), depth, full_blocks, int(rng.choice([56, 112])))
    reference = shape_writer(shape, seed, tmp_path)
    talks = [
        [
            part
            for _ in range(rng.integers(0, 4))
            for part in (int(rng.integers(1, 9)), tuple(2 * rng.integers(1, 13, 2)))
        ]
        + [int(rng.integers(1, 9))]
        for _ in range(3)
    ]
    talks = [[tuple(map(int, part)) if isinstance(part, tuple) else part for part in talk] for talk in talks]
    case = prompts(reference, talks, dummy_images=int(rng.integers(0, 2)))
    model, params = load_model(tmp_path)
    logits = np.asarray(model.logits(params, case.batch))
    with torch.no_grad():
        expected = reference(**case.inputs).logits.numpy()
    valid = case.inputs["attention_mask"].numpy().astype(bool)
    assert np.abs(logits - expected)[valid].max() < TOLERANCE * expected[valid].std()
