"""Identifiers of persons in requests to an endpoint or a judge: reported by row, redacted or kept back."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedexpert_jax import border, privacy
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.images import ImageRef

if TYPE_CHECKING:
    from mmedexpert_jax.remote import Request  # needs an extra, which an evaluation without endpoints does not

RAW = ("raw_question", "raw_options")  # the file's own texts in an item's columns, which the kits' prompts show


def sendable(items: Sequence[Case], receiver: str, mode: str, table: Path) -> Sequence[Case]:
    """The items that an endpoint may be asked: all ("report"), with redacted texts, or those without a finding.

    Headers of images are named but never sent in any mode, so that they alone keep no item back. With "redact" an item
    whose options would become one text is kept back, since none of them could be chosen.

    Args:
        receiver: of the texts, in words.
        mode: one of `privacy.MODES`.
        table: CSV file of the findings, by row, kind and place; written where there are any.
    """
    texts = {item.id: privacy.scan_texts(_texts(item)) for item in items}
    rows = {item.id: [*texts[item.id], *_headers(item.images)] for item in items}
    _report(rows, receiver, mode, table)
    if mode == "refuse":
        return [item for item in items if not texts[item.id]]
    if mode == "redact":
        hidden = {item.id: _redacted(item) if texts[item.id] else item for item in items}
        gone = [item.id for item in items if _distinct(item) and not _distinct(hidden[item.id])]
        if gone:
            some = border.cut(", ".join(gone), 200)
            print(f"privacy: {len(gone)} of them not sent to {receiver}: redacted, their options read the same: {some}")
        return [one for id, one in hidden.items() if id not in gone]
    return items


def _distinct(item: Case) -> bool:
    """True for options that all differ."""
    return len({*item.options}) == len(item.options)


def sendable_requests(requests: Mapping[str, "Request"], receiver: str, mode: str, table: Path) -> dict[str, "Request"]:
    """As `sendable`, of a judge's requests of one text each, by the name of their row."""
    texts = {name: request.messages[0]["content"] for name, request in requests.items()}
    rows = {name: privacy.scan(text, "question, key or response") for name, text in texts.items()}
    _report(rows, receiver, mode, table)
    if mode == "refuse":
        return {name: request for name, request in requests.items() if not rows[name]}
    if mode == "report":
        return dict(requests)
    return {
        name: replace(request, messages=[{"role": "user", "content": privacy.redact(texts[name])}])
        for name, request in requests.items()
    }


def _report(rows: Mapping[str, Sequence[privacy.Found]], receiver: str, mode: str, table: Path) -> None:
    if not (line := privacy.line(rows, receiver, mode)):
        return
    print(line)
    print(privacy.BLIND)
    cells = ({"row": name, "kind": one.kind, "place": one.place} for name, found in rows.items() for one in found)
    table.parent.mkdir(parents=True, exist_ok=True)
    border.write_csv(table, ("row", "kind", "place"), cells)


def _texts(item: Case) -> list[tuple[str, Any]]:
    raw = ((key, item.columns[key]) for key in RAW if item.columns.get(key))
    turns = [("earlier turns", text) for _, text in item.turns]
    return [("question", item.question), ("options", item.options), *turns, *raw]


def _headers(images: Iterable[ImageRef]) -> list[privacy.Found]:
    found: list[privacy.Found] = []
    for number, image in enumerate(images, 1):
        with suppress(DataError):  # what cannot be read is refused, by name, when it is asked for
            found += privacy.scan_header(image.open(), f"image {number}")
    return found


def _redacted(item: Case) -> Case:
    def hidden(value: Any) -> Any:
        return privacy.redact(value) if isinstance(value, str) else tuple(map(privacy.redact, value))

    columns = dict(item.columns) | {key: hidden(item.columns[key]) for key in RAW if item.columns.get(key)}
    turns = tuple((role, hidden(text)) for role, text in item.turns)
    return replace(item, question=hidden(item.question), options=hidden(item.options), turns=turns, columns=columns)
