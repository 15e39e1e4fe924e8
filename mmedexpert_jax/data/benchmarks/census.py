"""The content of a benchmark's files, counted, and held against what its authors published."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmedexpert_jax.data.benchmarks.benchmark import Benchmark
from mmedexpert_jax.data.case import Case

NAMED = 3  # broken rows that an error names
SHOWN = 24  # values of a label that `describe` prints


def count(
    name: str,
    items: Sequence[Case],
    rows: int,
    malformed: Sequence[str],
    missing: Sequence[str],
    published: Mapping[str, Any],
) -> dict[str, Any]:
    """Counts of rows, items, images, answers, kinds, options, images an item, and of every label's values.

    Args:
        items: all of a split.
        rows: read, broken ones included.
        malformed: one line for each row that could not be used.
        missing: one line for each item whose image is not there.
        published: the same keys with the published numbers; what differs stands under "differs", a line for each key.
    """
    labels = sorted({label for item in items for label in item.labels})
    counted: dict[str, Any] = {
        "benchmark": name,
        "rows": rows,
        "items": len(items),
        "images": len({image.name for item in items for image in item.images}),
        "kinds": _counts(item.kind for item in items),
        "answers": _counts(item.answer for item in items if item.kind == "choice" and len(item.answer) == 1),
        "keys_without_option": sum(item.kind == "choice" and len(item.answer) != 1 for item in items),
        "options": _counts(len(item.options) for item in items if item.kind == "choice"),
        "images_per_item": _counts(len(item.images) for item in items),
        "labels": {label: _counts(item.labels.get(label, "") for item in items) for label in labels},
        "malformed": list(malformed),
        "missing_images": list(missing),
    }
    counted["published_items"] = published.get("items")
    counted["differs"] = _differences(counted, published)
    return counted


def broken(census: Mapping[str, Any]) -> str:
    """The number and names of the rows that cannot be used, in one line."""
    parts = []
    for key, words in (("malformed", "malformed rows"), ("missing_images", "items lack an image")):
        if lines := census[key]:
            more = f" and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
            parts.append(f"{len(lines)} of {census['rows']} {words}: {'; '.join(lines[:NAMED])}{more}")
    return "; ".join(parts)


def describe(benchmark: Benchmark) -> str:
    """The census as lines to print."""
    census = benchmark.census
    lines = [f"{benchmark.title}: {census['items']} items of {census['rows']} rows, {census['images']} images"]
    if len(benchmark.items) != census["items"]:
        lines.append(f"  taken: {len(benchmark.items)}")
    for key in ("kinds", "answers", "options", "images_per_item"):
        lines.append(f"  {key.replace('_', ' ')}: {_listed(census[key])}")
    lines += [f"  {label}: {_listed(counts)}" for label, counts in census["labels"].items()]
    if census["keys_without_option"]:
        lines.append(f"  keys that are no option's text: {census['keys_without_option']}")
    if problem := broken(census):
        lines.append(f"  left out: {problem}")
    if census["differs"]:
        lines.append("  differs from the published counts, which stand in brackets:")
        lines += [f"    {line}" for line in census["differs"]]
    return "\n".join(lines)


def _counts(values: Any) -> dict[str, int]:
    return {str(value): number for value, number in Counter(values).most_common()}


def _listed(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{value or '(none)'} {number}" for value, number in list(counts.items())[:SHOWN])
    return shown + (f", and {len(counts) - SHOWN} more" if len(counts) > SHOWN else "") or "none"


def _differences(counted: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, expected in published.items():
        found = counted["labels"].get(key, {}) if key not in counted else counted[key]
        if not isinstance(expected, Mapping):
            if found != expected:
                lines.append(f"{key.replace('_', ' ')} {found} ({expected})")
            continue
        values = dict.fromkeys([*expected, *found])
        pairs = {value: (found.get(value, 0), expected.get(value, 0)) for value in values}
        other = [f"{value or '(none)'} {have} ({want})" for value, (have, want) in pairs.items() if have != want]
        if other:
            lines.append(f"{key.replace('_', ' ')}: {', '.join(other)}")
    return lines
