"""The chat page's files, and people's votes between two models whose names they do not see."""

import itertools
import secrets
import threading
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from mmedexpert_jax.border import read_jsonl
from mmedexpert_jax.intervals import wilson
from mmedexpert_jax.report.pages import render
from mmedexpert_jax.runtime import files

FILES = {"/chat.js": "text/javascript", "/chat.css": "text/css"}
OPEN = 1024  # comparisons that wait for their vote; older ones are forgotten


class Vote(msgspec.Struct):
    """A person's word on a comparison."""

    id: str
    better: Literal["first", "second", "tie"]


class Cast(msgspec.Struct):
    """A vote as the file keeps it: which model answered first, and which second; nothing of what was said."""

    first: str
    second: str
    better: Literal["first", "second", "tie"]
    time: float = 0.0


class Votes:
    """Votes, one JSON object a line of `file`, which is made at the first; None: kept in memory."""

    def __init__(self, file: Path | None):
        self._file, self._lock = file, threading.Lock()
        self._open: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._cast = []
        if file and file.exists():  # the server that wrote it may have been killed within a line
            files.lines(file).close()
            self._cast = [cast for _, cast in read_jsonl(file, Cast)]

    def open(self, first: str, second: str) -> str:
        """The id of a comparison between two models, good for one vote."""
        id = secrets.token_urlsafe(12)
        with self._lock:
            self._open[id] = (first, second)
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        return id

    def close(self, vote: Vote) -> tuple[str, str] | None:
        """Stores a vote; the two models' names, None where no comparison waits under its id.

        Raises:
            ResourceError: the disk takes nothing; the comparison still waits for its vote.
        """
        with self._lock:
            names = self._open.get(vote.id)
            if names is None:
                return None
            cast = Cast(*names, vote.better, round(time.time(), 3))
            if self._file:
                with files.lines(self._file) as lines:
                    files.append(lines, self._file, msgspec.json.encode(cast) + b"\n")
            self._cast.append(cast)
            del self._open[vote.id]
        return names

    def table(self) -> list[dict[str, Any]]:
        """A row for each pair: wins, ties, and the first's share with Wilson's interval, a tie counted half to each."""
        wins: Counter[tuple[str, str, str]] = Counter()
        for cast in self._cast:
            winner = {"first": cast.first, "second": cast.second, "tie": ""}[cast.better]
            wins[(*sorted((cast.first, cast.second)), winner)] += 1
        rows = []
        for one, other in itertools.combinations(sorted({name for pair in wins for name in pair[:2]}), 2):
            counts = [wins[one, other, winner] for winner in (one, "", other)]
            if total := sum(counts):
                right = counts[0] + counts[1] / 2
                low, high = wilson(right, total)
                share = {"share": right / total, "low": low, "high": high}
                rows.append({"models": [one, other], "wins": counts[::2], "ties": counts[1], **share})
        return rows


def pages(names: list[str], locked: bool) -> list[Route]:
    """The page over these models, which asks for a key where the server is `locked`, and its files."""
    page = render("rollout/chat_page/chat.html", names=names, locked=locked)

    async def index(request: Request) -> Response:
        return HTMLResponse(page)

    return [Route("/", index), *(Route(path, _file(path, kind)) for path, kind in FILES.items())]


def _file(path: str, kind: str) -> Any:
    content = (Path(__file__).parent / "chat_page" / path[1:]).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind)

    return endpoint
