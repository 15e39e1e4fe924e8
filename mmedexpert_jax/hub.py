"""Models and data sets of the Hugging Face hub, in its own cache."""

from pathlib import Path

from mmedexpert_jax.errors import DataError, RemoteError


def snapshot(hub_id: str, patterns: list[str] | None = None, kind: str = "model") -> Path:
    """Downloads files of a repository, owner/name[@revision], or takes them from the hub's cache.

    Args:
        patterns: of their paths, such as "*.json"; None: all.
        kind: "model" or "dataset".

    Returns:
        The directory of the revision.

    Raises:
        DataError: no such repository or revision, or its terms have not been accepted.
        RemoteError: the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision or None, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        page = name if kind == "model" else f"datasets/{name}"
        raise DataError(f"{hub_id}: accept its terms on https://huggingface.co/{page} and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"{hub_id}: no such directory, and no such {kind} on the hub (private ones need HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{hub_id}: the hub has {name}, but no branch, tag or commit {revision} of it") from error
    except errors.LocalEntryNotFoundError as error:
        raise RemoteError(
            f"{hub_id}: no such directory, and the hub cannot be reached; download it or give a path"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise RemoteError(f"{hub_id}: download failed: {' '.join(str(error).split())}") from error
