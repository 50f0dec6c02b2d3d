"""A private certificate authority, and real TLS before a server that has none: what stunnel does."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

LONG_AGO = datetime.now(UTC) - timedelta(days=30)
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


class Authority:
    """Signs certificates, and writes them to a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def certificate(self, name: str, *hosts: str, expired: bool = False) -> Path:
        """Write a key and a certificate for these hosts into one file."""
        leaf = self._ca.issue_cert(
            *(hosts or ("127.0.0.1", "localhost")),
            not_before=LONG_AGO if expired else None,
            not_after=YESTERDAY if expired else None,
        )
        path = self._folder / f"{name}.pem"
        leaf.private_key_and_cert_chain_pem.write_to_path(path)
        return path


@dataclass
class Tunnel:
    """Where TLS is spoken, and how often it was tried.

    :param losing: of the first connections: these let everybody in, and are reset before anything is answered.
    """

    port: int
    connections: int = 0
    losing: int = 0

    @property
    def address(self) -> str:
        """Host and port, as they stand in a URL."""
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def tls_before(port: int, certificate: Path, *, clients: Path | None = None) -> Iterator[Tunnel]:
    """Speak TLS before what listens on a port of this machine, for the length of a block.

    :param clients: only clients with a certificate of this authority are let in.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    everybody = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    everybody.load_cert_chain(certificate)
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:  # the block was left
                return
            tunnel.connections += 1
            if tunnel.connections <= tunnel.losing:
                threads.append(threading.Thread(target=_reset, args=(sock, everybody)))
            else:
                threads.append(threading.Thread(target=_forward, args=(sock, context, port)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        tunnel = Tunnel(listener.getsockname()[1])
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield tunnel
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


def _reset(sock: socket.socket, context: ssl.SSLContext) -> None:
    """Shake hands, then reset the connection: nothing that was sent before is sure to be read."""
    sock.settimeout(5)
    with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as inside:
        inside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _forward(sock: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """Pass on what a client asks and what it is answered, until one of both leaves."""
    sock.settimeout(5)
    with (
        sock,
        contextlib.suppress(OSError),
        context.wrap_socket(sock, server_side=True) as inside,
        socket.create_connection(("127.0.0.1", port)) as to,
    ):
        # In one thread: OpenSSL does not let two use one connection at once, and Python before 3.13 does not see to it.
        while True:
            ready = [inside] if inside.pending() else select.select([inside, to], [], [], 5)[0]
            for here, there in ((inside, to), (to, inside)):
                if here in ready:
                    part = here.recv(65536)
                    if not part:
                        return
                    there.sendall(part)
            if not ready:
                return
