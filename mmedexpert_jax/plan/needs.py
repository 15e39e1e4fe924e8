"""The bytes of a job on each device, from shapes alone: nothing is loaded, drawn or compiled.

Weights, deltas, optimizer state, gradients and caches are counted exactly, leaf by leaf. Activations are an estimate:

    layer(n)  = b n (8 D + 2 K + 3 F) + 8 H (B T^2 + S R (T + R))
    remat:      L b n D + 2 layer(n)        else:  L layer(n)
    logits:     12 V min(S R, 1024)

On a CPU the second holds with remat too: XLA's CPU compiler keeps what it was asked to recompute (measured, 5 % less).
Here b are the bytes of a number, B prompts of T tokens and S completions of R in one gradient, n = B T + S R, width D,
keys of width K, inner width F, H heads, L layers and V tokens of the vocabulary. Scores of the attention, their
exponentials and logits are float32. The vision tower is left out. Rows are taken at their full length. A merge is
counted by its blocks: a few float32 arrays of each for every expert and core.
"""

import functools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from mmedexpert_jax import lora
from mmedexpert_jax.gba import split
from mmedexpert_jax.gba.askers import BATCH, OWN
from mmedexpert_jax.merging.blockwise import BLOCK
from mmedexpert_jax.models import Model, ModelConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.quantised import quantise_params
from mmedexpert_jax.models.tree import STACKED, flatten, is_deep, nest, stack, stacked_name
from mmedexpert_jax.plan.architecture import architecture
from mmedexpert_jax.plan.hardware import GPUS, Devices
from mmedexpert_jax.rollout.logprobs import CHUNK
from mmedexpert_jax.rounding import cdiv
from mmedexpert_jax.runtime.mesh import row_shards, sharding
from mmedexpert_jax.runtime.threads import cores
from mmedexpert_jax.train.optimizer import adam

LOGIT = 12  # bytes an entry of the logits takes: three float32 arrays of their size live at once
ESTIMATES = ("activations", "logits")
STACKS = "stacked layers"  # of a deep model, whose layers are compiled as one (train/learner.py)


@dataclass
class Needs:
    """Bytes on each device."""

    parameters: int  # of the model, a number
    trained: int = 0  # of them or of the deltas, likewise; 0 where nothing is trained
    held: dict[str, int] = field(default_factory=dict)  # what stands there all the time
    phases: dict[str, dict[str, int]] = field(default_factory=dict)  # what comes on top in each phase of the job
    saved: int = 0  # bytes of one checkpoint, which holds all devices' state
    exported: int = 0  # bytes of the exported model or adapter

    @property
    def peak(self) -> tuple[str, int]:
        """The phase that takes most, and the bytes it takes with what is held."""
        totals = {name: sum(parts.values()) for name, parts in self.phases.items()} or {"loading": 0}
        name = max(totals, key=lambda key: totals[key])
        return name, totals[name] + sum(self.held.values())


def needs(config: ConfigDict, shape: ModelConfig, dtype: str, devices: Devices) -> Needs:
    """Counts a job: dsa, gba, evaluate, export, merge, pretrain, or dataset with a teacher in this process."""
    plain = abstract_params(shape, dtype)
    weights = abstract_params(shape, dtype, config.get("model", {}).get("quantize", "none"))
    found = Needs(sum(leaf.size for leaf in jax.tree.leaves(plain)), exported=size(plain))
    if config.job in ("dsa", "gba"):
        _training(found, config, shape, weights, devices)
    elif config.job == "merge":
        _merging(found, config, shape, weights)
    elif config.job == "pretrain":
        _pretraining(found, config, shape, weights, devices)
    else:
        found.held["weights"] = size(weights)
    if config.job == "evaluate":
        found.phases["sampling"] = _sampling(shape, dtype, config, config.batch_size, config.num_samples)
    elif config.job == "dataset":
        teacher, found.exported = config.teacher, 0
        cache = cache_bytes(
            shape, dtype, teacher.batch_size, teacher.max_prompt_length, teacher.batch_size, teacher.max_tokens
        )
        found.phases["traces"] = {"KV cache": cache, "logits": LOGIT * teacher.batch_size * shape.text.vocab_size}
    return found


@functools.lru_cache(maxsize=4)  # a fix is looked for among many configs of one model
def abstract_params(shape: ModelConfig, dtype: str, quantize: str = "none") -> dict:
    """The parameters' names, shapes and dtype, as load_policy gives them."""
    kind = jnp.dtype(dtype)
    params = nest({name: jax.ShapeDtypeStruct(dims, kind) for name, dims in tensor_shapes(shape).items()})
    return params if quantize == "none" else quantise_params(params, quantize)


def abstract_state(config: ConfigDict, weights: dict) -> tuple[Any, Any]:
    """The trained part and its optimizer state before the first step, as shapes."""
    deltas = None if config.trainable == "full" else (config.lora.rank, config.lora.alpha, config.lora.targets)
    return _state(_Shapes(weights), deltas, tuple(config.adam_betas), config.weight_decay, config.max_grad_norm)


class _Shapes(dict):
    """Weights as shapes, equal to others with the same names, shapes and dtypes."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(flatten(self)))


@functools.lru_cache(maxsize=4)
def _state(
    weights: _Shapes,
    deltas: tuple[int, float, str] | None,
    betas: tuple[float, float],
    decay: float,
    max_norm: float,
) -> tuple[Any, Any]:
    if deltas is None:
        trained: Any = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), dict(weights))
    else:
        trained = jax.eval_shape(lambda: lora.init(jax.random.key(0), dict(weights), *deltas))
    return trained, jax.eval_shape(adam(betas, decay, max_norm).init, trained)


@functools.lru_cache
def cache_bytes(shape: ModelConfig, dtype: str, prompts: int, length: int, samples: int, new: int) -> int:
    """Keys and values of prompts, each read once, and of their samples, S in all."""
    text = shape.text
    prefix = 2 * text.num_layers * prompts * text.num_kv_heads * length * text.head_dim * jnp.dtype(dtype).itemsize
    own = jax.eval_shape(lambda: Model(shape).init_cache(1, samples, new, jnp.dtype(dtype)))
    return prefix + size(own)


def size(tree: Any, mesh: AbstractMesh | None = None) -> int:
    """Bytes of a tree of shapes; with a mesh, of the shard that one device holds."""
    return sum(number * leaf.bytes(mesh) for leaf, number in _leaves(_Itself(tree)).items())


class _Leaf(NamedTuple):
    """A leaf by what decides how it is split."""

    name: str  # its path, with layer 0 for each
    shape: tuple[int, ...]
    dtype: Any

    def bytes(self, mesh: AbstractMesh | None) -> int:
        """Its bytes, or those of one device's shard."""
        if mesh is None or not self.shape:
            return math.prod(self.shape) * self.dtype.itemsize
        where = sharding(self.name, self.shape, mesh)  # type: ignore[arg-type]  # it reads the axes' names and sizes
        return math.prod(where.shard_shape(self.shape)) * self.dtype.itemsize


class _Itself(NamedTuple):
    """A tree that equals no other, so that what is found for it can be kept."""

    tree: Any

    def __hash__(self) -> int:
        return id(self.tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.tree is other.tree


@functools.lru_cache(maxsize=16)  # a fix is looked for among some hundred configs of one model
def _leaves(whole: _Itself) -> Counter[_Leaf]:
    """The leaves of a tree of shapes, each kind once, with its number."""
    paths, _ = jax.tree_util.tree_flatten_with_path(whole.tree)
    named = ((jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths)
    first = ((stacked_name(name)[0].replace(STACKED, "0"), leaf) for name, leaf in named)
    return Counter(_Leaf(name, leaf.shape, leaf.dtype) for name, leaf in first)


def _training(found: Needs, config: ConfigDict, shape: ModelConfig, weights: dict, devices: Devices) -> None:
    trained, opt_state = abstract_state(config, weights)
    dtype = str(weights["model"]["embed_tokens"]["weight"].dtype)
    full, gba = config.trainable == "full", config.job == "gba"
    mesh = devices.mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    # "tensor" splits weights in any case, "fsdp" what `shard` names (train/layout.py)
    unsplit = mesh.shape["data"], 1, mesh.shape["tensor"]
    whole_rows = AbstractMesh(unsplit, mesh.axis_names, axis_types=mesh.axis_types)
    sharded = config.shard == "full" and mesh.size > 1
    split_over = mesh if sharded else whole_rows
    found.trained = sum(leaf.size for leaf in jax.tree.leaves(trained))
    found.saved = size(trained) + size(opt_state)
    found.exported = found.exported if full else size(trained)
    summed = mesh if config.shard != "none" else whole_rows
    # as `Learner.init` lets go of it: where all is trained, but for a KL to the model as it was, or its word as a judge
    given_up = full and not (gba and ((config.beta and not config.ref_every) or OWN in _asked(config).values()))
    found.held = {
        "weights": 0 if given_up else size(weights, split_over),
        "trained in float32": size(trained, split_over),
        "optimizer state": size(opt_state, summed),
    }
    if gba and config.beta and config.ref_every:
        found.held["moving reference"] = size(trained, split_over)
        found.saved += size(trained)
    policy = round(_policy_bytes(weights, trained, full) * size(weights, split_over) / size(weights))
    prompts, samples = rows(config, mesh)
    # what is trained, or sampled from meanwhile, has its layers under their numbers, and is stacked in the program
    scans = config.scan_layers and is_deep(weights) and (full or bool(config.get("rollout_ahead", 0)))
    stacked = {name: leaf for name, leaf in flatten(stack(weights)).items() if STACKED in name.split(".")}
    # inside a gradient, in the weights' dtype; of full training their gradient too
    copies = {STACKS: (1 + full) * size(stacked, split_over)} if scans else {}
    # a matrix in use and the next; a sampler sends rows to the weights, and has deltas whole (models/sharded.py)
    gathered = {}
    if sharded:
        matrices: Counter[str] = Counter()  # bytes, of quantised ones with their scales
        for leaf in _leaves(_Itself(weights)):
            if stacked_name(leaf.name)[1] is not None:
                matrices[leaf.name.removesuffix(".codes").removesuffix(".scale")] += leaf.bytes(whole_rows)
        gathered = {"gathered weights": 2 * max(matrices.values()) + (0 if full else size(trained))}
    # as the sampler folds deltas (rollout/generate.py): into float32, and not into small weights
    folds = dtype == "float32" and config.model.quantize == "none"
    copy = {"policy's copy": policy} if full or folds else {}
    if gba:
        count = cdiv(split.prompts(config), row_shards(mesh))
        found.phases["rollout"] = gathered | copy | _sampling(shape, dtype, config, count, samples // prompts)
        _rewards(found, config, shape, dtype, devices)
    found.phases["update"] = (
        gathered
        | ({"policy's copy": policy} if full else {})
        | copies
        | {"gradients, two sums": 2 * size(trained, summed)}
        | _activations(config, shape, dtype, prompts, samples, devices.kind)
    )
    if config.eval.every >= 0:
        asked = cdiv(config.eval.batch_size, row_shards(mesh) if sharded else 1)
        sampled = _sampling(shape, dtype, config, asked, config.eval.num_samples)
        found.phases["evaluation"] = gathered | copy | sampled


def _asked(config: ConfigDict) -> dict[str, str]:
    """The paths of models in process that rewards ask, by reward."""
    groups = {name: config.rewards[name] for name in ("judge", "similarity")}
    return {name: group.path for name, group in groups.items() if group.weight and group.path}


def _rewards(found: Needs, config: ConfigDict, shape: ModelConfig, dtype: str, devices: Devices) -> None:
    """Models of rewards stand on one device beside the policy from their first question on, in the dtype of their
    files; a judge's batch is counted at full length."""
    for name, path in _asked(config).items():
        asked, kind = (shape, dtype) if path == OWN else architecture(path)
        if path != OWN:
            kind = "float32" if devices.kind == "cpu" else kind
            found.held[f"{name}'s weights"] = size(abstract_params(asked, kind))
        if name == "judge":
            shown = 1 + (config.rewards.judge.kind == "pairwise")
            length = config.max_prompt_length + shown * config.max_new_tokens
            cache = cache_bytes(asked, kind, BATCH, length, BATCH, config.rewards.judge.max_tokens)
            found.phases["rewards"] = {"KV cache": cache, "logits": LOGIT * BATCH * asked.text.vocab_size}


def _pretraining(found: Needs, config: ConfigDict, shape: ModelConfig, weights: dict, devices: Devices) -> None:
    """Every weight is trained in place, in float32, on two completions of each prompt."""
    from mmedexpert_jax.train import pretrain

    opt_state = jax.eval_shape(pretrain.optimizer(config)[0].init, weights)
    found.trained, found.saved = found.parameters, size(weights) + size(opt_state)
    found.held = {"weights": size(weights), "optimizer state": size(opt_state)}
    count = config.prompts_per_step
    found.phases["update"] = {"gradients": size(weights)} | _activations(
        config, shape, "float32", count, 2 * count, devices.kind
    )


def _merging(found: Needs, config: ConfigDict, shape: ModelConfig, weights: dict) -> None:
    """Streamed from files, only blocks are held; a sweep that is scored, and `rank`, hold more."""
    leaves = jax.tree.leaves(weights)
    widest = max(int(np.prod(leaf.shape[1:])) for leaf in leaves)
    block = max(BLOCK, widest if widest <= 4 * BLOCK else 0)
    experts = len(config.experts) or 1
    found.phases["merge"] = {"blocks of the experts": 4 * cores() * block * (2 * experts + 4)}
    if config.result == "recipe":
        found.exported = 0
    elif config.rank:
        factors = jax.eval_shape(lambda: lora.init(jax.random.key(0), weights, config.rank, 1.0, "all-linear"))
        found.exported = size(factors)
        largest = max(leaf.size for leaf in leaves)
        found.phases["merge"] |= {"adapter": size(factors), "update of the largest tensor": 4 * largest}
    if config.sweep.densities and config.sweep.score:
        text = 4 * found.parameters
        sampled = _sampling(shape, "float32", config, config.eval.batch_size, config.eval.num_samples)
        found.phases["sweep"] = {"weights in float32": text, "merged": text} | sampled


def _policy_bytes(weights: dict, trained: Any, full: bool) -> int:
    """The policy as plain weights beside the base: all of them, or those that deltas are folded into."""
    if full:
        return size(weights)
    item = jax.tree.leaves(weights)[0].dtype.itemsize
    return sum(pair["a"].shape[1] * pair["b"].shape[0] * item for pair in trained.factors.values())


def rows(config: ConfigDict, mesh: AbstractMesh) -> tuple[int, int]:
    """Prompts and completions of one gradient on one device of a mesh."""
    if config.job == "dsa":
        return config.batch_size, config.batch_size
    prompts = split.micro_batch(config, row_shards(mesh))
    return prompts, prompts * config.num_samples * config.prompts_per_step // split.prompts(config)


def _sampling(shape: ModelConfig, dtype: str, config: ConfigDict, prompts: int, samples: int) -> dict[str, int]:
    rows = prompts * samples
    cache = cache_bytes(shape, dtype, prompts, config.max_prompt_length, rows, config.max_new_tokens)
    return {"KV cache": cache, "logits": LOGIT * rows * shape.text.vocab_size}


def _activations(
    config: ConfigDict, shape: ModelConfig, dtype: str, prompts: int, samples: int, kind: str
) -> dict[str, int]:
    """Of an update on such devices (docs/plan.md): on GPUs 16-bit attention of heads up to 128 without windows is fused
    and holds no scores; a perception term keeps those of a second pass."""
    text, item = shape.text, jnp.dtype(dtype).itemsize
    length, new = config.max_prompt_length, config.max_new_tokens
    tokens = prompts * length + samples * new
    keys = text.num_kv_heads * text.head_dim
    layer = item * tokens * (8 * text.hidden_size + 2 * keys + 3 * text.intermediate_size)
    if kind not in GPUS or item > 2 or text.head_dim > 128 or any(text.windowed):
        layer += 8 * text.num_heads * (prompts * length**2 + samples * new * (length + new))
    recomputed = config.get("remat", False) and kind != "cpu"
    kept = text.num_layers * item * tokens * text.hidden_size + 2 * layer
    passes = 1 + bool(config.get("perception", 0) or config.get("perception_entropy", 0))
    return {
        "activations": passes * (kept if recomputed else text.num_layers * layer),
        "logits": LOGIT * text.vocab_size * min(samples * new, CHUNK),
    }
