"""Training cases that are over the limits of tokens: refused, or left out and counted."""

from collections.abc import Collection

from mmedexpert_jax.errors import DataError
from mmedexpert_jax.runtime import processes

_SHOWN = 5  # ids in the line; a set may have thousands


def report_dropped(dropped: Collection[str], total: int, limits: str) -> None:
    """Prints how many of `total` cases are left out, and the first ids.

    Args:
        dropped: ids of the cases.
        total: cases that there were.
        limits: names and values of the fields that they are over.

    Raises:
        DataError: none is left.
    """
    if len(dropped) == total:
        raise DataError(f"all {total} training cases are over {limits}; raise it, or lower model.max_pixels")
    if dropped and processes.is_writer():
        more = ", ..." if len(dropped) > _SHOWN else ""
        named = ", ".join(sorted(dropped)[:_SHOWN]) + more
        print(f"{len(dropped)} of {total} training cases are over {limits} and left out: {named}", flush=True)
