"""Numbers of a merge by tensor and expert: constant, a gradient over depth, or by path, as mergekit has them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.methods import METHODS, key_of, method_of, switches
from mmedexpert_jax.merging.settings import NUMBERS, Setting, Switches

# A number; a list of numbers, interpolated linearly over the depth from first to last layer; or a list of
# {"filter": part of a tensor's name (none or "*": all), "value": number or gradient}, the first that fits counts.
Spec = Any
_LAYER = re.compile(r"^(.*?)\.(\d+)\.")


@dataclass(frozen=True)
class Parameters:
    """Method, switches and numbers of a merge; called with a tensor's name it gives the Setting."""

    method: str  # name in METHODS
    experts: tuple[str, ...]  # their names, in order
    preset: str | Switches = "paper"  # of the switches, or switches
    # {one of NUMBERS: {expert, or "" for all: Spec}}; what an expert's own spec leaves out falls to "" and
    # then to the default
    numbers: Mapping[str, Mapping[str, Spec]] = field(default_factory=dict)
    seed: int = 0  # of random methods
    names: tuple[str, ...] = ()  # of the base's tensors, which give the number of layers
    # the names that the base's files have for them, which filters may also mean
    stored: Mapping[str, str] = field(default_factory=dict, compare=False)
    # {expert: {name: the name in its own model}} of a stack, where filters of its numbers mean the latter (mergekit)
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict, compare=False)
    required: tuple[str, ...] = ()  # numbers that have no default: a tensor without one is refused
    # space, compress: as of `Setting`
    space: str = ""
    compress: int = 0
    _settings: dict[str, Setting] = field(default_factory=dict, compare=False, repr=False)

    DEFAULTS: ClassVar = {name: number.default for name, number in NUMBERS.items()}

    @cached_property
    def layers(self) -> dict[str, tuple[int, int]]:
        """First and last layer under each prefix."""
        found: dict[str, tuple[int, int]] = {}
        for name in self.names:
            if match := _LAYER.match(name):
                low, high = found.get(match[1], (int(match[2]),) * 2)
                found[match[1]] = min(low, int(match[2])), max(high, int(match[2]))
        return found

    def depth(self, name: str) -> float:
        """Place of a tensor between the first layer (0) and the last (1); a single layer is the last."""
        match = _LAYER.match(name)
        if match is None:
            return 0.0
        low, high = self.layers.get(match[1], (0, 0))
        return (int(match[2]) - low) / (high - low) if high > low else 1.0

    def unused_filters(self) -> list[str]:
        """Filters that fit no tensor, which therefore say nothing."""
        names = [*self.names, *self.stored.values()]
        wanted = {part for specs in self.numbers.values() for spec in specs.values() for part in _filters(spec)}
        return sorted(part for part in wanted if names and not any(part in name for name in names))

    def number(self, which: str, expert: str, name: str) -> float:
        """A number for one expert ("" where it is of the merge) and tensor."""
        specs = self.numbers.get(which, {})
        own = self.renamed.get(expert, {}).get(name, name)
        names = (own, self.stored.get(own, own))
        for key in dict.fromkeys((expert, "")):
            if key in specs and (value := evaluate(specs[key], names, self.depth(name))) is not None:
                return value
        if which in self.required:
            raise ConfigError(
                f"{which} of {expert or 'the merge'} has no value for {name}: give one, or a last filter '*'"
            )
        return self.DEFAULTS[which]

    def __call__(self, name: str) -> Setting:
        """The Setting of one tensor."""
        if name not in self._settings:
            self._settings[name] = self._setting(name)
        return self._settings[name]

    def _setting(self, name: str) -> Setting:
        numbers: dict[str, Any] = {
            which: tuple(self.number(which, expert, name) for expert in self.experts)
            if number.by_expert
            else self.number(which, "", name)
            for which, number in NUMBERS.items()
        }
        weights = numbers.pop("weight")
        if self.method == "weight_slerp" and "t" in self.numbers:  # mergekit's
            weights = (1 - numbers["t"], numbers["t"])
        return setting(
            self.method,
            len(self.experts),
            self.preset,
            weights=weights,
            **numbers,
            space=self.space,
            compress=self.compress,
            keys=tuple(key_of(self.seed, name, expert) for expert in self.experts),
        )

    def check(self) -> None:
        """Raises ConfigError for whatever no tensor could be merged with."""
        if not self.experts:
            raise ConfigError("nothing to merge: name at least one expert")
        method_of(self.method)
        for which, specs in self.numbers.items():
            if which not in NUMBERS:
                raise ConfigError(f"no number {which!r}: choose one of {', '.join(NUMBERS)}")
            for expert in specs:
                if expert and not NUMBERS[which].by_expert:
                    raise ConfigError(f"{which} is a number of the whole merge: leave out {expert}, or give its weight")
                if expert and expert not in self.experts:
                    raise ConfigError(f"{which} names {expert}, but the experts are {', '.join(self.experts)}")
        for name in self.names or ("",):
            try:
                self(name)
            except (TypeError, ValueError, KeyError) as error:
                raise ConfigError(
                    f"density, weight or scale is no number, gradient or list of filters ({error})"
                ) from error

    def to_json(self) -> dict[str, Any]:
        """Everything that the result depends on, experts' contents apart."""
        rule = switches(self.preset, self.method)
        return {
            "method": self.method,
            "switches": {key: getattr(rule, key) for key in rule.__dataclass_fields__},
            "numbers": {which: dict(specs) for which, specs in self.numbers.items()},
            "seed": self.seed,
            "space": self.space,
            "compress": self.compress,
        }


def setting(
    method: str,
    count: int,
    preset: str | Switches = "paper",
    density: float | tuple[float, ...] = NUMBERS["density"].default,
    weights: float | tuple[float, ...] | None = None,
    gamma: float | tuple[float, ...] = NUMBERS["gamma"].default,
    epsilon: float | tuple[float, ...] = NUMBERS["epsilon"].default,
    scale: float = NUMBERS["scale"].default,
    keys: tuple[int, ...] | None = None,
    space: str = "",
    compress: int = 0,
    **shared: float,
) -> Setting:
    """A checked Setting for `count` experts; numbers are the same for all of them. Raises ConfigError.

    Args:
        shared: the other numbers of the merge (`settings.NUMBERS`).
    """
    kind = method_of(method)
    many = {"density": density, "gamma": gamma, "epsilon": epsilon, "weights": 1.0 if weights is None else weights}
    by_expert: dict[str, Any] = {k: tuple(np.broadcast_to(v, count).astype(float).tolist()) for k, v in many.items()}
    for_all: dict[str, Any] = {name: number.default for name, number in NUMBERS.items() if not number.by_expert}
    found = Setting(
        method,
        kind,
        switches(preset, method),
        keys=tuple(key_of(0, "", str(k)) for k in range(count)) if keys is None else keys,
        space=space,
        compress=compress,
        **by_expert,
        **for_all | {"scale": scale} | shared,
    )
    _check(found)
    return found


def _check(how: Setting) -> None:
    """Raises ConfigError for numbers that no merge has a meaning for."""
    method, kind, count = how.method, how.kind, len(how.weights)
    for name in ("weights", *(name for name in NUMBERS if name != "weight")):
        value = getattr(how, name)
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.asarray(value, np.float32)).all()
        if not finite:
            raise ConfigError(f"{name} must be finite in float32; got {value}")
    divides = how.rule.denominator != "none"
    if kind.join in ("span", "rows") and kind.has_weights and divides and sum(how.weights) <= 0:
        raise ConfigError(f"weights must have a positive sum for {method}; got {list(how.weights)}")
    if method.startswith("model_stock") and count < 2:
        raise ConfigError("model_stock needs two experts or more: it takes the angle between them")
    if kind.experts and count != kind.experts:
        raise ConfigError(f"{method} merges {kind.experts} expert{'s'[: kind.experts - 1]} over a base; got {count}")
    if not 0 <= min(how.gamma) <= max(how.gamma) <= 1:
        raise ConfigError(f"gamma is the fraction dropped as outliers, between 0 and 1; got {list(how.gamma)}")
    if how.max_iter < 0 or how.max_iter != int(how.max_iter):
        raise ConfigError(f"max_iter counts iterations, 0, 1, 2 and so on; got {how.max_iter:g}")
    for density, epsilon in zip(how.density, how.epsilon, strict=True):
        if not 0 <= density <= 1:
            raise ConfigError(f"density is the fraction of entries kept, between 0 and 1; got {density}")
        if method.startswith("della") and 0 < density < 1 and not 0 < density - epsilon < density + epsilon < 1:
            raise ConfigError(
                f"density {density} +- epsilon {epsilon} must lie between 0 and 1 for {method}: lower epsilon"
            )


def evaluate(spec: Spec, names: Sequence[str], depth: float) -> float | None:
    """The number that a spec means for one tensor; None where no filter of it fits.

    Args:
        spec: see Spec.
        names: of the tensor, one here and one in its file.
        depth: 0 for the first layer (and tensors outside the layers), 1 for the last.
    """
    if isinstance(spec, Mapping):
        spec = [spec]
    if not isinstance(spec, (list, tuple)):
        return float(spec)
    if spec and isinstance(spec[0], Mapping):
        for choice in spec:
            if choice.get("filter") in (None, "*") or any(choice["filter"] in name for name in names):
                return evaluate(choice["value"], names, depth)
        return None
    if not spec:
        return None
    place = depth * (len(spec) - 1)
    low = int(place)
    high = min(low + 1, len(spec) - 1)
    return (1 - (place - low)) * float(spec[low]) + (place - low) * float(spec[high])


def _filters(spec: Spec) -> list[str]:
    """Parts of names that a spec asks for."""
    choices = spec if isinstance(spec, (list, tuple)) else [spec]
    found = [choice.get("filter") for choice in choices if isinstance(choice, Mapping)]
    return [part for part in found if part not in (None, "*")]


def by_expert(value: Any, experts: Sequence[str], which: str) -> dict[str, Spec]:
    """One spec for all, {expert: spec}, or (weights) a list of specs in the experts' order -> {expert or "": Spec}.

    Raises:
        ConfigError: a list of another length, or other names.
    """
    if isinstance(value, Mapping) and "value" not in value:
        wrong = set(value) != set(experts) if which == "weights" else bool(set(value) - {*experts, ""})
        if wrong:  # of other numbers the rest falls to "" and to the default
            raise ConfigError(f"{which} name {', '.join(value)}, but the experts are {', '.join(experts)}")
        return dict(value)
    if which == "weights" and isinstance(value, Iterable):
        listed = list(value)
        if len(listed) != len(experts):
            raise ConfigError(f"{len(listed)} weights for {len(experts)} experts ({', '.join(experts)})")
        return dict(zip(experts, listed, strict=True))
    return {"": value}


def parse(entries: Iterable[str], method: str) -> dict[str, dict[str, Spec]]:
    """Lines of a config, "[expert.]density[@part of a name]=number[:number...]" -> numbers by which and expert.

    Several lines for one number: the first whose filter fits a tensor's name counts. Raises ConfigError for what is no
    such line, or a number that the method does not read.
    """
    found: dict[str, dict[str, list]] = {}
    for entry in entries:
        left, equals, right = entry.partition("=")
        target, _, part = left.partition("@")
        expert, _, which = target.rpartition(".")
        try:
            values = [float(value) for value in right.split(":")] if right.isascii() and "_" not in right else []
        except ValueError:
            values = []
        if not equals or not values or which not in NUMBERS:
            raise ConfigError(
                f"config.parameters: {entry!r} is not [expert.]name[@path]=value[:value...] with one of the names "
                f"{', '.join(NUMBERS)}"
            )
        kind, only = METHODS[method], NUMBERS[which].methods
        if only and method not in only:
            raise ConfigError(f"config.parameters: {entry!r} is of {' and '.join(only)}; {method} has no {which}")
        if not {"weight": kind.has_weights, "density": kind.has_density}.get(which, True):
            raise ConfigError(f"config.parameters: {entry!r} says nothing: {method} has no {which}; leave it out")
        value = values[0] if len(values) == 1 else values
        found.setdefault(which, {}).setdefault(expert, []).append({"filter": part or None, "value": value})
    return {which: dict(specs) for which, specs in found.items()}
