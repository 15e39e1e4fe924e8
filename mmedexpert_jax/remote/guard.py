"""Shared parts of our servers: the rules of a page, host names, and patience with those who say nothing."""

import asyncio
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmedexpert_jax.remote.protocol import LOOPBACK

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
HEAD_SECONDS = 20.0  # until a connection has sent the head of its first request


class Guard:
    """Refuses foreign host names, and sends the page's rules with every answer."""

    def __init__(self, app: ASGIApp, loopback: bool):
        self._app, self._loopback = app, loopback
        self._headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def send_with_rules(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._headers]}
            await send(message)

        app = self._app
        if self._loopback and _host(dict(scope["headers"]).get(b"host", b"").decode("latin-1")) not in LOOPBACK:
            app = JSONResponse({"error": "this server answers to loopback names only"}, 421)
        await app(scope, receive, send_with_rules)


class PromptProtocol(H11Protocol):
    """Hangs up on a connection that does not come to its first request: uvicorn itself would wait for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, lambda: self.cycle is None and transport.close())


def _host(netloc: str) -> str | None:
    """The host name in a Host header or an origin; None where it is none, as in "["."""
    try:
        return urlsplit(f"//{netloc}").hostname
    except ValueError:
        return None
