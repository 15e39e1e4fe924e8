"""A row of the documented schema as a case: every key checked, images as references that are not opened yet."""

import difflib
import functools
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmedexpert_jax import answers, border
from mmedexpert_jax.data import forms, question_text, tables
from mmedexpert_jax.data.case import LETTERS, PARADIGMS, SPECIALTIES, Case
from mmedexpert_jax.data.cells import as_text, items
from mmedexpert_jax.data.places import InFolder
from mmedexpert_jax.data.reference_answers import unnamed
from mmedexpert_jax.data.words import word_count
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.images import ADDRESS, BASE64, LONGEST, VIEWED, ImageRef, content
from mmedexpert_jax.processing.windows import View
from mmedexpert_jax.statements import INVISIBLE

MAX_ID = 200  # characters: ids become file names and cells of tables

# The schema of a row, which docs/own.md shows as a table: key -> (value, whether it must be there, meaning).
KEYS: dict[str, tuple[str, bool, str]] = {
    "id": ("text", True, f"unique in its file, at most {MAX_ID} characters"),
    "question": ("text", True, "vignette and question, without the options"),
    "options": (
        "list of 2 to 10 texts, or an object by letter",
        False,
        "left out, or empty, for an open question",
    ),
    "answer": ("text", True, "letter of the right option; of an open question the reference answer"),
    "specialty": (
        "text",
        False,
        "`AM`, `CAH`, `BS` or `CSI` for the four experts; any other name where they are not trained",
    ),
    "task": ("text", False, "kind of question"),
    "images": (
        "list of images",
        False,
        "each a path from the file's folder, a data URI, bytes, or an object with `path` or `bytes` and `window`, "
        "`slices`, `plane`",
    ),
    "trace": ("text", False, "reasoning without tags; DSA needs it"),
    "paradigm": (
        "text",
        False,
        "of the trace: `differential`, `intuitive`, `analytical` or `bayesian`; a review needs it",
    ),
    "paradigms": ("list of texts", False, "those that apply to the case, for GBA; left out: all"),
}
# Columns of this project's own sets, which say where a case comes from, and one that scores read (`Case.golds`).
PROVENANCE = {
    *("source", "source_id", "licence", "doi", "redistributable", "specialty_by", "kind", "case_id", "trace_id"),
    *("teacher", "review", "flags", "split", "accepted"),
}
ALIASES = {
    **dict.fromkeys(("image", "picture", "pictures", "image_path", "img"), "images"),
    **dict.fromkeys(("choices", "candidates"), "options"),
    **dict.fromkeys(("label", "solution", "gold", "target", "answer_idx", "correct"), "answer"),
    **dict.fromkeys(("reasoning", "rationale", "cot", "thinking", "chain_of_thought"), "trace"),
}
# Words that a column of one option begins with, before its letter or number: "Antwort A", "opción_1".
OPTION_WORD = (
    "op|opt|option|choice|alternative|ending|antwortmöglichkeit|auswahl|choix|proposition|opción|opcion|alternativa|"
    "opzione|opção|opcao|optie|seçenek|вариант|选项|選項|選択肢|보기"
)
ANSWER_WORD = "answer|ans|antwort|réponse|reponse|respuesta|risposta|resposta|antwoord|svar|odpowiedź|ответ"
# several people's answers beside `answer` have its own word and numbers
_OPTION_COLUMN = re.compile(
    rf"(?:{OPTION_WORD}|{ANSWER_WORD})?[_ ]?(?:[a-j]|(?<!answer)(?<!answer[_ ])(?<!ans)(?<!ans[_ ])\d{{1,2}})",
    re.IGNORECASE,
)
_WRONG = r"(?:distractor|(?:incorrect|wrong)(?:[_ ]?(?:answer|option|choice))?)"
_WRONG_COLUMN = re.compile(rf"{_WRONG}[_ ]?(?:[a-j]|\d{{1,2}})", re.IGNORECASE)
# Values of unknown keys by which a row means images, or videos, which are not read.
_PICTURE = re.compile(
    r"data:image/|.+\.(png|jpe?g|webp|bmp|gif|tiff?|dcm|dicom|nii|nii\.gz)$", re.IGNORECASE | re.DOTALL
)
_HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # beginnings of encoded pictures
NUMBERED = re.compile(r"(?:image|img|picture|figure)s?[_ ]?\d{1,2}")
SAID = 3  # words of a value from which on it may be a trace
_VIDEO = re.compile(r"data:video/|.+\.(mp4|avi|mov|mkv|webm)$", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<\s*+(?:/\s*+)?(?:think|answer)\s*+>", re.IGNORECASE)
TEXTS = f"give a list of 2 to {len(LETTERS)} texts (`mmedexpert convert-data` makes one of columns or of a text)"


def case_of(row: Mapping[str, Any] | str, where: str, name: int | str, folder: Path, needs_four: bool = False) -> Case:
    """The case in a row, its images not opened yet.

    Args:
        row: of the schema KEYS or of one of `forms.FORMS`; a text is the reason why the row cannot be read.
        where: file and row, for errors and names of images.
        name: of the row, such as its number, which makes the id of a foreign form's that has none.
        folder: of its images.
        needs_four: refuse a specialty that is none of SPECIALTIES.

    Raises:
        DataError: what breaks the schema, named by row and key.
    """
    if isinstance(row, str):
        raise DataError(f"{where}: {row}")
    try:
        return _case(forms.ours(row, name) if forms.form(row) else row, where, folder, needs_four)
    except DataError as error:
        raise DataError(f"{where}, {error}") from None


def _case(row: Mapping[str, Any], where: str, folder: Path, needs_four: bool) -> Case:
    """The case in a row of our own keys. Raises DataError, a line that begins with the key."""
    if "question" not in row and (fix := forms.missing(row)):
        raise DataError(f"key question: there is none{fix}")
    _refuse_near(row)
    question, images = question_text.inline(_text(row, "question"), _list(row, "images"))
    forms.refuse_beside(row)
    question = question_text.placed(question, {len(images)})
    trace = _text(row, "trace", "")
    if tag := _TAG.search(trace):
        raise DataError(f"key trace: holds {tag[0]}; give the reasoning without tags, which are added")
    options = _options(row)
    answer = _letter(row, options) if options else _open_answer(row, question)
    if line := question_text.gives_away(question, options, answer):
        raise DataError(f"key question: {border.shown(line)} gives its own answer away; take it out")
    id, listed = _text(row, "id"), _list(row, "paradigms")
    if len(id) > MAX_ID:
        raise DataError(f"key id: {len(id)} characters; give at most {MAX_ID}")
    return Case(
        id=id,
        question=question,
        options=options,
        answer=answer,
        specialty=_specialty(row, needs_four),
        task=_text(row, "task", ""),
        images=tuple(_image(item, where, folder) for item in images),
        paradigm=_one_of(_text(row, "paradigm", ""), "paradigm", ("", *PARADIGMS)),
        trace=trace,
        paradigms=tuple(dict.fromkeys(_one_of(p, "paradigms", PARADIGMS) for p in listed or PARADIGMS)),
        columns={key: value for key, value in row.items() if key not in KEYS and value is not None} | accepted(row),
    )


# A text that is the state of a review and no further right answer.
_VERDICT = re.compile(r"\s*(?:[01](?:\.0)?|(?:not\s+)?accept(?:ed)?|reject(?:ed)?|pending)\s*", re.IGNORECASE)


def accepted(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """Further right answers, as a row's column `accepted`, also where a table has it as a text, but for one that is a
    verdict ("yes", "1", "accepted"); empty where there are none. Raises DataError."""
    cell = row.get("accepted")
    if isinstance(cell, str) and (_VERDICT.fullmatch(cell) or answers.yes_no_key(cell) or tables.absent(cell)):
        return {}
    try:
        found = items(cell)
    except DataError as error:
        raise DataError(f"key accepted: {error}") from None
    texts = [as_text(one) for one in found if one is not None] if isinstance(found, list | tuple) else []
    return {"accepted": [str(text) for text in texts]} if texts else {}


def _letter(row: Mapping[str, Any], options: tuple[str, ...]) -> str:
    answer = _text(row, "answer")
    if len(answer) != 1 or answer not in LETTERS[: len(options)]:
        letters = ", ".join(LETTERS[: len(options)])
        raise DataError(f"key answer: {border.shown(answer)} is not among {letters}")
    return answer


def _open_answer(row: Mapping[str, Any], question: str) -> str:
    """The reference answer of an open question. Raises DataError of one that belongs to a choice whose options are
    elsewhere: in the question, or in columns of their own."""
    answer = _text({"answer": as_text(row.get("answer"))}, "answer")
    if tag := _TAG.search(answer):
        raise DataError(f"key answer: holds {tag[0]}; give the answer without tags, which are added")
    answer = unnamed(answer)
    if len(answer) == 1:
        labels = unicodedata.normalize("NFKC", answer).upper() in LETTERS
        if labels or (answer.isalnum() and question_text.lists(question, answer)):
            raise DataError(f"key options: no options for the answer {answer!r}; {TEXTS}")
    if columns := options_beside(row, answer):
        raise DataError(f"key options: none, but columns {columns} look like options; {TEXTS}")
    return answer


def _refuse_near(row: Mapping[str, Any]) -> None:
    """An unknown key that stands for one that the row lacks would be a silent loss. Raises DataError."""
    for key in row:
        if key in KEYS or key in PROVENANCE or row[key] is None:
            continue
        named, texts = border.cut(str(key)), _texts(row[key])
        meant = _meant(str(key).lower(), row[key])
        lost = left_out(key, row[key], row.get("images"))
        if lost or (meant and row.get(meant) in (None, "", [])):
            name = "images" if lost else meant
            fix = " (`mmedexpert convert-data` does)" if str(key).lower() in ALIASES else ""
            raise DataError(f"key {named}: not a key of a row; call it {name}{fix}")
        if any(map(_VIDEO.match, texts)):
            raise DataError(f"key {named}: videos are not read; give frames of it as images")


def options_beside(row: Mapping[str, Any], answer: Any) -> str:
    """The columns of an open question that look like the options of a choice, of which its answer is one; "" for
    none. Values that repeat, or two under numbers, may be the answers of several people."""
    said = {str(key): text for key, value in row.items() if (text := _said(value))}
    wrong = [key for key in said if _WRONG_COLUMN.fullmatch(key.strip())]
    family = [key for key in said if _OPTION_COLUMN.fullmatch(key.strip())]
    texts = {said[key] for key in family}
    least = 3 if any(key.strip()[-1].isdecimal() for key in family) else 2
    if len(texts) == len(family) >= least and _said(answer) in texts:
        return border.cut(", ".join(family))
    return border.cut(", ".join(wrong)) if len(wrong) > 1 else ""


def _said(cell: Any) -> str:
    """A cell as it is compared; "" where it holds no text or number."""
    text = str(cell) if isinstance(cell, str | int | float) else ""
    return "" if tables.absent(text) else _seen(text).casefold()


def left_out(key: str, value: Any, images: Any) -> bool:
    """True for a value that names or holds pictures which are no images of the row: of a row without any, or under a
    numbered key, as "image2"."""
    texts = _texts(value)
    known = _texts(images or [])
    wanted = images in (None, "", [], ()) or NUMBERED.fullmatch(str(key).lower())
    named = any(map(_PICTURE.match, texts)) and not {*texts} <= {*known}
    return bool(wanted) and (named or any(map(_encoded, value if isinstance(value, list) else [value])))


def _encoded(value: Any) -> bool:
    """True for the bytes of a picture, also as `datasets` keeps them."""
    value = value.get("bytes") if isinstance(value, Mapping) else value
    return isinstance(value, bytes) and value.startswith(_HEADS)


def _meant(key: str, value: Any) -> str:
    """The key of a row that an unknown one looks like or is an alias of; "" for none. A row may do without some: one
    that only looks like these has a value to fit, too, so that "race" is no trace and "image_id" no image."""
    close = _close(key)
    meant = ALIASES.get(close, close)
    if not close or key in (close, f"{close}s") or KEYS[meant][1]:
        return meant
    prose = word_count(str(value)) > SAID
    fits = key[0] == close[0] and (prose if meant == "trace" else meant != "images" or not isinstance(value, str | int))
    return meant if fits else ""


@functools.lru_cache(maxsize=1024)  # rows of a file have the same keys, and the search takes longer than the row
def _close(key: str) -> str:
    """The key or alias that an unknown key looks most like; "" for none."""
    return next(iter(difflib.get_close_matches(key, [*KEYS, *ALIASES], 1, 0.8)), "")


def _texts(value: Any) -> list[str]:
    """A value's texts: itself, those of a list, and the paths of objects."""
    items = value if isinstance(value, list | tuple) else [value]
    items = [item.get("path") or item.get("url") if isinstance(item, Mapping) else item for item in items]
    return [item for item in items if isinstance(item, str)]


def _options(row: Mapping[str, Any]) -> tuple[str, ...]:
    options = row.get("options")
    if options in (None, "", [], {}):
        return ()
    if isinstance(options, Mapping):
        # Parquet has one struct for all rows, so that a row with fewer options holds nulls behind them
        options = {letter: text for letter, text in options.items() if text is not None}
        letters = sorted(options)
        if "".join(letters).upper() != LETTERS[: len(letters)]:
            named = border.cut(", ".join(letters))
            raise DataError(f"key options: lettered {named}; letter them A, B, ... without a gap")
        options = [options[letter] for letter in letters]
    count = len(options) if isinstance(options, list | tuple) else 0
    if count and not 2 <= count <= len(LETTERS):
        raise DataError(f"key options: {count} of them; give 2 to {len(LETTERS)}")
    if not count or not all(isinstance(o, str) and _seen(o) for o in options):
        raise DataError(f"key options: {TEXTS}, none empty, or no options for an open question")
    if absent := [option for option in options if tables.absent(option)]:
        raise DataError(f"key options: {absent[0]!r} stands for an empty cell; leave it out")
    if order := answers.out_of_order(options):
        raise DataError(f"key options: they begin with {order}; put them in the order of their letters")
    bare = answers.unlabelled(options)  # a prompt adds the letters
    options = tuple(bare if all(text.strip() for text in bare) else options)
    if len(set(map(_seen, options))) < count:
        raise DataError("key options: two of them are the same text, so that no answer is right alone")
    return options


def _seen(text: str) -> str:
    """A text as it is seen: without what has no width, letters and their marks in one form of Unicode."""
    return unicodedata.normalize("NFC", INVISIBLE.sub("", text)).strip()


def _specialty(row: Mapping[str, Any], needs_four: bool) -> str:
    value = _text(row, "specialty", "").strip()
    four = needs_four or value.upper() in SPECIALTIES  # "am" is a slip, not a name of one's own
    return _one_of(value, "specialty", SPECIALTIES) if four else value


def _text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key)
    empty = value is None or (isinstance(value, str) and tables.absent(_seen(value)))
    if default is not None and empty:
        return default
    if not isinstance(value, str) or empty:
        raise DataError(f"key {key}: a non-empty text is needed, got {border.shown(value)}")
    return value


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if value not in (None, "") and not isinstance(value, list | tuple):
        raise DataError(f"key {key}: a list is needed, got {border.shown(value)}")
    return list(value or ())


def _one_of(value: Any, key: str, known: Iterable[str]) -> str:
    if value not in known:
        named = ", ".join(name for name in known if name)
        value = border.shown(value)
        raise DataError(f"key {key}: {value} is none of {named}")
    return value


def _image(item: Any, where: str, folder: Path) -> ImageRef:
    """A reference to an image of a row, whose file is not looked at."""
    place, view = f"{where}, key images", {}
    if isinstance(item, Mapping):
        unknown = sorted({*item} - {"path", "bytes", "image", *VIEWED})
        if unknown:
            fix = "; model.max_pixels bounds all of them" if re.search("pixels|resized", unknown[0]) else ""
            raise DataError(f"key images: an image has path, bytes, window, slices and plane, not {unknown[0]}{fix}")
        view = {key: item.get(key) for key in VIEWED if item.get(key) is not None}
        data, path = item.get("bytes"), item.get("path") or item.get("image")
        item = path if data is None else data
    else:
        path = getattr(item, "path", None) if callable(item) else None
    seen = View.make(**view, name="key images")
    named = f"{place}: {border.cut(str(path)) if path else 'embedded image'}"
    if callable(item):  # a cell of a Parquet file, which may hold a path alone
        return ImageRef(named, partial(_cell, item, folder, named), seen)
    if isinstance(item, bytes):
        return ImageRef(named, partial(bytes, item), seen)
    if not isinstance(item, str) or not item.strip():
        raise DataError(f"key images: a path, a data URI or bytes are needed, got {border.shown(item)}")
    if ADDRESS.match(item) or (item.startswith(BASE64) and len(item) > LONGEST):
        named = f"{place}: {border.cut(item, 40)}"
        return ImageRef(named, partial(content, item, named), seen)
    return ImageRef(f"{place}: {border.cut(item)}", InFolder(folder / os.path.expanduser(item)), seen)


def _cell(cell: Any, folder: Path, name: str) -> bytes:
    """The bytes of a Parquet cell, or those of the file that it names beside the table."""
    try:
        return cell()
    except DataError:
        if not getattr(cell, "path", ""):
            raise
        return content(folder / cell.path, name)
