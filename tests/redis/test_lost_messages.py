"""Messages that get lost, links that are slow, connections that break: each task is in the stream exactly once."""

from __future__ import annotations

import pytest
import redis

from owm_outbox import Batch, Entry, Mark, RunIncomplete, SinkUnavailable, Stop, Stopped
from owm_outbox.relay import OutboxRelay
from owm_outbox.sink import pausing_with
from owm_outbox_backends.sqlite import SqliteOutbox

from support.producer import BATCH, BATCHES, CALM, COUNT, PATIENT, After, Producer
from support.proxy import EVERY, FaultProxy, Then
from support.servers import Server
from support.streams import city_ids

pytestmark = pytest.mark.slow

ONE = Batch("box", Mark(""), [Entry(1, "a", b"{}")], Mark("1 lease a"))
TWO = Batch("box", ONE.mark, [Entry(2, "b", b"{}")], Mark("2 lease b"))


# -- messages that get lost


@pytest.mark.parametrize("then", ["cut", "hang"])
@pytest.mark.parametrize("batch", BATCHES)
def test_a_reply_lost_while_extracting_adds_nothing_twice(
    producer: Producer, server: Server, proxy: FaultProxy, batch: int, then: Then
) -> None:
    """A batch whose reply is lost, whichever it is, is not added again: the mark tells that it is there."""
    fault = proxy.lose_reply(at=batch, command="SEND", then=then)
    report = producer.run(producer.url(proxy))
    producer.check_complete(server, report)
    assert (fault.count, report.delivered) == (1, COUNT)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_reply_lost_while_draining_adds_nothing_twice(
    producer: Producer, server: Server, proxy: FaultProxy, batch: int
) -> None:
    """The client's own repetition of a batch whose reply was lost, whichever it is, adds nothing."""
    producer.fill(server)
    fault = proxy.lose_reply(at=batch, command="SEND")
    with producer.relay(producer.url(proxy)) as relay:
        assert relay.drain() == COUNT
    assert fault.count == 1
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert len(producer.fetched) == len(BATCHES)


@pytest.mark.parametrize("command", ["SEND", None])
def test_every_reply_lost_once(producer: Producer, server: Server, proxy: FaultProxy, command: str | None) -> None:
    """Every batch, and every other command too, may lose its reply once: still every task is there once."""
    fault = proxy.lose_reply(at=EVERY, command=command, once_each=True)
    # Patient, because the first request alone, for the user's rights, is a dozen commands.
    producer.check_complete(server, producer.run(producer.url(proxy, **PATIENT)))
    assert fault.count >= len(BATCHES)


def test_every_reply_lost_for_good(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """If no reply ever arrives, the call gives up with 75, and the next one finds out what had arrived."""
    fault = proxy.lose_reply(at=EVERY, command="SEND")
    producer.fails(producer.url(proxy), because=SinkUnavailable)
    assert len(city_ids(server, producer.stream)) == BATCH
    proxy.remove(fault)
    report = producer.run(producer.url(proxy))
    producer.check_complete(server, report)
    assert (report.resumed, report.delivered) == (True, COUNT)


@pytest.mark.parametrize("then", ["cut", "hang"])
@pytest.mark.parametrize("batch", BATCHES)
def test_a_lost_request_is_repeated(
    producer: Producer, server: Server, proxy: FaultProxy, batch: int, then: Then
) -> None:
    """A batch that never reaches the server, whichever it is, is sent again."""
    fault = proxy.lose_request(at=batch, command="SEND", then=then)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 1


@pytest.mark.parametrize("command", ["CLIENT", "MARK", "INFO"])
def test_first_words_lost(producer: Producer, server: Server, proxy: FaultProxy, command: str) -> None:
    """A connection that breaks while it is set up, or before the first batch, is made again."""
    fault = proxy.lose_reply(at=1, command=command)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 1


# -- connections that are slow or break


def test_a_reply_beyond_the_timeout_answers_nothing_else(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """A reply that arrives after the client gave up is never taken for the reply to something else."""
    late = [proxy.delay_reply(0.4, at=batch, command="SEND") for batch in (1, 3, 5)]
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert [fault.count for fault in late] == [1, 1, 1]


def test_slow_link(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """A link that takes its time, but less than the timeout, delivers everything at the first attempt."""
    proxy.slow(200_000)
    report = producer.run(producer.url(proxy, socket_timeout=10))
    producer.check_complete(server, report)
    assert proxy.requests["SEND"] == len(BATCHES)


def test_link_slower_than_the_timeout(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """Requests that arrive long after the client gave them up add nothing twice, not even during the next call."""
    proxy.slow(40_000)
    producer.fails(producer.url(proxy, retries=3, socket_timeout=0.1), because=SinkUnavailable)
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
    fault = proxy.cut_request(at=batch, command="SEND", passing=passing)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 1


@pytest.mark.parametrize("passing", [1, None, -1])
def test_reset_in_the_middle_of_a_reply(
    producer: Producer, server: Server, proxy: FaultProxy, passing: int | None
) -> None:
    """A part of a reply, be it all but the last byte, is not a reply."""
    fault = proxy.cut_reply(at=3, command="SEND", passing=passing)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 1


@pytest.mark.parametrize("size", [1, 5_000, 40_000])
def test_reset_after_bytes(producer: Producer, server: Server, proxy: FaultProxy, size: int) -> None:
    """A connection may break at any byte."""
    fault = proxy.cut_after(upstream=size)
    producer.check_complete(server, producer.run(producer.url(proxy)))
    assert fault.count == 1


def test_a_connection_killed_by_the_server_is_made_again(producer: Producer, server: Server) -> None:
    """A connection that the server closes between two batches is no loss."""
    with server.client() as admin:
        kill = After(lambda: admin.execute_command("CLIENT KILL TYPE normal SKIPME yes"), batches=2)
        producer.check_complete(server, producer.run(producer.url(server), kill))
    assert kill.called


# -- how often, and until when


@pytest.mark.parametrize("gone", ["refuses", "swallows connections"])
@pytest.mark.parametrize("when", ["between two batches", "within a batch"])
def test_retries_are_as_many_as_the_url_says(
    producer: Producer, server: Server, proxy: FaultProxy, when: str, gone: str
) -> None:
    """A server that goes away, also with a request on its way, is tried again as often as ``retries`` says."""
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return True

    go = proxy.refuse if gone == "refuses" else proxy.black_hole
    with producer.sink(proxy, retries=4, socket_connect_timeout=0.02) as sink, pausing_with(wait):
        sink.send(ONE)
        if when == "within a batch":
            proxy.before_request(go, at=1, command="SEND")
            proxy.lose_request(at=1, command="SEND")
        else:
            go()
            proxy.cut_all()
        with pytest.raises(SinkUnavailable):
            sink.send(TWO)
    assert len(waits) == 4
    assert max(waits) <= 0.05, "backoff_cap is the longest wait"


def test_without_time_for_another_attempt_the_real_error_is_raised(
    producer: Producer, server: Server, proxy: FaultProxy
) -> None:
    """Where ``pause`` says that there is no time, the one attempt that was made says what is wrong."""
    fault = proxy.lose_reply(at=EVERY, command="SEND", then="cut")
    with producer.sink(proxy) as sink, pausing_with(lambda seconds: False):
        with pytest.raises(SinkUnavailable, match=r"cannot be used now \(.*(closed|reset)"):
            sink.send(ONE)
        assert fault.count == 1
        assert sink.mark("box") == ONE.mark


def test_stopped_between_two_batches(producer: Producer, server: Server) -> None:
    """A run that is asked to stop reports what the sink still lacks, and the next call delivers just that."""
    stop = Stop()
    with producer.sink(server) as sink, SqliteOutbox(producer.path) as outbox:
        halt = After(stop.set, batches=3)
        relay = OutboxRelay(outbox, sink, batch_size=BATCH, stop=stop, observers=[halt])
        with pytest.raises(RunIncomplete) as caught:
            relay.run(producer.job)
    assert isinstance(caught.value.__cause__, Stopped)
    lacking = COUNT - 3 * BATCH
    assert caught.value.report.delivered == 3 * BATCH
    report = producer.run(producer.url(server))
    producer.check_complete(server, report)
    assert report.delivered == lacking


@pytest.mark.parametrize("interrupted", ["MARK", "SEND"])
def test_interrupted_between_a_request_and_its_reply(
    producer: Producer, server: Server, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    """A reply that nobody read because of a KeyboardInterrupt is never taken for the reply to the next request."""
    read = redis.Redis.parse_response

    def interrupt(*args: object, **options: object) -> object:
        monkeypatch.setattr(redis.Redis, "parse_response", read)
        raise KeyboardInterrupt

    with producer.sink(server, **CALM) as sink:
        sink.send(ONE)
        monkeypatch.setattr(redis.Redis, "parse_response", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sink.mark("another box") if interrupted == "MARK" else sink.send(TWO)
        assert sink.mark("box") == (ONE if interrupted == "MARK" else TWO).mark
