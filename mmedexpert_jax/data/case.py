"""The record of a clinical case: one multiple-choice question, its key, and one reasoning trace."""

from dataclasses import dataclass

from PIL import Image

SPECIALTIES = ("AM", "CAH", "BS", "CSI")
PARADIGMS = ("differential", "intuitive", "analytical", "bayesian")
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Case:
    """A case of MMedExpert (paper section 3).

    Attributes:
        id: stable and unique within its data set.
        question: the vignette and the question, without the options.
        options: option texts without letters, in order; 2 to 10 of them.
        answer: letter of the right option.
        specialty: one of SPECIALTIES (section 3.3).
        task: kind of question, e.g. "curb65".
        images: the case's images, in order; empty for text-only cases.
        paradigm: paradigm of `trace`, one of PARADIGMS; "" where there is no trace.
        trace: reasoning under `paradigm`, without tags; "" where there is none.
        paradigms: the paradigms that apply to the case.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: str
    specialty: str
    task: str
    images: tuple[Image.Image, ...] = ()
    paradigm: str = ""
    trace: str = ""
    paradigms: tuple[str, ...] = PARADIGMS

    @property
    def modality(self) -> str:
        """ "image" or "text"."""
        return "image" if self.images else "text"
