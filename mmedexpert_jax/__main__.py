"""Entry point of `python -m mmedexpert_jax`, the same as the console script `mmedexpert`."""

import sys

from mmedexpert_jax.launch.console import main

if __name__ == "__main__":
    sys.exit(main())
