"""No credential in an address is shown."""

from __future__ import annotations

import string
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ffd_runtime.core.errors import InputError
from ffd_runtime.core.redact import MAX_ADDRESS_CHARACTERS, is_ambiguous, redact
from ffd_runtime.inputs import FetchPolicy, find_files
from ffd_runtime.inputs.urls import fetch

from ..nightly import examples

MARK = "Hunter2"
# Parameters with credentials, in pre-signed addresses, sessions and cameras.
PARAMETERS = (
    "X-Amz-Signature X-Amz-Credential X-Amz-Security-Token X-Goog-Signature X-Goog-Credential sig "
    "token key access_token refresh_token id_token auth authkey password passwd pwd pass pw user "
    "AWSAccessKeyId GoogleAccessId OSSAccessKeyId Signature Policy Key-Pair-Id apikey api_key "
    "X-API-Key client_secret subscription-key jwt session PHPSESSID jsessionid sid ticket hdnts "
    "hmac bearer credentials secret authorization code otp pin q-signature security-token rlkey "
    "tempauth SAMLResponse hm loginuse loginpas csrf private_token passphrase psk pat sas sgn tk "
    "q-ak"
).split()
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
schemes = st.sampled_from(["http", "https", "HTTPS", "rtsp", "srt", "ftp", "rtmps"])


@settings(max_examples=examples(300))
@given(schemes, anything, anything, st.sampled_from(["h", "a.example", "10.0.0.5", "[::1]"]))
@example("http", "u", "se@", "host")
@example("http", "u", "se@cret/x", "host")
@example("http", "u", "12/", "host")
@example("http", "u:", "/", "host")
@example("http", "u", "a@b/../", "host")
@example("http", "u", "a://b@c/", "host")
@example("http", "u@x.org", "#?/", "host")
@example("rtsp", "u", "?token=", "host")
def test_no_password_is_shown_wherever_at_signs_and_slashes_are(
    scheme: str, user: str, password: str, host: str
) -> None:
    # By RFC 3986, a/b is a host and a path, and me.x:12/3@host has a host, a port and a path.
    assume(not set(user) & set("/?#.[") and user.lower() != "localhost")
    for address in (
        f"{scheme}://{user}:{password}{MARK}@{host}/a.jpg",
        f"{scheme}://{user}:{MARK}{password}@{host}:8080/a.jpg?x=1",
    ):
        shown = redact(address)
        assert MARK not in shown
        assert redact(shown) == shown


@settings(max_examples=examples(300))
@given(
    st.sampled_from(PARAMETERS),
    anything,
    st.sampled_from(
        [
            "https://h.example/a.jpg?{0}={1}",
            "https://h.example/a.jpg?w=1&{0}={1}&z=2",
            "https://h.example/a.jpg?w=1;{0}={1}",
            "https://h.example/{0}={1}/a.jpg",
            "https://h.example/a;{0}={1}",
            "https://h.example/a.jpg#{0}={1}",
            "https://me:pw@h.example/a.jpg?{0}={1}",
            "rtsp://h.example/live?{0}={1}&channel=1",
            "https://proxy.example/fetch/https://h.example/a.jpg?{0}={1}",
            "gst source=https://h.example/x?{0}='{1}' ! sink",
        ]
    ),
    st.booleans(),
)
def test_no_secret_parameter_is_shown(name: str, value: str, form: str, upper: bool) -> None:
    assume("&" not in value and "'" not in value and "\\" not in value)
    name = name.upper() if upper else name
    for spelled in (name, name.replace("-", "%2D"), f"%{ord(name[0]):02x}{name[1:]}"):
        address = form.format(spelled, value + MARK)
        shown = redact(address)
        assert MARK not in shown
        assert redact(shown) == shown
        # An unencoded @ may end a password.
        assert "@" in value or shown == redact(form.format(spelled, "Other" + MARK))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        # Video recorders.
        ("rtsp://10.0.0.5:554/0/admin:SECRET/main", "rtsp://10.0.0.5:554/0/***/main"),
        ("rtsp://10.0.0.5/live/0/MAIN/admin:SECRET", "rtsp://10.0.0.5/live/0/MAIN/***"),
        ("rtsp://me:pw@10.0.0.5/0/admin:SECRET?x=1", "rtsp://***@10.0.0.5/0/***?x=1"),
        # The key of a broadcast.
        ("rtmp://a.example/live2/SECRET-KEY", "rtmp://a.example/live2/***"),
        ("rtmps://a.example:443/app/SECRET/?x=1", "rtmps://a.example:443/app/***/?x=1"),
        ("rtsp://10.0.0.5:554/live/ch1", "rtsp://10.0.0.5:554/live/ch1"),
        ("http://h.example/a:b/c.jpg", "http://h.example/a:b/c.jpg"),
    ],
)
def test_logins_in_the_path_of_a_video_server_are_hidden(address: str, shown: str) -> None:
    assert redact(address) == shown
    assert redact(shown) == shown


@given(
    st.sampled_from(["u", "p", "s", "st", "secure", "verify", "S", "%73"]),
    st.sampled_from(["https://h.example/a.jpg?{}={}", "http://10.0.0.9/a?x=1&{}={}&y=2"]),
    st.text(string.ascii_letters + "/+=", max_size=8),
)
def test_no_secret_parameter_with_a_short_name_is_shown(name: str, form: str, value: str) -> None:
    assert redact(form.format(name, value + MARK)) == form.format(name, "***")


@given(
    st.sampled_from(["https://u:{}@h.example/a.jpg", "https://h.example/a.jpg?w=1&sig={}"]),
    st.text(string.ascii_letters + "/+=", max_size=8),
    st.integers(1, 3),
    st.sampled_from(["https://proxy.example/?w=3&url={}&z=1", "https://proxy.example/get/{}"]),
)
def test_an_encoded_address_in_an_address_is_hidden(
    inner: str, secret: str, times: int, outer: str
) -> None:
    address = inner.format(secret + MARK)
    for _ in range(times):
        address = quote(address, safe="")
    shown = redact(outer.format(address))
    assert MARK not in shown
    assert shown.startswith("https://proxy.example/")


@pytest.mark.parametrize(
    "text",
    [
        "https://h.example/photos/12345@N00/face@2x.jpg?size=3&name=a%20b",
        "http://localhost:8080/face@2x.jpg",
        "http://h:80/@me/a",
        "http://[::1]:80/@me",
        "https://h.example/caf%C3%A9/%E5%86%99.jpg?w=10&h=20",
        "https://web.archive.example/web/2020/https://h.example/12@N00/a.jpg",
        "a@b.jpg",
        "day=12/user.jpg",
        "s3://bucket.example/p=1/s=2/a.jpg",
        "rtsp://camera.example:554/Streaming/Channels/101?transport=tcp",
        "",
    ],
)
def test_text_without_credentials_is_unchanged(text: str) -> None:
    assert redact(text) == text


def test_a_web_token_is_hidden_anywhere() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
    assert redact(f"https://h.example/{token}/a.jpg") == "https://h.example/***/a.jpg"
    bot = "https://api.telegram.example/file/bot{}/photos/a.jpg"
    assert redact(bot.format("123456:AA-bb_cc")) == bot.format("***")


def test_a_long_text_is_redacted_quickly() -> None:
    text = "http://h/?" + "key=" * 50_000 + "a" * 200_000 + "=" * 50_000
    assert redact(text) == "http://h/?key=***"


def test_deeply_encoded_addresses_are_hidden() -> None:
    inside = "a://b/" * 800 + "%" + "25" * 2405
    assert redact("http://h/" + inside) == "http://h/***"
    address = "https://h.example/?sig=" + MARK
    for _ in range(40):
        address = "https://h.example/" + quote(address, safe="")
    assert redact(address) == "https://h.example/***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h/" + "eyJ" * 200_000, "http://h/" + "eyJ" * 200_000),
        ("eyJ" * 200_000 + ".a", "eyJ" * 200_000 + ".a"),
        ("eyJ" * 200_000 + ".a.b", "***"),
        ("http://h/" + "eyJ0123456789." * 50_000, "http://h/***"),
        ("http://h:1/" * 50_000 + "/@x", "http://h:1/" * 50_000 + "/@x"),
    ],
    ids=range(5),
)
def test_the_effort_for_a_text_grows_with_its_length(text: str, shown: str) -> None:
    # With its square, each of them takes minutes.
    assert redact(text) == shown


def test_a_long_address_is_refused_without_being_shown() -> None:
    longest = "https://h.example/".ljust(MAX_ADDRESS_CHARACTERS, "a")
    found = list(
        find_files(
            [
                longest,
                longest + "a",
                f"HTTPS://me:{MARK}@h.example/" + "b" * MAX_ADDRESS_CHARACTERS,
                f"ftp://me:{MARK}@h.example/" + "%25" * MAX_ADDRESS_CHARACTERS,
                f"password={MARK} " + "c" * MAX_ADDRESS_CHARACTERS + "://h.example/",
                "https://h.example/a.jpg",
            ]
        )
    )
    shown = ["https://***", "HTTPS://***", "ftp://***", "***://***"]
    assert [item.source for item in found] == [longest, *shown, "https://h.example/a.jpg"]
    codes = [item.error.code if item.error else None for item in found]
    assert codes == [None, *["refused"] * 4, None]
    assert MARK not in repr(found)


@pytest.mark.parametrize(
    "address",
    [
        "http://u:se@cret/x@host/a.jpg",
        "http://u:se@cret?x@host/a.jpg",
        "http://u:se@cret#x@host/a.jpg",
        "http://u:sec/ret@host/a.jpg",
        "http://u:/x@host/a.jpg",
        "https://u:cret@cret\\@host/a.jpg",
    ],
)
def test_an_ambiguous_host_is_not_resolved(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *what, **_: asked.append(what))
    with pytest.raises(InputError) as caught:
        fetch(address, FetchPolicy())
    assert caught.value.code == "refused"
    assert "cret" not in str(caught.value)
    assert asked == []


@pytest.mark.parametrize(
    "address", ["http://u:a@b@host/x", "http://host/12@N00/x", "http://h:80/a@2x.jpg", "http://h"]
)
def test_an_unambiguous_address_is_fetched(address: str) -> None:
    assert not is_ambiguous(address)


def test_addresses_that_differ_only_in_a_secret_have_different_names() -> None:
    one, two = (f"https://h.example/a.jpg?token={word}" for word in "AB")
    other = "https://h.example/b.jpg?token=A"
    hidden = "https://h.example/a.jpg?token=***"
    # A repeated address has the same name, like a repeated file.
    for sources in ([one, two, other, one, two], [one, two, other, one, two]):
        found = [item.source for item in find_files(sources)]
        assert found == [hidden, f"{hidden}#2", other[:-1] + "***", hidden, f"{hidden}#2"]
