"""Completions: each prompt is read once, and its G samples decode in rows that take the next sample as one ends."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Model
from mmedexpert_jax.models.quantised import is_quantised
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.decode import Completions, Sampling, advance, join, read, resize, start

WINDOW = 128  # tokens of the smallest caches
PARTS = (8, 6, 4, 2, 1)  # eighths of the rows that are kept as samples end and none waits
PARTS_SHORT = (8, 3)  # where samples have at most WINDOW tokens: a tail too short to repay more programs
PATIENCE = 64  # steps on a mesh, where devices with few rows left do not wait for those with many


def generate(
    model: Model,
    params: dict,
    batch: Batch | Sequence[Batch],
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
    rows: Array | Sequence[Array] | None = None,
    room: int = 0,
    fold: bool | None = None,
    width: int | None = None,
) -> Completions:
    """Samples completions.

    A sample's randomness comes from (key, its prompt's row id, its number in the group, step), so neither the other
    prompts of the batch nor the padding change it.

    A fixed number of rows decode; a row whose sample has ended takes the next one, in the same program. When none
    waits, the rows are cut to 3/4, a half, ... as no more are left, and the caches grow to 512, 2048, ... tokens as the
    oldest sample does: tails do not run at full width, and what no one has written is not read. Each number of rows and
    of tokens is a program, compiled when it is first met. If `batch` lies on a mesh (`runtime.mesh.shard_batch`), each
    device decodes its own prompts. Under an outer `jit`, where the host cannot look, every sample has a row to the end.

    Args:
        model: the network.
        params: its weights.
        batch: B prompts, or parts of them with shapes of their own, which are read apart and decoded together. On a
            mesh each device's prompts of all parts then stand after one another.
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
        rows: [B] row ids, of parts one array for each; None numbers the prompts from 0.
        room: tokens that prompts have room for, so that rollouts of other lengths share programs; 0: as many as the
            longest has.
        fold: whether the deltas are folded into the weights first, which saves two products a layer and token. None:
            into float32 weights, where that is exact; bfloat16 would round small deltas away, so there they stay in
            low-rank form.
        width: rows that decode at a time on each device. None: 32 on CPUs, 256 on accelerators.

    Raises:
        ConfigError: a setting out of its range.
        DataError: video in the batch.
    """
    if num_samples < 1 or max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"num_samples={num_samples} and max_new_tokens={max_new_tokens} must be at least 1, "
            f"temperature={temperature} at least 0 and top_p={top_p} in (0, 1]"
        )
    parts = [batch] if isinstance(batch, Batch) else [*batch]
    for part in parts:
        model.refuse_video(part)
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
    params, lora = folded(params, lora, fold)
    if rows is None:
        ends = np.cumsum([0, *(len(part.tokens) for part in parts)])
        rows = [jnp.arange(*span) for span in itertools.pairwise(map(int, ends))]
    elif isinstance(batch, Batch):
        rows = [jnp.asarray(rows)]
    keys = [sample_keys(key, jnp.asarray(ids), num_samples) for ids in rows]
    return _sample(model, sampling, params, parts, lora, keys, width, room)


def _sample(
    model: Model,
    sampling: Sampling,
    params: dict,
    parts: Sequence[Batch],
    lora: Lora | None,
    part_keys: Sequence[Array],
    width: int | None,
    room: int,
) -> Completions:
    """Reads the prompts, then decodes their samples [B, G] in programs as small as hold those that are left."""
    size, mesh = sampling.max_new_tokens, _mesh(parts[0])
    reads = [
        (*read(model, sampling, mesh, params, part, lora, keys), keys)
        for part, keys in zip(parts, part_keys, strict=True)
    ]
    lengths = {part.tokens.shape[1] for part in parts} | {room}
    alone = len(parts) == 1 and max(lengths) == parts[0].tokens.shape[1]
    prefix, completions, keys = reads[0] if alone else join(mesh, max(lengths), reads)
    traced = isinstance(keys, jax.core.Tracer)
    samples = keys.size // devices_of(mesh)
    rows = samples if traced else min(width or default_width(), samples)
    sizes, window = widths(rows, size), window_for(1, size)
    state = start(model, rows, window, mesh, prefix.hidden.dtype, completions)
    width, left = rows, samples
    while left:
        leave = 0 if traced else max((w for w in sizes if w < width), default=0)
        least = 0 if mesh is None else PATIENCE
        state, status = advance(model, sampling, mesh, params, lora, prefix, keys, state, leave, least, size)
        if traced:  # all rows are as old as the window is long
            if window == size:
                break
            oldest = window + 1
        else:
            left, oldest = map(int, jax.device_get(status))
        shape = next(w for w in reversed(sizes) if w >= min(left, width)), max(window, window_for(oldest, size))
        if left and shape != (width, window):
            width, window = shape
            state = resize(width, window, mesh, state)
    return state.completions


def folded(params: dict, lora: Lora | None, fold: bool | None) -> tuple[dict, Lora | None]:
    """The weights that decode: with the deltas in them, or both apart; `fold` as in `generate`."""
    if fold is None:
        fold = params["model"]["embed_tokens"]["weight"].dtype == jnp.float32 and not is_quantised(params)
    return (lora_module.fold(params, lora), None) if lora is not None and fold else (params, lora)


def default_width() -> int:
    """Rows that decode at a time on each device: beyond them a step of a CPU takes as much longer as it has rows."""
    return 32 if jax.default_backend() == "cpu" else 256


def devices_of(mesh: Mesh | None) -> int:
    """Devices among which rows are split."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def widths(rows: int, size: int) -> list[int]:
    """Numbers of rows that programs are compiled for, from all `rows` down; samples have up to `size` tokens."""
    return sorted({-(-rows * part // 8) for part in (PARTS if size > WINDOW else PARTS_SHORT)}, reverse=True)


def window_for(length: int, size: int) -> int:
    """Tokens that the caches hold for samples of `length`: 128, 512, ..., of which the last is `size`."""
    return min(size, next(w for w in (WINDOW * 4**k for k in range(size)) if w >= length))


def _mesh(batch: Batch) -> Mesh | None:
    """The mesh that the prompts are split over."""
    sharding = None if isinstance(batch.tokens, jax.core.Tracer) else getattr(batch.tokens, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated:
        return None
    return sharding.mesh if isinstance(sharding.mesh, Mesh) else None


@functools.partial(jax.jit, static_argnums=2)
def sample_keys(key: Array, rows: Array, num_samples: int) -> Array:
    """[B, G] keys, of row ids [B] and numbers in the group."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, jnp.arange(num_samples))
