"""All faults of a data set at once: every row is read, and every image decoded."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmedexpert_jax import border, privacy
from mmedexpert_jax.data import case_files, tables
from mmedexpert_jax.data.case import SPECIALTIES, SPLITS, Case
from mmedexpert_jax.errors import DataError

SHOWN = 5  # rows named of each fault


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
        fix = case_files.of_arrow(root) or "see docs/own.md"
        raise DataError(f"{root} holds no train, dev or test as {', '.join(tables.SUFFIXES)}; {fix}")
    seen: dict[str, str] = {}
    found = []
    for files in splits:
        ids: set[str] = set()
        found += [_check(file, files[0].name, ids, seen) for file in files]
    if root.is_file() and (note := case_files.lone_part(root)):
        found[0].notes.append(note)
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
            traced, of_four = bool(case.trace), case.specialty in SPECIALTIES
            found.update(["gba and evaluate", *["dsa"] * traced, *["one of its experts"] * (traced and of_four)])
            texts.append(_identifying(case))
    except DataError as error:  # the file as a whole
        refuse(error)
    checked.identifying = privacy.counts(texts)
    checked.notes = [f"{found[name]} for {name}" for name in ("gba and evaluate", "dsa")] if checked.good else []
    if found["one of its experts"] < found["dsa"]:
        checked.notes[-1] += f" (specialty=mixed), {found['one of its experts']} of them for one of its experts"
    return checked


def _identifying(case: Case) -> list[privacy.Found]:
    texts: dict[str, str | tuple[str, ...]] = {
        "question": case.question,
        "options": case.options,
        "trace": case.trace,
    }
    if not case.options:
        texts["answer"] = case.golds
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
