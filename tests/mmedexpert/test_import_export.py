"""Label Studio, Argilla and the trail: what is written, what is read back, and what their own exports look like."""

import json
from dataclasses import asdict
from xml.etree import ElementTree

import pytest
from PIL import Image

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert import review
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.review import argilla, import_export, label_studio
from mmedexpert_jax.mmedexpert.review.adjudication import ReviewSettings
from mmedexpert_jax.mmedexpert.review.events import Event, append, new_id, since
from mmedexpert_jax.mmedexpert.review.review_queue import Person, ReviewQueue
from mmedexpert_jax.mmedexpert.review.review_traces import from_case
from mmedexpert_jax.mmedexpert.review.rubric import REASONS, VERDICTS

TRACE = "(1) Fever means inflammation. (2) Crystals are absent, so it is sepsis."
EDITED = "(1) Fever means inflammation. (2) Crystals are absent, so sepsis is left."
TRACES = [
    from_case(
        Case(f"c{i}", "What is it?", ("gout", "sepsis"), "B", "AM", "", images, "analytical", TRACE),
    )
    for i, images in enumerate([(), (), (), (Image.new("L", (4, 4)),), ()])
]
IDS = [trace.id for trace in TRACES]


@pytest.fixture
def stores(tmp_path):
    stores = [Store(tmp_path / f"{name}.sqlite") for name in ("here", "there")]
    yield stores
    for store in stores:
        store.close()


def judge(store: Store) -> None:
    """Two reviewers' verdicts of every kind."""
    desk = ReviewQueue(store, TRACES, ReviewSettings(("anna", "ben"), (), 1.0))
    desk.announce()

    def say(name, id, kind, value):
        answer = desk.submit(Person(name, "reviewer"), [Event(new_id(), "", "", id, kind, value)])[0]
        assert answer.result == "stored", answer

    for name in ("anna", "ben"):
        say(name, IDS[0], "verdict", {"kind": "accept"})
        say(name, IDS[1], "reason", {"code": "medical_error", "on": True})
        say(name, IDS[1], "note", {"text": "wrong, & <bad>"})
        say(name, IDS[1], "verdict", {"kind": "reject"})
        say(name, IDS[3], "edit", {"text": EDITED})
        say(name, IDS[3], "verdict", {"kind": "accept"})


def without_names(verdicts):
    return {id: (v.kind, v.text, v.reasons, len(v.reviewers)) for id, v in verdicts.items()}


@pytest.mark.parametrize("tool", [label_studio, argilla])
def test_verdicts_go_there_and_come_back(stores, tmp_path, tool):
    here, there = stores
    judge(here)
    paths = tool.write(here, TRACES, tmp_path, verdicts=True)
    names = {import_export.user_id(name): name for name in ("anna", "ben")}
    exports = [path for path in paths if path.suffix == ".json" and path.parent.name != ".argilla"]
    for path in exports:
        import_export.take_in(there, TRACES, tool.read(path, names), "test")
    assert len(review.verdicts(here)) == 3
    assert review.verdicts(there) == review.verdicts(here)
    before = len(since(there))
    for path in exports:
        again = import_export.take_in(there, TRACES, tool.read(path, names), "test")
        assert set(again) <= {"known"}
    assert len(since(there)) == before


@pytest.mark.parametrize("tool", [label_studio, argilla])
def test_annotators_there_are_blind_unless_asked(stores, tmp_path, tool):
    judge(stores[0])
    text = "".join(path.read_text() for path in tool.write(stores[0], TRACES, tmp_path))
    assert "medical_error" in text and "wrong, &" not in text and "sepsis is left" not in text and "anna" not in text


def test_label_studio_tasks_fit_their_configuration(stores, tmp_path):
    paths = {path.name: path for path in label_studio.write(stores[0], TRACES, tmp_path)}
    assert set(paths) == {f"label_studio-{m}.{s}" for m in ("text", "image") for s in ("json", "xml")}
    for modality, count in (("text", 4), ("image", 1)):
        tasks = json.loads(paths[f"label_studio-{modality}.json"].read_text())
        root = ElementTree.fromstring(paths[f"label_studio-{modality}.xml"].read_text())
        assert len(tasks) == count
        used = {value[1:] for tag in root.iter() for value in tag.attrib.values() if value.startswith("$")}
        assert all(used <= set(task["data"]) for task in tasks)
        objects = {tag.get("name") for tag in root.iter() if tag.get("value", tag.get("valueList", "")).startswith("$")}
        assert all(tag.get("toName") in objects for tag in root.iter() if tag.get("toName"))
        choices = {tag.get("name"): [c.get("value") for c in tag] for tag in root.iter("Choices")}
        assert choices == {"verdict": list(VERDICTS), "reasons": list(REASONS)}
    assert tasks[0]["data"]["images"][0].startswith("data:image/png;base64,")


def label_studio_export(trace_id: str, verdict: str, text: str, email="anna@clinic.example", **more) -> dict:
    """A task as Label Studio's JSON export has it (its guide, "Label Studio JSON format of annotated tasks")."""

    def part(name, kind, values):
        value = {"choices": values} if kind == "choices" else {"text": values}
        return {
            "id": "x1", "from_name": name, "to_name": "trace", "type": kind, "origin": "manual", "value": value
        }  # fmt: skip

    result = [part("verdict", "choices", [verdict]), part("text", "textarea", [text])]
    result.append(part("reasons", "choices", ["unsafe_advice"]))
    annotation = {"id": 7, "completed_by": {"id": 1, "email": email}, "result": result, "was_cancelled": False}
    annotation |= {"lead_time": 4.2, "ground_truth": False, "unique_id": "u", "result_count": 1} | more
    return {"id": 1, "data": {"trace_id": trace_id}, "annotations": [annotation], "predictions": []}


def test_an_export_of_label_studio(stores, tmp_path):
    path = tmp_path / "export.json"
    tasks = [
        label_studio_export(IDS[0], "accept", TRACE),
        label_studio_export(IDS[1], "accept", EDITED),  # a changed text makes it an edit
        label_studio_export(IDS[2], "edit", "Sepsis."),  # does not pass
        label_studio_export(IDS[3], "edit", TRACE),  # nothing edited
        label_studio_export(IDS[4], "reject", TRACE, was_cancelled=True),
        label_studio_export("gone", "reject", TRACE),
        label_studio_export(IDS[4], "reject", TRACE, completed_by=3),
    ]
    path.write_text(json.dumps(tasks))
    opinions = list(label_studio.read(path, {"anna@clinic.example": "anna"}))
    counts = import_export.take_in(stores[0], TRACES, opinions, "label_studio")
    assert counts == {
        "stored": 3,
        "an edit that does not pass the checks": 1,
        "an edit that changes nothing": 1,
        "no such trace": 1,
    }
    found = review.verdicts(stores[0])
    assert found[IDS[0]].reviewers == ("anna",) and found[IDS[0]].kind == "accept"
    assert (found[IDS[1]].kind, found[IDS[1]].text) == ("edit", EDITED)
    assert found[IDS[4]].reviewers == ("label-studio:3",) and found[IDS[4]].reasons == ("unsafe_advice",)
    assert [e.seconds for e in since(stores[0])] == [4.2] * 3


@pytest.mark.parametrize("change", [("\n", "\r\n"), (". ", ".  "), (" ", "\u00a0")])
def test_spaces_of_a_tools_own_are_no_edit(stores, tmp_path, change):
    path = tmp_path / "export.json"
    path.write_text(json.dumps([label_studio_export(IDS[0], "accept", f" {TRACE.replace(*change)}\n")]))
    import_export.take_in(stores[0], TRACES, label_studio.read(path, {}), "label_studio")
    assert review.verdicts(stores[0])[IDS[0]].kind == "accept"


def test_an_annotator_is_known_by_number_and_address_alike(tmp_path):
    path = tmp_path / "export.json"
    path.write_text(json.dumps([label_studio_export(IDS[0], "accept", TRACE)]))
    for names in ({"1": "anna"}, {"anna@clinic.example": "anna"}, {"Anna@Clinic.Example": "anna"}):
        assert [opinion.reviewer for opinion in label_studio.read(path, names)] == ["anna"]


def test_records_of_argilla(stores, tmp_path):
    """Records as argilla 2.8.0 writes them (`Record.to_dict`)."""
    user = "00000000-0000-0000-0000-000000000001"
    record = {
        "id": IDS[0],
        "fields": {"case": "x"},
        "metadata": {"paradigm": "analytical"},
        "suggestions": {"text": {"value": TRACE, "score": None, "agent": None}},
        "responses": {
            "verdict": [{"value": "reject", "user_id": user}, {"value": "accept", "user_id": "u2"}],
            "reasons": [{"value": ["medical_error", "other"], "user_id": user}],
            "note": [{"value": "dose", "user_id": user}],
        },
        "vectors": {},
        "status": "completed",
        "_server_id": None,
    }
    (tmp_path / "records.json").write_text(json.dumps([record, record | {"id": IDS[1], "responses": {}}]))
    opinions = list(argilla.read(tmp_path, {user: "anna"}))
    assert [(o.reviewer, o.kind, o.reasons, o.note) for o in opinions] == [
        ("anna", "reject", ("medical_error", "other"), "dose"),
        ("argilla:u2", "accept", (), ""),
    ]
    assert import_export.take_in(stores[0], TRACES, opinions, "argilla") == {"stored": 2}


def test_argilla_settings_have_the_questions_that_are_read(stores, tmp_path):
    argilla.write(stores[0], TRACES, tmp_path, raters=2)
    root = tmp_path / "argilla"
    settings = json.loads((root / ".argilla" / "settings.json").read_text())
    records = json.loads((root / "records.json").read_text())
    fields = {field["name"]: field for field in settings["fields"]}
    assert {q["name"] for q in settings["questions"]} == {"verdict", "text", "reasons", "note"}
    assert settings["distribution"] == {"strategy": "overlap", "min_submitted": 2}
    assert all(set(record["fields"]) <= set(fields) for record in records)
    assert [record["id"] for record in records] == IDS
    required = {name for name, field in fields.items() if field["required"]}
    assert required == {"case", "designated", "trace"} and "image_1" in records[3]["fields"]
    names = [one["name"] for part in ("fields", "questions", "metadata") for one in settings[part]]
    assert len(set(names)) == len(names), "Argilla wants them to differ"


def test_the_trail_of_another_place_is_taken_in_once(stores, tmp_path):
    here, there = stores
    judge(here)
    verdicts, events = import_export.write_trail(here, TRACES, tmp_path)
    rows = [json.loads(line) for line in verdicts.read_text().splitlines()]
    assert [row["status"] for row in rows] == ["settled", "settled", "open", "settled", "open"]
    assert rows[3]["text"] == EDITED and rows[3]["reviewers"] == ["anna", "ben"] and rows[2]["kind"] is None
    counts = [import_export.read_trail(there, events) for _ in range(2)]
    assert [count["known"] for count in counts] == [0, counts[0]["stored"]]
    assert review.verdicts(there) == review.verdicts(here)


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b", "\x0c", "\r"])
def test_a_note_may_hold_any_character(stores, tmp_path, mark):
    here, there = stores
    import_export.take_in(
        here, TRACES, [import_export.Opinion(IDS[0], "anna", "accept", None, note=f"dose{mark}unclear")], "test"
    )
    _, events = import_export.write_trail(here, TRACES, tmp_path)
    assert import_export.read_trail(there, events) == {"stored": 1, "known": 0}
    assert since(there)[0].value["note"] == f"dose{mark}unclear"


ACCEPT = {"kind": "accept", "text": None, "reasons": []}


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": {}},
        {"value": []},
        {"value": ACCEPT | {"kind": "perhaps"}},
        {"value": ACCEPT | {"kind": ["accept"]}},
        {"value": ACCEPT | {"reasons": ["no such code"]}},
        {"value": ACCEPT | {"reasons": None}},
        {"value": ACCEPT | {"kind": "edit"}},
        {"value": ACCEPT | {"note": "cut \ud83d"}},
        {"value": ACCEPT | {"more": float("nan")}},
        {"kind": "undo", "value": {}},
        {"kind": "rubric", "value": {"criterion": "facts"}},
        {"kind": "reason", "value": {"code": "other", "on": "yes"}},
        {"kind": "note", "value": {"text": 3}},
        {"kind": "perhaps", "value": {}},
        {"seconds": "soon"},
        {"role": None},
        {"role": "Reviewer"},
    ],
)
def test_a_broken_event_is_refused_before_anything_is_stored(stores, tmp_path, wrong):
    """The trail is append-only: what it once holds must be readable for good."""
    whole = {"client_id": "1", "reviewer": "anna", "role": "reviewer", "trace_id": IDS[0], "kind": "verdict"}
    whole |= {"value": ACCEPT}
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (whole, whole | {"client_id": "2"} | wrong)))
    with pytest.raises(DataError, match=r"events\.jsonl,? line 2: (no event|holds half|.*NaN)"):
        import_export.read_trail(stores[0], path)
    assert since(stores[0]) == [] and review.verdicts(stores[0]) == {}
    path.write_text(json.dumps(whole) + "\n")
    import_export.read_trail(stores[0], path)
    assert review.verdicts(stores[0])[IDS[0]].kind == "accept"


@pytest.mark.parametrize("content", ["{}", "[", '[{"data": {}}]', "[3]"])
def test_files_of_something_else_are_one_line(stores, tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"x\.json"):
        list(label_studio.read(path, {}))
    if content != '[{"data": {}}]':
        with pytest.raises(DataError, match=r"x\.json"):
            list(argilla.read(path, {}))
    path.write_text('{"client_id": 3}')
    with pytest.raises(DataError, match="line 1"):
        import_export.read_trail(stores[0], path)


def test_what_another_tool_left_unfinished_is_no_verdict_and_stops_no_import(stores, tmp_path):
    trace = TRACES[0]
    data = {"trace_id": trace.id}
    both = {"from_name": "verdict", "value": {"choices": ["accept", "reject"]}}
    odd = [{"result": None}, {"result": [both]}]
    odd += [{"result": [None, {"from_name": "verdict", "value": {"choices": [{}]}}]}, None]
    odd += [{"result": [{"from_name": "verdict", "value": {"choices": ["accept"]}}], "lead_time": "soon"}]
    good = {"result": [{"from_name": "verdict", "value": {"choices": ["accept"]}}], "completed_by": 1}
    path = tmp_path / "ls.json"
    path.write_text(json.dumps([{"data": data, "annotations": [*odd, good]}, {"data": data, "annotations": None}]))
    found = list(label_studio.read(path, {}))
    assert [opinion.kind for opinion in found] == ["", "", "", "accept", "accept"]
    counts = import_export.take_in(stores[0], [trace], found, "label_studio")
    assert counts == {"no verdict": 3, "not readable": 1, "stored": 1}
    drafts = [{"value": "accept", "user_id": "u", "status": status} for status in ("draft", "discarded")]
    record = {"id": trace.id, "responses": {"verdict": [*drafts, None], "text": None}}
    path.write_text(json.dumps([record]))
    assert list(argilla.read(path, {})) == []


def test_an_adjudicators_word_stands_against_an_import_and_the_last_of_two_counts(stores):
    here = stores[0]
    desk = ReviewQueue(here, TRACES, ReviewSettings(("anna",), ("chief", "deputy"), 1.0))
    desk.announce()
    for name, kind in (("deputy", "opened"), ("chief", "verdict"), ("deputy", "verdict")):
        if name == "deputy" and kind == "verdict":
            reason = Event(new_id(), "", "", IDS[0], "reason", {"code": "medical_error", "on": True})
            desk.submit(Person(name, "adjudicator"), [reason])
        value = {"kind": "accept" if name == "chief" else "reject"} if kind == "verdict" else {}
        (said,) = desk.submit(Person(name, "adjudicator"), [Event(new_id(), "", "", IDS[0], kind, value)])
        assert said.result == "stored", said
    assert review.verdicts(here)[IDS[0]].kind == "reject"
    counts = import_export.take_in(here, TRACES, [import_export.Opinion(IDS[0], "deputy", "accept", None)], "test")
    assert counts == {"of an adjudicator, who decides on the page": 1}
    assert review.verdicts(here)[IDS[0]].kind == "reject"


def kinds(store: Store) -> list[str]:
    return [event.value["kind"] for event in since(store) if event.kind == "verdict"]


def test_a_verdict_that_is_changed_in_a_tool_and_changed_back_counts_as_it_stands_there(stores):
    here = stores[0]

    def imported(*said, tool="label_studio"):
        opinions = [import_export.Opinion(IDS[0], "anna", kind, None) for kind in said]
        return import_export.take_in(here, TRACES, opinions, tool)

    for kind in ("accept", "reject", "accept", "reject", "accept"):
        assert imported(kind) == {"stored": 1} and imported(kind) == {"known": 1}
        assert review.verdicts(here)[IDS[0]].kind == kind
    assert imported("accept", "reject") == {"known": 1, "stored": 1}  # the last of a file is what stands there
    assert imported("accept", "reject") == {"known": 2} and review.verdicts(here)[IDS[0]].kind == "reject"
    desk = ReviewQueue(here, TRACES, ReviewSettings(("anna",)))
    desk.announce()
    (said,) = desk.submit(Person("anna", "reviewer"), [Event(new_id(), "", "", IDS[0], "verdict", {"kind": "accept"})])
    assert said.result == "stored"
    assert imported("reject") == {"known": 1} and review.verdicts(here)[IDS[0]].kind == "accept"  # said here since


def annotation(kind: str, number: int, **more) -> dict:
    result = [{"from_name": "verdict", "to_name": "trace", "type": "choices", "value": {"choices": [kind]}}]
    return {"id": number, "result": result} | more


@pytest.mark.parametrize("newest_first", [False, True])
def test_of_a_persons_annotations_of_a_task_the_last_changed_counts(stores, tmp_path, newest_first):
    by = {"completed_by": {"id": 1, "email": "anna@clinic.example"}}
    said = [
        annotation("accept", 9, created_at="2026-11-01T08:00:00.000000Z", updated_at="2026-11-01T08:00:00.1Z", **by),
        annotation("reject", 4, created_at="2026-10-01T08:00:00.000000Z", updated_at="2026-11-20T08:00:00.1Z", **by),
    ]
    path = tmp_path / "ls.json"
    path.write_text(json.dumps([{"data": {"trace_id": IDS[0]}, "annotations": said[:: -1 if newest_first else 1]}]))
    import_export.take_in(stores[0], TRACES, label_studio.read(path, {}), "label_studio")
    assert review.verdicts(stores[0])[IDS[0]].kind == "reject"


def test_annotations_without_an_author_are_of_several_people(stores, tmp_path):
    said = [annotation("accept", 8), annotation("reject", 7), annotation("accept", 9, completed_by=3)]
    path = tmp_path / "ls.json"
    path.write_text(json.dumps([{"data": {"trace_id": IDS[0]}, "annotations": said}]))
    found = {opinion.reviewer: opinion.kind for opinion in label_studio.read(path, {})}
    assert found == {"label-studio:None": "reject", "label-studio:None 2": "accept", "label-studio:3": "accept"}
    import_export.take_in(stores[0], TRACES, label_studio.read(path, {}), "label_studio")
    assert review.waiting(stores[0]) == {IDS[0]: "conflict"}


def test_a_trail_that_comes_late_does_not_stand_before_what_was_said_after_it(stores, tmp_path):
    here = stores[0]
    desk = ReviewQueue(here, TRACES, ReviewSettings(("anna", "ben")))
    desk.announce()

    def at(day, kind, name="anna"):
        value = ACCEPT | {"kind": kind}
        return Event(new_id(), name, "reviewer", IDS[0], "verdict", value, time=f"2026-11-0{day}T10:00:00.000+00:00")

    append(here, [at(3, "reject")])
    assert desk.reviews(IDS[0])["anna"].verdict.kind == "reject"
    path = tmp_path / "events.jsonl"
    lines = [asdict(at(2, "accept")), asdict(at(1, "accept", "ben")) | {"time": "2026-11-01T12:00:00+02:00"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert import_export.read_trail(here, path) == {"stored": 2, "known": 0}
    assert review.waiting(here) == {IDS[0]: "conflict"}  # anna's reject stands
    assert {name: one.verdict.kind for name, one in desk.reviews(IDS[0]).items()} == {"anna": "reject", "ben": "accept"}
    assert [event.time[:13] for event in since(here) if event.trace_id] == [f"2026-11-0{day}T10" for day in (1, 2, 3)]
    path.write_text(json.dumps(asdict(at(4, "accept"))))
    import_export.read_trail(here, path)  # given later in another place
    assert review.verdicts(here)[IDS[0]].kind == "accept"
    assert desk.progress()["settled"] == 1
    path.write_text(json.dumps(asdict(at(5, "accept")) | {"time": "yesterday"}))
    with pytest.raises(DataError, match="line 1"):
        import_export.read_trail(here, path)


def test_what_is_done_here_comes_after_a_trail_from_a_clock_that_is_ahead(stores, tmp_path):
    here = stores[0]
    ahead = Event("1", "anna", "reviewer", IDS[0], "verdict", ACCEPT, time="2999-01-01T00:00:00.000+00:00")
    append(here, [ahead])
    desk = ReviewQueue(here, TRACES, ReviewSettings(("anna",)))
    desk.announce()
    (said,) = desk.submit(Person("anna", "reviewer"), [Event(new_id(), "", "", IDS[0], "undo", {"verdict": "1"})])
    assert said.result == "stored" and review.verdicts(here) == {} and desk.status(IDS[0]) == "open"
