"""Who may call: the bearer token, or without one only this machine; and what browsers may do with an answer."""

import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.settings import Settings

PUBLIC_PATHS = frozenset({"/docs", "/openapi.json"})
# Below it lies the review page: script and style without data, which asks for the token itself.
PAGES = "/review/"


def token_of(settings: Settings) -> str | None:
    """The bearer token that is set, without the spaces and line ends of the file it came from; an empty one is none."""
    return (settings.api_token.get_secret_value().strip() or None) if settings.api_token else None


class Guard:
    """Lets through who has the token; where none is set, who is on this machine.

    Listening on loopback alone keeps other machines out, but not web pages in a browser on this one: a page whose name
    points at 127.0.0.1 (DNS rebinding) is known by its Host header, and one that posts across origins by its Origin.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app = app
        self.token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if self.token is None:
            return _refuse_strangers(headers)
        if scope["path"] in PUBLIC_PATHS or scope["path"].startswith(PAGES):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Headers come as Latin-1, whatever bytes the caller sent.
        if scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode("latin-1"), self.token):
            return None
        return JSONResponse(
            {"detail": "Send the header `Authorization: Bearer TOKEN` with the token of ATTENDANSEE_API_TOKEN."},
            401,
            {"WWW-Authenticate": 'Bearer realm="AttendanSee"'},
        )


def _refuse_strangers(headers: Headers) -> JSONResponse | None:
    host, origin = headers.get("host", "").lower(), headers.get("origin")
    if not _is_this_machine(_name(host)):
        return JSONResponse(
            {"detail": "Without ATTENDANSEE_API_TOKEN only localhost is served: set a token, or use that name."}, 403
        )
    if origin is not None and urlsplit(origin).netloc.lower() != host:
        return JSONResponse({"detail": "Without ATTENDANSEE_API_TOKEN pages of other origins are not served."}, 403)
    return None


def _is_this_machine(name: str) -> bool:
    """Whether a host's name is localhost or a loopback address, any of 127.0.0.0/8: of other names nobody knows the place."""
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """A Host header without its port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


class SecurityHeaders:
    """Tells browsers to keep nothing, guess nothing, and show nothing inside other pages."""

    HEADERS = (
        ("Cache-Control", "private, no-store"),
        ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Referrer-Policy", "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.HEADERS:
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)
