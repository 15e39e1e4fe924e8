"""A folder that appears whole, and its way to the Hugging Face hub."""

import shutil
from collections.abc import Callable
from pathlib import Path

from mmedexpert_jax.errors import ConfigError, RemoteError
from mmedexpert_jax.runtime import files


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder beside `folder`, then puts it in its place; a run killed in between leaves the old or none."""
    partial = folder.with_name(f".{folder.name}.partial")
    with files.writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def push(folder: Path, repository: str) -> None:
    """Uploads a folder as the data set `repository` ("owner/name"), with the token that huggingface_hub finds.

    Raises:
        ConfigError: there is nothing that may be passed on.
        RemoteError: the hub cannot be reached or refuses.
    """
    if not any(folder.glob("*.parquet")):
        raise ConfigError("config.push_to: no row may be passed on; state its licence in config.data.redistributable")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repository, repo_type="dataset", exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, repo_type="dataset")
    except (HfHubHTTPError, OSError, ValueError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise RemoteError(
            f"config.push_to: {repository} was not uploaded ({line}); run the same command again"
        ) from None
