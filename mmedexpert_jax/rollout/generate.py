"""Completions: each prompt is read once, and its G samples decode in rows that take the next sample as one ends."""

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
from mmedexpert_jax.models.sharded import as_placed
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.decode import Completions, Sampling, advance, empty_state, join, prefill, resize
from mmedexpert_jax.rollout.pool import Pool, places
from mmedexpert_jax.rollout.widths import (
    PATIENCE,
    cache_length_for,
    default_width,
    next_cache_length,
    sample_keys,
    widths,
)
from mmedexpert_jax.runtime.mesh import row_shards


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
    prompt_length: int = 0,
    fold: bool | None = None,
    width: int | None = None,
) -> Completions:
    """Samples completions.

    A sample's randomness comes from (key, its prompt's row id, its number in the group, step), so neither the other
    prompts of the batch nor the padding change it.

    A fixed number of rows decode; a row whose sample has ended takes the next one, in the same program. When none
    waits, the rows are cut to 3/4, a half, ... as no more are left, and the caches grow to 512, 1024, ... tokens as the
    oldest sample does: tails do not run at full width, and unwritten caches are not read. Each number of rows and
    of tokens is a program, compiled when it is first met; where both are soon due, they change together. If `batch`
    lies on a mesh (`runtime.mesh.shard_batch`), each device decodes its own prompts. Under an outer `jit`, where the
    host cannot look, every sample has a row to the end.

    Args:
        model: the network.
        params: its weights.
        batch: B prompts, or several batches with shapes of their own, which are read apart and decoded together. On
            a mesh each device's prompts of all batches then stand after one another.
        key: PRNG key.
        num_samples: G, samples of each prompt.
        max_new_tokens: R.
        min_new_tokens: stop ids are banned for so many tokens.
        temperature: 0 decodes greedily.
        top_k: 0 keeps the whole vocabulary; ties as in transformers.
        top_p: 1.0 keeps the whole vocabulary.
        stop_ids: tokens that end a sample; None means the model's EOS ids.
        ban: tokens that are never sampled; GBA, the engine and the server give `Processor.special_vision_ids`.
        lora: deltas.
        rows: [B] row ids, of several batches an array for each; None numbers the prompts from 0.
        prompt_length: tokens to which the prompts' keys are padded, so that rollouts of other lengths share programs;
            0: as many as the longest has.
        fold: whether the deltas are folded into the weights first, which saves two products a layer and token. None:
            into float32 weights, where that is exact; bfloat16 would round small deltas away, so there they stay in
            low-rank form.
        width: rows that decode at a time on each device. None: 32 on CPUs, 256 on accelerators.

    Raises:
        ConfigError: a setting out of its range.
        DataError: video in the batch.
    """
    batches = [batch] if isinstance(batch, Batch) else [*batch]
    for one in batches:
        model.refuse_video(one)
    settings = num_samples, max_new_tokens, min_new_tokens, float(temperature), top_k, float(top_p)
    stops = model.config.eos_token_ids if stop_ids is None else stop_ids
    sampling = _checked(Sampling(*settings, tuple(stops), tuple(ban)))
    params, lora = folded(params, lora, fold)
    if _mesh(batches[0]) is not None:
        params, lora = as_placed(params), as_placed(lora)
    if rows is None:
        ends = np.cumsum([0, *(len(one.tokens) for one in batches)])
        ids = [jnp.arange(*span) for span in itertools.pairwise(map(int, ends))]
    else:
        ids = [jnp.asarray(one) for one in ([rows] if isinstance(batch, Batch) else rows)]
    if _is_wide(batches, num_samples, width or default_width()):
        return _in_turns(model, sampling, params, batches, lora, key, ids, width or default_width(), prompt_length)
    keys = [sample_keys(key, rows, num_samples) for rows in ids]
    return _sample(model, sampling, params, batches, lora, keys, width, prompt_length)


def _checked(sampling: Sampling) -> Sampling:
    """The settings; raises ConfigError where one is out of its range."""
    sizes = sampling.num_samples >= 1 and sampling.max_new_tokens >= 1
    if not sizes or (sampling.temperature or 0) < 0 or not 0 < sampling.top_p <= 1:
        raise ConfigError(
            f"num_samples={sampling.num_samples} and max_new_tokens={sampling.max_new_tokens} must be at least 1, "
            f"temperature={sampling.temperature} at least 0 and top_p={sampling.top_p} in (0, 1]"
        )
    return sampling


def _is_wide(batches: Sequence[Batch], num_samples: int, width: int) -> bool:
    """True where prompts are prefilled as rows become free, since their keys need not all be on the device."""
    if len(batches) == 1 or isinstance(batches[0].tokens, jax.core.Tracer) or _mesh(batches[0]) is not None:
        return False
    lengths = [len(batch.tokens) for batch in batches]
    return sum(lengths) > 2 * places(width, num_samples, max(lengths))


def _in_turns(
    model: Model,
    sampling: Sampling,
    params: dict,
    batches: Sequence[Batch],
    lora: Lora | None,
    key: Array,
    rows: Sequence[Array],
    width: int,
    prompt_length: int,
) -> Completions:
    """The samples of batches that are read one after the other, as rows become free."""
    block = max(len(batch.tokens) for batch in batches)
    length = max(prompt_length, *(batch.tokens.shape[1] for batch in batches))
    pool, found = Pool(model, sampling, params, lora, key, width, block, length), dict[int, Completions]()
    count = 0
    for batch, ids in zip(batches, rows, strict=True):
        while pool.full:
            pool.run(more=True)
            found |= pool.ended()
        tickets = range(count, count := count + len(batch.tokens))
        pool.admit(batch, np.asarray(ids), tickets)
    while pool.busy:
        pool.run()
        found |= pool.ended()
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *(found[number] for number in range(count)))


def _sample(
    model: Model,
    sampling: Sampling,
    params: dict,
    batches: Sequence[Batch],
    lora: Lora | None,
    batch_keys: Sequence[Array],
    width: int | None,
    prompt_length: int,
) -> Completions:
    """Reads the prompts, then decodes their samples [B, G] in programs as small as hold those that are left."""
    size, mesh = sampling.max_new_tokens, _mesh(batches[0])
    prefilled = [
        (*prefill(model, sampling, mesh, params, batch, lora, keys), keys)
        for batch, keys in zip(batches, batch_keys, strict=True)
    ]
    lengths = {batch.tokens.shape[1] for batch in batches} | {prompt_length}
    alone = len(batches) == 1 and max(lengths) == batches[0].tokens.shape[1]
    prefix, completions, keys = prefilled[0] if alone else join(mesh, max(lengths), prefilled)
    traced = isinstance(keys, jax.core.Tracer)
    samples = keys.size // row_shards(mesh)
    rows = samples if traced else min(width or default_width(), samples)
    sizes, cache_length = widths(rows, size), cache_length_for(1, size)
    state = empty_state(model, rows, cache_length, mesh, prefix.hidden.dtype, completions)
    width, left = rows, samples
    while left:
        leave = 0 if traced else max((w for w in sizes if w < width), default=0)
        least = 0 if mesh is None else PATIENCE
        state, status = advance(model, sampling, mesh, params, lora, prefix, keys, state, leave, least, size)
        if traced:  # all rows are as old as the cache is long
            if cache_length == size:
                break
            oldest = cache_length + 1
        else:
            left, oldest = map(int, jax.device_get(status))
        rows = next(w for w in reversed(sizes) if w >= min(left, width))
        shape = rows, next_cache_length(cache_length, oldest, size, fewer=rows < width)
        if left and shape != (width, cache_length):
            width, cache_length = shape
            state = resize(width, cache_length, mesh, state)
    return state.completions


def folded(params: dict, lora: Lora | None, fold: bool | None) -> tuple[dict, Lora | None]:
    """The weights that decode: with the deltas in them, or both apart; `fold` as in `generate`."""
    if fold is None:
        fold = params["model"]["embed_tokens"]["weight"].dtype == jnp.float32 and not is_quantised(params)
    return (lora_module.fold(params, lora), None) if lora is not None and fold else (params, lora)


def _mesh(batch: Batch) -> Mesh | None:
    """The mesh that the prompts are split over, or that splits weights alone."""
    sharding = None if isinstance(batch.tokens, jax.core.Tracer) else getattr(batch.tokens, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh) or sharding.mesh.size == 1:
        return None
    return None if sharding.is_fully_replicated and row_shards(sharding.mesh) > 1 else sharding.mesh
