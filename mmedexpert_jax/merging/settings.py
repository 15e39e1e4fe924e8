"""The settings of a merge: the switches on which published codes differ, a method's two rules, and its numbers."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args, get_type_hints

import numpy as np


@dataclass(frozen=True)
class Switches:
    """The choices that the papers leave open."""

    # unit of a trim by magnitude; a module is weight and bias of one layer, "global" one vector of the whole model
    scope: Literal["tensor", "module", "global"] = "tensor"
    # which of several entries at the bound are kept, exactly as many as asked or all of them
    equal_magnitudes: Literal["lower_index", "higher_index", "keep_all"] = "lower_index"
    at_least: int = 1  # entries kept of a unit that has any, even if int(density * n) is less
    extra: int = 0  # entries kept beyond int(density * n)
    elect: Literal["mass", "count"] = "mass"  # by the sign of the sum of values, or of signs
    weigh: Literal["before", "after"] = "after"  # weights multiply the trimmed vectors before or after the election
    # sign elected where that sum is exactly 0: none (the entry is 0), plus, or the more frequent elected sign of the
    # unit (minus if there is none)
    cancellation: Literal["drop", "plus", "majority"] = "drop"
    # the merged sum is divided by the weights or the count of those that join it
    denominator: Literal["weights", "count", "none"] = "weights"
    # entries kept are multiplied by 1 / their probability ("density", random methods alone), or by the tensor's 1-norm
    # or 2-norm before over after
    rescale: Literal["none", "density", "l1", "l2"] = "none"
    # task vectors are first stretched to one magnitude, the mean of the experts': by the 2-norm of a tensor, a module
    # or the model, or by the median magnitude of a tensor
    normalize: Literal["none", "tensor", "module", "global", "median"] = "none"

    def kept(self, size: int, density: float) -> int:
        """The number of `size` entries that the trim keeps, int(density * size) before the switches."""
        count = int(density * size) + self.extra
        return min(size, max(self.at_least if density > 0 else 0, count))


CHOICES = {name: choices for name, hint in get_type_hints(Switches).items() if (choices := get_args(hint))}

PRESETS = {
    # Algorithm 1: sgn(0) agrees with zeros only, so an exact cancellation gives 0.
    "paper": Switches(),
    # The TIES authors' code: kthvalue keeps one entry more and every equal magnitude of one vector for the whole model.
    "official": Switches(
        "global", equal_magnitudes="keep_all", at_least=0, extra=1, cancellation="majority", denominator="count"
    ),
    # mergekit 0.1.5 with the defaults of each method.
    "mergekit": Switches(weigh="before", cancellation="plus"),
    # peft.utils.merge_utils: no least number of entries, weights are not in the denominator.
    "peft": Switches(at_least=0, cancellation="plus", denominator="count"),
}


@dataclass(frozen=True)
class Method:
    """The rule by which a method keeps entries, and the rule by which these join."""

    # "all"; by magnitude over a unit the "largest" (TIES, `methods.trim`) or "middle" ones (breadcrumbs, `between`);
    # "random" ones (DARE, `bernoulli`), by rank in a row "ranked" ones (DELLA, `by_rank`); by the variance over the
    # experts "varied" ones (SCE, `varied`); by `importance` "important" ones (Arcee Fusion)
    keep: str
    # "elect" (TIES, `disjoint_mean`), "sum", "overlap" (RAM), "near" (NearSwap), "masses" (SCE), "span" (coefficients
    # of whole vectors, `spherical`), "rows" (a coefficient for each row or column), "factors" (of low rank,
    # `lowrank`); by the experts' Fisher information "weigh" (`weighed`) or "arbitrate" (`arbitrated`)
    join: str
    whole: bool = False  # base + task vectors take the place of task vectors
    experts: int = 0  # the number that it merges; 0: any
    has_weights: bool = True  # False where the experts' weights do not count

    @property
    def has_density(self) -> bool:
        """True where the experts' densities count."""
        return self.keep not in ("all", "important")

    @property
    def by_fisher(self) -> bool:
        """True where every expert's Fisher information must be there."""
        return self.join in ("weigh", "arbitrate")


class Number(NamedTuple):
    """A number of a merge that a user may set."""

    default: float
    by_expert: bool = False  # one for each expert, else one for all
    methods: tuple[str, ...] = ()  # the only ones that read it; empty: see `Method`


# Defaults of the numbers of single methods are mergekit's.
NUMBERS = {
    "density": Number(1.0, by_expert=True),
    "weight": Number(1.0, by_expert=True),
    "gamma": Number(0.01, by_expert=True, methods=("breadcrumbs", "breadcrumbs_ties")),
    "epsilon": Number(0.15, by_expert=True, methods=("della", "della_linear")),
    "scale": Number(1.0),
    "t": Number(0.0, methods=("nearswap",)),
    "threshold": Number(1e-5, methods=("ram", "ramplus")),
    "slope": Number(0.1, methods=("ramplus",)),
    "bound": Number(0.2, methods=("ramplus",)),
    "max_iter": Number(10, methods=("karcher", "weight_karcher")),
    "tol": Number(1e-5, methods=("karcher", "weight_karcher")),
}


@dataclass(frozen=True)
class Setting:
    """The numbers by which one tensor's K task vectors become one."""

    method: str  # name in `methods.METHODS`
    kind: Method
    rule: Switches
    weights: tuple[float, ...]  # K
    density: tuple[float, ...]  # K fractions kept
    gamma: tuple[float, ...]  # K fractions dropped as outliers (breadcrumbs)
    epsilon: tuple[float, ...]  # K half widths of the probabilities (DELLA)
    keys: tuple[int, ...]  # K keys of random choices
    scale: float  # factor of the merged vector
    t: float  # NearSwap: how far an entry moves at most
    threshold: float  # RAM: entries up to it count as unchanged
    # slope, bound: RAM+: r and alpha, of the amplification of an expert's own entries
    slope: float
    bound: float
    # max_iter, tol: of the Karcher mean's iteration
    max_iter: float
    tol: float
    # "core" or "knots": matrices are merged in a basis that the experts' factors span (`lowrank`); "": whole
    space: str = ""
    compress: int = 0  # rank that matrices are cut to before a merge in factors; 0: not

    @property
    def in_factors(self) -> bool:
        """True where matrices are merged from low-rank factors."""
        return bool(self.space) or self.kind.join == "factors"

    @property
    def unequal_weights(self) -> np.ndarray | None:
        """[K] float32; None where all are 1."""
        return None if all(weight == 1 for weight in self.weights) else np.asarray(self.weights, np.float32)

    @property
    def trims(self) -> bool:
        """True where entries are chosen by magnitude over a unit: the scope matters then."""
        return self.kind.keep in ("largest", "middle")

    @property
    def whole_rows(self) -> bool:
        """True where blocks must be whole rows of a matrix."""
        return self.kind.keep in ("ranked", "important") or self.kind.join == "rows" or self.in_factors

    @property
    def divisor(self) -> float:
        """The number that a weighted sum is divided by."""
        found = {"none": 1.0, "weights": sum(self.weights), "count": len(self.weights)}[self.rule.denominator]
        return found if abs(found) > 1e-8 else 1.0  # as mergekit: weights that cancel are not divided by

    @property
    def linear(self) -> bool:
        """True where the merged vector is a sum of whole vectors with coefficients: it has factors where they do."""
        return self.kind.keep == "all" and self.kind.join in ("sum", "span") and not self.kind.whole

    @property
    def silent(self) -> list[bool]:
        """K flags: True for an expert of which nothing comes in, whatever it changed, by the numbers alone."""
        unweighed, untrimmed = not self.kind.has_weights, not self.kind.has_density or self.rule.extra
        numbers = zip(self.weights, self.density, strict=True)
        return [not (self.scale and (w or unweighed) and (d or untrimmed)) for w, d in numbers]

    @property
    def moves_base(self) -> bool:
        """True where tensors that no expert changed change nevertheless: whole weights whose factors' sum is not 1."""
        sums = self.method in ("weight_sum", "weight_multislerp") and self.rule.denominator == "none"
        return sums and sum(self.weights) != 1
