"""The record of a question: a case of MMedExpert, of one's own data, or of a benchmark that is trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mmedexpert_jax.config.fields import PARADIGMS as PARADIGMS
from mmedexpert_jax.config.fields import SPECIALTIES as SPECIALTIES
from mmedexpert_jax.processing.images import ImageRef, in_memory

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Case:
    """A case of MMedExpert (paper section 3); docs/own.md has the same as a table of a row's keys.

    Attributes:
        id: stable and unique within its data set.
        question: the vignette and the question, without the options.
        options: option texts without letters, in order; 2 to 10 of them, or none for an open question.
        answer: letter of the right option; of an open question the reference answer.
        specialty: one of SPECIALTIES (section 3.3) where experts are trained by it, any name elsewhere; may be "".
        task: kind of question, e.g. "curb65".
        images: the case's pictures, in order, decoded when asked for; pictures in memory are wrapped.
        paradigm: paradigm of `trace`, one of PARADIGMS; "" where there is no trace.
        trace: reasoning under `paradigm`, without tags; "" where there is none.
        paradigms: the paradigms that apply to the case.
        columns: what else the row says, for rewards of one's own.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: str
    specialty: str = ""
    task: str = ""
    images: tuple[ImageRef, ...] = ()
    paradigm: str = ""
    trace: str = ""
    paradigms: tuple[str, ...] = PARADIGMS
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self):
        if any(isinstance(image, Image.Image) for image in self.images):
            named = enumerate(self.images, 1)
            wrapped = (
                in_memory(image, f"{self.id}, image {n}") if isinstance(image, Image.Image) else image
                for n, image in named
            )
            object.__setattr__(self, "images", tuple(wrapped))

    @property
    def kind(self) -> str:
        """ "choice", or "open" for a question without options."""
        return "choice" if self.options else "open"

    @property
    def modality(self) -> str:
        """ "image" or "text"."""
        return "image" if self.images else "text"

    @property
    def answer_text(self) -> str:
        """Text of the right option, or the reference answer."""
        return self.options[LETTERS.index(self.answer)] if self.options else self.answer
