"""The attention kernel of a decode step, lowered for TPUs that are not here; its values: `test_decode_attention.py`."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import export
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from mmedexpert_jax.models.ragged_attention import attend_ragged


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5", "TPU v6 lite"])  # v5e, v5p, v6e
def test_the_ragged_kernel_lowers_and_leaves_keys_and_values_in_hbm(kind):
    """The 2B's shapes, 64 rows of 8 prompts. Unbound, XLA copied whole rings into the VMEM of a v6e, and back."""

    def shaped(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    prompts, own, number = shaped(8, 2, 640, 128), shaped(64, 2, 1024, 128), shaped(64, dtype=jnp.int32)
    rows = [number, number, shaped(dtype=jnp.int32)]
    given = [shaped(64, 12, 1, 128), prompts, prompts, shaped(8, dtype=jnp.int32), own, own, *rows]
    device = AbstractDevice(kind, 1, "tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)):
        text = export.export(jax.jit(attend_ragged), platforms=["tpu"])(*given).mlir_module()
    (call,) = (line for line in text.splitlines() if "@tpu_custom_call(" in line)
    bound = re.findall(r"operand_index\\22:(\d+),\\22color\\22:0", call)  # colour 0: HBM
    types = re.findall(r"tensor<[\w]*xbf16>", call.rpartition(" : ")[2].partition(" -> ")[0])
    assert [int(index) for index in bound] == [5, 6, 7, 8]
    assert types[1:] == ["tensor<8x2x640x128xbf16>"] * 2 + ["tensor<64x2x1024x128xbf16>"] * 2
