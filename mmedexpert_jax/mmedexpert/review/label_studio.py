"""Label Studio: tasks with a labeling configuration for it, and annotations from its JSON export.

Format: https://labelstud.io/guide/task_format ("Label Studio JSON"). Text-only and image cases become two projects,
since an image tag wants an image in every task.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.record import Trace
from mmedexpert_jax.mmedexpert.review.import_export import Opinion, case_text, given, image_uris, read_list
from mmedexpert_jax.mmedexpert.review.rubric import REASONS, VERDICTS
from mmedexpert_jax.runtime import files

HOTKEYS = {"accept": "a", "edit": "e", "reject": "r"}


def config(images: bool) -> str:
    """The labeling configuration of a project."""
    verdicts = "".join(f'\n    <Choice value="{kind}" hotkey="{HOTKEYS[kind]}"/>' for kind in VERDICTS)
    reasons = "".join(f"\n    <Choice value={quoteattr(code)} hint={quoteattr(t)}/>" for code, t in REASONS.items())
    viewer = '\n  <Image name="image" valueList="$images" zoom="true" zoomControl="true" brightnessControl="true"/>'
    return f"""<View>
  <Header value="Case"/>
  <Text name="case" value="$case"/>{viewer if images else ""}
  <Header value="$paradigm"/>
  <Text name="trace" value="$trace"/>
  <Choices name="verdict" toName="trace" choice="single" required="true" showInline="true">{verdicts}
  </Choices>
  <Choices name="reasons" toName="trace" choice="multiple" showInline="true">{reasons}
  </Choices>
  <Header value="Trace, to be edited where the verdict is edit"/>
  <TextArea name="text" toName="trace" value="$trace" rows="8" maxSubmissions="1" editable="true"/>
  <TextArea name="note" toName="trace" rows="2" maxSubmissions="1" placeholder="Note"/>
</View>
"""


def write(store: Store, traces: Sequence[Trace], folder: Path, verdicts: bool = False) -> list[Path]:
    """Writes label_studio-{text,image}.json, tasks to import, each with its configuration as .xml.

    Args:
        verdicts: add what has been said so far as annotations, which every annotator there can see.
    """
    said = given(store) if verdicts else {}
    paths = []
    for modality in ("text", "image"):
        tasks = [_task(trace, said.get(trace.id, {})) for trace in traces if trace.case.modality == modality]
        if tasks:
            path = folder / f"label_studio-{modality}.json"
            files.write_text(path, json.dumps(tasks, ensure_ascii=False, indent=1))
            files.write_text(path.with_suffix(".xml"), config(modality == "image"))
            paths += [path, path.with_suffix(".xml")]
    return paths


def _task(trace: Trace, said: Mapping[str, Opinion]) -> dict[str, Any]:
    paradigm = PARADIGMS[trace.paradigm]
    data = {
        "trace_id": trace.id,
        "case": case_text(trace),
        "paradigm": f"{paradigm.title}: {paradigm.definition}",
        "trace": trace.text,
        "specialty": trace.specialty,
    }
    if trace.case.images:
        data["images"] = image_uris(trace)  # type: ignore[assignment]
    task: dict[str, Any] = {"data": data}
    if said:
        task["annotations"] = [_annotation(trace, opinion) for opinion in said.values()]
    return task


def _annotation(trace: Trace, opinion: Opinion) -> dict[str, Any]:
    def part(name: str, kind: str, values: Sequence[str]) -> dict[str, Any]:
        field = "text" if kind == "textarea" else kind
        # the same at each export, so that the files differ where an opinion does, and nowhere else
        id = hashlib.sha256(f"{trace.id}:{opinion.reviewer}:{name}".encode()).hexdigest()[:10]
        return {"id": id, "from_name": name, "to_name": "trace", "type": kind, "value": {field: list(values)}}

    result = [part("verdict", "choices", [opinion.kind]), part("text", "textarea", [opinion.text or trace.text])]
    if opinion.reasons:
        result.append(part("reasons", "choices", opinion.reasons))
    if opinion.note:
        result.append(part("note", "textarea", [opinion.note]))
    return {"reviewer": opinion.reviewer, "lead_time": opinion.seconds, "was_cancelled": False, "result": result}


def read(path: Path, names: Mapping[str, str]) -> Iterator[Opinion]:
    """Opinions in a JSON export, those of a task by the time of their last change; cancelled (skipped) annotations are
    left out, and of several without an author each is another's.

    Args:
        path: the export.
        names: e-mail address or number of an annotator there -> name here.

    Raises:
        DataError: no such export; it names the task.
    """
    for number, task in enumerate(read_list(path), 1):
        where = f"{path}, task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        trace_id = data.get("trace_id") if isinstance(data, dict) else None
        if not isinstance(trace_id, str):
            raise DataError(f"{where}: no data.trace_id; export the project that was made from our tasks, as JSON")
        annotations = task.get("annotations")
        found = annotations if isinstance(annotations, list) else []
        found = [one for one in found if isinstance(one, dict) and not one.get("was_cancelled")]
        found.sort(key=_number)
        nameless = [one for one in found if one.get("completed_by") is None and not one.get("reviewer")]
        others = {id(one): f" {place}" for place, one in enumerate(nameless[1:], 2)}
        for annotation in sorted(found, key=_changed):
            yield _opinion(trace_id, annotation, names, others.get(id(annotation), ""))


def _number(annotation: Mapping[str, Any]) -> int:
    """An annotation's number, which counts up as they are made; 0 where it has none."""
    number = annotation.get("id")
    return number if isinstance(number, int) else 0


def _changed(annotation: Mapping[str, Any]) -> str:
    """The time of an annotation's last change, of ISO 8601 as the exports have it; "" where it has none."""
    return str(annotation.get("updated_at") or annotation.get("created_at") or "")


def _opinion(trace_id: str, annotation: Mapping[str, Any], names: Mapping[str, str], other: str) -> Opinion:
    """The verdict in an annotation; its kind is "" where there is none in it, as in one that was only opened. `other`:
    behind the name of one without an author, who are several."""
    by_name: dict[str, Any] = {}
    result = annotation.get("result")
    for part in result if isinstance(result, list) else ():
        value = part.get("value") if isinstance(part, dict) else None
        if isinstance(value, dict):
            by_name[str(part.get("from_name"))] = value.get("choices") or value.get("text") or []
    author = annotation.get("completed_by")
    called = [author.get("email"), author.get("id")] if isinstance(author, dict) else [author]
    author = next((name for name in called if name), None)
    folded = {theirs.casefold(): name for theirs, name in names.items()}  # addresses are written in any case
    ours = next((folded[str(name).casefold()] for name in called if str(name).casefold() in folded), None)
    reviewer = annotation.get("reviewer") or f"label-studio:{author}{other}"
    verdict = _list(by_name.get("verdict"))
    return Opinion(
        trace_id,
        ours or str(reviewer),
        verdict[0] if len(set(verdict)) == 1 else "",  # of two that differ neither is said
        _text(by_name.get("text")),
        tuple(_list(by_name.get("reasons"))),
        _text(by_name.get("note")) or "",
        annotation.get("lead_time"),
    )


def _list(value: Any) -> list[str]:
    """The texts of a list; those of a text alone, itself."""
    found = [value] if isinstance(value, str) else value
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _text(value: Any) -> str | None:
    return None if value is None else "\n".join(_list(value))
