"""The fault proxy does what its rules say: a test that relies on a fault would else prove nothing."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.proxy import EVERY, FaultProxy, Then, chunks, lines, resp
from support.servers import Server


class Echo(socketserver.ThreadingTCPServer):
    """Sends back what it gets, and keeps a copy."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _EchoHandler)
        self.received = bytearray()
        self.answers = True
        self.ended = threading.Semaphore(0)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])


class _EchoHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server, sock = cast(Echo, self.server), cast(socket.socket, self.request)
        try:
            while data := sock.recv(2**16):
                server.received += data
                if server.answers:
                    sock.sendall(data)
        except OSError:
            pass
        finally:
            server.ended.release()


@pytest.fixture
def echo() -> Iterator[Echo]:
    """Run an echo server."""
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def by_line(echo: Echo) -> Iterator[FaultProxy]:
    """Put a proxy before the echo server that takes each line for a request."""
    with FaultProxy("127.0.0.1", echo.port, framing=lines) as proxy:
        yield proxy


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """Put a proxy before a real server."""
    with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy


@contextmanager
def client(proxy: FaultProxy, *, retries: int = 0, timeout: float = 20) -> Iterator[redis.Redis]:
    """Connect through the proxy."""
    with redis.Redis(port=proxy.port, socket_timeout=timeout, retry=Retry(NoBackoff(), retries)) as found:
        yield found


def connected(proxy: FaultProxy) -> socket.socket:
    """Connect a plain socket to the proxy."""
    return socket.create_connection((proxy.host, proxy.port), timeout=20)


def read(sock: socket.socket, size: int) -> bytes:
    """Read so many bytes, or fewer if it ends."""
    found = b""
    while len(found) < size and (data := sock.recv(size - len(found))):
        found += data
    return found


def is_reset(proxy: FaultProxy) -> bool:
    """Connect, and say whether that is reset at once: within the connecting, or at the first read."""
    try:
        with connected(proxy) as sock:
            sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def read_until_reset(sock: socket.socket) -> bytes:
    """Read all that comes; fails if the connection does not end with a reset."""
    found = b""
    try:
        while data := sock.recv(2**16):
            found += data
    except ConnectionResetError:
        return found
    raise AssertionError("it was closed in good order")


# -- without rules


def test_passes_every_byte_both_ways(echo: Echo) -> None:
    """Without a rule the proxy changes nothing, however the bytes are cut into pieces, and counts them."""
    sent = bytes(range(256)) * 12_000
    with FaultProxy("127.0.0.1", echo.port, framing=chunks) as proxy, connected(proxy) as sock:
        sender = threading.Thread(target=sock.sendall, args=(sent,))
        sender.start()
        assert read(sock, len(sent)) == sent
        sender.join()
        assert proxy.passed == {"upstream": len(sent), "downstream": len(sent)}


def test_passes_the_end_of_a_connection(by_line: FaultProxy, echo: Echo) -> None:
    """A client that stops sending still gets what the server has to say, also to a message it never finished."""
    with connected(by_line) as sock:
        sock.sendall(b"one\nand a hal")
        sock.shutdown(socket.SHUT_WR)
        assert read(sock, 100) == b"one\nand a hal"


def test_counts_requests_and_replies_by_command(proxy: FaultProxy) -> None:
    """Every command and its reply is counted by name, also in a pipeline and with replies of every shape."""
    with client(proxy) as found:
        with found.pipeline(transaction=False) as pipeline:
            pipeline.set("a", "1\r\n2")
            pipeline.get("a")
            pipeline.get("nothing")
            pipeline.hset("h", "f", "v")
            pipeline.hgetall("h")
            pipeline.config_get("max*")
            assert pipeline.execute()[:5] == [True, b"1\r\n2", None, 1, {b"f": b"v"}]
        found.xadd("s", {"data": "x"})
        found.xrange("s")
    for counted in (proxy.requests, proxy.replies):
        assert {name: counted[name] for name in ("SET", "GET", "HGETALL", "XADD", "XRANGE", "EVALSHA")} == {
            "SET": 1,
            "GET": 2,
            "HGETALL": 1,
            "XADD": 1,
            "XRANGE": 1,
            "EVALSHA": 0,
        }


def test_keeps_the_errors_that_the_server_gave(proxy: FaultProxy) -> None:
    """An error reply is passed on and kept, so that a test can see that its fault was the one it meant."""
    with client(proxy) as found:
        found.set("a", 1)
        with pytest.raises(redis.ResponseError):
            found.xlen("a")
    assert [error for error in proxy.errors if error.startswith("-WRONGTYPE")] == proxy.errors[-1:]


@pytest.mark.parametrize(
    "message",
    [
        b"+OK\r\n",
        b":1\r\n",
        b"$3\r\n\r\n\r\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*2\r\n*1\r\n:1\r\n$0\r\n\r\n",
        b"%1\r\n+a\r\n*0\r\n",
        b"|1\r\n+a\r\n:1\r\n+the value\r\n",
        b">2\r\n+push\r\n_\r\n",
        b"!5\r\nERR x\r\n",
        b"PING\r\n",
    ],
)
def test_tells_where_a_message_ends(message: bytes) -> None:
    """A message of any shape is whole at its last byte and not a byte earlier."""
    assert [resp(message[:size]) for size in range(len(message))] == [None] * len(message)
    assert resp(message + b"+more\r\n") == len(message)


# -- connections


def test_resets_the_nth_connection(by_line: FaultProxy) -> None:
    """A connection is reset as it is made, and only the one that was named."""
    fault = by_line.cut_connection(at=2)
    for number in (1, 2, 3):
        if number == 2:
            assert is_reset(by_line)
        else:
            with connected(by_line) as sock:
                sock.sendall(b"hello\n")
                assert read(sock, 6) == b"hello\n"
    assert (fault.count, by_line.connections) == (1, 3)


def test_refuses_and_accepts_again_on_the_same_port(by_line: FaultProxy) -> None:
    """While it refuses, connecting fails as with no server there; established connections go on; the port stays."""
    port = by_line.port
    with connected(by_line) as before:
        by_line.refuse()
        with pytest.raises(ConnectionRefusedError):
            connected(by_line)
        before.sendall(b"still\n")
        assert read(before, 6) == b"still\n"
    by_line.accept()
    assert by_line.port == port
    with connected(by_line) as sock:
        sock.sendall(b"again\n")
        assert read(sock, 6) == b"again\n"


def test_swallows_connections(by_line: FaultProxy) -> None:
    """While it is a black hole connecting neither succeeds nor fails; afterwards the port is as it was."""
    port = by_line.port
    by_line.black_hole()
    with pytest.raises(TimeoutError):
        socket.create_connection((by_line.host, port), timeout=0.2)
    by_line.accept()
    assert by_line.port == port
    with connected(by_line) as sock:
        sock.sendall(b"again\n")
        assert read(sock, 6) == b"again\n"


def test_cuts_everything_at_once(by_line: FaultProxy) -> None:
    """All connections can be reset at a moment of the test's choice."""
    with connected(by_line) as one, connected(by_line) as two:
        for sock in (one, two):
            sock.sendall(b"x\n")
            assert read(sock, 2) == b"x\n"
        by_line.cut_all()
        assert read_until_reset(one) == read_until_reset(two) == b""


def test_withholds_everything_both_ways(by_line: FaultProxy, echo: Echo) -> None:
    """As long as it does, neither side gets anything nor notices an end; afterwards all of it arrives."""
    with connected(by_line) as one, connected(by_line) as two:
        answer = by_line.before_reply(by_line.withhold)
        one.sendall(b"reply\n")
        answer.wait()
        two.sendall(b"request\n")
        two.shutdown(socket.SHUT_WR)
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):
            one.recv(1)
        assert echo.received == b"reply\n"
        assert not echo.ended.acquire(blocking=False)
        by_line.deliver()
        assert read(one, 6) == b"reply\n"
        assert read(two, 100) == b"request\n"
        assert echo.ended.acquire(timeout=20)


def test_withholds_a_reset(by_line: FaultProxy, echo: Echo) -> None:
    """A side that is reset meanwhile is so to the other one only afterwards."""
    with connected(by_line) as sock:
        sock.sendall(b"x\n")
        assert read(sock, 2) == b"x\n"
        by_line.withhold()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert not echo.ended.acquire(timeout=0.2)
    by_line.deliver()
    assert echo.ended.acquire(timeout=20)


def test_leads_new_connections_elsewhere(by_line: FaultProxy) -> None:
    """After a failover the same address leads to another server."""
    with Echo() as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        by_line.target = "127.0.0.1", other.port
        with connected(by_line) as sock:
            sock.sendall(b"who\n")
            assert read(sock, 4) == b"who\n"
        other.shutdown()
        thread.join()
        assert other.received == b"who\n"


def test_resets_the_client_when_the_server_is_gone(by_line: FaultProxy) -> None:
    """With no server behind it a connection is taken and reset, as behind a load balancer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        by_line.target = taken.getsockname()
        assert is_reset(by_line)


# -- bytes


@pytest.mark.parametrize("size", [1, 999, 100_000])
def test_cuts_after_so_many_bytes_to_the_server(echo: Echo, size: int) -> None:
    """The server gets exactly so many bytes, then the connection is reset; the next one is whole."""
    with FaultProxy("127.0.0.1", echo.port, framing=chunks) as proxy:
        fault = proxy.cut_after(upstream=size)
        echo.answers = False  # or it could be busy answering when the reset comes, and never see the rest
        with connected(proxy) as sock:
            sock.sendall(bytes(150_000))
            fault.wait()
            read_until_reset(sock)
        assert echo.ended.acquire(timeout=20)
        assert len(echo.received) == size
        echo.answers = True
        with connected(proxy) as sock:
            sock.sendall(b"whole")
            assert read(sock, 5) == b"whole"


@pytest.mark.parametrize("size", [1, 999, 100_000])
def test_cuts_after_so_many_bytes_to_the_client(echo: Echo, size: int) -> None:
    """The client gets no more than so many bytes of the answer, all of them true, then the connection is reset."""
    sent = bytes(range(256)) * 600
    with FaultProxy("127.0.0.1", echo.port, framing=chunks) as proxy:
        fault = proxy.cut_after(downstream=size)
        with connected(proxy) as sock:
            sock.sendall(sent)
            found = read_until_reset(sock)
        assert fault.count == 1
        assert proxy.passed["downstream"] == size
        assert sent.startswith(found)


def test_slows_a_link_down(by_line: FaultProxy, echo: Echo) -> None:
    """On a slow link an answer comes byte by byte, and the rest as soon as the link is fast again."""
    held = by_line.before_reply(lambda: by_line.slow(1), at=1)
    with connected(by_line) as sock:
        sock.sendall(b"a long way\n")
        held.wait()
        assert sock.recv(100) == b"a"
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        assert echo.received == b"a long way\n"
        by_line.slow(None)
        sock.settimeout(20)
        assert read(sock, 10) == b" long way\n"


# -- requests and replies


@pytest.mark.parametrize("then", ["cut", "hang"])
def test_loses_a_request(proxy: FaultProxy, server: Server, then: Then) -> None:
    """A lost request never reaches the server, those before and after it do."""
    fault = proxy.lose_request(at=2, command="INCRBY", then=then)
    with client(proxy, timeout=20 if then == "cut" else 0.2) as found:
        assert found.incr("a") == 1
        with pytest.raises(redis.ConnectionError if then == "cut" else redis.TimeoutError):
            found.incr("a")
        assert found.incr("a") == 2
    assert (fault.count, proxy.requests["INCRBY"], proxy.replies["INCRBY"]) == (1, 3, 2)


@pytest.mark.parametrize("then", ["cut", "hang"])
def test_loses_a_reply(proxy: FaultProxy, server: Server, then: Then) -> None:
    """A request whose reply is lost was executed by the server, and the client cannot know."""
    fault = proxy.lose_reply(at=3, command="INCRBY", then=then)
    with client(proxy, timeout=20 if then == "cut" else 0.2) as found:
        assert [found.incr("a"), found.incr("a")] == [1, 2]
        with pytest.raises(redis.ConnectionError if then == "cut" else redis.TimeoutError):
            found.incr("a")
        assert found.incr("a") == 4
    assert (fault.count, proxy.replies["INCRBY"]) == (1, 4)


def test_loses_a_reply_in_a_pipeline(proxy: FaultProxy, server: Server) -> None:
    """Replies are told apart although several requests are on their way at once."""
    proxy.lose_reply(at=2, command="SET")
    with client(proxy) as found, found.pipeline(transaction=False) as pipeline:
        for number in (1, 2):
            pipeline.incr("a")
            pipeline.set("b", number)
        with pytest.raises(redis.ConnectionError):
            pipeline.execute()
    assert proxy.passed["downstream"] > 0
    with server.client() as direct:
        assert (direct.get("a"), direct.get("b")) == (b"2", b"2")


def test_loses_each_reply_once(proxy: FaultProxy, server: Server) -> None:
    """Each different request loses its first reply, and its repetition is answered."""
    fault = proxy.lose_reply(at=EVERY, command="INCRBY", once_each=True)
    with client(proxy, retries=1) as found:
        assert [found.incr(f"key {n}") for n in range(5)] == [2] * 5
    assert fault.count == 5


def test_cuts_a_request_in_the_middle(proxy: FaultProxy, server: Server) -> None:
    """Half a request does nothing at the server, although its bytes arrived there."""
    fault = proxy.cut_request(at=1, command="SET")
    with client(proxy) as found:
        found.ping()
        before = proxy.passed["upstream"]
        with pytest.raises(redis.ConnectionError):
            found.set("a", "x" * 10_000)
        assert proxy.passed["upstream"] - before > 5_000
        assert found.get("a") is None
    assert fault.count == 1


@pytest.mark.parametrize("passing", [None, 1])
def test_cuts_a_reply_in_the_middle(proxy: FaultProxy, server: Server, passing: int | None) -> None:
    """A reply that ends in the middle is none to the client."""
    fault = proxy.cut_reply(at=1, command="GET", passing=passing)
    with client(proxy) as found:
        found.set("a", "x" * 10_000)
        before = proxy.passed["downstream"]
        with pytest.raises(redis.ConnectionError):
            found.get("a")
        assert proxy.passed["downstream"] - before == (1 if passing else 5_005)
        assert found.get("a") == b"x" * 10_000
    assert fault.count == 1


def test_delays_a_reply(proxy: FaultProxy, server: Server) -> None:
    """A late reply is no reply for a client that does not wait, and the right one for one that does."""
    with client(proxy, timeout=0.2) as hasty:
        hasty.ping()
        late = proxy.delay_reply(30, at=1, command="INCRBY")
        with pytest.raises(redis.TimeoutError):
            hasty.incr("a")
        assert late.count == 1
    proxy.delay_reply(0.01, at=1, command="INCRBY")
    with client(proxy) as patient:
        assert patient.incr("a") == 2


def test_acts_just_before_a_request(proxy: FaultProxy, server: Server) -> None:
    """What a rule calls has happened when the request reaches the server."""
    with server.client() as direct, client(proxy) as found:
        fault = proxy.before_request(direct.flushall, at=2, command="GET")
        found.set("a", 1)
        assert [found.get("a"), found.get("a")] == [b"1", None]
    assert fault.count == 1


def test_acts_just_after_the_server_answered(proxy: FaultProxy, server: Server) -> None:
    """What a rule calls happens after the server did its part and before the client hears of it."""
    seen: list[object] = []
    with server.client() as direct, client(proxy) as found:
        proxy.before_reply(lambda: seen.append(direct.get("a")), command="SET")
        proxy.before_reply(lambda: seen.append("missing"), containing=b"WRONGTYPE")
        found.set("a", 1)
        with pytest.raises(redis.ResponseError):
            found.xlen("a")
    assert seen == [b"1", "missing"]


def test_does_not_hide_that_a_call_failed(by_line: FaultProxy, echo: Echo) -> None:
    """A rule's call that raises resets the connection, and leaving the block raises the same."""
    proxy = FaultProxy("127.0.0.1", echo.port, framing=lines).__enter__()
    proxy.before_request(lambda: 1 // 0)
    with connected(proxy) as sock:
        sock.sendall(b"x\n")
        read_until_reset(sock)
    with pytest.raises(ZeroDivisionError):
        proxy.__exit__(None, None, None)
    assert not echo.received


def test_takes_rules_at_any_time(by_line: FaultProxy) -> None:
    """A rule counts from when it was set, also on a connection that was there before, and not once removed."""
    with connected(by_line) as sock:
        sock.sendall(b"1\n2\n")
        assert read(sock, 4) == b"1\n2\n"
        never = by_line.lose_request(at=1)
        by_line.remove(never)
        sock.sendall(b"3\n")
        assert read(sock, 2) == b"3\n"
        by_line.lose_request(at=2)
        sock.sendall(b"4\n")
        assert read(sock, 2) == b"4\n"
        sock.sendall(b"5\n")
        assert read_until_reset(sock) == b""
    assert not never.fired.is_set()
