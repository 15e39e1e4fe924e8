"""The lines that a command prints: folded at their words on a terminal, as they are elsewhere."""

import shutil
import sys
from typing import TextIO

from mmedexpert_jax.report import text_tables


def say(text: str) -> int:
    """Prints to a reader that may close early, as `head` does."""
    print(_fitted(text, sys.stdout), flush=True)
    return 0


def complain(message: str) -> None:
    """Prints an error: one line, which a terminal shows on as many as it needs."""
    print(_fitted(message, sys.stderr), file=sys.stderr)


def _fitted(text: str, stream: TextIO) -> str:
    """The text, folded at its words where it goes to a terminal."""
    return text_tables.folded(text, shutil.get_terminal_size().columns) if stream.isatty() else text
