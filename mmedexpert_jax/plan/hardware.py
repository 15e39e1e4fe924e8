"""Devices that a plan counts for: those of this machine, or named ones that are not here."""

import os
import re
from dataclasses import dataclass

from jax.sharding import AbstractMesh, AxisType

from mmedexpert_jax.config.fields import named_devices
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.runtime.mesh import AXES, sizes

# Memory of one device in bytes, as its vendor states it, and the share that JAX takes: on GPUs three quarters unless
# a variable of FRACTION says otherwise (JAX's documentation on GPU memory), on TPUs all.
MEMORY = {"a100": 80e9, "h100": 80e9, "h200": 141e9, "v5e": 16e9, "v5p": 95e9, "v6e": 32e9}
GPUS = ("a100", "h100", "h200", "gpu", "cuda")
FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # JAX's newer name goes first


@dataclass(frozen=True)
class Devices:
    """A number of equal devices."""

    kind: str  # "a100", or JAX's name of the platform
    count: int  # how many
    memory: int  # bytes that a program may use on each; 0: not known

    def mesh(self, data: int = -1, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
        """The mesh that `runtime.mesh.make_mesh` makes of such devices, without any; raises as `mesh.sizes` does."""
        return AbstractMesh(sizes(self.count, self.kind, data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def find(name: str) -> Devices:
    """The devices of `plan_mesh`, or those of the job for "". Raises ConfigError for another name."""
    if not name:
        return _here()
    kind, count = named_devices(name)
    return Devices(kind, count, int(MEMORY[kind] * (_fraction() if kind in GPUS else 1.0)))


def _fraction() -> float:
    """The share of a GPU that JAX preallocates; above 1 with unified memory. Raises ConfigError."""
    for name in FRACTION:
        if text := os.environ.get(name, "").strip():
            if not re.fullmatch(r"\d*\.?\d+|\d+\.", text) or not 0 < float(text) < 1e6:
                raise ConfigError(f"{name}={text} is no share of the memory; set it to a number above 0, or unset it")
            return float(text)
    return 0.75  # where nothing is said


def _here() -> Devices:
    import jax

    first, count = jax.local_devices()[0], jax.device_count()
    if first.platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Devices("cpu", count, memory // jax.local_device_count())
    return Devices(first.platform, count, (first.memory_stats() or {}).get("bytes_limit", 0))
