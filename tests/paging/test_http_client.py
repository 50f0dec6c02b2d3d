"""A request ends when it should, stays within its size, goes where it should, and there are no more than allowed."""

from __future__ import annotations

import gzip
import tracemalloc
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from owm_outbox.paging.client import Client, RequestFailed

from support.commands import run
from support.misbehaving import (
    CERTIFICATE,
    PATIENCE,
    Exchange,
    Misbehaving,
    Reply,
    body,
    chunked,
    good,
    gzip_bomb,
    hang,
    huge,
    misbehaving,
    raw,
    reset,
    slow,
    status,
    together,
    trickling_body,
    trickling_header,
    trickling_without_length,
    truncated,
)
from support.servers import free_port
from support.weather import made_up

TOKEN = "hush-4f1e"  # noqa: S105 - of no server
MEBIBYTE = 2**20


@pytest.fixture
def service() -> Iterator[Misbehaving]:
    """Serve some cities."""
    with misbehaving(made_up(250)) as service:
        yield service


def _client(
    *, token: str | None = None, timeout: float = PATIENCE, max_body: int = MEBIBYTE, connections: int = 1
) -> Client:
    return Client(token=token, timeout=timeout, max_body=max_body, connections=connections)


def _get(client: Client, service: Misbehaving, page: int = 0) -> bytes:
    return client.get(f"{service.url}/cities/", {"page": page, "limit": 100}).body


def _refused(service: Misbehaving, **options: object) -> RequestFailed:
    """Return the error of a request, after checking that it is one line that names the request."""
    with closing(_client(**options)) as client, pytest.raises(RequestFailed) as caught:  # type: ignore[arg-type]
        _get(client, service)
    message = str(caught.value)
    assert message.startswith(f"{service.url}/cities/?page=0&limit=100 ")
    assert message.isprintable(), "it may break a line, or tell a terminal what to do"
    return caught.value


# -- answers


@pytest.mark.parametrize(
    "reply",
    [good, chunked, body(gzip.compress, Content_Encoding="gzip"), slow(0.05)],
    ids=["plain", "chunked", "gzip", "slow"],
)
def test_a_body_is_returned_whole(reply: Reply, service: Misbehaving) -> None:
    """However a 200 answer is packed, its body is returned as the API made it."""
    service.misbehave(reply, 1)
    with closing(_client()) as client:
        found = _get(client, service, page=1)
    assert found == service.body(service.requests[0])
    assert service.requests[0].path == "/cities/?page=1&limit=100"


def test_what_comes_before_an_answer_is_passed_over(service: Misbehaving) -> None:
    """Informational answers, such as 103 Early Hints, are not the answer."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"

    def hinted(exchange: Exchange) -> None:
        exchange.write(b"HTTP/1.1 100 Continue\r\n\r\n" + 2 * hints + b"HTTP/1.1 102 Processing\r\n\r\n")
        good(exchange)

    service.misbehave(hinted)
    with closing(_client()) as client:
        assert _get(client, service) == _get(client, service) == service.body(service.requests[0])


def test_a_byte_order_mark_is_ignored(service: Misbehaving) -> None:
    """RFC 8259 forbids writing one, and allows readers to ignore it."""
    service.misbehave(body(lambda content: b"\xef\xbb\xbf" + content))
    with closing(_client()) as client:
        assert _get(client, service) == service.body(service.requests[0])


def test_cookies_are_not_kept(service: Misbehaving) -> None:
    """Each request stands alone, and what an API sets does not pile up."""
    service.misbehave(lambda exchange: exchange.send(200, exchange.good(), Set_Cookie="session=1; Path=/"))
    with closing(_client()) as client:
        for _ in range(3):
            _get(client, service)
        assert len(client._session.cookies) == 0
    assert [request.headers.get("Cookie") for request in service.requests] == [None] * 3


def test_a_link_to_the_next_page_is_returned(service: Misbehaving) -> None:
    """It is what the header says; without one there is none."""
    service.misbehave(status(200, b"[]", Link='<?page=7>; title="a, b"; rel="next", </>; rel=first'), 0)
    with closing(_client()) as client:
        assert client.get(f"{service.url}/", {"page": 0}).next == "?page=7"
        assert client.get(f"{service.url}/", {"page": 1}).next is None


@pytest.mark.parametrize("code", [201, 204, 206, 304, 400, 401, 403, 404, 410, 418, 429, 500, 502, 503, 504, 599])
def test_only_200_is_an_answer(code: int, service: Misbehaving) -> None:
    """Any other status is a failure that names it; where configuration may be wrong, it says what to check."""
    service.misbehave(status(code, b"[]" if code not in (204, 304) else b""))
    error = _refused(service)
    assert f"answered {code}" in str(error)
    assert error.fix == {401: "the API token", 403: "the API token", 404: "the API's address"}.get(code)
    assert not error.unreachable


@pytest.mark.parametrize(
    "reply",
    [
        reset,
        truncated,
        raw(b""),
        raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
        raw(b"\x1b[2J\x07\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 200 + b"\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n[]"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n[]"),
        body(b"[]", Content_Encoding="gzip"),
    ],
    ids=[
        "reset",
        "truncated",
        "nothing",
        "not HTTP",
        "a terminal's commands",
        "a header too long",
        "too many headers",
        "two lengths",
        "a chunk of no size",
        "not gzip",
    ],
)
def test_an_answer_that_cannot_be_read_is_a_failure(reply: Reply, service: Misbehaving) -> None:
    """What breaks off or is not HTTP fails in one line that says why."""
    service.misbehave(reply)
    assert "cannot be read (" in str(_refused(service))


def test_what_a_server_says_about_itself_is_shown_as_text(service: Misbehaving) -> None:
    """A reason that is made to upset a terminal or a log does not get there as it is."""
    service.misbehave(raw(b"HTTP/1.1 500 \x1b[2JAll is\rwell\r\nContent-Length: 0\r\n\r\n"))
    assert "answered 500" in str(_refused(service))


def test_no_answer_is_told_from_a_bad_one(service: Misbehaving) -> None:
    """A failure says whether anybody answered at all."""
    url = f"http://127.0.0.1:{free_port()}/"
    with closing(_client()) as client, pytest.raises(RequestFailed, match="Connection refused") as caught:
        client.get(url, {})
    assert caught.value.unreachable
    service.misbehave(status(500))
    assert not _refused(service).unreachable


def test_a_connection_that_broke_is_replaced(service: Misbehaving) -> None:
    """After a failure of any kind the same client continues with a new connection."""
    for reply in (reset, truncated, hang, trickling_body, status(500)):
        service.misbehave(reply, times=1)
    with closing(_client(timeout=0.3)) as client:
        for _ in range(5):
            with pytest.raises(RequestFailed):
                _get(client, service)
        assert _get(client, service) == _get(client, service)


# -- TLS


@pytest.fixture
def secure() -> Iterator[Misbehaving]:
    """Serve some cities over TLS."""
    with misbehaving(made_up(250), tls=True) as service:
        yield service


def _trusting(client: Client) -> Client:
    client._session.verify = str(CERTIFICATE)
    return client


def test_tls_is_spoken_and_connections_are_kept(secure: Misbehaving) -> None:
    """Over TLS bodies come as they do without, from several threads, by no more connections than threads."""
    secure.misbehave(together(3), 1)
    connections: set[object] = set()

    def noted(exchange: Exchange) -> None:
        connections.add(exchange.connection)
        good(exchange)

    secure.misbehave(noted, 0)
    with closing(_trusting(_client(connections=3))) as client, ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(lambda _: _get(client, secure), range(50)))) == 1
        assert 1 <= len(connections) <= 3
        assert len(list(pool.map(lambda _: _get(client, secure, 1), range(3)))) == 3
        assert secure.most_at_once == 3


def test_an_untrusted_certificate_is_refused(secure: Misbehaving) -> None:
    """Nothing is sent to a server that cannot show that it is the one in the address; the line says why."""
    assert "certificate verify failed" in str(_refused(secure, token=TOKEN))
    assert secure.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("reply", [hang, trickling_header, trickling_body, trickling_without_length])
@pytest.mark.timeout(30)
def test_a_request_over_tls_ends_at_its_timeout(reply: Reply, secure: Misbehaving) -> None:
    """The timeout ends a request over TLS as it does any other, and the next one is none the worse for it."""
    secure.misbehave(reply, 0)
    with closing(_trusting(_client(timeout=0.75))) as client:
        for _ in range(2):
            with pytest.raises(RequestFailed, match=r" took longer than 0\.75 s$"):
                _get(client, secure)
        assert _get(client, secure, page=1)


# -- deadlines and sizes


@pytest.mark.parametrize("reply", [hang, trickling_header, trickling_body, trickling_without_length])
@pytest.mark.timeout(30)
def test_a_request_ends_at_its_timeout(reply: Reply, service: Misbehaving) -> None:
    """The timeout is for the whole request: neither silence nor bytes that trickle in outlive it."""
    service.misbehave(reply)
    assert str(_refused(service, timeout=0.2)).endswith(" took longer than 0.2 s")


@pytest.mark.timeout(30)
def test_the_timeout_counts_over_redirects(service: Misbehaving) -> None:
    """A redirect does not start the time again."""
    service.misbehave(status(302, Location="/slowly"), 0)
    service.misbehave(trickling_body)
    assert "took longer than 0.2 s" in str(_refused(service, timeout=0.2))


@pytest.mark.parametrize("reply", [huge(20 * MEBIBYTE), gzip_bomb(20 * MEBIBYTE)], ids=["huge", "gzip bomb"])
def test_a_body_beyond_the_limit_is_refused(reply: Reply, service: Misbehaving) -> None:
    """A body larger than the limit, also one that only unpacks to more, is refused, and never held in memory."""
    service.misbehave(reply)
    tracemalloc.start()
    try:
        error = _refused(service)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(error).endswith(" gives more than 1,048,576 bytes; a lower --api-limit may help")
    assert peak < 8 * MEBIBYTE


def test_the_limit_itself_is_allowed(service: Misbehaving) -> None:
    """A body of just so many bytes is taken; one more is too many."""
    service.misbehave(body(b"x" * 1000), 0)
    service.misbehave(body(b"x" * 1001), 1)
    with closing(_client(max_body=1000)) as client:
        assert len(_get(client, service)) == 1000
        with pytest.raises(RequestFailed, match="more than 1,000 bytes"):
            _get(client, service, page=1)


# -- where requests go


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_within_the_host_is_followed(code: int, service: Misbehaving) -> None:
    """A redirect to another place of the same host is followed, relative or not, with the token."""
    service.misbehave(status(code, Location="/moved?page=1&limit=100"), 0)
    service.misbehave(status(code, Location=f"{service.url}/again?page=2&limit=100"), 1)
    with closing(_client(token=TOKEN)) as client:
        assert _get(client, service) == service.body(service.requests[-1])
    assert [request.path for request in service.requests] == [
        "/cities/?page=0&limit=100",
        "/moved?page=1&limit=100",
        "/again?page=2&limit=100",
    ]
    assert {request.headers["Authorization"] for request in service.requests} == {f"Bearer {TOKEN}"}


def test_a_redirect_elsewhere_is_not_followed(service: Misbehaving) -> None:
    """Another host, another port and what is not HTTP get no request, let alone the token."""
    with misbehaving(made_up(1)) as other:
        for target in (
            f"{other.url}/cities/",
            f"//127.0.0.1:{other.server_address[1]}/cities/",
            f"http://localhost:{service.server_address[1]}/cities/",
            "file:///etc/passwd",
        ):
            service.misbehave(status(302, Location=target), times=1)
            error = _refused(service, token=TOKEN)
            assert "redirects to " in str(error)
            assert "another host" in str(error)
            assert TOKEN not in str(error)
        assert other.requests == []
    assert len(service.requests) == 4


@pytest.mark.parametrize("target", ["", "/cities/?page=0&limit=100"])
def test_a_redirect_in_a_circle_is_given_up(target: str, service: Misbehaving) -> None:
    """A redirect to itself is followed five times and no more."""
    service.misbehave(status(302, Location=target))
    assert str(_refused(service)).endswith("redirects more than 5 times")
    assert len(service.requests) == 6


@pytest.mark.parametrize("target", ["http://[::1", "http://:99999999/"])
def test_a_redirect_without_sense_fails(target: str, service: Misbehaving) -> None:
    """A redirect to what is not an address cannot be read, and is not followed."""
    service.misbehave(status(302, Location=target))
    assert "cannot be read (" in str(_refused(service))
    assert len(service.requests) == 1


def test_the_token_is_a_bearer(service: Misbehaving) -> None:
    """The token is sent as it is, as bearer; without one there is no such header."""
    with closing(_client(token=TOKEN)) as client, closing(_client()) as without:
        _get(client, service)
        _get(without, service)
    assert [request.headers.get("Authorization") for request in service.requests] == [f"Bearer {TOKEN}", None]


@pytest.mark.parametrize(
    ("token", "header"), [(None, f"Basic {b64encode(b'ada:love').decode()}"), (TOKEN, f"Bearer {TOKEN}")]
)
def test_a_user_in_the_address_is_sent_unless_there_is_a_token(
    token: str | None, header: str, service: Misbehaving
) -> None:
    """User and password in the address are basic authentication, also after a redirect; a token goes before them."""
    service.misbehave(status(302, Location=f"{service.url}/cities/?page=1&limit=100"), 0)
    with closing(_client(token=token)) as client:
        client.get(f"{service.url.replace('//', '//ada:love@')}/cities/", {"page": 0, "limit": 100})
    assert [(request.page, request.headers.get("Authorization")) for request in service.requests] == [
        (0, header),
        (1, header),
    ]


@pytest.mark.parametrize("token", [None, TOKEN])
def test_ignores_proxy_and_netrc_of_the_environment(
    token: str | None, service: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies and a .netrc that the environment names are not used."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password hunter2\ndefault login anybody password hunter2\n")
    netrc.chmod(0o600)
    with misbehaving(made_up(1)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(netrc))
        with closing(_client(token=token)) as client:
            _get(client, service)
        assert proxy.requests == []
    assert [request.headers.get("Authorization") for request in service.requests] == [token and f"Bearer {token}"]


@pytest.mark.slow
def test_the_token_is_not_printed(service: Misbehaving, tmp_path: Path) -> None:
    """A run that fails in several ways shows the token nowhere, however much it logs."""
    service.misbehave(status(302, Location="http://127.0.0.2/"), 0, times=4)
    service.misbehave(status(401))
    outcome = run(
        "owm-producer",
        *("--api-url", service.url, "--outbox", f"sqlite:///{tmp_path}/tasks.db", "--sink", f"jsonl:{tmp_path}/out"),
        *("--retry-wait", "0.001", "--log-level", "debug", "--json"),
        env={"OWM_API_TOKEN": TOKEN},
    )
    assert outcome.code == 78
    assert "check the API token" in outcome.err
    assert {request.headers["Authorization"] for request in service.requests} == {f"Bearer {TOKEN}"}
    assert TOKEN not in outcome.out + outcome.err
    assert all(TOKEN.encode() not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN}\r\nX-Evil: 1", f"{TOKEN}密"])
def test_a_token_that_fits_no_header_is_a_configuration_error(token: str, service: Misbehaving, tmp_path: Path) -> None:
    """A token with a line break or a foreign letter ends with 78 and a line about the token, which it does not show."""
    outcome = run(
        "owm-producer",
        *("--api-url", service.url, "--outbox", f"sqlite:///{tmp_path}/tasks.db", "--sink", f"jsonl:{tmp_path}/out"),
        *("--retry-wait", "0.001"),
        env={"OWM_API_TOKEN": token},
    )
    assert TOKEN not in outcome.out + outcome.err
    assert (outcome.code, service.requests) == (78, [])
    assert "token" in outcome.line.lower()


# -- Retry-After


@pytest.mark.parametrize("code", [429, 503, 500])
@pytest.mark.parametrize("header", ["7", " 7 "])
def test_retry_after_may_be_seconds(header: str, code: int, service: Misbehaving) -> None:
    """Seconds are understood, whatever the status."""
    service.misbehave(status(code, Retry_After=header))
    assert _refused(service).retry_after == 7.0


@pytest.mark.parametrize("utc", ["GMT", "+0000"])
def test_retry_after_may_be_a_date(utc: str, service: Misbehaving) -> None:
    """A date is understood as the seconds that are left until then."""
    moment = datetime.now(UTC) + timedelta(seconds=30)
    service.misbehave(status(503, Retry_After=format_datetime(moment, usegmt=True).replace("GMT", utc)))
    wait = _refused(service).retry_after
    assert wait is not None
    assert 0 < wait <= 30


@pytest.mark.parametrize(
    "header",
    [
        "0",
        "-5",
        "",
        "soon",
        "nan",
        "inf",
        "1e999",
        "0x10",
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "7.0",
        "Wed, 21 Oct 99999 07:28:00 GMT",
        "Wed, 21 Oct 2099 07:28:00 +99999999999999999999",
    ],
)
def test_a_retry_after_without_sense_counts_as_none(header: str, service: Misbehaving) -> None:
    """Zero, the past, and what is no number and no date are as if the header was not there."""
    service.misbehave(status(503, Retry_After=header))
    assert _refused(service).retry_after is None


# -- close


@pytest.mark.parametrize("reply", [hang, trickling_body], ids=["hang", "trickle"])
def test_close_ends_requests_under_way(reply: Reply, service: Misbehaving) -> None:
    """A request that is under way when the client is closed fails then, not at its timeout."""
    service.misbehave(reply)
    client = _client(timeout=1000 * PATIENCE)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(_get, client, service) for _ in range(4)]
        service.wait_for(lambda service: len(service.requests) == 4)
        client.close()
        assert {type(call.exception(PATIENCE)) for call in calls} == {RequestFailed}
