"""The cost of a pipeline's or a sweep's stages by job, beside what appendix E states for one A100."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmedexpert_jax.runtime import files
from mmedexpert_jax.runtime.run import finished

# Appendix E, on one NVIDIA A100: hours for about 1,000 samples, and of one merge ("5 minutes per merge operation").
PUBLISHED = {"dsa": 0.4, "gba": 13.0, "merge": 5 / 60}
# Kinds of stages, in the order of the table. Experts and the pooled run differ in size, and so do evaluations.
NAMES = {
    ("dsa", ""): "DSA, an expert",
    ("dsa", "mixed"): "DSA, mixed",
    ("merge", ""): "merge",
    ("gba", ""): "GBA",
    ("evaluate", ""): "evaluation",
    ("evaluate", "sampled"): "evaluation, sampled",
}
NOTE = (
    "Means over the runs of a kind, the peak of memory over all. Device seconds are those of steps and batches, over "
    "all devices; operations are counted from shapes, two for each product, padding left out; the share is of a "
    "vendor's bfloat16 peak, on a CPU of what a product of two float32 matrices reaches; memory is the host's on a "
    "CPU, and on an accelerator that of a stage which needed more than what ran in its process before. A merge runs on "
    "the host and has neither device seconds nor operations. Published: appendix E, one A100, a 2B or 7B model, "
    "completions of up to 1,024 tokens."
)


def note(price: float = 0.0) -> str:
    """The notes under the table at a price in dollars for an hour of one device; 0: without money."""
    money = f" Money: ${price:g} for an hour of one device, from start to end of a stage; the published hours likewise."
    return NOTE + (money if price else "")


def table(folders: Iterable[Path], price: float = 0.0) -> list[dict[str, Any]]:
    """One row per kind of stage: the means over the finished runs in `folders`, and the published figure.

    Args:
        folders: of the runs.
        price: dollars for an hour of one device, whatever it was when they ran; 0: no money in the table.
    """
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for found in filter(None, map(read, folders)):
        kinds[found["kind"]].append(found)
    return [_row(kind, kinds[kind], price) for kind in NAMES if kind in kinds]


def read(folder: Path) -> dict[str, Any] | None:
    """The cost of a run with its `kind` and the `samples` that it trained on; None where it is not done."""
    status = finished(folder)
    config = files.json_or_none(folder / "config.json") or {}
    if "cost" not in status:
        return None
    return {"kind": _kind(config), "samples": samples(config, status.get("summary") or {}), **status["cost"]}


def samples(config: Mapping[str, Any], summary: Mapping[str, Any]) -> float:
    """Training samples as appendix E counts them: DSA's cases, each seen `epochs` times, and GBA's prompts."""
    steps = summary.get("steps") or 0
    if config["job"] == "dsa":
        return steps * config["batch_size"] * config["accumulation"] / max(1, config["epochs"])
    return steps * config["prompts_per_step"] if config["job"] == "gba" else 0.0


def _kind(config: Mapping[str, Any]) -> tuple[str, str]:
    job = config["job"]
    if job == "dsa" and config.get("specialty") == "mixed":
        return job, "mixed"
    return job, "sampled" if job == "evaluate" and config.get("num_samples", 1) > 1 else ""


def _row(kind: tuple[str, str], runs: list[dict[str, Any]], price: float) -> dict[str, Any]:
    def mean(name: str) -> float:
        return sum(run.get(name) or 0 for run in runs) / len(runs)

    job, hours, thousands = kind[0], mean("wall_seconds") / 3600, mean("samples") / 1000
    dollars = price * sum(run["wall_seconds"] * run["devices"] for run in runs) / 3600 / len(runs)
    unit = 1.0 if job == "merge" else thousands  # what appendix E counts by
    peak = max(run.get("peak_memory_bytes") or 0 for run in runs)
    row: dict[str, Any] = {
        "stage": NAMES[kind],
        "here": "",
        "published (A100)": "–",
        "runs": len(runs),
        "wall seconds": f"{3600 * hours:.0f}",
        **dict.fromkeys(("device seconds", "tokens", "operations", "share of peak"), ""),
        "peak memory": f"{peak / 1e9:.2f} GB" if peak else "",
    }
    if unit:
        row["here"] = _text(job, hours / unit, dollars / unit)
    if job in PUBLISHED:
        row["published (A100)"] = _text(job, PUBLISHED[job], price * PUBLISHED[job])
    if mean("flops"):  # a merge counts none
        row["device seconds"], row["tokens"] = f"{mean('device_seconds'):.0f}", f"{mean('tokens'):,.0f}"
        row["operations"], row["share of peak"] = f"{mean('flops'):.3g}", f"{mean('share_of_peak'):.1%}"
    return row | ({"dollars a run": f"{dollars:.4f}"} if price else {})


def _text(job: str, hours: float, dollars: float) -> str:
    """Time, and money where there is some: of a merge, or for 1,000 samples."""
    time = f"{round(60 * hours, 2):g} min a merge" if job == "merge" else f"{round(hours, 2):g} h for 1,000 samples"
    money = f"${dollars:.2f}" if dollars >= 0.01 else "under $0.01"
    return f"{time}, {money}" if dollars else time
