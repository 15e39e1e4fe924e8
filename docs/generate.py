"""Writes docs/config.md from the configs and the table of docs/own.md from the schema of a row; and, while the site is
built, the index of errors, the API page from the docstrings, and a page of fields for each job.

`python docs/generate.py` rewrites the pages; a test fails while one differs from what the source says. mkdocs calls the
functions `on_*` as hooks, so that what they write is always that of the source that the site is built from.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmedexpert_jax.config import job_config as configs
from mmedexpert_jax.config.job_config import field_of
from mmedexpert_jax.data.new_data import schema_table

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "mmedexpert_jax"
JOBS = (
    *("dataset", "review", "dsa", "gba", "merge", "evaluate", "pipeline", "ablation", "export", "contamination"),
    *("pretrain", "serve", "ask"),
)
CODES = {"ConfigError": 2, "DataError": 3, "ResourceError": 4, "RemoteError": 5}
MARK, API_MARK = "<!-- index -->", "<!-- api -->"
API = (  # the stable names, and what they are made of
    *("load_model", "load_policy", "load_processor", "save_pretrained", "generate", "load_config", "launch.launch"),
    *("models.Model", "rollout.Completions", "processing.processor.Processor", "lora.Lora", "lora.init", "lora.fold"),
    *("lora.load_peft", "lora.save_peft", "data.load_cases", "data.Case", "data.prompts.conversation"),
    *("data.benchmarks.load", "data.benchmarks.reader", "data.benchmarks.Spec", "merging.merge"),
    *("gba.group_advantages", "gba.policy_loss", "gba.advantages.estimate", "gba.rewards.from_config"),
    *("medeval.judge_choice", "runtime.Run", "runtime.mesh.make_mesh", "answers.parse", "errors.UserError"),
)
SCHEMA, SCHEMA_END = "<!-- schema -->", "<!-- schema end -->"
HEAD = """\
# Configuration

Written by `python docs/generate.py` from `configs/` and `config/presets.py`, where all that is known of a field stands
in one place, as `--list_config` prints it. A field that a resume may change or raise says so under "takes"; with
another value of any other field a run starts anew. Sections, equations and appendices are the paper's. Set a field with
`--config.<field>=<value>`: numbers (`1e-6`), `true` or `false`, `none` where the type ends in `?`, tuples with commas
(`2,4`). Defaults are those of the first preset; the column beside has the presets that differ.
"""


def config_page() -> str:
    """The text of docs/config.md: a table of fields for every job."""
    jobs = {job: _rows(job) for job in JOBS}
    return "\n".join([HEAD, *(_section(job, jobs) for job in JOBS)])


def schema_page(page: str) -> str:
    """The text of docs/own.md with the table of a row's keys as `data.case_rows.KEYS` has it."""
    before, _, rest = page.partition(SCHEMA)
    _, end, after = rest.partition(SCHEMA_END)
    return f"{before}{SCHEMA}\n{schema_table()}\n{end}{after}"


@functools.cache  # a build asks for each page; mkdocs reads this file anew for each build
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


def api_page() -> str:
    """The stable names with signature and docstring, by module."""
    parts = []
    for dotted in API:
        module, _, name = f"mmedexpert_jax.{dotted}".rpartition(".")
        found = getattr(importlib.import_module(module), name)
        place = inspect.getsourcefile(inspect.unwrap(found)) or ""
        shown = dotted.removesuffix(".launch") if dotted == "launch.launch" else dotted
        parts += [f"## `mx.{shown}`\n", f"`{Path(place).relative_to(PACKAGE.parent).as_posix()}`\n"]
        parts += [
            f"```python\n{_signature(name, found)}\n```\n",
            _prose(inspect.getdoc(found) or ""),
            _fields(found),
            "",
        ]
    return "\n".join(parts)


def on_page_markdown(markdown: str, page: Any = None, **_: Any) -> str:
    """mkdocs' hook: the indices where a page asks for them; of the page of all fields its head and links to jobs."""
    if page is not None and page.file.src_uri == "config.md":
        return HEAD + "\n" + "\n".join(f"- [{job}](config/{job}.md)" for job in JOBS)
    for mark, write in ((MARK, index_of_errors), (API_MARK, api_page)):
        markdown = markdown.replace(mark, write()) if mark in markdown else markdown
    return markdown


def on_config(config: Any) -> Any:
    """mkdocs' hook: a page of fields for each job, in the navigation behind the page that has them all."""
    for group in config.nav:
        for pages in group.values():
            for place, entry in enumerate(pages):
                if isinstance(entry, dict) and "config.md" in entry.values():
                    jobs = [{job: f"config/{job}.md"} for job in JOBS]
                    pages[place] = {"Configuration": [{"All jobs": "config.md"}, *jobs]}
    return config


def on_files(files: Any, config: Any) -> Any:
    """mkdocs' hook: the pages of `on_config`, and the gallery of docs/gallery.py."""
    from mkdocs.structure.files import File  # of the extra `docs`

    jobs = {job: _rows(job) for job in JOBS}
    for job in JOBS:
        text = _section(job, jobs).replace(f"## {job}", f"# {job}", 1)
        files.append(File.generated(config, f"config/{job}.md", content=text))
    gallery = runpy.run_path(str(DOCS / "gallery.py"))
    files.append(File.generated(config, "gallery/index.md", content=gallery["index"]()))
    for page in sorted(gallery["FOLDER"].glob("*.html")):
        files.append(File.generated(config, f"gallery/{page.name}", abs_src_path=str(page)))
    return files


def _signature(name: str, found: Any) -> str:
    """`name(arguments) -> result`, an argument a line where it is long."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return name
    text = f"{name}{signature}".replace("mmedexpert_jax.", "")
    if len(text) <= 100:
        return text
    lines = "".join(f"    {parameter},\n" for parameter in signature.parameters.values())
    result = "" if signature.return_annotation is inspect.Signature.empty else f" -> {signature.return_annotation}"
    return f"{name}(\n{lines}){result}".replace("mmedexpert_jax.", "")


def _fields(found: Any) -> str:
    """The fields of a dataclass as a list, with the comments beside or above them; "" for anything else."""
    if not dataclasses.is_dataclass(found):
        return ""
    names, listed, above = {field.name for field in dataclasses.fields(found)}, [], []
    for line in inspect.getsource(found).splitlines():
        code, _, comment = line.strip().partition("# ")
        if not code and comment:
            above.append(comment)
            continue
        name = code.partition(":")[0]
        if name in names and (said := comment or " ".join(above)):
            listed.append(f"- `{name}`: {said}")
        above = []
    return "\n".join(["", "**Fields**", "", *listed]).replace("<", "&lt;") if listed else ""


def _prose(doc: str) -> str:
    """A docstring in Google's style as Markdown: sections in bold, their entries as a list."""
    lines, listed = [], False
    for line in doc.splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises):", line):
            lines += ["", f"**{line[:-1]}**", ""]
            listed = True
        elif listed and (entry := re.match(r"    (\w[\w, *]*): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            listed = listed and (not line or line.startswith(" "))
            lines.append(line.strip() if listed else line)
    return "\n".join(lines).replace("<", "&lt;")


def _rows(job: str) -> dict[str, tuple[str, str, str, str, str]]:
    """Field -> (type, default, presets that differ, what it takes, meaning), in the order of the comments."""
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
        name = f"{kind.__name__}{'?' if optional else ''}"
        rows[key] = name, _value(value), differ, field_of(key, job).takes(kind), docs.get(key, "")
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
    lines += ["| field | type | default | other presets | takes | meaning |", "| --- " * 6 + "|"]
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
