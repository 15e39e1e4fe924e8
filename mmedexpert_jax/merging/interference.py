"""Where the experts fight: cosines, sign conflicts and kept mass of their task vectors."""

import re
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mmedexpert_jax.errors import DataError


@jax.jit
def measure(vectors: Array, trimmed: Array) -> dict[str, Array]:
    """Sums over the entries of one tensor's task vectors [K, ...]; sums of several tensors add up.

    Returns `gram` [K, K]; `mass` and `kept_mass` [K], sums of magnitudes before and after the trim; and the entries
    that at least one (`wanted`), at least two (`shared`), or two of opposite sign (`conflict`) experts keep.
    """
    vectors, trimmed = vectors.reshape(len(vectors), -1), trimmed.reshape(len(trimmed), -1)
    keepers = jnp.sum(trimmed != 0, axis=0)
    return {
        "gram": jnp.matmul(vectors, vectors.T, precision="highest"),
        "mass": jnp.sum(jnp.abs(vectors), axis=1),
        "kept_mass": jnp.sum(jnp.abs(trimmed), axis=1),
        "wanted": jnp.sum(keepers > 0),
        "shared": jnp.sum(keepers > 1),
        "conflict": jnp.sum(jnp.any(trimmed > 0, axis=0) & jnp.any(trimmed < 0, axis=0)),
    }


@dataclass
class Interference:
    """The report of one merge.

    Attributes:
        experts: names of the K experts, in the order of the merge.
        sums: what `measure` found, by tensor; tensors nobody changed are absent.
        energy: share of the squared norm that a rank-r output keeps, by tensor; empty for a full output.
    """

    experts: tuple[str, ...]
    sums: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    energy: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, name: str, sums: dict[str, Array]) -> bool:
        """Notes what `measure` found of one tensor; False, and nothing is noted, if no expert changed it.

        Raises:
            DataError: an expert's task vector is not finite.
        """
        found = {key: np.asarray(value, np.float64) for key, value in sums.items()}
        for expert, mass in zip(self.experts, found["mass"], strict=True):
            if not np.isfinite(mass):
                raise DataError(f"expert {expert}: {name} holds NaN or infinite values (there or in the base)")
        if not found["mass"].any():
            return False
        self.sums[name] = found
        return True

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
        tensors = [sums for name, sums in self.sums.items() if module in ("", name, kind(name))]
        if not tensors:
            return {}
        total = {key: sum(sums[key] for sums in tensors) for key in tensors[0]}
        norms = np.sqrt(np.diag(total["gram"]))
        lengths = np.outer(norms, norms)
        cosine = np.divide(total["gram"], lengths, out=np.zeros_like(lengths), where=lengths > 0)
        mass = np.divide(total["kept_mass"], total["mass"], out=np.ones_like(norms), where=total["mass"] > 0)
        return {
            "norm": dict(zip(self.experts, norms.tolist(), strict=True)),
            "cosine": cosine.round(6).tolist(),
            "kept_mass": dict(zip(self.experts, mass.tolist(), strict=True)),
            "shared": float(total["shared"] / max(total["wanted"], 1)),
            "conflict": float(total["conflict"] / max(total["wanted"], 1)),
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
            "tensors": {one: self.rates(one) for one in self.sums},
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
        rates = {one: self.rates(one) for one in self.kinds()}
        return [
            {"module": one, "wanted by two or more": found["shared"], "sign conflict": found["conflict"]}
            for one, found in (rates | {"all": self.rates()}).items()
        ]

    def markdown(self) -> str:
        """Both tables."""
        return "\n".join(_markdown(rows) for rows in (self.cosine_rows(), self.kind_rows()))


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [[value if isinstance(value, str) else f"{value:.3f}" for value in row.values()] for row in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in [list(rows[0]), ["---"] * len(rows[0]), *lines])


def kind(name: str) -> str:
    """A tensor's name with its numbers starred: "model.layers.*.mlp.up_proj.weight"."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
