"""LoRA (Hu et al. 2021): low-rank deltas as a pytree beside the parameters; equal to peft, in and out of its files."""

import dataclasses
import functools
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mmedexpert_jax import border
from mmedexpert_jax.adapter_config import by_pattern, is_targeted, read_config
from mmedexpert_jax.config.fields import HUB_ID
from mmedexpert_jax.errors import ConfigError, DataError, ResourceError
from mmedexpert_jax.runtime import files

STACKED = "*"  # in a module's path: all layers of a list, stacked along a first axis of their factors (models/tree.py)
TARGETS = ("all-linear", "text")
_FACTOR = re.compile(r"\.lora_(?P<embedding>embedding_)?(?P<letter>[AB])(\.weight)?$")
# Prefixes of names: in files and in the memory of transformers 4 and 5 -> here
_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.visual.", "visual."),
    ("model.vision_tower.", "vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("vision_tower.vision_tower.", "vision_tower."),  # the original LLaVA's, as the next two
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.mm_projector.", "multi_modal_projector.linear_1."),  # of one layer
)
_WRAPPERS = ("base_model.", "module.", "_orig_mod.")  # that a trainer put around the model: peft twice, DDP, compile
_NO_LINEARS = ("embed_tokens", "pos_embed", "position_embedding", "lm_head")  # matrices, but not to "all-linear"
TOWERS = ("visual.", "vision_tower.", "multi_modal_projector.")  # beginnings of names that are not the decoder's
_TIED = "ties it to the other of lm_head and embed_tokens; untie the base, or train the adapter without it"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lora:
    """Deltas `alpha / rank * b @ a` of linear layers."""

    # {module path, e.g. "model.layers.0.self_attn.q_proj": {"a": [rank, in], "b": [out, rank]}}, float32.
    factors: dict[str, dict[str, jax.Array]]
    rank: int = dataclasses.field(metadata={"static": True})  # r of the paper's appendix B (16)
    alpha: float = dataclasses.field(metadata={"static": True})  # numerator of the scale (32)

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
    shapes = {path: shape for path, shape in linears(params) if targets == "all-linear" or path.startswith("model.")}
    layers = {
        path: [path.replace(STACKED, str(number)) for number in range(math.prod(shape[:-2]))]
        for path, shape in shapes.items()
    }
    names = sorted(name for each in layers.values() for name in each)  # the draws do not depend on the layout
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    factors = {}
    for path, (*stacked, outputs, inputs) in sorted(shapes.items()):
        bound = inputs**-0.5
        drawn = [jax.random.uniform(keys[name], (rank, inputs), jnp.float32, -bound, bound) for name in layers[path]]
        a = jnp.stack(drawn) if stacked else drawn[0]
        factors[path] = {"a": a, "b": jnp.zeros((*stacked, outputs, rank), jnp.float32)}
    return Lora(factors, rank, alpha)


def delta(lora: Lora, path: str) -> jax.Array:
    """The dense update [out, in] float32 of the module at `path`; DataError if the adapter does not have it."""
    if path not in lora.factors:
        raise DataError(f"the adapter has no module {path}: it has {', '.join(sorted(lora.factors)[:3])}, ...")
    return _product(lora.factors[path], lora.scale)


def fold(params: dict, lora: Lora) -> dict:
    """theta_base + alpha / rank * B A (equation 3), added in float32 and rounded to each weight's dtype; other leaves
    are shared.

    Raises:
        DataError: a module of the adapter is not a linear layer of `params`, or its shape differs.
    """
    check(lora, params)
    for path, factors in lora.factors.items():
        place = f"{path}.weight"
        params = _replaced(params, place.split("."), _folded(_node(params, place), factors, lora.scale))
    return params


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
        rows = int(STACKED in path.split("."))  # the axis of A's rank; B's is the last
        a = jnp.concatenate([pair["a"] for _, pair in own], axis=rows)
        b = jnp.concatenate([scale * pair["b"] for scale, pair in own], axis=-1)
        factors[path] = _padded(a, b, rank)
    return Lora(factors, rank, rank)  # the scales stand in b, so that the common one is 1


def _padded(a: jax.Array, b: jax.Array, rank: int) -> dict[str, jax.Array]:
    """A module's factors with zeros up to a rank."""
    rows = b.ndim - 2  # the axis of a's rank, behind that of stacked layers
    missing = rank - a.shape[rows]
    more_rows = [(0, missing if axis == rows else 0) for axis in range(a.ndim)]
    return {"a": jnp.pad(a, more_rows), "b": jnp.pad(b, [(0, 0)] * (b.ndim - 1) + [(0, missing)])}


def rounding(params: dict, folded: dict, lora: Lora) -> str:
    """The cost of a fold in words: the deltas' root mean square, and the share of it that the weights' dtype lost.

    Args:
        params: the base weights.
        folded: what `fold` made of them.
        lora: the deltas.
    """
    wanted = lost = count = 0.0
    for path in lora.factors:
        before, after = (_node(tree, f"{path}.weight") for tree in (params, folded))
        sums = _rounded(before, after, lora.factors[path], lora.scale)
        wanted, lost, count = wanted + float(sums[0]), lost + float(sums[1]), count + before.size
    share = (lost / wanted) ** 0.5 if wanted else 0.0
    return (
        f"folding into {after.dtype} loses {100 * share:.1f} % of the deltas "
        f"(RMS {(lost / count) ** 0.5:.2g} of {(wanted / count) ** 0.5:.2g})"
    )


def check(lora: Lora, params: dict) -> None:
    """Raises DataError, naming the module, unless every factor fits a linear layer of `params`."""
    tied = "lm_head" not in params
    for path, factors in lora.factors.items():
        if tied and path in ("lm_head", "model.embed_tokens"):
            raise DataError(f"adapter module {path}: the base {_TIED}")
        shape = _weight_shape(params, path)
        if shape is None:
            raise DataError(
                f"adapter module {path} is not a linear layer of the base model: use the adapter's own base"
            )
        first = int(STACKED in path.split("."))
        layers, outputs, inputs = shape[:first], shape[first], shape[first + 1 :]
        found = tuple(factors["a"].shape), tuple(factors["b"].shape)
        expected = (*layers, lora.rank, *inputs), (*layers, outputs, lora.rank)
        if found != expected:
            raise DataError(
                f"adapter module {path}: A and B have shapes {found[0]} and {found[1]}, the base model and "
                f"r={lora.rank} need {expected[0]} and {expected[1]}"
            )


def canonical(name: str) -> str:
    """The name of a tensor or module here, from that of any file: the hub's, or of transformers' memory."""
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return canonical(ours + name.removeprefix(theirs))
    return name


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
    modules = dict(_each_layer(lora))
    named = {module: module if decoder_only else memory_name(module) for module in sorted(modules)}
    tensors = {
        (key := f"base_model.model.{named[module]}.{name}"): finite(key, np.ascontiguousarray(factor, np.float32))
        for module, factors in modules.items()
        for name, factor in _peft_factors(module, factors).items()
    }
    hub = None if Path(base).expanduser().exists() else HUB_ID.fullmatch(base)
    name, revision = hub.group("name", "revision") if hub else (base, None)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
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
            border.write_settings(partial / "adapter_config.json", config)
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"{path}: the adapter cannot be written ({error}); free space or choose another workdir"
        ) from error


def base_of(config: Mapping[str, Any]) -> Any:
    """The base that adapter_config.json names, as "owner/name@revision" where it has a revision on the hub (peft)."""
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not revision or Path(base).expanduser().exists():
        return base
    hub = HUB_ID.fullmatch(base)
    return f"{base}@{revision}" if hub and not hub["revision"] else base


def finite(name: str, entries: np.ndarray) -> np.ndarray:
    """The entries of a tensor that is to be written. Raises DataError where they hold an infinity or NaN,
    and ConfigError where another dtype may help."""
    if jnp.issubdtype(entries.dtype, jnp.floating) and not np.isfinite(entries).all():
        if entries.dtype == np.float16:
            raise ConfigError(
                f"{name}: holds values that are not finite in float16; bfloat16 and float32 hold larger ones "
                "(config.model.dtype), an earlier checkpoint may be whole (config.resume_from)"
            )
        raise DataError(
            f"{name}: holds values that are not finite; its training diverged, an earlier checkpoint may be whole "
            "(config.resume_from)"
        )
    return entries


def load_peft(path: str | Path, params: dict) -> Lora:
    """Reads a peft LoRA adapter directory for the base `params`; module names of transformers 4 and 5 are accepted.

    rsLoRA (alpha / sqrt(r)) and the ranks and alphas of patterns become one rank and one scale: factors are padded with
    zeros, whose gradients are zero too, and the rest of a module's own scale goes into its B.

    Raises:
        DataError: files missing or broken, a kind of adapter other than LoRA, tensors that do not fit, or modules
            saved whole that are not in `params` yet (`with_saved_modules`).
    """
    path = Path(path)
    config = read_config(path / "adapter_config.json")
    weights = path / "adapter_model.safetensors"
    factors, names = _read_factors(weights)
    for place, tensor in _whole_tensors(weights, params, config).items():
        old = _node(params, place)
        if isinstance(old, jax.ShapeDtypeStruct) or not np.array_equal(np.asarray(old), tensor.astype(old.dtype)):
            raise DataError(
                f"{weights}: holds {place} whole (modules_to_save), which no low-rank delta can say: merge it with "
                "peft first, or take it by itself, as config.model.path or by mx.load_model"
            )
    try:
        ranks = {module: int(by_pattern(config, "rank_pattern", name, "r")) for module, name in names.items()}
        roots = {module: rank**0.5 if config.get("use_rslora") else rank for module, rank in ranks.items()}
        scales = {
            module: by_pattern(config, "alpha_pattern", name, "lora_alpha") / roots[module]
            for module, name in names.items()
        }
        for module, pair in factors.items():
            check(Lora({module: pair}, ranks[module], 1.0), params)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    _check_targets(weights, params, config, names)
    # One rank and scale for all, the largest rank's: what pads it out is zero, and stays so, since its gradient is.
    rank = max(ranks.values())
    scale = scales[next(module for module, own in ranks.items() if own == rank)]
    for module, pair in factors.items():
        b = pair["b"] if scales[module] == scale else pair["b"] * (scales[module] / scale)
        factors[module] = _padded(pair["a"], b, rank)
    plain = set(ranks.values()) == {config["r"]} and not config.get("use_rslora") and not config.get("alpha_pattern")
    return Lora(factors, rank, config["lora_alpha"] if plain else scale * rank)


def with_saved_modules(path: str | Path, params: dict) -> dict:
    """`params` with the tensors that the adapter at `path` holds whole in place of the base's (modules_to_save).

    Raises:
        DataError: such a tensor fits none of the base's or is missing, or the adapter is of another kind.
    """
    config = read_config(Path(path) / "adapter_config.json")  # a kind that is not supported says so itself
    for place, tensor in _whole_tensors(Path(path) / "adapter_model.safetensors", params, config).items():
        old = _node(params, place)
        params = _replaced(params, place.split("."), jnp.asarray(tensor, old.dtype))
    return params


def of_kept(lora: Lora, before: dict, after: dict) -> Lora:
    """The deltas of modules that an adapter above does not hold whole: its own weight is all of such a module.

    Args:
        lora: of an adapter below.
        before: parameters without the upper adapter's modules.
        after: with them.
    """
    kept = {
        path: pair
        for path, pair in lora.factors.items()
        if _node(before, f"{path}.weight") is _node(after, f"{path}.weight")
    }
    return dataclasses.replace(lora, factors=kept)


def _whole_tensors(weights: Path, params: dict, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of an adapter's file that are no factors, by their places in `params`.

    Raises DataError for one that fits none there, for a head or embedding that is another than the other of a base that
    ties them, and where a module is missing that the `config` says was saved.
    """
    found = {}
    tied = _node(params, HEAD) is None
    for name, tensor in _tensors(weights).items():
        if _FACTOR.search(name):
            continue
        place = canonical(name.removeprefix("base_model.model.").replace(".base_layer.", "."))
        if place in found:
            raise DataError(f"{weights}: holds {place} under two names, of which one is {name}: delete one")
        old = _node(params, EMBEDDING if tied and place == HEAD else place)
        if getattr(old, "shape", None) != tensor.shape:
            resized = tensor.ndim == 2 and getattr(old, "shape", ())[1:] == tensor.shape[1:]
            fix = "its rows were resized, merge it with peft first" if resized else "use the adapter's own base"
            raise DataError(
                f"{weights}: tensor {name} {tensor.shape} is not a LoRA factor (lora_A.weight or lora_B.weight), and "
                f"fits no tensor of the base model in its place: {fix}"
            )
        found[place] = tensor
    if tied and (own := {EMBEDDING, HEAD} & found.keys()):
        old = _node(params, EMBEDDING)
        rows, head = found.get(EMBEDDING, old), found.pop(HEAD, old)
        known = len(own) == 2 or not isinstance(old, jax.ShapeDtypeStruct)
        if known and not jnp.array_equal(rows.astype(old.dtype), head.astype(old.dtype)):
            raise DataError(
                f"{weights}: holds {' and '.join(sorted(own))} of its own, and the base ties the two, which would be "
                "one no longer: merge it with peft, save that with tie_word_embeddings false, and take it as the model"
            )
    for name in config.get("modules_to_save") or ():
        ends = any(module.endswith(name) for module in _modules(params))
        if ends and not any(f"{name}." in place for place in found):
            raise DataError(
                f"{weights}: lacks {name}, which adapter_config.json says was trained whole (modules_to_save); save "
                "the adapter again by peft's save_pretrained, which writes it"
            )
    return found


def _check_targets(weights: Path, params: dict, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Holds the modules with factors to those that the `config` targets.

    Parts are what a module's path begins with. One that has no factors at all, as a tower beside a decoder that was
    trained by itself, stays the base's, and a line says so where its modules are targeted too; another line names
    factors of modules that are not targeted, which peft leaves out.

    Args:
        weights: the adapter's file.
        params: of the base.
        config: of the adapter.
        names: modules of `params` with factors, and their names in the file, which targets are matched with.

    Raises:
        DataError: a targeted module lacks factors that others of its part have.
    """
    if not config.get("target_modules"):
        return
    heads = {}  # of paths: "model." -> "model.language_model."
    for module, name in names.items():
        head, dot, rest = module.partition(".")
        if name.endswith(rest):
            heads[head + dot] = name.removesuffix(rest)
    leaves = {module.rpartition(".")[2] for module in names}
    linear = {module for module, _ in linears(params) if module.rpartition(".")[2] in leaves}
    lacking, untrained = [], dict[str, None]()
    for module in _modules(params):
        head, dot, rest = module.partition(".")
        if module in names or _weight_shape(params, module) is None:
            continue
        own = heads.get(head + dot)
        spelt = [own + rest] if own else [module, memory_name(module)]
        if is_targeted(spelt, config, module in linear):
            lacking += spelt if own else []
            untrained |= {} if own else {head: None}
    if lacking:
        raise DataError(
            f"{weights}: lacks the factors of {border.listing(lacking, 3)}, which adapter_config.json says were "
            "trained (target_modules); save the adapter again by peft's save_pretrained, or leave them out there"
        )
    tell = logging.getLogger(__name__).warning
    if untrained:
        towers = ", ".join(untrained)
        tell("%s: has no factors of %s, which target_modules names too: it stays the base's", weights, towers)
    spellings = ((name, [name, module, memory_name(module)]) for module, name in names.items())
    if others := [name for name, spelt in spellings if not is_targeted(spelt, config, True)]:
        tell(
            "%s: target_modules does not name %s, which peft leaves out; it counts here",
            weights,
            border.listing(others, 3),
        )


def _modules(params: dict, path: str = "") -> Iterator[str]:
    """Paths of all modules."""
    for name, node in params.items():
        if isinstance(node, dict):
            yield (child := _join(path, name))
            yield from _modules(node, child)


def _node(tree: Any, place: str) -> Any:
    """The node at a dotted path; None where there is none."""
    for name in place.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _replaced(tree: dict, path: list[str], leaf: jax.Array) -> dict:
    first, *rest = path
    return tree | {first: _replaced(tree[first], rest, leaf) if rest else leaf}


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


def _product(factors: dict[str, jax.Array], scale: float) -> jax.Array:
    a, b = factors["a"], factors["b"]  # a of a convolution has its kernel's axes behind the rank
    axes = b.ndim - 1  # of a before those that it contracts inputs with: the rank, and where layers are stacked, them
    delta = scale * jnp.matmul(b, a.reshape(*a.shape[:axes], -1), precision="highest")
    return delta.reshape(*b.shape[:axes], *a.shape[axes:])


def _tensors(weights: Path) -> dict[str, np.ndarray]:
    """The tensors of an adapter's file, all of them finite floats."""
    try:
        tensors = load_file(weights)
    except (KeyError, AttributeError) as error:
        kind = border.cut(str(error).rpartition("attribute ")[2])
        raise DataError(f"{weights}: holds tensors of {kind}, which is not read; save the adapter in floats") from error
    except (OSError, SafetensorError) as error:
        border.refuse_pointer(weights)
        raise DataError(f"{weights}: cannot be read ({error}); save the adapter again with safetensors") from error
    for name, tensor in tensors.items():
        if ".lora_" in name and not _FACTOR.search(name):
            raise DataError(
                f"{weights}: tensor {name} is not a LoRA factor (lora_A.weight or lora_B.weight): save them by peft's "
                "save_pretrained, which leaves the adapter's name out of theirs"
            )
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise DataError(f"{weights}: tensor {name} has dtype {tensor.dtype}; save the adapter in floats")
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise DataError(f"{weights}: tensor {name} has values that are not finite; its training diverged")
    return tensors


def _read_factors(weights: Path) -> tuple[dict[str, dict[str, jax.Array]], dict[str, str]]:
    """Factors by module of the base, and by the same keys the modules' names in the file, which patterns match."""
    factors: dict[str, dict[str, jax.Array]] = {}
    names: dict[str, str] = {}
    for name, tensor in _tensors(weights).items():
        if not (found := _FACTOR.search(name)):
            continue  # a whole tensor: with_saved_modules
        module = name[: found.start()].removeprefix("base_model.model.")
        if module.startswith(_WRAPPERS):
            raise DataError(
                f"{weights}: tensor {name} has the name of a wrapper before the model's; save the adapter by peft's "
                "save_pretrained of the unwrapped model (accelerator.unwrap_model)"
            )
        values, letter = jnp.asarray(tensor, jnp.float32), found["letter"].lower()
        if found["embedding"]:  # peft's A [r, V] and B [D, r] of an embedding [V, D]: its delta is (B A)^T
            values, letter = values.T, "ba"["ab".index(letter)]
        if letter == "b":  # of a convolution: [out, r, 1, 1, 1]
            values = values.reshape(values.shape[:2]) if values.size == math.prod(values.shape[:2]) else values
        if names.setdefault(canonical(module), module) != module:
            raise DataError(
                f"{weights}: holds {names[canonical(module)]} and {module}, which are one module: delete one"
            )
        factors.setdefault(canonical(module), {})[letter] = values
    if not factors:
        raise DataError(f"{weights}: no LoRA factors; save the adapter again after its training")
    for module, pair in factors.items():
        if len(pair) != 2:
            raise DataError(
                f"{weights}: module {module} has only lora_{next(iter(pair)).upper()}, both factors are needed"
            )
    return factors, names


def _weight_shape(params: Any, path: str) -> tuple[int, ...] | None:
    """Shape of the matrix or kernel that a module holds; None where there is no such module."""
    params = _node(params, f"{path}.weight")
    return tuple(params.shape) if params is not None and params.ndim >= 2 else None


def linears(params: dict, path: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """(module path, (out, in), of stacked layers (L, out, in)) of the layers that peft's "all-linear" means: matrices,
    without embeddings and head.
    """
    for name, node in params.items():
        if not isinstance(node, dict) or name in _NO_LINEARS:
            continue
        child = _join(path, name)
        weight = node.get("weight")
        if weight is not None and not isinstance(weight, dict) and weight.ndim == 2 + (STACKED in child.split(".")):
            yield child, tuple(weight.shape)
        yield from linears(node, child)


def _each_layer(lora: Lora) -> Iterator[tuple[str, dict[str, jax.Array]]]:
    """Module paths and factors, those of stacked layers one by one."""
    for module, factors in lora.factors.items():
        if STACKED not in module.split("."):
            yield module, factors
            continue
        for number in range(len(factors["a"])):
            yield module.replace(STACKED, str(number)), {letter: factor[number] for letter, factor in factors.items()}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _peft_factors(module: str, factors: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A module's factors by the names and in the shapes of peft: linear layer, embedding or convolution."""
    a, b = factors["a"], factors["b"]
    if module.endswith("embed_tokens"):
        return {"lora_embedding_A": b.T, "lora_embedding_B": a.T}
    return {"lora_A.weight": a, "lora_B.weight": b.reshape(*b.shape, *[1] * (a.ndim - 2))}


def memory_name(module: str) -> str:
    """Module path in the memory of transformers 5, from the path here."""
    return f"model.{module}" if module.startswith(TOWERS) else module.replace("model.", "model.language_model.", 1)
