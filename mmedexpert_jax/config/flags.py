"""The command line as data: which config, which overrides, which switches.

A parser of our own over the same form that `ml_collections.config_flags` made common. The stock flags silently skip
stray arguments, answer a misspelt key with a traceback and exit with 1 on `--help`; mending that from outside takes
more code than this file.
"""

import contextlib
import difflib
import re
from dataclasses import dataclass, field
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.config.fields import ADVICE, ELSEWHERE
from mmedexpert_jax.config.job_config import field_of, flatten, is_field, locate, presets_of, split_spec
from mmedexpert_jax.errors import ConfigError

COUNT = "--processes"
SWITCHES = ("--debug", "--list_config", "--help", "--version")


@dataclass
class Flags:
    """The command line, parsed."""

    config: str = ""  # `path[:preset]`; "" where none was given
    # (dotted key, value) in the order of the command line, files first; a later pair wins. Values are strings from the
    # command line, anything JSON has from a file, and True for `--config.key` without a value.
    overrides: list[tuple[str, Any]] = field(default_factory=list)
    list_config: bool = False  # print the config's fields instead of running
    debug: bool = False  # show tracebacks; of an error of the arguments too, so that `cli` looks for it there
    help: bool = False  # print the usage instead of running
    version: bool = False  # print the version instead of running
    processes: int = 1  # of this machine, that the job runs in


def parse_flags(argv: list[str]) -> Flags:
    """Reads the arguments after the program's name. Raises ConfigError on anything that is not understood."""
    for argument in argv:
        if re.search("[\ud800-\udfff]", argument):  # how Python keeps bytes of a command line that are no UTF-8
            raise ConfigError(f"argument {border.shown(argument)} is not UTF-8 text; rename the file or type it again")
    flags, from_files, rest = Flags(), [], list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name in ("-h", "--help", "--helpfull"):
            flags.help = True
        elif argument in SWITCHES:
            setattr(flags, argument[2:], True)
        elif name.startswith("--config.") and len(name) > len("--config."):
            flags.overrides.append((name[len("--config.") :].strip(), value if equals else _value(rest)))
        elif name == COUNT:
            flags.processes = _count(value if equals else _value(rest))
        elif name in ("--config", "--overrides"):
            path = value if equals else _value(rest)
            if not isinstance(path, str) or not path:
                raise ConfigError(f"{name} needs a value, e.g. {name}={_EXAMPLE[name]}")
            if name == "--config":
                flags.config = path
            else:
                from_files += flatten(border.read_json(path, dict[str, Any], error=ConfigError))
        else:
            following = rest[0] if rest and not equals and not rest[0].startswith("-") else ""
            raise ConfigError(_not_understood(argument, following, flags.config))
    flags.overrides = from_files + flags.overrides
    return flags


_EXAMPLE = {"--config": "configs/gba.py", "--overrides": "overrides.json"}


def _count(value: str | bool) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,4}", value) or not int(value):
        raise ConfigError(f"{COUNT} needs a number of processes from 1, e.g. {COUNT}=2")
    return int(value)


def _value(rest: list[str]) -> str | bool:
    """Takes the value of a flag that was written without "="; True where another flag or nothing follows."""
    return rest.pop(0) if rest and not rest[0].startswith("--") else True


def _field_called(name: str) -> str:
    """The dotted key of a field that users of this or another tool call `name`; empty where there is none."""
    name = name.replace("-", "_")
    return ELSEWHERE.get(name.lower(), "").partition(" ")[0] or (name if is_field(name) else "")


def _not_understood(argument: str, following: str, config: str) -> str:
    """The refusal of an argument, with the flag that was meant; `following` stands behind it where it has no "=",
    `config` is the one that was chosen before it."""
    with contextlib.suppress(ConfigError):
        if config and argument in presets_of(locate(config)):
            return f"stray argument {argument!r}; a preset stands behind a colon: {split_spec(config)[0]}:{argument}"
    argument = border.cut(argument)
    name, equals, value = argument.strip("'\"").lstrip("-").partition("=")  # quotes that no shell has taken off
    value = value or border.cut(following)
    name, value = name.strip(" +~"), value.strip()
    key = name.removeprefix("config.")
    if equals and key and (key != name or not argument.startswith("-")):
        return f"stray argument {argument!r}; did you mean --config.{key}={value}?"
    if argument.startswith("-") and (field := _field_called(name)):
        value = value or ("true" if field_of(field).default is False else "VALUE")
        meant = f"{ADVICE.get(field, '')}did you mean --config.{field}={value}?"
        return f"unknown flag {argument!r}; {meant} fields are set by --config.key=value"
    close = difflib.get_close_matches("--" + name, ["--config", "--overrides", COUNT, *SWITCHES], n=1, cutoff=0.75)
    if argument.startswith("-") and close:
        return f"unknown flag {argument!r}; did you mean {close[0]}?"
    if argument.startswith("-"):
        return f"unknown flag {argument!r}; fields of the config are set by --config.key=value, see --help"
    if name.endswith(".py") or ".py:" in name:
        return f"stray argument {argument!r}; did you mean --config={argument}?"
    if field := _field_called(name):
        return f"stray argument {argument!r}; write a field and its value as one word, such as --config.{field}=1"
    return f"stray argument {argument!r}; write fields as key=value, a value with spaces in quotes; see --help"
