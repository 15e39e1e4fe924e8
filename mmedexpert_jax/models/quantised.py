"""Frozen weights in 8 or 4 bits, made whole again layer by layer inside a program: the base under a LoRA (QLoRA).

    int8  w ~ s_o q,          q = round(w / s_o) in -127 .. 127, s_o = max |w| of the output channel o / 127
    nf4   w ~ s_b t[q],       t the 16 quantiles of a normal distribution (Dettmers et al. 2023, arXiv 2305.14314,
                              appendix E; bitsandbytes), s_b = max |w| of a block of 64 neighbours of a row

Products are computed in the dtype that the weight would have had. The gradient reaches the input alone, and a whole
weight is never kept for it: the backward pass makes it again.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from mmedexpert_jax import lora
from mmedexpert_jax.models.tree import flatten, nest

KINDS = ("int8", "nf4")
BLOCK = 64  # values of nf4 with a scale of their own, as in QLoRA
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
_BOUNDS = (NF4[1:] + NF4[:-1]) / 2  # between two values, the nearer one is taken


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """A weight [..., out, in]; in a tree of parameters it takes the plain one's place."""

    codes: Any  # int8 [..., out, in]; of nf4 uint8 [..., out, in / 2], the first of two values in the high bits
    scale: Any  # float32 [..., out]; of nf4 [..., out, in / 64]
    kind: str = dataclasses.field(metadata={"static": True})
    kept: str = dataclasses.field(metadata={"static": True})  # dtype of the plain weight

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the plain weight."""
        *rest, last = self.codes.shape
        return (*rest, last * (2 if self.kind == "nf4" else 1))

    @property
    def ndim(self) -> int:
        """Axes of the plain weight."""
        return len(self.codes.shape)

    @property
    def size(self) -> int:
        """Values of the plain weight."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> jnp.dtype:
        """Of the plain weight."""
        return jnp.dtype(self.kept)

    def plain(self) -> Array:
        """The weight [..., out, in] in its dtype; the product with the scale is rounded once."""
        if self.kind == "int8":
            return (self.codes.astype(jnp.float32) * self.scale[..., None]).astype(self.dtype)
        pairs = jnp.stack([self.codes >> 4, self.codes & 15], axis=-1).reshape(*self.codes.shape[:-1], -1, BLOCK)
        return (jnp.asarray(NF4)[pairs] * self.scale[..., None]).astype(self.dtype).reshape(self.shape)


@functools.partial(jax.jit, static_argnums=1)
def quantise(weight: Array, kind: str) -> Quantised:
    """A weight [..., out, in] in one of KINDS; nf4 needs `in` to be a multiple of 64. Layers of a stack in turn."""
    if weight.ndim > 2:
        return jax.lax.map(lambda layer: quantise(layer, kind), weight)
    values, kept = weight.astype(jnp.float32), str(weight.dtype)
    if kind == "int8":
        scale = jnp.max(jnp.abs(values), axis=-1) / 127
        codes = jnp.round(values / jnp.where(scale > 0, scale, 1)[..., None])
        return Quantised(codes.astype(jnp.int8), scale, kind, kept)
    blocks = rearrange(values, "... (blocks value) -> ... blocks value", value=BLOCK)
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    fractions = blocks / jnp.where(scale > 0, scale, 1)[..., None]
    codes = jnp.searchsorted(jnp.asarray(_BOUNDS), fractions, method="compare_all")
    pairs = codes.astype(jnp.uint8).reshape(*values.shape[:-1], -1, 2)
    return Quantised(pairs[..., 0] << 4 | pairs[..., 1], scale, kind, kept)


def quantisable(params: dict, kind: str) -> frozenset[str]:
    """Names of the weights that are quantised: of linear layers as in "all-linear", so neither of head nor embedding.

    With nf4 those whose rows are whole blocks; the others, a few of some vision towers, stay as they are.
    """
    return frozenset(
        f"{path}.weight" for path, shape in lora.linears(params) if kind == "int8" or shape[-1] % BLOCK == 0
    )


def quantise_params(params: dict, kind: str) -> dict:
    """Parameters, or their shapes, with the weights of `quantisable` in one of KINDS."""
    names = quantisable(params, kind)

    one = functools.partial(quantise, kind=kind)

    def changed(leaf: Any) -> Any:
        return jax.eval_shape(one, leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else one(leaf)

    return nest({name: changed(leaf) if name in names else leaf for name, leaf in flatten(params).items()})


def is_quantised(params: dict) -> bool:
    """True where any weight is quantised."""
    leaves = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Quantised))
    return any(isinstance(leaf, Quantised) for leaf in leaves)


@jax.custom_vjp
def contract_quantised(x: Array, weight: Quantised) -> Array:
    """x [..., in] with weight [out, in] -> [..., out], the weight made whole for this product alone."""
    codes, x = jax.lax.optimization_barrier((weight.codes, x))  # else a loop over tokens would keep it whole
    whole = dataclasses.replace(weight, codes=codes).plain()
    return jax.lax.dot_general(x, whole, (((x.ndim - 1,), (1,)), ((), ())))


def _forward(x: Array, weight: Quantised) -> tuple[Array, Quantised]:
    return contract_quantised(x, weight), weight


def _backward(weight: Quantised, slope: Array) -> tuple[Array, None]:
    codes, slope = jax.lax.optimization_barrier((weight.codes, slope))
    whole = dataclasses.replace(weight, codes=codes).plain()
    return jax.lax.dot_general(slope, whole, (((slope.ndim - 1,), (0,)), ((), ()))), None


contract_quantised.defvjp(_forward, _backward)
