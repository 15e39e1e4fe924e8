"""Deltas of layers that read one input, joined: the same network, whatever the adapter leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.models import Model, ModelConfig, PromptCache, stack
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.network import join_factors
from mmedexpert_jax.models.random import init_params

TEXT = TextConfig(400, 32, 48, 2, 4, 2, mrope_section=(2, 1, 1))
CONFIG = ModelConfig(TEXT, VisionConfig("qwen2_vl", 1, 16, 32, 2, 32), True, pad_token_id=0)


@pytest.fixture(scope="module")
def lora():
    fresh = lora_module.init(jax.random.key(1), init_params(CONFIG, 0, "float32"), rank=2, alpha=4)
    return jax.tree.map(lambda f: f + 0.05 * jax.random.normal(jax.random.key(2), f.shape), fresh)


@jax.jit
def decoded(params, lora):
    model = Model(CONFIG)
    keys = tuple(jax.random.normal(jax.random.key(layer), (1, 2, 3, 8)) for layer in range(2))
    prefix = PromptCache(jnp.zeros((1, 1, 32)), keys, keys, jnp.array([3]), jnp.array([3]))
    cache = model.init_cache(1, 4, 2, jnp.float32)
    return model.decode(params, prefix, cache, jnp.array([[5, 6, 7, 8]]), jnp.int32(0), lora)[0]


@pytest.mark.parametrize("stacked", [False, True])
def test_joined_deltas_are_the_same_network(lora, stacked):
    params = init_params(CONFIG, 0, "float32")
    params, lora = (stack(params), stack(lora, params)) if stacked else (params, lora)
    joined = join_factors(CONFIG, lora)
    layer = "model.layers.*" if stacked else "model.layers.1"
    assert f"{layer}.self_attn" in joined.factors and f"{layer}.self_attn.q_proj" not in joined.factors
    assert joined.factors[f"{layer}.mlp"]["b"].shape[-2:] == (96, 4)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(decoded(params, joined), decoded(params, lora), atol=2e-6)
        assert np.abs(decoded(params, joined) - decoded(params, None)).max() > 1e-3


def test_what_an_adapter_leaves_out_stays_apart(lora):
    some = {path: pair for path, pair in lora.factors.items() if "k_proj" not in path}
    joined = join_factors(CONFIG, lora_module.Lora(some, lora.rank, lora.alpha))
    assert "model.layers.0.self_attn.q_proj" in joined.factors and "model.layers.0.mlp" in joined.factors
