"""Published shapes of clinical multiple-choice cases: how each is recognised, and what its fields mean."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmedexpert_jax import answers
from mmedexpert_jax.data import cells, forms
from mmedexpert_jax.data.case import LETTERS, SPECIALTIES
from mmedexpert_jax.data.cells import as_text, bracketed, by_label, items
from mmedexpert_jax.data.tables import ABSENT

CHOICES = re.compile(r"\s*\n\s*(?:Answer Choices|Options)\s*:\s*(?=\(A\)|A[.)])", re.I)
_LABEL = re.compile(r"\A\s*\(?[A-J]\s*[.):]\s*")  # a letter before a text, never inside it, as in "hepatitis C: acute"


@dataclass
class Raw:
    """A row's content before it is checked."""

    # question, options, explanation, field, step, specialty, split: texts, as found
    question: str
    options: Sequence[str]
    key: str | int  # letter, text or number of the right option
    letters: Sequence[str] = ()  # of the options, where the source names them; else they count up from A
    from_zero: bool = False  # the shape says that a number counts the options from 0
    of_index: bool = False  # the key stands under a name of letters and numbers, so that a number is no option's text
    key_text: str = ""  # text of the right option, where the source gives it beside the letter
    images: Sequence[Any] = ()  # bytes, {bytes, path} structs, or names of files
    folder: str = ""  # of its images in a folder of images, where that is not named after the id; ""
    id: str = ""  # the row's own; ""
    explanation: str = ""
    field: str = ""
    step: str = ""
    specialty: str = ""
    split: str = ""
    source: str = ""
    # licence, redistributable: where the row itself says so
    licence: str = ""
    redistributable: bool | None = None
    repairs: list[str] = dataclasses.field(default_factory=list)  # what had to be repaired to read it


@dataclass(frozen=True)
class Format:
    """One shape."""

    name: str  # by which `format=path` forces it
    title: str  # what it is and who publishes it
    matches: Callable[[Mapping[str, Any]], bool]  # whether a row has the shape
    # row -> Raw; raises KeyError, TypeError, ValueError or IndexError on a row that it cannot read
    read: Callable[[Mapping[str, Any]], Raw]
    licence: str  # of the files as published
    redistributable: bool  # whether that licence lets rows be passed on


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: all(row.get(name) is not None for name in names)


def _texts(row: Mapping[str, Any], *same: str, **others: str) -> dict[str, Any]:
    """Fields of Raw, the texts of the keys of a row: `same` by their own names, `others` by field."""
    return {field: text(row.get(key)) for field, key in (*zip(same, same, strict=True), *others.items())}


def _medqa(row: Mapping[str, Any]) -> Raw:
    letters, texts = list(row["options"]), list(row["options"].values())
    return Raw(
        row["question"],
        texts,
        row["answer_idx"],
        letters,
        of_index=True,
        **_texts(row, key_text="answer", step="meta_info"),
    )


def _multiple_choice(row: Mapping[str, Any]) -> Raw:
    endings = [row[name] for name in sorted(row) if re.fullmatch(r"ending\d+", name)]
    question = " ".join(part for part in (text(row["sent1"]), text(row.get("sent2"))) if part)
    return Raw(question, endings, int(row["label"]), from_zero=True, **_texts(row, "id"))


def _only(value: Any) -> Any:
    """A key, or the one in a list. Raises ValueError where the list holds none or several."""
    if isinstance(value, list) and len(value) != 1:
        raise ValueError(f"{len(value)} right answers; a case has one")
    return value[0] if isinstance(value, list) else value


def _bigbio(row: Mapping[str, Any]) -> Raw:
    options = row["options"]
    answer = _only(row["answer"])
    texts, letters = [o["value"] for o in options], [o["key"] for o in options]
    if isinstance(answer, Mapping):
        return Raw(row["question"], texts, answer["label"], letters, key_text=text(answer.get("text")))
    key = row.get("answer_idx")
    key_text = text(answer) if key else ""
    step = text(row.get("meta_info"))
    return Raw(row["question"], texts, key or answer, letters, key_text=key_text, of_index=bool(key), step=step)


def _in_question(row: Mapping[str, Any]) -> Raw:
    """Options inside the text, the label in a list; options may stand beside them as {letter, content}."""
    question, *rest = CHOICES.split(row["question"], maxsplit=1)
    options = row.get("options") or []
    if options:
        texts, letters = [o["content"] for o in options], [o["letter"] for o in options]
    else:
        letters, texts = bracketed(rest[0] if rest else "")
    label = _only(row["label"])
    return Raw(question, texts, label, letters, of_index=True, images=_images(row), **_texts(row, "id"))


def _jama(row: Mapping[str, Any]) -> Raw:
    folder = text(row.get("link")).rstrip("/").rpartition("/")[2]
    return dataclasses.replace(_lettered(row), folder=folder, **_texts(row, "field"))


def _lettered(row: Mapping[str, Any]) -> Raw:
    """Options in opa, opb, ... or in `options`, letter in answer_idx, text in answer."""
    columns = [f"op{letter.lower()}" for letter in LETTERS if text(row.get(f"op{letter.lower()}"))]
    options = row.get("options") or []
    if columns:
        given = [row[name] for name in columns]
    else:
        given = list(options.values() if isinstance(options, Mapping) else options)
    texts = [_LABEL.sub("", option) for option in given]
    return Raw(
        row["question"],
        texts,
        row["answer_idx"],
        of_index=True,
        key_text=_LABEL.sub("", text(row.get("answer"))),
        images=_images(row),
        repairs=["option-prefix"] if texts != given else [],
        **_texts(row, "id", "explanation"),
    )


def _medxpertqa(row: Mapping[str, Any]) -> Raw:
    options = row["options"]
    pairs = options.items() if isinstance(options, Mapping) else ((o["letter"], o["content"]) for o in options)
    given = {letter: text for letter, text in pairs if text is not None}
    label = _only(row["label"])
    question, fields = CHOICES.split(row["question"], maxsplit=1)[0], _texts(row, "id", field="body_system")
    return Raw(question, list(given.values()), label, list(given), of_index=True, images=_images(row), **fields)


def _medvlthinker(row: Mapping[str, Any]) -> Raw:
    options = items(row["options"])
    return Raw(
        row["question"],
        list(options.values()),
        row["answer_label"],
        list(options),
        of_index=True,
        images=_images(row),
        id=f"{text(row.get('dataset_name'))}-{text(row.get('dataset_index'))}",
        **_texts(row, key_text="answer", source="dataset_name"),
    )


def _plain(row: Mapping[str, Any]) -> Raw:
    """Options in one column, or in the columns A, B, ...; a specialty that is none of the four is a field."""
    options = row.get("options") or {letter: row[letter] for letter in LETTERS if text(row.get(letter))}
    options = by_label(items(options))
    by_letter = isinstance(options, Mapping)
    texts = list(options.values()) if by_letter else list(options)
    written = list(map(str, texts))
    bare = answers.unlabelled(written)
    repairs = ["option-prefix"] if bare != written else []
    letters = list(options) if by_letter else ()
    specialty = text(row.get("specialty"))
    field = text(row.get("field")) or (specialty if specialty.upper() not in SPECIALTIES else "")
    return Raw(
        row["question"],
        bare if repairs else texts,
        row["answer"],
        letters,
        images=_images(row),
        field=field,
        licence=text(row.get("licence") or row.get("license")),
        redistributable=flag(row.get("redistributable")),
        repairs=repairs,
        **_texts(row, "id", "explanation", "step", "specialty", "split", "source"),
    )


def _images(row: Mapping[str, Any]) -> Sequence[Any]:
    """Images of a row: `images` or `image`, one or a list, perhaps as JSON text in a CSV cell."""
    found = cells.images(forms.image_cell(row))
    listed_images = found if isinstance(found, list) else [found]
    return [i["image_path"] if isinstance(i, Mapping) and "image_path" in i else i for i in listed_images]


def _all(*tests: Callable[[Mapping[str, Any]], bool]) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: all(test(row) for test in tests)


def _keyed(row: Mapping[str, Any]) -> bool:
    """Options are a list of {key, value}."""
    options = row.get("options")
    return isinstance(options, list) and bool(options) and isinstance(options[0], Mapping) and "key" in options[0]


def _letters(row: Mapping[str, Any]) -> int:
    options = row.get("options")
    return sum(text is not None for text in options.values()) if isinstance(options, Mapping) else 0


_MEDQA = _all(_has("question", "answer_idx", "answer"), lambda row: isinstance(row.get("options"), dict))
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "medvlthinker",
            "MedVLThinker's unified rows, options as JSON text",
            _has("question", "options", "answer_label", "dataset_name"),
            _medvlthinker,
            "differs by dataset_name; see its source",
            False,
        ),
        Format(
            "medqa-bigbio",
            "MedQA-USMLE as BigBIO has it, options as a list of {key, value}",
            _all(_has("question", "answer"), _keyed),
            _bigbio,
            "MIT",
            True,
        ),
        Format(
            "medxpertqa",
            "MedXpertQA dev, Text and MM",
            _all(_has("question", "options", "label"), lambda row: "medical_task" in row or "body_system" in row),
            _medxpertqa,
            "MIT",
            True,
        ),
        Format(
            "medqa-in-question",
            "MedQA-USMLE as MedXpertQA's repository ships it, options inside the text",
            _all(_has("question", "label"), lambda row: bool(CHOICES.search(str(row["question"])))),
            _in_question,
            "MIT",
            True,
        ),
        Format(
            "medqa-multiple-choice",
            "MedQA-USMLE in the multiple-choice form of the hub, sent1 and ending0 to ending3",
            _has("sent1", "ending0", "ending1", "label"),
            _multiple_choice,
            "CC-BY-SA-4.0",
            True,
        ),
        Format(
            "medqa-phrases",
            "MedQA-USMLE, 4 options with MetaMap phrases (phrases_no_exclude_*.jsonl)",
            _all(_MEDQA, _has("metamap_phrases")),
            _medqa,
            "MIT",
            True,
        ),
        Format(
            "medqa-5-options",
            "MedQA-USMLE, US/*.jsonl",
            _all(_MEDQA, _has("meta_info"), lambda row: _letters(row) >= 5),
            _medqa,
            "MIT",
            True,
        ),
        Format(
            "medqa-4-options",
            "MedQA-USMLE, 4 options, as mirrored on the hub",
            _all(_MEDQA, _has("meta_info")),
            _medqa,
            "CC-BY-4.0",
            True,
        ),
        Format(
            "jama",
            "JAMA Clinical Challenge, jama_raw.csv or .json of its scraper, and a folder of images",
            _all(_has("question", "opa", "opb", "answer_idx"), lambda row: "diagnosis" in row or "field" in row),
            _jama,
            "AMA; licensed copies only, not to be passed on",
            False,
        ),
        Format(
            "medbullets",
            "Medbullets, 4 or 5 options",
            _all(_has("question", "answer_idx"), lambda row: row.get("opa") is not None or "options" in row),
            _lettered,
            "none stated; not to be passed on",
            False,
        ),
        Format(
            "plain",
            "one's own cases: question, options, answer and optional id, images, field, specialty, licence, ...",
            _all(_has("question", "answer"), lambda row: bool(row.get("options") or text(row.get("A")))),
            _plain,
            "",
            False,
        ),
        Format(
            "open",
            "one's own open questions: as plain without options; answer is the reference, not the letter of an option",
            _all(_has("question", "answer"), lambda row: not row.get("options") and not lone_letter(row)),
            lambda row: _plain({**row, "answer": as_text(row["answer"])}),
            "",
            False,
        ),
    )
}


def text(value: Any) -> str:
    """The value as text without white space around it; "" for None."""
    return "" if value is None else str(value).strip()


def lone_letter(row: Mapping[str, Any]) -> bool:
    """True where a row's answer is the letter of an option, or nothing."""
    return bool(re.fullmatch("[A-Ja-j]?", text(row.get("answer"))))


def flag(value: Any) -> bool | None:
    """A yes or no, also as a spreadsheet or pandas writes it; None for an empty cell, and no for any other word."""
    said = text(value).lower()
    return None if said in ABSENT else said in ("true", "yes", "y", "1", "1.0")


def recognise(row: Mapping[str, Any]) -> Format | None:
    """The first format that a row has the shape of; None for none."""
    return next((known for known in FORMATS.values() if known.matches(row)), None)


def keys(names: Iterable[str]) -> str:
    """Keys of a row for a message."""
    shown = sorted(map(str, names))
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
