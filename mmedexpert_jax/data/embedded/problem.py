"""A problem that a task poses, before it becomes a case: what is seen, what it adds up to, what may be answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True)
class Step:
    """One piece of evidence."""

    text: str  # as in the vignette, or what the image shows
    effect: str  # the running total after it ("2"), or what it says by itself ("stage 1")
    band: int  # index of the option that follows if nothing comes after it
    total: str = ""  # the running total in words ("2 points"); "" where it need not be said
    counts: bool = True  # whether it changes the running total


@dataclass(frozen=True)
class Problem:
    """The parts of which a case and its traces are composed."""

    key: str  # the values that decide the answer, as one line; pools partition the keys
    question: str  # vignette and question
    steps: tuple[Step, ...]  # the evidence in order; the last step's band is the answer
    # the same by name, for an independent check of the answer
    values: Mapping[str, object] = field(default_factory=dict)
    empty: int = 0  # the band that follows without evidence
    images: tuple[Image.Image, ...] = ()  # of the case

    @property
    def answer(self) -> int:
        """Index of the right option among the task's options."""
        return self.band(len(self.steps))

    def band(self, count: int) -> int:
        """Index of the option that the first `count` steps support."""
        return self.steps[count - 1].band if count else self.empty
