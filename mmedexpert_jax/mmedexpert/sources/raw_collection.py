"""Collection (section 3.1): files to records, with a count of what was repaired, flagged and refused, and why."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.config.fields import raw_source
from mmedexpert_jax.data import case_rows, tables
from mmedexpert_jax.data.cells import as_text
from mmedexpert_jax.data.places import InFolder
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.mmedexpert.record import RawCase
from mmedexpert_jax.mmedexpert.sources.canonical import Rejected, canonical, plain_text, without_identifiers
from mmedexpert_jax.mmedexpert.sources.raw_formats import FORMATS, Format, keys, lone_letter, recognise, text

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
PEOPLE = ("patientid", "patient", "patid", "subjectid", "subject", "personid", "mrn")  # keys, without their marks
SHOWN = 4000  # characters of a text in rejected.jsonl
EMBEDDED = Path(__file__).parents[2] / "assets" / "raw_mini"


@dataclass
class Collection:
    """Cases and refused rows of the sources."""

    records: list[RawCase] = field(default_factory=list)  # kept, in the order of files and rows
    rejected: list[dict[str, Any]] = field(default_factory=list)  # one row each: file, row, reason, detail, content
    # (file, what) -> number, where what is "read", "kept", "repaired:<how>", "flagged:<what>" or "rejected:<reason>"
    counts: Counter = field(default_factory=Counter)

    def reject(self, file: str, number: int, reason: str, detail: str, content: Any) -> None:
        """Counts a refused row and keeps it with its reason."""
        self.counts[file, f"rejected:{reason}"] += 1
        self.rejected.append({"file": file, "row": number, "reason": reason, "detail": detail, "content": content})

    def reject_case(self, record: RawCase, reason: str, detail: str) -> None:
        """Counts a row that had been read, and keeps what tells it from others."""
        self.reject(record.file, record.row, reason, detail, {"id": record.id, "question": record.question})

    def drop(self, records: Sequence[RawCase], reason: str, details: Callable[[RawCase], str]) -> None:
        """Takes records out again, as duplicates or leaks are."""
        gone = {record.id for record in records}
        for record in records:
            self.reject_case(record, reason, details(record))
        self.records = [record for record in self.records if record.id not in gone]

    def lines(self) -> list[str]:
        """Counts as text, a line for each source."""
        files = dict.fromkeys(file for file, _ in self.counts)
        return [
            f"{file}: {', '.join(f'{what} {count}' for (of, what), count in self.counts.items() if of == file)}"
            for file in files
        ]

    def table(self) -> list[dict[str, Any]]:
        """Counts as rows: file, what, number."""
        return [{"source": file, "what": what, "rows": count} for (file, what), count in self.counts.items()]


@dataclass(frozen=True)
class Rights:
    """Licences that a user states, by name of a format or file: they stand before those of the formats, and what is
    restricted stands before what a row says of itself."""

    licences: dict[str, str] = field(default_factory=dict)  # name -> licence
    redistributable: tuple[str, ...] = ()  # names whose rows may be passed on
    restricted: tuple[str, ...] = ()  # names whose rows may not

    def of(self, shape: Format, file: str) -> tuple[str, bool]:
        """Licence of a file, and whether its rows may be passed on."""
        names = (file, shape.name)
        licence = next((self.licences[name] for name in names if name in self.licences), shape.licence)
        if self.restricts(shape, file):
            return licence, False
        return licence, shape.redistributable or any(name in self.redistributable for name in names)

    def restricts(self, shape: Format, file: str) -> bool:
        """True where the user says that a file's rows may not be passed on; a bare name says so of all that have it."""
        return any(name in self.restricted for name in (file, file.rpartition("/")[2], shape.name))


def collect(
    sources: Sequence[str | tuple[str, str]], image_dir: str = "", rights: Rights | None = None, privacy: str = "report"
) -> Collection:
    """Reads every source.

    Args:
        sources: "embedded", a file or directory, or "<format>=<path>" where the shape is to be forced, perhaps taken
            apart (`raw_source`).
        image_dir: where images are looked for, beside the folder of each file: by their names, or all those in
            <image_dir>/<id of the row>.
        rights: licences that stand before those of the formats.
        privacy: what becomes of text that may identify a person, one of `privacy.MODES`.

    Raises:
        ConfigError: an unknown format.
        DataError: no such file, or one that is not readable as a whole.
    """
    found, rights = Collection(), rights or Rights()
    apart = [raw_source(source) if isinstance(source, str) else source for source in sources]
    for name, _ in apart:
        if name and name not in FORMATS:
            raise ConfigError(f"config.data.path: no format {name!r}; choose one of {', '.join(FORMATS)}")
    for called, file, forced in named_files(apart):
        folders = [Path(image_dir).expanduser(), file.parent] if image_dir else [file.parent]
        folders = list({folder.resolve(): folder for folder in folders}.values())  # the same twice doubles pictures
        _read(found, called, file, FORMATS.get(forced), folders, rights, privacy)
    return found


def named_files(sources: Sequence[tuple[str, str]]) -> list[tuple[str, Path, str]]:
    """(name, file, format or "") of every file of all sources. A file is called by its own name, and where several have
    it by as much of its path as tells them apart. Raises DataError."""
    found = [
        (file, form)
        for form, path in sources
        for file in raw_files(EMBEDDED if path == "embedded" else Path(path).expanduser())
    ]
    by_name: dict[str, set[tuple[str, ...]]] = {}
    for file, _ in found:
        by_name.setdefault(file.name, set()).add(file.absolute().parts)

    def called(file: Path) -> str:
        parts = file.absolute().parts
        others = by_name[file.name] - {parts}
        count = next(n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
        return "/".join(parts[-count:])

    return [(called(file), file, form) for file, form in found]


def raw_files(path: Path) -> list[Path]:
    """The files behind a path, in order of name. Raises DataError where there are none."""
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: no such kind of file is read; save the cases as {', '.join(SUFFIXES)}")
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if _is_raw(file.relative_to(path))) if path.is_dir() else []
    if not found:
        raise DataError(f"{path} holds no raw cases; give a {', '.join(SUFFIXES)} file or a directory of them")
    return found


def _is_raw(path: Path) -> bool:
    """True for a table that is not hidden, as copies of an editor, of a notebook or of macOS are."""
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def check_share(found: Collection, most: float) -> None:
    """Raises DataError where more than `most` of the rows read were refused, with the commonest reason."""
    read = sum(count for (_, what), count in found.counts.items() if what == "read")
    refused = read - len(found.records)
    if read and refused > most * read:
        [(reason, count)] = Counter(row["reason"] for row in found.rejected).most_common(1)
        first = next(row for row in found.rejected if row["reason"] == reason)
        raise DataError(
            f"{refused} of {read} raw rows were refused, {count} of them as {reason}, such as row {first['row']} of "
            f"{first['file']}: {first['detail']}; fix the files or raise config.data.max_rejected"
        )


def _read(
    found: Collection,
    called: str,
    file: Path,
    forced: Format | None,
    folders: list[Path],
    rights: Rights,
    privacy: str,
) -> None:
    for number, row in tables.read(InFolder(file), called):
        found.counts[called, "read"] += 1
        if isinstance(row, dict) and file.suffix.lower() in (".csv", ".tsv"):
            row = _headed(row, called)
        try:
            record = _record(row, forced, f"{called}:{number}", folders, rights, called)
            record = replace(without_identifiers(record, privacy), file=called, row=number)
        except Rejected as rejected:
            content = "left out, since it may identify a person" if rejected.reason == "identifying" else _shown(row)
            found.reject(called, number, rejected.reason, str(rejected), content)
            continue
        found.records.append(record)
        found.counts[called, "kept"] += 1
        for flag in record.flags:
            found.counts[called, flag if flag.startswith("repaired:") else f"flagged:{flag}"] += 1


def _record(row: Any, forced: Format | None, where: str, folders: list[Path], rights: Rights, file: str) -> RawCase:
    """The record of a row. Raises Rejected, and nothing else whatever the row holds: one bad row is one refused row."""
    if not isinstance(row, dict):
        raise Rejected("not-an-object", row)
    shape = forced
    try:
        shape = forced or recognise(row)
        if shape is None:
            lone = "question" in row and text(row.get("answer")) and lone_letter(row)
            alone = f", and no options for the answer {text(row['answer'])!r}" if lone else ""
            raise Rejected(
                "unknown-shape",
                f"it has {keys(row)}{alone}; one's own cases have question, options and answer; "
                "`mmedexpert convert-data` reads other names",
            )
        raw = shape.read(row)
        raw.redistributable = False if rights.restricts(shape, file) else raw.redistributable
        record = replace(canonical(raw, shape, where, folders, *rights.of(shape, file)), person=_person(row))
        if others := () if record.options else case_rows.accepted(row).get("accepted"):
            record = replace(record, columns={"accepted": [plain_text(other, []) for other in others]})
        read = (raw.explanation, raw.field)
        for key in sorted(row.keys() - case_rows.KEYS.keys() - case_rows.PROVENANCE - {"image"}):
            value = row[key].strip() if isinstance(row[key], str) else row[key]
            if value in read or not case_rows.left_out(key, value, raw.images or record.images):
                continue
            if not _in_passing(str(key).lower(), value, folders):
                raise Rejected("image-missing", f"key {border.cut(str(key))} is not read; call it images")
            if "mentions-picture" not in record.flags:
                record = replace(record, flags=(*record.flags, "mentions-picture"))
        return record
    except (Rejected, MemoryError):
        raise
    except Exception as error:  # a value of a type or size that no reader of a shape has thought of
        name = shape.name if shape else "row"
        raise Rejected("unreadable", border.cut(f"{name}: {type(error).__name__} {error}", 200)) from None


def _person(row: dict[str, Any]) -> str:
    """A hash of the number or code of the patient that a row is about; "" where it names none."""
    for key, value in row.items():
        said = str(as_text(value)) if isinstance(value, str | int | float) else ""
        if re.sub(r"[\W_]", "", str(key)).lower() in PEOPLE and re.fullmatch(r"(?=.*[1-9])\S{1,64}", said):
            return hashlib.sha256(said.encode()).hexdigest()[:16]
    return ""


def _in_passing(key: str, value: Any, folders: list[Path]) -> bool:
    """True for the name of a picture that is not there, or on the web, under a key that does not mean images."""
    means = key == "images" or case_rows.ALIASES.get(key) == "images" or case_rows.NUMBERED.fullmatch(key)
    is_name = isinstance(value, str) and not value.lower().startswith("data:")
    return is_name and not means and not any(os.path.exists(folder / value) for folder in folders)


def _headed(row: dict[str, Any], file: str) -> dict[str, Any]:
    """A row of a table by `_heading`. Raises DataError where two columns have the same."""
    headed = {_heading(name): cell for name, cell in row.items()}
    if len(headed) < len(row):
        twice = [name for name in row if sum(_heading(name) == _heading(other) for other in row) > 1]
        raise DataError(f"{file}: the columns {border.cut(', '.join(twice))} differ in case alone; rename one")
    return headed


def _heading(name: str) -> str:
    """A column's name as formats know it: in lower case, the letter of an option in upper case."""
    return name.upper() if len(name) == 1 else name.lower()


def _shown(value: Any, depth: int = 4) -> Any:
    """A row as rejected.jsonl keeps it: bytes left out, long texts and deep structures cut."""
    if isinstance(value, dict) and depth:
        return {border.cut(str(key)): _shown(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list) and depth:
        return [_shown(item, depth - 1) for item in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if value is None or isinstance(value, bool | int | float):
        return value
    return (value if isinstance(value, str) else border.shown(value))[:SHOWN]
