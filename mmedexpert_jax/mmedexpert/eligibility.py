"""The paradigms that a case is eligible for, and the one that it is assigned.

Savage et al. 2024 wrote the four paradigms for questions that ask for a diagnosis. Asked of an item on ethics or on an
enzyme, Bayesian reasoning is a form without content. Eligibility therefore looks at what is asked:

| kind | asks for | paradigms |
| --- | --- | --- |
| diagnosis | diagnosis, cause, risk, class or stage; about an image, anything else | all four |
| management | next step, treatment, test, place of care | differential, analytical, Bayesian |
| mechanism | mechanism, enzyme, expected finding, adverse effect | analytical |
| other | anything else but ethics and statistics | analytical |
| other | ethics, law, statistics | none: the case is left out |
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mmedexpert_jax.data.case import PARADIGMS
from mmedexpert_jax.data.order import seeded
from mmedexpert_jax.mmedexpert.record import RawCase

APPLY = {
    "diagnosis": PARADIGMS,
    "management": ("differential", "analytical", "bayesian"),
    "mechanism": ("analytical",),
    "other": ("analytical",),
}
CHOOSE = re.compile(  # an instruction behind the question
    r"^(?:choose|select|pick) (?:one|two|\d|an? (?:answer|option)|the (?:one |single )?best (?:answer|option))\b|"
    r"[1-9１-９一]つ選べ",
    re.I,
)
_NONE = re.compile(
    r"\b(?:ethic|autonomy|beneficence|informed consent|confidentiality|malpractice|power of attorney|"
    r"confidence interval|p-?value|null hypothesis|type (?:i|ii|1|2) error|odds ratio|relative risk|number needed|"
    r"sensitivity of th|specificity of th|predictive value|study design|case-control|cohort study|selection bias|"
    r"standard deviation|apologi[sz]e|disclos)",
    re.I,
)
_MECHANISM = re.compile(
    r"\b(?:mechanism|pathophysiolog|enzyme|receptor|genes?\b|genetic|mutation|protein|molecul|pathway|chromosom|inherit|"
    r"embryolog|histolog|biops|would (?:most likely )?(?:show|reveal)|expected (?:to|find)|additional finding|"
    r"associated with|adverse effect|side effect|complication|mode of action|nerve|artery|muscle|vitamin|toxin)",
    re.I,
)
_MANAGEMENT = re.compile(
    r"\b(?:next step|management|manage|treat|therapy|pharmacotherapy|drug|medication|intervention|administer|"
    r"prescri|recommend|prevent|screening|initial (?:test|step)|best (?:test|step|initial)|confirm|evaluat|"
    r"diagnostic (?:test|study|step)|course of action|counsel|prophyla|place of care)",
    re.I,
)
_DIAGNOSIS = re.compile(
    r"\b(?:diagnos[ie]s|cause|causal|etiolog|aetiolog|condition|disease|disorder|syndrome|explain|underlying|organism|"
    r"pathogen|responsible|class|grade|stage|score|risk|probability|likelihood|mortality|category|rhythm|"
    r"injury|deficiency|abnormality)",
    re.I,
)
# The same in other languages of published questions: Chinese, Japanese; French, German, Spanish, Portuguese, Italian.
_NAMED = re.compile(
    r"诊断|診断|\b(?:le|du|quel|un) diagnostic\b|\b(?-i:Verdachtsd|D)iagnosen?\b|\bdiagnosi\b|"
    r"\bdiagn[óo]stico\b",
    re.I,
)
_TESTED = re.compile(
    r"检查|检验|化验|确诊|依据|検査|\b(?:confirm|test|study|step)\b|\bexam(?:en|ens|ination)\b|Untersuchung|"
    r"\b(?:prueba|exame|esame)s?\b",
    re.I,
)
_FOREIGN = {
    "management": re.compile(
        r"治疗|治療|处理|首选|用药|药物|手术|检查|检验|化验|确诊|预防|検査|措施|\btraitement|prise en charge|"
        r"thérapeutique|conduite à tenir|\bTherapie|\bBehandlung|Vorgehen|Maßnahme|Untersuchung|"
        r"\btrat(?:amiento|amento|tamento)|\bmanejo\b|\bcondu(?:cta|ta)\b|\bexamen\b|\bprueba\b|\bexame\b|\besame\b|\bterap[ié]",
        re.I,
    ),
    "mechanism": re.compile(
        r"机制|机理|机転|機序|受体|基因|蛋白|病理|神经|动脉|肌肉|不良反应|副作用|并发症|m[ée]canism[eo]|meccanismo|Mechanismus|"
        r"effets? (?:secondaires?|indésirables?)|Nebenwirkung|Komplikation|efectos? adversos?|complica(?:ci|ç|zi)",
        re.I,
    ),
    "diagnosis": re.compile(
        r"病因|原因|疾病|综合征|病原|风险|分期|分级|症候群|疾患|\bmaladie|\bUrsache|\bErkrankung|\bErreger|\bcausa\b|"
        r"\benfermedad|\bdoença|\bmalattia|\bs[íi]ndrom",
        re.I,
    ),
}


@functools.lru_cache(maxsize=8)  # every cue of a specialty asks for it
def ask(question: str) -> str:
    """The sentence that asks: the last one with a question mark, else the last sentence that is no instruction."""
    sentences = [s.strip() for s in re.split(r"(?<=[.?!])\s+(?=[A-Z¿\"(])|(?<=[。？！])|\n", question) if s.strip()]
    asked = [sentence for sentence in sentences if sentence.endswith(("?", "？"))]
    return (asked or [sentence for sentence in sentences if not CHOOSE.search(sentence)] or sentences or [""])[-1]


def asks(record: RawCase) -> str:
    """The kind of a question, one of record.ASKS; a diagnosis is looked for first, then treatment, then mechanism."""
    stem = ask(record.question)
    if re.search(r"\bdiagnos[ie]s\b", stem, re.I) and not re.search(r"\b(?:confirm|test|study|step)\b", stem, re.I):
        return "diagnosis"
    if _NAMED.search(stem) and not _TESTED.search(stem):
        return "diagnosis"
    cues = (("management", _MANAGEMENT), ("mechanism", _MECHANISM), ("diagnosis", _DIAGNOSIS), *_FOREIGN.items())
    return next((name for name, cue in cues if cue.search(stem)), "diagnosis" if record.images else "other")


def paradigms(record: RawCase, kind: str) -> tuple[str, ...]:
    """The paradigms that apply; none where the question is one of ethics, law or statistics. Of a treatment or a
    mechanism what is asked says so: a vignette may speak of a consent or of a cohort."""
    said = record.question if kind == "other" else ask(record.question)
    return () if kind != "diagnosis" and _NONE.search(said) else APPLY[kind]


def with_paradigms(record: RawCase) -> RawCase:
    """The record with its kind and its paradigms."""
    found = asks(record)
    return replace(record, asks=found, paradigms=paradigms(record, found))


def assign(records: Sequence[RawCase], policy: str, seed: int) -> list[tuple[RawCase, str]]:
    """Pairs of record and designated paradigm, in the order of `records`.

    "balanced" gives each case one: cases with the fewest paradigms come first, those with as many in the order of a
    seeded hash of the ids, and each takes the paradigm among its own that has been given least often, so that the
    numbers are as equal as eligibility allows and depend on the set of cases and the seed alone. "all" gives each case
    all of its own.
    """
    if policy == "all":
        return [(record, paradigm) for record in records for paradigm in record.paradigms]

    used: Counter = Counter()
    chosen: dict[str, str] = {}
    eligible = [record for record in records if record.paradigms]
    for record in sorted(eligible, key=lambda r: (len(r.paradigms), seeded(seed, r.id))):
        own = sorted(record.paradigms, key=lambda name: (used[name], seeded(seed, f"{record.id}:{name}")))
        chosen[record.id] = own[0]
        used[own[0]] += 1
    return [(record, chosen[record.id]) for record in eligible]
