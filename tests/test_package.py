"""The wheel carries what a run needs in an empty folder, with the licence of every file, and asks for what it needs."""

import ast
import fnmatch
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from mmedexpert_jax import __version__
from mmedexpert_jax.errors import EXTRAS

ROOT = Path(__file__).parents[1]
# what the project stands on
ASKED_FOR = (
    *("jax", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy", "einops", "chex"),
    "ml-collections",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder / f"mmedexpert_jax-{__version__}-py3-none-any.whl"


def test_it_carries_code_configs_and_the_embedded_default(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in ((ROOT / "mmedexpert_jax", "mmedexpert_jax"), (ROOT / "configs", "mmedexpert_jax/configs")):
        files = {f"{inside}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*") if path.is_file()}
        assert {name for name in files if "__pycache__" not in name} <= names
    assert not [name for name in names if re.search(r"__pycache__|/tests/|\.ipynb$", name)]


def test_every_shipped_file_has_a_licence(wheel):
    archive = zipfile.ZipFile(wheel)
    licences = f"mmedexpert_jax-{__version__}.dist-info/licenses"
    notice = archive.read(f"{licences}/NOTICE").decode()
    assert "Apache License" in archive.read(f"{licences}/LICENSE").decode()
    patterns = re.findall(r"^  ([\w/*.-]+)  +\S", notice.partition("Material of third parties")[0], re.MULTILINE)
    shipped = [name.removeprefix("mmedexpert_jax/") for name in archive.namelist() if ".dist-info/" not in name]
    assert not [name for name in shipped if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    assert not [pattern for pattern in patterns if not fnmatch.filter(shipped, pattern)]


def test_what_python_it_asks_for_is_what_it_says(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = zipfile.ZipFile(wheel).read(f"mmedexpert_jax-{__version__}.dist-info/METADATA").decode()
    assert f"Requires-Python: {project['requires-python']}" in metadata and project["requires-python"] == ">=3.11"
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert "torch" not in required and set(ASKED_FOR) <= set(required)


def test_what_is_imported_is_asked_for():
    """By the package itself, and not by another that it stands on, which may turn to something else."""
    imported = set()
    for file in ROOT.glob("mmedexpert_jax/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = [part.name for part in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.partition(".")[0] for name in named}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = {re.match(r"[\w.-]+", entry)[0].lower().replace("_", "-") for group in groups for entry in group}
    given = packages_distributions()
    others = imported - set(sys.stdlib_module_names) - {"mmedexpert_jax"}
    parts = {name: {part.lower().replace("_", "-") for part in given.get(name, [name])} for name in others}
    assert not {name for name, of in parts.items() if not of & asked}


@pytest.mark.slow
@pytest.mark.parametrize("versions", ["newest", "lowest"])
def test_a_job_runs_from_the_wheel_alone_in_an_empty_folder(versions, wheel, tmp_path):
    """In an environment into which pip installed the wheel and what it asks for: needs a package index."""
    python, empty = tmp_path / "environment" / "bin" / "python", tmp_path / "empty"
    empty.mkdir()
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(command, cwd=empty, env=outside, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    run(sys.executable, "-m", "venv", python.parents[1])
    constraints = ("-c", ROOT / ".ci" / "lowest.txt") if versions == "lowest" else ()
    run(python, "-m", "pip", "install", "--quiet", wheel, *constraints)
    run(python, "-m", "pip", "check")
    installed = set(re.findall(r"^[\w-]+", run(python, "-m", "pip", "list", "--format=freeze").lower(), re.MULTILINE))
    assert "jax" in installed and not installed & {"torch", "torchvision", "peft", "trl", "tensorboardx"}
    fields = ["steps=1", "prompts_per_step=2", "num_samples=2", "max_new_tokens=16", "eval.limit=8"]
    command = [python, "-m", "mmedexpert_jax.launch", "--config", "configs/gba.py"]
    said = run(*command, *(f"--config.{field}" for field in fields))
    assert "done: runs/gba-mini" in said and "PyTorch" not in said
    assert (empty / "runs" / "gba-mini" / "report.html").exists()
    assert [path.name for path in empty.iterdir()] == ["runs"]


def test_hints_never_assume_an_index_that_holds_the_package():
    """Extras are of this folder or a wheel: `pip install mmedexpert-jax[...]` would fetch another's package."""
    files = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("notebooks/*.ipynb"),
        *ROOT.glob("mmedexpert_jax/**/*.py"),
    ]
    wrong = re.compile(r"pip install [^\n]*?[\"']?mmedexpert[-_]jax(?![-\w]*[-.\d]*-py3|.*\.whl)")
    assert not [f"{file}: {found[0]}" for file in files if (found := wrong.search(file.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("module", ["mmedexpert_jax", "mmedexpert_jax.launch"])
def test_windows_is_refused_in_a_line(module):
    """Of Windows, only its name and the modules that it lacks can be had here."""
    lacking = "import sys, runpy; sys.modules |= dict.fromkeys(('fcntl', 'resource', 'termios', 'pwd')); "
    code = f"{lacking}sys.platform = 'win32'; runpy.run_module({module!r}, run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)
    assert ended.stderr.startswith("error: Windows is not supported; run it in WSL")


def test_what_an_extra_needs_is_what_pip_is_told_to_install():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name: list(packages) for name, (_, packages) in EXTRAS.items()} == {name: extras[name] for name in EXTRAS}
