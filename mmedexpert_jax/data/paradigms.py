"""The paradigms of clinical reasoning (paper section 3.2, appendix A): what each asks for, what follows it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmedexpert_jax.data.words import stands

COUNTS = range(2, 13)  # statements of a trace, as teachers are asked for them (mmedexpert/teacher_prompts.py)
_STATEMENT = re.compile(r"[(（](\d+)[)）]\s*")
_COUNTED = re.compile(r"[(（]([1-9]|1[0-2])[)）]\s*")  # of COUNTS
_ELIMINATION = re.compile(
    r"\b(against|unlikely|less likely|exclude[sd]?|rule[sd]? out|eliminate[sd]?|absent|"
    r"not (?:fit|met|reached|match))\b|排除|不支持|不符|不太可能|可能性[较更]?[低小]|未见",
    re.I,
)
_RECOGNITION = re.compile(
    r"\b(pattern|typical(?:ly)?|classic(?:al)?|recogni[sz]\w*|picture|characteristic)\b|典型|经典|特征|模式", re.I
)
# but not "died", "for no reason", "even if", "ambassador", "no hint of"
CAUSE_IN_CHINESE = (
    "因为|由于|所以|因此|因而|从而|于是|导致|引起|造成|可知|综上|(?<![事缘病无典世变亡因何已如])故(?![障意事乡去人])"
    "|(?<![即假行驱大天])使(?![用命者馆劲])|(?<![未无不])(?:提示|反映|表明|说明(?!书))"
)
_DEDUCTION = re.compile(
    r"→|->|=|:|\b(because|since|therefore|thus|hence|so|leads? to|causes?|implies|gives?|adds?|means)\b"
    rf"|{CAUSE_IN_CHINESE}",
    re.I,
)
# behind "prior" and "posterior" where they are probabilities: a share of a disease, one of these words or none, but not
# "wall" or "to". Several always are
_NOUN = (
    r"(?:s\b|\b(?!-|\s+(?!(?-i:[A-Z]{2,}):?\s+\d+(?:\.\d+)?\s?%|"
    r"(?:probabilit|odds|chance|belief|estimate|likelihood|prevalence|suspicion|distribution|is|was|of|for|"
    r"in|here|now|then|after|given|favou?r|rise|fall|goes|become|remain|increase|decrease|drop|shift|move|would|low|"
    r"high|strongly|clearly|about|roughly|from|based|that|with|set|risk|reach|climb|exceed|approach|stay|support|point|"
    r"lean|jump|concentrate|confidence|ratio|make|ranking)"
    r"(?:y|ies|e?s|e?d|ped)?\b)[a-z]))"
)
PRIOR = rf"\bprior{_NOUN}|\bpre-?test\b|先验|验前|初始概率"
POSTERIOR = rf"\bposterior{_NOUN}|\bpost-?test\b|后验|验后|(?:修正|更新|校正)后的?概率"
BASE = re.compile(rf"{PRIOR}|\bbase rate\b", re.I)
_EVIDENCE = re.compile(
    r"\b(evidence|likelihood|raises?|lowers?|increases?|decreases?|update[sd]?)\b"
    r"|证据|似然|升高|降低|增加|增大|减[少小]|下降|上升",
    re.I,
)
_POSTERIOR = re.compile(POSTERIOR, re.I)


def statements(trace: str) -> list[str]:
    """The numbered statements "(1) ... (2) ..." of a trace; empty if they do not count up from 1. A number that no
    trace counts up to, as an age or a year in brackets, counts nothing."""
    for pattern in (_STATEMENT, _COUNTED):
        parts = pattern.split(trace)
        numbers, texts = parts[1::2], [text.strip() for text in parts[2::2]]
        if [int(n) for n in numbers] == list(range(1, len(numbers) + 1)):
            return texts if all(texts) else []
    return []


def apart(text: str, options: Sequence[str]) -> str:
    """A text without the options that hold a word of probability in another meaning, as "Occiput posterior"."""
    for option in options:
        if re.search(r"\b(?:prior|posterior)\b", option, re.I):
            text = re.sub(rf"{re.escape(option)}(?!\s*:)", "...", text, flags=re.I)
    return text


def _differential(steps: list[str], options: tuple[str, ...]) -> bool:
    text = " ".join(steps).lower()
    named = sum(stands(option.lower(), text) for option in options)
    return named >= min(2, len(options)) and bool(_ELIMINATION.search(text))  # an open question has none to name


def _intuitive(steps: list[str], options: tuple[str, ...]) -> bool:
    text = apart(" ".join(steps), options)
    return bool(_RECOGNITION.search(text)) and not BASE.search(text) and not _POSTERIOR.search(text)


def _analytical(steps: list[str], options: tuple[str, ...]) -> bool:
    text = apart(" ".join(steps), options)
    return sum(bool(_DEDUCTION.search(step)) for step in steps) >= 2 and not _POSTERIOR.search(text)


def _bayesian(steps: list[str], options: tuple[str, ...]) -> bool:
    bare = [apart(step, options) for step in steps]
    first = [next((i for i, step in enumerate(bare) if cue.search(step)), -1) for cue in (BASE, _EVIDENCE, _POSTERIOR)]
    return 0 <= first[0] <= first[1] <= first[2] and first[0] < first[2]


@dataclass(frozen=True)
class Paradigm:
    """One way to reason about a case."""

    name: str  # by which rows, prompts and configs call it
    title: str  # as the paper writes it
    definition: str  # what the paradigm does (appendix A)
    instruction: str  # the sentence that asks for it in a prompt
    # rule over the numbered statements and the options that `follows` applies
    structure: Callable[[list[str], tuple[str, ...]], bool]

    def follows(self, trace: str, options: tuple[str, ...]) -> bool:
        """True where `trace` has the paradigm's structure: 2 to 12 numbered statements and the paradigm's own moves.

        The rule sees only the form, never the key. Differential: names two options or more and eliminates.
        Intuitive: recognises a pattern, without prior or posterior. Analytical: two statements or more deduce, none
        speaks of a posterior. Bayesian: prior, evidence and posterior, in this order.
        """
        steps = statements(trace)
        return len(steps) in COUNTS and self.structure(steps, options)


PARADIGMS: dict[str, Paradigm] = {
    paradigm.name: paradigm
    for paradigm in (
        Paradigm(
            "differential",
            "Differential Diagnosis",
            "List the competing possibilities, compare them step by step, eliminate those that the findings exclude.",
            "Use differential diagnosis: name the competing options and eliminate those that the findings exclude.",
            _differential,
        ),
        Paradigm(
            "intuitive",
            "Intuitive Reasoning",
            "Recognise the pattern of the findings and associate it with what it typically means.",
            "Use intuitive reasoning: recognise the pattern of the findings and what it typically means.",
            _intuitive,
        ),
        Paradigm(
            "analytical",
            "Analytical Reasoning",
            "Deduce from mechanism or rule, step by step, what each finding implies.",
            "Use analytical reasoning: deduce step by step what each finding implies.",
            _analytical,
        ),
        Paradigm(
            "bayesian",
            "Bayesian Reasoning",
            "Start from prior probabilities, update them with the evidence, and infer the posterior.",
            "Use Bayesian reasoning: state the prior, update it with the evidence, conclude with the posterior.",
            _bayesian,
        ),
    )
}
NAMES = tuple(PARADIGMS)
