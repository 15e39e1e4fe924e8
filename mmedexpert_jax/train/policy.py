"""The policy in training: frozen weights and deltas, and what is trained over them."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.lora import Lora


class Evaluate(Protocol):
    """A held-out evaluation that launch passes into a trainer."""

    def __call__(self, params: dict, step: int, lora: Lora | None = None) -> dict[str, float]:
        """Metrics `eval/...` of the policy, the weights with the deltas beside them, after `step`."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Policy:
    """Weights with deltas beside them, never folded into a dtype that would round them."""

    params: Any  # nested dict; None: freed, since all of it is trained and no reference is kept
    lora: Lora | None = None

    @classmethod
    def of(cls, params: dict, lora: Lora | None) -> "Policy":
        """A policy as `models.load_policy` gives it; into float32, where folding is exact, the deltas are folded."""
        exact = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
        return cls(lora_module.fold(params, lora)) if lora is not None and exact else cls(params, lora)

    def trainable(self, config: ConfigDict, key: jax.Array) -> Any:
        """The trained part of a run: fresh deltas, or with `trainable` "full" all weights in float32."""
        if config.trainable == "full":
            params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), self.params)
            return params if self.lora is None else lora_module.fold(params, self.lora)
        return lora_module.init(key, self.params, config.lora.rank, config.lora.alpha, config.lora.targets)

    def trained(self, trained: Any, dtypes: Any) -> "Policy":
        """The policy theta_k = theta_base + Delta theta_k (equation 3), the deltas beside the base and not added to it;
        or, where all is trained, the weights in `dtypes` as they are read."""
        if isinstance(trained, Lora):
            return Policy(self.params, trained if self.lora is None else lora_module.stack([self.lora, trained]))
        return Policy(jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), trained, dtypes))
