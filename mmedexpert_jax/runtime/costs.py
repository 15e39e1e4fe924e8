"""The costs of a run (appendix E): seconds, tokens, operations, memory, money.

Every open run has a meter. What trains or samples calls `count` after each step or batch, and every open run's meter
takes it, so that a pipeline's meter holds the sum of its stages. What was counted before a kill counts: a cost is what
was spent, repeated steps included.
"""

import contextlib
import functools
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mmedexpert_jax.runtime import processes

# Dense bfloat16 operations per second of one device, as its vendor's data sheet states them; float16 of V100 and T4,
# which know no bfloat16. Looked for as whole words in JAX's name of the device: "Tesla T4", "NVIDIA A100-SXM4-80GB".
PEAKS = {
    "V100-PCIE": 112e12,
    "V100": 125e12,
    "T4": 65e12,
    "L4": 121e12,
    "L40S": 362e12,
    "A10": 125e12,
    "A10G": 70e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU v6e": 918e12,
}
_SIDE = 1024  # of the matrices whose product measures a CPU


class Meter:
    """The cost of one run so far; `close` it at the end.

    Args:
        saved: what an earlier process of the run had counted, as `values` gave it.
        price: dollars for an hour of one device; 0: no money is counted.
    """

    def __init__(self, saved: Mapping[str, Any] | None = None, price: float = 0.0):
        saved = saved or {}
        self._price = price
        self._wall = float(saved.get("wall_seconds") or 0.0)
        self._begun: float | None = time.monotonic()
        self.busy = float(saved.get("device_seconds") or 0.0)
        self.tokens = int(saved.get("tokens") or 0)
        self.flops = float(saved.get("flops") or 0.0)
        self._memory = int(saved.get("peak_memory_bytes") or 0)
        for meter in _OPEN:
            meter._look()
        self._earlier = _device_peak() or 0  # an accelerator's record is of the whole process and cannot begin anew
        _forget_peak()
        _OPEN.append(self)

    def close(self) -> None:
        """Stops the clock."""
        if self._begun is not None:
            self._look()
            self._wall += time.monotonic() - self._begun
            self._begun = None
            _OPEN.remove(self)

    def values(self) -> dict[str, Any]:
        """The cost by name: wall seconds, device seconds (of steps, over all devices), tokens, counted operations and
        their share of what the devices can do in that time, bytes at the peak, dollars; what is not known is left out,
        as the peak on an accelerator is where this process had needed more of it before the run.
        """
        self._look()
        wall = self._wall + (time.monotonic() - self._begun if self._begun is not None else 0.0)
        found: dict[str, Any] = {"wall_seconds": round(wall, 3), "devices": _devices()}
        if self.flops:
            found |= {"device_seconds": round(self.busy, 3), "tokens": self.tokens, "flops": self.flops}
            if self.busy and (peak := peak_flops()):
                found["share_of_peak"] = self.flops / self.busy / peak
        if self._memory:
            found["peak_memory_bytes"] = self._memory
        if self._price:
            found["dollars"] = self._price * wall / 3600 * found["devices"]
        return found

    def _look(self) -> None:
        peak = _device_peak()
        if peak is None:
            self._memory = max(self._memory, _host_peak())
        elif peak > self._earlier:
            self._memory = max(self._memory, peak)


_OPEN: list[Meter] = []
_counted = (0.0, 0, 0.0)  # by this process since it started: device seconds, tokens, operations
_sharing = False


def count(seconds: float, tokens: int, flops: float) -> None:
    """Adds work to every open run: `seconds` in which all devices were at it (inside `shared`, or `alone`, those of
    this process), tokens, floating-point operations."""
    _add(seconds * len(_at_work()), int(tokens), float(flops))


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Inside, every process of the job works on a share of its own and counts that; at the end, to which all come, each
    adds what the others counted."""
    global _sharing
    before, outer = _counted, _sharing
    _sharing = processes.count() > 1
    try:
        yield
    finally:
        _sharing = outer
    own = [after - earlier for after, earlier in zip(_counted, before, strict=True)]
    spent = zip(own, *processes.gather(own), strict=True)
    _add(*(sum(everyone) - mine for mine, *everyone in spent))


def _add(busy: float, tokens: int, flops: float) -> None:
    global _counted
    _counted = (_counted[0] + busy, _counted[1] + tokens, _counted[2] + flops)
    for meter in _OPEN:
        meter.busy += busy
        meter.tokens += tokens
        meter.flops += flops


def rounded(cost: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a meter for people."""
    shown: dict[str, Any] = {"wall seconds": round(cost.get("wall_seconds", 0))}
    if "flops" in cost:
        shown |= {
            "device seconds": round(cost["device_seconds"]),
            "tokens": cost["tokens"],
            "operations": f"{cost['flops']:.3g}",
        }
    if "share_of_peak" in cost:
        shown["share of peak"] = f"{cost['share_of_peak']:.1%}"
    if cost.get("peak_memory_bytes"):
        shown["peak memory"] = f"{cost['peak_memory_bytes'] / 1e9:.2f} GB"
    if "dollars" in cost:
        shown["dollars"] = f"{cost['dollars']:.2f}"
    return shown


@functools.cache
def peak_flops() -> float:
    """Operations per second of one device: its vendor's figure in bfloat16; of a CPU what a product of two float32
    matrices reaches; 0 where it is not known."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return _product_rate() / len(jax.devices())
    return vendors_peak(device.device_kind)


def vendors_peak(kind: str) -> float:
    """Operations per second of a device of JAX's name `kind`, of PEAKS; 0 where it has none."""
    return figure(PEAKS, kind)


def figure(table: Mapping[str, float], kind: str) -> float:
    """The figure of a device of JAX's name `kind` in a table by names; 0 where it has none."""
    return next((value for name, value in table.items() if re.search(rf"\b{name}\b", kind, re.IGNORECASE)), 0.0)


def _device_peak() -> int | None:
    """Bytes at the peak on the accelerator of this process that had most in use; None: it has none."""
    if "jax" not in sys.modules:
        return None
    import jax

    with contextlib.suppress(RuntimeError):
        records = [device.memory_stats() for device in jax.local_devices()]
        if any(records):
            return max((record or {}).get("peak_bytes_in_use", 0) for record in records)
    return None


def _host_peak() -> int:
    """Bytes at the peak of this process's memory."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of each
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _product_rate() -> float:
    import numpy as np

    matrix = np.ones((_SIDE, _SIDE), np.float32)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return 2 * _SIDE**3 / best


def _devices() -> int:
    """Devices of the job, which are paid for whether they work or not."""
    if "jax" not in sys.modules:
        return 1
    import jax

    return jax.device_count()


def _at_work() -> list[Any]:
    """Devices behind what is counted."""
    import jax

    return jax.local_devices() if _sharing else processes.devices()


def _forget_peak() -> None:
    """Lets the system's record of this process's memory begin anew, where it can (Linux)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
