"""The command line: flags, configs, job dispatch, the pipeline. For notebooks: `load_config`, `launch`."""

import sys
from types import ModuleType

from ml_collections import ConfigDict

from mmedexpert_jax import border
from mmedexpert_jax.config import presets
from mmedexpert_jax.config.job_config import load_config
from mmedexpert_jax.errors import ConfigError

__all__ = ["launch", "load_config"]


def launch(config: ConfigDict | str) -> None:
    """Runs the job of a config, or of a config file, as the command line does: `mx.launch("configs/gba.py:mini")`.

    Raises what the command line prints: `mmedexpert_jax.errors.UserError` and its kinds.
    """
    from mmedexpert_jax.launch.jobs import launch as start

    if isinstance(config, str):
        config = load_config(config)
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"launch takes what load_config returns, or configs/<job>.py, not {border.shown(config)}")
    start(config)


class _Callable(ModuleType):
    """This package as the function `launch`: Python sets the name `mmedexpert_jax.launch` to the package itself."""

    def __call__(self, config: ConfigDict | str) -> None:
        launch(config)


sys.modules[__name__].__class__ = _Callable
sys.modules[f"{__name__}.presets"] = presets  # where configs of users from before `config.presets` import it from
