"""Recomputed log-probabilities and their gradients against the plain forward pass and the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.rollout import completion_logprobs, generate
from mmedexpert_jax.rollout.sampling import distribution

BAN = (398, 399, 7)


@pytest.fixture(autouse=True)
def highest():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9, "ban": BAN}], ids=["plain", "warped"]
)
def test_equal_to_what_the_sampler_reports(tiny, batch, settings):
    out = generate(
        *tiny, batch, key=jax.random.key(3), num_samples=3, max_new_tokens=10, stop_ids=tuple(range(300, 330)), **settings
    )
    score = jax.jit(lambda params, batch, out: completion_logprobs(
        tiny[0], params, batch, out.tokens, out.lengths, chunk=4, entropy=True, **settings
    ))  # fmt: skip
    logprobs, entropy = score(tiny[1], batch, out)
    assert len(np.unique(out.lengths)) > 1
    np.testing.assert_allclose(logprobs, out.logprobs, atol=1e-4)
    behind = np.arange(10) >= np.asarray(out.lengths)[..., None]
    assert (np.asarray(logprobs)[behind] == 0).all() and (np.asarray(entropy)[behind] == 0).all()
    assert (np.asarray(entropy)[~behind] >= 0).all()


@pytest.fixture(scope="module")
def sequences():
    """tokens [3, 2, 10] and lengths [3, 2], and weights that differ from token to token."""
    rng = np.random.default_rng(0)
    lengths = np.array([[10, 1], [4, 7], [10, 3]], np.int32)
    return rng.integers(8, 386, (3, 2, 10)).astype(np.int32), lengths, rng.normal(size=(3, 2, 10)).astype(np.float32)


def test_values_entropy_and_gradient_equal_the_plain_forward(tiny, batch, sequences, full_logits):
    model, params = tiny
    tokens, lengths, weights = sequences
    lora = jax.tree.map(lambda f: f + 0.05, lora_module.init(jax.random.key(1), params, rank=2, alpha=4))
    inside = np.arange(10) < lengths[..., None]

    def plain(lora):
        logprobs = distribution(full_logits(model, params, batch, tokens, lora), 0.7, ban=jnp.zeros(400, bool).at[7].set(True))
        entropy = -jnp.sum(jnp.exp(logprobs) * jnp.where(jnp.isinf(logprobs), 0, logprobs), -1)
        chosen = jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]
        return jnp.sum(jnp.where(inside, weights * chosen, 0)), (jnp.where(inside, chosen, 0), jnp.where(inside, entropy, 0))

    def chunked(lora):
        logprobs, entropy = completion_logprobs(
            model, params, batch, tokens, lengths, lora=lora, temperature=0.7, ban=(7,), chunk=4, remat=True, entropy=True
        )
        return jnp.sum(weights * logprobs), (logprobs, entropy)

    tokens = np.where(tokens == 7, 8, tokens)
    (_, expected), expected_gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(lora)
    (_, found), gradient = jax.jit(jax.value_and_grad(chunked, has_aux=True))(lora)
    for value, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, reference, atol=1e-4)
    for value, reference in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(value, reference, atol=1e-5 * max(1.0, float(jnp.abs(reference).max())))


def test_a_single_token(tiny, batch, sequences, full_logits):
    tokens = sequences[0][..., :1]
    found = completion_logprobs(*tiny, batch, tokens, np.ones((3, 2), np.int32))
    expected = jax.nn.log_softmax(full_logits(*tiny, batch, tokens))
    np.testing.assert_allclose(found, np.take_along_axis(np.asarray(expected), tokens[..., None], -1)[..., 0], atol=1e-4)


def test_logits_of_all_tokens_never_stand_in_memory(tiny, batch, sequences):
    tokens, lengths, _ = (np.tile(array, (1, 4, 8)[: array.ndim]) for array in sequences)
    lengths = lengths * 8
    program = jax.jit(jax.grad(lambda params: completion_logprobs(
        tiny[0], params, batch, tokens, lengths, chunk=8
    ).sum())).lower(tiny[1])  # fmt: skip
    assert "3x8x80x400x" not in program.as_text() and "3x8x8x400x" in program.as_text()
