"""The job `contamination`: every training set of the config against every test set."""

from ml_collections import ConfigDict

from mmedexpert_jax.data import benchmarks, contamination
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.runtime import Run, files


def run(config: ConfigDict, run: Run) -> None:
    """Writes export/contamination.csv (one row a pair) and table.md, and finishes the run with the counts.

    Args:
        config: of the job.
        run: the open run.
    """
    for key in ("training", "benchmarks"):
        if not config[key]:
            raise ConfigError(f"config.{key} is empty; name at least one set as name[:subset][@split][=source]")
    tests = [document for entry in config.benchmarks for document in _documents(entry, config)]
    training = [document for entry in config.training for document in _documents(entry, config)]
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
    columns = ("training", "test", "drop", "review")
    lines = [columns, ("---",) * 4, *(tuple(row[column] for column in columns) for row in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines) if rows else "no pairs\n"
    files.write_text(run.path / "table.md", table)
    run.finish(counts)
    print(table, end="", flush=True)
    print(f"{counts['drop']} of {counts['cases']} training cases to drop; {len(found.unreadable)} unreadable images")


def _documents(entry: str, config: ConfigDict) -> list[contamination.Document]:
    """The items of an entry as documents of the set that it names; prints its census."""
    name = entry.partition("=")[0]
    found = benchmarks.load_entry(entry, limit=config.limit, seed=config.seed, skip_broken=config.skip_broken)
    print(benchmarks.describe(found), flush=True)
    return [contamination.of_item(item, name) for item in found.items]
