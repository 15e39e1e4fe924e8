"""MedXpertQA, the parts MM and Text (Zuo et al. 2025): JSON Lines of the hub or of the repository, and images.zip.

The questions end with their choices ("Answer Choices: (A) ... (E) ..."); `Case.question` is without them.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import Spec, reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

CHOICES = "\nAnswer Choices:"
MM_TEST = {
    "items": 2000,
    "images": 2852,
    "answers": {"A": 399, "B": 408, "C": 383, "D": 386, "E": 424},
    "question_type": {"Reasoning": 1446, "Understanding": 554},
    "medical_task": {"Diagnosis": 1199, "Treatment": 448, "Basic Science": 353},
    "images_per_item": {"1": 1581, "2": 236, "3": 59, "4": 22, "5": 78, "6": 24},
}
PARTS: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {  # test's counts, files on the hub, what is expected
    "MM": (MM_TEST, ("MM/{split}.jsonl", "images.zip"), "MM/test.jsonl and images.zip or images/"),
    "Text": ({"items": 2450}, ("Text/{split}.jsonl",), "Text/test.jsonl"),
}
COLUMNS = {
    "question_type": {"Reasoning": "Rea.", "Understanding": "Under."},
    "medical_task": {"Treatment": "Treatment", "Basic Science": "Basic Science", "Diagnosis": "Diagnosis"},
}


def _rows(part: str, files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    copies = (f"medxpertqa_{part.lower()}_input.jsonl",) if split == "test" else ()
    return rows.read(files.one(f"{part}/{split}.jsonl", *copies, f"{part}/{split}-*.parquet"))


def _item(part: str, row: rows.Row, files: Files, subset: str) -> Case:
    texts = row.choices("options")
    label = row.values.get("label")
    row = row.having(label=label[0] if isinstance(label, list) and len(label) == 1 else label)
    full = row.text("question")
    found = row.parsed("images") or []
    names = found if isinstance(found, list) else [found]
    names = [image.get("image_path", "") if isinstance(image, Mapping) else image for image in names]
    if part == "MM" and not names:
        raise row.bad("images", "no image is named")
    return Case(
        id=row.text("id"),
        question=full.rpartition(CHOICES)[0].strip() or full,
        options=texts,
        answer=row.letter(len(texts), "label"),
        images=tuple(files.image(str(name), row.where) for name in names),
        labels={key: row.label(key) for key in ("question_type", "medical_task", "body_system")},
        columns={"raw_question": row.values["question"]},
    )


def _published(total: Mapping[str, Any], split: str, subset: str) -> Mapping[str, Any]:
    return total if split == "test" else {"items": 5}


def _benchmark(part: str, total: Mapping[str, Any], files: tuple[str, ...], expects: str) -> Spec:
    return reader(
        f"medxpertqa_{part.lower()}",
        f"MedXpertQA-{part}",
        rows=partial(_rows, part),
        splits=("test", "dev"),
        hub="TsinghuaC3I/MedXpertQA",
        hub_files=files,
        expects=expects,
        strata=("medical_task", "question_type"),
        columns=COLUMNS,
        published=partial(_published, total),
        licence="MIT (hub card)",
    )(partial(_item, part))


BENCHMARKS = tuple(_benchmark(part, *facts) for part, facts in PARTS.items())
