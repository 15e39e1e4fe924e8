"""The command line: flags, configs, job dispatch, the pipeline. `load_config` is the same thing for notebooks."""

from mmedexpert_jax.launch.config import load_config

__all__ = ["load_config"]
