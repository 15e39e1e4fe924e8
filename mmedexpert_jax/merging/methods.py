"""The methods: what each keeps of the task vectors, how it makes one of what is kept, and the numbers it takes.

Every method is `fit.fit` (whole-unit numbers: bounds, norms, coefficients; sums over entries, so that blocks, shards
and devices add up) and `combine.combine` (entry by entry, given those numbers).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.merging.span import SPANS
from mmedexpert_jax.merging.sparsify import check_densities, key_of
from mmedexpert_jax.merging.switches import Switches, switches


@dataclass(frozen=True)
class Method:
    """`keep`: "all", "largest", "middle", "random" or "ranked"; `join`: "elect", "sum", "span" or "overlap"."""

    keep: str
    join: str


METHODS = {
    "ties": Method("largest", "elect"),
    "task_arithmetic": Method("all", "sum"),
    "magnitude_prune": Method("largest", "sum"),
    "dare_linear": Method("random", "sum"),
    "dare_ties": Method("random", "elect"),
    "della": Method("ranked", "elect"),
    "della_linear": Method("ranked", "sum"),
    "breadcrumbs": Method("middle", "sum"),
    "breadcrumbs_ties": Method("middle", "elect"),
    "ram": Method("all", "overlap"),
    "ramplus": Method("all", "overlap"),
    **dict.fromkeys(SPANS, Method("all", "span")),
}


@dataclass(frozen=True)
class Setting:
    """How one tensor's K task vectors become one.

    Attributes:
        method: name in METHODS.
        rule: the switches.
        weights: K.
        density: K fractions kept.
        gamma: K fractions dropped as outliers (breadcrumbs); mergekit's default.
        epsilon: K half widths of the probabilities (DELLA); mergekit's default.
        scale: factor of the merged vector.
        keys: K keys of random choices.
        threshold: RAM: entries up to it count as unchanged; mergekit's default.
        amplify: RAM+: r, slope of the amplification of an expert's own entries, and its bound alpha.
    """

    method: str
    rule: Switches
    weights: tuple[float, ...]
    density: tuple[float, ...]
    gamma: tuple[float, ...] = ()
    epsilon: tuple[float, ...] = ()
    scale: float = 1.0
    keys: tuple[int, ...] = ()
    threshold: float = 1e-5
    amplify: tuple[float, float] = (0.1, 0.2)

    @property
    def kind(self) -> Method:
        """What the method keeps and how it joins."""
        return METHODS[self.method]

    @property
    def unequal_weights(self) -> np.ndarray | None:
        """[K] float32; None where all are 1."""
        return None if all(weight == 1 for weight in self.weights) else np.asarray(self.weights, np.float32)

    @property
    def trims(self) -> bool:
        """Whether entries are chosen by magnitude over a unit, which the scope then matters for."""
        return self.kind.keep in ("largest", "middle")

    @property
    def whole_weights(self) -> bool:
        """Whether the method interpolates base + task vectors, not the task vectors."""
        return self.method.startswith("weight_")

    @property
    def whole_rows(self) -> bool:
        """Whether the method has to see whole rows of a matrix."""
        return self.kind.keep == "ranked"


def setting(
    method: str,
    count: int,
    preset: str | Switches = "paper",
    density: float | tuple[float, ...] = 1.0,
    weights: tuple[float, ...] | None = None,
    gamma: float | tuple[float, ...] = 0.01,
    epsilon: float | tuple[float, ...] = 0.15,
    scale: float = 1.0,
    keys: tuple[int, ...] | None = None,
    **more: Any,
) -> Setting:
    """A checked Setting for `count` experts; numbers are the same for all of them. Raises ConfigError."""
    if method not in METHODS:
        raise ConfigError(f"no merging method {method!r}: choose one of {', '.join(METHODS)}")
    many = {"density": density, "gamma": gamma, "epsilon": epsilon, "weights": 1.0 if weights is None else weights}
    numbers: dict[str, Any] = {k: tuple(np.broadcast_to(v, count).astype(float).tolist()) for k, v in many.items()}
    if not np.isfinite(numbers["weights"]).all():
        raise ConfigError(f"weights must be finite; got {list(numbers['weights'])}")
    if METHODS[method].join == "span" and method != "model_stock" and sum(numbers["weights"]) <= 0:
        raise ConfigError(f"weights must have a positive sum for {method}; got {list(numbers['weights'])}")
    if method == "model_stock" and count < 2:
        raise ConfigError("model_stock needs two experts or more: it takes the angle between them")
    check_densities(method, numbers["density"], numbers["epsilon"])
    keys = tuple(key_of(0, "", str(k)) for k in range(count)) if keys is None else keys
    return Setting(method, switches(preset, method), scale=scale, keys=keys, **numbers, **more)
