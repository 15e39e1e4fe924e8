"""A user's own functions: rewards, surrogates and estimators in files or modules outside the package."""

import importlib
import inspect
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError


def find_function(name: str, known: Mapping[str, Callable[..., Any]], field: str) -> Callable[..., Any]:
    """The function of a table, or a user's own where the name has a dot. Raises ConfigError, which names the field."""
    if name in known:
        return known[name]
    if "." not in name:
        choices = ", ".join(known)
        raise ConfigError(f'{field}={border.shown(name)} is unknown; one of {choices}, or your own "path.py:function"')
    return load_function(name, f"{field}={border.shown(name)}")


def load_function(spec: str, place: str) -> Callable[..., Any]:
    """The function that "module.function" or "path.py:function" names. Raises ConfigError that begins with `place`."""
    file, _, name = spec.strip().rpartition(":") if ".py:" in spec else spec.strip().rpartition(".")
    try:
        if file.endswith(".py"):
            path = Path(file).expanduser()
            if (folder := str(path.resolve().parent)) not in sys.path:
                sys.path.append(folder)  # for what it imports from beside it, as if it were run
            module: Any = SimpleNamespace(**runpy.run_path(str(path)))
        else:
            module = importlib.import_module(file)
        if not (function := getattr(module, name, None)):
            raise AttributeError(f"{border.shown(file)} has no {border.shown(name)}")
        if not callable(function):
            raise TypeError(f"{name} is no function")
        next(iter(inspect.signature(function).parameters.values()))
    except ConfigError:
        raise
    except StopIteration:
        raise ConfigError(f"{place}: {name} takes no arguments") from None
    except (Exception, SystemExit) as error:  # the file is the user's: anything may be raised while it is run
        reason = border.told(error, 160)
        raise ConfigError(f'{place} is not "module.function" or "path.py:function" ({reason})') from None
    return function
