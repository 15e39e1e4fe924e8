"""A user's own functions: rewards, surrogates, estimators and terms in files or modules outside the package."""

import difflib
import importlib
import inspect
import os
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError

LARGEST = float(np.finfo(np.float32).max)  # of a weight or a reward: losses and scores are float32

Files = dict[Path, ModuleType]  # that were run, each once for all of a run's functions: they may share what it holds


def find_function(
    name: str, known: Mapping[str, Callable[..., Any]], field: str, files: Files | None = None
) -> Callable[..., Any]:
    """The function of a table, or a user's own where the name has a dot. Raises ConfigError, which names the field."""
    if name in known:
        return known[name]
    if "." not in name:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"{field}={border.shown(name)} is unknown; {hint}choose one of {', '.join(known)}, or your own "
            '"path.py:function"'
        )
    return load_function(name, f"{field}={border.shown(name)}", files)


def weighted(spec: str, field: str) -> tuple[str, str, float]:
    """Function, its bare name and its weight of "module.function=weight" or "path.py:function=weight", 1 without one.
    Raises ConfigError, which names the field."""
    found = re.fullmatch(r"(.*)=([^=/:]*)", spec, re.DOTALL)  # a folder may have a "=" too
    path, weight = found.groups() if found else (spec, "1")
    try:
        number = float(weight.encode("ascii"))  # as text it would read the digits of every script
    except ValueError:
        number = float("nan")
    if not abs(number) <= LARGEST:
        shown = border.shown(spec)
        raise ConfigError(f"{field}: {shown}: the weight {border.shown(weight)} is no finite number of float32")
    return path.strip(), path.strip().replace(":", ".").rpartition(".")[2], number


def module_of(spec: str) -> str:
    """The file or module of "path.py:function" or "module.function"."""
    return os.path.expanduser(spec.strip().rpartition(":" if ".py:" in spec else ".")[0])


def load_function(spec: str, place: str, files: Files | None = None) -> Callable[..., Any]:
    """The function that "module.function" or "path.py:function" names, of `files` where its file was run before.

    Raises ConfigError that begins with `place`.
    """
    file, name = module_of(spec), re.split("[:.]", spec.strip())[-1]
    try:
        if file.endswith(".py"):
            module = _ran(Path(file), {} if files is None else files)
        else:
            module = importlib.import_module(file)
        if (function := getattr(module, name, None)) is None:
            raise AttributeError(f"{border.shown(file)} has no {border.shown(name)}")
        if not callable(function):
            raise TypeError(f"{name} is no function")
        if inspect.isclass(function):
            raise TypeError(f"{name} is a class; name an object of it, such as one = {name}()")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{name} yields; let it return")
        next(iter(inspect.signature(function).parameters.values()))
    except ConfigError:
        raise
    except StopIteration:
        raise ConfigError(f"{place}: {name} takes no arguments") from None
    except (Exception, SystemExit) as error:  # the file is the user's: anything may be raised while it is run
        reason = border.message_of(error, 160)
        raise ConfigError(f'{place} is not "module.function" or "path.py:function" ({reason})') from None
    return function


def _ran(path: Path, files: Files) -> ModuleType:
    """The module of a file, run where it is not among `files`. Raises whatever it raises."""
    place = path.resolve()
    if place in files:
        return files[place]
    if str(place.parent) not in sys.path:
        sys.path.append(str(place.parent))  # for imports of its neighbours, as if it were run
    # files of one name in two folders are two modules
    module = ModuleType(f"own_{path.stem}_{zlib.crc32(os.fsencode(place)):08x}")
    module.__file__ = str(path)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module  # where a pool of processes looks for its functions
    try:
        with border.same_folder():
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BaseException:
        sys.modules.pop(module.__name__)
        if before is not None:
            sys.modules[module.__name__] = before
        raise
    files[place] = module
    return module
