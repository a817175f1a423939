"""Hide credentials in addresses before anything shows them.

The result is deterministic, so that a row's `source` is the same in every run. In doubt, text is
hidden: where RFC 3986 and the user's intention differ, both readings are hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

HIDDEN = "***"
# Most servers accept no longer address.
MAX_ADDRESS_CHARACTERS = 8192
# Nested redactions of encoded text. Deeper text is hidden without being decoded.
_MAX_DEPTH = 8

Span = tuple[int, int]

# A parameter is hidden if its name contains one of these: cameras (user, pwd, loginpas), SRT
# (streamid), pre-signed addresses of AWS (X-Amz-Signature, X-Amz-Credential, AWSAccessKeyId),
# Google (X-Goog-Signature, GoogleAccessId), Azure (sig), CloudFront (Policy, Key-Pair-Id), Akamai
# (hdnts, hmac), Alibaba and Tencent (OSSAccessKeyId, q-signature), sessions of web applications.
_WORDS = (
    "user usr login account pas pwd pw token tkn key auth secret sig cred jwt sess code streamid "
    "header hmac hdnts hdnea hdntl policy bearer cookie ticket assertion saml accessid access_id "
    "csrf xsrf private phrase psk"
).split()
# Names that are too short to be searched for inside other names.
_NAMES = frozenset(
    "ak sk tk hm oh oe md5 mac sid ssid uid pin otp pat sas sgn hash digest nonce q-ak".split()
)
# Names that are common in paths (`/p=1/`), so they only count in the query of an address: passwords
# of cameras (u, p), imgix and Reddit (s), nginx (st), CDN77 (secure), Cloudflare (verify).
_QUERY_NAMES = frozenset("p s st u secure verify".split())

_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WEB = re.compile(r"https?$", re.IGNORECASE)
_PLAIN_AUTHORITY = re.compile(r"(?P<host>\[[^][@]*\]|[^][@:]*)(?::(?P<port>\d+))?")
_TOKEN = re.compile(r"""=|\s+|[/?&#;,"'|!]|[^=\s/?&#;,"'|!]+""")
# A value in a GStreamer pipeline: an optional type in parentheses, then a quoted text or a word.
_VALUE = re.compile(
    r"""\s*(?:\(\w+\)\s*)?(?:"(?:[^"\\]|\\.)*(?:"|$)|'(?:[^'\\]|\\.)*(?:'|$)|(?:\\.|[^&\s\\])*)""",
    re.DOTALL,
)
_PATH = re.compile("[/?#]")
_SCHEME = re.compile("[a-z][a-z0-9+.-]{0,15}", re.IGNORECASE)
# The last @ that does not start a path segment.
_INNER_AT = re.compile("(?s:.*)([^/]@)")
_PIECE = re.compile(r"[^&#?]+")
# Credentials in any position: a JSON web token, and a Telegram bot's, which is part of the path.
# A search for the start of a web token would read the rest of a long word at each start.
_DOTTED = re.compile(r"(?<![\w-])([\w-]+)(?=\.[\w-]+\.([\w-]*))")
# Video recorders take the login as a part of the path: `/0/USER:PASSWORD/main`. The last part of an
# RTMP address is the key of the broadcast.
_VIDEO = re.compile(r"\s*(rt[sm]p)s?://[^/?#]*", re.IGNORECASE)
_PATH_LOGIN = re.compile(r"(?<=/)[^/?#:@]+:[^/?#@]+")
_STREAM_KEY = re.compile(r"(?<=/)[^/?#]+(?=/?(?:[?#]|$))")
_JWT_START = "eyJ"
_MIN_JWT_CHARACTERS = 11
_BOT_TOKEN = re.compile(r"(?<=/bot)\d+:[\w-]+")


def redact(text: str) -> str:
    """Replace every possible credential in an address with `***`.

    Credentials are the user and password before the host, and the values of parameters whose names
    suggest access: in a query, a path, a fragment or a GStreamer pipeline, also percent-encoded
    inside another parameter. The replacement does not depend on the credential.

    Args:
        text: an address, or a text with addresses in it. Text without `://` and without secret
            parameters is returned as it is.

    Example:
        >>> redact("rtsp://admin:secret@10.0.0.5/live?channel=1&token=abc")
        'rtsp://***@10.0.0.5/live?channel=1&token=***'
        >>> redact("https://b.s3.amazonaws.com/a.jpg?X-Amz-Expires=60&X-Amz-Signature=0a1b")
        'https://b.s3.amazonaws.com/a.jpg?X-Amz-Expires=60&X-Amz-Signature=***'
    """
    return _redact(text, _MAX_DEPTH)


def hide_address(address: str) -> str:
    """Return `SCHEME://***` for an address, whatever it contains."""
    scheme, _, _ = address.partition("://")
    return f"{scheme if _SCHEME.fullmatch(scheme) else HIDDEN}://{HIDDEN}"


def _redact(text: str, depth: int) -> str:
    address = _ADDRESS.match(text) is not None
    login = _find_login(text, address)
    spans = [login] if login else []
    # Skip only an unambiguous login; an ambiguous one may be the value of a parameter.
    is_clear = login and not re.search(r"[/?#\s\\]", text[slice(*login)])
    start = login[1] if login and is_clear else 0
    spans += _find_parameters(text, start, address)
    spans += _find_tokens(text)
    spans += _find_path_logins(text, start)
    if address and "%" in text:
        path = _PATH.search(text, max(start, text.index("://") + 3))
        spans += _find_encoded(text, path.end(), depth) if path else []
    parts: list[str] = []
    shown = 0
    hidden = -1
    for begin, end in sorted(spans):
        if begin > hidden:
            parts += [text[shown:begin], HIDDEN]
        shown = hidden = max(hidden, end)
    return "".join([*parts, text[shown:]])


def _find_path_logins(text: str, start: int) -> Iterator[Span]:
    """Find logins and keys in the path of a video server's address."""
    server = _VIDEO.match(text)
    if server is None:
        return
    begin = max(start, server.end())
    yield from (found.span() for found in _PATH_LOGIN.finditer(text, begin))
    if server[1].lower() == "rtmp" and (key := _STREAM_KEY.search(text, begin)):
        yield key.span()


def is_ambiguous(address: str) -> bool:
    """Return whether an `@` after the host may end a password that was not percent-encoded.

    By RFC 3986, the host of `http://me:se@cret/x@host/` is `cret`, a part of the intended password.
    Such an address must not be resolved.
    """
    rest = address.partition("://")[2]
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    return "@" in rest[len(authority) :] and not _PLAIN_AUTHORITY.fullmatch(authority)


def _find_login(text: str, address: bool) -> Span | None:
    """Find the text between `://` and the last `@`: a password may contain any character."""
    at = text.rfind("@")
    found_at = _INNER_AT.match(text)
    inner_at = found_at.start(1) if found_at else -1
    start = 0
    while (found := text.find("://", start)) >= 0:
        begin = found + 3
        if at < begin:
            return None
        web = _WEB.search(text, start, found) is not None
        if not (address and web and _is_without_login(text, begin, inner_at >= begin)):
            return begin, at
        # Another address may follow in the path, as with a proxy.
        start = begin
    return None


def _is_without_login(text: str, begin: int, has_inner_at: bool) -> bool:
    """Return whether every `@` of a web address belongs to its path or query.

    Args:
        text: contains the address.
        begin: where the host starts, or the user name before it.
        has_inner_at: whether an `@` after `begin` does not start a path segment.
    """
    path = _PATH.search(text, begin)
    plain = _PLAIN_AUTHORITY.fullmatch(text, begin, path.start() if path else len(text))
    if not plain:
        return False
    if plain["port"] is None or plain["host"].startswith("[") or "." in plain["host"]:
        return True
    # me:12/3@host: a port, or the start of a password. An @ of a path starts a path segment.
    return plain["host"] == "localhost" or not has_inner_at


def _find_tokens(text: str) -> Iterator[Span]:
    for match in _DOTTED.finditer(text):
        begin = text.find(_JWT_START, *match.span())
        if 0 <= begin <= match.end() - _MIN_JWT_CHARACTERS:
            yield begin, match.end(2)
    for match in _BOT_TOKEN.finditer(text):
        yield match.span()


def _find_parameters(text: str, start: int, address: bool) -> Iterator[Span]:
    name, end = "", start
    query = text.find("?", start) if address else -1
    for token in _TOKEN.finditer(text, start):
        if token.start() < end:
            continue
        word = token[0]
        if word != "=":
            if not word.isspace():
                name = word if len(word) > 1 or word.isalnum() else ""
            continue
        if name and _is_secret(name, in_query=0 <= query < token.start()):
            end = _end_of_value(text, token.end(), address)
            yield token.end(), end
        name = ""


def _end_of_value(text: str, begin: int, address: bool) -> int:
    if address:
        # An address contains no spaces, so text after a space is a value that was not encoded.
        end = text.find("&", begin)
        return len(text) if end < 0 else end
    value = _VALUE.match(text, begin)
    assert value
    return value.end()


def _is_secret(name: str, in_query: bool) -> bool:
    name = _decode(name).lower()
    if in_query and name in _QUERY_NAMES:
        return True
    return name.strip("[]") in _NAMES or any(word in name for word in _WORDS)


def _find_encoded(text: str, start: int, depth: int) -> Iterator[Span]:
    """Yield parameters and paths that contain an encoded address or parameters with credentials."""
    for piece in _PIECE.finditer(text, start):
        if "%" not in piece[0]:
            continue
        value = piece[0].find("=") + 1
        decoded = _decode(piece[0][value:])
        if decoded == piece[0][value:]:
            continue
        # Encoded text is hidden where redaction would take too many steps.
        if not depth or _redact(decoded, depth - 1) != decoded:
            yield piece.start() + value, piece.end()


def _decode(text: str) -> str:
    """Decode text that was percent-encoded up to three times."""
    for _ in range(3):
        text = unquote(text)
    return text
