"""Merges by Fisher information: the formulas by hand, and the information itself against the sum over all answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging import merge, merge_stack, setting
from mmedexpert_jax.merging.fisher import diagonal
from mmedexpert_jax.models import Model, ModelConfig
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import flatten, nest
from mmedexpert_jax.processing.processor import Processor

F32 = np.float32
VECTORS = np.array([[3, 0, 1, 2, 5], [-2, 1, 1, -2, -5]], F32)
FISHER = np.array([[1, 1, 1, 0, 1], [4, 0, 3, 2, 1]], F32)


def test_fisher_merging_by_hand():
    """sum F tau / sum F, a weight multiplying the F of its expert."""
    found = merge_stack(VECTORS, setting("fisher", 2), fisher=FISHER)
    np.testing.assert_allclose(found, [-1, 0, 1, -2, 0])
    found = merge_stack(VECTORS, setting("fisher", 2, weights=(4, 1)), fisher=FISHER)
    np.testing.assert_allclose(found, [(4 * 3 - 4 * 2) / 8, 0, 1, -2, 3])


def test_an_overlap_goes_to_the_most_sensitive():
    """F tau^2: 9 against 16; one keeper alone, though its F is 0; 1 against 3; 0 against 8; equal: the first."""
    found = merge_stack(VECTORS, setting("sar", 2, density=1.0), fisher=FISHER)
    np.testing.assert_allclose(found, [-2, 1, 1, -2, 5])
    assert merge_stack(VECTORS, setting("ties", 2))[0] == 3  # the mass elects the other


def test_what_the_trim_keeps_is_stretched_to_the_norm_before():
    """density 0.4 keeps 2 of 5 entries: of the first 3 and 5 of norm sqrt(34), of the second -2 and -5 of sqrt(29)."""
    found = merge_stack(VECTORS, setting("sar", 2, density=0.4), fisher=FISHER)
    stretch = np.linalg.norm(VECTORS, axis=1) / np.sqrt([34, 29])
    np.testing.assert_allclose(found, [-2 * stretch[1], 0, 0, 0, -5 * stretch[1]], rtol=1e-6)


@pytest.mark.parametrize("method", ["fisher", "sar"])
def test_blocks_devices_and_stacks_agree(method):
    rng = np.random.default_rng(0)
    base = nest({"w.weight": rng.standard_normal((9, 7)).astype(F32)})
    vectors, fisher = rng.standard_normal((2, 9, 7)).astype(F32), rng.random((2, 9, 7)).astype(F32)
    experts = {name: nest({"w.weight": base["w"]["weight"] + row}) for name, row in zip("ab", vectors, strict=True)}
    known = {name: nest({"w.weight": row}) for name, row in zip("ab", fisher, strict=True)}
    found = merge(base, experts, method=method, density=0.5, fisher=known)["w"]["weight"] - base["w"]["weight"]
    expected = merge_stack(vectors, setting(method, 2, density=0.5), fisher=fisher)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    traced = merge_stack(jnp.asarray(vectors), setting(method, 2, density=0.5), fisher=jnp.asarray(fisher))
    np.testing.assert_allclose(traced, expected, atol=1e-5)
    with pytest.raises(ConfigError, match="expert a has none"):
        merge(base, experts, method=method)


@pytest.fixture
def tiny(tiny_tokenizer_dir):
    text = TextConfig(400, 16, 24, 1, 2, 1, mrope_section=(2, 1, 1))
    vision = VisionConfig("qwen2_vl", depth=1, hidden_size=8, intermediate_size=16, num_heads=1, out_hidden_size=16)
    model = Model(ModelConfig(text, vision, True, 398, 399, 395, 396, 386, 386, (388, 386)))
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape).astype(F32) for name, shape in tensor_shapes(model.config).items()}
    messages = [{"role": "user", "content": [{"type": "text", "text": "ab"}]}]
    return model, nest(params), Processor.load(tiny_tokenizer_dir)([messages])


def test_the_information_is_the_mean_over_all_answers(tiny):
    """Draws from prompts alone against sum_y p(y) (d log p(y))^2 over the vocabulary and the positions."""
    model, params, prompt = tiny
    name = "model.norm.weight"
    rest = flatten(params)

    def scores(weight):
        return jax.nn.log_softmax(model.logits(nest(rest | {name: weight}), prompt)[0][: prompt.lengths[0]])

    slopes = jax.jacobian(scores)(rest[name])  # [T, V, D]
    exact = jnp.einsum("tv,tvd->d", jnp.exp(scores(rest[name])), slopes**2)
    found = diagonal(model, params, [name], [prompt] * 400)[name]
    np.testing.assert_allclose(found, exact, rtol=0.35)
    np.testing.assert_allclose(found.sum(), exact.sum(), rtol=0.08)
