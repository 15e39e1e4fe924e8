"""Hashes of the files that a training, merge or export reads, by which a later start finds what has changed.

The config names them by path, which stays when a reward is edited or the expert behind `model.path` is trained anew.
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from mmedexpert_jax.config.validate import parts_of
from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.data.tables import SUFFIXES
from mmedexpert_jax.errors import ConfigError, UserError
from mmedexpert_jax.runtime import files, processes

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run

WEIGHTS = (".safetensors", ".gguf")
SAID = ("recipe.json", "adapter_config.json")  # by which weights are read as others
SOURCES = "sources.json"  # {field: {path: hash}} of the run's last start, in its folder
TABLES = "tables"  # beside the fields: {file: [size, time of change, hash]} of the data's tables, which may be large
_sums: dict[tuple[str, int, int], str] = {}  # hashes by file, size and time of change: stages of a sweep share data


def note_sources(config: ConfigDict, run: "Run") -> None:
    """Writes what the files hold that the config names. Where a checkpoint was trained with others, a line says so.

    Raises:
        ConfigError: the model's files have changed: what was trained is deltas over those that were there.
    """
    _remember(run.path)
    hashes = dict(_hashes(config)) if processes.is_writer() else {}
    begun = run.checkpoints.latest() is not None
    for field, path in processes.agree(list(_changed_files(hashes, run.path)) if begun else []):
        if field == "data.path":  # of the cases that are trained on, the checkpoint knows more
            continue
        if field == "model.path" and field not in config.allow_changes:
            raise ConfigError(
                f"config.model.path: the files of {path} are not those that {run.path} was trained over; put them "
                "back, start over with fresh=True, or go on over the new ones: --config.allow_changes=model.path (of a "
                f"pipeline's stage --config.{config.job}.allow_changes)"
            )
        if processes.is_writer():
            print(f"config.{field}: {path} has changed since this run was last started; it goes on with the new one")
    if processes.is_writer():
        files.write_json(run.path / SOURCES, {**hashes, TABLES: _known(config)})


def _changed_files(hashes: Mapping[str, Mapping[str, str]], folder: Path) -> Iterator[tuple[str, str]]:
    """(field, path) of files of other `hashes` than when a run in `folder` was last started."""
    before = files.json_or_none(folder / SOURCES)
    for field, of_field in hashes.items() if isinstance(before, dict) else ():
        earlier = before.get(field)
        if isinstance(earlier, dict):
            yield from ((field, path) for path, found in of_field.items() if earlier.get(path, found) != found)


def tell_changed(config: ConfigDict, folder: Path) -> None:
    """Prints which files have changed since a training, merge or export was finished; of any other job nothing."""
    if config.job not in ("dsa", "gba", "merge", "export") or not processes.is_writer():
        return
    runs = [run for run in (folder, *(folder / name for name in SPECIALTIES)) if (run / SOURCES).is_file()]
    for run in runs:
        _remember(run)
    with suppress(UserError):  # a model that is there no longer
        hashes = dict(_hashes(config)) if runs else {}
        for run in runs:
            for field, path in _changed_files(hashes, run):
                line = f"{run}: config.{field}: {path} has changed since it was made; delete the folder to make it anew"
                print(line, flush=True)


def _hashes(config: ConfigDict) -> Iterator[tuple[str, dict[str, str]]]:
    """Fields that name files, and the hashes of these by their paths."""
    from mmedexpert_jax.medeval.backends.jax_engine import content_hash
    from mmedexpert_jax.models.load import folders
    from mmedexpert_jax.models.locate import adapter_folder

    if config.job == "merge":
        yield from _of_merge(config).items()
        return
    model = config.model.path
    if _is_here(model):  # a hub's revision does not change, and may be far
        places = _here(model) if config.job == "export" else folders(model)
        if config.get("format") == "adapter":
            places = [adapter_folder(model)]
        said = _hashed([str(place / name) for place in places for name in SAID])
        yield "model.path", {model: content_hash(places, WEIGHTS), **said}
    if config.job == "export":
        return
    yield "data.path", {config.data.path: _tables(Path(config.data.path).expanduser())}
    if "rewards" not in config:
        return
    own = {"rewards.functions": config.rewards.functions, "surrogate": [config.surrogate]}
    own |= {"advantage_scale": [config.advantage_scale], "terms": config.terms}
    texts = {"guideline_text": config.guideline_text, "rewards.judge.rubric": config.rewards.judge.rubric}
    for field, specs in own.items():
        yield field, _hashed(map(_code, specs))
    for field, path in texts.items():
        yield field, _hashed([path])


def _of_merge(config: ConfigDict) -> dict[str, dict[str, str]]:
    """As `_hashes`, of the models that a merge reads and the file that may name them; a recipe reads them itself."""
    from mmedexpert_jax.medeval.backends.jax_engine import files_hash
    from mmedexpert_jax.merging.merge_job import recipe_of
    from mmedexpert_jax.merging.merge_recipe import files_read, is_going_on

    found = {"mergekit": _hashed([config.mergekit])}
    recipe = recipe_of(config)
    named = {**dict.fromkeys(recipe.experts.values(), "experts"), recipe.base: "model.path"}
    for path, field in named.items() if config.result != "recipe" else ():
        with suppress(UserError, OSError):  # the merge itself says what is wrong with it
            own: list[Path] = []
            for part in filter(_is_here, parts_of(path)):
                own += [Path(part).expanduser()] if is_going_on(part) else _here(part)
            if own:
                found.setdefault("mergekit" if config.mergekit else field, {})[path] = files_hash(files_read(own))
    return found


def _is_here(model: str) -> bool:
    return model == "mini" or Path(model).expanduser().is_dir()


def _here(model: str) -> list[Path]:
    """The folders that are read for a model on this machine: of adapters over a model of the hub theirs alone."""
    from mmedexpert_jax.models.load import folders
    from mmedexpert_jax.models.locate import CHOSEN, base_under, locate

    adapters: list[Path] = []
    base = model
    while _is_here(base):
        place = locate(base)
        if not (place / "adapter_config.json").exists():
            return folders(model)
        base = base_under(place, CHOSEN["base"], adapters)
        adapters.append(place)
    return adapters


def _hashed(paths: Iterator[str] | list[str]) -> dict[str, str]:
    """Hashes of the files among some paths."""
    found = {}
    for path in filter(None, paths):
        with suppress(OSError, ValueError):  # a text in the place of a path
            found[path] = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    return found


def _tables(place: Path) -> str:
    """The hash of a data set's tables; of the embedded one and a benchmark, which change with a version, of none."""
    digest = hashlib.sha256()
    for version in _versions(place):
        if version not in _sums:
            with Path(version[0]).open("rb") as content:
                _sums[version] = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(Path(version[0]).name.encode() + bytes.fromhex(_sums[version]))
    return digest.hexdigest()


def _versions(place: Path) -> Iterator[tuple[str, int, int]]:
    """(file, size, time of change) of the tables at a place."""
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        if file.suffix in SUFFIXES and file.is_file():
            stat = file.stat()
            yield str(file.absolute()), stat.st_size, stat.st_mtime_ns


def _known(config: ConfigDict) -> dict[str, tuple[int, int, str]]:
    """Size, time of change and hash of each table of the data, for `_remember`."""
    versions = _versions(Path(config.data.path).expanduser())
    return {version[0]: (*version[1:], _sums[version]) for version in versions if version in _sums}


def _remember(folder: Path) -> None:
    """Takes the hashes of tables from a run's last start, so that none is read again that is as it was then."""
    found = files.json_or_none(folder / SOURCES)
    tables = found.get(TABLES) if isinstance(found, dict) else None
    for file, version in tables.items() if isinstance(tables, dict) else ():
        match version:
            case [int(size), int(changed), str(digest)] if re.fullmatch("[0-9a-f]{64}", digest):
                _sums[file, size, changed] = digest


def _code(spec: str) -> str:
    """The file of "path.py:function=weight" or "module.function=weight"; empty where there is none."""
    if ".py:" in spec:
        return spec.rpartition(":")[0].strip()
    module = spec.partition("=")[0].strip().rpartition(".")[0]
    with suppress(ImportError, ValueError, AttributeError):
        found = importlib.util.find_spec(module) if module else None
        return (found.origin or "") if found else ""
    return ""
