"""Finished or running runs side by side: where their configs differ, and where their figures ended."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.report import text_tables
from mmedexpert_jax.runtime import files, metrics
from mmedexpert_jax.runtime.run import flat, read_status

# Figures of a row of metrics that tell how a run went, with their names for people.
FIGURES = {
    "eval/accuracy": "held-out accuracy",
    "rewards/accuracy/mean": "accuracy of samples",
    "reward": "reward",
    "loss": "loss",
    "kl": "KL",
    "completions/mean_length": "tokens of an answer",
}


def text(folders: Sequence[str]) -> str:
    """Two tables: the fields in which the runs differ, and state, step and figures, first -> last, of each.

    Raises ConfigError where a folder is no run.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    for path in paths:
        if not files.is_run(path):
            raise ConfigError(f"{border.cut(str(path), 200)} is no run directory; give folders such as runs/gba-mini")
    names = [str(path) for path in paths]
    configs = [flat(files.read_json(path / "config.json") or {}) for path in paths]
    keys = dict.fromkeys(key for config in configs for key in config if key != "workdir")
    different = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    fields = [
        {"field": key} | {name: border.shown(config.get(key), 40) for name, config in zip(names, configs, strict=True)}
        for key in different
    ]
    columns = [_figures(path) for path in paths]
    rows = [
        {"": row} | {name: column.get(row, "-") for name, column in zip(names, columns, strict=True)}
        for row in dict.fromkeys(row for column in columns for row in column)
    ]
    head = text_tables.aligned(fields) if fields else "the configs are the same but for their workdir"
    return f"{head}\n\n{text_tables.aligned(rows)}"


def _figures(path: Path) -> dict[str, Any]:
    """State and step of a run, and its figures from first to last."""
    status, rows = read_status(path), metrics.read(path)
    found: dict[str, Any] = {"state": status.get("state", "unknown"), "step": status.get("step", 0)}
    for name, label in FIGURES.items():
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        if values:
            found[label] = f"{values[0]:.4g} -> {values[-1]:.4g}"
    seconds = (status.get("cost") or {}).get("wall_seconds")
    return found | ({"wall seconds": f"{seconds:.0f}"} if seconds else {})
