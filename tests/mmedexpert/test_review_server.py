"""The review's HTTP server: who may come in, what other sites may not do, and that nothing is lost."""

import contextlib
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.data.case import PARADIGMS, Case
from mmedexpert_jax.errors import ConfigError, ResourceError
from mmedexpert_jax.mmedexpert import review
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.review import review_server
from mmedexpert_jax.mmedexpert.review.access import Access, secret
from mmedexpert_jax.mmedexpert.review.adjudication import ReviewSettings
from mmedexpert_jax.mmedexpert.review.events import since
from mmedexpert_jax.mmedexpert.review.review_queue import ReviewQueue
from mmedexpert_jax.mmedexpert.review.review_server import MAX_BODY, PAGE, ReviewServer
from mmedexpert_jax.mmedexpert.review.review_traces import from_case
from mmedexpert_jax.processing.images import ImageRef, decode
from mmedexpert_jax.processing.windows import View
from mmedexpert_jax.remote import guard

TRACE = "(1) Fever means inflammation. (2) Crystals are absent, so it is sepsis."


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server in a thread, its store, and each person's token."""
    folder = tmp_path_factory.mktemp("site")
    picture = Image.new("RGB", (20, 10), "red")
    cases = [
        Case(f"c{i}", "What is it?", ("gout", "sepsis"), "B", "AM", "", (picture,) * (i % 2), "analytical", TRACE)
        for i in range(12)
    ]
    store = Store(folder / "review.sqlite")
    desk = ReviewQueue(store, [from_case(case) for case in cases], ReviewSettings(("anna", "ben"), ("chief",), 1.0))
    access = Access(secret(folder), ("anna", "ben"), ("chief",))
    server = ReviewServer("127.0.0.1", 0, desk, access)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server, store, {person.name: token for person, token in access.tokens.items()}
    server.stop()
    thread.join()
    store.close()


def ask(port: int, method: str, path: str, token: str = "", body=None, **headers):
    """Status, headers and content of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        content = reply.read()
        with contextlib.suppress(ValueError):
            content = json.loads(content)
        return reply.status, reply.headers, content
    finally:
        connection.close()


def event(trace: str, kind: str, value=None, **extra) -> dict:
    return {"id": str(uuid.uuid4()), "trace": trace, "kind": kind, "value": value or {}} | extra


def test_the_page_brings_its_own_rules(site):
    server, _, _ = site
    for path in ("/", "/app.js", "/style.css"):
        status, headers, content = ask(server.port, "GET", path)
        policy = headers["Content-Security-Policy"]
        assert status == 200 and content
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http:" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        assert "Set-Cookie" not in headers
    text = "".join(file.read_text() for file in PAGE.iterdir())
    assert not re.search(r"https?://", text), "the page loads nothing from elsewhere"
    assert not re.search(r"\son\w+=|<script>|style=|innerHTML|eval\(", text), "nothing that the policy forbids"


def test_nothing_is_told_without_a_token(site):
    server, _, tokens = site
    for path in ("/api/session", "/api/queue", "/api/item?trace=x", "/api/image?trace=x&index=0", "/api/progress"):
        for token in ("", "0" * 40, tokens["anna"][:-1], "å"):
            status, _, content = ask(server.port, "GET", path, token if token.isascii() else "x")
            assert status == 401 and "link" in content["error"], (path, token)
    assert ask(server.port, "POST", "/api/events", body={"events": []})[0] == 401
    status, _, session = ask(server.port, "GET", "/api/session", tokens["chief"])
    assert status == 200 and (session["name"], session["role"]) == ("chief", "adjudicator")


def test_a_full_disk_is_said_and_the_event_can_be_sent_again(site):
    server, store, tokens = site
    body = {"events": [event(next(iter(server.desk.traces)), "note", {"text": "long " * 2000})]}
    (pages,) = store.read("PRAGMA page_count")[0]
    store.read(f"PRAGMA max_page_count = {pages}")
    status, _, content = ask(server.port, "POST", "/api/events", tokens["anna"], body)
    assert status == 503 and "disk is full" in content["error"]
    store.read("PRAGMA max_page_count = 100000")
    assert ask(server.port, "POST", "/api/events", tokens["anna"], body)[0] == 200


def test_another_site_can_do_nothing(site):
    server, store, tokens = site
    trace = next(iter(server.desk.traces))
    body = {"events": [event(trace, "note", {"text": "forged"})]}

    def post(**headers):
        return ask(server.port, "POST", "/api/events", tokens["anna"], body, **headers)[0]

    assert post(Origin="http://evil.example") == 403
    assert post(Origin="null") == 403
    assert post(Sec_Fetch_Site="cross-site") == 403
    assert post(Content_Type="text/plain") == 415
    assert post(Content_Type="application/x-www-form-urlencoded") == 415
    assert post(Host="evil.example") == 421  # a name that was bent to loopback
    assert ask(server.port, "GET", "/", Host="evil.example:80")[0] == 421
    status, _, _ = ask(server.port, "OPTIONS", "/api/events", Origin="http://evil.example")
    assert status == 405
    assert not [e for e in since(store) if e.value.get("text") == "forged"]
    assert post(Origin=f"http://127.0.0.1:{server.port}", Sec_Fetch_Site="same-origin") == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        ({"events": {}}, 400),
        ({"events": [{"id": "x"}]}, 400),
        ({"events": [{"id": "x", "trace": "t", "kind": "note", "value": []}]}, 400),
        ({"events": [{"id": "x", "trace": "t", "kind": "note", "value": {}, "seconds": -1}]}, 400),
        (b'{"events": [{"id": "x", "trace": "t", "kind": "note", "value": {"text": NaN}}]}', 400),
        ({"events": [{}] * 501}, 400),
        (b" " * (MAX_BODY + 1), 413),
    ],
)
def test_what_cannot_be_read_is_refused(site, body, status):
    server, _, tokens = site
    try:
        assert ask(server.port, "POST", "/api/events", tokens["anna"], body)[0] == status
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413  # the server hangs up before the whole body is there


def raw(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back for bytes that no HTTP library would send."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Content-Length: ²", 400),
        ("Content-Length: -1", 400),
        ("Content-Length: " + "9" * 5000, 400),
        ("Content-Length: 5\r\nContent-Length: 6", 400),
        ("Transfer-Encoding: rot13", 400),
        ("Origin: http://[", 403),
        ("Origin: null\r\nContent-Length: 2", 403),
        ("X: " + "y" * 100_000, 400),
    ],
)
def test_hostile_heads_get_their_status(site, header, status):
    server, _, tokens = site
    head = f"POST /api/events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {tokens['anna']}\r\n"
    head += f"Content-Type: application/json\r\nConnection: close\r\n{header}\r\n\r\n"
    assert int(raw(server.port, head.encode("utf-8")).split(b" ")[1]) == status


@pytest.mark.parametrize("host", ["[", "evil.example", "127.0.0.1.evil.example", "²", "localhost@evil"])
def test_hosts_that_are_none_are_refused(site, host):
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    assert raw(site[0].port, request).split(b" ")[1] in (b"400", b"421")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"events":' * 50_000,
        b'{"events": [{"id": "x", "trace": "t", "kind": "note", "value": {}, "seconds": 1e999}]}',
        b'{"events": [{"id": "x", "trace": "t", "kind": "note", "value": {"text": "\\ud83d"}}]}',
        b'{"events": [], "events": []}',
        b"9" * 5000,
        b"\xff",
        b"",
    ],
)
def test_hostile_bodies_get_their_status(site, body):
    server, _, tokens = site
    assert ask(server.port, "POST", "/api/events", tokens["anna"], body)[0] == 400


@pytest.mark.parametrize("number", ["²", "9" * 5000, "1e3", "-1", "0x1", "", "٣"])
def test_hostile_numbers_get_their_status(site, number):
    server, _, tokens = site
    trace, quoted = next(iter(server.desk.traces)), urllib.parse.quote(number)
    assert ask(server.port, "GET", f"/api/image?trace={trace}&index={quoted}", tokens["anna"])[0] == 404
    assert ask(server.port, "GET", f"/api/queue?count={quoted}", tokens["anna"])[0] == 400


def test_slow_requests_are_hung_up_on_and_hold_nobody_back(site, monkeypatch):
    server, _, tokens = site
    monkeypatch.setattr(review_server, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.3)
    head = f"POST /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {tokens['anna']}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n"
    assert raw(server.port, head.encode(), b"{", pause=0.2).split(b" ")[1] == b"408"
    assert raw(server.port, b"GET / HT", pause=0.1) == b""
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
        assert ask(server.port, "GET", "/api/session", tokens["anna"])[0] == 200


def test_a_review_over_http(site):
    server, store, tokens = site
    anna = tokens["anna"]
    _, _, queue = ask(server.port, "GET", "/api/queue?count=3", anna)
    first, second = queue["items"][0], queue["items"][1]
    assert first["paradigm"]["title"] == "Analytical Reasoning" and len(first["rubric"]) == 5
    events = [
        event(first["id"], "opened"),
        event(first["id"], "rubric", {"criterion": "facts", "met": False}),
        event(first["id"], "reason", {"code": "medical_error", "on": True}),
        event(first["id"], "note", {"text": "no"}),
        event(first["id"], "verdict", {"kind": "reject"}, seconds=3.5),
        event(second["id"], "verdict", {"kind": "reject"}),
    ]
    _, _, answer = ask(server.port, "POST", "/api/events", anna, {"events": events})
    assert [r["result"] for r in answer["results"]] == ["stored"] * 5 + ["refused"]
    _, _, answer = ask(server.port, "POST", "/api/events", anna, {"events": events[:5]})
    assert [r["result"] for r in answer["results"]] == ["known"] * 5
    _, _, item = ask(server.port, "GET", f"/api/item?trace={first['id']}", anna)
    assert item["draft"]["verdict"] == {"kind": "reject", "id": events[4]["id"]}
    assert item["draft"]["note"] == "no" and item["draft"]["rubric"] == {"facts": False}
    stored = next(e for e in since(store) if e.client_id == events[4]["id"])
    assert (stored.reviewer, stored.role, stored.seconds, stored.value["reasons"]) == (
        "anna", "reviewer", 3.5, ["medical_error"],
    )  # fmt: skip
    assert ask(server.port, "GET", "/api/history", anna)[2] == [{"id": first["id"], "verdict": events[4]["id"]}]
    edited = TRACE.replace("Fever", "Fever of 39")
    _, _, check = ask(server.port, "POST", "/api/check", anna, {"trace": first["id"], "text": edited})
    assert check == {"problems": []}
    _, _, check = ask(server.port, "POST", "/api/check", anna, {"trace": first["id"], "text": "Sepsis."})
    assert "numbered" in check["problems"][0]


def test_a_reviewer_is_blind_and_an_adjudicator_sees_no_names(site):
    server, _, tokens = site
    id = list(server.desk.traces)[5]
    reject = [event(id, "reason", {"code": "unsafe_advice", "on": True}), event(id, "verdict", {"kind": "reject"})]
    ask(server.port, "POST", "/api/events", tokens["anna"], {"events": reject})
    _, _, shown = ask(server.port, "GET", f"/api/item?trace={id}", tokens["ben"])
    assert not {"reviews", "teacher", "judge"} & set(shown)
    assert shown["draft"] == {"rubric": {}, "reasons": [], "note": "", "text": None, "verdict": None}
    ask(server.port, "POST", "/api/events", tokens["ben"], {"events": [event(id, "verdict", {"kind": "accept"})]})
    _, _, queue = ask(server.port, "GET", "/api/queue?count=9", tokens["chief"])
    shown = next(item for item in queue["items"] if item["id"] == id)
    assert sorted(r["kind"] for r in shown["reviews"]) == ["accept", "reject"]
    assert "anna" not in json.dumps(shown) and "ben" not in json.dumps(shown)


def test_images(site):
    server, _, tokens = site
    id = next(t.id for t in server.desk.traces.values() if t.case.images)
    status, headers, content = ask(server.port, "GET", f"/api/image?trace={id}&index=0", tokens["anna"])
    assert status == 200 and headers["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(content)).size == (20, 10)
    for query in (f"trace={id}&index=1", f"trace={id}&index=-1", f"trace={id}", "trace=../etc&index=0"):
        assert ask(server.port, "GET", f"/api/image?{query}", tokens["anna"])[0] == 404
    assert ask(server.port, "GET", "/../../pyproject.toml", tokens["anna"])[0] == 404


def _deep_files() -> dict[str, tuple[bytes, dict, tuple[float, float]]]:
    """Files of more than 8 bits, a view of each, and the window under which it is shown without another."""
    nibabel = pytest.importorskip("nibabel")
    ramp = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    volume = nibabel.Nifti1Image(np.linspace(-900, 900, 8 * 9 * 4, dtype=np.float32).reshape(8, 9, 4), np.eye(4))
    volume.header["cal_min"], volume.header["cal_max"] = -500, 499
    stored = io.BytesIO()
    Image.fromarray(ramp).save(stored, "PNG")
    float_page = io.BytesIO()
    Image.fromarray((ramp / 300).astype(np.float32)).save(float_page, "TIFF")
    header = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": [40, 400], "WindowWidth": [400, 1800]}
    return {
        "16-bit PNG": (stored.getvalue(), {}, (32768, 65536)),
        "float TIFF": (float_page.getvalue(), {}, (128, 256)),
        "16-bit PNG by range": (stored.getvalue(), {"window": "range"}, (32768, 65536)),
        "NIfTI": (volume.to_bytes(), {"slices": [2], "plane": "coronal"}, (0, 1000)),
        "NIfTI, lung": (volume.to_bytes(), {"slices": [2], "window": "lung"}, (-600, 1500)),
        "CT": (dicom(ramp, **header), {}, (40, 400)),
        "X-ray without a window": (dicom(ramp), {}, (32768, 65536)),
        "X-ray in negative": (dicom(ramp, PhotometricInterpretation="MONOCHROME1"), {}, (32768, 65536)),
    }


def dicom(values: np.ndarray, **header) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = pydicom.uid.CTImageStorage, "1.2", "CT"
    dataset.SamplesPerPixel, dataset.PixelRepresentation, dataset.BitsAllocated = 1, 0, 16
    (dataset.Rows, dataset.Columns), dataset.BitsStored, dataset.HighBit = values.shape, 16, 15
    for key, value in ({"PhotometricInterpretation": "MONOCHROME2"} | header).items():
        setattr(dataset, key, value)
    dataset.PixelData = values.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A function that asks a server for the image of a file by its name in `_deep_files`, under a window."""
    folder, files = tmp_path_factory.mktemp("deep"), _deep_files()
    files["colours"] = (_saved(Image.new("RGB", (20, 10), "red")), {}, None)
    pictures = [ImageRef(name, partial(bytes, data), View.make(**view)) for name, (data, view, _) in files.items()]
    case = Case("c", "What is it?", ("gout", "sepsis"), "B", "AM", "", tuple(pictures), "analytical", TRACE)
    store, access = Store(folder / "review.sqlite"), Access(secret(folder), ("anna",))
    desk = ReviewQueue(store, [from_case(case)], ReviewSettings(("anna",)))
    server = ReviewServer("127.0.0.1", 0, desk, access)
    thread = threading.Thread(target=server.run)
    thread.start()
    (token,) = access.tokens.values()

    def look(name: str, window: str = ""):
        query = f"trace={next(iter(desk.traces))}&index={list(files).index(name)}" + (window and f"&window={window}")
        return ask(server.port, "GET", f"/api/image?{query}", token)

    yield look
    server.stop()
    thread.join()
    store.close()


def _saved(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", _deep_files())
def test_a_window_is_rendered_by_the_decoder(deep, name):
    data, view, right = _deep_files()[name]
    status, headers, plain = deep(name)
    assert status == 200 and headers["X-Window"] == "{:.12g},{:.12g}".format(*right)
    (expected,) = decode(data, **view)
    np.testing.assert_array_equal(Image.open(io.BytesIO(plain)), expected)
    centre, width = right
    for window in ((centre, width), (centre - width / 8, 1 + width / 3), (centre + 0.25, 90.5)):
        status, headers, content = deep(name, "{},{}".format(*window))
        assert status == 200 and headers["X-Window"] == "{:.12g},{:.12g}".format(*window)
        (expected,) = decode(data, **view | {"window": window})
        np.testing.assert_array_equal(Image.open(io.BytesIO(content)), expected)
    same = np.asarray(Image.open(io.BytesIO(deep(name, "{},{}".format(*right))[2])), int)
    assert (
        np.abs(same - np.asarray(Image.open(io.BytesIO(plain)), int)).max() <= 1
    )  # the window that it names is its own


@pytest.mark.parametrize("window", ["40", "40,0", "40,-5", "nan,5", "1e999,5", "lung", "1,2,3", "[40,400]", "%00"])
def test_a_window_that_is_none_is_refused_in_one_line(deep, window):
    status, _, content = deep("CT", window)
    assert status == 422 and "window" in content["error"] and len(content["error"]) < 300


def test_colours_have_no_window(deep):
    status, headers, _ = deep("colours")
    assert status == 200 and "X-Window" not in headers
    status, _, content = deep("colours", "40,400")
    assert status == 422 and "a window is of grey values" in content["error"]


def test_links_stay_valid_and_are_private(tmp_path):
    key = secret(tmp_path)
    assert secret(tmp_path) == key and (tmp_path / "review.secret").stat().st_mode & 0o077 == 0
    one, two = (Access(key, names).links("127.0.0.1", 80) for names in (("anna",), ("anna", "ben")))
    assert set(one.items()) < set(two.items())
    assert all("/#token=" in link for link in two.values())
    assert Access(b"x" * 32, ("anna",)).tokens != Access(key, ("anna",)).tokens
    with pytest.raises(ConfigError, match="reviewers is empty"):
        Access(key, ())


def test_a_port_in_use_is_one_line(site):
    server, _, _ = site
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ResourceError, match=r"choose another --config\.port"):
            ReviewServer("127.0.0.1", taken.getsockname()[1], server.desk, server.access)


class Served:
    """The job as a user starts it, in a process that can be killed."""

    def __init__(self, folder: Path, data: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = [sys.executable, "-m", "mmedexpert_jax.launch", "--config=configs/review.py"]
        self.command += [f"--config.workdir={folder}", f"--config.data.path={data}", f"--config.port={self.port}"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if found := re.search(r"#token=(\w+)", line):
                self.token = found[1]
            if "every action is saved" in line:
                return
        raise AssertionError(f"the server did not start: {self.process.wait()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def test_200_verdicts_while_the_server_is_killed(tmp_path):
    """A client that repeats what was not answered loses nothing and doubles nothing, whenever the server dies: before
    a request, while it is answered, and after it was carried out but before the answer arrived."""
    rows = [
        {
            "id": f"c{i}",
            "question": "What is it?",
            "options": ["gout", "sepsis"],
            "answer": "B",
            "specialty": "AM",
            "paradigm": PARADIGMS[2],
            "trace": TRACE,
        }
        for i in range(200)
    ]
    data = tmp_path / "dev.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    served = Served(tmp_path / "run", data)
    sent: list[str] = []
    deaths = {40: "before", 90: "within", 140: "after"}
    try:
        for number in range(200):
            if deaths.get(number) == "before":
                served.kill()
                served.start()
            item = ask(served.port, "GET", "/api/queue?count=1", served.token)[2]["items"][0]
            verdict = event(item["id"], "verdict", {"kind": "accept"}, seconds=1)
            sent.append(verdict["id"])
            if number in (90, 140):
                connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
                headers = {"Authorization": f"Bearer {served.token}", "Content-Type": "application/json"}
                connection.request("POST", "/api/events", json.dumps({"events": [verdict]}), headers)
                if deaths[number] == "after":
                    time.sleep(0.3)
                served.kill()
                connection.close()
                served.start()
            answer = ask(served.port, "POST", "/api/events", served.token, {"events": [verdict]})[2]
            assert answer["results"][0]["result"] in ("stored", "known")
            assert number != 140 or answer["results"][0]["result"] == "known"
        assert ask(served.port, "GET", "/api/queue?count=1", served.token)[2]["items"] == []
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(20) == 0 and "200 of 200 verdicts" in served.process.stdout.read()
    finally:
        served.kill()
    store = Store(tmp_path / "run" / "review.sqlite")
    verdicts = [e for e in since(store) if e.kind == "verdict"]
    assert [e.client_id for e in verdicts] == sent
    assert len({e.trace_id for e in verdicts}) == 200 == len(review.verdicts(store))
    store.close()
