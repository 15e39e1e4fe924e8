"""Public names of a package that are imported when they are first used, so that importing the package costs nothing."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def public(
    package: str, names: Sequence[str], modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package with these public names.

    Args:
        modules: name -> the module of the package that has it; any other name is a module of the package itself.
    """

    def get(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        if name.startswith("_") or not name.isidentifier() or importlib.util.find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{name}")

    return get, lambda: sorted(names)
