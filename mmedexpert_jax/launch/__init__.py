"""The command line: flags, configs, job dispatch, the pipeline. For notebooks: `load_config`, `launch`."""

import sys
from types import ModuleType

from ml_collections import ConfigDict

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.job_config import load_config

__all__ = ["launch", "load_config"]


def launch(config: ConfigDict) -> None:
    """Runs the job of a config, as the command line does: `mx.launch(mx.load_config("configs/gba.py:mini"))`.

    Raises what the command line prints: `mmedexpert_jax.errors.UserError` and its kinds.
    """
    from mmedexpert_jax.launch.jobs import launch as start

    start(config)


class _Callable(ModuleType):
    """This package as the function `launch`: Python sets the name `mmedexpert_jax.launch` to the package itself."""

    def __call__(self, config: ConfigDict) -> None:
        launch(config)


sys.modules[__name__].__class__ = _Callable
sys.modules[f"{__name__}.presets"] = presets  # where configs of users from before `config.presets` import it from
