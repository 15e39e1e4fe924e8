"""Interference of the experts: cosines, sign conflicts, cancellation and kept mass of their task vectors."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import numpy as np

from mmedexpert_jax.merging.arrays import Array, Rows, namespace, tally, total
from mmedexpert_jax.merging.spherical import gram_matrix
from mmedexpert_jax.report.text_tables import markdown


def measure(base: Array, vectors: Rows, kept: Rows, update: Array, merged: Array) -> dict[str, Array]:
    """Sums over the entries of one block; those of several blocks and tensors add up.

    Args:
        base: [m] float32.
        vectors: K task vectors [m] float32.
        kept: what the method keeps of them, K [m].
        update: what the merge adds [m].
        merged: base + update in the output's dtype [m].

    Returns:
        The sums of `entries`, and `gram` [K, K], inner products of the task vectors.
    """
    xp = namespace(vectors)
    sums = {
        name: xp.stack([_sum(row) for row in found]) if isinstance(found, list) else _sum(found)
        for name, found in entries(base, vectors, kept, update, merged).items()
    }
    return sums | {"gram": gram_matrix(vectors)}


def entries(base: Array, vectors: Rows, kept: Rows, update: Array, merged: Array) -> dict[str, Array | list[Array]]:
    """The summands of `measure`, entry by entry: arrays [m] (of those of each expert a list), float32 or bool.

    `mass` and `kept_mass`: magnitudes before and after the trim, by expert; `wanted`, `shared`, `conflict`: whether at
    least one, at least two, or two of opposite sign keep it; `net`: magnitude of the sum of what is kept; `squared` of
    the update, `lost` of what rounding takes from it; `changed` and `vanished`: whether there is an update, and whether
    rounding leaves the base. Of each expert: `along`, its product with the update; `held`, whether it keeps an entry;
    `contested`, whether another keeps it with the opposite sign; `outvoted`, whether the update then has that sign.
    """
    xp = namespace(vectors)
    up, down = [row > 0 for row in kept], [row < 0 for row in kept]
    held = [above | below for above, below in zip(up, down, strict=True)]
    keepers = tally(held)
    conflict = reduce(or_, up) & reduce(or_, down)
    against = [(above & (update <= 0)) | (below & (update >= 0)) for above, below in zip(up, down, strict=True)]
    moved = merged.astype(xp.float32) - base
    error = moved - update
    changed = update != 0
    return {
        "mass": [xp.abs(row) for row in vectors],
        "kept_mass": [xp.abs(row) for row in kept],
        "wanted": keepers > 0,
        "shared": keepers > 1,
        "conflict": conflict,
        "along": [row * update for row in vectors],
        "held": held,
        "contested": [row & conflict for row in held],
        "outvoted": [row & conflict for row in against],
        "net": xp.abs(total(kept)),
        "squared": update * update,
        "lost": error * error,
        "changed": changed,
        "vanished": changed & (moved == 0),
    }


def add(sums: dict[str, np.ndarray], found: Mapping[str, Any]) -> None:
    """Adds the sums of another block in float64."""
    for key, value in found.items():
        sums[key] = sums.get(key, 0) + np.asarray(value, np.float64)


@dataclass
class Interference:
    """The report of one merge."""

    experts: tuple[str, ...]  # names of the K experts, in the order of the merge
    # what `measure` found, by tensor; tensors nobody changed are absent
    sums: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    # squared norms (kept, whole) of a rank-r output, by tensor; empty for a full output
    energy: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def kept_energy(self) -> float:
        """Share of the merged vector's squared norm that a rank-r output keeps; 1 for a full output."""
        total = sum(whole for _, whole in self.energy.values())
        return sum(kept for kept, _ in self.energy.values()) / total if total else 1.0

    def rates(self, module: str = "") -> dict[str, Any]:
        """Cosines and rates over all changed tensors, or over those of one kind or name; `{}` if there are none."""
        return self._rates(sums for name, sums in self.sums.items() if module in ("", name, part_of(name)))

    def tensor_rates(self, name: str) -> dict[str, Any]:
        """The rates of one tensor."""
        kept = self.energy.get(name)
        return self._rates([self.sums[name]]) | ({"energy": kept[0] / kept[1]} if kept and kept[1] else {})

    def _rates(self, tensors: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        total: dict[str, np.ndarray] = {}
        for sums in tensors:
            add(total, sums)
        if not total:
            return {}
        norms = np.sqrt(np.maximum(np.diag(total["gram"]), 0))
        cosine = _ratio(total["gram"], np.outer(norms, norms), 0)
        return self._votes(total, norms) | {
            "norm": dict(zip(self.experts, norms.tolist(), strict=True)),
            "cosine": cosine.round(6).tolist(),
            "kept_mass": dict(zip(self.experts, _ratio(total["kept_mass"], total["mass"], 1).tolist(), strict=True)),
            "shared": float(_ratio(total["shared"], total["wanted"], 0)),
            "conflict": float(_ratio(total["conflict"], total["wanted"], 0)),
            "cancellation": float(1 - _ratio(total["net"], total["kept_mass"].sum(), 1)),
            "merged_norm": float(np.sqrt(total["squared"])),
            "rounding_error": float(np.sqrt(_ratio(total["lost"], total["squared"], 0))),
            "vanished": float(_ratio(total["vanished"], total["changed"], 0)),
        }

    def _votes(self, total: Mapping[str, np.ndarray], norms: np.ndarray) -> dict[str, Any]:
        """Elections won, and the part of each vector that survives, by expert; empty where it was not measured."""
        if "held" not in total:
            return {}
        own = np.sqrt(total["stretch"]) if "stretch" in total else norms
        others = (own.sum() - own) / max(len(own) - 1, 1)
        found = {
            "length": _ratio(own, others, 1),
            "contested": _ratio(total["contested"], total["held"], 0),
            "won": _ratio(total["contested"] - total["outvoted"], total["contested"], 1),
            "survives": _ratio(total["held"] - total["outvoted"], total["held"], 1),
            "along": _ratio(total["along"], norms * np.sqrt(total["squared"]), 0),
            "contests": total["contested"],
        }
        return {key: dict(zip(self.experts, values.tolist(), strict=True)) for key, values in found.items()}

    def sentence(self) -> str:
        """The headline: who changed nothing, how often the experts disagree, and who is nearly lost."""
        rates = self.rates()
        if not rates.get("along"):
            return ""
        moved = [name for name in self.experts if rates["norm"][name]]
        said = [
            f"{name} does not differ from the base in what was measured." for name in self.experts if name not in moved
        ]
        if not rates["merged_norm"]:
            return " ".join([*said, "The merge adds nothing to the base in what was measured."])
        return " ".join([*said, self._disputes(rates, moved)] if len(moved) > 1 else said)

    def _disputes(self, rates: Mapping[str, Any], experts: Iterable[str]) -> str:
        text = f"Experts disagree in sign on {100 * rates['conflict']:.1f} % of the changed weights: one raises what"
        text += " another lowers."
        name = min(experts, key=lambda one: rates["along"][one])
        ratio = rates["length"][name]
        times = f"{1 / ratio:.1f} times smaller than" if 0 < ratio < 1 else f"{ratio:.1f} times larger than"
        times = "as long as" if 0.95 < ratio < 1.05 else times
        won, contests, along = (rates[key][name] for key in ("won", "contests", "along"))
        text += (
            f" {name} survives least: {times} the others' on average, its change won {100 * won:.1f} % of its "
            f"{int(contests):,} disputes, and the merge follows it by a cosine of {along:.2f} (1: all the way, 0: not "
            "at all)."
        )
        if won < 0.25 and ratio < 1 / 3:
            text += (
                " It is nearly lost: try config.normalize_vectors=tensor, which gives all experts one magnitude, and "
                "compare the two merges on held-out cases."
            )
        if self.energy:
            text += f" The adapter's rank keeps {100 * self.kept_energy:.0f} % of the merged update's energy."
        return text

    def election_rows(self) -> list[dict[str, Any]]:
        """A table of who won, by expert."""
        rates = self.rates()
        titles = {
            "length to the others'": "length",
            "contested of what it keeps": "contested",
            "won of the contested": "won",
            "top entries that survive": "survives",
            "cosine to the merge": "along",
        }
        if "won" not in rates:
            return []
        return [{"expert": name} | {title: rates[key][name] for title, key in titles.items()} for name in self.experts]

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Those that have rows, by title."""
        found = {
            "Who won, and what survives": self.election_rows(),
            "Cosine between the experts, and mass kept": self.cosine_rows(),
            "Interference": self.kind_rows(),
        }
        return {title: rows for title, rows in found.items() if rows}

    def kinds(self) -> list[str]:
        """Names of the changed tensors with their layer numbers left out, in order of appearance."""
        return list(dict.fromkeys(part_of(name) for name in self.sums))

    def to_json(self) -> dict[str, Any]:
        """The rates of all tensors together, by kind of module, and by tensor."""
        return {
            "experts": list(self.experts),
            "sentence": self.sentence(),
            "all": self.rates(),
            "kinds": {one: self.rates(one) for one in self.kinds()},
            "tensors": {one: self.tensor_rates(one) for one in self.sums},
            "kept_energy": self.kept_energy,
        }

    def cosine_rows(self) -> list[dict[str, Any]]:
        """A table of the cosines between the experts, and the share of each one's mass that the trim keeps."""
        overall = self.rates()
        return [
            {"expert": name} | dict(zip(self.experts, row, strict=True)) | {"kept mass": overall["kept_mass"][name]}
            for name, row in zip(self.experts, overall["cosine"], strict=True)
        ]

    def kind_rows(self) -> list[dict[str, Any]]:
        """A table of the rates by kind of module, and of all together."""
        titles = {
            "wanted by two or more": "shared",
            "sign conflict": "conflict",
            "cancellation": "cancellation",
            "lost in rounding": "rounding_error",
        }
        rates = {one: self.rates(one) for one in self.kinds()} | {"all": self.rates()}
        return [{"module": one} | {k: found[v] for k, v in titles.items()} for one, found in rates.items()]

    def markdown(self) -> str:
        """The sentence and the tables."""
        return "\n".join([self.sentence(), "", *(markdown(rows, 3) for rows in self.tables().values())])


def part_of(name: str) -> str:
    """A tensor's name with its numbers starred: "model.layers.*.mlp.up_proj.weight"."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def layer(name: str) -> int | None:
    """The first number in a tensor's name; None for tensors outside the layers."""
    found = re.search(r"(?<=\.)\d+(?=\.)", name)
    return int(found[0]) if found else None


def _sum(found: Array) -> Array:
    """Of bools numpy counts them, which is much faster."""
    xp = namespace(found)
    return xp.count_nonzero(found) if found.dtype == bool else xp.sum(found)


def _ratio(part: Any, whole: Any, empty: float) -> np.ndarray:
    """part / whole; `empty` where there is no whole."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    with np.errstate(invalid="ignore"):  # sums of squares that float32 cannot hold
        return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, float(empty)), where=whole > 0)
