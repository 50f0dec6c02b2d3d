"""What waiting does not fix ends with 78 and one line that says what to write; what it does fix, with 75."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from owm_outbox import Batch, ConfigurationError, Entry, Mark, SinkUnavailable
from owm_outbox.plugins import open_sink

from support.commands import run
from support.producer import Producer
from support.redis_cluster import SERVICE, Guarded, ask, until, watching
from support.servers import Server, binaries, free_port, running
from support.streams import length
from support.tls import Authority, tls_before

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
(SENTINEL_RULE,) = re.findall(r"^ACL SETUSER owm-sentinel on >PASSWORD (.+)$", PAGE, re.MULTILINE)
KINDS = pytest.mark.parametrize("binary", [pytest.param(path, id=name) for name, path in sorted(binaries().items())])
SECRET = "hunter2"  # noqa: S105 - what must not be shown


def _says(url: str, *, because: type[Exception] = ConfigurationError) -> str:
    with open_sink(url) as sink, pytest.raises(because) as caught:
        sink.mark("box")
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://h1:1,h2:2/0?service=m", "needs stream=NAME, such as redis+sentinel://"),
        ("redis+sentinel://h1:1,h2:2/0?stream=s", "needs service=NAME"),
        ("redis+sentinel://h1:1,h2:2/0?stream=s&service=", "service="),
        ("redis+sentinel:///0?stream=s&service=m", "has no host; write redis+sentinel://host:26379,host:26379/0?"),
        ("redis+sentinel://h1:1,/0?stream=s&service=m", "one of its hosts has no name"),
        ("redis+sentinel://h1:1,h2:99999/0?stream=s&service=m", "a port that is not valid"),
        ("redis+sentinel://h1/0?stream=s&service=m&ssl_ca_certs=x", "write rediss+sentinel://"),
        ("redis+sentinel://h1/0?stream=s&service=m&sentinel_pasword=hunter2", "did you mean 'sentinel_password'?"),
        ("redis+sentinel://h1/zero?stream=s&service=m", "the path is the number of a database"),
        ("redis+sentinel://h1/0?service=m&sentinel_password=hunter2", "sentinel_password=***"),
    ],
)
def test_a_wrong_url_is_refused_without_connecting(url: str, says: str) -> None:
    """A mistake in the URL is named, with what to write instead, and without passwords."""
    with pytest.raises(ConfigurationError, match=re.escape(says)) as caught:
        open_sink(url)
    assert SECRET not in str(caught.value)


def test_an_unknown_service(servers: Guarded, stream: str) -> None:
    """Sentinels that answer, but do not know the name, say which they know."""
    line = _says(servers.url(stream).replace(f"service={SERVICE}", "service=taks"))
    assert line.endswith(f"no Sentinel knows the service 'taks' (known: {SERVICE}): check service=")


def test_another_database(servers: Guarded, producer: Producer, stream: str) -> None:
    """The path is the database on the servers, not on the Sentinels."""
    report = producer.run(servers.url(stream).replace("/0?", "/3?"))
    assert report.complete
    assert ask(servers.primary, "INFO", "keyspace").count(b"db3:keys=2") == 1


@KINDS
def test_a_plain_server_given_as_a_sentinel(binary: str, tmp_path: Path, stream: str) -> None:
    """A server that does not know SENTINEL is refused at once."""
    with running(binary, tmp_path / "plain") as server:
        line = _says(f"redis+sentinel://{server.address}/0?service=m&stream={stream}")
    assert "this is not a Sentinel" in line
    assert line.endswith("write the port of one (26379), or remove +sentinel from the URL")


def test_a_sentinel_given_as_a_plain_server(servers: Guarded, stream: str) -> None:
    """A Sentinel has no streams: it does not know the commands."""
    assert "the server does not know a command" in _says(servers.sentinels[0].url(stream).replace("/0?", "?"))


def test_no_sentinel_can_be_reached(stream: str) -> None:
    """That passes by itself: 75."""
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:2/0?service={SERVICE}&stream={stream}&retries=0"
    assert "try again later" in _says(url, because=SinkUnavailable)


def test_there_is_no_primary_now(tmp_path: Path, stream: str) -> None:
    """Sentinels that know the name, but see the primary down: 75."""
    with watching(tmp_path, f"127.0.0.1:{free_port()}") as (sentinel,):
        until(lambda: b"s_down" in b" ".join(ask(sentinel, "SENTINEL", "MASTER", SERVICE)))
        url = f"redis+sentinel://{sentinel.address}/0?service={SERVICE}&stream={stream}&retries=0"
        assert "No master found for" in _says(url, because=SinkUnavailable)


def test_a_sentinel_with_tls(servers: Guarded, tmp_path: Path, stream: str) -> None:
    """A port with TLS is named, and so is one without where TLS was asked for."""
    authority, plain = Authority(tmp_path), servers.sentinels[0]
    with tls_before(plain.port, authority.certificate("sentinel")) as tunnel:
        options = f"service={SERVICE}&stream={stream}"
        assert _says(f"redis+sentinel://{tunnel.address}/0?{options}").endswith(
            "this port speaks TLS: write rediss+sentinel://, or another port"
        )
        assert "certificate is not accepted" in _says(f"rediss+sentinel://{tunnel.address}/0?{options}")
        options += f"&ssl_ca_certs={authority.file}&socket_timeout=0.5"
        assert _says(f"rediss+sentinel://{plain.address}/0?{options}").endswith(
            "this port does not speak TLS: write redis+sentinel://, or another port"
        )


def test_tls_on_the_whole_way(tmp_path: Path, stream: str) -> None:
    """Sentinel and primary are spoken to with TLS; the primary is known by the port that speaks it."""
    authority = Authority(tmp_path)
    certificate = authority.certificate("both")
    calm = f"sentinel down-after-milliseconds {SERVICE} 60000"  # this Sentinel itself does not speak it
    with (
        running(binaries()["valkey"], tmp_path / "server") as server,
        tls_before(server.port, certificate) as of_server,
        watching(tmp_path, of_server.address, 1, calm) as (sentinel,),
        tls_before(sentinel.port, certificate) as of_sentinel,
    ):
        options = f"service={SERVICE}&stream={stream}&ssl_ca_certs={authority.file}"
        with open_sink(f"rediss+sentinel://{of_sentinel.address}/0?{options}") as sink:
            assert sink.mark("box") == ""
            sink.send(Batch("box", Mark(""), [Entry(1, "a", b"{}")], Mark("1 lease a")))
        assert length(server, stream) == 1


# -- users


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Run a server and a Sentinel, each with a user of its own."""
    auth = f"sentinel auth-pass {SERVICE} for-server"
    with running(binaries()["valkey"], tmp_path / "server") as server:
        ask(server, "CONFIG", "SET", "requirepass", "for-server")
        with watching(tmp_path, server.address, 1, auth) as (sentinel,):
            ask(sentinel, "ACL", "SETUSER", "owm-sentinel", "on", ">for-sentinel", *SENTINEL_RULE.split())
            ask(sentinel, "ACL", "SETUSER", "default", "resetpass", ">admin")
            yield server, sentinel


def _url(sentinel: Server, stream: str, **options: object) -> str:
    query = "".join(f"&{name}={value}" for name, value in options.items())
    return f"redis+sentinel://:for-server@{sentinel.address}/0?service={SERVICE}&stream={stream}{query}"


def test_a_user_of_the_sentinels_own(guarded: tuple[Server, Server], stream: str) -> None:
    """With the page's rule, a user of the Sentinel may do all that is needed there."""
    _, sentinel = guarded
    with open_sink(
        _url(sentinel, stream, sentinel_username="owm-sentinel", sentinel_password="for-sentinel")  # noqa: S106 - a test's
    ) as sink:
        assert sink.mark("box") == ""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sentinel_password": ""},
        {"sentinel_password": SECRET},
        {"sentinel_username": "owm-sentinel", "sentinel_password": SECRET},
    ],
)
def test_a_wrong_password_of_the_sentinels(
    guarded: tuple[Server, Server], stream: str, options: dict[str, str]
) -> None:
    """It is refused at once, the Sentinel is named, and the password is not shown."""
    _, sentinel = guarded
    line = _says(_url(sentinel, stream, **options))
    assert f"the Sentinel at {sentinel.address} refuses us" in line
    assert "set sentinel_username= and sentinel_password=" in line


def test_a_right_that_the_user_of_the_sentinels_lacks(guarded: tuple[Server, Server], stream: str) -> None:
    """The command is named."""
    _, sentinel = guarded
    with redis.Redis("127.0.0.1", sentinel.port, password="admin") as client:  # noqa: S106 - a test's
        client.execute_command("ACL", "SETUSER", "owm-sentinel", "-sentinel|masters")
    options = {"sentinel_username": "owm-sentinel", "sentinel_password": "for-sentinel"}
    line = _says(_url(sentinel, stream, **options))
    assert "'sentinel|masters'" in line


def test_sentinels_without_a_password(tmp_path: Path, stream: str) -> None:
    """An empty ``sentinel_password=`` keeps the servers' password from Sentinels that have none."""
    auth = f"sentinel auth-pass {SERVICE} for-server"
    with running(binaries()["valkey"], tmp_path / "server") as server:
        ask(server, "CONFIG", "SET", "requirepass", "for-server")
        with (
            watching(tmp_path, server.address, 1, auth) as (sentinel,),
            open_sink(_url(sentinel, stream, sentinel_password="")) as sink,
        ):
            assert sink.mark("box") == ""


# -- owm-outbox check


def test_check_runs_the_contract(servers: Guarded, stream: str, tmp_path: Path) -> None:
    """``check sink`` keeps every promise behind Sentinels, and leaves nothing there."""
    outcome = run("owm-outbox", "check", "sink", servers.url(stream), cwd=tmp_path, timeout=100)
    assert (outcome.code, outcome.err) == (0, ""), outcome.out
    assert "FAIL" not in outcome.out
    assert ask(servers.primary, "DBSIZE") == 0
