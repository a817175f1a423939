"""ASGI middleware: check the token and the Host header, and add security headers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import logging
import re
from importlib.resources import files

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

_HOST_HEADER = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(?::\d+)?")
COOKIE_SECONDS = 365 * 24 * 3600
_SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class AuthMiddleware:
    """Authenticate requests; sets `authorised` in the `scope`.

    Args:
        app: the application to protect.
        token: required as `Authorization: Bearer`, or once as `/?token=`, which sets a cookie; None
            if no token is required.
        host: host name of a loopback address. Requests for other names are rejected, because a
            foreign page could resolve its own name to this machine (DNS rebinding). None for other
            addresses: there the token protects against such pages.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, host: str | None) -> None:
        self._app = app
        self._token = token
        self._host = host
        self._login_page = read_page("login.html")
        # The cookie does not reveal the token, and remains valid after a restart of the server.
        self._cookie = _digest(token, "cookie") if token else ""
        # Cookies are shared by all ports of a host.
        self._cookie_name = f"ffd-{_digest(token, 'name')[:8]}" if token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if not scope["authorised"]:
                    # Without a token, thousands of requests could wait on each connection.
                    headers["Connection"] = "close"
            await send(message)

        request = Request(scope)
        scope["authorised"] = self._is_authorised(request)
        responder = self._respond(request) or self._app
        try:
            await responder(scope, receive, send_with_headers)
        except Exception as error:
            # The response is 500; an error of the page must not end the run.
            debug = log.isEnabledFor(logging.DEBUG)
            log.warning("--serve: %s failed: %r", scope["path"], error, exc_info=debug)

    def _respond(self, request: Request) -> Response | None:
        """Return a response; None to pass the request to the application."""
        # `request.url` is not safe: it contains the Host header, which may contain a path.
        path = request.scope["path"]
        if self._host is not None and not self._is_local_host(request.headers.get("host", "")):
            text = "this host name is not served: open the page as localhost\n"
            return PlainTextResponse(text, 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("only GET is supported\n", 405, {"Allow": "GET, HEAD"})
        given = request.query_params.get("token") if path == "/" else None
        if self._token is not None and given is not None and _equal(given, self._token):
            # Relative, as are the page's addresses: a proxy may serve the page below a path.
            answer = RedirectResponse("./", 303)
            name, seconds = self._cookie_name, COOKIE_SECONDS
            # With "strict", browsers would not send it after a link on another site. Every request
            # only reads.
            answer.set_cookie(name, self._cookie, seconds, httponly=True, samesite="lax")
            return answer
        if request.scope["authorised"] or path == "/healthz":
            return None
        headers = {"WWW-Authenticate": 'Bearer realm="ffd"'}
        if path == "/":
            headers["Content-Security-Policy"] = content_security_policy(
                self._login_page, "img-src data:", "form-action 'self'"
            )
            message = "" if given is None else "<p><strong>Wrong token.</strong></p>\n"
            return HTMLResponse(self._login_page.replace("$message", message), 401, headers)
        text = "token required: send the header 'Authorization: Bearer TOKEN'\n"
        return PlainTextResponse(text, 401, headers)

    def _is_authorised(self, request: Request) -> bool:
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip(), self._token):
            return True
        return _equal(request.cookies.get(self._cookie_name, ""), self._cookie)

    def _is_local_host(self, header: str) -> bool:
        """Return True if a Host header names this machine; the port may be that of a tunnel."""
        found = _HOST_HEADER.fullmatch(header)
        if found is None:
            return False
        name = found[1].strip("[]").lower()
        if name in ("localhost", (self._host or "").lower()):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def read_page(name: str) -> str:
    """Return an HTML file of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def content_security_policy(page: str, *directives: str) -> str:
    """Return a Content-Security-Policy that allows a page's style and script, and directives."""
    allowed = []
    for element in ("style", "script"):
        text = page.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
        if text:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            allowed.append(f"{element}-src 'sha256-{digest}'")
    return "; ".join(
        ("default-src 'none'", *allowed, "base-uri 'none'", "frame-ancestors 'none'", *directives)
    )


def _digest(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), f"ffd {purpose}".encode(), hashlib.sha256).hexdigest()


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(
        given.encode(errors="surrogatepass"), expected.encode(errors="surrogatepass")
    )
