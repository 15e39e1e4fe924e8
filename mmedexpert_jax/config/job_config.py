"""Configs: found, read with their preset, overridden with typed values, and documented by their own comments."""

import ast
import contextlib
import difflib
import functools
import importlib.util
import io
import math
import os
import re
import runpy
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from mmedexpert_jax import border
from mmedexpert_jax.config.fields import ADVICE, Derived, Field, elsewhere, facts_of
from mmedexpert_jax.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent.parent
PRESETS_FILE = Path(__file__).with_name("presets.py")
_SET = "_set_by_override"  # of a ConfigDict's own attributes: dotted key -> the config file's value
FIXED = ("job", "preset")  # fields that name the config; a config file sets them


def load_config(spec: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Loads `path[:preset]` with overrides, as the command line does.

    Args:
        spec: path of a config file, from the current folder or the installed package, with an optional preset.
        overrides: nested or dotted keys to values, e.g. {"steps": 10, "lora.rank": 8}.

    Returns:
        A locked ConfigDict.

    Raises:
        ConfigError: no such file, preset or key, or a value of the wrong type.
    """
    config = read_config(os.fspath(spec))
    override(config, flatten(overrides or {}))
    return config


def search_folders() -> list[Path]:
    """Folders from which a config path counts: the current one, the installed package, a source checkout."""
    checkout = [PACKAGE.parent] if (PACKAGE.parent / "pyproject.toml").is_file() else []
    return [Path.cwd(), PACKAGE, *checkout]


def available() -> dict[str, Path]:
    """Config files at hand, by the path that finds them."""
    found: dict[str, Path] = {}
    here, *own = search_folders()
    for folder in (here, *own):
        for path in sorted((folder / "configs").glob("[!_]*.py")):
            if folder not in own and not _is_config(path):
                continue
            found.setdefault(f"configs/{path.name}", path)
    return found


def split_spec(spec: str) -> tuple[str, str]:
    """Splits `path:preset`; the preset is "" where there is none."""
    path, colon, preset = spec.rpartition(":")
    if ".py:" in path:  # a preset with a colon, which is unknown as such
        path, _, preset = spec.partition(":")
    return (path, preset) if colon and not re.search(r"[/\\]", preset) else (spec, "")


def find_config(path: str) -> Path:
    """Finds a config file. Raises ConfigError that lists what is available."""
    as_module = path.removesuffix(".py").replace(".", "/").removeprefix("mmedexpert_jax/") + ".py"
    meant, there = "", list[Path]()
    with contextlib.suppress(OSError, ValueError):  # a path longer than the system takes, or with a zero byte
        for folder in search_folders():
            if (folder / path).is_file():
                there.append(folder / path)
            meant = meant or next((name for name in (f"{path}.py", as_module) if (folder / name).is_file()), "")
    if there:  # the current folder is perhaps another project's
        return next((file for file in there if _is_config(file)), there[0])
    path = border.cut(path)
    known = list(available())
    stems = {Path(name).stem: name for name in known}  # all paths are alike in "configs/" and ".py"
    close = [meant] if meant else [stems[name] for name in difflib.get_close_matches(Path(path).stem, stems, n=1)]
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"no such config file: {path}; {hint}available: {', '.join(known) or 'none'}")


def _is_config(path: Path) -> bool:
    """False for a Python file of other things, which is not run to know; one that cannot be read is perhaps one."""
    try:
        names = [name for node in ast.walk(_parse(path)) for name in _names(node)]
    except ConfigError:
        return True
    return bool({"get_config", "PRESETS", "*"} & {*names})


def _names(node: ast.AST) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom):
        given = [node] if isinstance(node, ast.FunctionDef) else node.names
        return [getattr(one, "asname", None) or one.name for one in given]
    return [getattr(target, "id", "") for target in _targets(node)] if isinstance(node, ast.stmt) else []


def hides(path: Path) -> bool:
    """True for a config file that is taken in the place of the package's of its name, from which it differs."""
    own = (folder / "configs" / path.name for folder in search_folders()[1:])
    return path.parent.name == "configs" and any(file.is_file() and _source(file) != _source(path) for file in own)


def locate(spec: str) -> Path:
    """The file of `path[:preset]`."""
    return find_config(split_spec(spec)[0])


def presets_of(path: Path) -> tuple[str, ...]:
    """Reads the PRESETS of a config file without running it; empty where it has none."""
    for node in _parse(path).body:
        if [getattr(target, "id", "") for target in _targets(node)] != ["PRESETS"]:
            continue
        found = getattr(node, "value", None)
        parts = found.elts if isinstance(found, ast.Tuple | ast.List) else [None]
        names = tuple(getattr(part, "value", None) for part in parts)
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{path}: write PRESETS out as a tuple of texts, such as ('mini', 'large')")
        return tuple(map(str, names))
    return ()


def summary_of(path: Path) -> str:
    """First line of a config file's docstring."""
    return (ast.get_docstring(_parse(path)) or "").partition("\n")[0]


def about(path: Path) -> tuple[str, tuple[str, ...]]:
    """Summary and presets of a config file for a list of all; the reason in their place where it cannot be read."""
    try:
        return summary_of(path), presets_of(path)
    except ConfigError as error:
        return f"cannot be used: {error}", ()


def read_config(spec: str) -> ConfigDict:
    """Runs `get_config` of the file that `path[:preset]` names and locks the result."""
    name, preset = split_spec(spec)
    path = find_config(name)
    presets = presets_of(path)
    if preset and preset not in presets:
        close = difflib.get_close_matches(preset[:100], presets, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"{name} has no preset {border.shown(preset)}; {hint}available: {', '.join(presets) or 'none'}"
        )
    try:
        with border.same_folder():
            names = _run(path, _source(path))
            if "get_config" not in names:
                raise ConfigError(f"{path} defines no get_config")
            config = names["get_config"](preset) if preset else names["get_config"]()
    except ConfigError:
        raise
    except SystemExit as error:
        raise ConfigError(f"{path} does not run: it leaves the program (sys.exit); return a ConfigDict") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file of the user's may raise anything
        raise ConfigError(f"{path} does not run: {border.message_of(error, 200)}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config returned {type(config).__name__}, not a ConfigDict")
    vars(config).pop(_SET, None)  # what the file itself set is the file's
    return config.lock()


def fields(config: ConfigDict, prefix: str = "") -> dict[str, tuple[type, bool, Any]]:
    """Leaves of a config: dotted key -> (type, whether it may be none, value)."""
    leaves: dict[str, tuple[type, bool, Any]] = {}
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            leaves |= fields(value, f"{prefix}{key}.")
        elif isinstance(value, FieldReference):
            leaves[prefix + key] = (value.get_type(), not isinstance(value, Derived), value.get())
        else:
            leaves[prefix + key] = (type(value), False, value)
    return leaves


@functools.lru_cache(maxsize=4096)  # a sweep asks for the fields of hundreds of stages
def field_of(key: str, job: str = "") -> Field:
    """The facts of a dotted key in a job of the package, else of the longest end of it that any job has."""
    return _facts(job).get(key) or _anywhere(key) or Field()


def is_field(key: str) -> bool:
    """True for a dotted key that ends as a field of some job does."""
    return _anywhere(key) is not None


def override(config: ConfigDict, pairs: list[tuple[str, Any]]) -> None:
    """Sets dotted keys of `config` in order; a later pair wins.

    Raises:
        ConfigError: an unknown key (with the nearest known one) or a value that the field's type cannot take.
    """
    known = fields(config)
    for key, value in pairs:
        if key in FIXED and value == config.get(key):  # of the config.json of a run
            continue
        if key in FIXED:
            raise ConfigError(f"config.{key} names the config itself; choose it by --config=configs/<job>.py:<preset>")
        if key not in known:
            raise ConfigError(unknown_key(key, list(known)))
        kind, optional, default = known[key]
        config.update_from_flattened_dict({key: convert(key, value, kind, optional, default)})
        vars(config).setdefault(_SET, {}).setdefault(key, default)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Turns nested dicts into (dotted key, value) pairs, in order."""
    pairs = []
    for key, value in tree.items():
        inner = isinstance(value, dict) and value  # an empty one stands for itself, so that it is not passed over
        pairs += flatten(value, f"{prefix}{key}.") if inner else [(f"{prefix}{key}", value)]
    return pairs


def convert(key: str, value: Any, kind: type, optional: bool = False, default: Any = None) -> Any:
    """Turns a string, or a value from JSON or Python, into the type of a field.

    Integers may be written as integral floats (1e3), booleans as yes/no, tuples with commas (2,4), the absent value
    of an optional field as none. Raises ConfigError naming key, expected type and value.
    """
    if optional and (value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null"))):
        return None
    try:
        return _CONVERTERS[kind](value, default)
    except (ValueError, TypeError, OverflowError, KeyError):
        expected = in_words(kind, optional)
        raise ConfigError(f"config.{border.cut(key)} expects {expected}, got {border.shown(value)}") from None


def in_words(kind: type, optional: bool) -> str:
    """The values of a type in words."""
    return _EXPECTED.get(kind, kind.__name__) + (" or none" if optional else "")


def field_docs(path: Path, job: str = "") -> dict[str, str]:
    """Comments of the fields that a config file assigns, its shared base and the stages it takes in included, and those
    of the package's own config of the `job` that it is of.

    A field's comment stands at the end of its assignment or on the lines right above it. One under an `if`, of a
    preset, counts where the field has no other.
    """
    own = next((file for folder in search_folders()[1:] if (file := folder / "configs" / f"{job}.py").is_file()), path)
    docs = _comments(PRESETS_FILE) if own == path else field_docs(own)
    docs = docs | _comments(path)
    for file in (PRESETS_FILE, path):
        docs = docs | {key: doc for key, doc in _comments(file, under_if=True).items() if key not in docs}
    for key, job in _stages(path).items():
        docs |= {f"{key}.{name}": doc for name, doc in field_docs(find_config(f"configs/{job}.py")).items()}
    return docs


def format_config(config: ConfigDict, docs: Mapping[str, str], tall: bool = False) -> str:
    """A table of key, type, value, what it takes and doc, in the order of the comments; `tall`, for a terminal: two
    lines a field, with the doc below."""
    leaves, facts = fields(config), facts_of(config)
    order = [key for key in docs if key in leaves] + [key for key in leaves if key not in docs]
    rows = [("key", "type", "value", "takes", "doc")]
    for key in order:
        kind, optional, value = leaves[key]
        name = kind.__name__ + ("?" if optional else "")
        shown = "none" if value is None else str(value) or '""'
        takes = (facts.get(key) or field_of(key, config.get("job", ""))).takes(kind)
        rows.append((key, name, shown, border.cut(takes, 60), docs.get(key, "")))
    if tall:
        return "\n".join(
            f"{key}={shown}  ({', '.join(filter(None, (kind, takes)))})\n    {doc}"
            for key, kind, shown, takes, doc in rows[1:]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


@functools.cache
def defaults(job: str) -> dict[str, tuple[type, bool, Any]]:
    """The fields that the package's own config of a job has under all its presets, as `fields` gives them."""
    first, *others = _by_preset(job).values()
    return {key: field for key, field in first.items() if all(key in other for other in others)}


@functools.cache
def names_of(job: str) -> frozenset[str]:
    """The dotted keys that the package's own config of a job has under any of its presets."""
    return frozenset().union(*_by_preset(job).values())


def given(config: ConfigDict) -> dict[str, Any]:
    """The fields that `override` has set to other values than the config file's, but for those with which the run in
    the folder began: a resume repeats them."""
    values, before = fields(config), begun(config)
    was = {key: value for key, value in vars(config).get(_SET, {}).items() if key in values}
    now = {key: values[key][2] for key, value in was.items() if values[key][2] != value}
    return {key: value for key, value in now.items() if key not in before or before[key] != value}


def begun(config: ConfigDict) -> dict[str, Any]:
    """The fields, by dotted key, of the run that is in the folder of a config; empty where there is none or where it is
    to start over."""
    if config.get("fresh") or not config.get("workdir"):
        return {}
    try:
        saved = border.read_json(Path(config.workdir).expanduser() / "config.json", dict[str, Any], error=ConfigError)
    except (ConfigError, OSError, RuntimeError):  # none, damaged, or the home of nobody
        return {}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in flatten(saved)}


@functools.cache
def _by_preset(job: str) -> dict[str, dict[str, tuple[type, bool, Any]]]:
    path = next(path for folder in search_folders()[1:] if (path := folder / "configs" / f"{job}.py").is_file())
    return {preset: fields(read_config(f"{path}:{preset}")) for preset in presets_of(path) or ("",)}


@functools.cache
def _facts(job: str) -> dict[str, Field]:
    """The facts of a job's fields by dotted key, from the package's own config; none where it has no such job."""
    for folder in search_folders()[1:]:
        if (path := folder / "configs" / f"{job}.py").is_file():
            with contextlib.suppress(ConfigError):  # a stage's config in the current folder that does not run
                config = read_config(str(path))
                return dict.fromkeys(fields(config), Field()) | facts_of(config)
    return {}


def _anywhere(key: str) -> Field | None:
    """The facts of the longest end of a dotted key that a job of the package has; None where none has."""
    jobs = [path.stem for folder in search_folders()[1:] for path in sorted((folder / "configs").glob("[!_]*.py"))]
    names = key.split(".")
    ends = (".".join(names[start:]) for start in range(len(names)))
    return next((facts[end] for end in ends for facts in map(_facts, jobs) if end in facts), None)


@functools.lru_cache(maxsize=64)  # a pipeline reads each of its stages, and these what they share
def _run(path: Path, source: str) -> dict[str, Any]:
    """The names that a file defines; `source` says whether it has changed since it ran."""
    return runpy.run_path(str(path))


_parse_source = functools.lru_cache(maxsize=64)(ast.parse)


def _parse(path: Path) -> ast.Module:
    try:
        return _parse_source(_source(path), str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: code nested too deeply
        other = "" if path.suffix == ".py" else "; the fields of a JSON file are read by --overrides=FILE"
        raise ConfigError(f"{path} is not Python: {border.cut(str(error), 200)}{other}") from error


def _source(path: Path) -> str:
    return importlib.util.decode_source(border.read_bytes(path, 1 << 20, ConfigError))


def _comments(path: Path, under_if: bool = False) -> dict[str, str]:
    """Comments beside the assignments `config.a.b = ...` of one file, by dotted key: under an `if`, or the rest."""
    source = _source(path)
    lines = source.splitlines()
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    docs: dict[str, str] = {}
    every = list(ast.walk(_parse(path)))
    inner = {node for branch in every if isinstance(branch, ast.If) for node in ast.walk(branch)}
    for node in every:
        if not isinstance(node, ast.Assign) or not (key := _dotted(node.targets[0])) or (node in inner) != under_if:
            continue
        end = node.end_lineno or node.lineno
        above: list[str] = []
        line = node.lineno - 1
        while end not in comments and line in comments and lines[line - 1].lstrip().startswith("#"):
            above.insert(0, comments[line])
            line -= 1
        if doc := comments.get(end) or " ".join(above):
            docs[key] = doc
    return docs


def _targets(node: ast.stmt) -> list[ast.expr]:
    """The targets of a statement that assigns, with or without a type beside it; none of any other."""
    if isinstance(node, ast.AnnAssign):
        return [node.target]
    return node.targets if isinstance(node, ast.Assign) else []


def _dotted(node: ast.expr) -> str:
    """`config.a.b` -> "a.b"; "" for any other expression."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return ".".join(names) if isinstance(node, ast.Name) and node.id == "config" else ""


def _stages(path: Path) -> dict[str, str]:
    """Groups that a config takes from another job's config: `config.dsa = presets.stage("dsa", ...)`."""
    found = {}
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and (key := _dotted(node.targets[0])):
            call = node.value
            if getattr(call.func, "attr", "") == "stage" and isinstance(call.args[0], ast.Constant):
                found[key] = str(call.args[0].value)
    return found


def unknown_key(key: str, known: list[str]) -> str:
    """The refusal of a dotted key that is none of those known, with the nearest of them."""
    key = border.cut(key)
    inside = [name for name in known if name.startswith(key + ".")]
    if inside:
        return f"config.{key} is a group, not a field; it holds {', '.join(inside)}"
    hint = nearest(key, known)
    return f"no field config.{key} in this config; {hint}--list_config shows all"


def nearest(key: str, known: list[str]) -> str:
    """The question after the known key that was meant by another, for a refusal; empty where none is near."""
    leaf = key.rpartition(".")[2]
    same = [k for k in known if k.rpartition(".")[2] == leaf][:1]
    cased = (name for name in known if name.lower() == key.lower())  # that differ in capitals alone
    meant = [name for name in (elsewhere(leaf, known), *cased) if name]
    close = meant or difflib.get_close_matches(key, known, n=1) or same
    return f"{ADVICE.get(close[0], '')}did you mean config.{close[0]}? " if close else ""


def _number(value: Any) -> float:
    """A number, or one as ASCII text: `float` reads the digits of every script. Raises TypeError and ValueError."""
    if isinstance(value, bool) or (isinstance(value, str) and not value.isascii()):
        raise TypeError
    return float(value)


def _to_int(value: Any, _: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()) else int(number)


def _to_float(value: Any, _: Any) -> float:
    if not math.isfinite(number := _number(value)):
        raise ValueError
    return number


def _to_bool(value: Any, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}[
        str(value).strip().lower()
    ]


def _to_str(value: Any, _: Any) -> str:
    value = os.fspath(value) if isinstance(value, Path) else value
    if isinstance(value, str) and "\0" not in value:
        value.encode()  # argv may hold bytes that are no UTF-8, as halves of surrogate pairs: a ValueError here
        return value
    raise TypeError


def _to_tuple(value: Any, default: Any) -> tuple:
    """Elements take the type of the default's first one; text, as on the command line, where the default is empty."""
    if isinstance(value, str):
        bare = value.strip()
        if bare[:1] + bare[-1:] in ("()", "[]"):  # around all of it: a last element may end in a bracket of its own
            bare = bare[1:-1]
        if os.path.exists(os.path.expanduser(bare)):  # a file with a comma in its name is one
            value = [bare]
        else:
            value = [part.strip().strip("'\"") for part in _PART.findall(bare) if part.strip()]
    if not isinstance(value, list | tuple):
        raise TypeError
    if not default:
        value = [str(part) if isinstance(part, int | float) else part for part in value]
    kind = type(default[0]) if default else str
    return tuple(_CONVERTERS[kind](part, None) for part in value)


_PART = re.compile(r"""\s*('[^']*'|"[^"]*"|[^,]*)\s*(?:,|$)""")  # of values with commas between them, and in quotes

_CONVERTERS = {int: _to_int, float: _to_float, bool: _to_bool, str: _to_str, tuple: _to_tuple}
_EXPECTED = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    tuple: "values with commas between them",
}
