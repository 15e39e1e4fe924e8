"""The docs say what the code does: generated pages are current, commands and names exist, snippets run."""

import ast
import contextlib
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mmedexpert_jax as mx
from mmedexpert_jax import __version__, errors
from mmedexpert_jax.config import job_config as configs
from mmedexpert_jax.config.flags import parse_flags
from mmedexpert_jax.config.validate import check_fields, validate
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.launch import console

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
GENERATE = runpy.run_path(str(DOCS / "generate.py"))
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\.venv/bin/)?mmedexpert (.*)$", re.MULTILINE)


def fences(page):
    return FENCE.findall((DOCS / page).read_text(encoding="utf-8"))


def commands(text):
    """Arguments of the jobs in a fence, and whether the page says that they are refused."""
    for line in COMMAND.findall(text.replace("\\\n", " ")):
        command, _, refused = line.partition(" || test $? = ")
        words = shlex.split(command, comments=True)
        if words[0] not in console.COMMANDS:
            yield console.expand(words), bool(refused)


def read(arguments):
    flags = parse_flags(arguments)
    config = configs.read_config(flags.config)
    configs.override(config, flags.overrides)
    return config


def test_the_page_of_fields_is_current():
    committed = (DOCS / "config.md").read_text(encoding="utf-8")
    assert committed == GENERATE["config_page"](), "the configs changed: run `python docs/generate.py`"


def test_the_table_of_a_rows_keys_is_current():
    page = (DOCS / "own.md").read_text(encoding="utf-8")
    assert page == GENERATE["schema_page"](page), "the schema changed: run `python docs/generate.py`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_table_is_whole(page):
    """Markdown ends a table at an empty line: rows behind it, without a line of dashes, are text with bars."""
    lines = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL).split("\n")
    starts = [n for n, line in enumerate(lines) if line.startswith("|") and not lines[n - 1].startswith("|")]
    assert all(re.match(r"\|[ :|-]+$", lines[n + 1]) for n in starts), [lines[n] for n in starts]


def test_every_field_of_every_job_has_a_meaning():
    for path in configs.available().values():
        documented = configs.field_docs(path)
        for preset in configs.presets_of(path):
            missing = set(configs.fields(configs.read_config(f"{path}:{preset}"))) - set(documented)
            assert not missing, f"{path.name} has fields without a comment: {sorted(missing)}"


def test_every_job_is_on_the_page():
    assert set(GENERATE["JOBS"]) == {path.stem for path in configs.available().values()}


@pytest.mark.parametrize("page", [page.name for page in PAGES] + ["../README.md"])
def test_commands_have_jobs_and_fields_that_exist(page):
    for kind, _, text in fences(page):
        for arguments, refused in commands(text) if kind == "sh" else []:
            if not any("configs/mine.py" in argument for argument in arguments):
                with pytest.raises(ConfigError) if refused else contextlib.nullcontext():
                    read(arguments)


def test_the_stable_names_are_seen_by_completion_and_by_type_checkers():
    stable = {dotted.partition(".")[0] for dotted in GENERATE["API"]}
    assert stable <= set(dir(mx)) and len(set(GENERATE["API"])) == len(GENERATE["API"])
    tree = ast.parse(Path(mx.__file__).read_text(encoding="utf-8"))
    typed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed >= set(mx.__all__) - {"__version__"}


def test_the_measurement_of_contamination_runs():
    """The block as the page has it, on a hundredth of its texts."""
    (text,) = (text for kind, _, text in fences("benchmarks.md") if kind == "python" and "contamination" in text)
    exec(compile(text.replace("0_000", "00"), "docs/benchmarks.md", "exec"), {})


def test_what_a_user_brings_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {}
    try:
        for kind, title, text in fences("own.md"):
            if title:
                Path(title).parent.mkdir(parents=True, exist_ok=True)
                Path(title).write_text(text, encoding="utf-8")
            elif kind == "python":
                exec(compile(text, "docs/own.md", "exec"), names)
        for kind, _, text in fences("own.md"):
            for arguments, _ in commands(text) if kind == "sh" else []:
                config = read(arguments)
                check_fields(config)
                validate(config)
    finally:
        names["benchmarks"].registry._SPECS.pop("mine", None)
        sys.modules.pop("my_rewards", None)


def test_the_equations_name_functions_that_exist():
    page = (DOCS / "method.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py): (\w+)`", page)
    assert len(named) > 15
    for file, name in named:
        tree = ast.parse((ROOT / "mmedexpert_jax" / file).read_text(encoding="utf-8"))
        assert name in {getattr(node, "name", "") for node in tree.body}, f"{file} has no {name}"
    paths = re.findall(r"`((?:mmedexpert|sft|gba|merging|medeval|rollout|data|launch)/[\w/.]*)[`:]", page)
    assert all((ROOT / "mmedexpert_jax" / path).exists() for path in paths)
    assert [int(n) for n in re.findall(r"^## Equation (\d)", page, re.MULTILINE)] == list(range(1, 8))


def test_the_errors_stand_in_the_source():
    template = GENERATE["_template"]
    source = set()
    for file in (ROOT / "mmedexpert_jax").rglob("*.py"):
        texts = (
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.JoinedStr | ast.Constant)
        )
        source |= {" ".join(template(node).split()) for node in texts}
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `([^`]*)` \|[^|]*\|$", page.partition("## Frequent")[2], re.MULTILINE)
    assert len(lines) > 10
    assert not [line for line in lines if line not in source]


def test_the_exit_codes_are_those_of_the_classes():
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    for name, code in GENERATE["CODES"].items():
        assert getattr(errors, name).exit_code == code and f"| {code} | `{name}` |" in page


def test_the_index_finds_errors_of_every_kind():
    found = GENERATE["errors"]()
    assert {code for code, _, _ in found} == {2, 3, 4, 5}
    assert (
        3,
        "mmedexpert_jax/data/case_files.py",
        "{file}, row {number}: id {id} stands twice; ids must be unique",
    ) in found
    built = GENERATE["on_page_markdown"]((DOCS / "errors.md").read_text())
    assert all(line in built for _, _, line in found)


def test_the_api_page_has_every_stable_name_with_its_docstring():
    page = GENERATE["on_page_markdown"]((DOCS / "api.md").read_text())
    for name in ("load_model", "load_policy", "generate", "merging.merge", "gba.policy_loss", "launch"):
        assert f"## `mx.{name}`" in page
    assert "- `logprobs`: [B, T] log-probabilities of the completions' tokens under the policy." in page
    assert "PPO's clipped surrogate" in page and "mmedexpert_jax/gba/objective.py" in page


def test_links_lead_somewhere_and_every_page_is_in_the_navigation():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = [page for group in navigation for entry in next(iter(group.values())) for page in _pages(entry)]
    made = [page for page in listed if page.startswith("gallery/")]  # by docs/gallery.py, before the site is built
    assert sorted(listed) == sorted([*made, *(page.name for page in PAGES)]) and len(made) == 1
    for page in PAGES:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\(([^)#\s]+)", prose):
            assert re.match(r"https?:", link) or link in made or (DOCS / link).exists(), f"{page.name}: {link}"


def test_the_package_files_agree_on_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    errors_page = (tmp_path / "site" / "errors" / "index.html").read_text(encoding="utf-8")
    assert "advantage_scale" in (tmp_path / "site" / "config" / "gba" / "index.html").read_text(encoding="utf-8")
    assert "ids must be unique" in errors_page and not (tmp_path / "site" / "generate.py").exists()


def _pages(entry):
    return [entry] if isinstance(entry, str) else list(entry.values())
