"""One generator a surface: a seed becomes a damaged input and the call that reads it, in this process.

A generator gets a random number generator, the right material (`Kit`) and an empty folder, and returns a `Trial`. Where
a trial is `wrong`, the input is wrong beyond doubt, so that taking it in silence is a failure too.
"""

import base64
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file
from starlette.testclient import TestClient

from mmedexpert_jax import border, lora, models
from mmedexpert_jax.config import job_config as configs
from mmedexpert_jax.config.validate import check_fields, validate
from mmedexpert_jax.data import benchmarks, load_cases
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.gba.guidelines import load_texts
from mmedexpert_jax.launch import cli
from mmedexpert_jax.launch.console import main as console
from mmedexpert_jax.merging.merge_recipe import read_recipe
from mmedexpert_jax.merging.mergekit import read_mergekit
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.review.access import Access, secret
from mmedexpert_jax.mmedexpert.review.adjudication import ReviewSettings
from mmedexpert_jax.mmedexpert.review.review_queue import ReviewQueue
from mmedexpert_jax.mmedexpert.review.review_server import ReviewServer
from mmedexpert_jax.mmedexpert.review.review_traces import from_case
from mmedexpert_jax.mmedexpert.sources.raw_collection import collect
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.remote.outcomes import classify
from mmedexpert_jax.rollout import server as model_server
from mmedexpert_jax.rollout.desk import Desk
from mmedexpert_jax.runtime import Run
from tests.fuzz.damage import DOCUMENTS, VALUES, dumped, kind, mutated, paths, spoiled

KEY = "sk-never-to-be-seen-anywhere"


@dataclass(frozen=True)
class Trial:
    """An input in words, the call that reads it, whether it must be refused, and a check of what it returned."""

    what: str
    call: Callable[[], Any]
    wrong: bool = False
    right: Callable[[Any], bool] = lambda _: True


class Kit:
    """The right material, made once."""

    def __init__(self, checkpoint: Path, cases: Path, folder: Path):
        self.checkpoint, self.cases, self.folder = checkpoint, cases, folder

    @cached_property
    def policy(self) -> tuple:
        """(model, params) of the tiny checkpoint."""
        return models.load_policy(str(self.checkpoint))[:2]

    @cached_property
    def adapter(self) -> Path:
        """A peft adapter over the checkpoint."""
        deltas = lora.init(jax.random.key(0), self.policy[1], rank=2, alpha=4, targets="text")
        lora.save_peft(self.folder / "adapter", deltas, str(self.checkpoint))
        return self.folder / "adapter"

    @cached_property
    def run(self) -> Path:
        """A run with metrics and a status."""
        with Run.open(self.folder / "run", RUN) as run:
            for step in range(1, 6):
                run.log(step, {"loss": 1.0})
        return self.folder / "run"

    @cached_property
    def review(self) -> tuple[TestClient, str, str]:
        """A client of the review's application, a person's token, a trace's id."""
        picture = Image.new("RGB", (20, 10), "red")
        cases = [
            Case(f"c{i}", "What?", ("gout", "sepsis"), "B", "AM", "", (picture,), "analytical", "(1) So it is sepsis.")
            for i in range(4)
        ]
        (self.folder / "review").mkdir()
        store = Store(self.folder / "review" / "review.sqlite")
        desk = ReviewQueue(store, [from_case(case) for case in cases], ReviewSettings(("anna",), ("chief",), 1.0))
        access = Access(secret(self.folder / "review"), ("anna",), ("chief",))
        server = ReviewServer("127.0.0.1", 0, desk, access)
        client = TestClient(server._application(), base_url=f"http://127.0.0.1:{server.port}")
        return client, access.tokens[next(p for p in access.tokens if p.name == "anna")], next(iter(desk.traces))

    @cached_property
    def served(self) -> TestClient:
        """A client of the model server over the tiny checkpoint."""
        processor = models.load_processor(str(self.checkpoint))
        desk = Desk(*self.policy, {"tiny": None}, processor, 2, 4, 256, 4)
        return TestClient(model_server.application(desk, KEY))


RUN = {"job": "dsa", "seed": 0, "lr": 1e-3, "steps": 8}


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder whose files may be replaced one by one."""
    return Path(shutil.copytree(source, target))


def damaged_json(rng: random.Random, file: Path, keys: tuple[str, ...] = ()) -> tuple[str, bool]:
    """Damages a JSON file in place: a value of any place (of `keys` alone), or the document. (what, wrong)."""
    tree = json.loads(file.read_text())
    if rng.random() < 0.2:
        document = rng.choice(DOCUMENTS)
        file.write_bytes(document if isinstance(document, bytes) else document.encode())
        return f"{file.name} is {document[:20]!r}", True
    places = [path for path in paths(tree) if not keys or path[-1] in keys]
    tree, what, wrong = mutated(rng, tree, places)
    file.write_text(dumped(tree))
    return f"{file.name}: {what}", wrong and bool(keys)


# -- models ------------------------------------------------------------------------------------------------------------
READ = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "depth", "embed_dim", "patch_size"),
    *("rope_scaling", "mrope_section", "vision_config"),
)


def weights(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """safetensors: bytes of header and data, shapes, dtypes, names; its index."""
    model = copied(kit.checkpoint, folder / "model")
    file = model / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    how = rng.choice(("bytes", "header", "length", "tensor", "index", "missing"))
    if how == "bytes":
        spoilt, what = spoiled(rng, content[: 8 + length])
        file.write_bytes(spoilt + content[8 + length :])
        return Trial(what, lambda: models.load_model(str(model)))
    if how == "header":
        header, what, wrong = mutated(rng, json.loads(content[8 : 8 + length]))
        text = dumped(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
        return Trial(what, lambda: models.load_model(str(model)), wrong and "__metadata__" not in what)
    if how == "length":
        size = rng.choice((0, 1, length - 1, 2**63, 2**64 - 1, len(content), 10**8 + 1))
        file.write_bytes(struct.pack("<Q", size) + content[8:])
        return Trial(f"header of {size} bytes", lambda: models.load_model(str(model)), True)
    if how == "tensor":
        tensors = load_file(file)
        name = rng.choice(sorted(tensors))
        other = rng.choice((np.zeros(0, np.float32), np.zeros((3, 5, 7), np.float32), np.int32(3).reshape(1)))
        save_file(tensors | {name: other}, file, {"format": "pt"})
        return Trial(f"{name} of {other.shape}", lambda: models.load_model(str(model)), True)
    if how == "index":
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(load_file(file), file.name)}
        place = model / "model.safetensors.index.json"
        place.write_text(dumped(index))
        what, _ = damaged_json(rng, place)
        return Trial(what, lambda: models.load_model(str(model)))
    gone = rng.choice(("model.safetensors", "config.json"))
    (model / gone).unlink()
    return Trial(f"no {gone}", lambda: models.load_model(str(model)), True)


def model_config(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """config.json and generation_config.json."""
    model = copied(kit.checkpoint, folder / "model")
    if rng.random() < 0.2:
        what, wrong = damaged_json(rng, model / "generation_config.json", ("eos_token_id",))
        wrong = wrong and "= ['x'" in what
    else:
        what, wrong = damaged_json(rng, model / "config.json", READ if rng.random() < 0.7 else ())
    return Trial(what, lambda: models.load_model(str(model)), wrong)


def tokenizer(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Tokenizer, chat template, image settings; read, and one image and question encoded."""
    model = copied(kit.checkpoint, folder / "model")
    name = rng.choice(
        ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "preprocessor_config.json")
    )
    keys = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "min_pixels", "max_pixels")
    what, wrong = damaged_json(rng, model / name, keys if name.startswith("pre") else ())
    wrong = wrong and "NaN" not in what  # transformers reads it

    def use() -> None:
        image = {"type": "image", "image": Image.new("RGB", (60, 40))}
        Processor.load(model).encode([{"role": "user", "content": [image, {"type": "text", "text": "So?"}]}])

    return Trial(what, use, wrong)


def adapters(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """peft adapters: settings, bytes, tensors that are misshapen or not finite."""
    adapter = copied(kit.adapter, folder / "adapter")
    file = adapter / "adapter_model.safetensors"
    how = rng.choice(("settings", "bytes", "tensor"))
    if how == "settings":
        what, wrong = damaged_json(rng, adapter / "adapter_config.json", ("r", "lora_alpha", "rank_pattern"))
    elif how == "bytes":
        content, what = spoiled(rng, file.read_bytes())
        file.write_bytes(content)
        wrong = False
    else:
        tensors = load_file(file)
        name = rng.choice(sorted(tensors))
        value = rng.choice((np.nan, np.inf, None))
        old = tensors[name]
        tensors[name] = np.zeros((2, 3, 4), np.float32) if value is None else np.full_like(old, value)
        save_file(tensors, file)
        what, wrong = f"{name} is {value}", True
    return Trial(what, lambda: lora.load_peft(adapter, kit.policy[1]), wrong)


# -- cases, raw cases, benchmarks --------------------------------------------------------------------------------------
CASE_KEYS = ("question", "options", "answer", "specialty", "paradigm", "trace")


def case_rows(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Rows and files of cases."""
    lines = (kit.cases / "train.jsonl").read_text().splitlines()
    number = rng.randrange(len(lines))
    how = rng.choice(("row", "row", "row", "line", "file", "answer", "image", "suffix"))
    file, wrong = folder / "train.jsonl", True
    row = json.loads(lines[number])
    if how == "row":
        row, what, wrong = mutated(rng, row, [(key,) for key in CASE_KEYS])
        lines[number] = dumped(row)
    elif how == "line":
        lines[number] = what = rng.choice([d for d in DOCUMENTS if isinstance(d, str) and d.strip()])
    elif how == "answer":
        what = rng.choice(("AB", "D", "Z", "a b", "", "1", "A,B", "AA"))
        lines[number] = dumped(row | {"answer": what})
    elif how == "image":
        what = rng.choice(
            ("no.png", "/etc/passwd", "../x.png", "x" * 5000, "data:image/png;base64,AAAA", "http://x/y.png")
        )
        lines[number] = dumped(row | {"images": [what]})
    elif how == "suffix":
        file = folder / f"train.{rng.choice(('parquet', 'csv', 'xlsx'))}"
        what = file.suffix
    content = "\n".join(lines).encode()
    if how == "file":
        content, what = spoiled(rng, content)
        wrong = False
    file.write_bytes(content)
    return Trial(f"{how}: {what[:60]}", lambda: [case.images for case in load_cases(str(folder), "train")], wrong)


RAW = {"id": "r", "question": "Fever. What is it?", "options": {"A": "gout", "B": "sepsis"}, "answer": "B"}


def raw_cases(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Raw rows: one that is wrong is refused with a reason, and all others are kept."""
    rows = [RAW | {"id": f"r{i}", "question": f"Fever on day {i}. What is it?"} for i in range(6)]
    number = rng.randrange(len(rows))
    extra = {"images": rng.choice(VALUES)} if rng.random() < 0.3 else {}
    row, what, wrong = mutated(rng, rows[number] | extra, [(key,) for key in RAW if key != "id"])
    lines = [dumped(row if place == number else one) for place, one in enumerate(rows)]
    if rng.random() < 0.3:
        lines[number] = what = rng.choice([d for d in DOCUMENTS if isinstance(d, str) and d.strip()])
        wrong = True
    (folder / "raw.jsonl").write_text("\n".join(lines))

    def right(found: Any) -> bool:
        kept = len(found.records)
        return kept + len(found.rejected) == len(rows) and kept >= len(rows) - 1 and (kept < len(rows) or not wrong)

    return Trial(f"{what[:80]} {extra}"[:160], lambda: collect([str(folder / "raw.jsonl")]), False, right)


BENCHMARKS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "medxpertqa_text": (
        "Text/test.jsonl",
        {"id": "Text-0", "question": "Which?\nAnswer Choices: (A) Repair (B) Plication", "label": "B",
         "options": {"A": "Repair", "B": "Plication"}, "medical_task": "Treatment", "body_system": "Skeletal",
         "question_type": "Reasoning"},
        ("question", "options", "label"),
    ),
    "medqa": (
        "questions/US/test.jsonl",
        {"question": "Which?", "options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "answer": "b", "answer_idx": "B",
         "meta_info": "step1"},
        ("question", "options", "answer_idx"),
    ),
    "medmcqa": (
        "dev.json",
        {"id": "a1", "question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 2,
         "choice_type": "single", "exp": "", "subject_name": "Anatomy", "topic_name": None},
        ("question", "opa", "cop"),
    ),
}  # fmt: skip


def benchmark_rows(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Rows and files of benchmarks."""
    name = rng.choice(sorted(BENCHMARKS))
    place, row, keys = BENCHMARKS[name]
    file = folder / place
    file.parent.mkdir(parents=True, exist_ok=True)
    if rng.random() < 0.7:
        row, what, wrong = mutated(rng, row, [(key,) for key in keys])
        wrong = wrong and kind(at_key(row, what)) not in ("number", "bool", "str")  # a number may be told in words
        file.write_text(dumped(row) + "\n")
    else:
        content, what = spoiled(rng, (dumped(row) + "\n").encode())
        file.write_bytes(content)
        wrong = False
    return Trial(f"{name}: {what}", lambda: benchmarks.load(name, folder), wrong)


def at_key(row: dict, what: str) -> Any:
    """The value of the key that a mutation's words begin with."""
    return row[what.partition(" = ")[0]]


# -- configs, command lines, merge files -------------------------------------------------------------------------------
CONFIG = '''"""A config."""
from ml_collections import ConfigDict
PRESETS = ("mini",)
def get_config(preset="mini"):
    config = ConfigDict()
    {}
    return config
'''
STATEMENTS = (
    *("import sys; sys.exit(0)", "1 / 0", "raise SystemExit('x')", "return 3", "return None", "raise KeyError(3)"),
    *("config.job = 'nothing'", "raise MemoryError", "config = {}", "def", "\0", "import nothing_of_this_name"),
    *("raise StopIteration", "from os import _no", "raise BaseException('x')", "raise GeneratorExit", "(" * 5000),
    *("config.job = 3", "config.lr = float('nan'); config.job = 'dsa'", "raise RecursionError", "assert False", "pass"),
)
JOBS = ("dsa", "gba", "merge", "evaluate", "dataset", "export", "serve", "ask", "review", "contamination", "pipeline")


def config_files(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Python files that are no configs, by the whole command."""
    file = folder / "mine.py"
    statement = rng.choice(STATEMENTS)
    content = CONFIG.format(statement).encode()
    if rng.random() < 0.4:
        content, statement = spoiled(rng, content)
    file.write_bytes(content)
    preset = rng.choice(("", ":mini", ":other", ":", "::"))
    return Trial(
        f"{statement[:60]} {preset}", lambda: cli.main([f"--config={file}{preset}", "--config.plan=True"]), True
    )


TEXTS = (
    *("ten", "1e999", "nan", "-inf", "\u00b2", "1_0", "0x10", "--", "1,2,x", "[", "{}", "1" * 5000, "a" * 5000),
    *("-1000000000", "1e400", "1.5.2", "\ud800", "none", "", "((", "lambda: 0", "\u0661"),
)


def command_fields(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """One field of a job set to a text that it cannot take."""
    job = rng.choice(JOBS)
    config = configs.read_config(f"configs/{job}.py").unlock()
    leaves = {key: leaf for key, leaf in configs.fields(config).items() if key not in configs.FIXED}
    key = rng.choice(sorted(leaves))
    text = rng.choice(TEXTS)
    number = leaves[key][0] in (int, float)
    never = ("ten", "1e999", "nan", "-inf", "[", "{}", "1.5.2", "((", "lambda: 0", "a" * 5000, "1,2,x", "\u00b2", "--")
    signed = "rewards." in key or key in ("scale", "dsa.scale") or key.endswith(".scale")
    wrong = (leaves[key][0] is bool and text not in ("none", "")) or (
        number and (text in never or (text == "-1000000000" and not signed))
    )

    def use() -> None:
        configs.override(config, [(key, text)])
        check_fields(config)
        validate(config)

    return Trial(f"{job}: {key}={text[:40]!r}", use, bool(wrong))


FLAGS = (
    *("--", "--config.", "--config.=3", "--config..=1", "--nope", "x", "--config.no.such=1", "-x", "--config.job=gba"),
    *("--debug=3", "--help=x", "--config.model=3", "\ud800", "--config.seed"),
)


def command_lines(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Arguments, overrides files, guideline files, by the whole command."""
    job = rng.choice(JOBS)
    base = [f"--config=configs/{job}.py", "--config.plan=True", f"--config.workdir={folder / 'w'}"]
    how = rng.choice(("flag", "short", "spec", "overrides", "processes", "guideline", "path", "command"))
    if how == "flag":
        more = rng.choice(FLAGS)
        return Trial(f"{job} {more!r}", lambda: cli.main([*base, more]), more not in ("--help=x", "--debug=3"))
    if how == "short":
        words = [
            rng.choice((job, "dsa:none", "nojob", "lr=", "=3", "lr=1e-5=3", ":", "../x", "a" * 5000)) for _ in "ab"
        ]
        return Trial(f"{words}"[:80], lambda: console([*words, "--plan", "no.such.field=1"]), True)
    if how == "spec":
        spec = rng.choice(
            ("", ":", "x" * 5000, "\0", "/", ".", "configs", "configs/gba.py:x", "~", "http://[", "\ud800")
        )
        return Trial(f"--config={spec[:40]!r}", lambda: cli.main([f"--config={spec}", "--config.plan=True"]), True)
    if how == "processes":
        count = rng.choice(("\u00b2", "0", "-1", "x", "1e9", "", "99999999999", "1.5", "nan"))
        return Trial(f"--processes={count}", lambda: cli.main([*base, f"--processes={count}"]), True)
    if how == "path":
        path = rng.choice(
            ("x" * 5000, "\0", str(folder / "none"), "~nobody_of_that_name/x", "http://[::1/v1", "random:x")
        )
        return Trial(
            f"model.path={path[:40]!r}",
            lambda: cli.main(
                ["--config=configs/export.py", f"--config.workdir={folder / 'w'}", f"--config.model.path={path}"]
            ),
            True,
        )
    if how == "command":
        name = rng.choice(("compare", "check-data", "convert-data", "new-data", "completion"))
        file = folder / "f.jsonl"
        file.write_bytes(spoiled(rng, b'{"a": 1}\n')[0])
        words = rng.choice(([], [str(file)], [str(file), str(file)], ["\0", "x" * 5000], [str(folder)]))
        return Trial(f"{name} {words}"[:80], lambda: console([name, *words]), not words)
    file = folder / "o.json"
    document = rng.choice(
        (*DOCUMENTS, '{"seed": "x"}', '{"lr": NaN}', '{"seed": [1]}', '{"no": {"such": 1}}', '{"job": "gba"}')
    )
    file.write_bytes(document if isinstance(document, bytes) else document.encode())
    if how == "guideline":
        return Trial(
            f"guideline {document[:20]!r}",
            lambda: load_texts(str(file)),
            document != '{"job": "gba"}' and document != '{"seed": "x"}',
        )
    return Trial(f"overrides {document[:20]!r}", lambda: cli.main([*base, f"--overrides={file}"]), True)


def merge_files(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """mergekit's YAML and our recipe.json."""
    base = str(kit.checkpoint)
    tree = {
        "merge_method": "ties", "base_model": base, "dtype": "float32",
        "models": [{"model": base, "parameters": {"weight": 1.0, "density": [0.2, 0.3]}}],
        "parameters": {"normalize": True, "lambda": 1.0},
    }  # fmt: skip
    file = folder / "merge.yaml"
    if rng.random() < 0.2:
        (folder / "recipe.json").write_text(dumped({"base": base, "experts": {"a": base}, "method": "ties"}))
        what, _ = damaged_json(rng, folder / "recipe.json")
        return Trial(what, lambda: read_recipe(folder / "recipe.json"))
    if rng.random() < 0.25:
        content, what = spoiled(rng, yaml.safe_dump(tree).encode())
        file.write_bytes(content)
        return Trial(what, lambda: read_mergekit(file))
    tree, what, wrong = mutated(rng, tree)
    file.write_text(dumped(tree))
    loose = ("models.0.parameters = {}", "parameters = {}")  # a number, a list of numbers or a rule by name
    spec = what.startswith(("models.0.parameters.", "parameters.lambda")) and "= [" in what
    text = what.endswith(("= nan", "= inf"))  # of JSON's making: to YAML a text, the name of a model
    return Trial(what, lambda: read_mergekit(file), wrong and what not in loose and not spec and not text)


def _row_of(kit: Kit, folder: Path, image: str) -> Any:
    """A case whose image is at a path, and the picture that it shows."""
    row = json.loads((kit.cases / "train.jsonl").read_text().splitlines()[0]) | {"images": [image]}
    (folder / "train.jsonl").write_text(dumped(row))
    return [ref.picture() for case in load_cases(str(folder), "train") for ref in case.images]


def _opened(kit: Kit, folder: Path, path: str) -> Any:
    Run.open(path, RUN).close()


READERS: dict[str, Callable[[Kit, Path, str], Any]] = {
    "image": _row_of,
    "workdir": _opened,
    "cases": lambda kit, folder, path: load_cases(path, "train"),
    "raw cases": lambda kit, folder, path: collect([path]),
    "benchmark": lambda kit, folder, path: benchmarks.load("medqa", path),
    "guideline": lambda kit, folder, path: load_texts(path),
    "mergekit": lambda kit, folder, path: read_mergekit(Path(path)),
    "recipe": lambda kit, folder, path: read_recipe(Path(path)),
    "model": lambda kit, folder, path: models.load_model(path),
    "adapter": lambda kit, folder, path: lora.load_peft(path, kit.policy[1]),
    "processor": lambda kit, folder, path: Processor.load(path),
    "config": lambda kit, folder, path: cli.main([f"--config={path}", "--config.plan=True"]),
    "overrides": lambda kit, folder, path: cli.main(["--config=configs/dsa.py", f"--overrides={path}"]),
    "check-data": lambda kit, folder, path: console(["check-data", path]),
    "convert-data": lambda kit, folder, path: console(["convert-data", path, str(folder / "o")]),
    "compare": lambda kit, folder, path: console(["compare", path, path]),
}


def paths_of_nothing(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Pipes, devices, circles of links, homes of nobody and names that no disk takes, wherever a path is given."""
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "circle").symlink_to(folder / "circle")
    nothing = ("pipe.jsonl", "circle", "circle/x", "/dev/zero", "/dev/urandom", "/proc/self/mem", "~nobody_here/x.png")
    name, path = rng.choice(sorted(READERS)), rng.choice((*nothing, "a\0b", "x" * 5000, "y/" * 3000))
    return Trial(f"{name} at {path[:30]!r}", lambda: READERS[name](kit, folder, path), True)


# -- servers, endpoints, run folders -----------------------------------------------------------------------------------
def served_badly(reply: Any) -> bool:
    """True for an answer that is no tracebacks and has a status for what was asked."""
    return reply.status_code != 500 and "Traceback" not in reply.text


def refused(reply: Any) -> bool:
    """True for a status that says that the request was wrong."""
    return 400 <= reply.status_code < 500 and "Traceback" not in reply.text


HEADERS = (
    "\u00b2",
    "-1",
    "1e9",
    "",
    "x" * 9000,
    "text/plain",
    "gzip",
    "http://[",
    "null",
    "*/*",
    "\t",
    "[::1",
    "0" * 5000,
)


def review_requests(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Requests to the review server: paths, queries, headers, bodies."""
    client, token, trace = kit.review
    headers: dict[str, Any] = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    how = rng.choice(("query", "header", "body", "event", "event", "document"))
    if how == "query":
        place = rng.choice(
            ("/api/image", "/api/item", "/api/queue", "/api/history", "/api/x", "//", "/api/image/../item")
        )
        name, value = (
            rng.choice(("index", "count", "trace", "holding")),
            str(rng.choice(VALUES)).encode("utf-8", "replace"),
        )
        query = {"trace": trace, name: value[:4000].decode()}
        return Trial(
            f"{place} {name}={value[:30]!r}",
            lambda: client.get(place, params=query, headers=headers),
            False,
            served_badly,
        )
    if how == "header":
        name = rng.choice(("content-length", "origin", "host", "authorization", "content-type", "transfer-encoding"))
        value = rng.choice(HEADERS).encode("utf-8")
        headers[name] = value
        return Trial(
            f"{name}: {value[:30]!r}",
            lambda: client.post("/api/events", content=b"{}", headers=headers),
            False,
            served_badly,
        )
    right = {"id": "e1", "trace": trace, "kind": "note", "value": {"text": "x"}, "seconds": 1.0}
    if how == "document":
        document = rng.choice(DOCUMENTS)
        content = document if isinstance(document, bytes) else document.encode()
        return Trial(
            f"{document[:20]!r}", lambda: client.post("/api/events", content=content, headers=headers), False, refused
        )
    path = "/api/check" if how == "body" else "/api/events"
    tree: Any = {"trace": trace, "text": "(1) x"} if how == "body" else {"events": [right]}
    tree, what, _ = mutated(rng, tree)
    return Trial(
        f"{path} {what}", lambda: client.post(path, content=dumped(tree).encode(), headers=headers), False, served_badly
    )


def model_requests(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Requests to the model server."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    url = "data:image/png;base64," + base64.b64encode(rng.randbytes(40)).decode()
    tree: Any = {
        "model": "tiny", "n": 1, "max_tokens": 1, "temperature": 0.0, "top_p": 1.0, "stop": ["x"], "seed": 3,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "So?"}]}],
    }  # fmt: skip
    send = lambda content: kit.served.post("/v1/chat/completions", content=content, headers=headers)  # noqa: E731
    how = rng.choice(("value", "value", "document", "image"))
    if how == "document":
        document = rng.choice(DOCUMENTS)
        content = document if isinstance(document, bytes) else document.encode()
        return Trial(f"{document[:20]!r}", lambda: send(content), False, refused)
    if how == "image":
        tree["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url}})
        return Trial("bytes that are no image", lambda: send(dumped(tree)), False, refused)
    tree, what, wrong = mutated(rng, tree)
    lenient = "messages.0.content = " in what or "stop = '" in what
    return Trial(what, lambda: send(dumped(tree)), False, refused if wrong and not lenient else served_badly)


BODY = {
    "id": "chatcmpl-1", "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "B"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}},
}  # fmt: skip


def endpoint_bodies(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Answers of an endpoint, with a key repeated in them: an outcome that is finite and without the key."""
    status = rng.choice((200, 200, 200, 204, 301, 400, 401, 404, 429, 500, 503, 999))
    body: Any = BODY if status == 200 else {"error": {"message": f"bad {KEY}", "type": "x", "code": "y", "param": None}}
    headers = {"retry-after": str(rng.choice(VALUES))[:300], "x-request-id": KEY, "content-type": "application/json"}
    body, what, _ = mutated(rng, body)
    content = dumped(body).encode().replace(b"stop", KEY.encode() if rng.random() < 0.3 else b"stop")
    if rng.random() < 0.3:
        content, what = spoiled(rng, content)

    def right(outcome: Any) -> bool:
        usage = outcome.usage
        counted = usage is None or all(0 <= n < 2**63 for n in (usage.prompt, usage.completion))
        told = outcome.wait is None or outcome.wait >= 0  # a client that is told to wait for years stops and says so
        return KEY not in repr(outcome) and counted and told and border.finite(outcome.wait or 0.0)

    return Trial(f"{status} {what}", lambda: classify(status, headers, content, KEY), False, right)


def run_folders(rng: random.Random, kit: Kit, folder: Path) -> Trial:
    """Run folders with a damaged file: the run goes on, or is one line."""
    place = copied(kit.run, folder / "run")
    file = rng.choice(sorted(path for path in place.iterdir() if path.is_file()))
    content, what = spoiled(rng, file.read_bytes())
    file.write_bytes(content)

    def use() -> None:
        with Run.open(place, RUN) as run:
            run.metrics()
            run.log(6, {"loss": 1.0})
            run.finish({})

    return Trial(f"{file.name} {what}", use)


SURFACES: dict[str, Callable[[random.Random, Kit, Path], Trial]] = {
    "safetensors, index, model directory": weights,
    "config.json, generation_config": model_config,
    "tokenizer, preprocessor": tokenizer,
    "case rows and files": case_rows,
    "raw cases and files": raw_cases,
    "benchmarks": benchmark_rows,
    "config files": config_files,
    "fields of the command line": command_fields,
    "command line, overrides, guideline": command_lines,
    "mergekit, recipes": merge_files,
    "paths of nothing": paths_of_nothing,
    "adapters": adapters,
    "review server": review_requests,
    "model server": model_requests,
    "endpoint bodies": endpoint_bodies,
    "damaged run folders": run_folders,
}
