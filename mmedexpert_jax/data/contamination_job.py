"""The job `contamination`: every training set of the config against every test set."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from mmedexpert_jax.data import benchmarks, contamination
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.report.text_tables import markdown
from mmedexpert_jax.runtime import Run, files

SETS = {"training": "cases", "benchmarks": "tests"}  # fields, and what a plan calls them
ROW = 150  # bytes of a pair in export/contamination.csv, about: names of sets and items, and what they share


def run(config: ConfigDict, run: Run) -> None:
    """Writes export/contamination.csv (one row a pair) and table.md, and finishes the run with the counts."""
    _check(config)
    tests = [member for name, entry in _named(config.benchmarks) for member in _members(name, entry, config)]
    training = [member for name, entry in _named(config.training) for member in _members(name, entry, config)]
    with run.progress(len(training), label="cases") as progress:
        found = contamination.find(training, tests, config.images, on_case=progress.update)
    (run.path / "export").mkdir(exist_ok=True)
    found.write(run.path / "export" / "contamination.csv")
    rows = found.table()
    counts = {
        "cases": len(training),
        "items": len(tests),
        "drop": len(found.dropped()),
        "pairs": len(found.pairs),
        "unreadable": found.unreadable,
    }
    table = markdown(rows) or "no pairs\n"
    files.write_text(run.path / "table.md", table)
    run.finish(counts)
    print(table, end="", flush=True)
    print(f"{counts['drop']} of {counts['cases']} training cases to drop; {len(found.unreadable)} unreadable images")


def describe(config: ConfigDict) -> list[str]:
    """Lines of a plan: the census of every set, what is compared, and disk. Raises as `run`."""
    _check(config)
    lines, items, images = [], dict.fromkeys(SETS, 0), dict.fromkeys(SETS, 0)
    for key, name in SETS.items():
        for entry in config[key]:
            found = _load(entry, config)
            lines.append(f"{name:8} {benchmarks.describe(found)}".replace("\n", f"\n{'':9}"))
            items[key] += len(found.items)
            images[key] += sum(len(item.images) for item in found.items)
    cases, tests = items.values()
    read = f"{sum(images.values()):,} images read" if config.images else "no images read"
    lines.append(f"compared {cases:,} cases with {tests:,} items, {read}")
    lines.append(f"disk     {ROW} bytes a pair found, at most {cases * tests * ROW / 1e6:,.1f} MB if all were alike")
    return lines


def _check(config: ConfigDict) -> None:
    for key in SETS:
        if not config[key]:
            raise ConfigError(f"config.{key} is empty; name at least one set as name[:subset][@split][=source]")


def _load(entry: str, config: ConfigDict) -> benchmarks.Benchmark:
    return benchmarks.load_entry(entry, limit=config.limit, seed=config.seed, skip_broken=config.skip_broken)


def _named(entries: Sequence[str]) -> list[tuple[str, str]]:
    """Each entry behind the name of its set: what stands before "=", or all of it where several entries share that, as
    two files of one's own do, whose ids may be the same."""
    names = [entry.partition("=")[0] for entry in entries]
    shared = {name for name in names if names.count(name) > 1}
    return [(entry if name in shared else name, entry) for name, entry in zip(names, entries, strict=True)]


def _members(name: str, entry: str, config: ConfigDict) -> list[contamination.Member]:
    """The items of an entry beside the name of its set; prints its census."""
    found = _load(entry, config)
    print(benchmarks.describe(found), flush=True)
    return [(name, item) for item in found.items]
