"""A TCP proxy that breaks connections at a moment the test names, and tells what it did."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Container, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

T = TypeVar("T")

EVERY = range(1, sys.maxsize)
"""For ``at``: not the n-th, but each one."""

Framing = Callable[[bytes | bytearray, int], int | None]
"""Returns where the message ends that begins at an offset; ``None`` while it is not all there."""

Then = Literal["cut", "hang"]


def resp(buffer: bytes | bytearray, start: int = 0) -> int | None:
    """Frame what Redis speaks: RESP2, RESP3 and inline commands."""
    line = buffer.find(b"\r\n", start)
    if line < 0:
        return None
    kind, after = buffer[start : start + 1], line + 2
    if kind in b"$!=":
        size = int(buffer[start + 1 : line])
        end = after if size < 0 else after + size + 2
        return end if end <= len(buffer) else None
    if kind in b"*~>%|":
        count = int(buffer[start + 1 : line]) * (2 if kind in b"%|" else 1) + (kind == b"|")
        for _ in range(count):
            inner = resp(buffer, after)
            if inner is None:
                return None
            after = inner
    return after


def lines(buffer: bytes | bytearray, start: int = 0) -> int | None:
    """Frame a protocol of lines."""
    return buffer.find(b"\n", start) + 1 or None


def messages(buffer: bytes | bytearray, start: int = 0) -> int | None:
    """Frame what NATS speaks: lines, some of which say how many bytes follow."""
    end = buffer.find(b"\r\n", start) + 2
    if end < 2:
        return None
    word, *rest = buffer[start:end].split()
    if word.upper() in (b"MSG", b"HMSG", b"PUB", b"HPUB"):
        end += int(rest[-1]) + 2
    return end if end <= len(buffer) else None


def chunks(buffer: bytes | bytearray, start: int = 0) -> int | None:
    """Frame nothing: what comes in one piece is one message."""
    return len(buffer) if len(buffer) > start else None


@dataclass(eq=False)
class Fault:
    """One rule of a proxy, and the record of it.

    :param at: which of the matching events, counted from 1 since the rule was set.
    :param command: only requests of this name, and replies to them, match.
    :param containing: only messages with these bytes match.
    :param once_each: only the first of several equal requests, and the reply to it, matches.
    :param passing: bytes that still pass before a cut; ``None`` for half of them.
    """

    side: Literal["connect", "request", "reply"]
    action: Then | Literal["delay", "call"]
    at: int | Container[int] = 1
    command: str | None = None
    containing: bytes = b""
    once_each: bool = False
    passing: int | None = 0
    seconds: float = 0.0
    call: Callable[[], object] = lambda: None
    fired: threading.Event = field(default_factory=threading.Event)
    count: int = 0
    """How often it took effect."""
    _matched: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def matches(self, side: str, name: str, request: bytes, message: bytes) -> bool:
        """Say whether it takes effect now, and count the event if it is one of its kind."""
        if side != self.side or self.containing not in message:
            return False
        if self.command is not None and name != self.command.upper():
            return False
        if self.once_each:
            if request in self._seen:
                return False
            self._seen.add(request)
        self._matched += 1
        return self._matched == self.at if isinstance(self.at, int) else self._matched in self.at

    def note(self) -> None:
        """Record that it took effect, and wake what waits for that."""
        self.count += 1
        self.fired.set()

    def wait(self, seconds: float = 30) -> None:
        """Wait until it took effect; fail if it does not."""
        assert self.fired.wait(seconds), f"this fault never happened: {self}"


class FaultProxy:
    """Stands between a client and a server on this machine. Its rules can be set and removed at any time.

    :param framing: what tells one request or reply from the next.
    :param scripts: names by SHA-1: an EVALSHA of one of these is counted, and matched by rules, under its name.
    """

    def __init__(
        self, host: str, port: int, *, framing: Framing = resp, scripts: Mapping[str, str] | None = None
    ) -> None:
        self.target = host, port  # where new connections lead to; may be changed at any time
        self.host, self.port = "127.0.0.1", 0
        self.connections = 0
        self.requests: Counter[str] = Counter()  # that arrived here, by name
        self.replies: Counter[str] = Counter()  # that the server gave, by the name of the request
        self.errors: list[str] = []  # error replies that the server gave
        self.failures: list[BaseException] = []  # of calls that a rule made; leaving the block raises the first
        self.passed = Counter(upstream=0, downstream=0)  # bytes
        self._framing = framing
        self._scripts = dict(scripts or {})
        self._faults: list[Fault] = []
        self._limits: dict[str, tuple[int, Fault]] = {}
        self._rate: float | None = None
        self._rate_changed = asyncio.Event()
        self._flows = asyncio.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._callers = ThreadPoolExecutor(thread_name_prefix="fault proxy call")
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reserved: socket.socket | None = None
        self._waiting: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, kind: object, error: BaseException | None, *rest: object) -> None:
        self._do(self._close())
        self._callers.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._give_up_port()
        for failure in self.failures:
            if error is None:
                raise failure
            error.add_note(f"within the proxy: {failure!r}")

    @property
    def address(self) -> str:
        """Host and port, as they stand in a URL."""
        return f"{self.host}:{self.port}"

    # -- the rules

    def cut_connection(self, at: int | Container[int] = 1) -> Fault:
        """Reset a connection as soon as it was made."""
        return self._add(Fault("connect", "cut", at))

    def lose_request(self, at: int | Container[int] = 1, command: str | None = None, then: Then = "cut") -> Fault:
        """Keep a request from the server; then reset the connection, or let it hang."""
        return self._add(Fault("request", then, at, command))

    def cut_request(
        self, at: int | Container[int] = 1, command: str | None = None, passing: int | None = None
    ) -> Fault:
        """Reset the connection when half of a request, or ``passing`` bytes of it, reached the server."""
        return self._add(Fault("request", "cut", at, command, passing=passing))

    def lose_reply(
        self,
        at: int | Container[int] = 1,
        command: str | None = None,
        then: Then = "cut",
        *,
        containing: bytes = b"",
        once_each: bool = False,
    ) -> Fault:
        """Keep a reply from the client although the server did its part; then reset the connection, or let it hang."""
        return self._add(Fault("reply", then, at, command, containing, once_each))

    def cut_reply(self, at: int | Container[int] = 1, command: str | None = None, passing: int | None = None) -> Fault:
        """Reset the connection when half of a reply, or ``passing`` bytes of it, reached the client."""
        return self._add(Fault("reply", "cut", at, command, passing=passing))

    def delay_reply(self, seconds: float, at: int | Container[int] = 1, command: str | None = None) -> Fault:
        """Hold a reply back, and on its connection all that follows."""
        return self._add(Fault("reply", "delay", at, command, seconds=seconds))

    def before_request(
        self, call: Callable[[], object], at: int | Container[int] = 1, command: str | None = None
    ) -> Fault:
        """Call a function when a request has come, and let it pass when that returned."""
        return self._add(Fault("request", "call", at, command, call=call))

    def before_reply(
        self,
        call: Callable[[], object],
        at: int | Container[int] = 1,
        command: str | None = None,
        *,
        containing: bytes = b"",
    ) -> Fault:
        """Call a function when the server has answered, and let the answer pass when that returned."""
        return self._add(Fault("reply", "call", at, command, containing=containing, call=call))

    def cut_after(self, *, upstream: int | None = None, downstream: int | None = None) -> Fault:
        """Reset the connection on which this many bytes, counted from now over all connections, have passed."""
        fault = Fault("connect", "cut")
        with self._lock:
            for way, size in (("upstream", upstream), ("downstream", downstream)):
                if size is not None:
                    self._limits[way] = self.passed[way] + size, fault
        return fault

    def slow(self, bytes_per_second: float | None) -> None:
        """Let no more than this many bytes per second pass, each way of each connection; ``None``: no limit."""
        self._do(self._set_rate(bytes_per_second))

    def withhold(self) -> None:
        """Let nothing pass either way from now on, not even an end or a reset, as where a network is cut."""
        self._do(self._set_flowing(False))

    def deliver(self) -> None:
        """Let pass what was withheld, and all that follows."""
        self._do(self._set_flowing(True))

    def refuse(self) -> None:
        """Refuse new connections from now on; the port stays ours."""
        self._do(self._stop_listening())

    def black_hole(self) -> None:
        """Leave new connections without an answer from now on, as a firewall does that drops packets."""
        self._do(self._stop_listening())
        self._do(self._fill_queue())

    def accept(self) -> None:
        """Take connections again."""
        self._do(self._listen())

    def cut_all(self) -> None:
        """Reset every connection now."""
        self._do(self._cut_all())

    def remove(self, fault: Fault) -> None:
        """Forget a rule."""
        with self._lock:
            self._faults = [other for other in self._faults if other is not fault]
            self._limits = {way: limit for way, limit in self._limits.items() if limit[1] is not fault}

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def _call(self, fault: Fault) -> None:
        """Do what a rule wants done, on a thread of its own, so that the connections go on."""
        try:
            fault.call()
        except Exception as error:
            self.failures.append(error)
            raise _CallFailed from error
        fault.note()

    # -- what the connections ask for, on the loop's thread

    def _matching(self, side: str, request: bytes = b"", message: bytes = b"") -> list[Fault]:
        with self._lock:
            name = self._name(request)
            return [fault for fault in self._faults if fault.matches(side, name, request, message)]

    def _name(self, request: bytes) -> str:
        """Return a command's name, or that of the script it calls; of another protocol's request the first word."""
        if not request.startswith(b"*"):
            return next(iter(request.split(None, 1)), b"").decode(errors="replace").upper()
        parts = request.split(b"\r\n", 5)
        name = parts[2].decode(errors="replace").upper() if len(parts) > 2 else ""
        return self._scripts.get(parts[4].decode(errors="replace"), name) if name == "EVALSHA" else name

    def _allowed(self, way: str, size: int) -> tuple[int, Fault | None]:
        """Say how many of these bytes may pass, and what stops the others."""
        with self._lock:
            limit, fault = self._limits.get(way, (sys.maxsize, None))
            allowed = min(size, limit - self.passed[way])
            self.passed[way] += allowed
            if fault is None or self.passed[way] < limit:
                return allowed, None
            del self._limits[way]
            return allowed, fault

    async def _pace(self, size: int) -> int:
        """Wait as long as the link needs for some of these bytes, and return for how many."""
        while self._rate is not None:
            piece = max(1, int(self._rate / 100))
            self._rate_changed.clear()
            try:
                await asyncio.wait_for(self._rate_changed.wait(), piece / self._rate)
            except TimeoutError:
                return min(piece, size)
        return size

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _set_rate(self, rate: float | None) -> None:
        self._rate = rate
        self._rate_changed.set()

    async def _set_flowing(self, flowing: bool) -> None:
        if flowing:
            self._flows.set()
        else:
            self._flows.clear()

    async def _listen(self) -> None:
        if self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._give_up_port()
            listener.bind((self.host, self.port))
            listener.listen(128)
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            self._listener = listener
            self._loop.add_reader(listener, self._take_waiting)

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._take_waiting()  # they were made before, so they go on
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            # Bound, but not listening: connections are refused, and nobody else gets the port.
            self._reserved = socket.socket()
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reserved.bind((self.host, self.port))

    async def _fill_queue(self) -> None:
        """Have connections wait that nobody takes, until the system lets no further one in."""
        assert self._reserved is not None
        self._reserved.listen(0)
        while True:
            sock = socket.socket()
            sock.setblocking(False)
            self._waiting.append(sock)
            try:
                await asyncio.wait_for(self._loop.sock_connect(sock, (self.host, self.port)), 0.1)
            except TimeoutError:
                return

    def _give_up_port(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        while self._waiting:
            self._waiting.pop().close()

    def _take_waiting(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._listener is not None:
                sock, _ = self._listener.accept()
                task = self._loop.create_task(self._serve(sock))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _cut_all(self) -> None:
        for link in list(self._links):
            link.cut()

    async def _close(self) -> None:
        await self._stop_listening()
        await self._cut_all()
        self._flows.set()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, sock: socket.socket) -> None:
        self.connections += 1
        reader, writer = await asyncio.open_connection(sock=sock)
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run()
        except (OSError, asyncio.CancelledError, _CallFailed):
            pass  # one side was closed, or the proxy closes; the other one is closed below
        finally:
            link.cut()
            self._links.discard(link)


class _CallFailed(Exception):
    """What a rule called has raised."""


class _Link:
    """One connection: the client's and ours to the server."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = reader, writer
        self._writers = [writer]
        self._unanswered: deque[bytes] = deque()
        self._hangs = False

    def cut(self) -> None:
        """Reset both sides."""
        for writer in self._writers:
            sock: socket.socket | None = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def run(self) -> None:
        for fault in self._proxy._matching("connect"):
            fault.note()
            return
        reader, writer = await asyncio.open_connection(*self._proxy.target)
        self._writers.append(writer)
        for each in self._writers:
            each.transport.set_write_buffer_limits(0)  # so that drain() means: it is on its way
        up = asyncio.ensure_future(self._pump(self._client[0], writer, self._request))
        down = asyncio.ensure_future(self._pump(reader, self._client[1], self._reply))
        try:
            done, _ = await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
            await self._proxy._flows.wait()
            for task in done:
                task.result()
            if not self._hangs:
                await asyncio.gather(up, down)  # one side said all it had to say, the other may not have
        finally:
            up.cancel()
            down.cancel()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handle: Callable[[bytes, asyncio.StreamWriter], Coroutine[Any, Any, None]],
    ) -> None:
        buffer = bytearray()
        while data := await reader.read(2**16):
            buffer += data
            for message in self._messages(buffer):
                if not self._hangs:
                    await handle(message, writer)
        if not self._hangs:
            await self._pass("upstream" if handle == self._request else "downstream", bytes(buffer), writer)
            await self._proxy._flows.wait()
            writer.write_eof()

    def _messages(self, buffer: bytearray) -> Iterator[bytes]:
        while buffer and (end := self._proxy._framing(buffer, 0)):
            message = bytes(buffer[:end])
            del buffer[:end]
            yield message

    async def _request(self, message: bytes, writer: asyncio.StreamWriter) -> None:
        proxy = self._proxy
        proxy.requests[proxy._name(message)] += 1
        await self._send("upstream", proxy._matching("request", message, message), message, writer)

    async def _reply(self, message: bytes, writer: asyncio.StreamWriter) -> None:
        proxy = self._proxy
        if message.startswith(b">"):  # a push answers nothing
            await self._send("downstream", [], message, writer)
            return
        request = self._unanswered.popleft() if self._unanswered else b""
        proxy.replies[proxy._name(request)] += 1
        if message.startswith((b"-", b"!")):
            proxy.errors.append(message.decode(errors="replace").strip())
        await self._send("downstream", proxy._matching("reply", request, message), message, writer)

    async def _send(self, way: str, faults: list[Fault], message: bytes, writer: asyncio.StreamWriter) -> None:
        """Pass a message on, in the way that the faults leave."""
        for fault in faults:
            if fault.action == "call":
                await asyncio.get_running_loop().run_in_executor(self._proxy._callers, self._proxy._call, fault)
            elif fault.action == "delay":
                fault.note()
                await asyncio.sleep(fault.seconds)
        last = next((fault for fault in faults if fault.action in ("cut", "hang")), None)
        if last is None:
            if way == "upstream":
                self._unanswered.append(message)
            await self._pass(way, message, writer)
            return
        await self._pass(way, message[: len(message) // 2 if last.passing is None else last.passing], writer)
        self._hangs = True
        last.note()
        if last.action == "cut":
            self.cut()

    async def _pass(self, way: str, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data:
            await self._proxy._flows.wait()
            size = await self._proxy._pace(len(data))
            size, fault = self._proxy._allowed(way, size)
            writer.write(data[:size])
            await writer.drain()
            data = data[size:]
            if fault is not None:
                self._hangs = True
                fault.note()
                self.cut()
                return
