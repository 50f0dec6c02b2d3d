"""Whatever happens to Redis while a relay works: no task is lost, none is there twice, and the caller is told."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import redis

from owm_outbox import (
    URL,
    Batch,
    ConfigurationError,
    Entry,
    Observer,
    OutboxError,
    OutboxRelay,
    OutboxStats,
    Page,
    Run,
    RunReport,
    SinkFull,
    SinkUnavailable,
    Stop,
    Stopped,
)
from owm_outbox.jobs.owm import OwmJob
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support import commands
from support.proxy import EVERY, FaultProxy, Then
from support.servers import Server, running
from support.streams import city_ids, tasks
from support.weather import CountingService, made_up, serving

COUNT, BATCH = 500, 100
BATCHES = range(1, COUNT // BATCH + 1)
FAST = {"retries": 8, "backoff_base": 0.01, "backoff_cap": 0.05, "socket_timeout": 0.3}
PATIENT = FAST | {"retries": 100}
CALM = FAST | {"socket_timeout": 10}  # where a slow machine's timeout would change what is counted
KEPT = ("--appendonly", "yes", "--appendfsync", "always")
SCRIPT = files("owm_outbox_backends").joinpath("redis_stream.lua").read_text("utf-8")


class After(Observer):
    """Calls a function once, when so many batches are delivered or so many pages are stored."""

    def __init__(self, call: Callable[[], object], *, batches: int = 0, pages: int = 0) -> None:
        self._call = call
        self._batches = batches
        self._pages = pages
        self.called = False

    def batch_delivered(self, batch: Batch) -> None:
        """Count a batch."""
        self._batches -= 1
        if self._batches == 0:
            self.called = True
            self._call()

    def page_stored(self, run: Run, page: Page[Any], new: int) -> None:
        """Count a page that has tasks."""
        self._pages -= new > 0
        if self._pages == 0 and new:
            self.called = True
            self._call()


class Producer:
    """The real job with a real outbox, relay and sink, against made-up cities."""

    def __init__(self, path: Path, stream: str, service: CountingService) -> None:
        self.path = path
        self.stream = stream
        self.service = service

    def url(self, server: Server | FaultProxy, **options: object) -> str:
        """Name the test's stream on this server."""
        query = "".join(f"&{name}={value}" for name, value in (FAST | options).items())
        return f"redis://{server.address}/0?stream={self.stream}{query}"

    @contextlib.contextmanager
    def relay(
        self, url: str, *observers: Observer, hold_for: float = 0, path: Path | None = None
    ) -> Iterator[OutboxRelay]:
        """Open outbox and sink, and put a relay between them."""
        with RedisStreamSink.from_url(URL(url)) as sink, SqliteOutbox(path or self.path) as outbox:
            yield OutboxRelay(outbox, sink, batch_size=BATCH, hold_for=hold_for, observers=observers)

    def run(self, url: str, *observers: Observer, hold_for: float = 0, path: Path | None = None) -> RunReport:
        """Run the job as one call of a process of its own would."""
        with self.relay(url, *observers, hold_for=hold_for, path=path) as relay:
            return relay.run(self.job())

    def job(self) -> OwmJob:
        """Return the job, to be run against the test's cities."""
        return OwmJob(OwmJob.Options(api_url=self.service.url, retry_wait=0.01))

    def fails(self, url: str, *observers: Observer, code: int = 75, hold_for: float = 0) -> OutboxError:
        """Run the job, which must fail with an error of this exit code."""
        with pytest.raises(OutboxError) as caught:
            self.run(url, *observers, hold_for=hold_for)
        assert caught.value.exit_code == code, caught.value
        return caught.value

    def stats(self) -> OutboxStats:
        """Look into the outbox."""
        with SqliteOutbox(self.path) as outbox:
            return outbox.stats()

    def check_complete(self, server: Server, report: RunReport, *, redelivered: int = 0) -> None:
        """Check that every task is in the stream exactly once, and that the outbox is clear."""
        self.check_once(server)
        assert report.complete
        assert (report.extracted, report.redelivered, report.pending) == (COUNT, redelivered, 0)
        with SqliteOutbox(self.path) as outbox:
            assert (outbox.stats().pending, outbox.stats().dead, list(outbox.read(0, 1))) == (0, 0, [])

    def check_once(self, server: Server) -> None:
        """Check that every task is in the stream exactly once."""
        found = tasks(server, self.stream)
        assert sorted(task["city_id"] for task in found) == list(range(1, COUNT + 1))
        assert len({task["task_id"] for task in found}) == COUNT

    def fill(self, server: Server) -> int:
        """Fill the outbox while the sink is down; return how many requests that took."""
        with FaultProxy("127.0.0.1", server.port) as proxy:
            proxy.refuse()
            self.fails(self.url(proxy, retries=0))
        assert self.stats().pending == COUNT
        return len(self.service.requests)


def prepare(server: Server) -> Server:
    """Let the server know the script, so that the first EVALSHA is the first batch."""
    with server.client() as client:
        client.script_load(SCRIPT)
    return server


@contextlib.contextmanager
def before(server: Server) -> Iterator[FaultProxy]:
    """Put a proxy before a server that knows the script."""
    prepare(server)
    with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """Put a proxy before the shared server."""
    with before(server) as proxy:
        yield proxy


@pytest.fixture
def producer(tmp_path: Path, stream: str) -> Iterator[Producer]:
    """Serve cities, and give a producer with an outbox of its own."""
    with serving(made_up(COUNT)) as service:
        yield Producer(tmp_path / "tasks.db", stream, service)


def restart(server: Server, *options: str) -> None:
    """Kill a server and start it again."""
    server.kill()
    server.start(*options)


# -- messages that get lost


@pytest.mark.parametrize("then", ["cut", "hang"])
@pytest.mark.parametrize("batch", BATCHES)
def test_reply_lost_while_extracting(
    producer: Producer, server: Server, proxy: FaultProxy, batch: int, then: Then
) -> None:
    """A batch whose reply is lost, whichever it is, is not added again: the sink's position tells that it is there."""
    fault = proxy.lose_reply(at=batch, command="EVALSHA", then=then)
    report = producer.run(producer.url(proxy))
    producer.check_complete(server, report)
    assert (fault.count, report.delivered) == (1, COUNT)


@pytest.mark.parametrize("batch", BATCHES)
def test_reply_lost_while_draining(producer: Producer, server: Server, proxy: FaultProxy, batch: int) -> None:
    """The client's own resend of a batch whose reply was lost, whichever it is, adds nothing."""
    requests = producer.fill(server)
    fault = proxy.lose_reply(at=batch, command="EVALSHA")
    with producer.relay(producer.url(proxy)) as relay:
        assert relay.drain() == COUNT
    assert fault.count == 1
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert len(producer.service.requests) == requests


@pytest.mark.parametrize("command", ["EVALSHA", None])
def test_every_reply_lost_once(producer: Producer, server: Server, proxy: FaultProxy, command: str | None) -> None:
    """Every batch, and every other command too, may lose its reply once: still every task is there once."""
    fault = proxy.lose_reply(at=EVERY, command=command, once_each=True)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count >= len(BATCHES)


def test_every_reply_lost_for_good(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """If no reply ever comes the call gives up with 75, and the next one finds out what had arrived."""
    fault = proxy.lose_reply(at=EVERY, command="EVALSHA")
    error = producer.fails(producer.url(proxy))
    assert isinstance(error, SinkUnavailable)
    assert len(city_ids(server, producer.stream)) == BATCH
    proxy.remove(fault)
    report = producer.run(producer.url(proxy))
    producer.check_complete(server, report)
    assert (report.resumed, report.delivered) == (True, COUNT)


@pytest.mark.parametrize("then", ["cut", "hang"])
@pytest.mark.parametrize("batch", BATCHES)
def test_request_lost(producer: Producer, server: Server, proxy: FaultProxy, batch: int, then: Then) -> None:
    """A batch that never reaches the server, whichever it is, is sent again."""
    fault = proxy.lose_request(at=batch, command="EVALSHA", then=then)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 1


@pytest.mark.parametrize("command", ["HELLO", "HGET", "TYPE"])
def test_first_words_lost(producer: Producer, server: Server, proxy: FaultProxy, command: str) -> None:
    """A connection that breaks while it is set up, or while the position is asked for, is set up anew."""
    fault = proxy.lose_reply(at=1, command=command)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 1


# -- connections that are slow or break


def test_reply_delayed_beyond_the_timeout(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """A reply that comes after the client gave up is never taken for the reply to something else."""
    late = [proxy.delay_reply(0.4, at=batch, command="EVALSHA") for batch in (1, 3, 5)]
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert [fault.count for fault in late] == [1, 1, 1]


def test_slow_link(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """A link that takes its time, but less than the timeout, delivers everything at the first attempt."""
    proxy.slow(200_000)
    report = producer.run(producer.url(proxy, socket_timeout=10))
    producer.check_complete(server, report)
    assert proxy.requests["EVALSHA"] == len(BATCHES)


def test_link_slower_than_the_timeout(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """Requests that arrive long after the client gave them up add nothing twice, not even during the next call."""
    proxy.slow(40_000)
    producer.fails(producer.url(proxy, retries=3, socket_timeout=0.1))
    proxy.slow(400_000)  # what is still on its way arrives among the batches of this call
    producer.check_complete(server, producer.run(producer.url(proxy)))


def test_reset_on_connect(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """A server that resets new connections is asked again."""
    fault = proxy.cut_connection(at=range(1, 4))
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 3


@pytest.mark.parametrize("passing", [1, None, -1])
@pytest.mark.parametrize("batch", BATCHES)
def test_reset_in_the_middle_of_a_request(
    producer: Producer, server: Server, proxy: FaultProxy, batch: int, passing: int | None
) -> None:
    """Of a batch of which only a part arrives, be it all but the last byte, nothing is taken."""
    fault = proxy.cut_request(at=batch, command="EVALSHA", passing=passing)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 1


@pytest.mark.parametrize("passing", [1, None, -1])
def test_reset_in_the_middle_of_a_reply(
    producer: Producer, server: Server, proxy: FaultProxy, passing: int | None
) -> None:
    """A part of a reply, be it all but the last byte, is no reply."""
    fault = proxy.cut_reply(at=3, command="EVALSHA", passing=passing)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 1


@pytest.mark.parametrize("size", [1, 5_000, 40_000])
def test_reset_after_bytes(producer: Producer, server: Server, proxy: FaultProxy, size: int) -> None:
    """A connection may break at any byte."""
    fault = proxy.cut_after(upstream=size)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 1


def test_connection_killed_by_the_server(producer: Producer, server: Server) -> None:
    """A connection that the server closes between two batches is made anew."""
    with server.client() as admin:
        kill = After(lambda: admin.execute_command("CLIENT KILL TYPE normal SKIPME yes"), batches=2)
        producer.check_complete(server, producer.run(producer.url(server), kill))
    assert kill.called


@pytest.mark.parametrize("gone", ["refuses", "swallows connections"])
@pytest.mark.parametrize("when", ["between two batches", "within a batch"])
def test_retries_are_as_many_as_the_url_says(server: Server, stream: str, when: str, gone: str) -> None:
    """A server that goes away, also with a request on its way, is tried again as often as ``retries`` says."""
    waits: list[float] = []
    with before(server) as proxy:
        go = proxy.refuse if gone == "refuses" else proxy.black_hole
        settings = FAST | {"retries": 4, "socket_connect_timeout": 0.02}
        options = "".join(f"&{name}={value}" for name, value in settings.items())
        with RedisStreamSink.from_url(URL(f"redis://{proxy.address}/0?stream={stream}{options}")) as sink:
            sink.pause = waits.append
            sink.send(Batch("an outbox", 0, [Entry(1, "a", b"{}")]))
            if when == "within a batch":
                proxy.before_request(go, at=1, command="EVALSHA")
                proxy.lose_request(at=1, command="EVALSHA")
            else:
                go()
                proxy.cut_all()
            with pytest.raises(SinkUnavailable):
                sink.send(Batch("an outbox", 1, [Entry(2, "b", b"{}")]))
    assert len(waits) == 4


def test_stopped_between_two_batches(producer: Producer, server: Server) -> None:
    """A run that is asked to stop reports what the sink still lacks, and the next call delivers just that."""
    stop = Stop()
    with RedisStreamSink.from_url(URL(producer.url(server))) as sink, SqliteOutbox(producer.path) as outbox:
        halt = After(stop.set, batches=3)
        relay = OutboxRelay(outbox, sink, batch_size=BATCH, stop=stop, observers=[halt])
        with pytest.raises(Stopped) as caught:
            relay.run(producer.job())
    assert caught.value.report is not None
    assert (caught.value.report.delivered, caught.value.report.pending) == (3 * BATCH, COUNT - 3 * BATCH)
    report = producer.run(producer.url(server))
    producer.check_complete(server, report)
    assert report.delivered == COUNT - 3 * BATCH


@pytest.mark.parametrize("command", ["HGET", "TYPE", "EVALSHA"])
def test_stopped_between_a_request_and_its_reply(producer: Producer, server: Server, command: str) -> None:
    """A reply that nobody read because a signal came is never taken for the reply to what the sink is asked next."""
    stop = Stop()
    raised: list[str] = []

    def profile(frame: FrameType, event: str, arg: object) -> None:
        # The moment after a request was sent and before its reply is read: too short to be hit from outside.
        here = event == "call" and frame.f_code is redis.Redis.parse_response.__code__
        if here and frame.f_locals["command_name"] == command and not raised:
            raised.append(command)
            signal.raise_signal(signal.SIGTERM)

    prepare(server)
    with RedisStreamSink.from_url(URL(producer.url(server, **CALM))) as sink, SqliteOutbox(producer.path) as outbox:
        stopped = OutboxRelay(outbox, sink, batch_size=BATCH, stop=stop)
        with contextlib.ExitStack() as stack:
            stack.callback(sys.setprofile, sys.getprofile())
            stack.enter_context(stop.on_signals(signal.SIGTERM))
            stack.enter_context(pytest.raises(Stopped))
            sys.setprofile(profile)
            stopped.run(producer.job())
        report = OutboxRelay(outbox, sink, batch_size=BATCH).run(producer.job())
    assert raised == [command]
    producer.check_complete(server, report)


# -- servers that stop, die and come back


def test_server_paused_and_resumed(producer: Producer, own_server: Server) -> None:
    """A server that is stopped with a batch on its way, and goes on later, has it once."""
    with before(own_server) as proxy:
        paused = proxy.before_request(own_server.pause, at=3, command="EVALSHA")
        # The client gives that up, and gets no answer to the first words on new connections either.
        resumed = proxy.before_request(own_server.resume, at=4, command="HELLO")
        producer.check_complete(own_server, producer.run(producer.url(proxy, socket_timeout=0.1)))
    assert (paused.count, resumed.count) == (1, 1)


def test_server_paused_for_good(producer: Producer, own_server: Server) -> None:
    """A server that hangs is given up with 75; once it goes on, so does the next call."""
    with before(own_server) as proxy:
        proxy.before_request(own_server.pause, at=3, command="EVALSHA")
        error = producer.fails(producer.url(proxy, retries=1, socket_timeout=0.1))
        assert isinstance(error, SinkUnavailable)
        own_server.resume()
        producer.check_complete(own_server, producer.run(producer.url(proxy)))
    assert proxy.requests["EVALSHA"] >= len(BATCHES)


@pytest.mark.parametrize("moment", ["before the batch", "after the batch"])
def test_server_killed_and_restarted_with_its_data(producer: Producer, own_server: Server, moment: str) -> None:
    """A server that is killed just before or just after it took a batch, and keeps its data, gets nothing twice."""
    restart(own_server, *KEPT)
    with before(own_server) as proxy:
        rule = proxy.before_request if moment == "before the batch" else proxy.before_reply
        fault = rule(lambda: restart(own_server, *KEPT), at=3, command="EVALSHA")
        producer.check_complete(own_server, producer.run(producer.url(proxy)))
    assert fault.count == 1


@pytest.mark.parametrize("moment", ["before the batch", "after the batch"])
def test_server_killed_and_restarted_without_its_data(producer: Producer, own_server: Server, moment: str) -> None:
    """A server that comes back empty gets everything of the run again, and the report says how many that were."""
    with before(own_server) as proxy:
        rule = proxy.before_request if moment == "before the batch" else proxy.before_reply
        fault = rule(lambda: restart(own_server), at=4, command="EVALSHA")
        report = producer.run(producer.url(proxy))
    confirmed = 3 if moment == "before the batch" else 4
    producer.check_complete(own_server, report, redelivered=confirmed * BATCH)
    assert (fault.count, report.delivered) == (1, COUNT)


def test_server_emptied(producer: Producer, server: Server) -> None:
    """After a FLUSHALL in the middle of a run everything of the run is sent again."""
    with server.client() as admin:
        flush = After(admin.flushall, batches=2)
        report = producer.run(producer.url(server), flush)
    producer.check_complete(server, report, redelivered=2 * BATCH)


def test_server_emptied_after_the_last_batch(producer: Producer, server: Server) -> None:
    """A loss after the last batch is noticed too, because the sink is asked once more before the run is complete."""
    with server.client() as admin:
        flush = After(admin.flushall, batches=len(BATCHES))
        report = producer.run(producer.url(server), flush)
    producer.check_complete(server, report, redelivered=COUNT)


@pytest.mark.parametrize("saved", [1, 2, 4])
def test_server_put_back_to_an_older_state(producer: Producer, own_server: Server, tmp_path: Path, saved: int) -> None:
    """A server restored from a copy in the middle of a run gets what the copy lacks again, and only that."""
    with own_server.client() as admin:

        def copy() -> None:
            admin.save()
            shutil.copy(own_server.folder / "dump.rdb", tmp_path / "copy.rdb")

        def restore() -> None:
            own_server.kill()
            shutil.copy(tmp_path / "copy.rdb", own_server.folder / "dump.rdb")
            own_server.start()

        report = producer.run(producer.url(own_server), After(copy, batches=saved), After(restore, batches=4))
    producer.check_complete(own_server, report, redelivered=(4 - saved) * BATCH)
    assert report.delivered == COUNT


def test_server_put_back_between_two_calls(producer: Producer, own_server: Server, tmp_path: Path) -> None:
    """A server restored from a copy between two calls of an unfinished run gets what it lacks from the second one."""
    with before(own_server) as proxy, own_server.client() as admin:
        proxy.before_reply(admin.save, at=2, command="EVALSHA")
        proxy.before_request(proxy.refuse, at=4, command="EVALSHA")
        proxy.lose_request(at=4, command="EVALSHA")
        producer.fails(producer.url(proxy, retries=0))
        assert len(city_ids(own_server, producer.stream)) == 3 * BATCH
        restart(own_server)
        proxy.accept()
        report = producer.run(producer.url(proxy))
    producer.check_complete(own_server, report, redelivered=BATCH)
    assert report.resumed


def test_replica_promoted_with_writes_lost(producer: Producer, own_server: Server, tmp_path: Path) -> None:
    """After a failover to a replica that lagged behind, what it lacks is sent again."""
    with running(own_server.binary, tmp_path / "replica") as replica, before(own_server) as proxy:
        with own_server.client() as master, replica.client() as other:
            master.config_set("repl-diskless-sync-delay", 0)
            other.execute_command("REPLICAOF", "127.0.0.1", own_server.port)

            def stop_replicating() -> None:
                master.set("mark", "WAIT waits for the writes of its own connection")
                assert master.execute_command("WAIT", 1, 10_000) == 1
                other.execute_command("REPLICAOF NO ONE")

            def fail_over() -> None:
                proxy.target = "127.0.0.1", replica.port
                own_server.kill()

            report = producer.run(producer.url(proxy), After(stop_replicating, batches=2), After(fail_over, batches=4))
        producer.check_complete(replica, report, redelivered=2 * BATCH)


def test_server_refuses_from_the_start(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """With no server the command ends with 75 and keeps every task; the next one delivers and fetches nothing."""
    proxy.refuse()
    args = ["--api-url", producer.service.url, "--outbox", f"sqlite:///{producer.path}", "--json"]
    down = commands.run("owm-producer", *args, "--sink", producer.url(proxy))
    assert down.code == 75
    assert down.report["pending"] == down.report["extracted"] == COUNT
    requests = len(producer.service.requests)
    proxy.accept()
    up = commands.run("owm-producer", *args, "--sink", producer.url(proxy))
    assert (up.code, up.err) == (0, "")
    assert up.report["run_id"] == down.report["run_id"]
    assert len(producer.service.requests) == requests
    producer.check_once(server)
    assert producer.stats().pending == 0


def test_server_comes_up_during_the_run(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """A server that is down at first and there for the final attempts gets everything in the same call."""
    proxy.refuse()
    up = After(proxy.accept, pages=1)
    producer.check_complete(server, producer.run(producer.url(proxy), up))
    assert up.called


# -- servers that say no


def test_out_of_memory_from_the_start(producer: Producer, own_server: Server) -> None:
    """A server without memory takes nothing of a batch: 75, all is kept; with memory the next call delivers it."""
    with own_server.client() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        error = producer.fails(producer.url(own_server))
        assert isinstance(error, SinkFull)
        assert "maxmemory" in str(error)
        assert city_ids(own_server, producer.stream) == []
        assert (producer.stats().pending, producer.stats().dead) == (COUNT, 0)
        requests = len(producer.service.requests)
        admin.config_set("maxmemory", 0)
    producer.check_complete(own_server, producer.run(producer.url(own_server)))
    assert len(producer.service.requests) == requests


def test_out_of_memory_for_a_while(producer: Producer, own_server: Server) -> None:
    """A server that runs out of memory in the middle is waited for; whole batches are there or not at all."""
    with before(own_server) as proxy, own_server.client() as admin:
        short = After(lambda: admin.config_set("maxmemory", 1), batches=2)
        held: list[int] = []

        def make_room() -> None:
            held.append(len(city_ids(own_server, producer.stream)))
            admin.config_set("maxmemory", 0)

        proxy.before_reply(make_room, at=3, containing=b"OOM")
        producer.check_complete(own_server, producer.run(producer.url(proxy), short, hold_for=30))
    assert held == [2 * BATCH]


def test_read_only_until_the_failover_is_over(producer: Producer, own_server: Server) -> None:
    """A server that is a replica for a moment is asked again until it is the master."""
    with before(own_server) as proxy, own_server.client() as admin:
        demoted = After(lambda: admin.execute_command("REPLICAOF 127.0.0.1 1"), batches=2)
        promoted = proxy.before_reply(lambda: admin.execute_command("REPLICAOF NO ONE"), at=4, containing=b"READONLY")
        producer.check_complete(own_server, producer.run(producer.url(proxy), demoted))
    assert promoted.count == 1


def test_read_only_for_good(producer: Producer, own_server: Server) -> None:
    """A replica that stays one ends the call with 75, and nothing is lost."""
    with before(own_server) as proxy, own_server.client() as admin:
        producer.fails(producer.url(proxy), After(lambda: admin.execute_command("REPLICAOF 127.0.0.1 1"), batches=2))
        assert any("READONLY" in error for error in proxy.errors)
        assert (producer.stats().pending, producer.stats().dead) == (COUNT - 2 * BATCH, 0)
        admin.execute_command("REPLICAOF NO ONE")
        producer.check_complete(own_server, producer.run(producer.url(proxy)))


def test_loading(producer: Producer, own_server: Server) -> None:
    """A server that is still loading its data is waited for."""
    with before(own_server) as proxy, own_server.client() as admin:
        admin.config_set("rdbcompression", "no")
        for number in range(12):
            admin.set(f"ballast {number}", bytes(2**20))
        starting = threading.Thread(target=own_server.start, args=("--key-load-delay", "50000"))

        def save_and_restart() -> None:
            admin.save()
            own_server.kill()
            starting.start()

        report = producer.run(producer.url(proxy, **PATIENT), After(save_and_restart, batches=3))
        starting.join()
        assert any(error.startswith("-LOADING") for error in proxy.errors)
    producer.check_complete(own_server, report)


@pytest.mark.parametrize("batch", BATCHES)
def test_script_forgotten(producer: Producer, server: Server, proxy: FaultProxy, batch: int) -> None:
    """A server that lost the script, at whichever batch, is given it again."""
    with server.client() as admin:
        proxy.before_request(admin.script_flush, at=batch, command="EVALSHA")
        producer.check_complete(server, producer.run(producer.url(proxy)))
    assert any(error.startswith("-NOSCRIPT") for error in proxy.errors)


def test_wrong_type_from_the_start(producer: Producer, server: Server) -> None:
    """A key of another type under the stream's name is bad configuration: 78 before anything is fetched or written."""
    with server.client() as client:
        client.set(producer.stream, "precious")
        error = producer.fails(producer.url(server), code=78)
        assert isinstance(error, ConfigurationError)
        assert "another type" in str(error)
        assert client.get(producer.stream) == b"precious"
        assert producer.service.requests == []
        client.delete(producer.stream)
    producer.check_complete(server, producer.run(producer.url(server)))


def test_wrong_type_in_the_middle(producer: Producer, server: Server) -> None:
    """A key of another type that takes the stream's place ends the call with 78; nothing is lost."""
    with server.client() as client:

        def replace() -> None:
            client.rename(producer.stream, "aside")
            client.set(producer.stream, "x")

        producer.fails(producer.url(server), After(replace, batches=3), code=78)
        assert producer.stats().dead == 0
        client.rename("aside", producer.stream)
    producer.check_complete(server, producer.run(producer.url(server)))


def test_positions_of_a_wrong_type(producer: Producer, server: Server) -> None:
    """A key of another type where the positions are kept is bad configuration, and named."""
    key = f"{{{producer.stream}}}:positions"
    with server.client() as client:
        client.set(key, "x")
        assert key in str(producer.fails(producer.url(server), code=78))
        assert client.exists(producer.stream) == 0
        client.delete(key)
    producer.check_complete(server, producer.run(producer.url(server)))


@pytest.mark.parametrize("user", ["", ":hush-1@"], ids=["missing", "wrong"])
def test_password_missing_or_wrong(producer: Producer, own_server: Server, user: str) -> None:
    """A server that wants another password is no outage: 78 at once, without retries, and no password is told."""
    with before(own_server) as proxy, own_server.client() as admin:
        admin.config_set("requirepass", "hush-2")
        url = producer.url(proxy)
        error = producer.fails(url.replace("redis://", f"redis://{user}"), code=78)
        assert "user and password" in str(error)
        assert "hush" not in str(error)
        assert proxy.connections == 1
        producer.run(url.replace("redis://", "redis://:hush-2@"))
        admin.config_set("requirepass", "")
    producer.check_once(own_server)


def test_password_changed_in_the_middle(producer: Producer, own_server: Server) -> None:
    """A password that is changed during a run ends it with 78, keeps the rest, and the next call goes on with it."""
    with own_server.client() as admin:

        def change() -> None:
            admin.config_set("requirepass", "new")
            admin.execute_command("CLIENT KILL TYPE normal SKIPME yes")

        producer.fails(producer.url(own_server), After(change, batches=3), code=78)
        assert producer.stats().dead == 0
        admin.config_set("requirepass", "")
    producer.check_complete(own_server, producer.run(producer.url(own_server)))


@pytest.mark.parametrize("command", ["evalsha", "hget", "hset", "xadd", "xlen"])
def test_rights_missing(producer: Producer, own_server: Server, command: str) -> None:
    """A user who may not use a command is bad configuration: 78, and with the right granted each task is there once."""
    with own_server.client() as admin:
        admin.execute_command(f"ACL SETUSER worker on >pw ~* +@all -{command}")
        url = producer.url(own_server).replace("redis://", "redis://worker:pw@")
        for _ in range(2):
            producer.fails(url, code=78)
        assert producer.stats().dead == 0
        assert city_ids(own_server, producer.stream) == []
        admin.execute_command(f"ACL SETUSER worker +{command}")
    producer.check_complete(own_server, producer.run(url))


@pytest.mark.parametrize("command", ["xtrim", "xinfo", "xpending", "xrange"])
def test_rights_missing_to_trim(producer: Producer, own_server: Server, command: str) -> None:
    """A user who may not use what trimming needs gets no batch in by halves: granted the right, nothing is twice."""
    worker = Worker(own_server, producer.stream, "readers")
    with own_server.client() as admin:
        admin.execute_command(f"ACL SETUSER worker on >pw ~* +@all -{command}")
        url = producer.url(own_server, maxlen=2 * BATCH)
        mine = url.replace("redis://", "redis://worker:pw@")
        producer.fails(url)
        worker.acknowledge(worker.take(2 * BATCH)[:BATCH])
        for _ in range(2):
            producer.fails(mine, code=78)
        assert city_ids(own_server, producer.stream) == list(range(1, 2 * BATCH + 1))
        admin.execute_command(f"ACL SETUSER worker +{command}")
    producer.fails(mine)
    assert city_ids(own_server, producer.stream) == list(range(BATCH + 1, 3 * BATCH + 1))


def test_copies_asked_for_and_every_reply_lost_once(producer: Producer, own_server: Server, tmp_path: Path) -> None:
    """Waiting for a replica makes no difference to what a lost reply may do: nothing is there twice, also there."""
    with running(own_server.binary, tmp_path / "replica") as replica, before(own_server) as proxy:
        with own_server.client() as master, replica.client() as other:
            master.config_set("repl-diskless-sync-delay", 0)
            other.execute_command("REPLICAOF", "127.0.0.1", own_server.port)
            master.set("mark", 1)
            assert master.execute_command("WAIT", 1, 10_000) == 1
        fault = proxy.lose_reply(at=EVERY, command="EVALSHA", once_each=True)
        producer.check_complete(own_server, producer.run(producer.url(proxy, wait_replicas=1, **CALM)))
        producer.check_once(replica)
    assert fault.count >= len(BATCHES)


def test_disk_of_the_server_full(producer: Producer, own_server: Server) -> None:
    """A server that cannot save and so takes no writes (MISCONF) ends the call with 75; later all is delivered."""
    (own_server.folder / "dump.rdb").mkdir()
    with before(own_server) as proxy, own_server.client() as admin:
        admin.config_set("save", "3600 1")

        def fail_to_save() -> None:
            admin.bgsave()
            while admin.info("persistence")["rdb_bgsave_in_progress"]:
                time.sleep(0.01)

        producer.fails(producer.url(proxy), After(fail_to_save, batches=2))
        assert any("MISCONF" in error for error in proxy.errors)
        assert (producer.stats().pending, producer.stats().dead) == (COUNT - 2 * BATCH, 0)
        admin.config_set("stop-writes-on-bgsave-error", "no")
        producer.check_complete(own_server, producer.run(producer.url(proxy)))


def test_replicas_missing(producer: Producer, own_server: Server) -> None:
    """A server that takes no writes without replicas (NOREPLICAS) ends the call with 75; later all is delivered."""
    with before(own_server) as proxy, own_server.client() as admin:
        producer.fails(producer.url(proxy), After(lambda: admin.config_set("min-replicas-to-write", 1), batches=2))
        assert any("NOREPLICAS" in error for error in proxy.errors)
        assert (producer.stats().pending, producer.stats().dead) == (COUNT - 2 * BATCH, 0)
        admin.config_set("min-replicas-to-write", 0)
        producer.check_complete(own_server, producer.run(producer.url(proxy)))


def test_server_busy_with_a_script(producer: Producer, own_server: Server) -> None:
    """A server that is busy with somebody's endless script (BUSY) ends the call with 75; later all is delivered."""
    with before(own_server) as proxy, own_server.client() as admin, own_server.client() as other:
        admin.config_set("lua-time-limit", 1)

        def loop() -> None:
            with contextlib.suppress(redis.RedisError):  # killed below
                other.eval("while 1 do end", 0)

        def keep_busy() -> None:
            endless.start()
            while True:
                try:
                    admin.get("anything")
                except redis.ResponseError:
                    return

        endless = threading.Thread(target=loop)
        producer.fails(producer.url(proxy, socket_timeout=5), After(keep_busy, batches=2))
        assert any("BUSY" in error for error in proxy.errors)
        admin.script_kill()
        endless.join()
        producer.check_complete(own_server, producer.run(producer.url(proxy)))


def test_no_more_clients(producer: Producer, own_server: Server) -> None:
    """A server that has all the clients it takes is asked again; once one of them leaves, all is delivered."""
    with before(own_server) as proxy, own_server.client() as admin, own_server.client() as guest:
        guest.ping()
        admin.config_set("maxclients", 2)
        freed = proxy.before_reply(guest.close, at=3, containing=b"max number of clients")
        producer.check_complete(own_server, producer.run(producer.url(proxy)))
    assert freed.count == 1


def test_writes_paused_for_a_failover(producer: Producer, own_server: Server) -> None:
    """A server that holds writes back, as before a planned failover, is waited for."""
    with before(own_server) as proxy, own_server.client() as admin:
        paused = After(lambda: admin.execute_command("CLIENT PAUSE 60000 WRITE"), batches=2)
        over = proxy.before_request(lambda: admin.execute_command("CLIENT UNPAUSE"), at=6, command="EVALSHA")
        producer.check_complete(own_server, producer.run(producer.url(proxy, socket_timeout=0.1), paused))
    assert over.count == 1


# -- positions that do not fit


def test_position_deleted(producer: Producer, server: Server) -> None:
    """If somebody deletes the position alone, what was sent is sent again with the same ids, and the report says so."""
    with server.client() as client:
        forget = After(lambda: client.delete(f"{{{producer.stream}}}:positions"), batches=3)
        report = producer.run(producer.url(server), forget)
    found = tasks(server, producer.stream)
    assert (report.complete, report.delivered, report.redelivered) == (True, COUNT, 3 * BATCH)
    assert len(found) == COUNT + report.redelivered
    assert {task["city_id"] for task in found} == set(range(1, COUNT + 1))
    assert len({task["task_id"] for task in found}) == COUNT


@pytest.mark.parametrize("batches", [0, 3])
def test_position_overwritten_with_nonsense(producer: Producer, server: Server, batches: int) -> None:
    """A position that is none, from the start or all at once, is bad configuration: somebody else writes there."""
    key = f"{{{producer.stream}}}:positions"
    with SqliteOutbox(producer.path) as outbox, server.client() as client:
        before: list[bytes] = []

        def spoil() -> None:
            before.append(client.hget(key, outbox.id) or b"0")
            client.hset(key, outbox.id, "nonsense")

        if not batches:
            spoil()
        error = producer.fails(producer.url(server), After(spoil, batches=batches), code=78)
        assert key in str(error)
        client.hset(key, outbox.id, before[0])
    producer.check_complete(server, producer.run(producer.url(server)))


def test_two_relays_on_copies_of_one_outbox(producer: Producer, server: Server, tmp_path: Path) -> None:
    """Two relays that deliver the same entries at the same time add each once, and both learn that all is there."""
    producer.fill(server)
    copy = tmp_path / "copy.db"
    shutil.copy(producer.path, copy)
    reports: dict[Path, RunReport] = {}

    def work(path: Path, observer: Observer) -> None:
        reports[path] = producer.run(producer.url(server, **CALM), observer, path=path)

    # The second one is let go in the middle of the first, which then waits until it took a batch of its own.
    started, met = threading.Event(), threading.Event()

    def follow() -> None:
        started.wait(30)
        work(copy, After(met.set, batches=1))

    second = threading.Thread(target=follow)
    second.start()

    def meet() -> None:
        started.set()
        met.wait(30)

    work(producer.path, After(meet, batches=2))
    second.join()
    assert met.is_set()
    assert [(report.complete, report.redelivered) for report in reports.values()] == [(True, 0)] * 2
    producer.check_once(server)


def test_outbox_restored_from_a_copy(producer: Producer, server: Server, tmp_path: Path) -> None:
    """An outbox put back to an older copy goes on beyond what the sink holds: its next run is delivered whole."""
    with SqliteOutbox(producer.path):
        pass
    copy = tmp_path / "copy.db"
    shutil.copy(producer.path, copy)
    producer.run(producer.url(server))
    shutil.copy(copy, producer.path)
    report = producer.run(producer.url(server))
    assert (report.complete, report.delivered) == (True, COUNT)
    found = tasks(server, producer.stream)
    assert sorted(task["city_id"] for task in found) == sorted([*range(1, COUNT + 1)] * 2)
    assert len({task["task_id"] for task in found}) == 2 * COUNT


def test_outbox_restored_from_a_copy_while_the_sink_is_down(
    producer: Producer, server: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    """An outbox put back to an older copy loses nothing of its next run, also if that is stored with the sink down."""
    with SqliteOutbox(producer.path):
        pass
    copy = tmp_path / "copy.db"
    shutil.copy(producer.path, copy)
    producer.run(producer.url(proxy))
    shutil.copy(copy, producer.path)
    proxy.refuse()
    producer.run(producer.url(proxy), After(proxy.accept, pages=1))
    assert len({task["task_id"] for task in tasks(server, producer.stream)}) == 2 * COUNT


# -- trimming


class Worker:
    """Reads a stream as a member of a consumer group."""

    def __init__(self, server: Server, stream: str, group: str, start: str = "0") -> None:
        self._client = server.client()
        self._stream, self._group = stream, group
        self._client.xgroup_create(stream, group, start, mkstream=True)
        self.read: list[bytes] = []

    def take(self, count: int, *, block: int | None = None) -> list[bytes]:
        """Read up to so many entries and return their ids; they stay unacknowledged."""
        answer: Any = self._client.xreadgroup(self._group, "w", {self._stream: ">"}, count=count, block=block)
        found = [entry for _, some in _pairs(answer) for entry in some]
        self.read += [fields[b"data"] for _, fields in found]
        return [entry_id for entry_id, _ in found]

    def acknowledge(self, ids: list[bytes]) -> None:
        """Acknowledge entries."""
        if ids:
            self._client.xack(self._stream, self._group, *ids)

    def work(self, count: int) -> None:
        """Read up to so many entries and acknowledge them."""
        if count:
            self.acknowledge(self.take(count))

    def check_got_everything(self) -> None:
        """Check that every task was read, none twice."""
        assert len(self.read) == len(set(self.read)) == COUNT


def _pairs(answer: Any) -> list[tuple[bytes, list[Any]]]:
    if isinstance(answer, dict):  # RESP3
        return [(name, [entry for some in lists for entry in some]) for name, lists in answer.items()]
    return answer or []


def length(server: Server, stream: str) -> int:
    """Return the length of a stream."""
    with server.client() as client:
        return int(client.xlen(stream))


def test_unread_tasks_are_kept(producer: Producer, server: Server) -> None:
    """With a group that does not read the stream stays at maxlen, 75 names the group, and each call gives it more."""
    worker = Worker(server, producer.stream, "slow")
    url = producer.url(server, maxlen=180)
    error = producer.fails(url)
    assert isinstance(error, SinkFull)
    assert "'slow'" in str(error)
    assert city_ids(server, producer.stream) == list(range(1, 181))
    assert producer.stats().pending == COUNT - 180
    requests = len(producer.service.requests)
    calls = 0
    while True:
        worker.work(70)
        calls += 1
        with contextlib.suppress(SinkFull):
            producer.run(url)
            break
        assert length(server, producer.stream) == 180
    while len(worker.read) < COUNT:
        worker.work(100)
    worker.check_got_everything()
    assert calls == 5
    assert len(producer.service.requests) == requests
    assert producer.stats().pending == 0


def test_waits_for_a_group_that_catches_up(producer: Producer, server: Server) -> None:
    """While a group works, a call with patience delivers everything through a stream much shorter than that."""
    worker = Worker(server, producer.stream, "workers")

    def work() -> None:
        while len(worker.read) < COUNT:
            ids = worker.take(30, block=1000)
            assert length(server, producer.stream) <= 120
            worker.acknowledge(ids)

    thread = threading.Thread(target=work)
    thread.start()
    report = producer.run(producer.url(server, maxlen=120), hold_for=60)
    thread.join()
    worker.check_got_everything()
    assert (report.complete, report.delivered, report.redelivered) == (True, COUNT, 0)


def test_read_but_unacknowledged_tasks_are_kept(producer: Producer, server: Server) -> None:
    """A task that was read but not acknowledged is not trimmed, nor is anything after it; acknowledging makes room."""
    worker = Worker(server, producer.stream, "crashed")
    url = producer.url(server, maxlen=200)
    producer.fails(url)
    ids = worker.take(200)
    worker.acknowledge(ids[20:])
    error = producer.fails(url)
    assert ids[20 - 20].decode() in str(error)
    assert city_ids(server, producer.stream) == list(range(1, 201))
    worker.acknowledge(ids[:19])
    producer.fails(url)
    assert city_ids(server, producer.stream) == list(range(20, 220))
    worker.acknowledge(ids[19:20])
    producer.fails(url)
    assert city_ids(server, producer.stream) == list(range(201, 401))
    worker.work(200)
    producer.run(url)
    worker.work(200)
    worker.check_got_everything()


def test_the_slowest_of_several_groups_counts(producer: Producer, server: Server) -> None:
    """A task is kept until all groups have acknowledged it, and the error names the one that has not."""
    fast, slow = (Worker(server, producer.stream, name) for name in ("fast", "slow"))
    url = producer.url(server, maxlen=200)
    producer.fails(url)
    fast.work(200)
    for read in (0, 50, 150):
        slow.work(read - len(slow.read))
        assert "'slow'" in str(producer.fails(url))
        assert city_ids(server, producer.stream) == list(range(read + 1, read + 201))
    slow.work(500)
    assert "'fast'" in str(producer.fails(url))
    assert city_ids(server, producer.stream) == list(range(201, 401))
    for worker in (fast, slow):
        worker.work(500)
    producer.run(url)
    for worker in (fast, slow):
        worker.work(500)
        worker.check_got_everything()


def test_without_a_group_the_stream_is_bounded(producer: Producer, server: Server) -> None:
    """Without a consumer group the oldest tasks make room: the newest are there, about as many as maxlen says."""
    report = producer.run(producer.url(server, maxlen=150))
    assert report.complete
    found = city_ids(server, producer.stream)
    assert found == list(range(COUNT - len(found) + 1, COUNT + 1))
    assert 150 <= len(found) < 150 + BATCH + 100  # trimmed by whole nodes of 100


def test_no_bound_keeps_everything(producer: Producer, server: Server) -> None:
    """With maxlen=0 nothing is ever trimmed."""
    producer.check_complete(server, producer.run(producer.url(server, maxlen=0)))


def test_an_abandoned_group_can_be_left_out(producer: Producer, server: Server) -> None:
    """With groups=a,b a group nobody reads in any more does not stop the producer, and the named ones miss nothing."""
    Worker(server, producer.stream, "abandoned")
    workers = [Worker(server, producer.stream, name) for name in ("a", "b")]
    url = producer.url(server, maxlen=200, groups="a,b")
    for _ in range(3):
        with contextlib.suppress(SinkFull):
            producer.run(url)
            break
        assert city_ids(server, producer.stream)[0] == len(workers[0].read) - 200 + 1 or not workers[0].read[200:]
        for worker in workers:
            worker.work(200)
    for worker in workers:
        worker.work(200)
        worker.check_got_everything()


def test_groups_are_told_apart_by_their_whole_names(producer: Producer, server: Server) -> None:
    """groups=ab is about the group ab, not about those called a, b or abc."""
    for name in ("a", "b", "abc", "-", "ab-"):
        Worker(server, producer.stream, name)
    worker = Worker(server, producer.stream, "ab")
    assert "'ab'" in str(producer.fails(producer.url(server, maxlen=200, groups="ab")))
    worker.work(500)
    assert "'ab'" in str(producer.fails(producer.url(server, maxlen=200, groups="ab")))
    assert len(city_ids(server, producer.stream)) == 200


def test_trimming_all_the_same(producer: Producer, server: Server) -> None:
    """With overflow=trim a group that lags behind loses tasks, as the URL says, and the producer is not stopped."""
    Worker(server, producer.stream, "slow")
    report = producer.run(producer.url(server, maxlen=150, overflow="trim"))
    assert report.complete
    assert 150 <= length(server, producer.stream) < 150 + BATCH + 100


def test_a_new_group_needs_only_what_is_new_to_it(producer: Producer, server: Server) -> None:
    """A group that starts at the end does not keep what was there before it."""
    with server.client() as client:
        client.xadd(producer.stream, {"data": '{"city_id": 0}'})
        for _ in range(99):
            client.xadd(producer.stream, {"data": '{"city_id": 0}'})
    worker = Worker(server, producer.stream, "late", start="$")
    url = producer.url(server, maxlen=200)
    producer.fails(url)
    assert city_ids(server, producer.stream) == list(range(1, 201))
    while len(worker.read) < COUNT:
        worker.work(200)
        with contextlib.suppress(SinkFull):
            producer.run(url)
    worker.check_got_everything()


def test_a_group_set_back_keeps_what_it_reads_again(producer: Producer, server: Server) -> None:
    """A group that was set back to the start, with tasks still unacknowledged, needs everything from the start."""
    worker = Worker(server, producer.stream, "again")
    url = producer.url(server, maxlen=200)
    producer.fails(url)
    ids = worker.take(200)
    worker.acknowledge(ids[:150])
    with server.client() as client:
        client.xgroup_setid(producer.stream, "again", "0")
    assert isinstance(producer.fails(url), SinkFull)
    assert city_ids(server, producer.stream) == list(range(1, 201))


@pytest.mark.parametrize(("policy", "warns"), [("allkeys-lru", True), ("noeviction", False), ("volatile-lru", False)])
def test_warns_of_eviction(
    producer: Producer, own_server: Server, caplog: pytest.LogCaptureFixture, policy: str, warns: bool
) -> None:
    """A server that may evict the stream or the position is used, with a warning that says so once."""
    with own_server.client() as admin:
        admin.config_set("maxmemory", "100mb")
        admin.config_set("maxmemory-policy", policy)
    with caplog.at_level(logging.WARNING, logger="owm_outbox_backends"):
        producer.check_complete(own_server, producer.run(producer.url(own_server)))
    assert [policy in record.getMessage() for record in caplog.records] == [True] * warns
