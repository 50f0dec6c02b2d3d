"""What answers at the address is not what the URL means: 78 at the first answer, and the line says what to write."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import URL, ConfigurationError, SinkUnavailable
from owm_outbox_backends.redis_stream import RedisStreamSink

from support.producer import Producer
from support.servers import binaries, running
from support.tls import Tunnel

KINDS = pytest.mark.parametrize("binary", [pytest.param(path, id=name) for name, path in sorted(binaries().items())])
DENIED = (
    b"-DENIED Redis is running in protected mode because protected mode is enabled and no password is set for the "
    b"default user. In this mode connections are only accepted from the loopback interface.\r\n"
)


@contextlib.contextmanager
def _greeting(words: bytes) -> Iterator[Tunnel]:
    """Serve what says something first, and then listens."""

    def serve() -> None:
        with contextlib.suppress(OSError):  # closing the listener ends the loop
            while True:
                sock, _ = listener.accept()
                tunnel.connections += 1
                with sock, contextlib.suppress(OSError):
                    sock.sendall(words)
                    if words == DENIED:  # as Redis does
                        continue
                    while sock.recv(1000):
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        tunnel = Tunnel(listener.getsockname()[1])
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield tunnel
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def _http() -> Iterator[Tunnel]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Tunnel(server.server_address[1])
        server.shutdown()
        thread.join()


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the method it replaces
        """Log nothing."""


def _says(url: str) -> str:
    with RedisStreamSink.from_url(URL(url)) as sink, pytest.raises(ConfigurationError) as caught:
        sink.mark("box")
    return str(caught.value)


@pytest.mark.parametrize(
    ("other", "first"),
    [(_http(), "<"), (_greeting(b"SSH-2.0-OpenSSH_9.2\r\n"), "S"), (_greeting(b"220 mail ready\r\n"), "2")],
    ids=["HTTP", "SSH", "SMTP"],
)
def test_a_server_of_another_kind(other: AbstractContextManager[Tunnel], first: str, stream: str) -> None:
    """A server that speaks another protocol is not asked again."""
    with other as tunnel:
        assert _says(f"redis://{tunnel.address}/0?stream={stream}").endswith(
            f'what answers there is not a Redis server (Protocol error, got "{first}" as reply type byte): '
            "check host and port"
        )
        assert tunnel.connections <= 1


def test_a_server_in_protected_mode(stream: str) -> None:
    """A server that takes nobody from outside is a server to configure."""
    with _greeting(DENIED) as tunnel:
        url = f"redis://{tunnel.address}/0?stream={stream}&retries=0"
        for options in ("", "&client_name=owm", "&password=one"):
            assert _says(url + options).endswith(
                "the server is in protected mode (DENIED Redis is running in protected mode because protected mode is "
                "enabled and no password is set for the default user): set a password on it"
            )


def test_a_server_that_never_answers_may_be_one_that_hangs(stream: str) -> None:
    """Silence does not tell a wrong port from a server that hangs: the URL's retries, then 75."""
    with _greeting(b"") as tunnel:
        url = f"redis://{tunnel.address}/0?stream={stream}&socket_timeout=0.1&retries=2&backoff_base=0.01"
        with RedisStreamSink.from_url(URL(url)) as sink, pytest.raises(SinkUnavailable):
            sink.mark("box")
        assert tunnel.connections == 3


@KINDS
def test_a_server_without_resp3(producer: Producer, binary: str, tmp_path: Path) -> None:
    """Where nobody asks for RESP3, a server or proxy that does not know HELLO is no trouble; ``protocol=3`` is."""
    with running(binary, tmp_path / "server", "--rename-command", "HELLO", "") as server:
        producer.check_complete(server, producer.run(producer.url(server)))
        assert "the server does not speak RESP3 (" in _says(producer.url(server, protocol=3))
        assert _says(producer.url(server, protocol=3)).endswith("): remove protocol=")


@KINDS
def test_a_server_without_a_command(producer: Producer, binary: str, tmp_path: Path) -> None:
    """A command that the server does not know, or that a proxy hides, is named."""
    with running(binary, tmp_path / "server", "--rename-command", "EVALSHA", "") as server:
        error = str(producer.refuses(producer.url(server), because=ConfigurationError))
    assert "the server does not know a command (unknown command" in error
    assert "EVALSHA" in error
    assert "use Redis 6.2 or later, or Valkey" in error


@pytest.mark.slow
@KINDS
def test_the_wrong_node_of_a_cluster(producer: Producer, binary: str, tmp_path: Path) -> None:
    """A node that does not have the stream names the one that has it, and that one takes everything."""
    options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    with (
        running(binary, tmp_path / "wrong", *options, below=55_535) as wrong,
        running(binary, tmp_path / "right", *options, below=55_535) as right,
        wrong.client() as asked,
        right.client() as owner,
    ):
        owner.execute_command("CLUSTER ADDSLOTS", *range(16384))
        asked.execute_command("CLUSTER MEET", "127.0.0.1", right.port)
        for client in (asked, owner):
            _wait_until_ok(client)
        error = str(producer.refuses(producer.url(wrong), because=ConfigurationError))
        slot = asked.execute_command("CLUSTER KEYSLOT", producer.stream)
        assert error.endswith(
            f"another node of the cluster has the stream (MOVED {slot} {right.address}): write its address in the URL"
        )
        assert "the server does not have this database (" in _says(producer.url(right).replace("/0?", "/1?"))
        producer.check_complete(right, producer.run(producer.url(right)))


def _wait_until_ok(client: Any) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if client.execute_command("CLUSTER INFO")["cluster_state"] == "ok":
            return
        time.sleep(0.05)
    raise AssertionError("the cluster did not come up")
