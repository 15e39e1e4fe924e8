"""The moves that each paradigm asks for and forbids: one table for the prompt that demands them and the check of them.

After Savage et al. 2024 (npj Digit. Med. 7:20), in our words. The shared rule `data.paradigms.Paradigm.follows`, which
the structure reward of GBA applies too, stands below these: what passes here passes there.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmedexpert_jax.data.paradigms import BASE, CAUSE_IN_CHINESE, COUNTS, PARADIGMS, POSTERIOR, PRIOR, apart, statements
from mmedexpert_jax.data.words import pattern, plain, stands, word_count

_AGAINST = re.compile(
    r"\b(?:against|unlikely|less likely|exclude[sd]?|rule[sd]? out|eliminate[sd]?|absent|lacks?|without|does not|"
    r"do not|neither|nor|no longer|cannot|"
    r"not (?:fit|met|reached|match\w*|explain\w*|expected|seen|present|compatible))\b"
    r"|排除|不支持|不符|不太可能|可能性[较更]?[低小]|未见|没有|并无",
    re.I,
)
_FOR = re.compile(
    r"\b(?:fits?|best|supports?|favou?rs?|consistent|explains?|explained|matche?s?|remains?|likely|points? to|is)\b"
    r"|符合|支持|最可能|一致|提示|是",
    re.I,
)
_CAUSAL = re.compile(
    r"→|->|=|:|\b(?:because|since|therefore|thus|hence|so|leads? to|causes?|implies|gives?|adds?|means|results? in|"
    r"produces?|impairs?|prevents?|raises?|lowers?)\b"
    rf"|{CAUSE_IN_CHINESE}",
    re.I,
)
_PROBABILITY = re.compile(rf"{PRIOR}|{POSTERIOR}|\blikelihood ratio\b|似然比", re.I)
_DIRECTION = re.compile(
    r"→|->|\b(?:raises?|lowers?|increases?|decreases?|more likely|less likely|up to|down to|keeps|argues?|fits|halves|"
    r"doubles|to (?:about |roughly )?\d+ ?%)|升高|降低|更可能|更不可能|增[加大]|减[少小]|上升|下降|升至|降至",
    re.I,
)


@dataclass(frozen=True)
class Statements:
    """A trace as the rules see it: its statements, their text in one, the options, and the index of the chosen one."""

    steps: tuple[str, ...]
    text: str
    options: tuple[str, ...]
    chosen: int

    def named(self, text: str) -> set[int]:
        """Indices of the options that `text` names; an option inside another one that is named does not count."""
        lower = plain(text).lower()
        found = {i for i, option in enumerate(self.options) if stands(option.lower(), lower)}
        texts = {i: plain(self.options[i]).lower() for i in found}
        return {
            i
            for i in found
            if not any(  # it stands in the text only inside a longer one
                texts[i] != texts[j]
                and texts[i] in texts[j]
                and not stands(texts[i], re.sub(pattern(texts[j]), " ", lower))
                for j in found
            )
        }


@dataclass(frozen=True)
class Move:
    """One move."""

    name: str  # for counts and reviewers
    demand: str  # the sentence of the prompt
    made: Callable[[Statements], bool]  # whether a trace makes it


def _weighs(trace: Statements) -> bool:
    """True where two statements, one of two options, none of an open question, speak against something, and one for
    it."""
    against = sum(bool(_AGAINST.search(step)) for step in trace.steps)
    return against >= min(2, len(trace.options) - 1) and bool(_FOR.search(trace.text))


def _updates(trace: Statements) -> bool:
    """True for two findings between the prior and the conclusion, one of them with the direction of its update."""
    prior = next((i for i, step in enumerate(trace.steps) if BASE.search(apart(step, trace.options))), 0)
    between = [re.sub(r"^\s*(?:evidence|证据)\s*[:：]", "", step, flags=re.I) for step in trace.steps[prior + 1 : -1]]
    findings = [part for step in between for part in re.split(r"[,;.]\s|[，；。]", step) if word_count(part) > 1]
    return len(findings) >= 2 and bool(_DIRECTION.search(" ".join(between)))


def _lists_none(trace: Statements) -> bool:
    """True where at most one option beside the chosen one is excluded: a second makes it a differential diagnosis."""
    excluded = {i for step in trace.steps if _AGAINST.search(step) for i in trace.named(step) if i != trace.chosen}
    return len(excluded) < 2


def _concludes(trace: Statements) -> bool:
    """True for a last statement that names the chosen option, or none."""
    named = trace.named(trace.steps[-1])
    return not named or trace.chosen in named


REQUIRED: dict[str, tuple[Move, ...]] = {
    "differential": (
        Move(
            "candidates",
            "Name at least three of the options, word for word, as candidates.",
            lambda trace: len(trace.named(trace.text)) >= min(3, len(trace.options)),
        ),
        Move("for-and-against", "Weigh findings for and against them and eliminate at least two.", _weighs),
    ),
    "intuitive": (
        Move(
            "pattern",
            "Name the few findings that form the pattern, and say what they are typical of.",
            lambda trace: PARADIGMS["intuitive"].structure(list(trace.steps), trace.options),
        ),
    ),
    "analytical": (
        Move(
            "links",
            "Link cause and effect at least twice (because, therefore, leads to).",
            lambda trace: sum(bool(_CAUSAL.search(step)) for step in trace.steps) >= 2,
        ),
    ),
    "bayesian": (
        Move(
            "prior-to-posterior",
            "State the prior first, then the evidence, and the posterior last.",
            lambda trace: PARADIGMS["bayesian"].structure(list(trace.steps), trace.options),
        ),
        Move("updates", "Update on at least two findings, and say for each in which direction.", _updates),
    ),
}
_NO_PROBABILITIES = Move(
    "probabilities",
    "Do not speak of prior or posterior probabilities.",
    lambda trace: not _PROBABILITY.search(apart(trace.text, trace.options)),
)
_NO_LIST = Move("list", "Do not list candidates and exclude them one by one.", _lists_none)
FORBIDDEN: dict[str, tuple[Move, ...]] = {
    "differential": (_NO_PROBABILITIES,),
    "intuitive": (_NO_LIST, _NO_PROBABILITIES),
    "analytical": (_NO_LIST, _NO_PROBABILITIES),
    "bayesian": (),
}
CONCLUSION = Move("conclusion", "End with the option that follows, word for word.", _concludes)


def moves(paradigm: str) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
    """The moves that a paradigm asks for, beside the conclusion, and those that it forbids; a paradigm without any is
    held to its structure alone."""
    return REQUIRED.get(paradigm, ()), FORBIDDEN.get(paradigm, ())


def missing(trace: str, paradigm: str, options: Sequence[str], chosen: int) -> list[str]:
    """The reasons that keep a trace from its paradigm, such as "missing:updates" or "forbidden:list"; empty for none.

    Args:
        trace: the reasoning, numbered statements.
        paradigm: the designated one.
        options: of the case.
        chosen: index of the option that the response chooses.
    """
    steps = statements(trace)
    if len(steps) not in COUNTS:
        return ["missing:statements"]
    seen = Statements(tuple(steps), " ".join(steps), tuple(options), chosen)
    required, forbidden = moves(paradigm)
    found = [f"missing:{move.name}" for move in (*required, CONCLUSION) if not move.made(seen)]
    found += [f"forbidden:{move.name}" for move in forbidden if not move.made(seen)]
    if not found and not PARADIGMS[paradigm].structure(steps, seen.options):
        found.append("missing:structure")
    return found
