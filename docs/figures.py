"""Every figure that the README and the docs print from a benchmark, drawn from the results in docs/results/.

    python docs/figures.py                    # redraws the images, rewrites the tables
    python docs/figures.py --check            # exits with 1 where one of them is not what the results say
    python docs/figures.py --record learning  # runs that benchmark again, keeps its line, redraws; "all" runs every one

A result is the JSON line of a benchmark with the command, date, hardware and versions that it was measured with. What
stands between `<!-- figure: NAME -->` and `<!-- end -->` is written here, or what is still to be measured. An image
carries the digest of its result and of the code that draws it, so that a stale one is found whatever version of
matplotlib drew it.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))["TABLES"]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MEMORY = "python benchmarks/gba_thousand.py --memory --target h100 --prompts-per-step 8"
COMMANDS = {
    "learning": "python benchmarks/learning.py --seeds 0 1 2",
    "against": "python benchmarks/learning.py --seeds 0 1 2 3 4 --against"
    " sum,gated,gdpo_even,gdpo_gated,gdpo,ahead,grpo",
    "structure": "python benchmarks/learning.py --seeds 0 1 2 3 4 --against bare,grpo",
    "objectives": "python benchmarks/learning.py --seeds 0 1 2 3 --against"
    " grpo,rloo,reinforce_pp,gspo,sapo,cispo,dr_grpo,dapo,papo,drpo",
    "eight": "python benchmarks/learning.py --seeds 0 1 2 3 4 5 6 7 --against grpo",
    "terms": "python benchmarks/learning.py --seeds 0 1 2 --against batch,entropy,reference,weighted",
    "batch": "python benchmarks/learning.py --seeds 0 1 2 3 4 --against batch",
    "rates": "python benchmarks/learning.py --seeds 0 1 2 --against slower,faster",
    "looking": "python benchmarks/looking.py --seeds 0 1 2",
    "recipe": "python benchmarks/looking.py --seeds 0 1 2 --model runs/pretrain-mini",
    "pipeline": "python benchmarks/pipeline.py",
    "merge": "python benchmarks/merge.py --shape qwen2_0_5b",
    "merge_lora": "python benchmarks/merge.py --shape qwen2_0_5b --lora",
    "merge_lora_2b": "python benchmarks/merge.py --shape qwen2_vl_2b --lora --no-peers",
    "merge_growth": "python benchmarks/merge.py --growth",
    "merge_methods": "python benchmarks/merge_methods.py --seeds 0 1 2 3 4 --origins start",
    "forward": "python benchmarks/forward.py --turns 7",
    "forward_families": "taskset -c 1 python benchmarks/forward.py --sizes small --turns 3"
    " --families qwen2_vl qwen2_5_vl qwen3_vl llava gemma3",
    "forward_families_medium": "taskset -c 1 python benchmarks/forward.py --sizes medium --batch 2 --turns 2"
    " --families qwen2_vl qwen3_vl gemma3 llava",
    "update": "python benchmarks/update.py",
    "update_long": "python benchmarks/update.py --prompt 700 --mean 300 --limit 1024",
    "update_mini": "python benchmarks/update.py --model 128x5x1944 --prompts 12 --prompt 136 --mean 55 --limit 96"
    " --no-torch",
    "memory": f"{MEMORY} --micro 4",
    "memory_7b": f"{MEMORY} --model random:qwen2_5_vl_7b --micro 1",
    "memory_dsa": "python benchmarks/dsa_thousand.py --memory --target h100",
    "rollout": "python benchmarks/rollout.py --no-torch --repeats 5 --work 4x8x64 16x8x256~48",
    "rollout_three": "python benchmarks/rollout.py --no-torch --repeats 3",
    "rollout_bfloat16": "python benchmarks/rollout.py --no-torch --repeats 3 --dtype bfloat16",
    "rollout_sync": "python benchmarks/rollout.py --sync --sizes 512x8",
    "evaluate": "python benchmarks/evaluate.py --peer 512",
    "dataset": "python benchmarks/dataset.py --requests 2000 --concurrency 64 --limit 200",
}
BLOCK = re.compile(r"(<!-- figure: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SOURCE = "Source"  # the key of a PNG's text that holds the digest


@dataclass(frozen=True)
class Figure:
    """An image: the results that it is made of, and the function that draws it to a path."""

    results: tuple[str, ...]
    make: Callable[..., None]


def growth_image(path: Path, growth: dict) -> None:
    """CPU seconds and memory of a merge as the model grows."""
    rows = list(growth["result"]["rows"].values())
    with matplotlib.rc_context(plots.STYLE):
        figure = Canvas(figsize=(6.4, 2.8), layout="constrained")
        panels = zip(
            figure.subplots(1, 2), (("CPU seconds", "cpu_s"), ("peak anonymous GB", "anonymous_gb")), strict=True
        )
        for axes, (title, key) in panels:
            axes.plot([row["parameters_m"] for row in rows], [row[key] for row in rows], "o-", color=plots.BLUE)
            axes.set(title=title, xlabel="parameters, million", ylim=(0, None))
        figure.savefig(path)


def learning_image(path: Path, learning: dict, looking: dict) -> None:
    """The learning curves over seeds, beside the negative control and by modality."""
    groups: dict[str, list] = {}
    for run in learning["result"]["runs"]:
        groups.setdefault(run["group"], []).append(run["curve"])
    modalities = {}
    for label, modality in (("text cases", "text"), ("cases with a picture", "image")):
        names = {f"modalities/{modality}/accuracy": "accuracy", f"eval/accuracy/{modality}": "held_out", "step": "step"}
        curves = looking["result"]["curves"]
        modalities[label] = [[{names[key]: row[key] for key in row if key in names} for row in rows] for rows in curves]
    with matplotlib.rc_context(plots.STYLE):
        figure = Canvas(figsize=(9.6, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        curves_over_seeds(left, groups)
        curves_over_seeds(right, modalities, "accuracy", "held_out")
        left.set(title="GBA, and the control", xlabel="step", ylabel="share of right answers")
        right.set(title="GBA by modality", xlabel="step")
        for axes in (left, right):
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15))
        figure.savefig(path)


def ahead_image(path: Path, against: dict) -> None:
    """The learning curves of GBA on-policy and with rollouts a step ahead of their update."""
    groups: dict[str, list] = {}
    for run in against["result"]["runs"]:
        if run["group"] in ("GBA", "rollouts a step ahead"):
            groups.setdefault(run["group"], []).append(run["curve"])
    learning_curve(groups, path, held_out="", title="GBA on-policy and a step off")


def learning_curve(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    path: str | Path,
    metric: str = "rewards/accuracy/mean",
    held_out: str = "eval/accuracy",
    title: str = "Accuracy while training",
    unit: str = "share of right answers",
) -> Path:
    """Draws the mean over seeds and the band from the lowest to the highest, one colour for each label.

    Args:
        runs: label to the metrics of its seeds, as `metrics.read` gives them.
        metric: smoothed, drawn as a line with a band.
        held_out: drawn as points with whiskers; "" for none.
        title: over the figure.
        unit: of the vertical axis.
    """
    figure, axes = plots.blank(title, unit)
    curves_over_seeds(axes, runs, metric, held_out)
    return plots.save(figure, axes, Path(path), legend="outside lower center")


def curves_over_seeds(
    axes: Any,
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    metric: str = "rewards/accuracy/mean",
    held_out: str = "eval/accuracy",
) -> None:
    """Draws what `learning_curve` does into a pair of axes."""
    for (label, rows), colour in zip(runs.items(), plots.COLOURS, strict=False):
        count = f" ({len(rows)} seeds)" if len(rows) > 1 else ""
        steps, low, mean, high = _band([_smoothed(seed, metric) for seed in rows])
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(steps, mean, color=colour, lw=2, label=f"{label}, training prompts{count}")
        steps, low, mean, high = _band([dict(zip(*plots.series(seed, held_out), strict=True)) for seed in rows])
        if steps:
            below, above = ([abs(m - e) for m, e in zip(mean, edge, strict=True)] for edge in (low, high))
            axes.errorbar(
                steps,
                mean,
                yerr=[below, above],
                fmt="o--",
                color=colour,
                lw=1,
                ms=5,
                capsize=3,
                label=f"{label}, held out",
            )


def _smoothed(rows: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    steps, values = plots.series(rows, name)
    return dict(zip(steps, plots.ema(values), strict=True))


def _band(seeds: Sequence[Mapping[int, float]]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps that every seed has, and the lowest, mean and highest value at each."""
    steps = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
    columns = [[seed[step] for seed in seeds] for step in steps]
    return steps, [min(c) for c in columns], [sum(c) / len(c) for c in columns], [max(c) for c in columns]


CURVES = (learning_curve, curves_over_seeds, _smoothed, _band)  # what images of runs are drawn with


def panel_image(path: Path, ablation: dict) -> None:
    """A panel of Figure 3."""
    ablation_result.draw(ablation, ablation_result.panels(ablation)[path.name], path)


def drawn() -> dict[str, Figure]:
    """The images of docs/images by name."""
    panels = dict.fromkeys(ablation_result.panels(read("ablation")), Figure(("ablation",), panel_image))
    return {
        "learning.png": Figure(("learning", "looking"), learning_image),
        "learning_ahead.png": Figure(("against",), ahead_image),
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
        text = REPRODUCTION["page"](read("ablation"), read("pairs"))

    def block(match: re.Match) -> str:
        results, make = TABLES[match[2]]
        missing = [COMMANDS[name] for name in results if not (RESULTS / f"{name}.json").exists()]
        text = make(*map(read, results)) if not missing else f"Not measured yet: `{'`, `'.join(missing)}`\n"
        return f"{match[1]}\n{text}\n{match[3]}"

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
    """Of the results and of the code that draws."""
    parts = [(RESULTS / f"{name}.json").read_text(encoding="utf-8") for name in figure.results]
    code = [inspect.getsource(part) for part in (figure.make, *CURVES, ablation_result.draw, plots)]
    return hashlib.sha256("\n".join([*code, *parts]).encode()).hexdigest()


def _carried(path: Path) -> str:
    return Image.open(path).info.get(SOURCE, "")


def _carry(path: Path, value: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(SOURCE, value)
    with Image.open(path) as image:
        image.load()
        image.save(path, pnginfo=info, optimize=True)


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
    parser.add_argument("--record", choices=[*COMMANDS, "all"], help="run this benchmark first and keep its line")
    parser.add_argument("--line", help="with --record: a JSON line that the benchmark has printed just now")
    arguments = parser.parse_args()
    if arguments.line and arguments.record == "all":
        parser.error("--line is of one benchmark; name it with --record")
    for name in COMMANDS if arguments.record == "all" else filter(None, [arguments.record]):
        record(name, arguments.line or _run(name))
    if arguments.check:
        problems = list(stale())
        print("\n".join(problems) or "every figure is what docs/results says")
        sys.exit(bool(problems))
    draw()


if __name__ == "__main__":
    main()
