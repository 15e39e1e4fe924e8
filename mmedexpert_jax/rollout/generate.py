"""Completions: each prompt is read once, its G samples are decoded together until all of them have ended."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.models import Cache, Model
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.sampling import sample


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
    """G samples of each of B prompts, at most R tokens long."""

    tokens: Array  # [B, G, R] int32, the pad id behind the end
    logprobs: Array  # [B, G, R] float32, of the distribution sampled from; 0 behind the end
    lengths: Array  # [B, G] int32, the stop token counted
    truncated: Array  # [B, G] bool, R tokens long and no stop token among them


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a compiled program depends on besides shapes."""

    num_samples: int
    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    stop_ids: tuple[int, ...]
    ban: tuple[int, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """The loop's carry: `step` tokens of every sample are drawn."""

    step: Array  # [] int32
    cache: Cache
    completions: Completions
    ended: Array  # [B, G] bool


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
) -> Completions:
    """Samples completions.

    A sample's randomness comes from (key, its prompt's row id, its number in the group, step), so neither the other
    prompts of the batch nor the padding change it.

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
        lora: deltas. Float32 weights take them folded in: exact, and fewer products for each token. In bfloat16 the
            rounding of the sum would lose small deltas, so there they stay in low-rank form.
        rows: [B] row ids; None numbers the prompts from 0.

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
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    stop_ids = model.config.eos_token_ids if stop_ids is None else stop_ids
    rows = jnp.arange(len(batch.tokens)) if rows is None else jnp.asarray(rows)
    settings = _Settings(
        num_samples,
        max_new_tokens,
        min_new_tokens,
        float(temperature),
        top_k,
        float(top_p),
        tuple(stop_ids),
        tuple(ban),
    )
    return _generate(model, settings, params, batch, lora, key, rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    model: Model, settings: _Settings, params: dict, batch: Batch, lora: Lora | None, key: Array, rows: Array
) -> Completions:
    if lora is not None and params["model"]["embed_tokens"]["weight"].dtype == jnp.float32:
        params, lora = lora_module.fold(params, lora), None
    keys = _sample_keys(key, rows, settings.num_samples)
    prefix = model.prefill(params, batch, lora)
    prompt_end = jnp.take_along_axis(prefix.hidden, prefix.lengths[:, None, None] - 1, axis=1)  # [B, 1, D]

    def draw(hidden: Array, state: _State) -> _State:
        logits = model.unembed(params, hidden, lora)
        step_keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, state.step)
        ban = _ban_mask(settings, state.step, logits.shape[-1])
        logits = jnp.broadcast_to(logits, (*keys.shape, logits.shape[-1]))
        drawn = sample(step_keys, logits, settings.temperature, settings.top_k, settings.top_p, ban)
        return _record(settings, model.config.pad_token_id, state, *drawn)

    def advance(state: _State) -> _State:
        tokens = jax.lax.dynamic_index_in_dim(state.completions.tokens, state.step - 1, axis=2, keepdims=False)
        hidden, cache = model.decode(params, prefix, state.cache, tokens, state.step - 1, lora)
        return draw(hidden, dataclasses.replace(state, cache=cache))

    start = _start(model, settings, keys.shape, prefix.keys[0].dtype)
    end = jax.lax.while_loop(
        lambda state: (state.step < settings.max_new_tokens) & ~jnp.all(state.ended), advance, draw(prompt_end, start)
    )
    return dataclasses.replace(end.completions, truncated=~end.ended)


def _sample_keys(key: Array, rows: Array, num_samples: int) -> Array:
    """[B, G] keys."""
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(row_keys, jnp.arange(num_samples))


def _start(model: Model, settings: _Settings, shape: tuple[int, ...], dtype: jnp.dtype) -> _State:
    """Nothing drawn yet."""
    size = settings.max_new_tokens
    empty = Completions(
        tokens=jnp.full((*shape, size), model.config.pad_token_id, jnp.int32),
        logprobs=jnp.zeros((*shape, size), jnp.float32),
        lengths=jnp.zeros(shape, jnp.int32),
        truncated=jnp.zeros(shape, bool),
    )
    return _State(jnp.int32(0), model.init_cache(shape[0], shape[1], size, dtype), empty, jnp.zeros(shape, bool))


def _ban_mask(settings: _Settings, step: Array, vocabulary: int) -> Array | None:
    """[V] bool: what `step` may not draw; None where nothing is ever banned."""
    if not settings.ban and not settings.min_new_tokens:
        return None
    ids = jnp.arange(vocabulary)
    banned = jnp.isin(ids, jnp.array(settings.ban, jnp.int32))
    return banned | (jnp.isin(ids, jnp.array(settings.stop_ids, jnp.int32)) & (step < settings.min_new_tokens))


def _record(settings: _Settings, pad_id: int, state: _State, tokens: Array, logprobs: Array) -> _State:
    """The state with a drawn token [B, G] of every sample that has not ended."""
    done, ended = state.completions, state.ended
    tokens = jnp.where(ended, pad_id, tokens)
    logprobs = jnp.where(ended, 0.0, logprobs)
    completions = dataclasses.replace(
        done,
        tokens=jax.lax.dynamic_update_index_in_dim(done.tokens, tokens, state.step, axis=2),
        logprobs=jax.lax.dynamic_update_index_in_dim(done.logprobs, logprobs, state.step, axis=2),
        lengths=done.lengths + ~ended,
    )
    ended = ended | jnp.isin(tokens, jnp.array(settings.stop_ids, jnp.int32))
    return dataclasses.replace(state, step=state.step + 1, completions=completions, ended=ended)
