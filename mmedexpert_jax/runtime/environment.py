"""The environment of a run: versions, devices, memory."""

import importlib.metadata
import os
import platform
import sys
from typing import Any

PACKAGES = (
    "mmedexpert-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "tokenizers",
    "safetensors", "pillow", "pyarrow", "ml_collections",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Versions of Python and of the packages that bear on results, the host, and JAX's devices.

    Devices are listed only where JAX is imported already: a job without JAX should not wait for it.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        **(_devices() if "jax" in sys.modules else {}),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _devices() -> dict[str, Any]:
    import jax

    devices = jax.devices()
    return {"backend": jax.default_backend(), "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in devices]}
