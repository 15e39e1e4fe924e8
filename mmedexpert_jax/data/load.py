"""Cases from files: Parquet or JSON Lines in the documented schema, checked row by row."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmedexpert_jax.data.case import LETTERS, PARADIGMS, SPECIALTIES, Case
from mmedexpert_jax.errors import DataError

EMBEDDED = Path(__file__).parents[1] / "assets" / "mmedexpert_mini"
SPLITS = ("train", "dev", "test")
BENCHMARK = "benchmark:"  # begins a path that names a benchmark


def load_cases(path: str | Path, split: str, specialty: str | None = None, limit: int = 0, seed: int = 0) -> list[Case]:
    """Reads the cases of one split.

    Args:
        path: "mini" for the embedded set, a directory with `<split>.parquet` or `<split>.jsonl`, or one such file; or
            "benchmark:name[:subset][@split][=source]", the choice questions of a benchmark, which have no specialty.
        split: name of the split; ignored where `path` is a file or a benchmark.
        specialty: keep this specialty only (paper section 3.3); None keeps all.
        limit: keep at most so many cases, the specialties in turn; 0 keeps all.
        seed: of the choice that `limit` makes.

    Returns:
        Cases in file order, or in the order of the choice.

    Raises:
        DataError: no such file, or a row that breaks the schema, named by file, row and key.
    """
    if specialty is not None and specialty not in SPECIALTIES:
        raise DataError(f"no specialty {specialty!r}: choose one of {', '.join(SPECIALTIES)}")
    if str(path).startswith(BENCHMARK):
        cases = _benchmark(str(path).removeprefix(BENCHMARK))
        return _subset(cases, limit, seed) if 0 < limit < len(cases) else cases
    file = _find(path, split)
    cases = [_case(row, f"{file}, row {number}", file.parent) for number, row in _rows(file)]
    seen: set[str] = set()
    for number, case in enumerate(cases, 1):
        if case.id in seen:
            raise DataError(f"{file}, row {number}: id {case.id!r} stands twice; ids must be unique")
        seen.add(case.id)
    if specialty is not None:
        cases = [case for case in cases if case.specialty == specialty]
    if not cases:
        raise DataError(f"{file}: no cases{f' of specialty {specialty}' if specialty else ''}")
    return _subset(cases, limit, seed) if 0 < limit < len(cases) else cases


def _benchmark(entry: str) -> list[Case]:
    """The questions of a benchmark with a letter as key, as cases. Raises DataError, ConfigError, RemoteError."""
    from mmedexpert_jax.data.benchmarks.registry import load_entry

    items = load_entry(entry).items
    found = [item for item in items if item.kind == "choice" and item.answer in LETTERS[: len(item.options)]]
    if not found:
        raise DataError(f"{BENCHMARK}{entry}: no choice questions to train on")
    return [
        Case(
            id=item.id,
            question=item.question,
            options=item.options,
            answer=item.answer,
            specialty="",
            task=item.benchmark,
            images=tuple(Image.open(io.BytesIO(image.open())) for image in item.images),
        )
        for item in found
    ]


def _find(path: str | Path, split: str) -> Path:
    root = EMBEDDED if str(path) == "mini" else Path(path).expanduser()
    if root.is_file():
        return root
    for suffix in (".parquet", ".jsonl"):
        if (file := root / f"{split}{suffix}").is_file():
            return file
    if not root.exists():
        raise DataError(f"no such data: {path}; give a .parquet or .jsonl file, a directory of splits, or 'mini'")
    found = sorted(file.name for file in root.iterdir() if file.suffix in (".parquet", ".jsonl"))
    raise DataError(f"{root} has no split {split!r}; it holds {', '.join(found) or 'no .parquet or .jsonl file'}")


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq
        from pyarrow import ArrowException

        try:
            rows = pq.read_table(file).to_pylist()
        except (ArrowException, OSError) as error:
            raise DataError(f"{file} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
        yield from enumerate(rows, 1)
        return
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text ({error}); save it in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, row {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{file}, row {number}: a row must be an object with the keys question, options, answer, ..."
            )
        yield number, row


def _case(row: dict[str, Any], where: str, folder: Path) -> Case:
    question, answer = _text(row, "question", where), _text(row, "answer", where)
    options = row.get("options")
    if isinstance(options, dict):
        letters = sorted(options)
        if "".join(letters).upper() != LETTERS[: len(letters)]:
            raise DataError(f"{where}, key options: lettered {', '.join(letters)}; letter them A, B, ... without a gap")
        options = [options[letter] for letter in letters]
    if not options:
        raise DataError(f"{where}, key options: no options; give 2 to {len(LETTERS)} texts")
    if not 2 <= len(options) <= len(LETTERS) or not all(isinstance(o, str) and o.strip() for o in options):
        raise DataError(f"{where}, key options: give 2 to {len(LETTERS)} texts, none empty")
    if answer not in LETTERS[: len(options)]:
        raise DataError(f"{where}, key answer: {answer!r} is not among {', '.join(LETTERS[: len(options)])}")
    paradigms = tuple(row.get("paradigms") or PARADIGMS)
    return Case(
        id=_text(row, "id", where),
        question=question,
        options=tuple(options),
        answer=answer,
        specialty=_one_of(row, "specialty", SPECIALTIES, where),
        task=row.get("task") or "",
        images=tuple(_image(item, where, folder) for item in row.get("images") or ()),
        paradigm=_one_of(row, "paradigm", ("", *PARADIGMS), where),
        trace=row.get("trace") or "",
        paradigms=tuple(_one_of({"paradigms": p}, "paradigms", PARADIGMS, where) for p in paradigms),
    )


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}, key {key}: a non-empty text is needed, got {value!r}")
    return value


def _one_of(row: dict[str, Any], key: str, known: tuple[str, ...], where: str) -> str:
    value = row.get(key) or ""
    if value not in known:
        raise DataError(f"{where}, key {key}: {value!r} is none of {', '.join(k for k in known if k)}")
    return value


def _image(item: Any, where: str, folder: Path) -> Image.Image:
    """An image of a row: a `datasets` Image struct {bytes, path}, or a path relative to the file."""
    data, path = (item.get("bytes"), item.get("path")) if isinstance(item, dict) else (None, item)
    try:
        content = data if data is not None else (folder / str(path)).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
        image = Image.open(io.BytesIO(content))
        image.load()
        return image
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}, key images: {path or 'embedded image'} cannot be decoded ({error})") from None


def _subset(cases: list[Case], limit: int, seed: int) -> list[Case]:
    """`limit` cases, drawn by `seed`, the specialties in turn as long as they last."""
    order = np.random.default_rng(seed).permutation(len(cases))
    names = dict.fromkeys((*SPECIALTIES, *(case.specialty for case in cases)))
    queues = [[cases[i] for i in order if cases[i].specialty == name] for name in names]
    rounds = max(len(queue) for queue in queues)
    return [queue[i] for i in range(rounds) for queue in queues if i < len(queue)][:limit]
