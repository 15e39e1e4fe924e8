"""Devices: what goes wrong with them, said in one line, and where their compiled programs are kept."""

import contextlib
import hashlib
import os
import platform
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmedexpert_jax.errors import ResourceError

PROGRAMS = 10 * 2**30  # bytes of compiled programs that are kept, the last used ones
FIX = "lower prompts_per_step, num_samples, batch_size or max_new_tokens, or use more devices"


@contextlib.contextmanager
def device_errors(fix: str = FIX) -> Iterator[None]:
    """Turns out-of-memory and no-such-device errors of the block into a ResourceError with a fix."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"out of memory on the host; {fix}") from error
    except RuntimeError as error:  # jax.errors.JaxRuntimeError is one
        line = explain(str(error), fix)
        if line is None:
            raise
        raise ResourceError(line) from error
    except AssertionError as error:  # of JAX_PLATFORMS=cuda, of which JAX then finds no kind
        if not traceback.extract_tb(error.__traceback__)[-1].filename.endswith("xla_bridge.py"):
            raise
        raise ResourceError(_absent(os.environ.get("JAX_PLATFORMS", ""))) from error


def in_32_bits() -> None:
    """Turns the 64 bits of JAX_ENABLE_X64 off, where the user's shell has it for other programs."""
    import jax

    settings: Any = jax.config
    if settings.jax_enable_x64:
        print("JAX_ENABLE_X64 is set; this job computes in 32 bits all the same", file=sys.stderr, flush=True)
        jax.config.update("jax_enable_x64", False)


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache, so that a second run compiles nothing anew.

    A folder that the user has chosen (JAX_COMPILATION_CACHE_DIR) stands, and JAX_ENABLE_COMPILATION_CACHE=0 turns it
    off. Programs for a CPU hold its instructions: machines of several kinds that share a home have a folder each.
    """
    import jax

    settings: Any = jax.config  # its fields are made at run time, out of a type checker's sight
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(cache / "mmedexpert_jax" / "programs" / _processor()))
    jax.config.update("jax_compilation_cache_max_size", PROGRAMS)


def keep_no_programs() -> None:
    """From here on this process neither keeps compiled programs nor reads kept ones, whatever folder was chosen."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks for the setting once


def _processor() -> str:
    """The machine's kind and a digest of its instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def compiled_programs(folder: str | Path) -> Iterator[None]:
    """Keeps compiled programs in a folder, so that equal ones are compiled once, in this process or a later one.

    A folder that the user has chosen (JAX_COMPILATION_CACHE_DIR) stands.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if getattr(jax.config, "jax_compilation_cache_dir", None):
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


def explain(message: str, fix: str = FIX) -> str | None:
    """One line for JAX's message; None for one that is not about devices or their memory."""
    if "RESOURCE_EXHAUSTED" in message or "Out of memory" in message:
        size = re.search(r"allocat(?:e|ing) (\d+) bytes|allocat(?:e|ing) ([\d.]+ ?[KMGT]i?B)", message)
        wanted = ""
        if size:
            wanted = f" (wanted {f'{int(size[1]) / 1e9:.2f} GB' if size[1] else size[2]} more)"
        return f"out of device memory{wanted}; {fix}"
    if found := re.search(r"[Uu]nknown backend:? '?(\w+)|[Uu]nable to initialize backend '(\w+)'", message):
        return _absent(found[1] or found[2])
    return None


def _absent(name: str) -> str:
    return f"no such device: JAX cannot use {name!r} here; install its extra, or unset JAX_PLATFORMS"
