"""An API with certificates of a private authority: what is right works, and what is not is one line and 78."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from support.commands import run
from support.misbehaving import Misbehaving, ids_in, misbehaving, status
from support.weather import made_up

ALL = list(range(1, 251))


@dataclass
class Authority:
    """A certificate authority, and files of what it issued."""

    folder: Path
    name: str

    def __post_init__(self) -> None:
        self.ca = trustme.CA()
        self.file = self.folder / f"{self.name}.pem"
        self.ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, host: str, **times: Any) -> Path:
        """Return a file with a key and a certificate for this host."""
        issued = self.ca.issue_cert(host, **times)
        path = self.folder / f"{self.name}-{name}.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))
        return path


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    """Give the private authority."""
    return Authority(tmp_path, "ours")


@contextmanager
def _secure(certificate: Path, clients: Authority | None = None) -> Iterator[Misbehaving]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.ca.configure_trust(context)
    with misbehaving(made_up(250), tls=context) as service:
        yield service


def _produce(service: Misbehaving, out: Path, **options: object) -> tuple[int, str]:
    """Run the command; return its exit code and its last line, without the figures."""
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    outcome = run(
        "owm-producer",
        *("--api-url", service.url, "--outbox", f"sqlite:///{out}.db", "--sink", f"jsonl:{out}", *given),
        *("--retry-wait", "0.01", "--log-level", "error"),
        env={"REQUESTS_CA_BUNDLE": "/nowhere", "SSL_CERT_FILE": "/nowhere"},
    )
    return outcome.code, outcome.line if outcome.code else outcome.err


@pytest.mark.slow
def test_a_private_authority_can_be_trusted(ours: Authority, out: Path) -> None:
    """With its file all is well; without it, or with another one's, nothing is sent, and the line says why."""
    theirs = Authority(ours.folder, "theirs")
    with _secure(ours.issue("server", "127.0.0.1")) as service:
        for options in ({}, {"ca_file": theirs.file}):
            code, line = _produce(service, out, **options)
            assert (code, service.requests) == (78, [])
            assert "certificate verify failed: " in line
            assert "check the API's address, its certificate, and the files of --ca-file and --client-cert [" in line
        assert _produce(service, out, ca_file=ours.file) == (0, "")
    assert ids_in(out) == ALL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "days", "words"), [("127.0.0.1", -1, "certificate has expired"), ("127.0.0.2", 9, "IP address mismatch")]
)
def test_a_certificate_that_does_not_fit_is_refused(
    host: str, days: int, words: str, ours: Authority, out: Path
) -> None:
    """One that has expired, or is for another host, is as good as none."""
    now = datetime.now(UTC)
    times = {"not_before": now - timedelta(days=30), "not_after": now + timedelta(days=days)}
    with _secure(ours.issue("server", host, **times)) as service:
        code, line = _produce(service, out, ca_file=ours.file)
    assert (code, service.requests) == (78, [])
    assert words in line


@pytest.mark.slow
def test_a_client_certificate_is_shown(ours: Authority, out: Path) -> None:
    """An API that wants one gets it, from one file or two; without it, or with a stranger's, the run ends with 78."""
    theirs = Authority(ours.folder, "theirs")
    client = ours.issue("client", "ada@example.org")
    key, certificate = ours.folder / "key.pem", ours.folder / "certificate.pem"
    text = client.read_text()
    key.write_text(text[: text.index("-----BEGIN CERT")])
    certificate.write_text(text[text.index("-----BEGIN CERT") :])
    with _secure(ours.issue("server", "127.0.0.1"), clients=ours) as service:
        for options in ({}, {"client_cert": theirs.issue("client", "eve@example.org")}):
            code, line = _produce(service, out, ca_file=ours.file, **options)
            assert (code, service.requests) == (78, [])
            assert "and the files of --ca-file and --client-cert [" in line
        assert _produce(service, out, ca_file=ours.file, client_cert=client) == (0, "")
        assert _produce(service, out, ca_file=ours.file, client_cert=certificate, client_key=key) == (0, "")
    assert ids_in(out) == sorted(ALL * 2)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["ca_file", "client_cert"])
@pytest.mark.parametrize("content", [None, "", "not PEM"], ids=["missing", "empty", "text"])
def test_a_file_that_cannot_be_used_is_named(
    option: str, content: str | None, service: Misbehaving, tmp_path: Path, out: Path
) -> None:
    """A file that is missing or is not PEM ends the run before any request, and the line names it."""
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    code, line = _produce(service, out, **{option: file})
    assert (code, service.requests) == (78, [])
    assert f"{option} '{file}' cannot be used: " in line


def test_a_key_alone_is_not_enough(service: Misbehaving, tmp_path: Path, out: Path) -> None:
    """The certificate that it belongs to has to be named."""
    code, line = _produce(service, out, client_key=tmp_path / "key.pem")
    assert (code, service.requests) == (78, [])
    assert "needs the certificate that it belongs to: client_cert" in line


@pytest.mark.slow
def test_a_key_with_a_password_is_refused(ours: Authority, service: Misbehaving, out: Path) -> None:
    """Nobody is there to type it: the run does not wait for a terminal."""
    from cryptography.hazmat.primitives import serialization

    client = ours.issue("client", "ada@example.org")
    key = serialization.load_pem_private_key(client.read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"swordfish"),
    )
    text = client.read_text()
    client.write_bytes(encrypted + text[text.index("-----BEGIN CERT") :].encode())
    code, line = _produce(service, out, client_cert=client)
    assert (code, service.requests) == (78, [])
    assert f"client_cert '{client}' cannot be used: " in line


@pytest.mark.slow
def test_http_may_lead_to_https_of_the_same_host(ours: Authority, out: Path) -> None:
    """A redirect to the same host is followed if it is no less safe than the address that was given."""
    with _secure(ours.issue("server", "127.0.0.1")) as secure, misbehaving(made_up(1)) as plain:
        for page in range(4):
            target = f"{secure.url}/cities/?page={page}&limit=100"
            plain.misbehave(status(301, Location=target), page)
        assert _produce(plain, out, ca_file=ours.file) == (0, "")
        assert ids_in(out) == ALL
        secure.misbehave(status(301, Location=f"{plain.url}/cities/?page=0&limit=100"))
        plain.requests.clear()
        code, line = _produce(secure, out, ca_file=ours.file)
    assert (code, plain.requests) == (78, [])
    assert "another host: check the API's address [" in line
