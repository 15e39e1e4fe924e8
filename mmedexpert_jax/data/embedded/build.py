"""Builds MMedExpert-mini: `python -m mmedexpert_jax.data.embedded.build [directory]` writes the splits and the card."""

import io
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmedexpert_jax.data import columns
from mmedexpert_jax.data.case_files import EMBEDDED
from mmedexpert_jax.data.columns import IMAGES, TEXT, TEXTS
from mmedexpert_jax.data.embedded.recipe import TASKS, Generated, generate

SEED = 0
SIZES = {"train": 2400, "dev": 320, "test": 1280}


SCHEMA = columns.schema(
    {
        "id": TEXT,
        "question": TEXT,
        "options": TEXTS,
        "answer": TEXT,
        "specialty": TEXT,
        "task": TEXT,
        "images": IMAGES,
        "paradigm": TEXT,
        "trace": TEXT,
        "paradigms": TEXTS,
        "source": TEXT,
        "licence": TEXT,
        "doi": TEXT,
    },
    lists="List",
)


def png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    content = io.BytesIO()
    image.save(content, "png", optimize=True)
    return content.getvalue()


def row(made: Generated) -> dict:
    """A case as a row of the shipped schema."""
    case, task = made.case, next(task for task in TASKS if task.task == made.case.task)
    images = [{"bytes": png(image.picture()), "path": f"{case.id}.png"} for image in case.images]
    return columns.row(case, SCHEMA, images=images, source=task.source, licence=task.licence, doi=task.doi)


def write(path: Path, cases: Iterable[Generated]) -> None:
    """A Parquet file of cases; the same cases give the same bytes."""
    table = pa.Table.from_pylist([row(made) for made in cases], schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", compression_level=9)


def build(directory: Path = EMBEDDED, sizes: dict[str, int] | None = None) -> None:
    """Writes `<split>.parquet` for every split."""
    for split, count in (sizes or SIZES).items():
        write(directory / f"{split}.parquet", generate(SEED, count, split))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else EMBEDDED
    target.mkdir(parents=True, exist_ok=True)
    build(target)
    from mmedexpert_jax.data.embedded.embedded_card import write_card

    write_card(target)
