"""The cost of a pipeline's or a sweep's stages by job, beside what appendix E states for one A100."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmedexpert_jax.runtime import files

# Appendix E, on one NVIDIA A100: hours for about 1,000 samples, and minutes of one merge.
PUBLISHED = {"dsa": "0.4 h for 1,000 samples", "gba": "13 h for 1,000 samples", "merge": "5 min a merge"}
NAMES = {"dsa": "DSA", "merge": "merge", "gba": "GBA", "evaluate": "evaluation"}
NOTE = (
    "Means over the runs of a job, the peak of memory over all. Device seconds are those of steps and batches, over "
    "all devices; operations are counted from shapes, two for each product, padding left out; the share is of a "
    "vendor's bfloat16 peak, on a CPU of what a product of two float32 matrices reaches; memory is the host's on a "
    "CPU. Published: appendix E, one A100, a 2B or 7B model, completions of up to 1,024 tokens."
)


def table(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """One row per job: the means over the finished runs in `folders`, and the published figure."""
    runs = [found for folder in folders if (found := read(folder))]
    by_job: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for found in runs:
        by_job[found["job"]].append(found)
    return [_row(job, by_job[job]) for job in NAMES if job in by_job]


def read(folder: Path) -> dict[str, Any] | None:
    """The cost of a run with its `job` and the `samples` that it trained on; None where it is not done."""
    status = files.read_json(folder / "STATUS.json") or {}
    config = files.read_json(folder / "config.json") or {}
    if status.get("state") != "done" or "cost" not in status:
        return None
    return {"job": config["job"], "samples": samples(config, status.get("summary") or {}), **status["cost"]}


def samples(config: Mapping[str, Any], summary: Mapping[str, Any]) -> float:
    """Training samples as appendix E counts them: DSA's cases, each seen `epochs` times, and GBA's prompts."""
    steps = summary.get("steps") or 0
    if config["job"] == "dsa":
        return steps * config["batch_size"] * config["accumulation"] / max(1, config["epochs"])
    return steps * config["prompts_per_step"] if config["job"] == "gba" else 0.0


def _row(job: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(name: str) -> float:
        return sum(run.get(name) or 0 for run in runs) / len(runs)

    here = ""
    if mean("samples"):
        here = f"{mean('wall_seconds') / 3600 / mean('samples') * 1000:.2f} h for 1,000 samples"
    elif job == "merge":
        here = f"{mean('wall_seconds') / 60:.2f} min a merge"
    counted = bool(mean("flops"))
    peak = max(run.get("peak_memory_bytes") or 0 for run in runs)
    row: dict[str, Any] = {
        "job": NAMES[job],
        "here": here,
        "published (A100)": PUBLISHED.get(job, "–"),
        "runs": len(runs),
        "wall seconds": f"{mean('wall_seconds'):.0f}",
        "device seconds": f"{mean('device_seconds'):.0f}" if counted else "",
        "tokens": f"{mean('tokens'):,.0f}" if counted else "",
        "operations": f"{mean('flops'):.3g}" if counted else "",
        "share of peak": f"{mean('share_of_peak'):.1%}" if counted else "",
        "peak memory": f"{peak / 1e9:.2f} GB",
    }
    return row | ({"dollars": f"{mean('dollars'):.4f}"} if mean("dollars") else {})
