"""Errors a user can cause. Each is one line that names the file, row or key, and the fix."""

import importlib.util
import re
from collections.abc import Callable

_LOGIN = re.compile(r":(//?)[^/?#\s]*@")  # one slash is left of two where the URL was taken for a path


def holds_login(text: str) -> bool:
    """True for a URL with a user name or password before its host."""
    return any(found[1] == "//" for found in _LOGIN.finditer(text))


def without_login(text: str) -> str:
    """`text` with the user name and password of each URL as `***`; used before any cut, which would leave half."""
    return _LOGIN.sub(r":\1***@", text)


class UserError(Exception):
    """Base of every error that is shown without a traceback; `exit_code` is the process's status.

    A file of somebody else may hold a URL with a password, and an error that quotes the file goes to logs and results.
    """

    exit_code = 2

    def __init__(self, message: str = ""):
        super().__init__(without_login(message))


class ConfigError(UserError):
    """Wrong usage, config path, preset, key or value. Exit code 2."""

    exit_code = 2


class DataError(UserError):
    """Wrong data: a case, an image, a checkpoint, an adapter. Exit code 3."""

    exit_code = 3


class TooLong(DataError):
    """A prompt or an answer over its limit of tokens."""


class NotFinite(DataError):
    """A model whose probabilities are not finite."""

    def __init__(self, model: str = "the model"):
        super().__init__(
            f"{model}: its probabilities are not finite: a weight of it is not, or its dtype is too narrow for what it "
            "computes; take an earlier checkpoint, or set --config.model.dtype=float32"
        )


class ResourceError(UserError):
    """Not enough memory or disk, no such device, a directory that cannot be written. Exit code 4."""

    exit_code = 4


class RemoteError(UserError):
    """A remote endpoint refused or failed. Exit code 5."""

    exit_code = 5


# What is done with the modules of an extra, and what pip installs for it: a version without one of them is too old.
EXTRAS = {
    "remote": ("asking endpoints", ("openai>=3.57,<4", "httpx2>=2.12,<3")),
    "serve": ("serving pages", ("starlette>=1.0,<2", "uvicorn>=0.40,<1")),
}


def needs(extra: str) -> None:
    """Raises ConfigError where a module of an extra is not installed."""
    purpose, packages = EXTRAS[extra]
    lacking = [name for package in packages if importlib.util.find_spec(name := package.partition(">")[0]) is None]
    if lacking:
        asked = " ".join(f'"{package}"' for package in packages)
        raise ConfigError(f"{purpose} needs {' and '.join(lacking)}, not installed here: pip install {asked}")


class Interrupted(UserError):
    """A signal ended the run after a checkpoint was saved. Exit code 128 + signal (130, 143 or 129)."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


def stop_if(interrupted: Callable[[], int | None], text: str) -> None:
    """Raises Interrupted with a text where `interrupted` gives the number of a signal that came."""
    if signum := interrupted():
        raise Interrupted(text, signum)
