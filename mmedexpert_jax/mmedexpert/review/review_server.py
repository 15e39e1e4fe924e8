"""The review's server: the page, and a JSON interface behind a bearer token. Starlette and uvicorn speak the HTTP.

No cookie is set, so another site has nothing to ride on (CSRF); requests that change something must be JSON and come
from the page's own origin as well. On loopback, names other than the loopback's are refused (DNS rebinding).
"""

import asyncio
import re
import socket
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError, DataError, ResourceError
from mmedexpert_jax.mmedexpert.record import Trace
from mmedexpert_jax.mmedexpert.review import view
from mmedexpert_jax.mmedexpert.review.access import Access
from mmedexpert_jax.mmedexpert.review.checks import problems
from mmedexpert_jax.mmedexpert.review.events import Event
from mmedexpert_jax.mmedexpert.review.review_queue import Person, ReviewQueue
from mmedexpert_jax.mmedexpert.review.review_traces import encoded
from mmedexpert_jax.processing.images import ImageRef, shown_window
from mmedexpert_jax.processing.windows import View
from mmedexpert_jax.remote.guard import Guard, PromptProtocol
from mmedexpert_jax.remote.protocol import LOOPBACK

PAGE = Path(__file__).parent / "page"
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
MAX_BODY = 2_000_000  # bytes of a request
MAX_EVENTS = 500  # in one request
MAX_ITEMS = 10  # handed out at once
WINDOW = "X-Window"  # header of a picture of more than 8 bits: centre,width under which it is shown
CLOSE = {"Connection": "close"}  # of an error's answer: the rest of the request has not been read
BODY_SECONDS = 20.0  # until the body of a request is there
_LENGTH = re.compile(r"[0-9]+")
_DECIMAL = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,17})?(e-?[0-9]{1,2})?")
_NUMBER = re.compile(r"[0-9]{1,6}")  # of ASCII: isdigit() is true of "²", and int() refuses 5,000 digits

Answer = Callable[["ReviewServer", Person, "ReviewRequest"], Any]


class ReviewRefusal(HTTPException):
    """An answer other than 200: a status and a sentence."""


class ReviewRequest:
    """The fields of a request's address, and its JSON body (None for GET)."""

    def __init__(self, query: dict[str, str], body: Any = None):
        self.query, self.body = query, body

    def number(self, name: str, default: str = "") -> int | None:
        """A number from 0 among the fields; None where it is none."""
        text = self.query.get(name, default)
        return int(text) if _NUMBER.fullmatch(text) else None


class ReviewServer:
    """Serves one desk: `run` until a signal comes, or `stop` from another thread."""

    def __init__(self, host: str, port: int, desk: ReviewQueue, access: Access, blind: bool = True):
        """Binds the port; 0 takes any that is free. Raises ResourceError."""
        self.desk, self.access, self.blind = desk, access, blind
        self.loopback = host in LOOPBACK
        self._last: tuple[Any, bytes] = None, b""
        self._socket = _bound(host, port)
        # no log: the trail is it
        quiet: dict[str, Any] = {"log_config": None, "log_level": "critical", "access_log": False}
        plain: dict[str, Any] = {"ws": "none", "lifespan": "off", "server_header": False, "proxy_headers": False}
        config = uvicorn.Config(
            Guard(self._application(), self.loopback),
            http=PromptProtocol,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=2,
            **quiet,
            **plain,
        )
        self._server = uvicorn.Server(config)

    @property
    def port(self) -> int:
        """The port that is bound."""
        return self._socket.getsockname()[1]

    def run(self) -> None:
        """Serves until SIGINT, SIGTERM or `stop`; a signal is raised again when the open requests are answered."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Ends `run` in another thread."""
        self._server.should_exit = True

    def trace(self, id: Any) -> Trace:
        """The trace that a request names. Raises ReviewRefusal."""
        if not isinstance(id, str) or id not in self.desk.traces:
            raise ReviewRefusal(404, "no such trace")
        return self.desk.traces[id]

    def content(self, image: ImageRef) -> bytes:
        """The file of an image; read once while the slices of one volume are asked for in turn. Raises DataError."""
        read, content = self._last
        if read is not image.read:
            content = image.open()
            self._last = image.read, content
        return content

    def _application(self) -> Starlette:
        routes = [Route(path, self._file(*STATIC[path])) for path in STATIC]
        routes += [Route(path, self._endpoint(answer)) for path, answer in GET.items()]
        routes += [Route(path, self._endpoint(answer), methods=["POST"]) for path, answer in POST.items()]
        handlers: dict[Any, Any] = {HTTPException: _refused, Exception: _failing(500)}
        handlers[ClientDisconnect] = _failing(400)  # nobody is there to read it
        # a disk that takes nothing, say: the page keeps its events and asks again
        handlers |= dict.fromkeys((sqlite3.Error, ResourceError), _failing(503))
        handlers |= dict.fromkeys((DataError, ConfigError), _failing(422))  # a picture that needs pydicom, say
        return Starlette(routes=routes, exception_handlers=handlers)

    def _file(self, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return Response((PAGE / name).read_bytes(), media_type=kind)

        return endpoint

    def _endpoint(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that answers people with a token; the answer is found in a thread, since SQLite blocks."""

        async def endpoint(request: Request) -> Response:
            person = self.access.person(request.headers.get("authorization", ""))
            if person is None:
                raise ReviewRefusal(401, "open the link with your token that the server printed")
            asked = ReviewRequest(dict(request.query_params))
            if request.method == "POST":
                _check_origin(request)
                asked.body = await _json(request)
            content = await run_in_threadpool(answer, self, person, asked)
            if isinstance(content, tuple):
                body, kind, headers = content
                return Response(body, media_type=kind, headers=headers)
            return JSONResponse(content)

        return endpoint


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(1024)  # from now on: whoever opens a link at once waits, and is not refused
    except (OSError, OverflowError) as error:
        bound.close()
        raise ResourceError(
            f"cannot listen on {host} port {port} ({getattr(error, 'strerror', None) or error}); "
            "choose another --config.port, or 0 for any"
        ) from None
    return bound


def _check_origin(request: Request) -> None:
    """Raises ReviewRefusal where a request comes from another site, or is not JSON."""
    origin = request.headers.get("origin")
    own = origin is None or origin.partition("://")[2] == request.headers.get("host", "")
    if not own or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ReviewRefusal(403, "the request comes from another site")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ReviewRefusal(415, "send application/json")


async def _json(request: Request) -> Any:
    """The JSON of a request, bounded in size, depth and time. Raises ReviewRefusal."""
    too_large = ReviewRefusal(413, f"at most {MAX_BODY} bytes are taken")
    length = request.headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length):
        raise ReviewRefusal(400, "the length of the body is no number")
    if len(length) > 9 or int(length) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise too_large
        return border.parse_json(bytes(body), "the body")
    except TimeoutError:
        raise ReviewRefusal(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    except DataError as error:
        raise ReviewRefusal(400, str(error)) from None


async def _refused(request: Request, error: Exception) -> Response:
    """The answer to what is refused."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=CLOSE)


def _failing(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    """The answer with a status to what fails."""

    async def handler(request: Request, error: Exception) -> Response:
        name = f"{type(error).__name__}: " if status == 500 else ""  # an error of ours, which may say nothing else
        return JSONResponse({"error": name + str(error)}, status, headers=CLOSE)

    return handler


def _session(server: ReviewServer, person: Person, asked: ReviewRequest) -> Any:
    return {"review": server.access.id} | view.session(person, server.desk, server.blind)


def _queue(server: ReviewServer, person: Person, asked: ReviewRequest) -> Any:
    count = asked.number("count", "1")
    if count is None:
        raise ReviewRefusal(400, "count must be a number")
    holding = [id for id in asked.query.get("holding", "").split(",") if id in server.desk.traces]
    traces = server.desk.queue(person, min(count, MAX_ITEMS), holding)
    items = [view.item(trace, person, server.desk, server.blind) for trace in traces]
    return {"items": items, "progress": server.desk.progress(person)}


def _item(server: ReviewServer, person: Person, asked: ReviewRequest) -> Any:
    return view.item(server.trace(asked.query.get("trace")), person, server.desk, server.blind)


def _image(server: ReviewServer, person: Person, asked: ReviewRequest) -> Any:
    images, index = server.trace(asked.query.get("trace")).case.images, asked.number("index")
    if index is None or index >= len(images):
        raise ReviewRefusal(404, "no such image")
    content, window = server.content(images[index]), asked.query.get("window")
    image = replace(images[index], read=lambda: content)
    if window is not None:
        values = [float(text) if _DECIMAL.fullmatch(text) else None for text in window.split(",")]
        image = replace(image, view=replace(image.view, window=View.make(values, name="image").window))
    shown = shown_window(image)
    return *encoded(image), {WINDOW: f"{shown[0]:.12g},{shown[1]:.12g}"} if shown else {}


def _history(server: ReviewServer, person: Person, asked: ReviewRequest) -> Any:
    return [{"id": id, "verdict": verdict} for id, verdict in server.desk.history(person)]


def _events(server: ReviewServer, person: Person, asked: ReviewRequest) -> Any:
    sent = asked.body.get("events") if isinstance(asked.body, dict) else None
    if not isinstance(sent, list) or len(sent) > MAX_EVENTS:
        raise ReviewRefusal(400, f"events must be a list of at most {MAX_EVENTS}")
    answers = server.desk.submit(person, [_event(one) for one in sent])
    results = [{"id": answer.client_id, "result": answer.result, "why": answer.why} for answer in answers]
    return {"results": results, "progress": server.desk.progress(person)}


def _check(server: ReviewServer, person: Person, asked: ReviewRequest) -> Any:
    body = asked.body if isinstance(asked.body, dict) else {}
    text = body.get("text")
    if not isinstance(text, str):
        raise ReviewRefusal(400, "text is missing")
    return {"problems": problems(server.trace(body.get("trace")), text)}


def _event(sent: Any) -> Event:
    values = sent if isinstance(sent, dict) else {}
    id, trace, kind = (str(values.get(name) or "") for name in ("id", "trace", "kind"))
    value, seconds = values.get("value", {}), values.get("seconds")
    if not all(0 < len(text) <= 64 for text in (id, trace, kind)) or not isinstance(value, dict):
        raise ReviewRefusal(400, "an event has id, trace, kind (texts) and value (an object)")
    if seconds is not None and not (isinstance(seconds, int | float) and 0 <= seconds < 1e6):
        raise ReviewRefusal(400, "seconds must be a number from 0")
    return Event(id, "", "", trace, kind, value, seconds)


GET: dict[str, Answer] = {
    "/api/session": _session,
    "/api/queue": _queue,
    "/api/item": _item,
    "/api/image": _image,
    "/api/history": _history,
    "/api/progress": lambda server, person, _: server.desk.progress(person),
}
POST: dict[str, Answer] = {"/api/events": _events, "/api/check": _check}
