"""Hours of soak: the model server and the review page under load with faults; memory stays flat, no error is lost.

`MMEDEXPERT_SOAK=3600 python -m pytest tests/fuzz/test_soak.py -m slow -n0 -s` does an hour; without it, a minute.
Half of the requests are right; the others are damaged, leave, stall, or meet a disk that takes nothing for a while.
"""

import json
import os
import random
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.fuzz.forked import Forked
from tests.fuzz.test_kills import World, begin, ready, trail, world  # noqa: F401 (a fixture)

SECONDS = float(os.environ.get("MMEDEXPERT_SOAK", "60"))
PAUSE = 0.5  # seconds between two requests: a light load
GROWTH = 1.05  # of resident memory, from the second quarter of the time to the last
DEEP = b"[" * 100_000


class Site:
    """A server under load: what each of its requests was answered by, beside what it should be."""

    def __init__(self, job: str, run: Path, given: World):
        self.job, self.run, self.number = job, run, 0
        self.forked: Forked = begin(job, run, given)
        self.address, self.token = ready(self.forked)
        self.client = httpx.Client(base_url=self.address, timeout=120, headers=self.headers)
        self.seen: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []
        self.memory: list[float] = []
        self.stored: list[str] = []

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token or 0}", "content-type": "application/json"}

    def expect(self, what: str, reply: httpx.Response, status: int) -> None:
        """Counts an answer; another status than the one it should have is an error that was lost or made."""
        self.seen[what, reply.status_code] += 1
        if reply.status_code != status or "Traceback" in reply.text or (status >= 400 and "error" not in reply.json()):
            self.wrong.append(f"{self.job}, {what}: {reply.status_code} in place of {status}: {reply.text[:200]}")

    def connect(self) -> socket.socket:
        host, port = self.address.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=60)

    def look(self) -> None:
        """Notes resident memory, MiB."""
        pages = int(Path(f"/proc/{self.forked.processes[0].pid}/statm").read_text().split()[1])
        self.memory.append(pages * resource.getpagesize() / 2**20)

    def full(self, bytes: int) -> None:
        """Sets the limit of a file's size, as a disk that is full; -1: none."""
        resource.prlimit(self.forked.processes[0].pid, resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))


def events(site: Site, number: int) -> dict:
    traces = [item["id"] for item in site.client.get("/api/queue?count=10").json()["items"]]
    return {"events": [{"id": f"e{number}", "trace": traces[0], "kind": "note", "value": {"text": "x" * 200}}]}


def question(number: int, **fields) -> dict:
    return {
        "messages": [{"role": "user", "content": f"Is {number % 7} high?"}],
        "seed": number,
        "max_tokens": 6,
    } | fields


def review_right(site: Site, rng: random.Random) -> None:
    body = events(site, site.number)
    site.expect("event", site.client.post("/api/events", json=body), 200)
    site.stored.append(body["events"][0]["id"])
    if rng.random() < 0.3:  # the answer did not arrive: it is sent again, and is known
        reply = site.client.post("/api/events", json=body)
        site.expect("event again", reply, 200)
        assert reply.json()["results"][0]["result"] == "known"


def review_wrong(site: Site, rng: random.Random) -> None:
    path = "/api/events"
    content, status = rng.choice(
        [(DEEP, 400), (b"\xff", 400), (b'{"events": [{"seconds": 1e999}]}', 400), (b"{}", 400), (b"x" * 2_000_001, 413)]
    )
    site.expect("body", site.client.post(path, content=content), status)
    site.expect("token", httpx.get(f"{site.address}/api/queue", headers={"authorization": "Bearer x"}), 401)
    site.expect("host", site.client.get("/api/queue", headers={"host": "evil.example"}), 421)


def refused_then_stored(site: Site, path: str, body: dict) -> None:
    site.full(0)
    try:
        site.expect("full disk", site.client.post(path, json=body), 503)
    finally:
        site.full(-1)
    site.expect("room again", site.client.post(path, json=body), 200)


def review_full(site: Site, rng: random.Random) -> None:
    """The disk takes nothing: the event is refused, kept by the client, and stored when there is room again."""
    body = events(site, site.number)
    refused_then_stored(site, "/api/events", body)
    site.stored.append(body["events"][0]["id"])


def serve_right(site: Site, rng: random.Random) -> None:
    reply = site.client.post("/v1/chat/completions", json=question(site.number % 5))
    site.expect("question", reply, 200)
    text = reply.json()["choices"][0]["message"]["content"]
    known = site.__dict__.setdefault("texts", {}).setdefault(site.number % 5, text)
    if known != text:
        site.wrong.append(f"seed {site.number % 5}: {text!r} in place of {known!r}")
    with site.client.stream("POST", "/v1/chat/completions", json=question(site.number, stream=True)) as stream:
        lines = [line for line in stream.iter_lines() if line]
    site.seen["stream", stream.status_code] += 1
    if lines[-1] != "data: [DONE]" or any("error" in line for line in lines):
        site.wrong.append(f"a stream ended with {lines[-1][:100]}")


def serve_wrong(site: Site, rng: random.Random) -> None:
    path = "/v1/chat/completions"
    body, status = rng.choice(
        [(question(1, model="none"), 404), (question(1, n=1000), 400), (question(1, temperature="hot"), 400), ([], 400)]
    )
    site.expect("body", site.client.post(path, json=body), status)
    site.expect("depth", site.client.post(path, content=DEEP), 400)
    site.expect("path", site.client.get("/nothing"), 404)
    site.expect("host", httpx.get(f"{site.address}/health", headers={"host": "evil.example"}), 421)


def serve_votes(site: Site, rng: random.Random) -> None:
    """A comparison and its vote; once in a while the disk takes nothing."""

    def opened() -> dict:
        reply = site.client.post("/compare", json=question(2))
        site.expect("comparison", reply, 200)
        return {"id": reply.json()["id"], "better": rng.choice(("first", "second", "tie"))}

    site.expect("vote", site.client.post("/votes", json=opened()), 200)
    site.stored.append("vote")
    refused_then_stored(site, "/votes", opened())
    site.stored.append("vote")


def leaves(site: Site, rng: random.Random) -> None:
    """Clients that say half of a request, nothing at all, or do not wait for an answer."""
    said = rng.choice(
        (b"", b"GET / HT", b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{")
    )
    with site.connect() as connection:
        connection.sendall(said)
    site.seen["left", 0] += 1


WORK: dict[str, tuple[Callable[[Site, random.Random], None], ...]] = {
    "review": (review_right, review_right, review_wrong, review_full, leaves),
    "serve": (serve_right, serve_right, serve_wrong, serve_votes, leaves),
}


@pytest.mark.slow
def test_memory_is_flat_and_no_error_is_lost(world, tmp_path, capsys):  # noqa: F811
    rng = random.Random(0)
    sites = [Site(job, tmp_path / job, world) for job in WORK]
    ends, looks = time.monotonic() + SECONDS, time.monotonic()
    while time.monotonic() < ends:
        for site in sites:
            site.number += 1
            rng.choice(WORK[site.job])(site, rng)
        if time.monotonic() > looks:
            looks += SECONDS / 40
            for site in sites:
                site.look()
        time.sleep(PAUSE)
    for site in sites:
        site.client.close()
        site.forked.send(signal.SIGTERM)
        assert set(site.forked.ended()) <= {0, 143, -signal.SIGTERM}
        said = site.forked.output.read_text()
        quarter = len(site.memory) // 4
        early, late = (max(part) for part in (site.memory[quarter : 2 * quarter], site.memory[-quarter:]))
        with capsys.disabled():
            counts = ", ".join(f"{what} {count}" for (what, _), count in sorted(site.seen.items()))
            print(
                f"\n| {site.job} | {SECONDS:.0f} s | {site.seen.total()} ({counts}) | {early:.0f} -> {late:.0f} MiB |"
            )
        assert not site.wrong, "\n".join(site.wrong[:20])
        assert "Traceback" not in said, said[-2000:]
        assert late < GROWTH * early, site.memory
        kept = (
            [event[0] for event in trail(site.run) if event[3] == "note"]
            if site.job == "review"
            else ["vote" for line in (site.run / "votes.jsonl").read_text().splitlines() if json.loads(line)]
        )
        assert kept == site.stored
