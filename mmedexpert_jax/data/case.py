"""The record of a question: a case of MMedExpert, of one's own data, or of a benchmark."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mmedexpert_jax.answers import LETTERS as LETTERS
from mmedexpert_jax.config.fields import SPECIALTIES as SPECIALTIES
from mmedexpert_jax.data.paradigms import NAMES as PARADIGMS
from mmedexpert_jax.processing.images import ImageRef, in_memory

SPLITS = ("train", "dev", "test")
GRADED = ("report", "rubric")  # whose answers earn a share: by measures of text, or by a judge, criterion by criterion
KINDS = ("choice", "yes_no", "open", *GRADED)


@dataclass(frozen=True)
class Case:
    """A question with its pictures and its answer; docs/own.md has the same as a table of a row's keys."""

    id: str  # stable and unique within its data set, or within a benchmark's subset and split
    question: str  # the vignette and the question, without the options; of a conversation its last user turn
    # option texts without letters, in order; 2 to 10 of them, or none where `kind` is not "choice"
    options: tuple[str, ...]
    # letter of the right option; "yes" or "no"; or the reference answer. Where a benchmark's key is no option's text,
    # that text stands for a choice too, and `scoring` holds nothing right under "strict"
    answer: str
    # one of SPECIALTIES (section 3.3) where experts are trained by it, any name elsewhere; may be ""
    specialty: str = ""
    task: str = ""  # kind of question, e.g. "curb65"
    # the case's pictures, in order, decoded when asked for; pictures in memory are wrapped
    images: tuple[ImageRef, ...] = ()
    paradigm: str = ""  # paradigm of `trace`, one of PARADIGMS; "" where there is no trace
    trace: str = ""  # reasoning under `paradigm`, without tags; "" where there is none
    # the paradigms that apply to the case; none where that is not known, as of published benchmarks
    paradigms: tuple[str, ...] = PARADIGMS
    # what else the row says, for rewards of one's own. A benchmark's `raw_question`, `raw_options` and `raw_answer`
    # hold the file's own text where it differs from the cleaned fields: peers' prompts and scorers use them; a "rubric"
    # has its `criteria`
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    benchmark: str = ""  # name in the registry of benchmarks; "" for a case of training data
    kind: str = ""  # one of KINDS; "" becomes "choice" where there are options, else "open"
    # what accuracies are broken down by: task, modality, department ...
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    turns: tuple[tuple[str, str], ...] = ()  # (role, text) of a conversation before the question

    def __post_init__(self):
        object.__setattr__(self, "kind", self.kind or ("choice" if self.options else "open"))
        if any(isinstance(image, Image.Image) for image in self.images):
            named = enumerate(self.images, 1)
            wrapped = (
                in_memory(image, f"{self.id}, image {n}") if isinstance(image, Image.Image) else image
                for n, image in named
            )
            object.__setattr__(self, "images", tuple(wrapped))

    @property
    def modality(self) -> str:
        """ "image" or "text"."""
        return "image" if self.images else "text"

    @property
    def golds(self) -> tuple[str, ...]:
        """The answer, and of an open question what else its file accepts (`columns["accepted"]`)."""
        found = self.columns.get("accepted")
        others = found if isinstance(found, list | tuple) and not self.options else ()
        return (self.answer, *(str(one) for one in others if one not in (None, "")))

    @property
    def answer_text(self) -> str:
        """Text of the right option, or the reference answer."""
        return self.options[LETTERS.index(self.answer)] if self.options else self.answer
