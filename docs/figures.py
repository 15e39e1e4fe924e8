"""Every figure that the README and the docs print from a benchmark, drawn from the results in docs/results/.

    python docs/figures.py                    # redraws the images, rewrites the tables
    python docs/figures.py --check            # exits with 1 where one of them is not what the results say
    python docs/figures.py --record learning  # runs that benchmark again, keeps its line, redraws

A result is the JSON line of a benchmark with the command, date, hardware and versions that it was measured with. What
stands between `<!-- figure: NAME -->` and `<!-- end -->` is written here. An image carries the digest of its result
and of the code that draws it, so that a stale one is found whatever version of matplotlib drew it.
"""

import argparse
import datetime
import hashlib
import inspect
import json
import os
import platform
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas
from PIL import Image, PngImagePlugin

from mmedexpert_jax.launch import ablation_result
from mmedexpert_jax.runtime import environment, plots

ROOT = Path(__file__).resolve().parents[1]
RESULTS, IMAGES = ROOT / "docs" / "results", ROOT / "docs" / "images"
REPRODUCTION = runpy.run_path(str(ROOT / "docs" / "reproduce.py"))
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMANDS = {
    "learning": "python benchmarks/learning.py --seeds 0 1 2",
    "pipeline": "python benchmarks/pipeline.py",
    "merge": "python benchmarks/merge.py --shape qwen2_0_5b",
    "merge_lora": "python benchmarks/merge.py --shape qwen2_0_5b --lora",
    "merge_lora_2b": "python benchmarks/merge.py --shape qwen2_vl_2b --lora --no-peers",
    "merge_growth": "python benchmarks/merge.py --growth",
    "forward": "python benchmarks/forward.py --turns 7",
    "update": "python benchmarks/update.py",
    "rollout": "python benchmarks/rollout.py",
    "evaluate": "python benchmarks/evaluate.py",
}
BLOCK = re.compile(r"(<!-- figure: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SOURCE = "Source"  # the key of a PNG's text that holds the digest


@dataclass(frozen=True)
class Figure:
    """A table or an image: the results that it is made of, and the function that makes it of them."""

    results: tuple[str, ...]
    make: Callable[..., Any]


def learning_table(learning: dict) -> str:
    """The runs by seed, and the paired gains."""
    found = learning["result"]
    runs = [
        [run["group"], run["seed"], *(f"{run[key]:.3f}" for key in ("first", "last", "sampled", "greedy"))]
        for run in found["runs"]
    ]
    heads = ["run", "seed", "accuracy reward, first tenth", "last tenth", "held out, sampled", "greedy"]
    sides = {"GBA": found["GBA"], "shuffled rewards": found["shuffled rewards"]}
    gains = [[name, *(_points(side[kind]["gain"], side[kind]) for kind in KINDS)] for name, side in sides.items()]
    beyond = [found[f"GBA beyond shuffled, {kind}"] for kind in KINDS]
    gains.append(["GBA beyond shuffled rewards", *(_points(pair["gain"], pair) for pair in beyond)])
    gain_heads = [f"gain over the base, {found['GBA']['runs']} seeds, points [95 % interval]", *KINDS]
    return f"{_about(learning)}\n\n{_table(heads, runs)}\n{_table(gain_heads, gains)}"


def pipeline_table(pipeline: dict) -> str:
    """The models of the pipeline with their accuracies."""
    heads = ["model", "accuracy", "AM", "BS", "CAH", "CSI", "gain over base"]
    rows = [[row[head] for head in heads] for row in pipeline["result"]["rows"]]
    return f"{_about(pipeline)}\n\n{_table(heads, rows)}"


def measured_table(learning: dict, pipeline: dict, merge: dict) -> str:
    """The README's overview."""
    found, stages = learning["result"], {row["model"]: row["accuracy"] for row in pipeline["result"]["rows"]}
    gba, control, ties = found["GBA"], found["shuffled rewards"], merge["result"]["rows"]
    percent = {name: accuracy.split()[0] for name, accuracy in stages.items()}
    experts = sorted(float(percent[name]) for name in ("AM", "CAH", "BS", "CSI"))
    base = " / ".join(f"{100 * found['base'][kind]:.1f} %" for kind in KINDS)
    times = {key: ties["mergekit"][key] / ties["ours"][key] for key in ("wall_s", "anonymous_gb")}
    rows = [
        ["base model on the held-out test split, sampled at temperature 1 / greedy", f"{base} right (chance 25.6 %)"],
        [
            f"GBA, {gba['runs']} seeds: accuracy reward, first to last tenth of 48 steps",
            f"{gba['reward_first']:.3f} to {gba['reward_last']:.3f}",
        ],
        [
            f"GBA, {gba['runs']} seeds: held-out gain in points [95 % interval], sampled / greedy",
            " / ".join(_points(gba[kind]["gain"], gba[kind]) for kind in KINDS),
        ],
        [
            "the same with shuffled rewards, the negative control",
            " / ".join(_points(control[kind]["gain"], control[kind]) for kind in KINDS),
        ],
        [
            "`configs/pipeline.py`, the paper from data to table, one seed, greedy",
            f"base {percent['base']} %, experts {experts[0]} to {experts[-1]} %, merged {percent['merged experts']} %, "
            f"GBA {percent['GBA']} %, final {percent['final']} %; {_minutes(pipeline['result']['seconds'])}",
        ],
        [
            "TIES of five 0.5B checkpoints on disk, against mergekit in the same run",
            f"{times['wall_s']:.1f} times faster, {times['anonymous_gb']:.0f} times less memory",
        ],
    ]
    return f"{_about(learning, command=False)}\n\n{_table(['what', 'figure'], rows)}"


def forward_table(forward: dict) -> str:
    """Passes and loading beside transformers, least of the turns."""
    heads = ["size", "", *(f"{who}, {clock}" for clock in ("wall s", "CPU s") for who in ("ours", "transformers"))]
    rows = [
        [
            f"{found['parameters'] / 1e6:.0f} M",
            {"full": "full forward"}.get(kind, kind),
            *(f"{found[kind][who][clock]:.3f}" for clock in ("least", "cpu") for who in ("ours", "transformers")),
        ]
        for found in forward["result"]["results"]
        for kind in ("prefill", "full", "loading")
    ]
    return f"{_about(forward)}\n\n{_table(heads, rows)}"


def merge_table(*measured: dict) -> str:
    """Merges beside their peers, each pair in one run, and over growing models."""
    text = ""
    for one in measured:
        names = {"wall_s": "wall s", "cpu_s": "CPU s", "anonymous_gb": "peak anonymous GB"}
        names |= {"relative_error": "relative error", "largest_m": "largest tensor, million"}
        found = one["result"]["rows"]
        columns = [key for key in names if any(key in row for row in found.values())]
        what = {False: "full checkpoints", True: "rank-16 adapters"}[one["result"]["lora"]]
        heads = [f"{what}, {one['result']['shape']}", *(names[key] for key in columns)]
        rows = [[name, *(f"{row[key]:.3g}" if key in row else "" for key in columns)] for name, row in found.items()]
        text += f"{_about(one)}\n\n{_table(heads, rows)}\n"
    return text.rstrip("\n") + "\n"


def growth_image(path: Path, growth: dict) -> None:
    """CPU seconds and memory of a merge as the model grows."""
    rows = list(growth["result"]["rows"].values())
    with matplotlib.rc_context(plots.STYLE):
        figure = Canvas(figsize=(6.4, 2.8))
        panels = zip(
            figure.subplots(1, 2), (("CPU seconds", "cpu_s"), ("peak anonymous GB", "anonymous_gb")), strict=True
        )
        for axes, (title, key) in panels:
            axes.plot([row["parameters_m"] for row in rows], [row[key] for row in rows], "o-", color=plots.BLUE)
            axes.set(title=title, xlabel="parameters, million", ylim=(0, None))
        figure.savefig(path)


def learning_image(path: Path, learning: dict) -> None:
    """The learning curve over seeds, with the negative control."""
    groups: dict[str, list] = {}
    for run in learning["result"]["runs"]:
        groups.setdefault(run["group"], []).append(run["curve"])
    plots.learning_curve(groups, path)


def panel_image(path: Path, ablation: dict) -> None:
    """A panel of Figure 3."""
    ablation_result.draw(ablation, ablation_result.panels(ablation)[path.name], path)


KINDS = ("sampled", "greedy")
TABLES = {
    "about_learning": Figure(("learning",), lambda learning: f"{_about(learning)}\n"),
    "learning": Figure(("learning",), learning_table),
    "pipeline": Figure(("pipeline",), pipeline_table),
    "forward": Figure(("forward",), forward_table),
    "merge": Figure(("merge", "merge_lora", "merge_lora_2b", "merge_growth"), merge_table),
    "measured": Figure(("learning", "pipeline", "merge"), measured_table),
}


def drawn() -> dict[str, Figure]:
    """The images of docs/images by name."""
    panels = dict.fromkeys(ablation_result.panels(read("ablation")), Figure(("ablation",), panel_image))
    return {
        "learning.png": Figure(("learning",), learning_image),
        "merge_growth.png": Figure(("merge_growth",), growth_image),
        **panels,
    }


def stale() -> Iterator[str]:
    """A line for every table or image that differs from what the results say."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if written(text) != text:
            yield f"{page.relative_to(ROOT)}: a table is not that of docs/results"
    images = drawn()
    for name, figure in images.items():
        if not (IMAGES / name).exists() or _carried(IMAGES / name) != digest(figure):
            yield f"docs/images/{name}: not drawn from what is in docs/results now"
    for name in sorted({path.name for path in IMAGES.glob("*.png")} - set(images)):
        yield f"docs/images/{name}: no function in docs/figures.py draws it"


def draw() -> None:
    """Rewrites the tables of all pages, and draws the images that are stale."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            page.write_text(new, encoding="utf-8")
    for name, figure in drawn().items():
        path = IMAGES / name
        if not path.exists() or _carried(path) != digest(figure):
            figure.make(path, *map(read, figure.results))
            _carry(path, digest(figure))


def written(text: str) -> str:
    """A page's text with every block that has a figure's name as the results have it now."""
    if text.startswith(REPRODUCTION["TITLE"]):  # nothing else stands there
        return REPRODUCTION["page"](read("ablation"))

    def block(match: re.Match) -> str:
        figure = TABLES[match[2]]
        return f"{match[1]}\n{figure.make(*map(read, figure.results))}\n{match[3]}"

    return BLOCK.sub(block, text)


def read(name: str) -> dict:
    """A result with what it was measured with."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def record(name: str, line: str) -> None:
    """Keeps a benchmark's JSON line as measured here, today."""
    about = environment.describe()
    hardware = f"{about['cpus']} x {_processor()}, {about['memory_gb']:.0f} GB"
    versions = {"python": about["python"]} | {
        package: about["versions"][package] for package in ("jax", "flax", "numpy") if package in about["versions"]
    }
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = {"command": COMMANDS[name], "date": today, "hardware": hardware + _accelerators(), "versions": versions}
    text = json.dumps(found | {"result": json.loads(line)}, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def digest(figure: Figure) -> str:
    """Of the results and of the function that draws."""
    parts = [(RESULTS / f"{name}.json").read_text(encoding="utf-8") for name in figure.results]
    return hashlib.sha256("\n".join([inspect.getsource(figure.make), *parts]).encode()).hexdigest()


def _carried(path: Path) -> str:
    return Image.open(path).info.get(SOURCE, "")


def _carry(path: Path, value: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(SOURCE, value)
    with Image.open(path) as image:
        image.load()
        image.save(path, pnginfo=info, optimize=True)


def _about(measured: dict, command: bool = True) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    line = f"Measured {measured['date']} on {measured['hardware']}; {versions}"
    return f"{line}: `{measured['command']}`" if command else f"{line}."


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _points(gain: float, interval: dict) -> str:
    return f"{100 * gain:+.1f} [{100 * interval['low']:+.1f}, {100 * interval['high']:+.1f}]"


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _processor() -> str:
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return names[0] if names else platform.processor()


def _accelerators() -> str:
    import jax

    kinds = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    return f", {len(kinds)} x {kinds[0]}" if kinds else ""


def _run(name: str) -> str:
    """Runs a benchmark and returns its JSON line; what it prints is shown as it comes."""
    executable, *arguments = shlex.split(COMMANDS[name])
    command = [{"python": sys.executable}.get(executable, executable), *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(process.returncode)
    return next(line for line in reversed(lines) if line.startswith("{"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only look; exit with 1 where something is stale")
    parser.add_argument("--record", choices=COMMANDS, help="run this benchmark first and keep its line")
    parser.add_argument("--line", help="with --record: a JSON line that the benchmark has printed just now")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record, arguments.line or _run(arguments.record))
    if arguments.check:
        problems = list(stale())
        print("\n".join(problems) or "every figure is what docs/results says")
        sys.exit(bool(problems))
    draw()


if __name__ == "__main__":
    main()
