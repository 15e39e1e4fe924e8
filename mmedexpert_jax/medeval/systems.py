"""The systems of the paper's tables: where their weights are, how they are asked and run, under which licence."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.config.fields import named_path
from mmedexpert_jax.errors import ConfigError

KINDS = ("jax", "endpoint", "transformers")


@dataclass(frozen=True)
class System:
    """One row of the paper's tables."""

    title: str  # as the paper writes it
    size: str  # as the paper writes it; "" where it does not
    model: str  # hub id
    kind: str  # what runs it, one of KINDS
    prompt: str  # style that its authors use (`prompt_styles.styles()`)
    licence: str  # of the weights
    source: str = ""  # where the licence was read; "" where it was not seen and the card must be
    note: str = ""  # what one must know to run it
    # some of the hub repository's, each with a checkpoint of its own, one of which must be named; () where the
    # repository is one checkpoint
    folders: tuple[str, ...] = ()
    served: bool = False  # whether it is asked at an endpoint where one is given

    @property
    def row(self) -> tuple[str, str]:
        """Name and size of the published row."""
        return self.title, self.size


def _systems(found: Mapping[str, dict[str, Any]]) -> dict[str, System]:
    return {name: System(**fields | {"folders": tuple(fields.get("folders", ()))}) for name, fields in found.items()}


SYSTEMS, NEWER = map(_systems, border.read_yaml(Path(__file__).with_name("systems.yaml")).values())


@dataclass(frozen=True)
class Target:
    """A model to evaluate."""

    name: str  # in tables
    kind: str  # what runs it, one of KINDS
    model: str  # path, hub id, or the name that an endpoint serves it under
    url: str = ""  # of the endpoint; "" for config.endpoint.url
    # environment variable with the endpoint's key; "" sends none, None: config.endpoint.key_env, if `url` has its host
    key_env: str | None = None
    prompt: str = ""  # style of its own; "" where it has none
    folder: str = ""  # of the hub repository `model`, where its checkpoint is not at the top
    # name and size of the published row that it stands beside; None where there is none
    row: tuple[str, str] | None = None

    def style(self, prompt: str) -> str:
        """The style of prompt that it is asked with, where config.prompt is `prompt`."""
        return prompt or self.prompt or "think_answer"


def parse(entry: str, url: str = "") -> Target:
    """A model from `[name=]model`: a path or hub id for the JAX engine; "system:NAME[/FOLDER]" for a row of the
    registry; "endpoint:MODEL[@URL[#KEY_ENV]]"; "transformers:PATH".

    Args:
        entry: as above.
        url: of the endpoint where the entry names none; with it, a registered system that may be `served` is asked
            there.

    Raises:
        ConfigError: no such system, or no folder where its repository has several checkpoints.
    """
    named, spec = named_path(entry)
    if not spec:
        named, spec = "", entry
    kind, _, rest = spec.partition(":")
    if not _at(rest if kind in ("system", *KINDS[1:]) else spec)[0]:
        raise ConfigError(f"{entry!r} names no model; give a directory, a hub id, system:NAME or endpoint:MODEL@URL")
    if kind == "system":
        name, _, folder = rest.partition("/")
        system = _system(name)
        if folder and not system.folders:
            raise ConfigError(f"system:{name} is one checkpoint: leave the folder away")
        if system.folders and not folder:
            some = ", ".join(f"system:{name}/{folder}" for folder in system.folders)
            raise ConfigError(f"{system.model} holds several checkpoints: name one, such as {some}")
        runs = "endpoint" if url and system.served else system.kind
        title = f"{system.title} {system.size} {folder}".strip()
        row = system.row if name in SYSTEMS else None
        return Target(named or title, runs, system.model, url, None, system.prompt, folder, row)
    if kind == "endpoint":
        model, place = _at(rest)
        place, mark, key = place.partition("#")
        return Target(named or model, "endpoint", model, place or url, key if mark else None, row=_row(named))
    if kind == "transformers":
        return Target(named or rest, "transformers", rest, row=_row(named))
    return Target(named or spec, "jax", spec, row=_row(named))


def _at(text: str) -> tuple[str, str]:
    """A model and the address behind its "@", of which names of models and addresses may hold others; "" for none."""
    model, at, place = text.partition("@http")
    if at:
        return model, f"http{place}"
    model, at, place = text.rpartition("@")
    if not at or (model and not set(place) & set(":./")):  # a version, as of "claude-3-5-sonnet@20240620"
        return text, ""
    return model, place


def _system(name: str) -> System:
    known = {**SYSTEMS, **NEWER}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"no system {name!r}; {hint}choose one of {', '.join(known)}")
    return known[name]


def _row(name: str) -> tuple[str, str] | None:
    """The published row that a model's name spells out, such as "MMedExpert-R1 7B"."""
    title, _, size = name.rpartition(" ")
    return (title, size.upper()) if title and size[:-1].isdigit() and size[-1:].upper() == "B" else None
