"""What answers at the address is not what the URL means, or does not answer: 78 or 75, and what to change."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from owm_outbox import ConfigurationError, MarkConflict, SinkUnavailable
from owm_outbox.plugins import open_sink
from owm_outbox.testing import parcel_batch

from support.nats import NatsServer, running, running_cluster
from support.proxy import FaultProxy, messages

pytestmark = [pytest.mark.slow]

OLD = b'INFO {"server_id":"N","version":"2.11.11","proto":1,"headers":true,"max_payload":1048576,"jetstream":true}\r\n'


def refusal(url: str) -> str:
    """Return why a URL cannot work."""
    with pytest.raises(ConfigurationError) as caught, open_sink(f"{url}&retries=0") as sink:
        sink.mark("box")
    return str(caught.value)


def outage(url: str) -> str:
    """Return why a URL does not work now."""
    with pytest.raises(SinkUnavailable) as caught, open_sink(f"{url}&retries=0") as sink:
        sink.mark("box")
    return str(caught.value)


@contextlib.contextmanager
def _greeting(words: bytes) -> Iterator[str]:
    """Serve what says something first, and lets nobody in; yield its address."""

    def serve() -> None:
        with contextlib.suppress(OSError):  # closing the listener ends the loop
            while True:
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):
                    sock.sendall(words)
                    while b"PING" not in (said := sock.recv(1000)) and said:
                        pass
                    sock.sendall(b"PONG\r\n" if words.startswith(b"INFO") else b"what?\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the method it replaces
        """Log nothing."""


def test_a_web_server() -> None:
    """A web server waits to be asked; it is told from a server that hangs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            said = refusal(f"nats://127.0.0.1:{server.server_address[1]}/TASKS?subject=tasks&timeout=0.3")
        finally:
            server.shutdown()
            thread.join()
    assert said.endswith("what answers there is not a NATS server: check host and port")


@pytest.mark.parametrize("words", [b"SSH-2.0-OpenSSH_9.2\r\n", b"220 mail ready\r\n"], ids=["SSH", "SMTP"])
def test_a_server_of_another_kind(words: bytes) -> None:
    """A server that greets in another protocol is not asked again."""
    with _greeting(words) as address:
        assert refusal(f"nats://{address}/TASKS?subject=tasks").endswith(
            "what answers there is not a NATS server: check host and port"
        )


def test_an_old_server() -> None:
    """Before 2.12.1, a server would store the messages of a batch one by one: it is told apart before any is sent."""
    with _greeting(OLD) as address:
        assert refusal(f"nats://{address}/TASKS?subject=tasks").endswith(
            "the server is nats-server 2.11.11, and atomic batches with a mark need 2.12.1: upgrade it"
        )


def test_a_server_without_jetstream(tmp_path: Path) -> None:
    """A server that only passes messages on keeps none."""
    with running(tmp_path, jetstream=False) as server:
        assert "JetStream is not enabled on the server" in refusal(server.url("TASKS", "tasks"))


def test_an_account_without_jetstream(tmp_path: Path) -> None:
    """JetStream is enabled by account, too."""
    accounts = "A { users: [{user: a, password: a}] }, B { jetstream: enabled, users: [{user: b, password: b}] }"
    with running(tmp_path, f"accounts {{ {accounts} }}\n") as server:
        assert "JetStream is not enabled for this account" in refusal(server.url("TASKS", "tasks", "a:a@"))


def test_nobody_there() -> None:
    """A port at which nobody listens, and a name that is not known, may be an outage."""
    assert "Connect call failed" in outage("nats://127.0.0.1:1/TASKS?subject=tasks")
    outage("nats://no-such-host.invalid/TASKS?subject=tasks")


def test_a_server_that_hangs(own_nats: NatsServer) -> None:
    """A server that was stopped answers nobody: 75 in time; it can be used as soon as it continues."""
    batch = parcel_batch("box", 0, 900)
    with open_sink(own_nats.url("TASKS", "tasks", timeout=0.5, retries=0)) as sink:
        assert sink.mark("box") == ""
        own_nats.pause()
        with pytest.raises(SinkUnavailable, match=r"no answer within 0\.5 s"):
            sink.send(batch)
        assert "no answer within 0.5 s" in outage(own_nats.url("TASKS", "tasks", timeout=0.5))
        own_nats.resume()
        if sink.mark("box") == "":
            sink.send(batch)
    assert len(own_nats.payloads("TASKS", "tasks")) == 900


def test_a_connection_that_was_lost_meanwhile(nats: NatsServer) -> None:
    """A connection that was lost while nobody used it is made again."""
    with FaultProxy("127.0.0.1", nats.port, framing=messages) as proxy:
        url = f"nats://{proxy.address}/TASKS?subject=tasks&retries=1&backoff_base=0.01"
        with open_sink(url) as sink:
            sink.send(parcel_batch("box", 0, 3))
            proxy.cut_all()
            sink.send(parcel_batch("box", 3, 3))
        assert proxy.connections == 2
    assert len(nats.payloads("TASKS", "tasks")) == 6


def test_the_second_host_is_used_if_the_first_one_is_down(nats: NatsServer) -> None:
    """Several hosts are tried in their order; one that is down is passed over."""
    with open_sink(nats.url("TASKS", "tasks", retries=0).replace("//", "//127.0.0.1:1,[::1]:1,")) as sink:
        sink.send(parcel_batch("box", 0, 3))
    assert len(nats.payloads("TASKS", "tasks")) == 3


def test_a_cluster_without_a_majority(tmp_path: Path) -> None:
    """What one server of three takes is not held: 75; once the others are back, it is there once."""
    with running_cluster(tmp_path, "TASKS", "tasks") as servers:
        first, *others = servers
        with open_sink(first.url("TASKS", "tasks", timeout=2, retries=0)) as sink:
            assert sink.mark("box") == ""
            for server in others:
                server.kill()
            with pytest.raises(SinkUnavailable):
                sink.send(batch := parcel_batch("box", 0, 3))
        for server in others:
            server.start()
        with open_sink(first.url("TASKS", "tasks", retries=50, backoff_base=0.2, backoff_cap=0.2)) as sink:
            with contextlib.suppress(MarkConflict):  # it may have been taken all the same
                sink.send(batch)
            assert sink.mark("box") == batch.mark
        assert len(first.payloads("TASKS", "tasks")) == 3
