"""Where the experts fight: cosines, sign conflicts, cancellation and kept mass of their task vectors."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import numpy as np

from mmedexpert_jax.merging.arrays import Array, Rows, namespace, tally, total
from mmedexpert_jax.merging.spherical import gram_matrix
from mmedexpert_jax.runtime.tables import markdown


def measure(
    base: Array, vectors: Rows, kept: Rows, update: Array, merged: Array, with_gram: bool = True
) -> dict[str, Array]:
    """Sums over the entries of one block; those of several blocks and tensors add up.

    Args:
        base: [m] float32.
        vectors: K task vectors [m] float32.
        kept: what the method keeps of them, K [m].
        update: what the merge adds [m].
        merged: base + update in the output's dtype [m].
        with_gram: False where the inner products come from LoRA factors.

    Returns:
        The sums of `entries`, and `gram` [K, K], inner products of the task vectors.
    """
    xp = namespace(vectors)
    sums = {
        name: xp.stack([xp.sum(row) for row in found]) if isinstance(found, list) else _sum(found)
        for name, found in entries(base, vectors, kept, update, merged).items()
    }
    return sums | {"gram": gram_matrix(vectors)} if with_gram else sums


def entries(base: Array, vectors: Rows, kept: Rows, update: Array, merged: Array) -> dict[str, Array | list[Array]]:
    """What `measure` sums, entry by entry: arrays [m] (of those of each expert a list), float32 or bool.

    `mass` and `kept_mass`: magnitudes before and after the trim, by expert; `wanted`, `shared`, `conflict`: whether at
    least one, at least two, or two of opposite sign keep it; `net`: magnitude of the sum of what is kept; `squared` of
    the update, `lost` of what rounding takes from it; `changed` and `vanished`: whether there is an update, and whether
    rounding leaves the base.
    """
    xp = namespace(vectors)
    up, down = [row > 0 for row in kept], [row < 0 for row in kept]
    keepers = tally([above | below for above, below in zip(up, down, strict=True)])
    moved = merged.astype(xp.float32) - base
    error = moved - update
    changed = update != 0
    return {
        "mass": [xp.abs(row) for row in vectors],
        "kept_mass": [xp.abs(row) for row in kept],
        "wanted": keepers > 0,
        "shared": keepers > 1,
        "conflict": reduce(or_, up) & reduce(or_, down),
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
    """The report of one merge.

    Attributes:
        experts: names of the K experts, in the order of the merge.
        sums: what `measure` found, by tensor; tensors nobody changed are absent.
        energy: squared norms (kept, whole) of a rank-r output, by tensor; empty for a full output.
    """

    experts: tuple[str, ...]
    sums: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    energy: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add_energy(self, name: str, kept: float, total: float) -> None:
        """Notes the squared norm that a truncation kept of a tensor, and the whole."""
        self.energy[name] = (kept, total)

    @property
    def kept_energy(self) -> float:
        """Share of the merged vector's squared norm that a rank-r output keeps; 1 for a full output."""
        total = sum(whole for _, whole in self.energy.values())
        return sum(kept for kept, _ in self.energy.values()) / total if total else 1.0

    def rates(self, module: str = "") -> dict[str, Any]:
        """Cosines and rates over all changed tensors, or over those of one kind or name; `{}` if there are none."""
        return self._rates(sums for name, sums in self.sums.items() if module in ("", name, kind(name)))

    def tensor_rates(self, name: str) -> dict[str, Any]:
        """The rates of one tensor."""
        return self._rates([self.sums[name]])

    def _rates(self, tensors: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        total: dict[str, np.ndarray] = {}
        for sums in tensors:
            add(total, sums)
        if not total:
            return {}
        norms = np.sqrt(np.maximum(np.diag(total["gram"]), 0))
        cosine = _ratio(total["gram"], np.outer(norms, norms), 0)
        return {
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

    def kinds(self) -> list[str]:
        """Names of the changed tensors with their layer numbers left out, in order of appearance."""
        return list(dict.fromkeys(kind(name) for name in self.sums))

    def to_json(self) -> dict[str, Any]:
        """The rates of all tensors together, by kind of module, and by tensor."""
        return {
            "experts": list(self.experts),
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
        """Both tables."""
        return "\n".join(markdown(rows, 3) for rows in (self.cosine_rows(), self.kind_rows()))


def kind(name: str) -> str:
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
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, float(empty)), where=whole > 0)
