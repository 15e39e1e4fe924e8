"""PMC-VQA (Zhang et al. 2023): v2 (figures that are not compound; the paper's), v1, and v1's checked part.

Cells look like " A: Green "; some have stray quotes, non-breaking spaces or another option's letter. `Case.options` are
the clean texts by place; the cells themselves are `raw_options`, since MedEvalKit shows them as they are.
"""

import re
from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError

NAMES = {"v2": "{split}_2.csv", "v1": "{split}.csv", "v1_clean": "{split}_clean.csv"}
FOLDERS = {"v2": ("figures", "images_2.zip"), "v1": ("images", "images.zip"), "v1_clean": ("images", "images.zip")}
PUBLISHED = {"v2": {"items": 33_430}, "v1": {}, "v1_clean": {"items": 2_000}}
LABEL = re.compile(r"""["']?\s*([A-D])\s*:\s*(.*)""")
STRAY = re.compile(r"""^["']\s*|\s+["']$""")  # a quote whose other half stands in another cell


def clean(cell: str) -> tuple[str, str]:
    """The letter that a cell begins with ("" where none does) and its text without quotes that do not belong to it."""
    text = " ".join(cell.split())
    match = LABEL.fullmatch(text)
    letter, text = (match[1], match[2]) if match else ("", text)
    if text.count('"') % 2:
        text = text.strip('"')
    return letter, STRAY.sub("", text).strip() if text.count("'") % 2 else text.strip()


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    if subset == "v1_clean" and split != "test":
        raise DataError("PMC-VQA's checked part has a test split only: use subset v1")
    return rows.read(files.one(NAMES[subset].format(split=split)))


@reader(
    "pmc_vqa",
    "PMC-VQA",
    rows=_rows,
    splits=("test", "train"),
    subsets=tuple(NAMES),
    hub="RadGenome/PMC-VQA",
    hub_files={subset: (NAMES[subset], FOLDERS[subset][1]) for subset in NAMES},
    expects="test_2.csv and figures/ or images_2.zip (v2), or test.csv and images/ or images.zip (v1)",
    published=lambda split, subset: PUBLISHED[subset] if split == "test" else {},
    licence="CC BY-SA (hub card); figures of articles under CC0 or CC BY",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    if lacking := [letter for letter in "ABCD" if row.values.get(f"Choice {letter}") is None]:
        raise row.bad(f"Choice {lacking[0]}", "no such column")
    given = [row.values[f"Choice {letter}"] for letter in "ABCD"]
    cells = ["" if rows.absent(cell) else str(cell) for cell in given]
    cleaned = [clean(cell) for cell in cells]
    options = tuple(text for _, text in cleaned)
    answer = _key(row, options)
    if not options["ABCD".index(answer)]:
        raise row.bad(f"Choice {answer}", "the right option is empty")
    as_usual = "".join(letter for letter, _ in cleaned) == "ABCD"
    name = row.text("Figure_path")
    return Case(
        id=f"{subset}-{row.number}",
        question=" ".join(row.text("Question").split()).strip('"').strip(),
        options=options,
        answer=answer,
        images=(files.image(f"{FOLDERS[subset][0]}/{name}", row.where, instead=name),),
        labels={"letters": "A, B, C, D" if as_usual else "other"},
        columns={"raw_question": row.values["Question"], "raw_options": tuple(cells), "raw_answer": answer},
    )


def _key(row: rows.Row, options: tuple[str, ...]) -> str:
    """v2 gives a letter; v1 a text, which counts, and a letter, which is misread where the cells are mislabelled."""
    if "Answer_label" not in row.values:
        return row.letter(4, "Answer")
    named = [letter for letter, text in zip("ABCD", options, strict=True) if text == clean(row.text("Answer"))[1]]
    return named[0] if len(named) == 1 else row.letter(4, "Answer_label")
