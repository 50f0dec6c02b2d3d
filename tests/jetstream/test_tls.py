"""TLS: a private authority, certificates on both sides, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from owm_outbox import ConfigurationError
from owm_outbox.plugins import open_sink
from owm_outbox.testing import parcel_batch

from support.nats import running
from support.tls import Authority

pytestmark = [pytest.mark.slow]


def _config(authority: Authority, certificate: Path, *, verify: bool = False) -> str:
    files = f'cert_file: "{certificate}", key_file: "{certificate}", ca_file: "{authority.file}"'
    return f"tls {{ {files}, verify: {str(verify).lower()} }}\n"


def _says(url: str) -> str:
    with pytest.raises(ConfigurationError) as caught, open_sink(f"{url}&retries=0") as sink:
        sink.mark("box")
    return str(caught.value)


def test_a_server_with_tls(tmp_path: Path) -> None:
    """A server is believed if the authority in ca_file signed its certificate, and if it has that host's name."""
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    with running(tmp_path / "nats", _config(ours, ours.certificate("server"))) as server:
        # Who makes the stream comes in by TLS, too: through the sink's own connection, which says what is missing.
        url = server.url("TASKS", "tasks", scheme="tls", ca_file=ours.file)
        assert "there is no stream 'TASKS'" in _says(url)
        assert "certificate is not accepted" in _says(url.replace(str(ours.file), str(other.file)))
        assert "set ca_file=" in _says(server.url("TASKS", "tasks", scheme="tls"))
        assert _says(server.url("TASKS", "tasks")).endswith("the server wants TLS: write tls://")
    with running(tmp_path / "nats2", _config(ours, ours.certificate("elsewhere", "example.org"))) as server:
        url = server.url("TASKS", "tasks", scheme="tls", ca_file=ours.file)
        assert "write the host as the certificate has it" in _says(url)


def test_a_server_that_wants_a_certificate(tmp_path: Path) -> None:
    """A server may want one of ours, signed by an authority that it knows."""
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    good, bad = ours.certificate("client"), other.certificate("stranger")
    with running(tmp_path / "nats", _config(ours, ours.certificate("server"), verify=True)) as server:
        url = server.url("TASKS", "tasks", scheme="tls", ca_file=ours.file)
        assert "there is no stream 'TASKS'" in _says(f"{url}&cert_file={good}&key_file={good}")
        assert _says(url).endswith("the server wants a certificate of ours: set cert_file= and key_file=")
        assert "the server may want another certificate of ours" in _says(f"{url}&cert_file={bad}")


def test_a_server_without_tls(tmp_path: Path) -> None:
    """With tls:// nothing goes over a connection that anybody can read, a password least of all."""
    ours = Authority(tmp_path)
    with running(tmp_path / "nats") as server:
        said = _says(server.url("TASKS", "tasks", "ada:hunter2@", scheme="tls", ca_file=ours.file))
    assert said.endswith("the server does not offer TLS: write nats://, or another port")


def test_tasks_travel_by_tls(tmp_path: Path) -> None:
    """A batch larger than what TLS and nats-py hold in their buffers arrives."""
    ours = Authority(tmp_path)
    with running(tmp_path / "nats") as server:
        server.make("TASKS", "tasks")
        server.config = _config(ours, ours.certificate("server"))
        server.restart()
        batch = parcel_batch("box", 0, 900)
        heavy = [entry._replace(payload=entry.payload + b" " * 4000) for entry in batch.entries]
        with open_sink(server.url("TASKS", "tasks", scheme="tls", ca_file=ours.file, retries=0)) as sink:
            sink.send(batch.__class__(batch.outbox_id, batch.after, heavy, batch.mark))
            assert sink.mark("box") == batch.mark
        server.config = ""
        server.restart()
        assert server.payloads("TASKS", "tasks") == [entry.payload for entry in heavy]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("ca_file=/none.pem", "ca_file=/none.pem: No such file or directory"),
        ("ca_file=EMPTY", "has no certificate in PEM form"),
        ("key_file=EMPTY", "key_file= needs cert_file=, too"),
        ("cert_file=EMPTY", "no certificate with its key, in PEM form, can be read from"),
    ],
)
def test_files_that_cannot_be_used(options: str, words: str, tmp_path: Path) -> None:
    """What is wrong with a file is said before anything is connected to."""
    (tmp_path / "empty").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        open_sink(f"tls://127.0.0.1:1/TASKS?subject=tasks&{options.replace('EMPTY', str(tmp_path / 'empty'))}")
    assert words in str(caught.value)
