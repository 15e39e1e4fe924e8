"""The review's HTTP server: the page, and a JSON interface behind a bearer token.

No cookie is set, so another site has nothing to ride on (CSRF); requests that change something must be JSON and come
from the page's own origin as well. On loopback, names other than the loopback's are refused (DNS rebinding).
"""

import json
import socket
import sqlite3
from collections.abc import Callable
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mmedexpert_jax.errors import ResourceError
from mmedexpert_jax.mmedexpert.record import Trace
from mmedexpert_jax.mmedexpert.review import view
from mmedexpert_jax.mmedexpert.review.access import LOOPBACK, Access
from mmedexpert_jax.mmedexpert.review.checks import problems
from mmedexpert_jax.mmedexpert.review.desk import Desk, Person
from mmedexpert_jax.mmedexpert.review.events import Event
from mmedexpert_jax.mmedexpert.review.sources import encoded

PAGE = Path(__file__).parent / "page"
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_BODY = 2_000_000  # bytes of a request
MAX_EVENTS = 500  # in one request
MAX_ITEMS = 10  # handed out at once


class Refusal(Exception):
    """An answer other than 200: a status and a sentence."""

    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status = status


class ReviewServer(ThreadingHTTPServer):
    """Serves one desk until `shutdown`."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, desk: Desk, access: Access, blind: bool = True):
        """Binds the port; 0 takes any that is free. Raises ResourceError."""
        self.desk, self.access, self.blind = desk, access, blind
        self.loopback = host in LOOPBACK
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ResourceError(
                f"cannot listen on {host} port {port} ({getattr(error, 'strerror', None) or error}); "
                "choose another --config.port, or 0 for any"
            ) from None

    @property
    def port(self) -> int:
        """The port that is bound."""
        return self.server_address[1]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "mmedexpert-review"
    sys_version = ""
    timeout = 60
    wbufsize = -1  # head and body leave together
    disable_nagle_algorithm = True
    server: ReviewServer

    def do_GET(self) -> None:
        """Page and reads."""
        self._answer(GET)

    def do_POST(self) -> None:
        """Changes."""
        self._answer(POST)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the audit trail is the log."""

    @cached_property
    def body(self) -> Any:
        """The JSON of the request."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if int(length) > MAX_BODY:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BODY} bytes are taken")
        try:
            return json.loads(self.rfile.read(int(length)), parse_constant=_no_constant)
        except ValueError:
            raise Refusal(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None

    @property
    def query(self) -> dict[str, str]:
        """Fields of the address."""
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}

    def trace(self, id: Any) -> Trace:
        """The trace that a request names."""
        if not isinstance(id, str) or id not in self.server.desk.traces:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such trace")
        return self.server.desk.traces[id]

    def _answer(self, routes: dict[str, "Route"]) -> None:
        self.__dict__.pop("body", None)  # a connection carries several requests
        try:
            self._check_host()
            path = urlsplit(self.path).path
            if routes is GET and path in STATIC:
                name, kind = STATIC[path]
                return self._send(HTTPStatus.OK, (PAGE / name).read_bytes(), kind)
            person = self.server.access.person(self.headers.get("Authorization", ""))
            if person is None:
                raise Refusal(HTTPStatus.UNAUTHORIZED, "open the link with your token that the server printed")
            if path not in routes:
                raise Refusal(HTTPStatus.NOT_FOUND, "no such address")
            if routes is POST:
                self._check_origin()
            content = routes[path](self, person)
            if isinstance(content, tuple):
                return self._send(HTTPStatus.OK, *content)
            self._send(HTTPStatus.OK, json.dumps(content, ensure_ascii=False).encode(), JSON)
        except Refusal as refusal:
            self.close_connection = True  # what is left of the request is not read
            self._send(refusal.status, json.dumps({"error": str(refusal)}).encode(), JSON)
        except (sqlite3.Error, ResourceError) as error:  # a full disk, say: the page keeps its events and asks again
            self.close_connection = True
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, json.dumps({"error": str(error)}).encode(), JSON)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _check_host(self) -> None:
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if self.server.loopback and host not in LOOPBACK:
            raise Refusal(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to loopback names only")

    def _check_origin(self) -> None:
        origin, host = self.headers.get("Origin"), self.headers.get("Host", "")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refusal(HTTPStatus.FORBIDDEN, "the request comes from another site")
        if self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise Refusal(HTTPStatus.FORBIDDEN, "the request comes from another site")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


Route = Callable[[Handler, Person], Any]
JSON = "application/json; charset=utf-8"


def _session(request: Handler, person: Person) -> Any:
    server = request.server
    return {"review": server.access.id} | view.session(person, server.desk, server.blind)


def _queue(request: Handler, person: Person) -> Any:
    desk, query = request.server.desk, request.query
    count = query.get("count", "1")
    if not count.isdigit():
        raise Refusal(HTTPStatus.BAD_REQUEST, "count must be a number")
    holding = [id for id in query.get("holding", "").split(",") if id in desk.traces]
    traces = desk.queue(person, min(int(count), MAX_ITEMS), holding)
    items = [view.item(trace, person, desk, request.server.blind) for trace in traces]
    return {"items": items, "progress": desk.progress(person)}


def _item(request: Handler, person: Person) -> Any:
    return view.item(request.trace(request.query.get("trace")), person, request.server.desk, request.server.blind)


def _image(request: Handler, person: Person) -> Any:
    images, index = request.trace(request.query.get("trace")).case.images, request.query.get("index", "")
    if not index.isdigit() or int(index) >= len(images):
        raise Refusal(HTTPStatus.NOT_FOUND, "no such image")
    return encoded(images[int(index)])


def _history(request: Handler, person: Person) -> Any:
    return [{"id": id, "verdict": verdict} for id, verdict in request.server.desk.history(person)]


def _progress(request: Handler, person: Person) -> Any:
    return request.server.desk.progress(person)


def _events(request: Handler, person: Person) -> Any:
    sent = request.body.get("events") if isinstance(request.body, dict) else None
    if not isinstance(sent, list) or len(sent) > MAX_EVENTS:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"events must be a list of at most {MAX_EVENTS}")
    answers = request.server.desk.submit(person, [_event(one) for one in sent])
    results = [{"id": answer.client_id, "result": answer.result, "why": answer.why} for answer in answers]
    return {"results": results, "progress": request.server.desk.progress(person)}


def _check(request: Handler, person: Person) -> Any:
    body = request.body if isinstance(request.body, dict) else {}
    text = body.get("text")
    if not isinstance(text, str):
        raise Refusal(HTTPStatus.BAD_REQUEST, "text is missing")
    return {"problems": problems(request.trace(body.get("trace")), text)}


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _event(sent: Any) -> Event:
    values = sent if isinstance(sent, dict) else {}
    id, trace, kind = (str(values.get(name) or "") for name in ("id", "trace", "kind"))
    value, seconds = values.get("value", {}), values.get("seconds")
    if not all(0 < len(text) <= 64 for text in (id, trace, kind)) or not isinstance(value, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "an event has id, trace, kind (texts) and value (an object)")
    if seconds is not None and not (isinstance(seconds, int | float) and 0 <= seconds < 1e6):
        raise Refusal(HTTPStatus.BAD_REQUEST, "seconds must be a number from 0")
    return Event(id, "", "", trace, kind, value, seconds)


GET: dict[str, Route] = {
    "/api/session": _session,
    "/api/queue": _queue,
    "/api/item": _item,
    "/api/image": _image,
    "/api/history": _history,
    "/api/progress": _progress,
}
POST: dict[str, Route] = {"/api/events": _events, "/api/check": _check}
