"""Weights in parts: samples on eight simulated devices against one device's, and what a program gathers at most."""

import os
import subprocess
import sys

import pytest

RUN = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.models import Model, ModelConfig, sharded
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.models.tree import flatten, stack
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout import completion_logprobs, generate
from mmedexpert_jax.rollout.decode import Sampling, advance, prefill, empty_state
from mmedexpert_jax.runtime.mesh import make_mesh, shard, shard_batch, shardings
from mmedexpert_jax.train.layout import Layout

jax.config.update("jax_default_matmul_precision", "highest")
sharded.PIECE = 20  # of the 24 tokens of a device's prompts
family, meshes, vocabulary, checked = sys.argv[1], eval(sys.argv[2]), int(sys.argv[3]), "programs" in sys.argv
if family == "gemma3":  # a window shorter than a row, and images of four tokens that see one another
    text = TextConfig(
        vocabulary, 32, 48, num_layers=2, num_heads=8, num_kv_heads=8, head_width=8, mrope_section=(4, 0, 0),
        bias=False, qk_norm=True, activation="gelu_pytorch_tanh", query_width=24, window=5, windowed=(True, False),
        window_theta=1e3, max_position_embeddings=64,
    )
    vision = VisionConfig(
        "gemma3", 1, 32, 40, 8, 32, temporal_patch_size=1, num_positions=16, image_size=56, bidirectional=True
    )
else:
    text = TextConfig(vocabulary, 64, 128, num_layers=2, num_heads=8, num_kv_heads=8, mrope_section=(1, 1, 2))
    vision = VisionConfig("qwen2_5_vl", 1, 32, 40, num_heads=2, out_hidden_size=64, full_attention_blocks=())
special = dict(image_token_id=90, video_token_id=91, vision_start_token_id=92, eos_token_ids=tuple(range(100, 180)))
model = Model(ModelConfig(text, vision, family == "gemma3", **special))
plain = jax.tree.map(lambda x: np.asarray(x) * (10 if x.ndim > 1 else 1), init_params(model.config, 0, np.float32))
deltas = jax.tree.map(lambda x: np.asarray(x) + 0.05, lora_module.init(jax.random.key(0), plain, rank=2, alpha=4))
rng = np.random.default_rng(0)
tokens, index = rng.integers(0, 90, (16, 12)).astype(np.int32), np.full((16, 12), -1, np.int32)
index[:8, 3:7] = np.arange(32).reshape(8, 4)  # half of the prompts have an image: of two devices in eight no one's own
places = np.array([[i, j] for k in range(4) for i in (0, 1) for j in (0, 1)], np.int32)
batch = Batch(
    tokens, np.array([12, 9] * 8, np.int32), np.tile(np.arange(12, dtype=np.int32), (16, 3, 1)),
    np.full(16, 12, np.int32), index, rng.standard_normal((8, 16, 588 if family == "gemma3" else 1176), np.float32),
    np.tile(places, (8, 1, 1)), np.full(8, 16, np.int32),
)
key, how = jax.random.key(3), dict(num_samples=2, max_new_tokens=6, width=3, fold=False)  # fewer rows than samples

def on(mesh, deltas):
    return generate(model, shard(plain, mesh), shard_batch(batch, mesh), key=key, lora=deltas, **how)

for lora in (None, deltas):
    one = jax.device_get(generate(model, plain, batch, key=key, lora=lora, **how))
    assert len(np.unique(one.lengths)) > 2
    for sizes in meshes:
        mesh = make_mesh(*sizes)
        found = jax.device_get(on(mesh, shard(lora, mesh)))
        assert np.array_equal(found.tokens, one.tokens), (sizes, lora is None)
        np.testing.assert_allclose(found.logprobs, one.logprobs, atol=2e-5)

def layouts(mesh):
    shaped = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
    weights = jax.tree.map(shaped, plain, shardings(plain, mesh))
    params, rows = sharded.as_placed(weights), shard_batch(batch, mesh)
    sampling = Sampling(2, 6, 0, 1.0, 0, 1.0, (93,), ())
    keys = shard_batch(jax.random.split(key, (16, 2)), mesh)
    reading = prefill.lower(model, sampling, mesh, params, rows, None, keys)
    prefix, done = reading.out_info
    state = jax.eval_shape(lambda done: empty_state(model, 4, 6, mesh, jnp.dtype("float32"), done), done)
    yield "prefill", reading
    yield "decode", advance.lower(model, sampling, mesh, params, None, prefix, keys, state, 0, 0, 6)
    layout = Layout(mesh, "full")
    answers, lengths = np.ones((16, 2, 6), np.int32), np.full((16, 2), 6, np.int32)
    inside = shard_batch(jax.tree.map(lambda x: x, (batch.__class__(**vars(batch) | {
        "vision_index": np.where(index < 0, -1, index % 4).astype(np.int32)}), answers, lengths)), mesh)
    def loss(params, rows):
        def of_shard(params, rows):
            return completion_logprobs(model, params, *rows, remat=True).sum()
        return layout.by_shard(of_shard, layout.weights(stack(params)), rows).sum()
    yield "gradient", jax.jit(lambda *given: layout.weights(jax.grad(loss)(*given))).lower(weights, inside)

if checked:
    layer = sum(x.size for name, x in flatten(plain).items() if name.startswith("model.layers.0."))
    vocabulary = plain["model"]["embed_tokens"]["weight"].size
    assert vocabulary > layer
    for name, lowered in layouts(make_mesh(1, 8, 1)):
        program = lowered.compile().as_text()
        lines = " ".join(re.findall(r"= (.*?) all-gather(?:-start)?\\(", program))
        shapes = [eval(f"({dims},)") for dims in re.findall(r"f32\\[([\\d,]+)\\]", lines)]
        sizes = [int(np.prod(shape)) for shape in shapes]
        assert sizes and max(sizes) <= layer, (name, max(sizes), layer)
        assert f"f32[{text.vocab_size},{text.hidden_size}]" not in program, name  # nowhere, gathered or not
        if name == "decode":  # activations alone
            assert max(sizes) <= 8 * 4 * text.intermediate_size, max(sizes)
print("ok")
"""
ALL = [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8)]


def run(*arguments):
    flags = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr[-3000:]


def test_samples_from_weights_in_parts_are_those_of_one_device_and_nothing_larger_than_a_layer_is_gathered():
    run("qwen2_5_vl", [(1, 8, 1)], 1040, "programs")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_samples_of_every_layout(family):
    run(family, ALL, 1040)


@pytest.mark.slow
def test_a_vocabulary_that_the_devices_do_not_divide_is_split_by_its_width():
    run("qwen2_5_vl", [(1, 8, 1), (2, 2, 2)], 1042)
