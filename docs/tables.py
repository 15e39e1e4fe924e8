"""The tables that docs/figures.py writes into README and docs, each from results of docs/results/."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import stdtrit

from mmedexpert_jax.medeval import stats

KINDS = ("sampled", "greedy")


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


def against_table(*measured: dict) -> str:
    """What other settings gain over the default: paired over cases, the seeds of a case kept together, and by seed."""
    text = ""
    for one in measured:
        found = one["result"]
        names = [
            key.removeprefix("GBA beyond ").removesuffix(", sampled") for key in found if key.endswith(", sampled")
        ]
        groups = dict(zip(names, list(dict.fromkeys(run["group"] for run in found["runs"]))[1:], strict=True))
        rows = []
        for name, group in groups.items():
            pairs = {kind: found[f"GBA beyond {name}, {kind}"] for kind in KINDS}
            gains = {
                kind: {"gain": -pair["gain"], "low": -pair["high"], "high": -pair["low"]}
                for kind, pair in pairs.items()
            }
            rows.append([f"{group} (`{name}`)", *_gains(found, gains, group, "GBA")])
        for pair, gains in found.get("pairs", {}).items():  # results of before have none
            rows.append([pair, *_gains(found, gains, *(groups[name] for name in pair.split(" over ")))])
        seeds = f"{found['GBA']['runs']} seeds".replace("1 seeds", "1 seed")
        heads = [f"over the default, {seeds}, points [95 % interval over items]"]
        heads += [head for kind in KINDS for head in (kind, "over seeds")]
        text += f"{_about(one)}\n\n{_table(heads, rows)}\n"
    return text.rstrip("\n") + "\n"


def _gains(found: dict, gains: dict[str, dict], better: str, worse: str) -> list[str]:
    """Cells of a comparison: under each decoding the gain with its interval over items, and the interval over seeds."""
    cells = []
    for kind, gain in gains.items():
        ends = stats.student(_by_seed(found, better, worse, kind))
        cells += [_points(gain["gain"], gain), _ends(*ends) if ends else ""]
    return cells


def _by_seed(found: dict, better: str, worse: str, kind: str) -> list[float]:
    """Held-out accuracy of one group's runs over another's under a decoding, seed by seed."""
    held_out = {(run["group"], run["seed"]): run[kind] for run in found["runs"]}
    return [held_out[better, seed] - held_out[worse, seed] for group, seed in held_out if group == better]


FIRST = {"ablation": 5, "48 steps": 8}  # seeds that there were when the others were planned


def power_table(ablation: dict, pairs: dict, eight: dict) -> str:
    """Comparisons that their first seeds left open, the seeds that the variance of those asks for, and all seeds made.

    `ablation` has all rows over some seeds, `pairs` some rows over more; of a claim the longer is shown.
    """
    claims: dict[str, dict] = {}
    for claim in (*ablation["claims"], *pairs["claims"]):
        claims[claim["text"]] = max(claims.get(claim["text"], claim), claim, key=lambda one: len(one["by_seed"]))
    compared = []
    for claim in claims.values():
        low, high = stats.student(claim["by_seed"][: FIRST["ablation"]]) or (1.0, 1.0)
        if claim["measure"] == "accuracy" and low <= 0 <= high:
            compared.append([f"ablation: {claim['text']}", FIRST["ablation"], claim["by_seed"], claim])
    found = eight["result"]
    for kind in KINDS:
        by_seed = _by_seed(found, "GBA", "GRPO", kind)
        compared.append(
            [f"48 steps, {kind}: GBA outperforms GRPO", FIRST["48 steps"], by_seed, found[f"GBA beyond grpo, {kind}"]]
        )
    rows = []
    for what, first, by_seed, items in compared:
        low, high = stats.student(by_seed[:first]) or (0.0, 0.0)
        spread = 100 * float(np.std(by_seed[:first], ddof=1))
        planned = [len(by_seed[:first]), f"{spread:.2f}", f"{50 * (high - low):.2f}", _seeds_needed(spread)]
        over_seeds = _ends(*(stats.student(by_seed) or (0.0, 0.0)))
        rows.append([what, *planned, len(by_seed), _points(float(np.mean(by_seed)), items), over_seeds])
    heads = ["comparison", "first seeds", "standard deviation over them", "half-width over them"]
    heads += ["seeds for 1 point", "seeds made", "points [95 % interval over items]", "over seeds"]
    return _table(heads, rows)


def _seeds_needed(spread: float, half: float = 1.0) -> int:
    """Fewest seeds whose interval by Student's t reaches `half` to each side, at this standard deviation."""
    return next(n for n in itertools.count(2) if stdtrit(n - 1, 0.975) * spread / math.sqrt(n) <= half)


SHOWN = {"text": "text", "image": "with a picture", "other_image": "with another case's picture"}


def looking_table(looking: dict) -> str:
    """Sampled accuracies of GBA before and after by modality, and of the control with exchanged pictures."""
    heads = ["cases", "items", "before", "after", "gain, points [95 % interval]"]
    found = looking["result"]["modalities"]
    rows = [
        [
            SHOWN[kind],
            row["items"],
            *(f"{100 * row[end]:.1f} %" for end in ("before", "after")),
            _points(row["gain"], row),
        ]
        for kind, row in found.items()
    ]
    return f"{_about(looking)}\n\n{_table(heads, rows)}"


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
            f"GBA {percent['GBA']} %, final {percent['final']} %",
        ],
        [
            "TIES of five 0.5B checkpoints on disk, against mergekit in the same run",
            f"{times['wall_s']:.1f} times faster, {times['anonymous_gb']:.0f} times less memory",
        ],
    ]
    return f"{_about(learning, command=False)}\n\n{_table(['what', 'figure'], rows)}"


def forward_table(*measured: dict) -> str:
    """Passes, answers and loading beside transformers, least of the turns."""
    heads = ["family, size", ""]
    heads += [f"{who}, {clock}" for clock in ("wall s", "CPU s") for who in ("ours", "transformers")]
    text = ""
    for one in measured:
        rows = [
            [
                f"{found['family']}, {found['parameters'] / 1e6:.0f} M",
                {"full": "full forward", "answer": "answer of 16 tokens"}.get(kind, kind),
                *(f"{found[kind][who][clock]:.3f}" for clock in ("least", "cpu") for who in ("ours", "transformers")),
            ]
            for found in one["result"]["results"]
            for kind in ("prefill", "full", "answer", "loading")
            if kind in found
        ]
        text += f"{_about(one)}\n\n{_table(heads, rows)}\n"
    return text.rstrip("\n") + "\n"


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


def merge_methods_table(*measured: dict) -> str:
    """Merges of trained experts by every method, and paired differences."""
    text = ""
    for one in measured:
        rows = one["result"]["rows"]
        heads = [head for head in rows[0] if head != "CPU s"]  # of merging alone, on a machine that was shared
        text += f"{_about(one)}\n\n{_table(heads, [[row[head] for head in heads] for row in rows])}\n"
    return text.rstrip("\n") + "\n"


def update_table(*measured: dict) -> str:
    """Gradients of the same completions by each way of laying out their tokens."""
    text = ""
    for one in measured:
        found = one["result"]
        heads = [f"{found['prompts']} x {found['samples']} completions, {found['model']}", "tokens", "wall s", "CPU s"]
        heads += ["samples/s", "temporary MB", "norm of the gradient"]
        rows = [
            [
                name,
                f"{row['tokens']:,}",
                *(f"{row[key]:.3g}" for key in ("seconds", "processor_seconds", "samples_per_second")),
                f"{row['temporary_bytes'] / 1e6:,.0f}" if "temporary_bytes" in row else "",
                f"{row['grad_norm']:.6f}",
            ]
            for name, row in found["rows"].items()
        ]
        faster, fewer = found["speedup"], found["token_ratio"]
        shares = f"{faster:.2f} times faster of {fewer:.2f} times fewer tokens, {faster / fewer:.2f} of it."
        text += f"{_about(one)}\n\n{_table(heads, rows)}\nPacked over plain: {shares}\n\n"
    return text.removesuffix("\n")


def memory_table(*measured: dict) -> str:
    """The memory of compiled programs on a device."""
    text = ""
    for one in measured:
        found = one["result"]["gigabytes"]
        heads = [f"program, {one['result']['model']}", *(f"{kind}, GB" for kind in next(iter(found.values())))]
        rows = [[name, *(f"{size:.2f}" for size in row.values())] for name, row in found.items()]
        text += f"{_about(one)}\n\n{_table(heads, rows)}\n"
    return text.rstrip("\n") + "\n"


def rollout_table(sync: dict, *measured: dict) -> str:
    """Generation beside its peers, and the adapter's two ways into the sampler."""
    heads = ["prompts x samples x tokens", "dtype", "side", "tokens/s", "best", "CPU ms/token", "row-steps/tokens"]
    text = ""
    for one in measured:
        rows = []
        for row in one["result"]["rows"]:
            for name, side in row["sides"].items():
                rates = [_digits(side[key]) for key in ("median", "best", "cpu_ms_per_token")]
                own = f"{row['row_steps_over_tokens']:.2f}" if name == "ours" else ""
                rows.append([row["work"], row["dtype"], name, *rates, own])
        text += f"{_about(one)}\n\n{_table(heads, rows)}\n"
    heads = ["adapter, width x layers", "s a rollout", "CPU s", "gap to the trainer, mean", "most"]
    keys = ["seconds", "cpu_seconds", "gap_mean", "gap_max"]
    rows = [
        [f"{name.replace('_', '-')}, {row['size']}", *(_digits(row[name][key]) for key in keys)]
        for row in sync["result"]["rows"]
        for name in ("folded", "low_rank")
    ]
    return f"{text}{_about(sync)}\n\n{_table(heads, rows)}"


def evaluate_table(evaluate: dict) -> str:
    """Items a second beside transformers, one at a time."""
    found = evaluate["result"]
    heads = ["way", "items", "wall s", "CPU s", "items/s", "items/CPU s"]
    keys = ["wall_s", "cpu_s", "items_per_second", "items_per_cpu_second"]
    rows = [[name, row["items"], *(_digits(row[key]) for key in keys)] for name, row in found["rows"].items()]
    faster = " and ".join(f"{found[f'speedup_{kind}']:.1f} times with {kind} programs" for kind in ("cold", "warm"))
    text = f"{_about(evaluate)}\n\n{_table(heads, rows)}\nItems a second over transformers': {faster}; "
    return f"{text}{found['same_text']:.0%} of the peer's answers are ours letter for letter.\n"


def dataset_table(dataset: dict) -> str:
    """Requests a second of the teacher's client, by what its server allows."""
    heads = ["server", "answered", "attempts", "requests/s", "of the limit", "CPU ms/request, server included"]
    rows = [[row[head] for head in heads] for row in dataset["result"]["rows"]]
    return f"{_about(dataset)}\n\n{_table(heads, rows)}"


def _about(measured: dict, command: bool = True) -> str:
    found = measured["versions"] | measured["result"].get("versions", {})  # those of its peers
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    line = f"Measured {measured['date']} on {measured['hardware']}; {versions}"
    return f"{line}: `{measured['command']}`" if command else f"{line}."


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _points(gain: float, interval: dict) -> str:
    return f"{_signed(gain)} {_ends(interval['low'], interval['high'])}"


def _ends(low: float, high: float) -> str:
    return f"[{_signed(low)}, {_signed(high)}]"


def _signed(share: float) -> str:
    """A difference of shares in points; to two digits where one would hide on which side of 0 it is."""
    points = 100 * share
    return f"{points:+.1f}" if abs(points) >= 0.05 or not points else f"{points:+.2f}"


def _digits(value: float) -> str:
    """Three digits, large numbers whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# name of a block: the results that its table is made of, and the function that makes it of them
TABLES: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "about_learning": (("learning",), lambda learning: f"{_about(learning)}\n"),
    "learning": (("learning",), learning_table),
    "against": (("against",), against_table),
    "structure": (("structure", "eight"), against_table),
    "objectives": (("objectives",), against_table),
    "terms": (("terms", "batch"), against_table),
    "rates": (("rates",), against_table),
    "power": (("ablation", "pairs", "eight"), power_table),
    "looking": (("looking",), looking_table),
    "recipe": (("recipe",), looking_table),
    "pipeline": (("pipeline",), pipeline_table),
    "forward": (("forward", "forward_families", "forward_families_medium"), forward_table),
    "merge": (("merge", "merge_lora", "merge_lora_2b", "merge_growth"), merge_table),
    "merge_methods": (("merge_methods",), merge_methods_table),
    "update": (("update", "update_long", "update_mini"), update_table),
    "memory": (("memory", "memory_7b", "memory_dsa"), memory_table),
    "rollout": (("rollout_sync", "rollout", "rollout_three", "rollout_bfloat16"), rollout_table),
    "evaluate": (("evaluate",), evaluate_table),
    "dataset": (("dataset",), dataset_table),
    "measured": (("learning", "pipeline", "merge"), measured_table),
}
