"""What the sink says that it holds counts only while the stream still bears it out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from owm_outbox import Batch, ConfigurationError, Entry, Mark, MarkConflict
from owm_outbox_backends.redis_stream.sink import RedisStreamSink, marks_key
from owm_outbox_backends.sqlite import SqliteOutbox

from support.producer import BATCH, BATCHES, COUNT, After, Producer
from support.servers import Server
from support.streams import city_ids, length, tasks


def batch(after: str, first: int, count: int = 10, *, run: str = "") -> Batch:
    """Make a batch that follows a mark."""
    entries = [Entry(position, f"task-{position}", b"{}") for position in range(first, first + count)]
    return Batch("box", Mark(after), entries, Mark.of(entries[-1], "lease"), run)


FIRST, SECOND = batch("", 1), batch("10 lease task-10", 11)


@pytest.fixture
def sink(server: Server, stream: str) -> RedisStreamSink:
    """Give a sink that took two batches of ten."""
    sink = RedisStreamSink(f"redis://{server.address}/0", stream=stream, retries=0)
    sink.send(FIRST)
    sink.send(SECOND)
    return sink


@pytest.fixture
def client(server: Server) -> Any:
    """Give a client for what others do to the stream."""
    return server.client()


def counts(client: Any) -> bool:
    """Say whether the server counts the entries ever added to a stream, as it does since Redis 7."""
    client.xadd("any", {"a": "b"})
    return "entries-added" in client.xinfo_stream("any")


def add(client: Any, stream: str, count: int = 1) -> None:
    """Add entries as another program."""
    for _ in range(count):
        client.xadd(stream, {"data": "{}"})


def all_ids(client: Any, stream: str) -> list[bytes]:
    """Return the ids of a stream."""
    return [entry_id for entry_id, _ in client.xrange(stream)]


# -- what the sink holds, and does not hold any more


def deleted(client: Any, stream: str) -> None:
    """Delete the stream."""
    client.delete(stream)


def unlinked_and_made_by_workers(client: Any, stream: str) -> None:
    """Delete the stream; a worker that starts creates it for its group."""
    client.unlink(stream)
    client.xgroup_create(stream, "workers", "0", mkstream=True)


def made_from_scratch(client: Any, stream: str) -> None:
    """Delete the stream; another program writes as many entries as there were."""
    client.delete(stream)
    add(client, stream, 20)


def made_from_scratch_and_worked_on(client: Any, stream: str) -> None:
    """Delete the stream; another program writes to it, and workers delete what they read."""
    client.delete(stream)
    add(client, stream, 20)
    client.xdel(stream, *all_ids(client, stream)[:15])


def moved_away(client: Any, stream: str) -> None:
    """Rename the stream."""
    client.rename(stream, f"{stream}-old")


def set_back(client: Any, stream: str) -> None:
    """Put an older state in its place: one that lacks the last batch."""
    client.delete(stream)
    for entry_id, fields in client.xrange(f"{stream}-copy"):
        client.xadd(stream, fields, id=entry_id)


def expired(client: Any, stream: str) -> None:
    """Let the stream expire."""
    client.pexpireat(stream, 1)


def made_from_scratch_within_the_same_millisecond(client: Any, stream: str) -> None:
    """Delete the stream; another program's entries get the very ids that ours had, and more."""
    ids = all_ids(client, stream)
    client.delete(stream)
    for entry_id in ids:
        client.xadd(stream, {"data": '{"another": "program"}'}, id=entry_id)
    add(client, stream)


@pytest.mark.parametrize(
    "lose",
    [
        made_from_scratch_within_the_same_millisecond,
        deleted,
        unlinked_and_made_by_workers,
        made_from_scratch,
        made_from_scratch_and_worked_on,
        moved_away,
        set_back,
        expired,
    ],
)
@pytest.mark.parametrize("asked", [True, False])
def test_a_lost_stream_takes_its_mark_with_it(
    sink: RedisStreamSink,
    client: Any,
    stream: str,
    lose: Callable[[Any, str], None],
    asked: bool,
) -> None:
    """Whether the sink is asked or is sent the next batch: it holds nothing, and takes a batch that starts there."""
    for entry_id, fields in client.xrange(stream, count=10):
        client.xadd(f"{stream}-copy", fields, id=entry_id)
    lose(client, stream)
    there = client.xlen(stream)
    if asked:
        assert sink.mark("box") == ""
    with pytest.raises(MarkConflict) as conflict:
        sink.send(batch(SECOND.mark, 21))
    assert conflict.value.held == ""
    assert client.xlen(stream) == there
    again = replace(batch("", 1, 20), outbox_id="box")
    sink.send(again)
    assert sink.mark("box") == again.mark
    assert client.xlen(stream) == there + 20


def test_a_lost_mark_does_not_return(sink: RedisStreamSink, client: Any, stream: str) -> None:
    """Once it was told that the mark is lost, nothing that becomes of the new stream brings it back."""
    client.delete(stream)
    add(client, stream, 30)
    assert sink.mark("box") == ""
    client.xdel(stream, *all_ids(client, stream))  # as many were taken out as we had added
    assert sink.mark("box") == ""


def test_a_mark_is_not_forgotten_without_need(sink: RedisStreamSink, client: Any, stream: str) -> None:
    """Asking writes nothing: what is stored stays byte for byte the same."""
    stored = client.hgetall(marks_key(stream))
    assert sink.mark("box") == SECOND.mark
    assert sink.mark("another box") == ""
    assert client.hgetall(marks_key(stream)) == stored


@pytest.mark.parametrize("left", [15, 10, 1, 0])
def test_entries_that_workers_delete_are_no_loss(sink: RedisStreamSink, client: Any, stream: str, left: int) -> None:
    """Workers may delete what they have read, one by one, up to the last entry."""
    client.xdel(stream, *all_ids(client, stream)[: 20 - left])
    assert sink.mark("box") == SECOND.mark
    sink.send(batch(SECOND.mark, 21))


def test_the_last_entry_alone_may_be_deleted(sink: RedisStreamSink, client: Any, stream: str) -> None:
    """Workers delete out of order: the newest entry is taken out, and others stay."""
    client.xdel(stream, all_ids(client, stream)[-1])
    assert sink.mark("box") == SECOND.mark
    add(client, stream)
    assert sink.mark("box") == SECOND.mark
    sink.send(batch(SECOND.mark, 21))


def test_a_stream_trimmed_to_nothing_is_no_loss(sink: RedisStreamSink, client: Any, stream: str) -> None:
    """Somebody trims the stream to length 0, and it goes on from there."""
    client.xtrim(stream, maxlen=0, approximate=False)
    assert sink.mark("box") == SECOND.mark
    sink.send(batch(SECOND.mark, 21))
    assert client.xlen(stream) == 10


def test_a_stream_that_others_write_to_is_told_apart_where_the_server_counts(
    sink: RedisStreamSink, client: Any, stream: str
) -> None:
    """All of ours was deleted and others have added theirs: Redis 7 knows that; before, it counts as lost."""
    client.xdel(stream, *all_ids(client, stream))
    add(client, stream)
    assert sink.mark("box") == (SECOND.mark if counts(client) else "")


def test_a_stream_shared_by_two_outboxes(sink: RedisStreamSink, client: Any, stream: str) -> None:
    """Each outbox has its own mark, and what one adds does not call the other's in doubt."""
    other = replace(FIRST, outbox_id="other")
    sink.send(other)
    assert (sink.mark("box"), sink.mark("other")) == (SECOND.mark, FIRST.mark)
    client.delete(stream)
    assert (sink.mark("box"), sink.mark("other")) == ("", "")


# -- what others stored


@pytest.mark.parametrize("position", ["10", "9007199254740993"])
def test_a_mark_of_version_0_1(server: Server, client: Any, stream: str, position: str) -> None:
    """A bare position, as version 0.1 stored it, is the mark, and the next batch replaces it."""
    add(client, stream)
    client.hset(marks_key(stream), "box", position)
    with RedisStreamSink(f"redis://{server.address}/0", stream=stream, retries=0) as sink:
        assert sink.mark("box") == position
        sink.send(batch(position, 11))
        assert sink.mark("box") == "20 lease task-20"


def test_a_mark_of_version_0_1_without_its_stream(server: Server, client: Any, stream: str) -> None:
    """The least that can be verified of it: that there is a stream at all."""
    client.hset(marks_key(stream), "box", "10")
    with RedisStreamSink(f"redis://{server.address}/0", stream=stream, retries=0) as sink:
        assert sink.mark("box") == ""


def test_position_zero_of_version_0_1_is_nothing(server: Server, client: Any, stream: str) -> None:
    """Version 0.1 stored a 0 where a batch had been refused half-way."""
    client.hset(marks_key(stream), "box", "0")
    with RedisStreamSink(f"redis://{server.address}/0", stream=stream, retries=0) as sink:
        assert sink.mark("box") == ""
        sink.send(FIRST)


def test_a_mark_is_opaque_text(server: Server, stream: str) -> None:
    """Any text is kept as it is, blanks and line ends included."""
    odd = Mark(" 1  - zwei\n% 東京 ")
    with RedisStreamSink(f"redis://{server.address}/0", stream=stream, retries=0) as sink:
        sink.send(replace(FIRST, mark=odd, run_id="a run"))
        assert sink.mark("box") == odd
        sink.send(replace(SECOND, after=odd))


@pytest.mark.parametrize("batches", [0, 3])
def test_a_mark_overwritten_with_nonsense(producer: Producer, server: Server, batches: int) -> None:
    """A value that is not a mark, from the start or all at once, is bad configuration: somebody else writes there."""
    with SqliteOutbox(producer.path) as outbox, server.client() as client:
        before: list[bytes] = []

        def spoil() -> None:
            before.append(client.hget(producer.marks, outbox.id) or b"0")
            client.hset(producer.marks, outbox.id, "nonsense")

        if batches:
            spoiled = After(spoil, batches=batches)
            error = producer.fails(producer.url(server), spoiled, because=ConfigurationError, code=78)
        else:
            spoil()
            error = producer.refuses(producer.url(server), because=ConfigurationError)
        assert producer.marks in str(error)
        client.hset(producer.marks, outbox.id, before[0])
    producer.check_complete(server, producer.run(producer.url(server)))


# -- within a run


@pytest.mark.parametrize("lost", [1, 3, len(BATCHES)])
@pytest.mark.parametrize("lose", [deleted, unlinked_and_made_by_workers])
def test_a_stream_lost_during_a_run_is_filled_again(
    producer: Producer,
    server: Server,
    client: Any,
    caplog: pytest.LogCaptureFixture,
    lose: Callable[[Any, str], None],
    lost: int,
) -> None:
    """Whenever the stream is lost while its marks stay, all is sent again, with one warning."""
    gone = After(lambda: lose(client, producer.stream), batches=lost)
    report = producer.run(producer.url(server), gone)
    producer.check_complete(server, report, redelivered=lost * BATCH)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "lost writes" in warning


def test_a_stream_made_from_scratch_during_a_run(producer: Producer, server: Server, client: Any) -> None:
    """Another program's entries in a new stream of that name are not taken for ours."""

    def replace_stream() -> None:
        last = client.xinfo_stream(producer.stream)["last-generated-id"].partition(b"-")[0]
        while client.time()[0] * 1000 + client.time()[1] // 1000 <= int(last):
            pass  # within one millisecond Redis 6.2 could not tell
        client.delete(producer.stream)
        for _ in range(2 * COUNT):
            client.xadd(producer.stream, {"data": '{"city_id":0}'})

    report = producer.run(producer.url(server), After(replace_stream, batches=3))
    assert (report.complete, report.redelivered) == (True, 3 * BATCH)
    assert city_ids(server, producer.stream) == [0] * 2 * COUNT + list(range(1, COUNT + 1))


@pytest.mark.slow
def test_a_stream_evicted_during_a_run(producer: Producer, own_server: Server) -> None:
    """A server under memory pressure that evicts the stream gets everything again."""
    with own_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")

        def press() -> None:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 2**20)
            number = 0
            while client.exists(producer.stream):
                client.set(f"ballast {number}", bytes(2**14))
                client.hlen(producer.marks)  # recently used, so it is the stream that goes
                number += 1
            client.config_set("maxmemory", 0)

        report = producer.run(producer.url(own_server), After(press, batches=3))
    producer.check_complete(own_server, report, redelivered=3 * BATCH)


def test_marks_deleted(producer: Producer, server: Server) -> None:
    """If somebody deletes the marks alone, what was sent is sent again with the same ids, and the report says so."""
    with server.client() as client:
        forget = After(lambda: client.delete(producer.marks), batches=3)
        report = producer.run(producer.url(server), forget)
    found = tasks(server, producer.stream)
    assert (report.complete, report.delivered, report.redelivered) == (True, COUNT, 3 * BATCH)
    assert len(found) == length(server, producer.stream) == COUNT + report.redelivered
    assert {task["city_id"] for task in found} == set(range(1, COUNT + 1))
    assert len({task["task_id"] for task in found}) == COUNT
