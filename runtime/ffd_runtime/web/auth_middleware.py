"""Who may see the page: the token, the Host header, and what each answer says to browsers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import logging
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PUBLIC_PATHS = ("/healthz",)

log = logging.getLogger(__name__)

_HOST_HEADER = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(?::\d+)?")
_COOKIE_SECONDS = 365 * 24 * 3600
_SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LOGIN_STYLE = (
    ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:34rem;"
    "margin:12vh auto;padding:0 1rem}form{display:flex;gap:.5rem}"
    "input{flex:1;min-width:0}input,button{font:inherit;padding:.4rem .7rem}"
)
_LOGIN_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ffd: token needed</title>
<link rel="icon" href="data:,">
<style>{_LOGIN_STYLE}</style>
</head>
<body>
<main>
<h1>A token is needed</h1>
<p>This page is for those who know the token that it was started with: <code>--token</code> or
<code>FFD_TOKEN</code> on that machine.</p>
$wrong<form action="/">
<input autocomplete="username" value="ffd" aria-hidden="true" hidden>
<input name="token" type="password" aria-label="Token" autocomplete="current-password" required>
<button>Open</button>
</form>
</main>
</body>
</html>
"""


class AuthMiddleware:
    """Stands before the site; what it lets through has `authorised` in its `scope`.

    Args:
        app: the site.
        token: that must be given, as `Authorization: Bearer`, or once as `/?token=`, which is
            answered with a cookie; None where everybody on the machine may look.
        host: name that this machine was bound by, where it is a loopback address: requests for
            other names are refused, because a page from elsewhere could have its own name lead
            here (DNS rebinding). None for other addresses, where the token keeps such pages out.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, host: str | None) -> None:
        self._app = app
        self._token = token
        self._host = host
        # The cookie is not the token, and stays good when the server comes back.
        self._cookie = _digest(token, "cookie") if token else ""
        # Cookies are shared by all ports of a machine.
        self._cookie_name = f"ffd-{_digest(token, 'name')[:8]}" if token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message)
            await send(message)

        request = Request(scope)
        scope["authorised"] = self._is_authorised(request)
        answer = self._answer(request) or self._app
        try:
            await answer(scope, receive, send_with_headers)
        except Exception as error:
            # It was answered with 500; the run is worth more than the page.
            debug = log.isEnabledFor(logging.DEBUG)
            log.warning("--serve: %s failed: %r", scope["path"], error, exc_info=debug)

    def _answer(self, request: Request) -> Response | None:
        """What is answered in the site's place; None if it may answer."""
        # Not `request.url`: that is made of the Host header, too, which may hold a path.
        path = request.scope["path"]
        if self._host is not None and not self._is_here(request.headers.get("host", "")):
            text = "open this page by the name localhost: through this one it is not served\n"
            return PlainTextResponse(text, 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("only GET\n", 405, {"Allow": "GET, HEAD"})
        given = request.query_params.get("token") if path == "/" else None
        if self._token is not None and given is not None and _same(given, self._token):
            return self._welcome()
        if request.scope["authorised"] or path in PUBLIC_PATHS:
            return None
        headers = {"WWW-Authenticate": 'Bearer realm="ffd"'}
        if path == "/":
            headers["Content-Security-Policy"] = policy(
                _LOGIN_STYLE, "img-src data:", "form-action 'self'"
            )
            wrong = "" if given is None else "<p><strong>That is not it.</strong></p>\n"
            return HTMLResponse(_LOGIN_PAGE.replace("$wrong", wrong), 401, headers)
        text = "a token is needed: send the header 'Authorization: Bearer TOKEN'\n"
        return PlainTextResponse(text, 401, headers)

    def _welcome(self) -> Response:
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            self._cookie_name,
            self._cookie,
            max_age=_COOKIE_SECONDS,
            httponly=True,
            samesite="strict",
        )
        return answer

    def _is_authorised(self, request: Request) -> bool:
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self._token):
            return True
        return _same(request.cookies.get(self._cookie_name, ""), self._cookie)

    def _is_here(self, header: str) -> bool:
        """Whether a Host header means this machine; the port may be a tunnel's."""
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


def policy(style: str, *more: str) -> str:
    """A Content-Security-Policy that allows one style and nothing else that is not named."""
    parts = (
        "default-src 'none'",
        f"style-src {source_hash(style)}",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        *more,
    )
    return "; ".join(parts)


def source_hash(text: str) -> str:
    """What a Content-Security-Policy calls a style or script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _digest(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), f"ffd {purpose}".encode(), hashlib.sha256).hexdigest()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(
        given.encode(errors="surrogatepass"), expected.encode(errors="surrogatepass")
    )


def _add_headers(message: Any) -> None:
    headers = list(message.get("headers", []))
    present = {name.lower() for name, _ in headers}
    for name, value in _SECURITY_HEADERS.items():
        if name.lower().encode() not in present:
            headers.append((name.lower().encode(), value.encode()))
    message["headers"] = headers
