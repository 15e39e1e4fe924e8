"""Sharding rules: what they say of every leaf, and logits on eight simulated devices against one device's."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from mmedexpert_jax import lora
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.runtime.mesh import check_hosts, partition, sharding

SHAPES = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8]
SOME = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]

RUN = """
import sys
import jax, numpy as np
from safetensors import safe_open
from mmedexpert_jax import lora
from mmedexpert_jax.errors import ConfigError, ResourceError
from mmedexpert_jax.models import Model, ModelConfig, load_model, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.tree import flatten
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.runtime.mesh import make_mesh, shard, shard_batch

jax.config.update("jax_default_matmul_precision", "highest")
folder, meshes = sys.argv[1], eval(sys.argv[2])
gemma, qwen3 = sys.argv[3] == "gemma3", sys.argv[3] == "qwen3_vl"
if gemma:  # a window shorter than a row, and images of four tokens that see one another
    text = TextConfig(
        96, 32, 48, num_layers=2, num_heads=8, num_kv_heads=8, head_width=8, mrope_section=(4, 0, 0), bias=False,
        qk_norm=True, activation="gelu_pytorch_tanh", query_width=24, window=5, windowed=(True, False),
        window_theta=1e3, max_position_embeddings=64,
    )
    vision = VisionConfig(
        "gemma3", 1, 32, 40, 8, 32, temporal_patch_size=1, num_positions=16, image_size=56, bidirectional=True
    )
elif qwen3:  # features of two blocks of the tower enter the decoder's first layers
    text = TextConfig(
        96, 32, 48, num_layers=3, num_heads=4, num_kv_heads=2, head_width=8, mrope_section=(2, 1, 1),
        mrope_interleaved=True, bias=False, qk_norm=True,
    )
    vision = VisionConfig(
        "qwen3_vl", 2, 32, 40, num_heads=2, out_hidden_size=32, patch_size=16, num_positions=16, deepstack_blocks=(0, 1)
    )
else:
    text = TextConfig(96, 32, 48, num_layers=1, num_heads=4, num_kv_heads=2, mrope_section=(1, 1, 2))
    vision = VisionConfig("qwen2_5_vl", 1, 32, 40, num_heads=2, out_hidden_size=32, full_attention_blocks=())
special = dict(image_token_id=90, video_token_id=91, vision_start_token_id=92, eos_token_ids=(93,))
model = Model(ModelConfig(text, vision, **special))
drawn = init_params(model.config, 0, np.float32)
drawn = jax.tree.map(lambda x: np.asarray(x) * (10 if x.ndim > 1 else 1), drawn)
save_pretrained(folder, model, drawn)
patch = 3 * vision.temporal_patch_size * vision.patch_size**2
rng = np.random.default_rng(0)
tokens = rng.integers(0, 90, (8, 12)).astype(np.int32)
index = np.full((8, 12), -1, np.int32)
index[:, 3:7] = np.arange(32).reshape(8, 4)
places = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
places = np.concatenate([places + [2 * i, 2 * j] for i in range(2) for j in range(2)]).astype(np.int32)
batch = Batch(
    tokens, np.array([12, 9] * 4, np.int32), np.tile(np.arange(12, dtype=np.int32), (8, 3, 1)),
    np.full(8, 12, np.int32), index, rng.standard_normal((8, 16, patch)).astype(np.float32),
    np.tile(places, (8, 1, 1)), np.full(8, 16, np.int32),
)
deltas = jax.tree.map(lambda x: np.asarray(x) + 0.05, lora.init(jax.random.key(0), drawn, rank=2, alpha=4))
_, single = load_model(folder)
expected = np.asarray(model.logits(single, batch, deltas))
for sizes in meshes:
    mesh = make_mesh(*sizes)
    _, params = load_model(folder, mesh=mesh)
    for name, leaf in flatten(params).items():
        axes = [axis for names in leaf.sharding.spec if names for axis in np.atleast_1d(names)]
        parts = np.prod([mesh.shape[axis] for axis in axes])
        assert leaf.addressable_shards[0].data.size * parts == leaf.size, name
        assert np.array_equal(leaf, flatten(drawn)[name]), name
    logits = model.logits(params, shard_batch(batch, mesh), shard(deltas, mesh))
    gap = np.abs(np.asarray(logits) - expected).max() / expected.std()
    assert gap < 1e-5, (sizes, gap)
for sizes, words in () if gemma or qwen3 else (
    ((1, 1, 5), "mesh tensor=5 does not divide the 128 of visual.merger.mlp.0.weight (128, 128)"),
    ((2, 3, 1), "mesh fsdp=3 does not divide the 32 of"),
    ((-1, 3, 1), "mesh fsdp=3, tensor=1 does not divide the 8 devices"),
    ((1, 0, 1), "mesh fsdp=0: give a number of devices from 1"),
    ((4, 2, 2), "mesh data=4, fsdp=2, tensor=2 needs 16 devices and there are 8"),
):
    try:
        load_model(folder, mesh=make_mesh(*sizes))
    except (ConfigError, ResourceError) as error:
        assert words in str(error) and chr(10) not in str(error), error
    else:
        raise AssertionError(words)
print("ok")
"""


def on_eight_devices(folder, meshes, family="qwen2_5_vl") -> None:
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", RUN, str(folder), repr(meshes), family]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr


def test_logits_on_eight_devices_equal_one_devices(tmp_path):
    """Weights, loaded slice by slice, and LoRA deltas by the rules; meshes that do not divide are named."""
    on_eight_devices(tmp_path / "model", SOME)


@pytest.mark.slow
def test_logits_of_gemma_on_eight_devices_equal_one_devices(tmp_path):
    """Windows by layer, images that see themselves, soft tokens."""
    on_eight_devices(tmp_path / "model", SOME, "gemma3")


@pytest.mark.slow
def test_logits_of_qwen3_on_eight_devices_equal_one_devices(tmp_path):
    """Interleaved positions, norms of queries and keys, features of the tower's blocks in the decoder's layers."""
    on_eight_devices(tmp_path / "model", [(8, 1, 1), (1, 8, 1), (1, 2, 4), (2, 2, 2)], "qwen3_vl")


@pytest.mark.slow
def test_logits_on_every_mesh_of_eight_devices(tmp_path):
    assert len(SHAPES) == 10
    on_eight_devices(tmp_path / "model", SHAPES)


@pytest.mark.parametrize(
    ("path", "ndim", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", 2, ("tensor", "fsdp")),
        ("model.layers.0.self_attn.q_proj.bias", 1, ("tensor",)),
        ("model.layers.*.self_attn.q_proj.weight", 3, (None, "tensor", "fsdp")),
        ("0.mu.factors.model.layers.*.self_attn.o_proj.b", 3, (None, "fsdp", None)),
        ("visual.blocks.*.norm1.bias", 2, ()),
        ("model.layers.11.mlp.down_proj.weight", 2, ("fsdp", "tensor")),
        ("model.layers.11.input_layernorm.weight", 1, ()),
        ("model.embed_tokens.weight", 2, (("fsdp", "tensor"), None)),
        ("lm_head.weight", 2, (("fsdp", "tensor"), None)),
        ("visual.patch_embed.proj.weight", 5, ("fsdp", None)),
        ("visual.blocks.3.attn.qkv.weight", 2, ("fsdp", "tensor")),
        ("visual.blocks.3.attn.proj.bias", 1, ("fsdp",)),
        ("visual.merger.mlp.0.weight", 2, ("tensor", "fsdp")),
        ("factors.model.layers.0.self_attn.q_proj.a", 2, (None, "fsdp")),
        ("0.mu.factors.model.layers.0.self_attn.o_proj.b", 2, ("fsdp", None)),
        ("1.0.nu.visual.merger.mlp.2.weight", 2, ("fsdp", "tensor")),
        ("0.count", 0, ()),
    ],
)
def test_a_leaf_is_split_by_the_end_of_its_path(path, ndim, expected):
    assert partition(path, ndim) == PartitionSpec(*expected)


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_matrix_of_the_published_sizes_is_split(size):
    """Eight devices divide each along "fsdp", and two along "tensor"."""
    axes = {"data": 1, "fsdp": 8, "tensor": 2}
    for name, shape in tensor_shapes(PUBLISHED[size]).items():
        spec = partition(name, len(shape))
        assert len(shape) == 1 or any(spec)
        for length, names in zip(shape, spec, strict=False):
            assert length % np.prod([axes[axis] for axis in np.atleast_1d(names) if axis]) == 0


def test_optimizer_state_is_split_as_what_it_belongs_to():
    """That of parameters and of LoRA deltas, both moments of AdamW."""
    shapes = tensor_shapes(PUBLISHED["qwen2_5_vl_7b"])
    chosen = {name: shape for name, shape in shapes.items() if ".0." in name or not re.search(r"\.\d+\.", name)}
    params = nest({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in chosen.items()})
    adapter = jax.eval_shape(lambda: lora.init(jax.random.key(0), params))
    for tree in (params, adapter):
        state = jax.eval_shape(optax.adamw(1e-3).init, tree)
        own = jax.tree_util.tree_leaves_with_path(tree)
        for moments in (state[0].mu, state[0].nu):
            for (path, _), (moment_path, moment) in zip(own, jax.tree_util.tree_leaves_with_path(moments), strict=True):
                names = (jax.tree_util.keystr(p, simple=True, separator=".") for p in (path, moment_path))
                assert len({partition(name, moment.ndim) for name in names}) == 1


def test_a_mesh_that_does_not_divide_is_named_before_anything_is_placed():
    mesh = jax.sharding.AbstractMesh((1, 1, 3), ("data", "fsdp", "tensor"))
    with pytest.raises(ConfigError, match=r"tensor=3 does not divide the 256 of model\.layers\.0\.self_attn\.k_proj"):
        sharding("model.layers.0.self_attn.k_proj.weight", (256, 1536), mesh)


@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (4, 2), (1, 8), (2, 1), (16, 1)])
def test_weights_split_inside_a_host_or_over_whole_hosts(fsdp, tensor):
    check_hosts(8, fsdp, tensor)


def test_a_split_over_parts_of_hosts_is_refused_with_one_that_fits():
    words = r"fsdp=6, tensor=2: 12 devices .* host of 8; set config.mesh.fsdp=4 \(or 8, 2, 1\)$"
    with pytest.raises(ConfigError, match=words):
        check_hosts(8, 6, 2, hosts=4)
    with pytest.raises(ConfigError, match=r"set config.mesh.tensor=2 \(or 4, 1, 8\)$"):  # fsdp=8 fills hosts not there
        check_hosts(8, 1, 3, hosts=1)
