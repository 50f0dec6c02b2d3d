"""What one call trims and counts: a bounded amount, never a needed entry, and each unread one exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from owm_outbox import URL, Batch, ConfigurationError, Entry, Mark, MarkConflict, SinkFull
from owm_outbox_backends.redis_stream import RedisStreamSink

from support.proxy import FaultProxy
from support.servers import Server

SPARE = 1000  # entries that a call trims beyond the size of its batch, at most


class Sender:
    """Sends batches that follow each other."""

    def __init__(self, address: str, stream: str, box: str = "box", **options: Any) -> None:
        self.sink = RedisStreamSink(f"redis://{address}/0", stream=stream, backoff_base=0.01, **options)
        self.box = box
        self.mark = Mark(self.sink.mark(box))

    def send(self, count: int, *, run: str = "run") -> None:
        """Send a batch of this size."""
        after = self.mark.position
        entries = [Entry(after + n, f"task-{after + n}", b"%d" % (after + n)) for n in range(1, count + 1)]
        batch = Batch(self.box, self.mark, entries, Mark.of(entries[-1], "lease"), run)
        self.sink.send(batch)
        self.mark = batch.mark

    def send_all(self, count: int, *, run: str = "run") -> int:
        """Send this many entries in as many batches as there is room for; return how many batches that took."""
        batches = 0
        while count:
            batches += 1
            try:
                self.send(count, run=run)
                return batches
            except SinkFull as error:
                if not error.room:
                    raise
                room = min(error.room, count)
            self.send(room, run=run)
            count -= room
        return batches


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    """Give a client for what others do to the stream."""
    with server.client() as client:
        yield client


def fill(client: Any, stream: str, count: int) -> list[bytes]:
    """Add entries as an earlier run did; return their ids."""
    ids: list[bytes] = []
    while len(ids) < count:
        pipe = client.pipeline(transaction=False)
        for _ in range(min(10_000, count - len(ids))):
            pipe.xadd(stream, {"data": "0"})
        ids += pipe.execute()
    return ids


def payloads(client: Any, stream: str) -> list[int]:
    """Return the payloads of a stream, in order."""
    return [int(fields[b"data"]) for _, fields in client.xrange(stream)]


# -- entries that nobody is known to have read


def test_without_a_run_trimming_is_allowed_and_counted(server: Server, client: Any, stream: str) -> None:
    """A service without runs and without groups keeps the newest maxlen entries, and counts the others."""
    sender = Sender(server.address, stream, maxlen=20)
    for _ in range(5):
        sender.send(10, run="")
    assert payloads(client, stream) == list(range(31, 51))
    assert sender.sink.trimmed == 30


def test_a_new_run_may_trim_what_the_one_before_delivered(server: Server, client: Any, stream: str) -> None:
    """Whatever was there before the first batch of a run is older than it, and no more is."""
    sender = Sender(server.address, stream, maxlen=20)
    sender.send(20, run="first")
    sender.send(15, run="second")
    with pytest.raises(SinkFull) as full:
        sender.send(10, run="second")
    assert full.value.room == 5
    sender.send(5, run="second")
    with pytest.raises(SinkFull, match="delivered by this run"):
        sender.send(1, run="second")
    assert payloads(client, stream) == list(range(21, 41))
    assert sender.sink.trimmed == 20


def test_a_batch_without_a_run_does_not_end_the_run(server: Server, stream: str) -> None:
    """Where a run's floor is stored, it stays, whatever else is delivered in between."""
    sender = Sender(server.address, stream, maxlen=20)
    sender.send(10, run="first")
    sender.send(5, run="")
    with pytest.raises(SinkFull) as full:
        sender.send(10, run="first")
    assert full.value.room == 5


def test_a_batch_larger_than_maxlen_is_told_to_be_smaller(server: Server, client: Any, stream: str) -> None:
    """A batch that can never fit is refused, with room for a smaller one."""
    sender = Sender(server.address, stream, maxlen=20)
    with pytest.raises(SinkFull, match="the batch alone is larger") as full:
        sender.send(30)
    assert full.value.room == 20
    sender.send(20)
    assert client.xlen(stream) == 20


def test_trimmed_counts_from_when_the_object_first_looked(server: Server, stream: str) -> None:
    """Each object counts what was trimmed in its own time."""
    sender = Sender(server.address, stream, maxlen=20)
    for _ in range(3):
        sender.send(10, run="")
    later = Sender(server.address, stream, maxlen=20)
    assert later.sink.trimmed == 0
    later.send(10, run="")
    assert (sender.sink.trimmed, later.sink.trimmed) == (10, 10)
    sender.sink.mark("box")
    assert sender.sink.trimmed == 20


def test_trimmed_counts_without_a_look_before_it(server: Server, stream: str) -> None:
    """A first call that sends counts what that call itself trimmed."""
    sender = Sender(server.address, stream, maxlen=10)
    sender.send(10, run="")
    sender.sink = RedisStreamSink(f"redis://{server.address}/0", stream=stream, maxlen=10)
    sender.send(10, run="")
    assert sender.sink.trimmed == 10


def test_a_lost_reply_loses_no_count(server: Server, proxy: FaultProxy, stream: str) -> None:
    """A batch whose reply is lost has trimmed; the repetition, which adds nothing, tells how much."""
    sender = Sender(proxy.address, stream, maxlen=10)
    sender.send(10, run="")
    fault = proxy.lose_reply(at=1, command="SEND")
    with pytest.raises(MarkConflict):  # with the mark of the batch: it was taken
        sender.send(10, run="")
    assert fault.count == 1
    assert sender.sink.trimmed == 10


def test_a_server_that_lost_its_count_is_counted_from_there(server: Server, client: Any, stream: str) -> None:
    """After a FLUSHALL the server's count begins with 0: what was counted stays, what follows is added."""
    sender = Sender(server.address, stream, maxlen=10)
    for _ in range(3):
        sender.send(10, run="")
    client.flushall()
    sender.mark = Mark(sender.sink.mark("box"))
    for _ in range(2):
        sender.send(10, run="")
    assert sender.sink.trimmed == 20 + 10


def test_trimming_all_the_same_counts_only_what_is_unread(server: Server, client: Any, stream: str) -> None:
    """With overflow=trim, of the entries that go only those count that a group has not acknowledged."""
    sender = Sender(server.address, stream, maxlen=100, overflow="trim")
    sender.send(100)
    client.xgroup_create(stream, "g", "0")
    [(_, entries)] = client.xreadgroup("g", "w", {stream: ">"}, count=50)
    client.xack(stream, "g", *[entry_id for entry_id, _ in entries[:30]])
    sender.send(70)
    assert payloads(client, stream) == list(range(71, 171))
    assert sender.sink.trimmed == 70 - 30


# -- references to entries that no longer exist


@pytest.mark.parametrize("how", ["trimmed", "deleted"])
def test_entries_that_no_longer_exist_hold_nothing_up(server: Server, client: Any, stream: str, how: str) -> None:
    """A consumer that died with entries which were trimmed or deleted since: everything that exists is acknowledged."""
    sender = Sender(server.address, stream, maxlen=100)
    sender.send(100)
    client.xgroup_create(stream, "g", "0")
    [(_, dead)] = client.xreadgroup("g", "dead", {stream: ">"}, count=60)
    [(_, done)] = client.xreadgroup("g", "worker", {stream: ">"})
    client.xack(stream, "g", *[entry_id for entry_id, _ in done])
    with pytest.raises(SinkFull, match="has not acknowledged"):
        sender.send(1)
    if how == "trimmed":
        client.xtrim(stream, maxlen=40, approximate=False)
    else:
        client.xdel(stream, *[entry_id for entry_id, _ in dead])
    assert client.xpending(stream, "g")["pending"] == 60
    sender.send(100)
    assert client.xlen(stream) == 100
    assert sender.sink.trimmed == 0


def test_an_entry_that_exists_between_those_that_do_not_is_kept(server: Server, client: Any, stream: str) -> None:
    """Of a dead consumer's entries one is still there: it and all after it stay, what is before it goes."""
    sender = Sender(server.address, stream, maxlen=100)
    sender.send(100)
    client.xgroup_create(stream, "g", "0")
    [(_, entries)] = client.xreadgroup("g", "w", {stream: ">"})
    ids = [entry_id for entry_id, _ in entries]
    client.xack(stream, "g", *ids[:10], *ids[41:])
    client.xdel(stream, *ids[10:40])  # of what is pending only the 41st exists
    sender.send(40)
    with pytest.raises(SinkFull, match=f"has not acknowledged {ids[40].decode()}") as full:
        sender.send(1)
    assert full.value.room == 0
    assert payloads(client, stream) == [*range(41, 141)]


@pytest.mark.slow
def test_more_dead_references_than_one_call_looks_at(server: Server, client: Any, stream: str) -> None:
    """Every second one of 4,000 entries is such a reference, between entries that are done: each call gets further."""
    ids = fill(client, stream, 4000)
    client.xgroup_create(stream, "g", "0")
    client.xreadgroup("g", "dead", {stream: ">"})
    client.xack(stream, "g", *ids[::2])
    client.xdel(stream, *ids[1::2])
    sender = Sender(server.address, stream, maxlen=2000)
    assert client.xlen(stream) == 2000
    client.config_resetstat()
    batches = sender.send_all(2000)
    assert sorted(set(payloads(client, stream))) == list(range(1, 2001))
    statistics = client.info("commandstats")
    assert statistics["cmdstat_xpending"]["calls"] <= 500 * 2 * batches
    assert sender.sink.trimmed == 0


@pytest.mark.slow
def test_a_long_row_of_dead_references_is_one_step(server: Server, client: Any, stream: str) -> None:
    """References to entries that are gone in a row are passed over at once, however many they are."""
    ids = fill(client, stream, 20_000)
    client.xgroup_create(stream, "g", "0")
    client.xreadgroup("g", "dead", {stream: ">"})
    client.xack(stream, "g", ids[0], *ids[-99:])
    client.xdel(stream, *ids[1:-99])
    sender = Sender(server.address, stream, maxlen=100)
    client.config_resetstat()
    sender.send(100)
    assert client.info("commandstats")["cmdstat_xpending"]["calls"] <= 3
    assert len(payloads(client, stream)) == 100


# -- a bounded amount of work


@pytest.mark.slow
@pytest.mark.parametrize("reads", ["a group that is done", "a group that lags", "nobody", "all the same"])
def test_one_call_does_a_bounded_amount_of_work(server: Server, client: Any, stream: str, reads: str) -> None:
    """However far a stream is beyond maxlen, a call trims a slice of it, and takes its batch if that makes room."""
    ids = fill(client, stream, 30_000)
    if reads.startswith("a group"):
        client.xgroup_create(stream, "g", ids[-1] if reads.endswith("done") else ids[99])
    sender = Sender(server.address, stream, maxlen=1000, overflow="trim" if reads == "all the same" else "hold")
    client.config_resetstat()
    if reads == "a group that lags":
        with pytest.raises(SinkFull) as full:
            sender.send(500)
        assert full.value.room == 100
        sender.send(100)
        assert client.xlen(stream) == 30_000, "it may not grow, and 100 are not needed any more"
        return
    sender.send(500)
    assert client.xlen(stream) == 30_000 - SPARE
    looked_at = client.info("commandstats").get("cmdstat_xrange", {"calls": 0})["calls"]
    assert looked_at <= (500 + SPARE) / 100
    sender.send(500)
    assert client.xlen(stream) == 30_000 - 2 * SPARE
    assert sender.sink.trimmed == (0 if reads.startswith("a group") else 2 * (500 + SPARE))


# -- options


@pytest.mark.parametrize("groups", ["", " ", ",", "a,", ",a", "a,,b", "a, ,b"])
def test_an_empty_name_of_a_group_is_refused(groups: str) -> None:
    """groups= with an empty name among the names is a mistake, not a group."""
    with pytest.raises(ConfigurationError, match="groups="):
        RedisStreamSink.from_url(URL(f"redis://localhost:1/0?stream=s&groups={groups}"))
