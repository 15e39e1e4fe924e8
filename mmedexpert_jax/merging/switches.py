"""Every point on which published merging codes differ, and the presets that follow each of them."""

from dataclasses import dataclass, replace

from mmedexpert_jax.errors import ConfigError


@dataclass(frozen=True)
class Switches:
    """What the papers leave open.

    Attributes:
        scope: unit of a trim by magnitude: "tensor", "module" (weight and bias of one layer) or "global" (one vector
            of the whole model).
        equal_magnitudes: which of several entries at the bound are kept: "lower_index" or "higher_index" (exactly as
            many as asked), or "keep_all".
        at_least: entries kept of a unit that has any, even if int(density * n) is less.
        extra: entries kept beyond int(density * n).
        elect: "mass" (sign of the sum of values) or "count" (sign of the sum of signs).
        weigh: weights multiply the trimmed vectors "before" or "after" the election.
        cancellation: sign elected where that sum is exactly 0: "drop" (none: the entry is 0), "plus",
            or "majority" (the more frequent elected sign of the unit; minus if there is none).
        denominator: the merged sum is divided by the "weights" or the "count" of those that join it, or by "none".
        rescale: entries kept at random are multiplied by 1 / their probability ("density"), by the tensor's 1-norm
            before over after ("l1"), or not ("none").
    """

    scope: str = "tensor"
    equal_magnitudes: str = "lower_index"
    at_least: int = 1
    extra: int = 0
    elect: str = "mass"
    weigh: str = "after"
    cancellation: str = "drop"
    denominator: str = "weights"
    rescale: str = "none"

    def kept(self, size: int, density: float) -> int:
        """How many of `size` entries the trim keeps, int(density * size) before the switches."""
        count = int(density * size) + self.extra
        return min(size, max(self.at_least if density > 0 else 0, count))


CHOICES = {
    "scope": ("tensor", "module", "global"),
    "equal_magnitudes": ("lower_index", "higher_index", "keep_all"),
    "elect": ("mass", "count"),
    "weigh": ("before", "after"),
    "cancellation": ("drop", "plus", "majority"),
    "denominator": ("weights", "count", "none"),
    "rescale": ("none", "density", "l1"),
}

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
_SUMS = ("task_arithmetic", "magnitude_prune", "dare_linear", "della_linear", "breadcrumbs")
_RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


def switches(preset: str | Switches, method: str = "ties") -> Switches:
    """The switches of a preset for one method; switches pass through.

    Sums of task vectors are divided by nothing; what is drawn at random is rescaled by its probability, in mergekit
    by 1-norms. mergekit divides neither DARE-TIES nor breadcrumbs-TIES, and drops, of equal outliers, the last ones.

    Raises:
        ConfigError: an unknown preset, or a switch with an unknown value.
    """
    if isinstance(preset, Switches):
        for name, choices in CHOICES.items():
            if getattr(preset, name) not in choices:
                raise ConfigError(f"switch {name}={getattr(preset, name)!r}: choose one of {', '.join(choices)}")
        return preset
    if preset not in PRESETS:
        raise ConfigError(f"no TIES preset {preset!r}: choose one of {', '.join(PRESETS)}")
    rule = PRESETS[preset]
    if method in _SUMS:
        rule = replace(rule, denominator="none")
    if method in _RANDOM:
        rule = replace(rule, rescale="l1" if preset == "mergekit" else "density")
    if preset == "mergekit" and method in ("dare_ties", "breadcrumbs_ties"):
        rule = replace(rule, denominator="none")
    if preset == "mergekit" and method.startswith("breadcrumbs"):
        rule = replace(rule, equal_magnitudes="higher_index")
    return rule
