"""A job in a process of its own, forked from one that has imported the package: it starts in a moment."""

import os
import sys


def run(arguments: list[str], errors: str) -> None:
    """Runs the command line and ends the process with its exit code; stderr goes to the file `errors`."""
    file = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from mmedexpert_jax.launch.cli import main

    sys.exit(main(arguments))
