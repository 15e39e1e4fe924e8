"""Damage: what a generator makes of a right value, document or file, and whether it is wrong beyond doubt."""

import copy
import json
import random
from typing import Any

DEEP = "[" * 100_000
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3.5, -0.5, 10**9, 10**30, -(10**400), 1e308, float("nan"), float("inf")),
    *("", " ", "x", "x" * 5000, "\u00b2", "\0", "\ud800", "a\nb", "1", "true", "../../etc/passwd", "=cmd()"),
    *([], [None], [[]], ["x"] * 300, [-1], {}, {"a": 1}, {"": None}),
)
DOCUMENTS = (
    "",
    " ",
    "null",
    "3",
    '"x"',
    "{",
    "[]",
    "}",
    DEEP,
    DEEP.replace("[", '{"a":'),
    '{"a": NaN}',
    b"\xff\xfe\0",
    b"\0" * 9,
)


def kind(value: Any) -> str:
    """The kind of a JSON value: numbers are one kind, booleans another."""
    if isinstance(value, bool) or value is None:
        return type(value).__name__
    return "number" if isinstance(value, int | float) else type(value).__name__


def paths(tree: Any, path: tuple = ()) -> list[tuple]:
    """Places of a JSON tree, containers included, the root left out."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in ((*path, key), *paths(value, (*path, key)))]


def at(tree: Any, path: tuple) -> Any:
    """The value at a place."""
    for key in path:
        tree = tree[key]
    return tree


def changed(tree: Any, path: tuple, value: Any) -> Any:
    """A copy with another value at a place."""
    tree = copy.deepcopy(tree)
    at(tree, path[:-1])[path[-1]] = value
    return tree


def mutated(rng: random.Random, tree: Any, places: list[tuple] | None = None) -> tuple[Any, str, bool]:
    """A copy with one value replaced, the place and value in words, and whether the kind of the value has changed."""
    path = rng.choice(places or paths(tree))
    value = rng.choice(VALUES)
    wrong = value is not None and kind(value) != kind(at(tree, path))
    return changed(tree, path, value), f"{'.'.join(map(str, path))} = {repr(value)[:60]}", wrong


def spoiled(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """A file's bytes cut, flipped, doubled or replaced."""
    how = rng.choice(("cut", "flip", "double", "insert", "replace"))
    place = rng.randrange(max(1, len(content)))
    if how == "cut":
        return content[:place], f"cut at {place}"
    if how == "flip":
        bit = 1 << rng.randrange(8)
        return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :], f"bit {bit} of byte {place}"
    if how == "double":
        return content + content, "doubled"
    document = rng.choice(DOCUMENTS)
    document = document if isinstance(document, bytes) else document.encode()
    if how == "insert":
        return content[:place] + document + content[place:], f"{document[:20]!r} at {place}"
    return document, f"replaced by {document[:20]!r}"


def dumped(tree: Any) -> str:
    """JSON, non-finite numbers as Python writes them."""
    return json.dumps(tree)
