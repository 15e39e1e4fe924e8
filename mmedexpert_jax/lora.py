"""LoRA (Hu et al. 2021): low-rank deltas as a pytree beside the parameters; equal to peft, in and out of its files."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mmedexpert_jax.errors import ConfigError, DataError, ResourceError
from mmedexpert_jax.runtime import files

TARGETS = ("all-linear", "text")
# Fields of adapter_config.json that change what the factors mean, with the values under which they do not.
_PLAIN: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys(
        ("use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out"), (False, None)
    ),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), ({}, None)),
    **dict.fromkeys(
        ("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"), ([], {}, None)
    ),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lora:
    """Deltas `alpha / rank * b @ a` of linear layers.

    Attributes:
        factors: {module path, e.g. "model.layers.0.self_attn.q_proj": {"a": [rank, in], "b": [out, rank]}}, float32.
        rank: r of the paper's appendix B (16).
        alpha: numerator of the scale (32).
    """

    factors: dict[str, dict[str, jax.Array]]
    rank: int = dataclasses.field(metadata={"static": True})
    alpha: float = dataclasses.field(metadata={"static": True})

    @property
    def scale(self) -> float:
        """Factor of `b @ a` in the delta."""
        return self.alpha / self.rank


def init(key: jax.Array, params: dict, rank: int = 16, alpha: float = 32, targets: str = "all-linear") -> Lora:
    """Fresh deltas, zero as a whole: `a` uniform within 1 / sqrt(in) (peft's Kaiming, a=sqrt(5)), `b` zero.

    Args:
        key: PRNG key.
        params: nested dict of arrays or of their shapes.
        rank: r.
        alpha: numerator of the scale.
        targets: "all-linear" as in peft (vision tower in; lm_head, embeddings and the patch convolution out), or
            "text" for the decoder's layers alone.

    Raises:
        ConfigError: unknown targets or a rank below 1.
    """
    if targets not in TARGETS:
        raise ConfigError(f"lora.targets={targets!r} is unknown: use one of {', '.join(TARGETS)}")
    if rank < 1:
        raise ConfigError(f"lora.rank={rank} must be at least 1")
    shapes = {path: shape for path, shape in _linears(params) if targets == "all-linear" or path.startswith("model.")}
    factors = {}
    for path_key, (path, (outputs, inputs)) in zip(
        jax.random.split(key, len(shapes)), sorted(shapes.items()), strict=True
    ):
        bound = inputs**-0.5
        factors[path] = {
            "a": jax.random.uniform(path_key, (rank, inputs), jnp.float32, -bound, bound),
            "b": jnp.zeros((outputs, rank), jnp.float32),
        }
    return Lora(factors, rank, alpha)


def delta(lora: Lora, path: str) -> jax.Array:
    """The dense update [out, in] float32 of the module at `path`; DataError if the adapter does not have it."""
    if path not in lora.factors:
        raise DataError(f"the adapter has no module {path}: it has {', '.join(sorted(lora.factors)[:3])}, ...")
    factors = lora.factors[path]
    return _product(factors, lora.scale)


def fold(params: dict, lora: Lora) -> dict:
    """`params` with the deltas added in float32 and rounded to each weight's dtype; other leaves are shared.

    Raises:
        DataError: a module of the adapter is not a linear layer of `params`, or its shape differs.
    """
    check(lora, params)

    def walk(tree: dict, path: str) -> dict:
        if path in lora.factors:
            return tree | {"weight": _folded(tree["weight"], lora.factors[path], lora.scale)}
        return {name: walk(node, _join(path, name)) if isinstance(node, dict) else node for name, node in tree.items()}

    return walk(params, "")


def stack(loras: Sequence[Lora]) -> Lora:
    """Several adapters over one base as one: its delta is the sum of theirs, its rank the sum of their ranks.

    A module that one of them lacks gets zeros there. One adapter is returned as it is.
    """
    if len(loras) == 1:
        return loras[0]
    rank = sum(lora.rank for lora in loras)
    factors = {}
    for path in sorted({path for lora in loras for path in lora.factors}):
        own = [(lora.scale, lora.factors[path]) for lora in loras if path in lora.factors]
        a, b = jnp.concatenate([pair["a"] for _, pair in own]), jnp.hstack([scale * pair["b"] for scale, pair in own])
        missing = rank - len(a)
        factors[path] = {"a": jnp.pad(a, [(0, missing), (0, 0)]), "b": jnp.pad(b, [(0, 0), (0, missing)])}
    return Lora(factors, rank, rank)  # the scales stand in b, so that the common one is 1


def rounding(params: dict, folded: dict, lora: Lora) -> str:
    """The cost of a fold in words: the deltas' root mean square, and the share of it that the weights' dtype lost.

    Args:
        params: the base weights.
        folded: what `fold` made of them.
        lora: the deltas.
    """
    wanted = lost = count = 0.0
    for path in lora.factors:
        before, after = (_leaf(tree, path)["weight"] for tree in (params, folded))
        sums = _rounded(before, after, lora.factors[path], lora.scale)
        wanted, lost, count = wanted + float(sums[0]), lost + float(sums[1]), count + before.size
    share = (lost / wanted) ** 0.5 if wanted else 0.0
    return (
        f"folding into {after.dtype} loses {100 * share:.1f} % of the deltas "
        f"(RMS {(lost / count) ** 0.5:.2g} of {(wanted / count) ** 0.5:.2g})"
    )


def check(lora: Lora, params: dict) -> None:
    """Raises DataError, naming the module, unless every factor fits a linear layer of `params`."""
    shapes = dict(_linears(params))
    for path, factors in lora.factors.items():
        if path not in shapes:
            raise DataError(
                f"adapter module {path} is not a linear layer of the base model: use the adapter's own base"
            )
        outputs, inputs = shapes[path]
        found = tuple(factors["a"].shape), tuple(factors["b"].shape)
        expected = (lora.rank, inputs), (outputs, lora.rank)
        if found != expected:
            raise DataError(
                f"adapter module {path}: A and B have shapes {found[0]} and {found[1]}, the base model and "
                f"r={lora.rank} need {expected[0]} and {expected[1]}"
            )


def canonical(name: str) -> str:
    """The hub files' name of a tensor or module, from that or from the one that transformers has had since 4.52."""
    return name.replace("model.language_model.", "model.", 1).replace("model.visual.", "visual.", 1)


def save_peft(path: str | Path, lora: Lora, base: str, decoder_only: bool = False) -> None:
    """Writes a peft adapter directory, which `peft.PeftModel.from_pretrained` loads over `base`.

    Args:
        path: directory to write; an adapter that stands there is replaced as a whole.
        lora: the deltas.
        base: name or path of the model that the deltas belong to.
        decoder_only: the base is a text model, whose modules have no `language_model` in their names.

    Raises:
        ResourceError: the directory cannot be written.
    """
    path = Path(path)
    named = {module: module if decoder_only else _peft_name(module) for module in sorted(lora.factors)}
    tensors = {
        f"base_model.model.{named[module]}.lora_{letter.upper()}.weight": np.ascontiguousarray(factor, np.float32)
        for module, factors in lora.factors.items()
        for letter, factor in factors.items()
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "target_modules": list(named.values()),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    try:
        with files.replacing(path) as partial:
            save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
            (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"{path}: the adapter cannot be written ({error}); free space or choose another workdir"
        ) from error


def load_peft(path: str | Path, params: dict) -> Lora:
    """Reads a peft LoRA adapter directory for the base `params`; module names of transformers 4 and 5 are accepted.

    Raises:
        DataError: files missing or broken, a kind of adapter other than plain LoRA, or tensors that do not fit.
    """
    path = Path(path)
    config = _read_config(path / "adapter_config.json")
    weights = path / "adapter_model.safetensors"
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{weights}: cannot be read ({error}); save the adapter again with safetensors") from error
    factors: dict[str, dict[str, jax.Array]] = {}
    for name, tensor in tensors.items():
        module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
        if rest not in ("A.weight", "B.weight"):
            raise DataError(f"{weights}: tensor {name} is not a LoRA factor (lora_A.weight or lora_B.weight)")
        factors.setdefault(canonical(module), {})[rest[0].lower()] = jnp.asarray(tensor, jnp.float32)
    for module, pair in factors.items():
        if len(pair) != 2:
            raise DataError(
                f"{weights}: module {module} has only lora_{next(iter(pair)).upper()}, both factors are needed"
            )
    lora = Lora(factors, config["r"], config["lora_alpha"])
    check(lora, params)
    return lora


@functools.partial(jax.jit, static_argnames="scale")
def _folded(weight: jax.Array, factors: dict[str, jax.Array], scale: float) -> jax.Array:
    return (weight.astype(jnp.float32) + _product(factors, scale)).astype(weight.dtype)


@functools.partial(jax.jit, static_argnames="scale")
def _rounded(
    before: jax.Array, after: jax.Array, factors: dict[str, jax.Array], scale: float
) -> tuple[jax.Array, jax.Array]:
    """Squared norms of a delta, and of what a fold lost of it."""
    delta = _product(factors, scale)
    kept = after.astype(jnp.float32) - before.astype(jnp.float32)
    return jnp.sum(delta**2), jnp.sum((delta - kept) ** 2)


def _leaf(tree: dict, path: str) -> dict:
    """The node at a dotted path."""
    return functools.reduce(lambda node, name: node[name], path.split("."), tree)


def _product(factors: dict[str, jax.Array], scale: float) -> jax.Array:
    return scale * jnp.matmul(factors["b"], factors["a"], precision="highest")


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error})") from error
    for key in ("r", "lora_alpha"):
        if key not in config:
            raise DataError(f"{file}: key {key} is missing")
    for key, plain in _PLAIN.items():
        if key in config and config[key] not in plain:
            raise DataError(
                f"{file}: {key}={config[key]!r} is not supported: only plain LoRA is, merge it with peft first"
            )
    return config


def _linears(params: dict, path: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
    """(module path, (out, in)) of the layers that peft's "all-linear" means: matrices, without embeddings and head."""
    for name, node in params.items():
        if not isinstance(node, dict) or name in ("embed_tokens", "lm_head"):
            continue
        child = _join(path, name)
        weight = node.get("weight")
        if weight is not None and not isinstance(weight, dict) and weight.ndim == 2:
            yield child, tuple(weight.shape)
        yield from _linears(node, child)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _peft_name(module: str) -> str:
    """Module path in transformers' memory since 4.52, from the path in checkpoint files."""
    return f"model.{module}" if module.startswith("visual.") else module.replace("model.", "model.language_model.", 1)
