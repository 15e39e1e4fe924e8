"""Answers by transformers, for models that this project's engine does not run. An optional extra: it needs torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedexpert_jax.border import one_line
from mmedexpert_jax.config.fields import HUB_ID
from mmedexpert_jax.errors import ConfigError, DataError, stop_if
from mmedexpert_jax.medeval.backends.base import STOPPED, OnReply, Refuse
from mmedexpert_jax.medeval.backends.jax_engine import content_hash
from mmedexpert_jax.medeval.prompt_styles import Messages, Question, opened
from mmedexpert_jax.processing.images import open_image
from mmedexpert_jax.rollout import Reply, Settings

PLAIN = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}  # not what the checkpoint names
_FILES = (".json", ".safetensors", ".bin", ".jinja", ".txt", ".model")  # that transformers reads a model from


class TransformersBackend:
    """Any model of transformers' image-text-to-text family, `batch_size` conversations of like length at a time.

    Sampled answers are drawn for one conversation at a time, from a seed of its own, so that they do not depend on the
    others.
    """

    def __init__(self, path: str, settings: Settings, interrupted: Callable[[], int | None] = lambda: None):
        """Takes a directory or hub id, "owner/name@revision"; `interrupted` is looked at between batches."""
        self._interrupted = interrupted
        folder = Path(path).expanduser()
        weights = {"weights": content_hash([folder], _FILES)} if folder.is_dir() else {}
        self.identity: Mapping[str, Any] = {"transformers": path, **weights}
        self._path, self._settings = path, settings
        self._loaded: tuple[Any, Any] | None = None

    def answer(
        self, asked: Sequence[Question], num_samples: int, on_reply: OnReply, refuse: Refuse | None = None
    ) -> None:
        """As in `Backend`."""
        lengths = [sum(len(str(message["content"])) for message in question.messages) for question in asked]
        order = sorted(range(len(asked)), key=lambda number: -lengths[number])
        size = 1 if self._settings.temperature > 0 else self._settings.batch_size
        for start in range(0, len(order), size):
            stop_if(self._interrupted, STOPPED)
            numbers, conversations = [], []
            for number in order[start : start + size]:
                try:
                    conversations.append(_plain(opened(asked[number].messages)))
                    numbers.append(number)
                except DataError as error:
                    if refuse is None:
                        raise
                    refuse(number, error)
            if numbers:
                replies = self._generate(conversations, asked[numbers[0]].row, num_samples)
                for place, number in enumerate(numbers):
                    on_reply(number, replies[place * num_samples : (place + 1) * num_samples])

    def close(self) -> None:
        """Lets go of the weights."""
        self._loaded = None

    def _generate(self, conversations: list[Messages], seed: int, num_samples: int) -> list[Reply]:
        from transformers import set_seed

        model, processor = self._model()
        inputs = processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(model.device, dtype=model.dtype)
        settings = self._settings
        sampled = settings.temperature > 0
        choice = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        set_seed(seed)
        tokens = model.generate(
            **inputs,
            **(choice if sampled else {}),
            **PLAIN,
            do_sample=sampled,
            max_new_tokens=settings.max_new_tokens,
            num_return_sequences=num_samples,
        )[:, inputs["input_ids"].shape[1] :]
        stops = model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        return [_reply(processor, row, stops) for row in tokens.tolist()]

    def _model(self) -> tuple[Any, Any]:
        if self._loaded is None:
            try:
                from transformers import AutoModelForImageTextToText, AutoProcessor

                name, revision = _named(self._path)
                processor = AutoProcessor.from_pretrained(name, revision=revision)
                model = AutoModelForImageTextToText.from_pretrained(name, revision=revision, dtype="auto")
            except ImportError as error:
                raise ConfigError(
                    f"transformers:{self._path} needs torch ({error}); pip install torch torchvision"
                ) from None
            except (OSError, ValueError) as error:
                raise DataError(f"{self._path}: transformers cannot load it ({one_line(error)})") from None
            if getattr(processor, "chat_template", None) is None:
                raise DataError(f"{self._path} has no chat template; serve it and use endpoint:MODEL@URL instead")
            processor.tokenizer.padding_side = "left"
            self._loaded = (model.eval(), processor)
        return self._loaded


def _named(path: str) -> tuple[str, str]:
    """A directory, or a hub id, and the revision of the latter. Raises DataError for what is neither."""
    if (folder := Path(path).expanduser()).is_dir():
        return str(folder), "main"
    if not (hub := HUB_ID.fullmatch(path)):
        raise DataError(f"{path}: transformers cannot load it (no such directory, and no hub id owner/name)")
    return hub["name"], hub["revision"] or "main"


def _plain(messages: Messages) -> Messages:
    """Images opened, for processors that take no bytes; every content as a list of parts, for templates."""
    made = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [{**part, "image": open_image(part["image"])} if part["type"] == "image" else part for part in parts]
        made.append({**message, "content": parts})
    return made


def _reply(processor: Any, tokens: list[int], stops: list[int]) -> Reply:
    ends = [place for place, token in enumerate(tokens) if token in stops]
    length = ends[0] + 1 if ends else len(tokens)
    return Reply(processor.decode(tokens[:length], skip_special_tokens=True).strip(), length, not ends)
