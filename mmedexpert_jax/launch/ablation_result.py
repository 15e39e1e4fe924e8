"""The result of a sweep: its table beside the published one, the panels of Figure 3, and a sentence for each claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmedexpert_jax import border
from mmedexpert_jax.launch import table3
from mmedexpert_jax.launch.stage_cache import MODEL, Stages
from mmedexpert_jax.launch.table3 import AblationRow, Claim
from mmedexpert_jax.medeval import result_tables, stats
from mmedexpert_jax.medeval.evaluate import Evaluation
from mmedexpert_jax.medeval.results import rows_path
from mmedexpert_jax.report import Figure
from mmedexpert_jax.report.text_tables import markdown
from mmedexpert_jax.runtime import files, plots, report, stage_costs

RESULT = "export/ablation.json"
# name -> (heading, unit, factor and format of what is printed)
MEASURES = {
    "accuracy": ("accuracy", "points", 100.0, 1),
    "sampled": ("accuracy, sampled", "points", 100.0, 1),
    "distinct": ("distinct answers", "answers", 1.0, 2),
    "passed": ("pass@k", "points", 100.0, 1),
    "entropy": ("entropy", "nats per token", 1.0, 3),
}
NOTE = (
    "Accuracy in percent: mean over the seeds, [95 % bootstrap interval over items, the seeds of an item kept "
    "together], ± half of the 95 % interval of Student's t over the seeds; the base answers once for all seeds. Gains "
    "are paired over items; p is that of a paired sign-flip test over items with 10,000 draws, so 0.0001 at the least; "
    "Holm's p allows for the number of rows. Published: arXiv 2601.10949, another model on another benchmark "
    "(MedXpertQA-MM): compare signs and order, not sizes."
)
FIGURE_NOTE = (
    "Bars: accuracy with its interval over items. Dots: seeds. Diamonds: the base here plus the published gain over it."
)
DIVERSITY_NOTE = (
    "Sampled answers to the same items for all rows: their accuracy; how many different answers there are; whether one "
    "is right; and the entropy of a token, the mean of -log p over what was sampled. Intervals as above."
)


@dataclass(frozen=True)
class Measured:
    """The answers of one row: a value per seed and item of each measure."""

    row: AblationRow
    values: Mapping[str, np.ndarray]  # of shape [seeds, items]


def write(
    config: ConfigDict, path: Path, rows: Sequence[AblationRow], stages: Stages, seeds: Sequence[int]
) -> dict[str, Any]:
    """Writes export/ablation.json, tables in three formats, table.md and plots/ for the seeds that are done.

    Returns:
        The sweep's headline figures, for STATUS.json.
    """
    found = {row.name: _measured(config, row, stages, seeds) for row in rows}
    claims = table3.CLAIMS if config.table == 3 else table3.CLAIMS_OF_TABLE_4
    result = {
        "preset": config.preset,
        "seeds": list(seeds),
        "items": {"greedy": _items(found, "accuracy"), "sampled": _items(found, "distinct")},
        "samples": config.diversity.num_samples,
        "temperature": config.diversity.temperature,
        "rows": [_figures(measured, found) for measured in found.values()],
        "claims": [_verdict(claim, found) for claim in claims if {*claim.better, *claim.worse} <= set(found)],
    }
    _adjust(result["rows"])
    evaluations = table3.wanted(config, rows)
    by_seed = [list(stages.order(evaluations, seed)) for seed in seeds]
    folders = dict.fromkeys(task.folder for tasks in by_seed for task in tasks)
    result["seconds"] = [sum(task.seconds or 0.0 for task in tasks) for tasks in by_seed]
    result |= {"price": config.price, "costs": stage_costs.table(folders, config.price)}
    (path / "export" / "tables").mkdir(parents=True, exist_ok=True)
    files.write_json(path / RESULT, result)
    table = table_rows(result)
    files.write_text(path / "export" / "tables" / f"table{config.table}.md", markdown(table))
    files.write_text(
        path / "export" / "tables" / f"table{config.table}.csv", result_tables.comma_separated(spread(result))
    )
    text = page(result)
    files.write_text(path / "table.md", text)
    for name, title in panels(result).items():
        draw(result, title, path / "plots" / name)
    print(text, flush=True)
    return {"seeds": len(seeds), "accuracy": {row["name"]: row["accuracy"]["mean"] for row in result["rows"]}}


def report_run(path: Path) -> None:
    """Writes report.html of a sweep that has a result."""
    result = border.read_json(path / RESULT, dict[str, Any])
    sections: list[report.Section] = [
        report.Figures(
            "Figure 3", sorted((path / "plots").glob("figure3*.png")), "Diamonds: base plus published gain."
        ),
        report.Table("Claims", [{"claim": claim["text"], "here": claim["sentence"]} for claim in result["claims"]]),
        report.Table("Rows", table_rows(result), NOTE),
        report.Table("Diversity", diversity_rows(result), DIVERSITY_NOTE),
        report.Table("Cost of the stages", result["costs"], stage_costs.note(result["price"])),
    ]
    report.report_run(path, sections)


def page(result: Mapping[str, Any], images: str = "") -> str:
    """The result as Markdown: the table, what the paper claims, the motive, the costs.

    Args:
        result: what `write` left in export/ablation.json.
        images: folder of the panels, relative to the page; empty: none are shown.
    """
    seeds, items = result["seeds"], result["items"]
    head = (
        f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} ({', '.join(map(str, seeds))}), preset "
        f"{result['preset']}: {items['greedy']} items answered greedily, {items['sampled']} items "
        f"{result['samples']} times at temperature {result['temperature']:g}.\n"
    )
    shown = panels(result) if images else {}
    figures = [f"![Figure 3 {title}]({images}/{name})\n" for name, title in shown.items()]
    claims = "".join(f"- {claim['sentence']}\n" for claim in result["claims"])
    costs = [{name: str(value) for name, value in row.items()} for row in result["costs"]]
    sections = {
        "Rows": f"{markdown(table_rows(result))}\n{NOTE}\n",
        "Figure 3": "\n".join([*figures, FIGURE_NOTE + "\n"]) if figures else "",
        "Claims": claims,
        "Diversity": f"{markdown(diversity_rows(result))}\n{DIVERSITY_NOTE}\n",
        "Costs": f"{markdown(costs)}\n{stage_costs.note(result['price'])}\n",
    }
    return head + "".join(f"\n## {title}\n\n{text}" for title, text in sections.items() if text)


def table_rows(result: Mapping[str, Any]) -> result_tables.Rows:
    """The table in the paper's layout, as texts."""
    base = next((row for row in result["rows"] if row["name"] == "Base"), None)
    lines = []
    for row in result["rows"]:
        ticks = {column: _tick(row, column) for column in table3.COLUMNS}
        line = {"method": row["name"], "part": row["part"]} | ticks
        line["accuracy"] = _cell(row["accuracy"])
        if row["gain"]:
            line["gain over base"] = _cell(row["gain"], signed=True)
            line["p"], line["Holm p"] = f"{row['gain']['p']:.3g}", f"{row['gain']['holm']:.3g}"
        published = row["published"]
        line["published"] = "–" if published is None else f"{published:.2f}"
        both = published is not None and base is not None and base["published"] is not None and row is not base
        line["published gain"] = f"{published - base['published']:+.2f}" if both and base else "–"
        lines.append(line)
    return lines


def diversity_rows(result: Mapping[str, Any]) -> result_tables.Rows:
    """The paper's motive, row by row: how right and how different sampled answers are."""
    lines = []
    for row in result["rows"]:
        line = {"method": row["name"]}
        for name in ("sampled", "distinct", "passed", "entropy"):
            heading, _, factor, decimals = MEASURES[name]
            line[heading.replace("@k", f"@{result['samples']}")] = _cell(row[name], factor, decimals)
        lines.append(line)
    return lines


def spread(result: Mapping[str, Any]) -> result_tables.Rows:
    """One line per row and measure for CSV: mean, intervals over items and seeds, and the mean of every seed."""
    lines = []
    for row in result["rows"]:
        for name in MEASURES:
            figure = row[name]
            line = {"method": row["name"], "part": row["part"], "measure": name, "published": row["published"]}
            line |= {key: figure[key] for key in ("mean", "low", "high", "seeds_low", "seeds_high")}
            line |= {f"seed {seed}": value for seed, value in zip(result["seeds"], figure["by_seed"], strict=True)}
            lines.append({key: "" if value is None else str(value) for key, value in line.items()})
    return lines


def panels(result: Mapping[str, Any]) -> dict[str, str]:
    """File name -> title of the panels of Figure 3 whose rows are there."""
    there = {row["name"] for row in result["rows"]}
    return {f"figure3{title[1]}.png": title for title, names in table3.PANELS.items() if there.issuperset(names)}


def draw(result: Mapping[str, Any], title: str, path: Path) -> Path:
    """A panel of Figure 3 as bars with the intervals over items and a dot per seed."""
    rows = {row["name"]: row for row in result["rows"]}
    base, bars = rows["Base"], []
    for name in table3.PANELS[title]:
        figure, published = rows[name]["accuracy"], rows[name]["published"]
        expected = None if published is None else 100 * base["accuracy"]["mean"] + published - base["published"]
        value, low, high = (100 * figure[key] for key in ("mean", "low", "high"))
        dots = [100 * seed for seed in figure["by_seed"]]
        bars.append(plots.Bar(name, value, low, high, dots, expected))
    return plots.bars(bars, path, f"Figure 3 {title}", "right answers, %")


def _measured(config: ConfigDict, row: AblationRow, stages: Stages, seeds: Sequence[int]) -> Measured:
    greedy = [_read(config, stages, table3.greedy(config, row.model), seed) for seed in seeds]
    sampled = [_read(config, stages, table3.sampled(config, row.model), seed) for seed in seeds]
    values = {"accuracy": np.array([[np.mean(right) for right in run.outcomes().values()] for run in greedy])}
    for name, measure in _SAMPLED.items():
        values[name] = np.array([[measure(rows) for rows in run.by_item().values()] for run in sampled])
    return Measured(row, values)


def _read(config: ConfigDict, stages: Stages, stage: table3.Stage, seed: int) -> Evaluation:
    """The answers of an evaluation to the items of all its benchmarks."""
    folder = stages.task(stage, seed).folder
    found = []
    for entry in config.evaluate.benchmarks:
        key = entry.partition("=")[0]
        rows = Evaluation.read(rows_path(folder, key, MODEL)).rows
        found += [replace(row, id=f"{key} {row.id}") for row in rows]
    return Evaluation(tuple(found))


_SAMPLED = {
    "sampled": lambda rows: np.mean([row.right for row in rows]),
    "distinct": lambda rows: len({row.said for row in rows} - {None}),
    "passed": lambda rows: float(any(row.right for row in rows)),
    "entropy": lambda rows: -sum(row.logprob for row in rows) / sum(row.tokens for row in rows),
}


def _items(found: Mapping[str, Measured], measure: str) -> int:
    return next(iter(found.values())).values[measure].shape[1]


def _figures(measured: Measured, found: Mapping[str, Measured]) -> dict[str, Any]:
    row = measured.row
    figures: dict[str, Any] = {"name": row.name, "part": row.part, "ticks": row.ticks, "published": row.published}
    figures |= {name: _figure(values) for name, values in measured.values.items()}
    base = found.get("Base")
    gains = None
    if base and row.name != "Base":
        gains = _tested(measured.values["accuracy"] - base.values["accuracy"])
    return figures | {"gain": gains}


def _figure(values: np.ndarray) -> dict[str, Any]:
    """Mean and intervals of values [seeds, items]."""
    low, high = stats.bootstrap(values.mean(0))
    by_seed = values.mean(1)
    seeds = stats.student(by_seed) or (None, None)
    return {
        "mean": float(values.mean()),
        "low": low,
        "high": high,
        "seeds_low": seeds[0],
        "seeds_high": seeds[1],
        "by_seed": [float(value) for value in by_seed],
    }


def _tested(differences: np.ndarray) -> dict[str, Any]:
    return _figure(differences) | {"p": stats.sign_flip(differences.mean(0))}


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Adds Holm's p to every gain."""
    gains = [row["gain"] for row in rows if row["gain"]]
    for gain, p in zip(gains, stats.holm([gain["p"] for gain in gains]), strict=True):
        gain["holm"] = p


def _verdict(claim: Claim, found: Mapping[str, Measured]) -> dict[str, Any]:
    """The mean difference over the claim's pairs of rows, and whether it bears the claim out."""
    pairs = zip(claim.better, claim.worse, strict=True)
    differences = [found[better].values[claim.measure] - found[worse].values[claim.measure] for better, worse in pairs]
    figure = _tested(np.mean(differences, axis=0))
    verdict = judge(figure)
    return {"text": claim.text, "verdict": verdict, "measure": claim.measure, **figure} | {
        "sentence": sentence(claim, figure, verdict)
    }


def judge(figure: Mapping[str, Any]) -> str:
    """ "held" where the difference is above 0 by the interval over items and, with several seeds, over seeds;
    "reversed" where it is below by both; else "not settled"."""
    lows = [figure["low"], *([figure["seeds_low"]] if figure["seeds_low"] is not None else [])]
    highs = [figure["high"], *([figure["seeds_high"]] if figure["seeds_high"] is not None else [])]
    if min(lows) > 0:
        return "held"
    return "reversed" if max(highs) < 0 else "not settled"


def sentence(claim: Claim, figure: Mapping[str, Any], verdict: str) -> str:
    """One sentence on a claim of the paper."""
    said = {
        "held": "held here",
        "reversed": "did not hold here: the opposite did",
        "not settled": "is not settled here",
    }
    _, unit, factor, _ = MEASURES[claim.measure]
    seeds = len(figure["by_seed"])
    over = f", {_span(figure, factor, 'seeds_')} over {seeds} seeds" if seeds > 1 else ", one seed"
    size = f"{factor * figure['mean']:+.2f} {unit}, {_span(figure, factor)} over items{over}, p = {figure['p']:.3g}"
    return f'"{claim.text[0].upper()}{claim.text[1:]}" {said[verdict]} ({size}).'


def _span(figure: Mapping[str, Any], factor: float, prefix: str = "") -> str:
    return f"[{factor * figure[prefix + 'low']:+.2f}, {factor * figure[prefix + 'high']:+.2f}]"


def _cell(figure: Mapping[str, Any], factor: float = 100, decimals: int = 1, signed: bool = False) -> Figure:
    """Mean, half of the interval over seeds, and interval over items: "57.3 ± 1.2 [54.5, 60.0]"."""
    spread = None
    if figure["seeds_low"] is not None:
        spread = (figure["seeds_high"] - figure["seeds_low"]) / 2
    shown: dict[str, Any] = {"factor": factor, "decimals": decimals, "signed": signed, "paired": signed}
    return Figure(figure["mean"], figure["low"], figure["high"], spread=spread, **shown)


def _tick(row: Mapping[str, Any], column: str) -> str:
    if column not in row["ticks"]:
        return "–"
    return f"✓ ({row['name']})" if row["name"] in table3.EXPERTS else "✓"
