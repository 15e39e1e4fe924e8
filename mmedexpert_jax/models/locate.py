"""Places of models: directories, runs, adapters with their bases, and hub ids. Nothing is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmedexpert_jax import hub
from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.config.fields import HUB_ID
from mmedexpert_jax.config.validate import no_weights
from mmedexpert_jax.errors import DataError, RemoteError
from mmedexpert_jax.models.stored_tensors import read_json
from mmedexpert_jax.runtime.files import is_run

MINI = Path(__file__).parent.parent / "assets" / "mini"
# What a job chose for all that it loads (config.model): the base under an adapter, an image's area in pixels, and the
# folder of a LLaVA's vision tower; the bits of the base's weights, and whether long images are shown in parts too.
CHOSEN: dict[str, Any] = {
    **{"base": "", "max_pixels": None, "vision_tower": ""},
    **{"quantize": "none", "pan_and_scan": False},
}
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
# of a training's repository, and other formats of the same weights
_HUB_OTHERS = ["checkpoint-*/*", "global_step*/*", "original/*", "consolidated*", "*.fp16.safetensors"]


def trace(src: str | Path, base: str = "") -> tuple[Path, list[Path]]:
    """The checkpoint directory behind `src` and the adapters to fold into it, in order.

    `base` takes the place of the model that the innermost adapter names. Raises DataError.
    """
    base = base or CHOSEN["base"]
    adapters: list[Path] = []
    while True:
        try:
            directory = locate(src)
        except (DataError, RemoteError) as error:
            if not adapters:
                raise
            raise type(error)(
                f"{error} ({adapters[-1]}/adapter_config.json names it as its base; give the base with "
                "--config.model.base=)"
            ) from error
        if not (directory / "adapter_config.json").exists():
            return directory, adapters[::-1]
        src = base_under(directory, base, adapters)
        adapters.append(directory)


def base_under(adapter: Path, base: str = "", over: Sequence[Path] = ()) -> str:
    """The base model of an adapter: what its file names, or a `base` that takes the place of all but adapters.

    Raises DataError where neither names one, and where the adapter is among those `over` it, which would never end.
    """
    if adapter in over:
        raise DataError(f"{adapter}/adapter_config.json: base_model_name_or_path leads back to the adapter itself")
    src = from_above(lora_module.base_of(read_json(adapter / "adapter_config.json")) or base, adapter)
    if base and not is_adapter(src):
        src = base
    if not isinstance(src, str) or not src:
        raise DataError(
            f"{adapter}/adapter_config.json: base_model_name_or_path is missing; name the base model there or "
            "with --config.model.base="
        )
    return src


def from_above(src: Any, folder: Path) -> Any:
    """A model that a file in a folder names: a relative path that is not here counts from the nearest folder above that
    file from which it is there, as the job that wrote it may have run in that one."""
    if not isinstance(src, str) or src in ("", "mini", "smollm2") or Path(src).expanduser().exists():
        return src
    return next((str(place / src) for place in folder.resolve().parents if (place / src).is_dir()), src)


def is_adapter(src: Any) -> bool:
    """True where a base is itself an adapter or a run with one, on this machine."""
    places = [Path(str(src)), Path(str(src)) / "export" / "adapter"]
    return any((place / "adapter_config.json").is_file() for place in places)


def adapter_folder(model_path: str) -> Path:
    """The peft directory of an adapter or a run. Raises DataError where there is none."""
    given = Path(model_path).expanduser()
    for folder in (given, given / "export" / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise DataError(f"config.model.path: {model_path} holds no adapter; use --config.format=model")


def origin(src: str | Path) -> str:
    """The origin of a model: the base of its adapters as they name it, or `src` itself."""
    if str(src).startswith("random:"):
        return str(src)
    _, adapters = trace(src)
    if not adapters:
        return str(src)
    return CHOSEN["base"] or base_under(adapters[0])


def locate(src: str | Path) -> Path:
    """The local directory with the files of `src`: "mini", smollm2's package, a run's export, or from the hub."""
    if not str(src):  # would be the current folder
        raise DataError("the name of the model is empty; give a directory, a hub id (owner/name), mini or smollm2")
    if str(src) == "smollm2":
        from mmedexpert_jax.models import smollm2

        return smollm2.find().parent
    if str(src).startswith("random:"):
        raise DataError(f"{src}: random weights have no files, which are asked for here; give a directory or a hub id")
    path = MINI if str(src) == "mini" else Path(src).expanduser()
    if path.is_dir():
        exports = [path / "export" / "model", path / "export" / "adapter"]
        found = next((export for export in exports if export.is_dir()), path)
        if found == path and is_run(path):  # a run that is not finished, or a folder of runs
            raise DataError(no_weights(str(src)))
        return found
    if path.exists():
        raise DataError(f"{path} is a file; give the directory of the model")
    if not HUB_ID.fullmatch(str(src)):
        raise DataError(
            f"{path}: no such model directory; give a directory, a hub id (owner/name), mini, smollm2 or random:<size>"
        )
    return hub.snapshot(str(src), _HUB_FILES, _HUB_OTHERS)
