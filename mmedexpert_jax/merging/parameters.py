"""Numbers of a merge by tensor and expert: constant, a gradient over depth, or by path, as mergekit has them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.methods import METHODS, Setting, Switches, key_of, setting, switches, uses

# A number; a list of numbers, interpolated linearly over the depth from first to last layer; or a list of
# {"filter": part of a tensor's name (none or "*": all), "value": number or gradient}, the first that fits counts.
Spec = Any
NUMBERS = {"density": 1.0, "weight": 1.0, "gamma": 0.01, "epsilon": 0.15}  # by expert, with their defaults
# Of the merge as a whole; those after scale are of single methods (`Setting`), with mergekit's defaults.
SHARED = {"scale": 1.0, "t": 0.0, "threshold": 1e-5, "slope": 0.1, "bound": 0.2, "max_iter": 10, "tol": 1e-5}
# Methods that read a number which the others would pass over.
_ONLY = {
    "gamma": ("breadcrumbs", "breadcrumbs_ties"),
    "epsilon": ("della", "della_linear"),
    "t": ("nearswap",),
    "threshold": ("ram", "ramplus"),
    "slope": ("ramplus",),
    "bound": ("ramplus",),
    "max_iter": ("karcher", "weight_karcher"),
    "tol": ("karcher", "weight_karcher"),
}
_LAYER = re.compile(r"^(.*?)\.(\d+)\.")


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


@dataclass(frozen=True)
class Parameters:
    """Method, switches and numbers of a merge; called with a tensor's name it gives the Setting."""

    method: str  # name in METHODS
    experts: tuple[str, ...]  # their names, in order
    preset: str | Switches = "paper"  # of the switches, or switches
    # {one of NUMBERS or SHARED: {expert, or "" for all: Spec}}; what an expert's own spec leaves out falls to "" and
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

    DEFAULTS = NUMBERS | SHARED

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
        numbers: dict[str, Any] = {w: tuple(self.number(w, e, name) for e in self.experts) for w in NUMBERS}
        shared = {which: self.number(which, "", name) for which in SHARED}
        if self.method == "weight_slerp" and "t" in self.numbers:  # mergekit's
            numbers["weight"] = (1 - shared["t"], shared["t"])
        return setting(
            self.method,
            len(self.experts),
            self.preset,
            weights=numbers.pop("weight"),
            **numbers,
            **shared,
            space=self.space,
            compress=self.compress,
            keys=tuple(key_of(self.seed, name, expert) for expert in self.experts),
        )

    def check(self) -> None:
        """Raises ConfigError for whatever no tensor could be merged with."""
        if not self.experts:
            raise ConfigError("nothing to merge: name at least one expert")
        if self.method not in METHODS:
            raise ConfigError(f"no merging method {self.method!r}: choose one of {', '.join(METHODS)}")
        for which, specs in self.numbers.items():
            if which not in self.DEFAULTS:
                raise ConfigError(f"no number {which!r}: choose one of {', '.join(self.DEFAULTS)}")
            for expert in specs:
                if expert and which in SHARED:
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
        if not equals or not values or which not in Parameters.DEFAULTS:
            raise ConfigError(
                f"config.parameters: {entry!r} is not [expert.]name[@path]=value[:value...] with one of the names "
                f"{', '.join(Parameters.DEFAULTS)}"
            )
        if which in _ONLY and method not in _ONLY[which]:
            raise ConfigError(
                f"config.parameters: {entry!r} is of {' and '.join(_ONLY[which])}; {method} has no {which}"
            )
        if not uses(method, which):
            raise ConfigError(f"config.parameters: {entry!r} says nothing: {method} has no {which}; leave it out")
        value = values[0] if len(values) == 1 else values
        found.setdefault(which, {}).setdefault(expert, []).append({"filter": part or None, "value": value})
    return {which: dict(specs) for which, specs in found.items()}
