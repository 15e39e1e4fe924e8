"""The traces to review: those of a dataset run that passed stage 1, or those of any data set."""

from collections.abc import Iterable
from pathlib import Path

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.data.case import SPLITS, Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert.factory_store import FILE, Store
from mmedexpert_jax.mmedexpert.record import Check, RawCase, Trace, trace_id
from mmedexpert_jax.processing.images import PLAIN, EncodedImage, ImageRef, clean

OWN_FILE = "review.sqlite"  # holds the events of a review whose traces come from a data set


def locate(data: str, preset: str) -> str:
    """The data to review: `data` as given, else the dataset run of the preset where there is one, else "mini"."""
    if data:
        return data
    run = Path("runs") / f"dataset-{preset}"
    return str(run) if (run / FILE).is_file() else "mini"


def open_review(
    data: str, workdir: Path, split: str, limit: int = 0, seed: int = 0, make: bool = True
) -> tuple[Store, list[Trace]]:
    """The store that takes the events, and the traces to review.

    Args:
        data: directory of a dataset run, whose store is used; else as in `data.load_cases`.
        workdir: takes the store of a data set's review.
        split: of a data set, or "all".
        limit: at most so many traces; 0: all.
        seed: of the choice that `limit` makes in a data set.
        make: whether a data set's review gets its store where it has none; else it is empty and in memory.

    Raises:
        DataError: nothing to read, or no trace in it.
    """
    folder = Path(data).expanduser()
    if (folder / FILE).is_file():
        store = Store(folder / FILE)
        traces = list(store.traces())
        traces = traces[:limit] if limit else traces
    else:
        found = list(_of_data_set(data, split, limit, seed))
        traces = [trace for trace in found if trace.paradigm]
        if found and not traces:
            raise DataError(
                f"{data}: no trace says its paradigm, whose rules it is reviewed by; give the rows paradigm"
            )
        if len(traces) < len(found):
            print(f"{data}: {len(found) - len(traces)} traces without a paradigm are left out", flush=True)
        file = workdir / OWN_FILE
        if make:
            workdir.mkdir(parents=True, exist_ok=True)
        store = Store(file if make or file.is_file() else ":memory:")
    if not traces:
        raise DataError(f"{data} holds no trace to review; run the stages of configs/dataset.py before the review")
    store.read("PRAGMA synchronous=FULL")  # an event that was answered for survives a power cut too
    return store, traces


def _of_data_set(data: str, split: str, limit: int, seed: int) -> Iterable[Trace]:
    for name in SPLITS if split == "all" else (split,):
        for case in load_cases(data, name, limit=limit, seed=seed):
            if case.trace:
                yield from_case(case, source=f"{data}/{name}")
        if Path(data).is_file():
            return


def from_case(case: Case, source: str = "") -> Trace:
    """A case of a data set with its trace, as the factory would pass it on."""
    record = RawCase(**vars(case) | {"source": source, "source_id": case.id, "task": ""})
    id = trace_id(case.id, case.paradigm, "", 0, case.trace)
    return Trace(id, record, case.paradigm, case.trace, "", "", 0, "", Check(True, case.answer))


def encoded(picture: ImageRef) -> tuple[bytes, str]:
    """An image as a browser shows it, and its content type."""
    # a picture that a view chooses is small enough to be sent only when it is compressed
    file = picture.open() if picture.view == PLAIN else EncodedImage(picture.picture(), compress=1)()
    data = clean(file, picture.name)
    return data, "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
