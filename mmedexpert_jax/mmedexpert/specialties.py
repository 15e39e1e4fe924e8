"""Stratification (section 3.3, equation 1): each case in one of the four specialties, and a finer field beside it.

Rules in this order, the first that holds decides, so that the partition is exclusive and exhaustive by construction:

1. the specialty that the source itself gives;
2. the patient is under 18, or the source's field is paediatric: CAH;
3. cancer, surgery and trauma (CSI), brain, mind, eye and ear (BS), diseases of internal medicine (AM): whichever has
   most cues, where what is asked and the source's field count FIELD times; of equals the first named, since a tumour
   of the brain is operated on;
4. no cue: AM.

A teacher model may be asked to vote (`votes`): two votes that agree overrule the rules, a third breaks a tie.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from mmedexpert_jax.answers import spoken
from mmedexpert_jax.data.case import LETTERS, SPECIALTIES
from mmedexpert_jax.mmedexpert.eligibility import ask
from mmedexpert_jax.mmedexpert.record import RawCase

FIELD = 3  # cues that one counts for in what is asked, or in the source's field or body system
TITLES = {
    "AM": "Adult Medicine",
    "CAH": "Child and Adolescent Health",
    "BS": "Brain and Senses",
    "CSI": "Cancer and Surgical Interventions",
}
_YOUNG = re.compile(
    r"(?<!whose )\b(?:newborn|neonat\w*|infant|toddler|schoolchild|preterm|premature (?:boy|girl|baby)|"
    r"baby(?! (?:aspirin|powder|oil|shampoo|food))|boy|girl|adolescent|teenager|child)\b(?!-|bearing|hood)|"
    r"患[儿童]|[新男女幼]?婴儿|新生儿|小儿|[男女]孩|[남여영]아|신생아|мальчик|девочк|младен|"
    r"\b(?:Säugling|Neugeborene|Kleinkind|nourrisson|nouveau-né|lactante|recién nacid)",
    re.I,
)
_NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_WORDED = re.compile(  # "sixteen-year-old"
    rf"(?<![\w-])(?:{_NUMBERS.replace(' ', '|')})(?=[\s-](?:years?|months?|weeks?|days?)[\s-]old\b)", re.I
)
_UNIT = r"[\s-]*(?P<unit>years?|yrs?|y|months?|mos?|weeks?|wks?|days?|hours?)\b"
_AGE = re.compile(  # of somebody or something that is so old; "45 yo"
    r"\b(?<![\d.])(?P<number>\d{1,3})(?:\.\d+)?[\s-]*(?:"
    r"(?P<unit>years?|yrs?|months?|mos?|weeks?|wks?|days?|hours?)[\s-]*old\b|(?P<short>y\.?/?o\b\.?))",
    re.I,
)
# behind an age, up to the end of what it says: that which is no person
_THING = re.compile(
    r"(?:\s+(?!(?:with|who|whose|that|which|is|was|has|had|and|in|on|of|to|for|from|at|by|after|man|woman|male|"
    r"female|boy|girl|child|infant|baby|son|daughter|patient)\b)[\w'’-]+){0,3}?\s+(?:\w*rash|wound|infarct\w*|"
    r"fracture|lesion|ulcer|burn|scar|stroke|\w*h(?:a)?ematoma|bruise|bite|injury|graft|transplant|\w*thromb\w+|clot|"
    r"infection|cut|laceration|swelling|mass|lump|tumou?r|sore|blister|incision|stoma|dressing|film|scan|culture|sample|"
    r"specimen|history|prosthesis|implant|stent|shunt|catheter|pacemaker|valve|suture|h(?:a)?emorrhage|abscess|problem)"
    r"s?\b(?!\s+(?:victim|patient|recipient|survivor|case|sufferer))",
    re.I,
)
_BROUGHT = re.compile(r"\b(?:brings?|brought|carries|carried)(?: in)? (?:her|his|their|the|an?) $", re.I)
_AGES = (  # other ways to say it
    re.compile(rf"(?<!gestational )\baged?:? (?P<number>\d{{1,3}})\b(?:{_UNIT})?", re.I),
    re.compile(r"\b(?P<number>\d{1,3})[\s-](?P<unit>months?|weeks?|days?|hours?) of age\b", re.I),
    re.compile(
        r"\b(?:(?:wo)?man|(?:fe)?male|boy|girl|patient|lady|gentleman)[,:]? (?:of )?\(?(?P<number>\d{1,3})"
        r"(?: ?(?:y(?:ea)?rs?|y))?(?=[,)]|$)",
        re.I,
    ),
    re.compile(r"(?:^|[.!?]\s+)(?:[Aa]n? )?(?P<number>\d{1,3})[MF]\b(?! (?:catheter|sheath|tube|drain))"),
    re.compile(r"(?P<number>\d{1,3})\s*(?:周?岁|歳|세)"),
    re.compile(
        r"(?:âgée? de|homme de|femme de|garçon de|fille de|enfant de|hombre de|mujer de|paciente de|niñ[oa] de|"
        r"varón de|homem de|mulher de|menin[oa] de|uomo di|donna di|bambin[oa] di) (?P<number>\d{1,3}) "
        r"(?:ans|años|anos|anni)\b|"
        r"\b(?P<years>\d{1,3})-?jährige[rsn]?\b",
        re.I,
    ),
    re.compile(r"\b(?P<number>\d{1,3}) (?P<unit>Jahre|Monate|Wochen|Tage) alt(?:e[rsn]?)?\b", re.I),
    re.compile(r"(?:[男女][，,]\s*|出生后|(?<!发)生后)(?P<number>\d{1,2})\s*(?P<unit>个?月|天|日|小时)(?![前来后余])"),
    re.compile(r"생후 (?P<number>\d{1,3})\s*(?P<unit>개월|주|일)"),
    re.compile(
        r"(?:мальчик|девочк|реб[её]н|пациент|больн|мужчин|женщин)\w*,? (?P<number>\d{1,3}) (?P<unit>лет|год|мес)", re.I
    ),
)
_PAEDIATRIC = re.compile(
    r"\bp(?:a)?ediatric|\bneonat|child and adolescent|\bp[äé]diatr|\bKinder(?:heil|chir)|儿科|小儿|新生儿|小児", re.I
)
_CSI = re.compile(
    r"\b(?:\w*(?:cancer|carcinoma|sarcoma|lymphoma|leuk(?:a)?emia|melanoma|myeloma|metasta\w+|neoplasm|glioma|"
    r"blastoma)|tumou?rs?|malignan\w+|chemotherap\w+|radiotherap\w+|oncolog\w*|surg(?:ery|ical|eon)\w*|resect\w+|"
    r"\w+ectom(?:y|ies)|post-?operative\w*|pre-?operative\w*|intra-?operative\w*|an(?:a)?esthesi\w+|laparo\w+|"
    r"incision|hernia|appendicitis|fractur\w+|trauma\w*|burns?|burned|gunshot|stab wound|orthop(?:a)?edic\w*|"
    r"transplant\w*|skeletal)\b|外科|骨科|整形|肿瘤|癌|术后|手术|骨折|化疗|放疗|麻醉|karzinom|krebs|\b(?:chir[uú]rg|"
    r"fraktur|c[aá]ncer)",
    re.I,
)
_BS = re.compile(
    r"\b(?:brain|cerebr\w+|intracerebral|neuro\w+|stroke|thrombolysis|isch(?:a)?emic attacks?|TIA|seizure\w*|"
    r"epilep\w+|headaches?|migraine|dementia|alzheimer\w*|parkinson\w*|multiple sclerosis|mening\w+|encephal\w+|GCS|"
    r"cranial nerve|nervous|psychiatr\w+|psychosis|hallucinations?|delusions?|depressi(?:on|ve)|bipolar|anxiety|"
    r"suicid\w+|schizophreni\w+|eyes?|ophthalm\w*|ocular|retin(?:a|al)\w*|visual|vision|cornea\w*|glaucoma|optic|"
    r"ears?|hearing|audio\w+|tinnitus|vertigo|otolaryng\w*|otitis|deaf\w*|senses|sensory)\b|神经|脑|癫痫|帕金森|头痛|精神|"
    r"抑郁|眼|耳|\b(?:Schlaganfall|accident vasculaire|ictus)\b",
    re.I,
)
_AM = re.compile(
    r"\b(?:atrial fibrillation|heart failure|coronary|angina|myocard\w+|endocarditis|hypertensi(?:on|ve)|pneumonia|"
    r"asthma|COPD|bronch\w+|pulmonary embol\w+|diabet\w+|thyroid\w*|cirrhosis|hepatitis|colitis|ulcer|kidney|renal|"
    r"nephr\w+|an(?:a)?emia|arthritis|lupus|gout|vasculitis|sepsis|septic|HIV|tuberculosis|hypertension|"
    r"blood pressure category|cardiovascular|respiratory system|digestive|urinary|endocrine|internal medicine|"
    r"cardiolog\w+)\b|内科|心血管|心肌|心力|冠心|肺炎|哮喘|肝炎|肝硬化|肾|糖尿病|高血压|甲状腺|"
    r"\b(?:Innere Medizin|kardiolog)",
    re.I,
)
_CUES = {"CSI": _CSI, "BS": _BS, "AM": _AM}
SUBSPECIALTIES: dict[str, re.Pattern] = {
    name: re.compile(rf"\b(?:{cues})", re.I)
    for name, cues in {
        "oncology": r"\w*cancer|\w*carcinoma|\w*sarcoma|tumou?r|metasta|malignan|chemotherap|radiotherap|oncolog|"
        r"neoplas",
        "cardiology": r"cardi|heart|coronary|myocardial infarct|angina|atrial|ventricular (?:tachy|fibr|hyper|dys|"
        r"septal)|valve|murmur|aort|ECG|electrocardio|hypertensi|palpitation|systolic|arrhythm",
        "pulmonology": r"pulmon|lung|pneumon|asthma|COPD|bronch|respirat|dyspn|cough|pleur|sputum|chest (?:CT|x-ray|"
        r"film)",
        "gastroenterology": r"gastr|bowel|colon|colitis|liver|hepat|cirrho|pancrea|bilir|biliary|esophag|oesophag|"
        r"abdom|diarrh|melena|digest|rectal",
        "nephrology": r"kidney|renal|nephr|glomerul|dialysis|proteinuria|h(?:a)?ematuria|urinary",
        "endocrinology": r"diabet|insulin|thyroid|adrenal|pituitar|cortisol|glucose|hormon|endocrin|parathyroid",
        "infectious disease": r"infect|bacter|virus|viral|HIV|tubercul|sepsis|septic|fung|parasit|malaria|antibiot|"
        r"abscess",
        "haematology": r"an(?:a)?emi|h(?:a)?emophil|coagul|thrombocytop|leuk(?:a)?emi|lymphoma|myeloma|sickle|"
        r"h(?:a)?emat|transfus|platelet|bleeding",
        "rheumatology": r"arthrit|lupus|rheumat|gout|vasculit|sclerod|joint|autoimmun|spondyl",
        "dermatology": r"rash|skin|dermat|eczema|psoria|pruri|skin lesion|blister|melanoma|nail|integument",
        "neurology": r"brain|cerebr|stroke|seizure|epilep|headache|migraine|neuro|mening|parkinson|dementia|GCS|TIA|"
        r"isch(?:a)?emic attack|thrombolysis|cranial nerve|paralys|h(?:a)?emorrhage on CT|intracranial",
        "psychiatry": r"psychiatr|depress|anxiety|bipolar|schizo|hallucinat|delusion|suicid|psychosis|mood|addict",
        "ophthalmology": r"eye|ophthalm|ocular|retin|cornea|glaucoma|vision|visual|cataract|optic",
        "otolaryngology": r"ear\b|ears\b|hearing|audio|tinnitus|otitis|otolaryng|sinus|nasal|throat|tonsil|vertigo|"
        r"hoarse|swallow",
        "surgery": r"surg|operati|resect|\w+ectomy|laparo|incision|hernia|append|an(?:a)?esthe|burn|trauma|wound",
        "orthopaedics": r"fractur|bone|orthop|hip\b|knee|shoulder|tendon|ligament|skelet|dislocat",
        "obstetrics and gynaecology": r"pregnan|gestation|obstet|gyn(?:a)?ecolog|uter|ovar|vagin|menstru|labou?r\b|"
        r"reproductive|cervi(?:x|cal (?:cancer|smear))",
        "neonatology": r"newborn|neonat|apgar|preterm|premature|birth",
        "urology": r"prostat|bladder|urethr|testic|scrot|urolog|erectile",
    }.items()
}
SYSTEM = "You sort clinical cases into specialties. Answer with one letter and nothing else."


def classify(record: RawCase) -> RawCase:
    """The record with its specialty, the rule that decided, and the sub-specialty ("" where no cue stands)."""
    specialty, by = (record.specialty, "source") if record.specialty else rule(record)
    return replace(record, specialty=specialty, specialty_by=by, task=subspecialty(record))


def rule(record: RawCase) -> tuple[str, str]:
    """Specialty and the rule that gives it: "age", "field", "cues" or "default"."""
    if _PAEDIATRIC.search(record.field):
        return "CAH", "field"
    if under_age(record.question):
        return "CAH", "age"
    counts = {name: _count(record, cues) for name, cues in _CUES.items()}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        return "AM", "default"
    return best, "field" if _CUES[best].search(record.field) else "cues"


def under_age(question: str) -> bool:
    """True for a patient under 18: by the first age of a person that the vignette gives, before others that of whom
    somebody brings, else by a word for the young."""
    question = _WORDED.sub(lambda found: str(_NUMBERS.split().index(found[0].lower()) + 1), question)
    ages = [found for found in _AGE.finditer(question) if _of_a_person(question, found)]
    brought = [found for found in ages if _BROUGHT.search(question, max(0, found.start() - 30), found.start())]
    if ages:
        first = (brought or ages)[0]
        return not (first["unit"] or "y").lower().startswith("y") or int(first["number"]) < 18
    others = (found for form in _AGES if (found := form.search(question)))
    if other := min(others, key=re.Match.start, default=None):
        said = other.groupdict()
        of_years = (said.get("unit") or "y").lower()[0] in "yjлг"
        return not of_years or int(said["number"] or said["years"]) < 18
    return bool(_YOUNG.search(question))


def _of_a_person(question: str, age: re.Match[str]) -> bool:
    """True for an age that is not that of a wound or a rash, nor of somebody's of whom the case only speaks."""
    return not _THING.match(question, age.end()) and not question[: age.start()].endswith("whose ")


def subspecialty(record: RawCase) -> str:
    """The field with most cues in question, options and the source's field; the first of equals; "" for none."""
    counts = {name: _count(record, cues) for name, cues in SUBSPECIALTIES.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else ""


def _count(record: RawCase, cues: re.Pattern) -> int:
    """Cues in question and options, once more FIELD times where they stand in what is asked or the source's field."""
    text = " ".join((record.question, *record.options))
    return len(cues.findall(text)) + FIELD * len(cues.findall(f"{ask(record.question)} {record.field}"))


def ballot(record: RawCase) -> list[dict]:
    """The conversation that asks a model for its vote."""
    options = "\n".join(f"{letter}. {TITLES[name]}" for letter, name in zip(LETTERS, SPECIALTIES, strict=False))
    text = f"{record.question}\n\nWhich specialty does this case belong to?\n{options}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def vote(text: str) -> str:
    """The specialty that a reply names; "" where it names none or several."""
    bare = re.sub(r"</?(?:think|answer)>", " ", spoken(text))
    letters = {LETTERS.index(letter) for letter in re.findall(r"\b([A-D])\b", bare)}
    named = {name for name in SPECIALTIES if re.search(rf"\b{name}\b", bare) or TITLES[name].lower() in bare.lower()}
    named |= {SPECIALTIES[index] for index in letters}
    return named.pop() if len(named) == 1 else ""


def settle(record: RawCase, votes: Sequence[str]) -> RawCase:
    """The record after the votes: any specialty that two of them name; where none has two, the rules stand."""
    winner = next((name for name in SPECIALTIES if list(votes).count(name) >= 2), "")
    return replace(record, specialty=winner, specialty_by="votes") if winner else record
