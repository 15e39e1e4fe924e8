"""A LoRA's share in the linear layers of a decode step, by one kernel for GPUs.

Left to XLA, a delta takes three to six kernels of a layer's input. Here x A^T comes out of the kernel that computes the
layers' own outputs, and this one does the rest: its product with B, the sum, the rounding, and of an MLP the gate.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mmedexpert_jax.models.fused import TILE

COLUMNS = 128  # of the outputs, of a program
ROWS = 64  # at most, of a program


# traced and lowered once for all layers of a shape
@functools.partial(jax.jit, static_argnames=("scale", "dtype", "gate", "interpret"))
def add_delta(
    joined: Array,
    b: Array,
    scale: float,
    dtype: jnp.dtype,
    gate: Callable[[Array], Array] | None = None,
    *,
    interpret: bool = False,
) -> Array:
    """y + scale (x A^T) B^T.

    Args:
        joined: [N, out + 2 M] float32: y, then x with both halves of A (`network.join_factors`).
        b: [M, out] float32, M a multiple of 32.
        scale: of the delta.
        dtype: of the result.
        gate: takes the first half of the outputs, which the second half is multiplied with.
        interpret: run by JAX itself, for tests where there is no such device.

    Returns:
        [N, out]; with a `gate` [N, out / 2].
    """
    depth, out = b.shape
    size = out if gate is None else out // 2
    rows = min(ROWS, max(TILE, pl.next_power_of_2(len(joined))))
    whole = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        functools.partial(_kernel, rows=rows, scale=scale, gate=gate, depth=depth),
        grid=(pl.cdiv(size, COLUMNS), pl.cdiv(len(joined), rows)),
        in_specs=[whole, whole],
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct((len(joined), size), dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="add_delta",
    )(joined, b)


def _kernel(
    joined_ref: Any, b_ref: Any, y_ref: Any, *, rows: int, scale: float, gate: Callable | None, depth: int
) -> None:
    """The program of some columns of some rows; arrays as in `add_delta`."""
    (count, size), out = y_ref.shape, b_ref.shape[1]
    column, row = pl.program_id(0) * COLUMNS, pl.ds(pl.program_id(1) * rows, rows)
    real = (pl.program_id(1) * rows + jnp.arange(rows) < count)[:, None]
    within = (column + jnp.arange(COLUMNS) < size)[None]
    load = functools.partial(triton.load, mask=real, other=0.0)
    inner = load(joined_ref.at[row, pl.ds(out, depth)]) + load(joined_ref.at[row, pl.ds(out + depth, depth)])

    def outputs(first: Any) -> Array:
        columns = pl.ds(first, COLUMNS)
        own = triton.load(joined_ref.at[row, columns], mask=real & within, other=0.0)
        factor = triton.load(b_ref.at[:, columns], mask=within, other=0.0)
        return own + scale * pl.dot(inner, factor, precision=jax.lax.Precision.HIGHEST)

    y = outputs(column)
    if gate is not None:
        y = gate(y) * outputs(size + column)
    triton.store(y_ref.at[row, pl.ds(column, COLUMNS)], y.astype(y_ref.dtype), mask=real & within)
