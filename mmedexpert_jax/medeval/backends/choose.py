"""The backend of a model, from the job's config."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmedexpert_jax import hub
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.medeval.backends.base import Backend
from mmedexpert_jax.medeval.systems import Target
from mmedexpert_jax.rollout import Settings
from mmedexpert_jax.runtime import Run


def open_backend(config: ConfigDict, target: Target, folder: Path, run: Run) -> Backend:
    """The backend that answers for `target`; an endpoint keeps its history in `folder`. Nothing is loaded or asked yet.

    Raises:
        ConfigError: an endpoint without a URL or without its key.
        DataError: no such model, or no such folder in its repository.
        RemoteError: the hub cannot be reached.
    """
    if target.kind == "endpoint":
        return _endpoint(config, target, folder, run)
    settings = Settings(
        num_samples=config.num_samples,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        batch_size=config.batch_size,
        max_prompt_length=config.max_prompt_length,
        seed=config.seed,
    )
    if target.kind == "transformers":
        from mmedexpert_jax.medeval.backends.torch_model import TransformersBackend

        return TransformersBackend(target.model, settings, run.interrupted)
    from mmedexpert_jax.medeval.backends.jax_engine import JaxBackend

    path = target.model
    if target.folder:  # one of several checkpoints in a repository: that folder is downloaded, and nothing else of it
        place = hub.snapshot(path, [f"{target.folder}/*"]) / target.folder
        if not place.is_dir():
            raise DataError(f"{path} holds no folder {target.folder}; see https://huggingface.co/{path}/tree/main")
        path = str(place)
    return JaxBackend(path, config.model.dtype, settings, run.interrupted)


def generation(config: ConfigDict) -> dict[str, Any]:
    """The settings of the generation that an answer depends on, for its key."""
    settings = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    if config.temperature > 0:
        settings |= {"top_k": config.top_k, "top_p": config.top_p, "seed": config.seed}
    return settings


def _endpoint(config: ConfigDict, target: Target, folder: Path, run: Run) -> Backend:
    from mmedexpert_jax.medeval.backends.endpoint import EndpointBackend
    from mmedexpert_jax.remote import Answers
    from mmedexpert_jax.remote.protocol import endpoint

    if not target.url:
        raise ConfigError(f"{target.name} is asked through an endpoint: set config.endpoint.url, or name MODEL@URL")
    key_env = config.endpoint.key_env if target.key_env is None else target.key_env
    asked = endpoint(
        config.endpoint,
        url=target.url,
        key_env=key_env,
        model=target.model,
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p if config.temperature > 0 and config.top_p < 1 else None,
        seed=config.seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return EndpointBackend(asked, Answers(folder / "attempts.sqlite"), run.interrupted)
