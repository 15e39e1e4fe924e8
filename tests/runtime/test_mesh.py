"""The mesh on eight simulated devices, and device errors as JAX really raises them."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mmedexpert_jax.errors import ConfigError, ResourceError
from mmedexpert_jax.runtime.devices import device_errors, explain
from mmedexpert_jax.runtime.mesh import make_mesh, shard_batch

EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mmedexpert_jax.errors import ConfigError, ResourceError
from mmedexpert_jax.runtime.mesh import make_mesh, shard_batch

mesh = make_mesh()
assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}
assert set(mesh.axis_types) == {AxisType.Auto}
tokens = np.linspace(-1, 1, 96, dtype=np.float32).reshape(16, 6)
batch = {"tokens": tokens, "images": np.zeros((0, 3)), "scale": np.float32(2)}
weights = np.linspace(-1, 1, 30, dtype=np.float32).reshape(6, 5)
sharded, whole = shard_batch(batch, mesh), jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
assert [shard.data.shape for shard in sharded["tokens"].addressable_shards] == [(2, 6)] * 8
assert [shard.data.shape for shard in whole.addressable_shards] == [(6, 5)] * 8
assert sharded["scale"].sharding.is_fully_replicated

def loss(weights, batch):
    return jnp.mean(jnp.tanh(batch["tokens"] @ weights * batch["scale"]) ** 2)

gradient = jax.jit(jax.grad(loss))(whole, sharded)
np.testing.assert_allclose(gradient, jax.grad(loss)(weights, batch), rtol=1e-5, atol=1e-7)
assert gradient.sharding.is_fully_replicated
assert make_mesh(4).devices.size == 4

for call, kind, words in (
    (lambda: shard_batch({"tokens": np.zeros((12, 2))}, mesh), ConfigError, "tokens has 12 rows, which 8 devices"),
    (lambda: make_mesh(16), ResourceError, "mesh data=16 needs 16 devices and there are 8"),
    (lambda: make_mesh(0), ConfigError, "mesh data=0"),
):
    try:
        call()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
print("ok")
"""


def test_eight_devices():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr


def test_one_device_is_the_same_code():
    mesh = make_mesh(1)
    assert shard_batch(jnp.ones((3, 2)), mesh).shape == (3, 2)
    with pytest.raises(ConfigError, match="mesh data=-3"):
        make_mesh(-3)


def test_out_of_memory_is_one_line_with_a_mend():
    line = r"^out of device memory.*; lower num_samples\Z"
    with pytest.raises(ResourceError, match=line), device_errors("lower num_samples"):
        jnp.zeros((1 << 24, 1 << 24)).block_until_ready()
    with pytest.raises(ResourceError, match="out of memory on the host"), device_errors():
        raise MemoryError


def test_no_such_device():
    with pytest.raises(ResourceError, match="no such device: JAX cannot use 'warp' here"), device_errors():
        jax.devices("warp")


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match=r"^shape$"), device_errors():
        raise RuntimeError("shape")
    wanted = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2500000000 bytes."
    assert explain(wanted, "mend") == "out of device memory (wanted 2.50 GB more); mend"
    assert (
        explain("RESOURCE_EXHAUSTED: allocating 2.50GiB", "mend") == "out of device memory (wanted 2.50GiB more); mend"
    )
