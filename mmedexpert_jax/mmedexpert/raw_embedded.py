"""The embedded raw cases, as a source would ship them: `python -m mmedexpert_jax.mmedexpert.raw_embedded [directory]`.

They are made by the recipe of MMedExpert-mini, from its train pool with a seed of their own, and carry no trace, no
paradigm and no specialty: the factory has to find all three. Text cases come as JSON Lines, cases with images as
Parquet. A few rows have the faults of files in the wild, so that the counts of a run show something.
"""

import sys
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from mmedexpert_jax import border
from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.data.embedded import generate
from mmedexpert_jax.data.embedded.build import png
from mmedexpert_jax.data.embedded.recipe import TASKS, Generated
from mmedexpert_jax.mmedexpert.sources.raw_collection import EMBEDDED

SEED, COUNT = 11, 240


def rows(seed: int = SEED, count: int = COUNT) -> tuple[list[dict], list[dict]]:
    """Text rows and image rows in the plain shape."""
    made = generate(seed, count, "train")
    texts = [_row(number, one) for number, one in enumerate(made) if not one.case.images]
    pictured = [_row(number, one) for number, one in enumerate(made) if one.case.images]
    return [*texts, *_faulty(texts)], pictured


def write(directory: Path) -> None:
    """Writes text.jsonl and images.parquet; the same recipe gives the same bytes."""
    texts, pictured = rows()
    directory.mkdir(parents=True, exist_ok=True)
    border.write_jsonl(directory / "text.jsonl", texts)
    parquet.write_table(pa.Table.from_pylist(pictured), directory / "images.parquet", compression="zstd")


def _row(number: int, made: Generated) -> dict:
    case, task = made.case, next(task for task in TASKS if task.task == made.case.task)
    row = {
        "id": f"raw-{number:04d}",
        "question": case.question,
        "options": dict(zip(LETTERS, case.options, strict=False)),
        "answer": case.answer,
        "source": "mini-raw",
        "licence": task.licence,
        "redistributable": True,
    }
    if case.images:
        images = [{"bytes": png(image.picture()), "path": "image.png"} for image in case.images]
        row |= {"options": list(case.options), "images": images}
    return row


def _faulty(texts: list[dict]) -> list[dict]:
    """A repeated row, a key outside the options, options inside the question, and an item on ethics."""
    again, keyless, inside = texts[0] | {"id": "raw-again"}, texts[1] | {"answer": "J"}, dict(texts[2])
    listed = "\n".join(f"({letter}) {text}" for letter, text in inside["options"].items())
    inside |= {"id": "raw-inside", "question": f"{inside['question']} Take care.\nAnswer Choices: {listed}"}
    ethics = {
        "id": "raw-ethics",
        "question": "A patient who has capacity refuses a transfusion. Which principle of medical ethics decides?",
        "options": {"A": "Autonomy", "B": "Justice", "C": "Veracity"},
        "answer": "A",
        "source": "mini-raw",
        "licence": "Apache-2.0",
        "redistributable": True,
    }
    return [again, keyless, inside, ethics]


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else EMBEDDED)
