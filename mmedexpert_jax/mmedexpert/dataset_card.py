"""README.md and manifest.json of a built data set: what it holds, where it comes from, how it was made."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmedexpert_jax import __version__, border
from mmedexpert_jax.data.case import PARADIGMS, SPECIALTIES
from mmedexpert_jax.mmedexpert import decontamination, exemplars, teacher_prompts
from mmedexpert_jax.mmedexpert.dataset_build import COLUMNS, Built
from mmedexpert_jax.mmedexpert.funnel import margins
from mmedexpert_jax.mmedexpert.trace_synthesis import TraceSettings
from mmedexpert_jax.report import pages
from mmedexpert_jax.report.text_tables import markdown

Splits = Mapping[str, Sequence[Built]]


def manifest(
    splits: Splits,
    hashes: Mapping[str, str],
    facts: Mapping[str, Mapping[str, Any]],
    settings: TraceSettings,
    funnel: Sequence[Mapping[str, Any]],
    review: str,
) -> dict[str, Any]:
    """All that tells one data set from another; no times, no paths of this machine.

    `facts`: "sources", hashes of the raw files, and "compared", items by test set (`decontamination.compared`).
    """
    return {
        "format": 1,
        "made_by": f"mmedexpert-jax {__version__}",
        "files": dict(sorted(hashes.items())),
        "rows": {name: counts(built) for name, built in splits.items()},
        "sources": dict(sorted(facts["sources"].items())),
        "compared": dict(sorted(facts["compared"].items())),
        "teacher": border.passed_on(settings.teacher),
        "prompts": teacher_prompts.version(settings.style, settings.words),
        "exemplars": exemplars.VERSION,
        "candidates": settings.candidates,
        "words": list(settings.words),
        "review": review,
        "funnel": list(funnel),
    }


def counts(built: Sequence[Built]) -> dict[str, Any]:
    """Rows in all, by specialty, paradigm, modality and state of the review."""
    return {
        "all": len(built),
        "specialty": _count((one.trace.specialty for one in built), SPECIALTIES),
        "paradigm": _count((one.trace.paradigm for one in built), PARADIGMS),
        "modality": _count((one.trace.case.modality for one in built), ("text", "image")),
        "review": dict(sorted(Counter(one.review for one in built).items())),
    }


def write(
    splits: Splits, hashes: Mapping[str, str], made: Mapping[str, Any], collection: Sequence[Mapping[str, Any]]
) -> str:
    """The data card, with the front matter that `datasets.load_dataset` reads its configurations from."""
    rows = [one for built in splits.values() for one in built]
    licences = Counter((o.trace.case.source, o.trace.case.licence, o.trace.case.redistributable) for o in rows)
    licence_rows = [
        {"source": source, "licence": licence or "none stated", "may be passed on": "yes" if open_ else "no", "rows": n}
        for (source, licence, open_), n in sorted(licences.items())
    ]
    split_rows = [
        {"split": name, "all": row["all"], **row["specialty"], **row["paradigm"], **row["modality"]}
        for name, row in made["rows"].items()
    ]
    tables = {
        "splits": split_rows,
        "columns": [{"column": name, "meaning": meaning} for name, (_, meaning) in COLUMNS.items()],
        "licences": licence_rows,
        "collection": collection,
        "compared": decontamination.table(made["compared"]),
        "margins": margins(made["funnel"]),
        "funnel": made["funnel"],
    }
    files = {folder: [name for name in hashes if name.rpartition("/")[0] == folder] for folder in ("", *SPECIALTIES)}
    told = {
        "teacher": made["teacher"],
        "review": _review(Counter(one.review for one in rows)),
        "configs": {folder: names for folder, names in files.items() if names},
    }
    texts = {name: markdown(table).rstrip("\n") for name, table in tables.items()}
    return pages.render("mmedexpert/dataset_card.md", **texts, **told) + "\n"


def _review(states: Counter) -> str:
    seen = states["accept"] + states["edit"]
    if not seen:
        return "No trace has been reviewed by a person. Treat all of them as unverified."
    return f"{seen} of {states.total()} traces were accepted by people, {states['edit']} of these after an edit."


def _count(values: Any, names: Sequence[str]) -> dict[str, int]:
    found = Counter(values)
    return {name: found[name] for name in names}
