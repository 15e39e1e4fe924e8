"""Writes docs/config.md from the configs, the table of docs/own.md from the schema of a row, and the index of errors
into the built site from the source.

`python docs/generate.py` rewrites the page; a test fails while it differs from what the configs say. mkdocs calls
`on_page_markdown` as a hook, so that the index of errors is always that of the source that the site is built from.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmedexpert_jax.data.own import schema_table
from mmedexpert_jax.launch import config as configs

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "mmedexpert_jax"
JOBS = (
    *("dataset", "review", "dsa", "gba", "merge", "evaluate", "pipeline", "ablation", "export", "contamination"),
    *("pretrain", "serve", "ask"),
)
CODES = {"ConfigError": 2, "DataError": 3, "ResourceError": 4, "RemoteError": 5}
MARK = "<!-- index -->"
SCHEMA, SCHEMA_END = "<!-- schema -->", "<!-- schema end -->"
HEAD = """\
# Configuration

Written by `python docs/generate.py` from the comments in `configs/`, as `--list_config` prints them. Sections,
equations and appendices are the paper's. Set a field with `--config.<field>=<value>`: numbers (`1e-6`), `true` or
`false`, `none` where the type ends in `?`, tuples with commas (`2,4`). Defaults are those of the first preset; the
column beside has the presets that differ.
"""


def config_page() -> str:
    """The text of docs/config.md: a table of fields for every job."""
    jobs = {job: _rows(job) for job in JOBS}
    return "\n".join([HEAD, *(_section(job, jobs) for job in JOBS)])


def schema_page(page: str) -> str:
    """The text of docs/own.md with the table of a row's keys as `data.load.KEYS` has it."""
    before, _, rest = page.partition(SCHEMA)
    _, end, after = rest.partition(SCHEMA_END)
    return f"{before}{SCHEMA}\n{schema_table()}\n{end}{after}"


def errors() -> list[tuple[int, str, str]]:
    """(exit code, file, line) of every error that the package raises on purpose; names in braces are filled in."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE.parent).as_posix()
        found += [(code, name, line) for code, line in _raised(ast.parse(file.read_text(encoding="utf-8")))]
    return sorted(set(found))


def index_of_errors() -> str:
    """Tables of `errors`, one for each exit code."""
    parts = []
    for kind, code in CODES.items():
        rows = [f"| ``{line}`` | {file} |" for found, file, line in errors() if found == code]
        parts += [f"### Exit code {code} ({kind})\n", "| line | raised in |", "| --- | --- |", *rows, ""]
    return "\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs' hook: puts the index of errors where a page asks for it."""
    return markdown.replace(MARK, index_of_errors()) if MARK in markdown else markdown


def _rows(job: str) -> dict[str, tuple[str, str, str, str]]:
    """Field -> (type, default, presets that differ, meaning), in the order of the comments."""
    path = configs.find_config(f"configs/{job}.py")
    presets = configs.presets_of(path)
    by_preset = {name: configs.fields(configs.read_config(f"configs/{job}.py:{name}")) for name in presets}
    default = by_preset[presets[0]]
    docs = configs.field_docs(path)
    rows = {}
    for key in [*(key for key in docs if key in default), *(key for key in default if key not in docs)]:
        kind, optional, value = default[key]
        others = {name: fields[key][2] for name, fields in by_preset.items() if key in fields}
        differ = ", ".join(f"{name}: {_value(v)}" for name, v in others.items() if v != value and key != "preset")
        rows[key] = f"{kind.__name__}{'?' if optional else ''}", _value(value), differ, docs.get(key, "")
    return rows


def _section(job: str, jobs: dict[str, dict[str, tuple]]) -> str:
    """The job's table; of a pipeline's stages only what the stage's own job has otherwise."""
    path = configs.find_config(f"configs/{job}.py")
    lines = [f"## {job}", "", f"{configs.summary_of(path)} Presets: {', '.join(configs.presets_of(path))}.", ""]
    rows = jobs[job]
    stages = {key.partition(".")[0] for key in rows} & set(JOBS)
    if stages:
        listed = ", ".join(f"`{stage}.*`" for stage in JOBS if stage in stages)
        lines += [f"The groups {listed} hold the fields of these jobs; those with another default stand here.", ""]
    lines += ["| field | type | default | other presets | meaning |", "| --- | --- | --- | --- | --- |"]
    for key, row in rows.items():
        stage, _, field = key.partition(".")
        if stage not in stages or row != jobs[stage][field]:
            lines.append("| " + " | ".join([f"`{key}`", *map(_cell, row)]) + " |")
    return "\n".join([*lines, ""])


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "()"
    return str(value) if value != "" else '""'


def _cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("<", "&lt;")


def _raised(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Exit code and text of the calls that make an error with a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CODES and node.args:
            line = " ".join(_template(node.args[0]).split())
            if any(letter.isalpha() for letter in line.replace("...", "")):
                yield CODES[node.func.id], line


def _template(node: ast.expr) -> str:
    """A text as it stands in the source, what is filled in as {name}."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        plain = isinstance(node.value, ast.Name | ast.Attribute)
        return "{" + (ast.unparse(node.value).rpartition(".")[2] if plain else "...") + "}"
    return "..."


if __name__ == "__main__":
    (DOCS / "config.md").write_text(config_page(), encoding="utf-8")
    own = DOCS / "own.md"
    own.write_text(schema_page(own.read_text(encoding="utf-8")), encoding="utf-8")
