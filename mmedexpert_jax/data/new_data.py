"""A first data set of one's own, and the schema of its rows."""

import shlex
from pathlib import Path

from mmedexpert_jax import border
from mmedexpert_jax.data import case_rows
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.report.text_tables import markdown

EXAMPLE = Path(__file__).parents[1] / "assets" / "example"


def write_example(folder: str | Path) -> list[Path]:
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


def schema_table() -> str:
    """The keys of a row as a Markdown table, from `case_rows.KEYS`."""
    return markdown(
        [
            {"key": f"`{key}`", "value": value, "needed": "yes" if needed else "no", "meaning": meaning}
            for key, (value, needed, meaning) in case_rows.KEYS.items()
        ]
    ).rstrip("\n")
