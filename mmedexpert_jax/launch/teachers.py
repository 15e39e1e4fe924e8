"""Teachers and judges of the data factory: endpoints by chat or batch, and models in this process."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmedexpert_jax.errors import ConfigError, stop_if

if TYPE_CHECKING:
    from mmedexpert_jax.mmedexpert.local_teacher import Teacher
    from mmedexpert_jax.remote import Answers
    from mmedexpert_jax.runtime import Run


def make_teacher(config: ConfigDict, run: "Run") -> Callable[[ConfigDict, "Answers"], tuple[str, "Teacher"]]:
    """A function that makes the teacher, or judge, that a config group describes: (group, store) -> name, teacher."""

    def make(group: ConfigDict, answers: "Answers") -> tuple[str, "Teacher"]:
        if group.kind == "local" and "model" not in config:
            raise ConfigError('config.teacher.kind: "local" needs a model; use configs/dataset.py:mini or :smollm2')
        if group.kind == "local":
            return _local(config, group, answers, run)
        from mmedexpert_jax.remote import Client
        from mmedexpert_jax.remote.batch_api import BatchClient
        from mmedexpert_jax.remote.protocol import endpoint

        client = BatchClient if group.kind == "batch" else Client
        return group.model, client(endpoint(group), answers, run.interrupted)

    return make


def _local(config: ConfigDict, group: ConfigDict, answers: "Answers", run: "Run") -> tuple[str, "Teacher"]:
    """A model of this process, loaded when something has to be asked."""
    from mmedexpert_jax.medeval.backends.jax_engine import weights_hash
    from mmedexpert_jax.mmedexpert.local_teacher import LocalTeacher
    from mmedexpert_jax.models.load import chosen_reading

    engine: list[Any] = []

    def answer(conversations: list[list[dict]], ids: list[int]) -> list[tuple[str, int, bool]]:
        if not engine:
            engine.append(_engine(config, group))
        found = dict(engine[0].answer([_opened(turns) for turns in conversations], ids))
        replies = [found[i][0] for i in range(len(conversations))]
        return [(reply.text, reply.tokens, reply.truncated) for reply in replies]

    stop = functools.partial(stop_if, run.interrupted, "what was answered is stored; the same command resumes")
    names = ("max_tokens", "temperature", "seed", "max_prompt_length")
    settings = {name: group[name] for name in names} | {"weights": weights_hash(config.model.path)} | chosen_reading()
    teacher = LocalTeacher(config.model.path, settings, answer, answers, batch_size=group.batch_size, stop=stop)
    return config.model.path, teacher


def _engine(config: ConfigDict, group: ConfigDict) -> Any:
    from mmedexpert_jax.models import load_policy, load_processor
    from mmedexpert_jax.rollout import Engine, Settings

    model, params, lora = load_policy(config.model.path, dtype=config.model.dtype)
    settings = Settings(
        max_new_tokens=group.max_tokens,
        temperature=group.temperature or 0.0,
        batch_size=group.batch_size,
        max_prompt_length=group.max_prompt_length,
        seed=group.seed or 0,
    )
    return Engine(model, params, load_processor(config.model.path), settings, lora=lora)


def _opened(turns: list[dict]) -> list[dict]:
    """A conversation with encoded images decoded."""
    from mmedexpert_jax.processing.images import open_image

    def part(item: dict) -> dict:
        encoded = item["type"] == "image" and isinstance(item["image"], bytes)
        return item | {"image": open_image(item["image"])} if encoded else item

    return [
        turn if isinstance(turn["content"], str) else turn | {"content": [part(item) for item in turn["content"]]}
        for turn in turns
    ]
