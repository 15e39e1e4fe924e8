"""Identifiers of a person in the text and headers of a case: found, reported by row, redacted or refused.

It finds what has a form or a marker: dates with a year, record, phone and social security numbers, e-mail and postal
addresses, names behind a title or a label, and the identifying attributes of DICOM, EXIF, IPTC, PNG and JPEG headers
(of DICOM those of PS3.15 annex E's basic profile, and every person name and date). Headers never leave in any mode,
since only pixels are stored, sent and shown (`processing.images.clean`); they are reported because their files stay
behind.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from PIL import ExifTags, Image, IptcImagePlugin

from mmedexpert_jax.processing import medical, nifti

MODES = {"report": "sent as they are", "redact": "redacted before they are sent", "refuse": "not sent"}
BLIND = (
    "Not seen: text burned into pixels (ultrasound, screenshots, scanned paper), a face in a photograph or a volume, "
    "names without a title or label, web addresses, ids of rows and file names, rare findings that identify by "
    "themselves, and the forms of languages other than English and German. A set without findings is not "
    "thereby anonymous."
)
_MONTH = (
    r"(?:jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|märz|mrz|apr(?:il)?|ma[iy]|june?|juni|july?|juli|aug(?:ust)?|"
    r"sep(?:t(?:ember)?)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?)"
)
_WORD = r"[A-ZÀ-Þ][\w'’-]*\w"
_ANY = r"[A-Za-zÀ-ÿ][\w'’.-]*"
_PARTICLE = r"(?:(?:van|von|der|den|de|del|della|di|da|dos|du|la|le|bin|ibn|zu|ter)[^\S\n]+|al-|el-|[dlO]['’])"
# "med. univ.", initials, and not the kind of a cell
_HEAD = rf"(?:(?:med|univ|dent|habil|phil|rer|nat)\. |[A-Z]\. ?|[B-HJ-WYZ] (?!Cell|Lymph))*{_PARTICLE}*"
# a third word of a name has small letters: an abbreviation behind a name is none of it
_THIRD = r"(?:[^\S\n]+[A-ZÀ-Þ][\w'’-]*[a-zß-ÿ]\b)?"
_LAST = rf"[^\S\n]+(?:[A-Z]\. ?)*{_PARTICLE}*{_WORD}{_THIRD}"
_YEAR, _DAY, _NUMBERED = r"(?:19|20)\d\d", r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])"
# before three figures that are no date
_SCORED = "".join(
    f"(?<!{word}{mark})"
    for word in ("apgar", "apgar score", "apgar scores", "apgar scores were", "apgar score of", "grade", "ratio")
    for mark in (" ", ": ")
)
# figures that are scores there: none has a leading zero, as "12/03/19" has
_SCORES = r"(?:(?:[1-9]|10)[./-]){2}[1-9]\d?(?!\d)"
_NO = r"(?:no|nr|num|number|nummer|id)\b\.?"
# labels of numbers that mean nothing else in a clinical text, and those that need "no", "#" or a colon behind them
_SURE = (
    r"mrn|uhid|ssn|nhs|med(?:ical|\.)? rec(?:ord|\.)?|accession|social security|aadhaar|npi|dea|"
    r"(?:fall|pat\.?|patienten|versicherten|versicherungs|akten)(?:nummer|-?nr\b\.?)"
)
_WEAK = (
    r"patient(?:'s)?|patient-?id|hospital|chart|medicare|medicaid|health card|passport|insurance|mr|pid|acc|hosp|"
    r"encounter|visit|case|account|acct|policy|member|study|specimen|record|file|id|ipd|opd"
)
# what stands behind "case:" or "specimen:" with digits of its own: levels of the spine, antigens, viruses, gases
_CLINICAL = (
    r"(?:[CTLS]\d{1,2}(?:[-/][CTLS]?\d{1,2})?|CD\d{1,3}|CA[- ]?\d{2,3}|H[IP]V(?:[-/]?\d){0,2}|HER-?2|(?:Sp|Pa|Fi)C?O2|"
    r"COVID-\d+|H\d{1,2}N\d{1,2}|[Tt]\d[a-c]?N\d[a-c]?(?:M\d)?|Ki-?67|p53|G\d{1,2}P\d{1,2})(?!\w)(?![-/][\w/-]*\d)"
)
_AGE = r"\d{1,3}[ -]?(?:year|yr|y/o|yo\b|month|week|day|jahr)|(?:19|20)\d\d(?![\w/-])"
_BONE = (  # behind a fracture, or a size
    r"(?:Foley|Sheath|Catheter|Dilator|Radius|Humer[iu]|Femur|Tibia|Fibula|Ulna|Patella|Clavicula|Becken|Rippen?\b|"
    r"Schenkelhals|(?:Ober|Unter)schenkel|Hüft|Lenden)"
)
_SERUM = (  # of which "Sr." is no man's title
    r"(?:Creatin\w+|Bilirub\w+|Sodium|Potassium|Calcium|Chlorid\w+|Magnes\w+|Phosph\w+|Album\w+|Globul\w+|Protein\w*|"
    r"Urea|Uric|Iron|Ferritin|Transferrin|Amylase|Lipase|Lactate|Electrol\w+|Glucose|Cholest\w+|Triglyc\w+|Cortisol|"
    r"Insulin|Prolactin|Testost\w+|Vitamin|Folate|Copper|Zinc|Cerulo\w+|Osmol\w+|Ammonia|Bicarb\w*|LDH|TSH|CRP|PSA|AFP|"
    r"CEA|CK|CPK|AL[TP]|AST|ACE|LH|FSH|Na|K|Mg|Ca|B12|T[34])\b"
)
# in capitals before a name in capitals alone: MS, MR and DR are diseases and scans, which may end a sentence
_TITLE = (
    r"(?:(?:MRS?|MS|DR)(?=\.[^\S\n]*(?:[A-Z]\. ?)*[A-ZÀ-Þ]{4})|PROF(?=\.)|"
    rf"Mr|Mrs|Ms|Miss|Mx|Drs?|Prof|Professor|Herrn?|Frau|Mme|Mlle|Monsieur|"
    rf"(?<!\d)(?<!\d[ -])(?:(?<!per )Hr\.|Fr\.(?! ?{_BONE}))|"
    rf"Madame|Señora?|Sra\.|Sr\.(?! ?{_SERUM})|"
    r"[Nn]urse(?! Practitioner| An[ae]|-))"
)
_DEPARTMENT = (  # what stands behind a role and is nobody
    r"(?:(?:\w+(?:al|ar|ic|ive|ency)|Family|Acute|Trauma) (?:Department|Team|Service|Care|Unit|Clinic)|"
    r"(?:(?:\w+(?:al|ar|ic|ive|ency)|Family|Acute|Trauma) )?(?:\w+(?:ology|iatry|iatrics|surgery)|Surgery|Medicine)"
    r"(?: (?:Department|Team|Service|Care|Unit|Clinic))?)\b"
)
_ANYBODY = r"(?:Alert|Awake|Stable|\w+ (?:Woman|Man|Male|Female|Boy|Girl|Infant))\b"
# "PAT" is a tachycardia, too
_OF_NAME = rf"\s*[:=]\s*(?-i:{_TITLE}(?!\w)|{_PARTICLE}*{_WORD},)"
# before an MD that is the doctor on call, or a dystrophy, a degeneration or a depression
_NOTE, _DISEASE = r"(?:Acute|Chronic|Call|Page|Notify|Predni)", r"(?:D(?:eg|ev|ep|is|ys)|\w+(?:itis|cular)\b)"
_ROLE = (
    r"(?:attending|(?:referring |family |treating )?physician|radiologist|pathologist|surgeon|consultant|doctor|"
    r"provider|gp|arzt|ärztin|hausarzt|next of kin|signed|befundet von)\s*[:=]|"
    r"(?:reported|dictated|signed|referred|transcribed|interpreted|reviewed|verified|attested)(?: electronically)? by:?"
)
_STREET = r"Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Place|Way|Terrace|Square|Close"


def _either(*forms: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern:
    """A pattern of several forms, looked for in their order."""
    return re.compile("|".join(forms), flags)


# What each kind finds, a form a line. Kinds are replaced in this order, so that an address holds no e-mail any more.
PATTERNS: dict[str, re.Pattern] = {
    "e-mail": _either(r"\b[\w.+-]+ ?(?:@|\(at\)|\[at\]) ?[\w-]+(?:\.[\w-]+)+\b"),
    "record number": _either(
        # "MRN 123 456", "case no. 12-3456"
        rf"\b(?:(?:{_SURE})(?:\s*{_NO})?\s*(?:is|:|#|=)*|"
        rf"(?:{_WEAK})\.?[\s-]*(?:{_NO}\s*[:#=]?|[:#=]+)(?!\s*#?\s*{_CLINICAL}))\s*#?\s*"
        rf"(?!{_AGE})(?=[\w/-]*\d[\w/-]*(?:\d| \d))[A-Za-z0-9][\w/-]{{2,}}(?: \d{{2,4}}\b)*",
        # "NHS 12 345 678", in groups from the first figures on
        rf"\b(?:{_SURE})(?:\s*{_NO})?\s*(?:is|:|#|=)*\s*\d\d?(?: \d{{2,4}}\b){{2,}}",
        # IBAN; DICOM's unique ids
        r"\b[A-Z]{2}\d\d(?: ?\d{4}){3,}(?: ?\d{1,4})?\b",
        r"\b[0-2](?:\.\d+){6,}\b",
        # social security; Medicare's
        r"\b\d{3}-\d{2}-\d{4}\b",
        r"\b[1-9][A-Z][A-Z\d]\d-?[A-Z][A-Z\d]\d-?[A-Z]{2}\d\d\b",
        flags=re.I,
    ),
    "date": _either(
        # "2019-03-12T10:15Z"
        rf"\b{_YEAR}(?P<mark>[-/.]){_NUMBERED}(?P=mark){_DAY}(?!\d)(?:T[\d:.]+Z?)?",
        # "12.3.19", but no scores of Apgar, doses or durations
        rf"(?:{_SCORED}|\b(?!{_SCORES}))\b(?:{_DAY}[./-]{_NUMBERED}|{_NUMBERED}[./-]{_DAY})[./-](?:{_YEAR}|\d\d)"
        rf"(?![\d./-]| ?(?:[mk]g|(?-i:ng)|mcg|ml|mm|cm|units?|years?(?! ago)|weeks?|months?|days?|"
        rf"hours?|min(?:utes?)?)\b)",
        # "12. 03. 2019", "3月12日", "03/2019"
        rf"\b{_DAY} ?[./-] ?{_DAY} ?[./-] ?{_YEAR}(?!\d)",
        rf"(?:{_YEAR}年)?{_NUMBERED}月{_DAY}日",
        rf"\b(?:0[1-9]|1[0-2])/{_YEAR}\b",
        # "DOB 120319", in forms that are no date elsewhere
        rf"\b(?:dob|born|birth|geb\.|geboren)\b[^\w\n]{{0,4}}"
        rf"(?:\d{{1,2}} \d{{1,2}} (?:{_YEAR}|\d\d)|\d{{1,2}}[ /-]?{_MONTH}\.?[ /-]?\d\d|\d{{6}}|\d{{8}})\b",
        # "12th of March 2019", "March 12, 2019"
        rf"\b(?:\d{{1,2}}(?:st|nd|rd|th|\.)?[ /-]?(?:of )?)?{_MONTH}\.?,?[ /-]?{_YEAR}\b",
        rf"\b{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?,? {_YEAR}\b",
        # DICOM's "20190312"
        rf"\b{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)(?:T[\d.]+Z?)?",
        flags=re.I,
    ),
    "phone": _either(
        # behind a word for it, in whatever groups
        r"\b(?:tel|phone|telephone|telefon|fax|mobile?|mob|handy|pager|whatsapp|ph(?=[.:]? ?[+(0])|"
        r"(?:cell|call|contact)(?!:? (?:\d\d? [-/] ){2}))\b"
        r"\.?(?:\s*(?:no|nr|number)\b\.?)?(?:\s+(?:is|at|on))?\s*:?\s*"
        r"(?=\D{0,2}(?:\d\D{0,3}){6}\d)\+?\(?\d[\d ()/.-]{5,}\d",
        # "+49 30 1234567"
        r"(?:\+|\b00)\d{1,3}[ -]?\(?\d{1,4}\)?(?:[ -]?\d{2,4}){2,4}\b",
        # of North America; with blanks alone only as it has them
        r"\(\d{3}\) ?\d{3}[- ]\d{4}\b",
        r"(?:\b1-)?\b\d{3}([-.])\d{3}\1\d{4}\b",
        r"(?:\b1 )?\b[2-9]\d\d [2-9]\d\d \d{4}\b(?! ?(?:cells|copies|units?|IU|mg|ml|/))",
        flags=re.I,
    ),
    "address": _either(
        # "12 Old Mill Road, Apt 3"; in small letters only of streets that are nothing else; post boxes
        rf"\b\d{{1,5}}[A-Za-z]? (?:{_WORD} ){{1,3}}(?:{_STREET})\b\.?(?:,? (?:Apt|Apartment|Flat|Unit)\.? \w+)?",
        r"\b\d{1,5} (?:[a-z'’-]+ ){1,2}(?i:street|avenue|boulevard|terrace)\b",
        r"\b(?i:p\.? ?o\.? box) \d+",
        # French; German street and place
        r"\b\d{1,4}(?: ?bis)?,? (?i:rue|avenue|boulevard|place|chemin|allée) (?:(?:de|du|des|la|le|les) )*[\w'’-]+",
        r"\b[A-ZÄÖÜ][a-zäöüß]+(?:straße|strasse|str\.|weg|platz|gasse|allee) \d{1,4}[a-z]?\b",
        r"(?:(?<=, )|(?<=\bin )|(?<=\baus )|\bD-)\d{5} (?!Units?\b)[A-ZÄÖÜ][a-zäöüß]{2,}",
        # behind a word for it, all of the line
        r"\b(?i:address|anschrift|adresse|wohnhaft in)\s*[:=]?\s*(?:(?<=[:=])|(?<=[:=] ))[^\n;]{5,80}",
        # a state and its code; British codes, with the letters that they end with: no MG, MM, IU
        r"\b[A-Z]{2} \d{5}(?:-\d{4})?\b(?! ?(?:(?:units?|IU|U|mg|mcg|µg|ml|cells|copies)\b|/))",
        r"\b[A-Z]{1,2}\d[A-Z\d]? \d[ABD-HJLNP-UW-Z]{2}\b",
    ),
    "name": _either(
        # "Dr. med. Anna van Dyk"
        rf"\b{_TITLE}(?:\.? {_TITLE})*\.?[^\S\n]*{_HEAD}{_WORD}(?:{_LAST})?",
        # "Patient's name: anna meier", but not of a drug and its dose
        rf"\b(?:(?i:(?:(?:patient|pt|father|mother|husband|wife|guardian)(?:['’]s)?|"
        rf"full|first|last|given|family|maiden) ?names?|surname|(?:nach|vor|familien|geburts)name)|Name|NAME)"
        rf"\s*(?:[:=]|-(?= ))\s*(?!(?:[\w-]+|[A-Z][\w-]+ [a-z]+) \d[\d.,]* ?(?:(?:m?g|mcg|µg|ml|IU|units?)\b|%))"
        rf"(?:{_TITLE}\.? ?)*{_ANY}(?:,? {_PARTICLE}*{_ANY}){{0,2}}(?:(?<= [A-Z]\.) {_WORD})?",
        # behind "patient": "patient name is Anna", "Pat. Meier, Anna, geb.", "Pt: Meier, Anna"
        rf"\b(?i:patient(?:'s)? name is) {_WORD}(?:{_LAST})?",
        rf"\bPat\. {_WORD}, {_WORD}(?=,? (?:geb|\[date))",
        rf"\b(?i:patient(?:in)?|pt|pat\.?(?={_OF_NAME}))\s*[:=]\s*(?!{_ANYBODY})(?:{_TITLE}\.? ?)*"
        rf"{_PARTICLE}*{_WORD},? (?:[A-Z]\.? )?{_PARTICLE}*[A-ZÀ-Þ][\w'’-]*{_THIRD}",
        # "Reported by: Cardiology, OÄ A. Meier"
        rf"\b(?i:{_ROLE})\s*(?:(?>{_DEPARTMENT}),?[^\S\n]+)*+(?!{_DEPARTMENT})"
        rf"(?:(?:{_TITLE}|[OCA][AÄ]|PD)\.?[^\S\n]*)*{_HEAD}{_WORD}"
        rf"(?:,? (?:[A-Z]\. ?)*{_PARTICLE}*{_WORD}){{0,2}}",
        # DICOM's "Meier^Anna^M"
        rf"\b{_WORD}(?:\^{_WORD})+(?:\^[A-Z]\b)?",
        # "Mother: Anna Meier"
        rf"\b(?i:(?:mother|father|husband|wife|guardian):|c/o) (?!{_ANYBODY}){_WORD}{_LAST}",
        # "Anna M. Meier, MD"; without a comma alone in its line
        rf"\b{_WORD}(?: [A-Z]\.)? {_WORD}, ?(?:M\.?D|D\.?O(?! NOT\b)|R\.?N|MBBS|FRCS|FRCR|Ph\.?D)\b\.?",
        rf"(?m:^)(?!{_NOTE}){_WORD}(?: [A-Z]\.)? (?!{_DISEASE}){_WORD} M\.?D\b\.?(?m:$)",
    ),
}
# DICOM attributes that identify, beside all of the types person name, date and date-time
_DICOM = (
    *("PatientID", "OtherPatientIDs", "PatientAddress", "PatientTelephoneNumbers", "PatientMotherBirthName"),
    *("AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
    *("StationName", "DeviceSerialNumber", "MilitaryRank", "EthnicGroup", "Occupation", "AdditionalPatientHistory"),
    *("PatientComments", "ImageComments"),
)
_EXIF = (
    *("Artist", "Copyright", "ImageDescription", "UserComment", "DateTime", "DateTimeOriginal", "CameraOwnerName"),
    *("BodySerialNumber", "XPAuthor", "XPComment", "XPTitle", "XPSubject", "HostComputer", "ImageUniqueID"),
)


@dataclass(frozen=True)
class Found:
    """Something that may identify a person."""

    kind: str  # a key of PATTERNS, or "header"
    place: str  # key of the row, or image and attribute; never the value, which would carry it into a report


def scan(text: str, place: str) -> list[Found]:
    """The identifiers in a text, by kind and in order; what one kind has taken is not counted for the next."""
    return [Found(kind, place) for kind in _replaced(text)[1].elements()]


def redact(text: str) -> str:
    """The text with each finding replaced by its kind in brackets, such as "[date]"."""
    return _replaced(text)[0]


def _replaced(text: str) -> tuple[str, Counter[str]]:
    counts = Counter[str]()
    for kind, pattern in PATTERNS.items():
        text, counts[kind] = pattern.subn(f"[{kind}]", text)
    return text, counts


def scan_texts(texts: Iterable[tuple[str, str | Sequence[str]]]) -> list[Found]:
    """The identifiers in the texts of a row: pairs of key and text, or a list of texts."""
    return [
        found
        for key, value in texts
        for text in ([value] if isinstance(value, str) else value)
        for found in scan(text, key)
    ]


def scan_header(data: bytes, name: str) -> list[Found]:
    """Identifying attributes of an encoded image's header; empty where it cannot be read."""
    with suppress(Exception):  # what cannot be read is refused by the decoder, by name
        if nifti.header_size(data):
            attributes = _nifti(data, name)
        else:
            attributes = _dicom(data, name) if medical.reader(data) else _pillow(data)
        return [Found("header", f"{name}, {attribute}") for attribute in dict.fromkeys(attributes)]
    return []


def _dicom(data: bytes, name: str) -> Iterator[str]:
    """Attributes of a DICOM file, or of a zipped series, where each slice has them."""
    for dataset in medical.dicom_datasets(data, name):
        for element in dataset.iterall():
            identifies = element.VR in ("PN", "DA", "DT") or element.keyword in _DICOM
            if identifies and not element.tag.is_private and element.value not in (None, ""):
                yield str(element.keyword)
        if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
            yield "BurnedInAnnotation: its pixels hold text"


def _nifti(data: bytes, name: str) -> Iterator[str]:
    """Fields of free text with something in them; programs write their own name into "descrip", which is not told."""
    header = nifti.read_header(data, name)
    for key in ("db_name", "descrip", "aux_file", "intent_name"):
        text = header[key].item().decode("latin-1").strip() if key in header else ""
        if text and (key == "db_name" or scan(text, key)):
            yield f"NIfTI {key}"


def _pillow(data: bytes) -> Iterator[str]:
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
        tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
        for tag, value in tags.items():
            attribute = ExifTags.TAGS.get(tag, "")
            if attribute in _EXIF and value not in ("", b"", None):
                yield f"EXIF {attribute}"
        if exif.get_ifd(ExifTags.IFD.GPSInfo):
            yield "EXIF GPS position"
        yield from (f"text {key}" for key in getattr(image, "text", {}))
        if image.info.get("comment"):
            yield "comment"
        if image.info.get("xmp"):
            yield "XMP"
        with suppress(Exception):  # of what is no IPTC the rest of the findings stand
            yield from ["IPTC"] if IptcImagePlugin.getiptcinfo(image) else []  # captions, names of people and places


def line(rows: Mapping[str, Sequence[Found]], receiver: str, mode: str) -> str:
    """One line for a user on what the rows, by name, hold that `receiver` is to be sent; "" where they hold nothing."""
    held = {name: found for name, found in rows.items() if found}
    if not held:
        return ""
    kinds = ", ".join(f"{one['kind']} in {one['rows']}" for one in counts(held.values()))
    some = ", ".join(list(held)[:5]) + (" ..." if len(held) > 5 else "")
    said = f"privacy: {len(held)} of {len(rows)} rows for {receiver} may identify a person ({kinds})"
    return f"{said}; {MODES[mode]}: {some}"


def counts(rows: Iterable[Sequence[Found]]) -> list[dict[str, str | int]]:
    """Findings of all rows as a table: kind, rows that hold it, findings."""
    by_row, total = Counter[str](), Counter[str]()
    for found in rows:
        by_row.update({one.kind for one in found})
        total.update(one.kind for one in found)
    return [{"kind": kind, "rows": by_row[kind], "findings": total[kind]} for kind in sorted(total)]
