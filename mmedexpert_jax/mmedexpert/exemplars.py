"""Worked examples of the four paradigms, which exemplars.yaml holds."""

from dataclasses import dataclass
from pathlib import Path

from mmedexpert_jax import border

VERSION = "1"


@dataclass(frozen=True)
class Exemplar:
    """A vignette with options, key, and one trace for each paradigm."""

    question: str
    options: tuple[str, ...]
    answer: str
    traces: dict[str, str]


_FILE = Path(__file__).with_name("exemplars.yaml")
EXEMPLARS = border.read_yaml(_FILE, tuple[Exemplar, ...])
