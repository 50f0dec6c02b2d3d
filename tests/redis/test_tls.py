"""TLS to Redis: right, wrong, missing and expired; what a person has to change ends with 78, at once, and says what."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import URL, ConfigurationError
from owm_outbox_backends.redis_stream import RedisStreamSink

from support.commands import refused, run
from support.producer import FAST, Producer
from support.servers import Server
from support.streams import city_ids
from support.tls import Authority, Tunnel, tls_before
from support.weather import made_up, serving


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    """Give the authority that signs what is right."""
    return Authority(tmp_path, "ours")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    """Give an authority that nobody knows."""
    return Authority(tmp_path, "other")


@pytest.fixture
def plain(server: Server, ours: Authority) -> Iterator[Tunnel]:
    """Give a server with a certificate of our authority, which lets everybody in."""
    with tls_before(server.port, ours.certificate("server")) as tunnel:
        yield tunnel


@pytest.fixture
def mutual(server: Server, ours: Authority) -> Iterator[Tunnel]:
    """Give a server that wants a certificate of ours, too."""
    with tls_before(server.port, ours.certificate("server"), clients=ours.file) as tunnel:
        yield tunnel


def _url(tunnel: Tunnel, stream: str, host: str = "127.0.0.1", **options: object) -> str:
    query = "".join(f"&{name}={value}" for name, value in (FAST | {"socket_timeout": 5} | options).items())
    return f"rediss://{host}:{tunnel.port}/0?stream={stream}{query}"


def _refused(url: str) -> str:
    """Return what a sink says that cannot be used."""
    with RedisStreamSink.from_url(URL(url)) as sink, pytest.raises(ConfigurationError) as caught:
        sink.mark("box")
    return str(caught.value).partition(f"stream '{sink._stream}': ")[2]


# -- the server's certificate


def test_a_private_authority(producer: Producer, server: Server, plain: Tunnel, ours: Authority) -> None:
    """With ``ssl_ca_certs=`` a certificate of a private authority is accepted, and every task is delivered."""
    producer.check_complete(server, producer.run(_url(plain, producer.stream, ssl_ca_certs=ours.file)))


def test_a_private_authority_in_a_folder(
    producer: Producer, server: Server, plain: Tunnel, ours: Authority, tmp_path: Path
) -> None:
    """``ssl_ca_path=`` names a folder whose names are those of ``openssl rehash``; another one is refused at once."""
    folder = tmp_path / "authorities"
    folder.mkdir()
    shutil.copy(ours.file, folder)
    url = _url(plain, producer.stream, ssl_ca_path=folder)
    with pytest.raises(ConfigurationError, match="run openssl rehash"):
        RedisStreamSink.from_url(URL(url))
    digest = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", ours.file], capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / ours.file.name).rename(folder / f"{digest}.0")
    producer.check_complete(server, producer.run(url))


def test_an_unknown_authority(plain: Tunnel, other: Authority, stream: str) -> None:
    """Without the right authority the certificate is refused, after one attempt."""
    for url in (_url(plain, stream), _url(plain, stream, ssl_ca_certs=other.file)):
        plain.connections = 0
        assert _refused(url) == (
            "the server's certificate is not accepted (unable to get local issuer certificate): "
            "set ssl_ca_certs= to a file with the authority that signed it"
        )
        assert plain.connections == 1


def test_an_expired_certificate(server: Server, ours: Authority, stream: str) -> None:
    """A server whose certificate has expired waits for a person to renew it."""
    with tls_before(server.port, ours.certificate("server", expired=True)) as tunnel:
        assert _refused(_url(tunnel, stream, ssl_ca_certs=ours.file)) == (
            "the server's certificate is not accepted (certificate has expired): renew it on the server"
        )
        assert tunnel.connections == 1


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("localhost", "Hostname mismatch, certificate is not valid for 'localhost'"),
        ("127.0.0.1", "IP address mismatch, certificate is not valid for '127.0.0.1'"),
    ],
)
def test_a_certificate_of_another_host(server: Server, ours: Authority, stream: str, host: str, why: str) -> None:
    """A certificate that names another host is refused, unless ``ssl_check_hostname=false`` says otherwise."""
    with tls_before(server.port, ours.certificate("server", "redis.internal")) as tunnel:
        url = _url(tunnel, stream, host, ssl_ca_certs=ours.file)
        assert _refused(url) == (
            f"the server's certificate is not accepted ({why}): write the host in the URL as the certificate has it"
        )
        with RedisStreamSink.from_url(URL(f"{url}&ssl_check_hostname=false")) as sink:
            assert sink.mark("box") == ""


def test_a_certificate_that_is_not_looked_at(plain: Tunnel, stream: str) -> None:
    """``ssl_cert_reqs=none`` takes any certificate."""
    with RedisStreamSink.from_url(URL(_url(plain, stream, ssl_cert_reqs="none", ssl_check_hostname="false"))) as sink:
        assert sink.mark("box") == ""


# -- our certificate


def test_a_certificate_of_ours(producer: Producer, server: Server, mutual: Tunnel, ours: Authority) -> None:
    """With ``ssl_certfile=`` a server that wants a certificate gets one, and every task is delivered."""
    url = _url(mutual, producer.stream, ssl_ca_certs=ours.file, ssl_certfile=ours.certificate("client"))
    producer.check_complete(server, producer.run(url))


def test_an_encrypted_key_of_ours(mutual: Tunnel, ours: Authority, stream: str, tmp_path: Path) -> None:
    """``ssl_password=`` opens an encrypted key; without it, or with a wrong one, nobody is asked at a terminal."""
    whole, key = ours.certificate("client"), tmp_path / "key.pem"
    command = ["openssl", "pkcs8", "-topk8", "-v2", "aes256", "-in", str(whole), "-out", str(key)]
    subprocess.run([*command, "-passout", "pass:open"], check=True, capture_output=True)
    options: dict[str, Any] = {"ssl_ca_certs": ours.file, "ssl_certfile": whole, "ssl_keyfile": key}
    with pytest.raises(ConfigurationError, match=r"the key in .*key\.pem is encrypted: set ssl_password="):
        RedisStreamSink.from_url(URL(_url(mutual, stream, **options)))
    with pytest.raises(ConfigurationError, match=r"the key in .*key\.pem cannot be read with this ssl_password="):
        RedisStreamSink.from_url(URL(_url(mutual, stream, **options, ssl_password="shut")))  # noqa: S106
    with RedisStreamSink.from_url(URL(_url(mutual, stream, **options, ssl_password="open"))) as sink:  # noqa: S106
        assert sink.mark("box") == ""


def test_no_certificate_of_ours(mutual: Tunnel, ours: Authority, stream: str) -> None:
    """A server that wants a certificate of ours is not asked again without one."""
    assert _refused(_url(mutual, stream, ssl_ca_certs=ours.file)) == (
        "no TLS connection (TLSV13_ALERT_CERTIFICATE_REQUIRED): the server wants a certificate of ours: "
        "set ssl_certfile= and ssl_keyfile="
    )


def test_a_certificate_of_ours_from_another_authority(
    mutual: Tunnel, ours: Authority, other: Authority, stream: str
) -> None:
    """A server that does not know the authority of our certificate is not asked again with it."""
    url = _url(mutual, stream, ssl_ca_certs=ours.file, ssl_certfile=other.certificate("client"))
    assert _refused(url) == (
        "no TLS connection (TLSV1_ALERT_UNKNOWN_CA): the server does not know who signed our certificate: "
        "set another ssl_certfile="
    )


def test_a_refusal_that_is_lost_is_asked_for(mutual: Tunnel, ours: Authority, other: Authority, stream: str) -> None:
    """A server that refuses our certificate, but whose alert is lost in a reset, is asked why after one attempt."""
    mutual.losing = 1
    refused = _url(mutual, stream, ssl_ca_certs=ours.file, ssl_certfile=other.certificate("client"), retries=0)
    assert "(TLSV1_ALERT_UNKNOWN_CA): the server does not know who signed our certificate" in _refused(refused)
    assert mutual.connections == 2


def test_a_reset_without_a_refusal_is_an_outage(mutual: Tunnel, ours: Authority, stream: str) -> None:
    """A server that resets a connection, and takes our certificate all the same, is tried again."""
    mutual.losing = 1
    url = _url(mutual, stream, ssl_ca_certs=ours.file, ssl_certfile=ours.certificate("client"), retries=1)
    with RedisStreamSink.from_url(URL(url)) as sink:
        assert sink.mark("box") == ""
    assert mutual.connections == 3  # the one that was lost, the question, the retry


def test_an_expired_certificate_of_ours(mutual: Tunnel, ours: Authority, stream: str) -> None:
    """An expired certificate of ours waits for a person to renew it."""
    expired = ours.certificate("client", expired=True)
    assert _refused(_url(mutual, stream, ssl_ca_certs=ours.file, ssl_certfile=expired)) == (
        "no TLS connection (SSLV3_ALERT_CERTIFICATE_EXPIRED): our certificate has expired: "
        "renew the one that ssl_certfile= names"
    )


# -- what the options name


def _text(folder: Path) -> Path:
    path = folder / "text.pem"
    path.write_text("what somebody wrote down\n")
    return path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("ssl_ca_certs={missing}", "ssl_ca_certs={missing}: No such file or directory"),
        ("ssl_ca_certs={folder}", "ssl_ca_certs={folder}: Is a directory"),
        ("ssl_ca_certs={text}", "ssl_ca_certs={text}: it has no certificate in PEM form"),
        ("ssl_ca_path={missing}", "ssl_ca_path={missing}: No such file or directory"),
        ("ssl_ca_path={text}", "ssl_ca_path={text}: Not a directory"),
        ("ssl_ca_data=text", "ssl_ca_data=…: it is not a certificate in PEM form"),
        ("ssl_certfile={missing}", "ssl_certfile={missing}: No such file or directory"),
        ("ssl_certfile={client}&ssl_keyfile={missing}", "ssl_keyfile={missing}: No such file or directory"),
        ("ssl_keyfile={client}", "ssl_keyfile= needs ssl_certfile=, too"),
        (
            "ssl_certfile={text}",
            "no certificate with its key, in PEM form, can be read from {text} and {text}",
        ),
        (
            "ssl_certfile={client}&ssl_keyfile={another}",
            "the key in {another} does not belong to the certificate in {client}",
        ),
        ("ssl_ciphers=NO-SUCH", "ssl_ciphers=NO-SUCH: OpenSSL knows none of these"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(options: str, says: str, ours: Authority, tmp_path: Path) -> None:
    """What TLS options name is looked at when the sink is made; the line names the option and the file."""
    paths = {
        "missing": tmp_path / "missing.pem",
        "folder": tmp_path,
        "text": _text(tmp_path),
        "client": ours.certificate("client"),
        "another": ours.certificate("another"),
    }
    url = URL(f"rediss://127.0.0.1:9/0?stream=s&{options.format(**paths)}")
    with pytest.raises(ConfigurationError) as caught:
        RedisStreamSink.from_url(url)
    assert str(caught.value) == f"{URL(url.without_options('stream'))}: {says.format(**paths)}"


def test_a_certificate_file_is_looked_at_before_anything_is_made(tmp_path: Path) -> None:
    """The command ends with 78 and the name of the file, and makes no outbox."""
    sink = "rediss://127.0.0.1:9/0?stream=s&ssl_ca_certs=/no/such/ca.pem"
    line = (
        "rediss://127.0.0.1:9/0?ssl_ca_certs=%2Fno%2Fsuch%2Fca.pem: "
        "ssl_ca_certs=/no/such/ca.pem: No such file or directory"
    )
    refused(tmp_path, 78, line, "owm-producer", "--sink", sink)


# -- TLS or not


def test_a_server_without_tls(server: Server, stream: str) -> None:
    """``rediss://`` for a port without TLS is found out, though such a server waits for more and says nothing."""
    tunnel = Tunnel(server.port)
    assert _refused(_url(tunnel, stream, socket_timeout=0.3)) == (
        "this port does not speak TLS: write redis://, or another port"
    )


def test_a_server_with_tls_only(mutual: Tunnel, stream: str) -> None:
    """``redis://`` for a port with TLS is found out, though such a server only closes the connection."""
    assert _refused(_url(mutual, stream).replace("rediss://", "redis://")) == (
        "this port speaks TLS: write rediss://, or another port"
    )


# -- the whole command


@pytest.mark.slow
def test_the_producer_delivers_through_tls(server: Server, mutual: Tunnel, ours: Authority, tmp_path: Path) -> None:
    """The command itself, with authority and certificate in the URL, delivers and says nothing."""
    url = _url(mutual, "s", ssl_ca_certs=ours.file, ssl_certfile=ours.certificate("client"))
    with serving(made_up(3)) as api:
        args = ("--outbox", "sqlite:///tasks.db", "--sink", url, "--api-url", api.url)
        outcome = run("owm-producer", *args, cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert city_ids(server, "s") == [1, 2, 3]
