"""docs/architecture.md names files, functions and records that exist, and the arrows of the house's test."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mmedexpert_jax"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WAYS = re.findall(r"^## (From .*?)$.*?^```way\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
STEP = re.compile(r"^(\S+\.py) +([\w.]+) +(?:-> (\w+))? *(\S.*)$")
FOREIGN = {"ConfigDict", "Rule", "Rows"}  # of ml_collections; aliases of what optax and arrays give


def steps(way):
    return [STEP.match(line).groups() for line in way.splitlines()]


def names(file):
    """{name: what it is annotated to return} of a file's functions and classes (of these nothing), methods as
    Class.method."""
    found = {}
    for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = words(node.returns)
        elif isinstance(node, ast.ClassDef):
            methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            found |= {node.name: set()} | {f"{node.name}.{method.name}": words(method.returns) for method in methods}
    return found


def words(annotation):
    """Names in an annotation, those in quotes too."""
    return set(re.findall(r"\w+", ast.unparse(annotation))) if annotation else set()


def classes():
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def test_the_five_ways_are_drawn():
    assert len(WAYS) == 5


@pytest.mark.parametrize(("title", "way"), WAYS, ids=[title for title, _ in WAYS])
def test_a_way_names_what_exists_and_stays_short(title, way):
    drawn, known = steps(way), classes() | FOREIGN
    for file, name, record, _ in drawn:
        assert (PACKAGE / file).is_file(), f"{title}: no file {file}"
        assert name in names(file), f"{title}: {file} has no {name}"
        returned = names(file)[name] & known
        assert record in returned if record else not returned, f"{title}: {name} of {file} returns {returned}"
    assert len({file for file, *_ in drawn}) <= 8
    assert len({record for *_, record, _ in drawn if record}) <= 7


def test_files_and_names_beside_the_ways_exist():
    for file, name in re.findall(r"`([\w/]+\.py)(?:: (\w+))?`", PAGE):
        assert (PACKAGE / file).is_file(), file
        assert not name or name in names(file), f"{file} has no {name}"
    assert all((PACKAGE / room).is_dir() for room in re.findall(r"`([\w/]+/)`", PAGE))


def test_every_room_is_in_the_house_and_in_the_arrows():
    drawing, arrows = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    ignored = {"__init__", "__main__", "py", "assets"}
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix in ("", ".py")} - ignored
    rooms = {room for room in rooms if not room.startswith("__")}
    for figure in (drawing, arrows):
        missing = {room for room in rooms if not re.search(rf"\b{room}\b", figure)}
        assert not missing, f"not drawn: {sorted(missing)}"
