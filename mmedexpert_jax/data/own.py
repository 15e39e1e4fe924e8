"""One's own data set: a first example, converters into the documented rows, and all faults of a set at once."""

import itertools
import math
import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from mmedexpert_jax import answers, border, privacy
from mmedexpert_jax.data import case_files, case_rows, cells, forms, tables
from mmedexpert_jax.data.case import LETTERS, SPECIALTIES, SPLITS, Case
from mmedexpert_jax.data.places import InFolder
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.processing import medical
from mmedexpert_jax.processing.images import ADDRESS, BASE64, LONGEST, SUFFIXES, clean
from mmedexpert_jax.processing.windows import View
from mmedexpert_jax.report.text_tables import markdown

SHOWN = 5  # rows named of each fault
# Columns of spreadsheets and published sets that `case_rows.ALIASES`, the keys which a set may nearly have, lacks.
_COLUMNS = {
    **dict.fromkeys(("cop", "answer_index", "correct_answer", "correct_option", "answerkey", "answer_key"), "answer"),
    **dict.fromkeys(("query", "stem", "question_text", "vignette"), "question"),
    **dict.fromkeys(("exp", "explanation"), "trace"),
}
_MEANT = case_rows.ALIASES | _COLUMNS  # a column -> the key of ours that it stands for
_OPTION_COLUMN = re.compile(rf"(?:{case_rows.OPTION_WORD}|{case_rows.ANSWER_WORD})?[_ ]?([a-j])")
_NUMBER_COLUMN = re.compile(rf"(?:{case_rows.OPTION_WORD})[_ ]?(\d{{1,2}})")
_ANSWER_COLUMN = re.compile(rf"(?:{case_rows.ANSWER_WORD})?[_ ]?(\d{{1,2}})")  # or of one of several people
_LABEL = re.compile(r"\W*(?:(?:option|answer|choice)\W*)?[A-J]\W*", re.IGNORECASE)  # "B.", "Option B"
_LABEL_AND_TEXT = re.compile(  # "b) Lupus"
    r"\W*(?:(?:option|answer|choice)\W*)?([A-J])[.):]\s*(\S.*)", re.IGNORECASE | re.DOTALL
)
SLICES = 8  # of a volume, where a converter has to choose; its line says where to change it


def schema_table() -> str:
    """The keys of a row as a Markdown table, from `case_rows.KEYS`."""
    return markdown(
        [
            {"key": f"`{key}`", "value": value, "needed": "yes" if needed else "no", "meaning": meaning}
            for key, (value, needed, meaning) in case_rows.KEYS.items()
        ]
    ).rstrip("\n")


# ---------------------------------------------------------------------------------------------- example

EXAMPLE = Path(__file__).parents[1] / "assets" / "example"


def new_data(folder: str | Path) -> list[Path]:
    """Writes a small set that loads, with its schema in README.md, into a new or empty folder; the files written.

    Raises:
        ConfigError: the folder holds something.
    """
    root = Path(folder).expanduser()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        found = "is not empty" if root.is_dir() else "is no folder"
        raise ConfigError(f"{root} {found}; give a new folder")
    with border.writing(root):
        (root / "images").mkdir(parents=True, exist_ok=True)
    for name in ("images/spots.png", "train.jsonl", "dev.jsonl", "test.jsonl"):
        border.write_bytes(root / name, (EXAMPLE / name).read_bytes())
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    readme = readme.replace("{table}", schema_table()).replace("{folder}", shlex.quote(str(root)))
    border.write_text(root / "README.md", readme)
    return sorted(path for path in root.rglob("*") if path.is_file())


# -------------------------------------------------------------------------------------------- converter


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
        source: a table (JSON Lines, JSON, CSV, TSV, Parquet) with rows of `forms.FORMS` or of our own keys; or a folder
            in which each file, or each folder with one DICOM series, becomes a case without question and answer.
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
    if source.is_dir():
        rows = list(_from_folder(source, root, made))
    else:
        rows = _checked(_lettered(list(_from_table(source, root, made)), source, made), source, made)
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
            found = forms.ours(row, number) if forms.form(row) else _plain(row, number)
            for key in found.keys() - case_rows.KEYS.keys() - case_rows.PROVENANCE:  # its bytes would be lost
                if case_rows.left_out(key, found[key], found["images"]):
                    raise DataError(f"key {border.cut(key)}: not a key of a row; call it images")
            names = (f"{made.file.stem}-{number}-{n}" for n in itertools.count(1))
            images = [_placed(*pair, source, root) for pair in zip(found["images"], names, strict=False)]
        except DataError as error:
            made.refused.append(f"{source}, row {number}: {error}")
            continue
        kept = {key: _written(value) for key, value in found.items() if key != "images" and _written(value) is not None}
        kept = {key: value for key, value in kept.items() if value not in ("", [], {})}
        yield kept | ({"images": images} if images else {})


def _written(value: Any) -> Any:
    """A value as JSON holds it: dates and decimal numbers as text; None of bytes and of what else it cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): _written(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_written(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value) if isinstance(value, date | time | timedelta | Decimal | UUID) else None


def _plain(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A row of our own keys as a table of cells has them: options in columns A, B, ... (opa, option_a, ...), as an
    object by letter, or separated by semicolons. Raises DataError where no column is the question."""
    found = {str(key): value for key, value in row.items()}
    for theirs in list(found):
        name = theirs.lower().strip().replace(" ", "_")
        ours = _MEANT.get(name, name if name in case_rows.KEYS else theirs)
        if found.get(ours) in (None, "", [], {}):
            found[ours] = found.pop(theirs)
    if found.get("question") in (None, ""):
        named = border.cut(", ".join(map(str, row)))
        raise DataError(
            f"key question: missing; the first line of a table names its columns, here {named}; call one question"
        )
    columns = _option_columns(found)
    options = found.get("options") or columns
    options = cells.by_label(cells.items(options))
    if isinstance(options, Mapping):  # Parquet has one struct for all rows, with nulls where a row has fewer options
        options = {letter: text for letter, text in options.items() if text is not None}
    if isinstance(options, Mapping) and options:  # an empty cell leaves a gap, behind which letters move up
        letters = [str(letter).upper() for letter in _in_order(options)]
        answer = str(found.get("answer", "")).strip().upper()
        column = _OPTION_COLUMN.fullmatch(answer.lower()) or _NUMBER_COLUMN.fullmatch(answer.lower())
        counted = bool(columns) and answer.isdecimal()  # from 0 or from 1, as the whole table shows
        answer = column[1].upper() if columns and column else answer  # "Choice B", "option2"
        by_letter = all(letter in LETTERS for letter in letters)
        if by_letter and answer in LETTERS and len(answer) == 1 and answer not in letters:
            raise DataError(f"key answer: {answer} is none of the options {', '.join(letters)}")
        if by_letter and "".join(letters) != LETTERS[: len(letters)] and re.fullmatch(r"\d+(\.0+)?", answer):
            raise DataError(f"key answer: {answer} counts options of which one is empty; give its letter")
        if answer in letters[: len(LETTERS)] and not counted:
            found["answer"] = LETTERS[letters.index(answer)]
    options = [options[letter] for letter in _in_order(options)] if isinstance(options, Mapping) else options
    if isinstance(options, list | tuple):
        key = found.get("answer")
        texts = [str(option) if isinstance(option, int | float) else option for option in options]
        if answers.counts_another(key, texts):
            raise DataError(f"key answer: {key} may be an option's text or its number; give its letter")
        written = all(isinstance(text, str) for text in texts)
        if written and (order := answers.out_of_order(texts)):
            raise DataError(f"key options: they begin with {order}; put them in the order of their letters")
        options = answers.unlabelled(texts) if written else texts
    found["options"] = options
    images = cells.images(found.get("images") or [])
    images = images if isinstance(images, list | tuple) else [images]
    numbered = [key for key in found if case_rows.NUMBERED.fullmatch(key.lower())]
    holds = [key for key in numbered if isinstance(found[key], Mapping | bytes)]  # else a text may be its description
    holds += [key for key in numbered if key not in holds and case_rows.left_out(key, found[key], [])]
    more = sorted(holds, key=tables.by_numbers)
    images = [*images, *(cell for cell in map(found.pop, more) if cell not in (None, "", *images))]
    return found | {"id": str(found.get("id") or f"row-{number}"), "images": images}


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
    columns = {key: text for key, text in columns.items() if not tables.absent(_said(text))}
    more = [key for key in found if re.fullmatch("[k-z]", key.lower()) and found[key] not in (None, "")]
    if len(columns) > len(LETTERS) or (len(columns) == len(LETTERS) and "k" in map(str.lower, more)):
        raise DataError(f"key options: {len(columns) + len(more)}; a case has at most {len(LETTERS)}")
    return columns


def _said(cell: Any) -> str:
    """A cell as text; "" where it is none. 0 is one."""
    return "" if cell is None else str(cell).strip()


def _in_order(options: Mapping[Any, Any]) -> list[Any]:
    """Labels of options in the order of the alphabet, or of their numbers."""
    if all(str(label).isdecimal() for label in options):
        return sorted(options, key=int)
    return sorted(options, key=str)


def _labels(label: re.Match[str], letter: str, options: list[str]) -> bool:
    """True where a label and text are a letter and the text of its option."""
    return letter == label[1].upper() and options[LETTERS.index(letter)].lower() == label[2].lower()


def _lettered(rows: list[dict[str, Any]], source: Path, made: Converted) -> list[dict[str, Any]]:
    """The rows with letters for answers that are an option's text or number. Numbers count from 0 or from 1 as the
    whole table shows; where it shows neither its rows are refused, since a wrong key is worse than none."""
    numbers: dict[int, tuple[int, int]] = {}  # place of the row -> number, number of options
    of_text: dict[int, int] = {}  # the same of one that is an option's text -> the number
    # "A" of the options O, A, B and AB: the text where other rows give texts, else the letter, as in rows read directly
    of_texts = any(len(_key(row)) > 1 and _key(row) in map(str, row.get("options", ())) for row in rows)
    for place, row in enumerate(rows):
        answer, options = _key(row), [str(option).strip() for option in row.get("options", ())]
        same = [letter for letter, option in zip(LETTERS, options, strict=False) if option.lower() == answer.lower()]
        said = answers.choice(f"<answer>{answer}</answer>", options) if 2 <= len(options) <= len(LETTERS) else None
        label = _LABEL_AND_TEXT.fullmatch(answer)
        letter = answer.upper() in (*LETTERS[: len(options)],)
        if letter and not (of_texts and len(same) == 1):
            row["answer"] = answer.upper()
        elif len(same) == 1:
            row["answer"] = same[0]
            of_text |= {place: int(answer)} if re.fullmatch(r"\d{1,2}", answer) else {}
        elif said and (_LABEL.fullmatch(answer) or (label and _labels(label, said, options))):
            row["answer"] = said
        elif options and re.fullmatch(r"\d{1,2}", answer):
            numbers[place] = int(answer), len(options)
        if other := _contradiction(row, options):
            made.refused.append(f"{source}, row of {row['id']}: {other}")
            numbers.pop(place, None)
            of_text.pop(place, None)
            rows[place] = {}
    first = 0 if any(number == 0 for number, _ in numbers.values()) else 1
    known = first == 0 or any(number == count for number, count in numbers.values())
    for place, (number, count) in numbers.items():
        if known and 0 <= number - first < count:
            rows[place]["answer"] = LETTERS[number - first]
            continue
        why = f"is no number of an option from {first}" if known else "may count from 0 or from 1"
        made.refused.append(f"{source}, row of {rows[place]['id']}: key answer: {number} {why}; give letters")
        rows[place] = {}
    bases = (first,) if known else (0, 1)
    for place, number in of_text.items() if numbers else ():  # the table's numbers are places
        counted = {LETTERS[number - base] for base in bases if 0 <= number - base < len(rows[place]["options"])}
        if counted - {rows[place]["answer"]}:
            told = f"key answer: {number} may be an option's text or its number; give its letter"
            made.refused.append(f"{source}, row of {rows[place]['id']}: {told}")
            rows[place] = {}
    return [row for row in rows if row]


def _contradiction(row: Mapping[str, Any], options: list[str]) -> str:
    """The fault of a row in which another key of answers gives another option's letter or text; "" of any other. A
    number that is an option's text may count the options instead."""
    key = row.get("answer")
    if not isinstance(key, str) or len(key) != 1 or key not in LETTERS[: len(options)]:
        return ""
    for name, value in row.items():
        if _MEANT.get(name.lower().replace(" ", "_")) != "answer":
            continue
        said = str(value).strip()
        if said.isdecimal() and LETTERS.index(key) in (int(said), int(said) - 1):
            continue
        named = [letter for letter, option in zip(LETTERS, options, strict=False) if said.lower() == option.lower()]
        letter = said.upper() if said.upper() in (*LETTERS[: len(options)],) else "".join(named)
        if letter and letter != key:
            return f"key answer: {key}, but key {border.cut(name)}: {border.shown(value)}; one of them is wrong"
    return ""


def _key(row: Mapping[str, Any]) -> str:
    """A row's answer as text: of a list of one its member, of 2.0, as pandas writes whole numbers, 2."""
    answer = row.get("answer", "")
    answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    return re.sub(r"^(\d{1,2})\.0+$", r"\1", str(answer).strip())


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
        return named | {key: image[key] for key in ("window", "slices", "plane") if image.get(key) is not None}
    if isinstance(image, str) and image.strip():
        if image.startswith(BASE64) and len(image) > LONGEST:
            return f"data:image/png;base64,{image}"  # the reader goes by the content, not by this name
        if ADDRESS.match(image) or Path(image).is_absolute() or re.match(r"~|[A-Za-z]:[\\/]", image):
            return image  # a home folder or a drive is the same from any folder
        return os.path.relpath(source.parent / image, root)
    content = image() if callable(image) else image
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


def _from_folder(source: Path, root: Path, made: Converted) -> Iterator[dict[str, Any]]:
    """A case for each DICOM series (a folder of files) and each other image, named by its place, never its header."""
    volumes, others, mixed = 0, list[str](), list[str]()
    for folder, names in _folders(source):
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
        named = border.cut(", ".join(mixed))
        made.notes.append(f"{named}: several series in a folder, each file a row; put each into a folder of its own")
    if volumes:
        made.notes.append(f"{volumes} volumes show {SLICES} slices at even distances: change slices, window, plane")


def _series_in(folder: Path) -> tuple[list[list[Path]], list[Path]]:
    """`medical.by_series` of a folder; where a file cannot be read, nothing, so that each is a row by itself."""
    try:
        return medical.by_series(folder, str(folder))
    except DataError:
        return [], []


def _folders(source: Path) -> Iterator[tuple[Path, list[str]]]:
    for folder, folders, names in os.walk(source):
        folders.sort()
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


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


# -------------------------------------------------------------------------------------------- validator


@dataclass
class Checked:
    """The content of one file of a set."""

    file: Path  # of the split
    good: int = 0  # cases that load, images decoded
    # what is wrong -> numbers of the rows
    faults: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    identifying: list[dict[str, Any]] = field(default_factory=list)  # table of `privacy.counts` of the good cases
    notes: list[str] = field(default_factory=list)  # what the jobs can do with it

    def lines(self) -> list[str]:
        """The findings as text."""
        bad = {number for numbers in self.faults.values() for number in numbers}
        lines = [f"{self.file}: {self.good} cases good, {len(bad)} rows with faults"]
        for fault, numbers in sorted(self.faults.items(), key=lambda pair: (-len(pair[1]), pair[0])):
            more = ", ..." if len(numbers) > SHOWN else ""
            rows = ", ".join(map(str, numbers[:SHOWN]))
            lines.append(f"  {len(numbers):5} x {fault} (row{'s' * (len(numbers) > 1)} {rows}{more})")
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {one['rows']} rows may hold a {one['kind']}; see privacy" for one in self.identifying]
        return lines


def check(path: str | Path) -> list[Checked]:
    """All faults of a set at once: every row of every split is read, and every image decoded.

    Args:
        path: a folder with splits, or one file.

    Returns:
        Findings by file, each fault with the rows that have it. A case that stands in two splits is a fault of the
        later one.

    Raises:
        DataError: no file of cases.
    """
    root = border.existing(Path(path).expanduser())
    if root.is_file():
        splits = [[root]]
    else:
        splits = [case_files.find(root, split) for split in SPLITS if case_files.files_of(root, split)]
    if not splits and not root.exists():
        raise DataError(f"no such file or folder: {root}; give the folder of the set, or one of its files")
    if not splits:
        raise DataError(f"{root} holds no train, dev or test as {', '.join(tables.SUFFIXES)}; see docs/own.md")
    seen: dict[str, str] = {}
    found = []
    for files in splits:
        ids: set[str] = set()
        found += [_check(file, files[0].name, ids, seen) for file in files]
    return found


def _check(file: Path, split: str, ids: set[str], seen: dict[str, str]) -> Checked:
    """The findings of a file. `split` names the split's first part, `ids` holds those of the parts before, and `seen`
    the name of the split for each case of the set so far; both are added to."""
    checked = Checked(file)
    refuse = partial(_count, checked)
    found, texts = Counter[str](), []
    try:
        for case in case_files.read_cases([file], refuse=refuse, ids=ids):
            try:
                shown = [picture for image in case.images for picture in case_files.pictures(image)]
                for picture in shown:
                    picture.picture()
                looks = [picture.sha256 for picture in shown]
                place = seen.setdefault(f"{case.question}\n{case.options}\n{looks}".casefold(), split)
                if place != split:
                    raise DataError(f"{file}, row of {case.id}, key question: the same stands in {place}")
            except DataError as error:
                refuse(error)
                continue
            checked.good += 1
            found.update(["gba and evaluate", *["dsa"] * bool(case.trace and case.specialty in SPECIALTIES)])
            texts.append(_identifying(case))
    except DataError as error:  # the file as a whole
        refuse(error)
    checked.identifying = privacy.counts(texts)
    checked.notes = [f"{found[name]} for {name}" for name in ("gba and evaluate", "dsa")] if checked.good else []
    return checked


def _identifying(case: Case) -> list[privacy.Found]:
    texts = {"question": case.question, "options": case.options, "trace": case.trace}
    if not case.options:
        texts["answer"] = case.answer
    headers = [one for n, image in enumerate(case.images, 1) for one in privacy.scan_header(_held(image), f"image {n}")]
    return [*privacy.scan_texts(texts.items()), *headers]


def _held(image: Any) -> bytes:
    folder = getattr(image.read, "path", None)
    return b"" if isinstance(folder, Path) and folder.is_dir() else image.open()


def _count(checked: Checked, error: DataError) -> None:
    """Counts an error by what is wrong, without what differs from row to row."""
    text = str(error).removeprefix(f"{checked.file}, ")
    row = re.match(r"row (\d+)(?:, |: )", text)
    fault = text[row.end() :] if row else text
    fault = re.sub(r"^key images: [^:]*: ", "key images: ", fault)
    fault = re.sub(r"^row of .*?, key ", "key ", fault)
    fault = re.sub(r"'[^']*'|\"[^\"]*\"", "...", fault) if "key images" not in fault else fault
    checked.faults[fault].append(int(row[1]) if row else 0)
