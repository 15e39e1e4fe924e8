"""Curves of a run as PNG: thin raw values, their moving average, and held-out points."""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedexpert_jax.runtime import files, metrics

BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#2563a8", "#d97706", "#2f855a", "#7c4fa3", "#c53030", "#6b7280"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.labelcolor": "#374151",
    "xtick.color": GREY, "ytick.color": GREY, "axes.grid": True, "grid.color": "#e5e7eb", "grid.linewidth": 0.8,
    "legend.frameon": False, "legend.fontsize": 9, "savefig.dpi": 150,
}  # fmt: skip
SIZE = (6.4, 3.4)  # inches
WINDOW = 6  # the moving average spans about this part of a run: 1 / WINDOW of its rows


@dataclass(frozen=True)
class Panel:
    """One figure: `series` maps a metric's name to its label; a name with a "*" stands for all that fit, each labelled
    by what the "*" stands for.

    Metrics under `eval/` are drawn as points, which is what they are; the others as raw line and average.
    """

    name: str
    title: str
    unit: str
    series: Mapping[str, str]
    logarithmic: bool = False
    good: str = ""  # in words, under the report's chart


PANELS = (
    Panel("loss", "Loss", "", {"loss": "training", "eval/loss": "held out"},
          good="Good: falls, then flattens."),
    Panel("reward", "Reward", "sum of the weighted rewards", {"reward": "reward"},
          good="Good: rises, then flattens."),
    Panel("accuracy", "Accuracy", "share of right answers",
          {"rewards/accuracy/mean": "training prompts", "eval/accuracy": "held out"},
          good="Good: both rise. Held out well below training: memorised."),
    Panel("held_out", "Held-out accuracy by group", "share of right answers", {"eval/accuracy/*": ""},
          good="Good: all rise; one that falls pays for the others."),
    Panel("rewards", "Rewards by function", "mean, unweighted", {"rewards/*/mean": ""},
          good="Good: accuracy rises; format alone rising means that only the form is learned."),
    Panel("abstentions", "Abstentions by reward", "share of the completions", {"rewards/*/abstained": ""},
          good="Good: near 0. A judge whose replies cannot be read is not heard."),
    Panel("reward_by_paradigm", "Reward by paradigm", "sum of the weighted rewards", {"paradigms/*/reward": ""},
          good="Good: all rise together."),
    Panel("reward_by_specialty", "Reward by specialty", "sum of the weighted rewards", {"specialties/*/reward": ""},
          good="Good: all rise; one that falls pays for the others."),
    Panel("accuracy_by_paradigm", "Accuracy by paradigm", "share of right answers", {"paradigms/*/accuracy": ""},
          good="Good: all rise together."),
    Panel("structure_by_paradigm", "Structure by paradigm", "share that follows it", {"paradigms/*/structure": ""},
          good="Good: high and steady; falling means that the paradigm is given up."),
    Panel("accuracy_by_specialty", "Accuracy by specialty", "share of right answers", {"specialties/*/accuracy": ""},
          good="Good: all rise."),
    Panel("accuracy_by_modality", "Accuracy by modality", "share of right answers", {"modalities/*/accuracy": ""},
          good="Good: images rise too; text alone rising means that it does not look."),
    Panel("signal", "Groups without signal", "share of groups whose rewards are equal",
          {"frac_reward_zero_std": "equal rewards"},
          good="Good: low. Groups of equal rewards teach nothing."),
    Panel("kl", "KL to the reference", "nats per token", {"kl": "KL"},
          good="Good: rises slowly. A jump means that lr is too high."),
    Panel("perception", "Perception", "nats per token", {"perception_kl": "KL to the policy with masked images"},
          good="Good: rises, then flattens. Without end: raise perception_entropy (PAPO)."),
    Panel("length", "Completion length", "tokens",
          {"completions/mean_length": "mean", "completions/max_length": "longest"},
          good="Good: steady. Longest at the limit means truncated answers."),
    Panel("entropy", "Entropy of the policy", "nats per token", {"entropy": "entropy"},
          good="Good: falls slowly. Near zero, samples are alike."),
    Panel("gap", "Gap of sampler and trainer", "difference of log-probabilities",
          {"sampling/logp_difference/mean": "mean", "sampling/logp_difference/max": "largest"}, logarithmic=True,
          good="Good: small and flat; sampler and trainer should agree."),
    Panel("throughput", "Throughput", "tokens per second", {"tokens_per_second": "of completions; DSA: of prompts too"},
          good="Good: flat after the first steps, which compile."),
)  # fmt: skip


def ema(values: Sequence[float], span: float | None = None) -> list[float]:
    """Exponential moving average over `span` values, its weights scaled to sum to one from the first value on.

    The weight of the past is 1 - 2 / (span + 1), as in pandas with adjust=True; the default span is a part of the
    run, so that a short run is not drawn later than it happened.
    """
    smoothing = 1 - 2 / ((span or max(1.0, len(values) / WINDOW)) + 1)
    averaged, total, weight = [], 0.0, 0.0
    for value in values:
        total = smoothing * total + (1 - smoothing) * value
        weight = smoothing * weight + (1 - smoothing)
        averaged.append(total / weight)
    return averaged


def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric where it is a number."""
    pairs = [(row["step"], float(row[name])) for row in rows if isinstance(row.get(name), (int, float))]
    return [step for step, _ in pairs], [value for _, value in pairs]


def draw_run(folder: str | Path, names: Collection[str] = ()) -> list[Path]:
    """Draws the panels of these names, all without, that the run's metrics.jsonl has figures for, into `folder`/plots.

    Returns the paths of the PNG files.
    """
    folder = Path(folder)
    rows, panels = metrics.read(folder), [panel for panel in PANELS if not names or panel.name in names]
    drawn = [draw(panel, rows, folder / "plots" / f"{panel.name}.png") for panel in panels]
    return [path for path in drawn if path is not None]


def draw(panel: Panel, rows: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Draws one panel; None, and no file, where the rows have no figure for it."""
    found = named(panel, rows)
    if not found:
        return None
    figure, axes = blank(panel.title, panel.unit)
    if panel.logarithmic and all(value > 0 for name in found for value in series(rows, name)[1]):
        axes.set_yscale("log")
    for (name, label), colour in zip(found.items(), COLOURS, strict=False):
        steps, values = series(rows, name)
        if name.startswith("eval/"):
            axes.plot(steps, values, "o-", color=colour, lw=1, ms=5, label=label)
        else:
            axes.plot(steps, values, color=colour, lw=0.8, alpha=0.35)
            marker = "o" if len(values) == 1 else ""
            axes.plot(steps, ema(values), marker=marker, color=colour, lw=2, label=label)
    return save(figure, axes, path, legend="best" if len(found) > 1 else "")


@dataclass(frozen=True)
class Bar:
    """A bar with a whisker from `low` to `high`, a dot for each of `dots`, and a diamond at `mark`."""

    name: str
    value: float
    low: float
    high: float
    dots: Sequence[float] = ()
    mark: float | None = None


def bars(found: Sequence[Bar], path: str | Path, title: str, unit: str) -> Path:
    """Draws bars beside each other, the axis cut to where they differ."""
    figure, axes = blank(title, unit)
    places = range(len(found))
    heights = [bar.value for bar in found]
    whiskers = [[max(0.0, bar.value - bar.low) for bar in found], [max(0.0, bar.high - bar.value) for bar in found]]
    axes.bar(places, heights, yerr=whiskers, color=[COLOURS[i % len(COLOURS)] for i in places], alpha=0.8, capsize=3)
    for place, bar in zip(places, found, strict=True):
        axes.plot([place + 0.18] * len(bar.dots), bar.dots, "o", color="#374151", ms=3, alpha=0.7)
        if bar.mark is not None:
            axes.plot(place - 0.18, bar.mark, "D", color="#111827", mfc="white", ms=5)
    shown = [value for bar in found for value in (bar.low, bar.high, *bar.dots, bar.mark) if value is not None]
    margin = max(0.25 * (max(shown) - min(shown)), 0.5)
    axes.set_ylim(max(0.0, min(shown) - margin), max(shown) + margin)
    axes.set_xticks(list(places), [bar.name.replace(" + ", " +\n") for bar in found], fontsize=9)
    axes.set_xlabel("")
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
    return save(figure, axes, Path(path), legend="")


def named(panel: Panel, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The panel's metrics that the rows have figures for, with their labels; each "*" replaced by what it stands for,
    such as rewards/<function>/mean."""
    names: dict[str, str] = {}
    for name, label in panel.series.items():
        before, star, after = name.partition("*")
        if not star:
            names[name] = label
            continue
        found = sorted({key for row in rows for key in row if key.startswith(before) and key.endswith(after)})
        names |= {key: key[len(before) : len(key) - len(after)] for key in found}
    return {name: label for name, label in names.items() if series(rows, name)[0]}


def blank(title: str, unit: str) -> tuple[Any, Any]:
    """A figure of `SIZE` in `STYLE` with one pair of axes, steps along the horizontal one, which `save` takes."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        # `save` lays it out: savefig draws a figure that has a layout twice, the first time for the layout alone
        figure = Figure(SIZE, STYLE["savefig.dpi"])
        axes = figure.subplots()
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def save(figure: Any, axes: Any, path: Path, legend: str) -> Path:
    """Lays a figure out and writes it as PNG; the path. `legend`: its place, of the figure's "outside"; "" for none."""
    import matplotlib
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        if legend.startswith("outside"):
            figure.legend(loc=legend, ncols=2)
        elif legend:
            axes.legend(loc=legend)
        ConstrainedLayoutEngine().execute(figure)
        figure.savefig(buffer, format="png")
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, buffer.getvalue())
    return path
