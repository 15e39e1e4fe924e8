"""The house: which folder may import which, and what importing costs."""

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mmedexpert_jax"
STAGES = {"mmedexpert", "sft", "gba", "merging", "medeval"}
GROUND = {
    "runtime",
    "processing",
    "remote",
    "statements",
    "lora",
    "adapter_config",
    "answers",
    "comparison",
    "intervals",
    "rounding",
    "hub",
    "errors",
    "privacy",
    "border",
    "lazy",
    "report",
    "config",
}
ALLOWED = {
    "__main__": {"launch"},
    "launch": {"plan"} | STAGES | {"train", "rollout", "data", "models"} | GROUND,
    "plan": STAGES | {"train", "rollout", "data", "models"} | GROUND,
    **{stage: {"train", "rollout", "data", "models"} | GROUND for stage in STAGES},
    "train": {"rollout", "data", "models"} | GROUND,
    "rollout": {"models"} | GROUND,
    "data": {"models"} | GROUND,
    "models": GROUND,
    **dict.fromkeys(GROUND, GROUND),
}
LIGHT = (
    "errors",
    "privacy",
    "border",
    "config",
    "answers",
    "intervals",
    "processing",
    "remote",
    "data",
    "config.flags",
    "config.validate",
)


@functools.cache
def _nodes(file: Path) -> list[ast.AST]:
    """All nodes of a file's syntax tree, the module first."""
    return list(ast.walk(ast.parse(file.read_text())))


def _part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(file: Path, without: Collection[int] = ()):
    """Every name that a file imports, at its top or inside a function, but by nodes of these ids."""
    for node in _nodes(file):
        if id(node) in without:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _edges() -> set[tuple[str, str]]:
    edges = set()
    for file in PACKAGE.rglob("*.py"):
        if file.parent == PACKAGE and file.name == "__init__.py":
            continue
        for name in _imports(file):
            parts = name.split(".")
            if (
                parts[0] == "mmedexpert_jax"
                and len(parts) > 1
                and parts[1] != _part(file)
                and parts[1] != "__version__"
            ):
                edges.add((_part(file), parts[1]))
    return edges


def test_arrows_run_one_way():
    wrong = sorted((a, b) for a, b in _edges() if b not in ALLOWED[a])
    assert not wrong, f"imports against the house's arrows: {wrong}"


def _module_edges() -> dict[str, set[str]]:
    """{module: the modules of the package that it imports, at its top or inside a function}; not for types alone."""
    files = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    edges = {}
    for module, file in files.items():
        checked = [
            node for node in _nodes(file) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ]
        typed = {id(inner) for node in checked for inner in ast.walk(node)}
        names = set(_imports(file, typed))
        edges[module] = {name if name in files else name.rpartition(".")[0] for name in names} & set(files) - {module}
    return edges


def test_modules_and_the_rooms_of_the_ground_have_no_circles():
    edges = {(a, b) for a, b in _edges() if a in GROUND and b in GROUND}
    rooms = {room: {b for a, b in edges if a == room} for room in GROUND}
    for graph in (_module_edges(), rooms):
        list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_every_file_name_stands_once():
    """`__init__.py` and `__main__.py` (`python -m mmedexpert_jax` and `.launch`) are names that Python gives."""
    names = Counter(file.name for file in PACKAGE.rglob("*.py"))
    assert {name for name, count in names.items() if count > 1} == {"__init__.py", "__main__.py"}


def test_every_class_name_has_one_meaning():
    names = Counter(
        node.name for file in PACKAGE.rglob("*.py") for node in _nodes(file)[0].body
        if isinstance(node, ast.ClassDef)
    )  # fmt: skip
    assert not [name for name, count in names.items() if count > 1]


def test_a_statement_has_one_conditional_expression_at_most():
    compound = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.For, ast.AsyncFor, ast.While, ast.With)
    compound += (ast.AsyncWith, ast.Try, ast.Match)
    for file in PACKAGE.rglob("*.py"):
        for node in _nodes(file):
            if isinstance(node, ast.stmt) and not isinstance(node, compound):
                count = sum(isinstance(inner, ast.IfExp) for inner in ast.walk(node))
                assert count <= 1, f"{file}:{node.lineno} has {count}; name one of them first"


# Files that parse what comes from outside; all others ask them.
PARSERS = {
    r"json\.loads?\(|msgspec\.json\.decode": {
        "border.py": "the border",
        "remote/outcomes.py": "an answer is paid: what can be read of it is, whatever stands beside",
        "runtime/processes.py": "what the processes of a job tell each other",
    },
    r"yaml\.(safe_)?load|tomllib": {"border.py": "the border"},
    r"csv\.(Dict)?[rR]eader|ParquetFile|\.read_table": {"data/tables.py": "the one reader of tables"},
    r"safe_open|load_file|np\.memmap": {
        "models/stored_tensors.py": "tensors of models, slice by slice",
        "lora.py": "factors of adapters, whole",
    },
    r"sqlite3\.connect": {"remote/database.py": "the one opener of data bases"},
    r"np\.load\(|pickle|torch\.load|(?<![.\w])eval\(": {
        "data/embedded/materials.py": "the package's own arrays",
    },
}


@pytest.mark.parametrize("call", PARSERS)
def test_what_comes_from_outside_enters_in_one_place(call):
    users = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if re.search(call, file.read_text())}
    assert users == set(PARSERS[call])


def test_only_models_knows_flax():
    users = {_part(f) for f in PACKAGE.rglob("*.py") for name in _imports(f) if name.split(".")[0] == "flax"}
    assert users <= {"models"}


def test_no_module_imports_torch():
    users = {
        str(f) for f in PACKAGE.rglob("*.py") for name in _imports(f) if name.split(".")[0] in {"torch", "torchvision"}
    }
    assert not users


@pytest.mark.parametrize("module", LIGHT)
def test_the_host_side_does_not_import_jax(module):
    code = f"import sys, mmedexpert_jax.{module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_docstrings_say_what_is_returned_instead_of_asking():
    asked = re.compile(r"(What|Which|Whether|Where|When|How|Why|Who)\b")
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in _nodes(file):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if asked.match(text):
                    found.append(f"{file.relative_to(PACKAGE)}: {text[:60]}")
    assert not found
