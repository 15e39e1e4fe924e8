"""Entry point of `python -m mmedexpert_jax.launch`."""

import sys

from mmedexpert_jax.launch.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
