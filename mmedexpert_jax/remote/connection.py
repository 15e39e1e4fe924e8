"""The openai client of an endpoint, over a transport that bounds every body. Imported only where something is asked."""

import zlib
from urllib.parse import parse_qsl, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import openai

from mmedexpert_jax.remote.protocol import LOOPBACK, Endpoint

MOST_BODY = 8 * 2**20  # bytes of a response, decompressed: a million tokens take about five million
MOST_FILE = 2**30  # bytes of a batch's output: 50,000 answers of 20 kB


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Reads each body whole, up to a limit, before the library sees it: neither an endless body nor a small one that
    decompresses to gigabytes takes more memory than the limit. Redirects are not followed, so no key travels on."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, anonymous: bool):
        """`anonymous` sends no key: openai's client insists on having one."""
        self._inner, self._anonymous = inner, anonymous

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The response with its body in memory. Raises httpx2.ReadError, httpx2.DecodingError."""
        limit = MOST_FILE if request.url.path.endswith("/content") else MOST_BODY
        if self._anonymous:
            request.headers.pop("authorization", None)
        response = await self._inner.handle_async_request(request)
        body = bytearray()
        try:
            async for chunk in response.stream:  # type: ignore[union-attr]
                body += chunk
                if len(body) > limit:
                    raise httpx2.ReadError(f"a body of more than {limit} bytes", request=request)
        finally:
            await response.aclose()
        content = _decoded(bytes(body), response.headers.get("content-encoding", ""), limit, request)
        kept = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in _BODY_HEADERS]
        return httpx2.Response(response.status_code, headers=kept, content=content, request=request)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._inner.aclose()


_BODY_HEADERS = ("content-encoding", "content-length", "transfer-encoding")  # they describe the body as it travelled


def connect(endpoint: Endpoint, key: str) -> openai.AsyncOpenAI:
    """A client that tries each request once: retries, waits and costs are ours (`client.Client`).

    Proxies and certificates of the environment are honoured; servers on this machine are reached without a proxy.
    """
    parts = urlsplit(endpoint.url)
    local = parts.hostname in LOOPBACK or proxy_bypass(parts.hostname or "")
    limits = httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
    known = getproxies()
    proxy = None if local else known.get(parts.scheme) or known.get("all")
    transport = BoundedTransport(httpx2.AsyncHTTPTransport(limits=limits, proxy=proxy), anonymous=not key)
    http = httpx2.AsyncClient(transport=transport, timeout=endpoint.timeout, follow_redirects=False)
    base, _, query = endpoint.url.partition("?")
    queries = dict(parse_qsl(query))
    own = {"api-key": key} if key and "api-version" in queries else {}  # Azure's deployments know no bearer's key
    return openai.AsyncOpenAI(
        api_key=key or "none",
        base_url=base,
        default_query=queries,
        max_retries=0,
        timeout=endpoint.timeout,
        http_client=http,
        default_headers={"Accept-Encoding": "gzip, deflate", **own},
    )


def _decoded(body: bytes, encoding: str, limit: int, request: httpx2.Request) -> bytes:
    """The body without its content encoding."""
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() not in ("gzip", "deflate"):
        raise httpx2.DecodingError(f"content encoding {encoding[:40]!r} was not asked for", request=request)
    try:
        unpack = zlib.decompressobj(wbits=47)  # 32 + 15: a header of gzip or of zlib
        content = unpack.decompress(body, limit + 1)
    except zlib.error as error:
        raise httpx2.DecodingError(f"body cannot be decompressed ({error})", request=request) from None
    if len(content) > limit:
        raise httpx2.ReadError(f"a body of more than {limit} bytes when decompressed", request=request)
    if not unpack.eof:
        raise httpx2.DecodingError("compressed body cut short", request=request)
    return content
