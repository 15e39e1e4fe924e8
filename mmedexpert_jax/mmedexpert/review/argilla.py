"""Argilla 2: a folder that `rg.Dataset.from_disk` reads, and responses from its `records.to_json` or `to_disk`.

Settings and records have the form that argilla 2.8.0 writes itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedexpert_jax.data.case import PARADIGMS, SPECIALTIES
from mmedexpert_jax.data.paradigms import PARADIGMS as RULES
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.record import Trace
from mmedexpert_jax.mmedexpert.review.import_export import Opinion, case_text, given, image_uris, read_list, user_id
from mmedexpert_jax.mmedexpert.review.rubric import REASONS, RUBRIC, VERDICTS
from mmedexpert_jax.runtime import files

FOLDER = "argilla"


def settings(images: int, raters: int = 1) -> dict[str, Any]:
    """The settings of a data set with up to `images` images a record and `raters` responses asked for each."""
    fields = [
        _field("case", "Case", "text"),
        _field("designated", "Paradigm", "text"),
        _field("trace", "Trace", "text"),
    ]
    fields += [_field(f"image_{i}", f"Image {i}", "image", required=False) for i in range(1, images + 1)]
    verdicts = [{"value": kind, "text": kind} for kind in VERDICTS]
    reasons = [{"value": code, "text": text} for code, text in REASONS.items()]
    questions = [
        _question("verdict", "Verdict", {"type": "label_selection", "options": verdicts, "visible_options": 3}, True),
        _question("text", "Trace, to be edited where the verdict is edit", {"type": "text", "use_markdown": False}),
        _question(
            "reasons",
            "Reasons",
            {"type": "multi_label_selection", "options": reasons, "visible_options": None, "options_order": "natural"},
        ),
        _question("note", "Note", {"type": "text", "use_markdown": False}),
    ]
    return {
        "guidelines": _guidelines(),
        "questions": questions,
        "fields": fields,
        "vectors": [],
        "metadata": [_terms("paradigm", PARADIGMS), _terms("specialty", SPECIALTIES)],
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": raters},
        "mapping": None,
    }


def _field(name: str, title: str, kind: str, required: bool = True) -> dict[str, Any]:
    own = {"type": kind} | ({"use_markdown": False} if kind == "text" else {})
    return {"name": name, "title": title, "required": required, "settings": own, "type": kind}


def _question(name: str, title: str, own: dict[str, Any], required: bool = False) -> dict[str, Any]:
    return {"name": name, "title": title, "required": required, "settings": own, "type": own["type"]}


def _terms(name: str, values: Sequence[str]) -> dict[str, Any]:
    own = {"type": "terms", "values": list(values), "visible_for_annotators": True}
    return {"name": name, "title": name, "visible_for_annotators": True, "settings": own}


def _guidelines() -> str:
    lines = [
        "Accept a trace that follows its paradigm and holds no error, edit it where little is amiss, else reject it."
    ]
    for name, criteria in RUBRIC.items():
        lines += ["", f"**{RULES[name].title}**", *(f"- {criterion.text}" for criterion in criteria)]
    return "\n".join(lines)


def write(store: Store, traces: Sequence[Trace], folder: Path, verdicts: bool = False, raters: int = 1) -> list[Path]:
    """Writes the folder argilla/ for `rg.Dataset.from_disk`.

    Args:
        verdicts: add what has been said so far as responses; their user ids are made from the names here.
        raters: responses asked for each record.
    """
    said = given(store) if verdicts else {}
    images = max((len(trace.case.images) for trace in traces), default=0)
    records = [_record(trace, said.get(trace.id, {})) for trace in traces]
    root = folder / FOLDER
    (root / ".argilla").mkdir(parents=True, exist_ok=True)
    contents = {
        root / "records.json": records,
        root / ".argilla" / "settings.json": settings(images, raters),
        root / ".argilla" / "dataset.json": {"name": "trace-review"},
    }
    for path, content in contents.items():
        files.write_text(path, json.dumps(content, ensure_ascii=False))
    return list(contents)


def _record(trace: Trace, said: Mapping[str, Opinion]) -> dict[str, Any]:
    paradigm = RULES[trace.paradigm]
    fields = {"case": case_text(trace), "designated": f"{paradigm.title}: {paradigm.definition}", "trace": trace.text}
    fields |= {f"image_{i}": uri for i, uri in enumerate(image_uris(trace), 1)}
    responses: dict[str, list[dict[str, Any]]] = {}
    for name, opinion in said.items():
        values = {"verdict": opinion.kind, "text": opinion.text or trace.text}
        values |= {"reasons": list(opinion.reasons)} if opinion.reasons else {}  # type: ignore[dict-item]
        values |= {"note": opinion.note} if opinion.note else {}
        for question, value in values.items():
            responses.setdefault(question, []).append({"value": value, "user_id": user_id(name)})
    return {
        "id": trace.id,
        "fields": fields,
        "metadata": {"paradigm": trace.paradigm} | ({"specialty": trace.specialty} if trace.specialty else {}),
        "suggestions": {"text": {"value": trace.text, "score": None, "agent": None}},
        "responses": responses,
        "vectors": {},
    }


def read(path: Path, names: Mapping[str, str]) -> Iterator[Opinion]:
    """Opinions in the records that Argilla wrote.

    Args:
        path: records.json, or the folder that holds it.
        names: user id there -> name here.

    Raises:
        DataError: no such file; it names the record.
    """
    path = path / "records.json" if path.is_dir() else path
    for number, record in enumerate(read_list(path), 1):
        responses = record.get("responses") if isinstance(record, dict) else None
        if not isinstance(responses, dict) or not isinstance(record.get("id"), str | int):
            raise DataError(f"{path}, record {number}: not a record of Argilla 2, which has id and responses")
        for user, values in _by_user(responses).items():
            name = names.get(user, f"argilla:{user}")
            reasons = values.get("reasons") or ()
            reasons = tuple(reasons) if isinstance(reasons, list) else ()
            verdict = values.get("verdict")
            verdict = verdict if isinstance(verdict, str) else ""
            yield Opinion(str(record["id"]), name, verdict, values.get("text"), reasons, values.get("note") or "")


def _by_user(responses: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Values by user and question of the responses that were submitted: drafts and discarded ones are no verdicts."""
    found: dict[str, dict[str, Any]] = {}
    for question, given_ in responses.items():
        for response in given_ if isinstance(given_, list) else ():
            if isinstance(response, dict) and response.get("status", "submitted") == "submitted":
                found.setdefault(str(response.get("user_id")), {})[question] = response.get("value")
    return found
