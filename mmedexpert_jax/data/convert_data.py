"""Tables of other forms, and folders of scans or pictures, as JSON Lines of the documented rows."""

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from mmedexpert_jax import answers, border
from mmedexpert_jax.data import case_files, case_rows, cells, forms, question_text, tables
from mmedexpert_jax.data.answer_letters import MEANT, with_letters
from mmedexpert_jax.data.case import LETTERS, SPLITS
from mmedexpert_jax.data.places import InFolder
from mmedexpert_jax.data.reference_answers import letter_of, refuse_named
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.processing import medical
from mmedexpert_jax.processing.images import ADDRESS, BASE64, LONGEST, SUFFIXES, VIEWED, clean
from mmedexpert_jax.processing.windows import View

SLICES = 8  # of a volume, where a converter has to choose; its line says where to change it
_OPTION_COLUMN = re.compile(rf"(?:{case_rows.OPTION_WORD}|{case_rows.ANSWER_WORD})?[_ ]?([a-j])")
_NUMBER_COLUMN = re.compile(rf"(?:{case_rows.OPTION_WORD})[_ ]?(\d{{1,2}})")
_ANSWER_COLUMN = re.compile(rf"(?:{case_rows.ANSWER_WORD})?[_ ]?(\d{{1,2}})")  # or of one of several people
# Columns by the key that they mean; the later ones only where no earlier one does.
_IMAGE_NAMES = ("image_path", "img_name", "figure_path", "image_url")  # beside an image its name or origin
_OWN = {key: key for key in case_rows.KEYS}
_NAMED = {key: ours for key, ours in MEANT.items() if key not in (*_IMAGE_NAMES, "input")} | dict.fromkeys(
    (*case_rows.ANSWER_WORD.split("|"), "答案"), "answer"
)
_INPUT = {"input": "question"}
_BY_MODEL = dict.fromkeys(("response", "output"), "answer")  # of a model, but for sets of chats
# A column beside these by which they are a model's, and no key; not "answer_type" or "specialty_label".
_TRUTH = rf"golds?|labels?|references?|targets?|truths?|solutions?|expected|correct|gt|{case_rows.ANSWER_WORD}|答案"
_TRUTH_COLUMN = re.compile(rf"(?:(?:ground|true|right|final)_?)?(?:{_TRUTH})(?:_(?:{_TRUTH}|text|option|letter|key))?")


@dataclass
class Converted:
    """The result of a conversion."""

    file: Path  # JSON Lines of the documented rows
    rows: int = 0  # how many
    refused: list[str] = field(default_factory=list)  # a line for each row that is no case
    notes: list[str] = field(default_factory=list)  # what is left to do by hand


def convert(source: str | Path, folder: str | Path, split: str = "train") -> Converted:
    """Rows of another form, or a folder of DICOM or image files, as `<folder>/<split>.jsonl`.

    Args:
        source: a table (JSON Lines, JSON, CSV, TSV, Parquet) with rows of `forms.FORMS` or of our own keys; a folder
            in which each file, or each folder with one DICOM series, becomes a case without question and answer; or
            one without any that holds such a table, whole or in parts, there or in `data/`.
        folder: where the rows and the images that stood inside the table are written; other images stay where they are
            and are named by their paths from there.
        split: train, dev or test, the name of the file.

    Raises:
        DataError: nothing to convert, or a file that cannot be read.
        ConfigError: the file, or another image of its name, exists; another split.
    """
    if split not in SPLITS:
        raise ConfigError(f"a split is {', '.join(SPLITS)}, not {border.shown(split)}: jobs read no other")
    source, root = border.existing(Path(source).expanduser()), Path(folder).expanduser()
    made = Converted(root / f"{split}.jsonl")
    if made.file.exists():
        raise ConfigError(f"{made.file} exists; give another folder or split")
    if not source.exists():
        raise DataError(f"no such file or folder to convert: {source}")
    rows = list(_from_folder(source, root, made)) if source.is_dir() else []
    if not rows:
        files = case_files.tables_in(source, split) if source.is_dir() else [source]
        made.notes = [f"{source}: {note}" for note in [case_files.lone_part(source)] if note]
        found = [row for file in files for row in _from_table(file, root, made)]
        rows, refused = with_letters(found, source)
        made.refused += refused
        rows = _checked(rows, source, made)
    if not rows:
        first = f": {made.refused[0]}" if made.refused else ""
        raise DataError(f"{source}: nothing that can be converted{first}")
    with border.writing(root):
        root.mkdir(parents=True, exist_ok=True)
    border.write_jsonl(made.file, rows)
    made.rows = len(rows)
    return made


def _from_table(source: Path, root: Path, made: Converted) -> Iterator[dict[str, Any]]:
    for number, row in tables.read(InFolder(source), str(source), ("images", "image")):
        try:
            if isinstance(row, str):
                raise DataError(row)
            name = tables.row_name(source, number)
            found = forms.ours(row, name) if forms.form(row) else _own_row(row, name)
            for key in found.keys() - case_rows.KEYS.keys() - case_rows.PROVENANCE:  # its bytes would be lost
                if case_rows.left_out(key, found[key], found["images"]):
                    raise DataError(f"key {border.cut(key)}: not a key of a row; call it images")
            names = (f"{made.file.stem}-{name}-{n}" for n in itertools.count(1))
            images = [_placed(*pair, source, root) for pair in zip(found["images"], names, strict=False)]
        except DataError as error:
            made.refused.append(f"{source}, row {number}: {error}")
            continue
        values = {key: _json_value(value) for key, value in found.items() if key != "images"}
        kept = {key: value for key, value in values.items() if value not in (None, "", [], {})}
        yield kept | ({"images": images} if images else {})


def _own_row(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A row of our own keys as a table of cells has them: options in columns A, B, ... (opa, option_a, ...), as an
    object by letter, or separated by semicolons. Raises DataError where no column is the question."""
    found = {str(key): value for key, value in row.items()}
    said = [theirs for theirs in found if _bare(theirs) in _BY_MODEL and found[theirs]]
    truths = [theirs for theirs in found if _TRUTH_COLUMN.fullmatch(_bare(theirs)) and _tells(found[theirs])]
    for meant in (_OWN, _NAMED, _INPUT) if truths else (_OWN, _NAMED, _INPUT, _BY_MODEL):
        for theirs in list(found):
            ours = meant.get(_bare(theirs), theirs)
            if ours == "answer" and said and isinstance(found[theirs], bool):  # of what was said: it is right
                continue
            if found.get(ours) in (None, "", [], {}):
                found[ours] = found.pop(theirs)
    for key in ("question", "answer"):
        if key not in found:  # one that is empty has a line of its own
            named = border.cut(", ".join(map(str, row)))
            why = ""
            if key == "answer" and said and truths:
                why = f"; {border.cut(said[0])} is taken for a model's beside {border.cut(truths[0])}"
            raise DataError(
                f"key {key}: missing; the first line of a table names its columns, here {named}{why}; call one {key}"
            )
    if isinstance(found.get("history"), list) and found["history"]:
        raise DataError("key history: several turns; a case has one question and one answer, so write them into one")
    found["options"] = _options(found)
    if found["options"] in (None, "", [], {}) and isinstance(found["question"], str):
        found |= _in_question(found["question"], str(found["answer"]).strip())
    images = _images(found)
    return found | {"id": str(found.get("id") or f"row-{name}"), "images": images}


def _in_question(whole: str, answer: str) -> dict[str, Any]:
    """The parts of a row whose question lists lettered options of which its answer gives one, as `forms` reads it;
    none of any other. Raises DataError of an answer that speaks of one and gives none."""
    question, options = question_text.split_options(whole)
    if not options and len(answer) == 1:
        question, options = question_text.split_line_of_options(whole)
    if not options:
        return {}
    if letter := letter_of(answer, options):
        return {"question": question, "options": options, "answer": letter}
    refuse_named(answer, options, whole)
    return {}


def _tells(cell: Any) -> bool:
    """True of a cell that may hold an answer, which a verdict on one does not."""
    return not isinstance(cell, bool) and cell not in (None, "", [], {})


def _bare(column: str) -> str:
    return column.lower().strip().replace(" ", "_")


def _options(found: dict[str, Any]) -> Any:
    """The texts of a row's options in their order, taken out of their columns; its answer follows them. Raises
    DataError."""
    columns = _option_columns(found)
    options = cells.by_label(cells.items(found.get("options") or columns))
    if isinstance(options, Mapping):  # Parquet has one struct for all rows, with nulls where a row has fewer options
        options = {label: text for label, text in options.items() if text is not None}
        labels = sorted(options, key=int if all(str(label).isdecimal() for label in options) else str)
        if labels:
            _move_up(found, [str(label).upper() for label in labels], bool(columns))
        options = [options[label] for label in labels]
    if not isinstance(options, list | tuple):
        return options
    key = found.get("answer")
    texts = [str(option) if isinstance(option, int | float) else option for option in options]
    if answers.counts_another(key, texts):
        raise DataError(f"key answer: {key} may be an option's text or its number; give its letter")
    if not all(isinstance(text, str) for text in texts):
        return texts
    if order := answers.out_of_order(texts):
        raise DataError(f"key options: they begin with {order}; put them in the order of their letters")
    return answers.unlabelled(texts)


def _move_up(found: dict[str, Any], labels: list[str], in_columns: bool) -> None:
    """Letters the answer by the place of its label: an empty cell leaves a gap, behind which letters move up. Raises
    DataError of an answer that names the gap, or that may count it."""
    answer = str(found.get("answer", "")).strip().upper()
    counted = in_columns and answer.isdecimal()  # from 0 or from 1, as the whole table shows
    column = _OPTION_COLUMN.fullmatch(answer.lower()) or _NUMBER_COLUMN.fullmatch(answer.lower())
    answer = column[1].upper() if in_columns and column else answer  # "Choice B", "option2"
    by_letter = all(label in LETTERS for label in labels)
    if by_letter and answer in LETTERS and len(answer) == 1 and answer not in labels:
        raise DataError(f"key answer: {answer} is none of the options {', '.join(labels)}")
    if by_letter and "".join(labels) != LETTERS[: len(labels)] and re.fullmatch(r"\d+(\.0+)?", answer):
        raise DataError(f"key answer: {answer} counts options of which one is empty; give its letter")
    if answer in labels[: len(LETTERS)] and not counted:
        found["answer"] = LETTERS[labels.index(answer)]


def _images(found: dict[str, Any]) -> list[Any]:
    """The images under `images` and under numbered keys, as "image2", or else under one of _IMAGE_NAMES, taken out
    of the row."""
    images = cells.images(found.get("images") or [])
    images = images if isinstance(images, list | tuple) else [images]
    numbered = [key for key in found if case_rows.NUMBERED.fullmatch(key.lower())]
    holds = [key for key in numbered if isinstance(found[key], Mapping | bytes)]  # else a text may be its description
    holds += [key for key in numbered if key not in holds and case_rows.left_out(key, found[key], [])]
    more = sorted(holds, key=tables.by_numbers)
    images = [*images, *(cell for cell in map(found.pop, more) if cell not in (None, "", *images))]
    names = [key for key in found if _bare(key) in _IMAGE_NAMES and found[key]]
    return _images({"images": found.pop(names[0])}) if names and not images else images


def _option_columns(found: dict[str, Any]) -> dict[str, Any]:
    """The texts of a row's columns A, B, ... (opa, option_a, ...) or option1, option2, ... by letter or number, taken
    out of the row. Raises DataError where there are more than a case can have."""
    beside = case_rows.options_beside(found, found.get("answer"))
    for pattern in (_OPTION_COLUMN, _NUMBER_COLUMN, *([_ANSWER_COLUMN] if beside else [])):
        letters = {key: match[1].upper() for key in found if (match := pattern.fullmatch(key.lower()))}
        if len(letters) > 1:
            break
    else:
        return {}
    columns = {letter: found.pop(key) for key, letter in letters.items()}
    columns = {key: text for key, text in columns.items() if text is not None and not tables.absent(str(text))}
    more = [key for key in found if re.fullmatch("[k-z]", key.lower()) and found[key] not in (None, "")]
    if len(columns) > len(LETTERS) or (len(columns) == len(LETTERS) and "k" in map(str.lower, more)):
        raise DataError(f"key options: {len(columns) + len(more)}; a case has at most {len(LETTERS)}")
    return columns


def _checked(rows: list[dict[str, Any]], source: Path, made: Converted) -> list[dict[str, Any]]:
    """The rows that load; the others are refused, since they would end the first job that reads the new file."""
    good, seen = [], set()
    for number, row in enumerate(rows, 1):
        try:
            if row["id"] in seen:
                raise DataError(f"{source}, row of {row['id']}, key id: stands twice; ids must be unique")
            seen.add(row["id"])
            case_rows.case_of(row, f"{source}, row of {row['id']}", number, made.file.parent)
        except DataError as error:
            made.refused.append(str(error).replace(case_rows.TEXTS, "call their columns A, B, ... or option_a, ..."))
        else:
            good.append(row)
    return good


def _placed(image: Any, name: str, source: Path, root: Path) -> Any:
    """An image of a row as it is named from the new folder; bytes are written there without their headers."""
    if isinstance(image, Mapping) and not isinstance(image.get("bytes"), bytes):
        path = image.get("path") or image.get("image")
        named = {"path": _placed(path, name, source, root)}
        return named | {key: image[key] for key in VIEWED if image.get(key) is not None}
    if isinstance(image, str) and image.strip():
        if image.startswith(BASE64) and len(image) > LONGEST:
            return f"data:image/png;base64,{image}"  # the reader goes by the content, not by this name
        if ADDRESS.match(image) or Path(image).is_absolute() or re.match(r"~|[A-Za-z]:[\\/]", image):
            return image  # a home folder or a drive is the same from any folder
        return os.path.relpath(source.parent / image, root)
    try:
        content = image() if callable(image) else image
    except DataError:
        if not getattr(image, "path", ""):
            raise
        return _placed(image.path, name, source, root)  # a cell of Parquet that holds a path alone
    if isinstance(content, Mapping):
        content = content["bytes"]
    if not isinstance(content, bytes):
        raise DataError(f"key images: a path or bytes are needed, got {border.shown(image)}")
    data = clean(content, f"image {name}")
    file = root / "images" / (name + (".png" if data.startswith(b"\x89PNG") else ".jpg"))
    if file.exists() and file.read_bytes() != data:
        raise ConfigError(f"{file} exists and is another image; give another folder or split")
    with border.writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    border.write_bytes(file, data)
    return f"images/{file.name}"


def _json_value(value: Any) -> Any:
    """A value as JSON holds it: dates and decimal numbers as text; None of bytes and of what else it cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value) if isinstance(value, date | time | timedelta | Decimal | UUID) else None


# ------------------------------------------------------------------------------------------- folders


def _from_folder(source: Path, root: Path, made: Converted) -> Iterator[dict[str, Any]]:
    """A case for each DICOM series (a folder of files) and each other image, named by its place, never its header."""
    volumes, others, mixed = 0, list[str](), list[str]()
    for place, folders, every in os.walk(source):
        folders.sort()  # the order in which `os.walk` goes on
        folder, names = Path(place), sorted(name for name in every if not name.startswith("."))
        scans = [name for name in names if medical.reader(_head(folder / name))]
        pictures = [name for name in names if Path(name).suffix.lower() in SUFFIXES and name not in scans]
        stacks, rest = _series_in(folder) if scans else ([], [])
        whole = {file.name for file in stacks[0]} if len(stacks) == 1 and len(stacks[0]) > 1 else set()
        if len(stacks) > 1 and max(map(len, stacks)) > 1:
            mixed.append(str(folder))
        scans = [name for name in scans if name not in {file.name for file in rest}]
        others += [str((folder / name).relative_to(source)) for name in names if name not in {*scans, *pictures}]
        entries: list[tuple[Path, Any]] = [(folder / name, None) for name in pictures]
        entries += [(folder, SLICES)] if whole else []
        entries += [(folder / name, _slices(folder / name)) for name in scans if name not in whole]
        for path, slices in entries:
            image = {"path": os.path.relpath(path, root)} | ({"slices": slices} if slices else {})
            volumes += bool(slices)
            yield {"id": str(path.relative_to(source)), "question": "", "answer": "", "images": [image]}
    made.notes.append("question and answer are empty: fill them in, and options where it is multiple choice")
    if others:
        made.notes.append(f"{len(others)} other files were left out: {border.cut(', '.join(others))}")
    if mixed:
        named = border.listing(mixed, 4)
        made.notes.append(f"{named}: several series in a folder, each file a row; put each into a folder of its own")
    if volumes:
        made.notes.append(f"{volumes} volumes show {SLICES} slices at even distances: change slices, window, plane")


def _series_in(folder: Path) -> tuple[list[list[Path]], list[Path]]:
    """`medical.by_series` of a folder; where a file cannot be read, nothing, so that each is a row by itself."""
    try:
        return medical.by_series(folder, str(folder))
    except DataError:
        return [], []


def _head(path: Path) -> bytes:
    """The beginning of a file, by which medical formats are known; a zip, whose table stands at its end, whole."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        return head + file.read() if head[:4] == b"PK\x03\x04" else head


def _slices(path: Path) -> int | None:
    """SLICES for a file of several frames, None for one of one."""
    try:
        content = path.read_bytes()
        reader = medical.reader(content)
        count = reader(content, str(path), View()).count if reader else 1
    except DataError:
        return None
    return SLICES if count > 1 else None
