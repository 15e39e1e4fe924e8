"""A data set's way to the Hugging Face hub."""

from pathlib import Path

from mmedexpert_jax.errors import ConfigError, RemoteError


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
