"""A client of NATS on a thread of its own, used from others one piece of work at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from nats.aio.client import Client

from owm_outbox import ConfigurationError, EntriesRejected, MarkConflict, OwmOutboxError, SinkFull

from .address import Address
from .errors import JetStreamError, meaning

__all__ = ["NatsConnection", "Session", "Stream"]

T = TypeVar("T")

_OLDEST = (2, 12, 1)  # 2.12.0 takes no batch that expects a sequence
_CLOSING = 0.5  # seconds for an orderly end, before a connection is abandoned

# Said of each connection with TLS that the server closes, because of how nats-py makes them; it means nothing.
logging.getLogger("asyncio").addFilter(lambda record: "eof_received() has no effect" not in record.getMessage())


@dataclass
class Stream:
    """What a sink has to know of its stream.

    :param limit: bytes of the largest message, its headers included.
    :param most: entries per batch that the server takes, once it has said so.
    """

    limit: int
    most: int | None = None


class _Client(Client):
    """nats-py's client, which looks at what a server says of itself before it says who we are.

    :param lost: called as soon as the connection is closed, from whatever side.
    """

    def __init__(self, address: Address, lost: Callable[[], None]) -> None:
        super().__init__()
        self._address = address
        self._lost = lost
        self.has_jetstream = True

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        tls = self._address.tls is not None
        if initial_connection and tls and not info.get("tls_required"):
            # nats-py would go on without TLS, and send a password that anybody can read.
            raise ConfigurationError("the server does not offer TLS: write nats://, or another port")
        if initial_connection and not tls and info.get("tls_required"):
            raise ConfigurationError("the server wants TLS: write tls://")
        if initial_connection and info.get("tls_verify") and not self._address.certified:
            raise ConfigurationError("the server wants a certificate of ours: set cert_file= and key_file=")
        self.has_jetstream = bool(info.get("jetstream"))
        await super()._process_info(info, initial_connection)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # nats-py calls back when it is done with closing, and not at all if it fails to send what was left.
        self._lost()
        with contextlib.suppress(OSError):  # there is nobody any more to send it to
            await super()._close(status, do_cbs)
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]  # nats-py leaves it untyped


class Session:
    """A connection while it lasts. Its methods are for coroutines on the loop of its `NatsConnection`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connected = False
        self.client = _Client(address, self._lost)
        """nats-py's."""
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done, with an exception, as soon as nothing that was asked will be answered any more."""
        self.stream: Stream | None = None
        """What was found out about the stream on this connection."""

    @property
    def max_payload(self) -> int:
        """Bytes of the largest message that the server takes, its headers included."""
        return self.client.max_payload

    @property
    def has_jetstream(self) -> bool:
        """Whether the server says that it has JetStream."""
        return self.client.has_jetstream

    async def connect(self) -> None:
        """Connect to the first host that takes us; raise what the others said, first what a person has to fix."""
        found: list[OwmOutboxError] = []
        for host, port in self._address.hosts:
            try:
                await asyncio.wait_for(self._connect(host, port), self._address.timeout)
                return
            except Exception as error:
                await self.close()
                found.append(await meaning(error, self._address, host, port))
                self.client = _Client(self._address, self._lost)
        raise next((error for error in found if isinstance(error, ConfigurationError)), found[0])

    async def _connect(self, host: str, port: int) -> None:
        async def failed(error: Exception) -> None:
            if not self._connected:  # without this, nats-py tries the same host again and again
                raise error
            if "permissions violation" in str(error) and not self.broken.done():
                self.broken.set_exception(error)

        name = f"[{host}]" if ":" in host else host
        await self.client.connect(
            [f"{'tls' if self._address.tls else 'nats'}://{name}:{port}"],
            name="owm-outbox",
            allow_reconnect=False,  # a retry asks what is held; a client's own would only repeat
            connect_timeout=self._address.timeout,  # type: ignore[arg-type]  # any number will do
            error_cb=failed,
            tls=self._address.tls,
            **self._address.who,
        )
        version = self.client.connected_server_version
        found = version.major, version.minor, version.patch
        if found < _OLDEST:
            raise ConfigurationError(
                f"the server is nats-server {'.'.join(map(str, found))}, and atomic batches with a mark need "
                f"{'.'.join(map(str, _OLDEST))}: upgrade it"
            )
        if not self.client.is_connected:
            raise ConnectionError("the connection was closed before the server let us in")
        self._connected = True

    def _lost(self) -> None:
        if self._connected and not self.broken.done():
            self.broken.set_exception(ConnectionError("the connection was lost"))

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Send a message whose answer nobody waits for."""
        await self.client.publish(subject, payload, headers=headers)

    async def ask(self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Return what JetStream answers.

        :raises JetStreamError: that it refuses.
        """
        message = await self.client.request(subject, payload, timeout=self._address.timeout, headers=headers)
        reply: dict[str, Any] = json.loads(message.data)
        if error := reply.get("error"):
            raise JetStreamError(int(error.get("err_code", 0)), str(error.get("description", error)))
        return reply

    async def close(self) -> None:
        """Close the connection, at once if there is nobody at its other end."""
        with contextlib.suppress(Exception):  # of a connection that is being abandoned, whatever is wrong with it
            await asyncio.wait_for(self.client.close(), _CLOSING)
        if self.broken.done():
            self.broken.exception()  # or asyncio would say that nobody looked at it


class NatsConnection:
    """Does work on a connection, from any thread, one piece at a time; connects when it has to.

    The client is asynchronous: its loop runs on a daemon thread, from the first use until `close`.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: Session | None = None

    def run(self, work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        """Return what the work returns. After any error, the next work gets a new connection.

        :raises SinkUnavailable: the server cannot be reached, or did not answer in time.
        :raises ConfigurationError: it never will.
        :raises JetStreamError: see `Session.ask`.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="owm-outbox nats", daemon=True)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(self._run(work), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # if it was this thread that was interrupted
            raise

    async def _run(self, work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        try:
            if self._session is not None and self._session.broken.done():
                await self._drop()
            if self._session is None:
                self._session = Session(self._address)
                await self._session.connect()
            return await self._until_broken(self._session, work(self._session))
        except (MarkConflict, SinkFull, EntriesRejected):  # the server did answer
            raise
        except (OwmOutboxError, JetStreamError):
            await self._drop()
            raise
        except Exception as error:
            problem = await meaning(
                error, self._address, jetstream=self._session is None or self._session.has_jetstream
            )
            await self._drop()
            raise problem from error
        except asyncio.CancelledError:
            await self._drop()
            raise

    async def _until_broken(self, session: Session, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the work as long as it can succeed: nats-py waits even if nobody is left to answer."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # or asyncio complains of it
        try:
            # Twice: the work asks more than once, and each of its questions has a timeout of its own.
            both: set[asyncio.Future[Any]] = {task, session.broken}
            await asyncio.wait(both, timeout=2 * self._address.timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if session.broken.done():
                session.broken.result()
            raise TimeoutError
        finally:
            task.cancel()

    async def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def close(self) -> None:
        """Close the connection, and end the thread."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    async def _end(self) -> None:
        await self._drop()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
