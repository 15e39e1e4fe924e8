"""Compilers for devices that are not here: JAX's CUDA plugin for A100, H100 and H200, libtpu for TPU v5e, v5p and v6e.

    pip install "jax-cuda12-plugin[with-cuda]==<the installed jax>"   # no GPU and no driver is needed
    pip install libtpu

Without a device nothing is autotuned, so that the kernels of a real run may differ.
"""

import os
from typing import Any

import jax
import numpy as np
from einops import rearrange
from jax.sharding import AxisType, Mesh

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.rounding import cdiv
from mmedexpert_jax.runtime.mesh import AXES

# XLA's description of a GPU. The figures are the vendor's, as openxla/xla's target_config/specs have them.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {major}.0"
  name: "{name}"
  driver_version: "12.8.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
TARGETS: dict[str, dict[str, Any]] = {
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB", "major": 8, "cores": 108, "units": 64, "clock": 1.41, "memory": 85100068864,
        "bandwidth": 2039040000000, "cache": 41943040, "shared": 167936, "optin": 166912,
    },
    "h100": {
        "name": "NVIDIA H100 80GB HBM3", "major": 9, "cores": 132, "units": 128, "clock": 1.98, "memory": 84942979072,
        "bandwidth": 3352320000000, "cache": 52428800, "shared": 233472, "optin": 232448,
    },
}  # fmt: skip
# the H100's processors with more and faster memory: 143,771 MiB and 4.8 TB/s
TARGETS["h200"] = TARGETS["h100"] | {"name": "NVIDIA H200", "memory": 150754820096, "bandwidth": 4800000000000}
HOST = 8  # GPUs of a host
_UNCHECKED = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"  # the CUDA plugin loads without a driver
# libtpu then asks no service which machine it is on, and does not mind another process that compiles.
_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
OPTIONS: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}  # of a GPU's compiler: no kernels are tried out


def mesh(kind: str, count: int = 1) -> Mesh:
    """A mesh (count, 1, 1) of compile-only devices: a key of TARGETS, "v5e", "v5p" or "v6e".

    Raises:
        ConfigError: no compiler for them is installed.
    """
    try:
        if kind in TARGETS:
            target, hosts = _GPU.format(**TARGETS[kind]), cdiv(count, HOST)
            found = _topology(platform="cuda", target_config=target, topology=f"1x{hosts}x{count // hosts}")
        else:
            for name, value in _TPU.items():
                os.environ.setdefault(name, value)
            chips = "2x2x{}" if kind == "v5p" else "2x{}"  # v5p's are a grid of three axes, others' of two
            rows = max(2, cdiv(count, chips.count("2") * 2))
            found = _topology(platform="tpu", topology_name=f"{kind}:{chips.format(rows)}")
    except Exception as error:  # whatever a plugin that is not there, or of another version, makes of it
        package = "jax-cuda12-plugin[with-cuda]" if kind in TARGETS else "libtpu"
        raise ConfigError(
            f"config.plan_compile: no compiler for {kind} is here; install {package} for jax {jax.__version__}, or "
            "leave it out"
        ) from error
    return Mesh(
        rearrange(np.array(found.devices[:count]), "device -> device 1 1"), AXES, axis_types=(AxisType.Auto,) * 3
    )


def _topology(**names: str) -> Any:
    """JAX's description of devices that are not here."""
    from jax._src import xla_bridge
    from jax.experimental import topologies

    os.environ.setdefault(_UNCHECKED, "1")
    try:
        return topologies.get_topology_desc(**names)
    except NotImplementedError:  # JAX looked for its plugins before, and left out one that found no driver
        xla_bridge.discover_pjrt_plugins()
        return topologies.get_topology_desc(**names)


def capability(kind: str) -> str:
    """The compute capability of such devices, "" for a TPU."""
    return f"{TARGETS[kind]['major']}.0" if kind in TARGETS else ""
