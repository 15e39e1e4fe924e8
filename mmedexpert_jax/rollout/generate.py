"""Completions: each prompt is read once, its G samples are decoded together, and those that have ended make room."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.decode import Completions, Sampling, advance, begin, resize

STRETCH = 128  # tokens decoded before the host looks which samples are left
HALVINGS = 4  # of the rows: below a 16th of the samples a step costs hardly less


def generate(
    model: Model,
    params: dict,
    batch: Batch,
    *,
    key: Array,
    num_samples: int = 8,
    max_new_tokens: int = 1024,
    min_new_tokens: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] | None = None,
    ban: Sequence[int] = (),
    lora: Lora | None = None,
    rows: Array | None = None,
    fold: bool | None = None,
) -> Completions:
    """Samples completions.

    A sample's randomness comes from (key, its prompt's row id, its number in the group, step), so neither the other
    prompts of the batch nor the padding change it.

    After every 128 tokens the rows are cut to a half, a quarter, ... of the samples if no more are left, and the caches
    grow to 256, 512, ... tokens: long tails do not run at full width, and what no one has written is not read. Each
    number of rows and of tokens is a program, compiled when it is first met. If `batch` lies on a mesh
    (`runtime.mesh.shard_batch`), each device decodes its own prompts. Under an outer `jit`, where the host cannot
    look, the rows stay as they are and the caches grow all the same.

    Args:
        model: the network.
        params: its weights.
        batch: B prompts.
        key: PRNG key.
        num_samples: G, samples of each prompt.
        max_new_tokens: R.
        min_new_tokens: stop ids are banned for so many tokens.
        temperature: 0 decodes greedily.
        top_k: 0 keeps the whole vocabulary; ties as in transformers.
        top_p: 1.0 keeps the whole vocabulary.
        stop_ids: tokens that end a sample; None means the model's EOS ids.
        ban: tokens that are never sampled.
        lora: deltas.
        rows: [B] row ids; None numbers the prompts from 0.
        fold: whether the deltas are folded into the weights first, which saves two products a layer and token. None:
            into float32 weights, where that is exact; bfloat16 would round small deltas away, so there they stay in
            low-rank form.

    Raises:
        ConfigError: a setting out of its range.
        DataError: video in the batch.
    """
    if num_samples < 1 or max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"num_samples={num_samples} and max_new_tokens={max_new_tokens} must be at least 1, "
            f"temperature={temperature} at least 0 and top_p={top_p} in (0, 1]"
        )
    model.refuse_video(batch)
    stop_ids = model.config.eos_token_ids if stop_ids is None else stop_ids
    sampling = Sampling(
        num_samples,
        max_new_tokens,
        min_new_tokens,
        float(temperature),
        top_k,
        float(top_p),
        tuple(stop_ids),
        tuple(ban),
    )
    if fold is None:
        fold = params["model"]["embed_tokens"]["weight"].dtype == jnp.float32
    if lora is not None and fold:
        params, lora = lora_module.fold(params, lora), None
    keys = _sample_keys(key, jnp.arange(len(batch.tokens)) if rows is None else jnp.asarray(rows), num_samples)
    return _in_stretches(model, sampling, params, batch, lora, keys)


def _in_stretches(
    model: Model, sampling: Sampling, params: dict, batch: Batch, lora: Lora | None, keys: Array
) -> Completions:
    """Prefill, then stretch by stretch the samples [B, G] that have not ended, in programs as small as hold them."""
    size, mesh = sampling.max_new_tokens, _mesh(batch)
    traced = isinstance(keys, jax.core.Tracer)
    samples = keys.size // (1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"])  # of each device
    ends = _ends(size)
    if traced:
        ends = sorted({_window(end, size) for end in ends})
    shape = samples, _window(ends[0], size)
    prefix, state = begin(model, sampling, shape[1], mesh, params, batch, lora, keys)
    count: int | Array = samples
    for start, end in zip([1, *ends], ends, strict=False):
        left = samples if traced else int(count)
        if not left:
            break
        wanted = _width(left, samples), _window(end, size)
        if wanted != shape:
            shape, state = wanted, resize(*wanted, mesh, state)
        state, count = advance(model, sampling, mesh, params, lora, prefix, keys, state, start, end)
    return state.completions


def _ends(size: int) -> list[int]:
    """Where the stretches of `size` tokens end."""
    return [*range(STRETCH, size, STRETCH), size]


def _window(end: int, size: int) -> int:
    """Tokens that the caches hold while token `end` is the last: a few sizes, of which the last is `size`."""
    return min(size, STRETCH * 2 ** math.ceil(math.log2(max(end / STRETCH, 1))))


def _width(left: int, samples: int) -> int:
    """Rows for `left` of the samples: all, a half, ..., a 16th."""
    widths = (-(-samples // 2**halvings) for halvings in range(HALVINGS, -1, -1))
    return next(width for width in widths if width >= left)


def _mesh(batch: Batch) -> Mesh | None:
    """The mesh that the prompts are split over."""
    sharding = None if isinstance(batch.tokens, jax.core.Tracer) else getattr(batch.tokens, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated:
        return None
    return sharding.mesh if isinstance(sharding.mesh, Mesh) else None


@functools.partial(jax.jit, static_argnums=2)
def _sample_keys(key: Array, rows: Array, num_samples: int) -> Array:
    """[B, G] keys."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, jnp.arange(num_samples))
