"""The reviewers' rubric: criteria by paradigm (after Savage et al. 2024, npj Digit. Med. 7:20) and reason codes."""

from dataclasses import dataclass

from mmedexpert_jax.data.paradigms import PARADIGMS

VERDICTS = ("accept", "edit", "reject")


@dataclass(frozen=True)
class Criterion:
    """One line of the rubric: a stable code, and the sentence that is met or not."""

    code: str
    text: str


_COMMON = (
    Criterion("facts", "Every medical statement is correct"),
    Criterion("grounded", "Uses only findings that the case gives"),
)
_OWN: dict[str, tuple[Criterion, ...]] = {
    "differential": (
        Criterion("candidates", "Names two or more competing possibilities"),
        Criterion("comparison", "Weighs findings for and against them"),
        Criterion("elimination", "Excludes the others before it concludes"),
    ),
    "intuitive": (
        Criterion("pattern", "Names the findings that make the pattern"),
        Criterion("association", "Goes from the pattern straight to its meaning"),
        Criterion("no_enumeration", "No list of candidates, no probabilities"),
    ),
    "analytical": (
        Criterion("mechanism", "Steps rest on a mechanism or a rule"),
        Criterion("chain", "Each step follows from those before it"),
        Criterion("no_probability", "Argues without prior and posterior"),
    ),
    "bayesian": (
        Criterion("prior", "States a plausible prior"),
        Criterion("update", "Updates in the right direction for each finding"),
        Criterion("posterior", "Concludes with the posterior"),
    ),
}
RUBRIC: dict[str, tuple[Criterion, ...]] = {
    name: _OWN.get(name, (Criterion("structure", paradigm.definition.rstrip(".")),)) + _COMMON
    for name, paradigm in PARADIGMS.items()
}

REASONS: dict[str, str] = {
    "wrong_paradigm": "Wrong paradigm",
    "mixed_paradigms": "Mixed paradigms",
    "medical_error": "Medical error",
    "unsupported_leap": "Unsupported leap",
    "answer_leak": "Answer leak",
    "image_not_used": "Image not used",
    "unsafe_advice": "Unsafe advice",
    "not_applicable": "Not applicable",
    "other": "Other",
}
