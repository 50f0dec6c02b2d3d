"""At maxlen: what a group still needs is kept, and nothing that may be unread is trimmed silently."""

from __future__ import annotations

import contextlib
import logging
import threading

import pytest

from owm_outbox import RunIncomplete, SinkFull

from support.producer import BATCHES, COUNT, Producer
from support.servers import Server
from support.streams import Worker, city_ids, length


def check_got_everything(worker: Worker) -> None:
    """Check that every task was read, none twice."""
    assert len(worker.read) == len(set(worker.read)) == COUNT


def test_unread_tasks_are_kept(producer: Producer, server: Server) -> None:
    """With a group that does not read the stream stays at maxlen, 75 names the group, and each call gives it more."""
    worker = Worker(server, producer.stream, "slow")
    url = producer.url(server, maxlen=180)
    error = producer.fails(url, because=SinkFull)
    assert "group 'slow' has read nothing yet" in str(error)
    assert city_ids(server, producer.stream) == list(range(1, 181))
    assert producer.stats().pending == COUNT - 180
    calls = 0
    while True:
        worker.work(70)
        calls += 1
        if calls == 5:
            report = producer.run(url)
            break
        producer.fails(url, because=SinkFull)
        assert length(server, producer.stream) == 180
    while len(worker.read) < COUNT:
        worker.work(100)
    check_got_everything(worker)
    assert report.trimmed == 0
    assert len(producer.fetched) == len(BATCHES)
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
    report = producer.run(producer.url(server, maxlen=120), wait_for_room=60)
    thread.join()
    check_got_everything(worker)
    assert (report.complete, report.delivered, report.redelivered) == (True, COUNT, 0)


def test_read_but_unacknowledged_tasks_are_kept(producer: Producer, server: Server) -> None:
    """A task that was read but not acknowledged is not trimmed, nor is anything after it; acknowledging makes room."""
    worker = Worker(server, producer.stream, "crashed")
    url = producer.url(server, maxlen=200)
    producer.fails(url, because=SinkFull)
    ids = worker.take(200)
    worker.acknowledge(ids[20:])
    error = producer.fails(url, because=SinkFull)
    assert f"has not acknowledged {ids[0].decode()}" in str(error)
    assert city_ids(server, producer.stream) == list(range(1, 201))
    worker.acknowledge(ids[:19])
    producer.fails(url, because=SinkFull)
    assert city_ids(server, producer.stream) == list(range(20, 220))
    worker.acknowledge(ids[19:20])
    producer.fails(url, because=SinkFull)
    assert city_ids(server, producer.stream) == list(range(201, 401))
    worker.work(200)
    producer.run(url)
    worker.work(200)
    check_got_everything(worker)


@pytest.mark.slow
def test_the_slowest_of_several_groups_counts(producer: Producer, server: Server) -> None:
    """A task is kept until all groups have acknowledged it, and the error names the one that has not."""
    fast, slow = (Worker(server, producer.stream, name) for name in ("fast", "slow"))
    url = producer.url(server, maxlen=200)
    producer.fails(url, because=SinkFull)
    fast.work(200)
    for read in (0, 50, 150):
        slow.work(read - len(slow.read))
        assert "'slow'" in str(producer.fails(url, because=SinkFull))
        assert city_ids(server, producer.stream) == list(range(read + 1, read + 201))
    slow.work(500)
    assert "'fast'" in str(producer.fails(url, because=SinkFull))
    assert city_ids(server, producer.stream) == list(range(201, 401))
    for worker in (fast, slow):
        worker.work(500)
    producer.run(url)
    for worker in (fast, slow):
        worker.work(500)
        check_got_everything(worker)


@pytest.mark.slow
def test_without_a_group_a_run_is_not_trimmed(producer: Producer, server: Server) -> None:
    """Without a consumer group nothing that this run delivered goes: 75, and each way out that is named works."""
    url = producer.url(server, maxlen=150)
    for _ in range(2):
        error = producer.fails(url, because=SinkFull)
        assert "no consumer group reads it" in str(error)
        assert city_ids(server, producer.stream) == list(range(1, 151))
    create = f"XGROUP CREATE {producer.stream} GROUP 0"
    for way in (f"({create})", "raise maxlen=", "overflow=trim"):
        assert way in str(error)
    with server.client() as client:
        client.execute_command(create)
        client.xreadgroup("GROUP", "w", {producer.stream: ">"}, count=100, noack=True)
    producer.fails(url, because=SinkFull)
    assert city_ids(server, producer.stream) == list(range(101, 251))
    producer.fails(producer.url(server, maxlen=200), because=SinkFull)
    assert city_ids(server, producer.stream) == list(range(101, 301))
    report = producer.run(producer.url(server, maxlen=200, overflow="trim"))
    assert city_ids(server, producer.stream) == list(range(301, 501))
    assert (report.complete, report.trimmed) == (True, 200)


def test_without_a_group_older_runs_make_room(producer: Producer, server: Server) -> None:
    """Without a group the entries of earlier runs are trimmed at maxlen, and the report counts every one of them."""
    assert producer.run(producer.url(server, maxlen=700)).trimmed == 0
    report = producer.run(producer.url(server, maxlen=700))
    assert (report.complete, report.trimmed) == (True, 300)
    assert city_ids(server, producer.stream) == [*range(301, 501), *range(1, 501)]


def test_a_resumed_run_is_still_not_trimmed(producer: Producer, server: Server) -> None:
    """What an earlier call delivered of the same run stays, although it is another process that goes on."""
    producer.fails(producer.url(server, maxlen=300), because=SinkFull)
    error = producer.fails(producer.url(server, maxlen=400), because=SinkFull)
    assert "delivered by this run" in str(error)
    assert city_ids(server, producer.stream) == list(range(1, 401))


def test_no_bound_keeps_everything(producer: Producer, server: Server) -> None:
    """With maxlen=0 nothing is ever trimmed."""
    producer.check_complete(server, producer.run(producer.url(server, maxlen=0)))


@pytest.mark.slow
@pytest.mark.parametrize("groups", ["a,b", "a, b", " a ,b "])
def test_an_abandoned_group_can_be_left_out(producer: Producer, server: Server, groups: str) -> None:
    """With groups=a,b a group nobody reads in any more does not stop the producer, and the named ones miss nothing."""
    Worker(server, producer.stream, "abandoned")
    workers = [Worker(server, producer.stream, name) for name in ("a", "b")]
    url = producer.url(server, maxlen=200, groups=groups)
    for first in (1, 201):
        producer.fails(url, because=SinkFull)
        assert city_ids(server, producer.stream) == list(range(first, first + 200))
        workers[0].work(200)
        assert "'b'" in str(producer.fails(url, because=SinkFull))
        assert city_ids(server, producer.stream) == list(range(first, first + 200))
        workers[1].work(200)
    assert producer.run(url).trimmed == 0
    for worker in workers:
        worker.work(200)
        check_got_everything(worker)


@pytest.mark.parametrize("groups", ["wokers", "workers,wokers", "wokers,workers"])
def test_a_group_that_does_not_exist_has_read_nothing(producer: Producer, server: Server, groups: str) -> None:
    """A misspelt group: nothing is trimmed for it, and the message says that it does not exist and how to create it."""
    worker = Worker(server, producer.stream, "workers")
    url = producer.url(server, maxlen=200, groups=groups)
    producer.fails(url, because=SinkFull)
    worker.work(200)
    error = producer.fails(url, because=SinkFull)
    assert "groups= names 'wokers', but the stream does not have that group" in str(error)
    assert city_ids(server, producer.stream) == list(range(1, 201))
    create = f"XGROUP CREATE {producer.stream} wokers 0"
    assert create in str(error)
    with server.client() as client:
        client.execute_command(create)
    assert "group 'wokers' has read nothing yet" in str(producer.fails(url, because=SinkFull))
    assert city_ids(server, producer.stream) == list(range(1, 201))


@pytest.mark.slow
def test_groups_are_told_apart_by_their_whole_names(producer: Producer, server: Server) -> None:
    """groups=ab is about the group ab, not about those called a, b or abc."""
    for name in ("a", "b", "abc", "-", "ab-"):
        Worker(server, producer.stream, name)
    worker = Worker(server, producer.stream, "ab")
    url = producer.url(server, maxlen=200, groups="ab")
    assert "'ab'" in str(producer.fails(url, because=SinkFull))
    worker.work(500)
    assert "'ab'" in str(producer.fails(url, because=SinkFull))
    assert city_ids(server, producer.stream) == list(range(201, 401))


def test_trimming_all_the_same(producer: Producer, server: Server) -> None:
    """With overflow=trim a group that lags behind loses tasks, as the URL says, and the report counts them."""
    Worker(server, producer.stream, "slow")
    report = producer.run(producer.url(server, maxlen=150, overflow="trim"))
    assert (report.complete, report.trimmed) == (True, COUNT - 150)
    assert city_ids(server, producer.stream) == list(range(351, 501))


@pytest.mark.slow
def test_a_new_group_needs_only_what_is_new_to_it(producer: Producer, server: Server) -> None:
    """A group that starts at the end does not keep what was there before it."""
    with server.client() as client:
        client.xadd(producer.stream, {"data": '{"city_id": 0}'})
        for _ in range(99):
            client.xadd(producer.stream, {"data": '{"city_id": 0}'})
    worker = Worker(server, producer.stream, "late", start="$")
    url = producer.url(server, maxlen=200)
    producer.fails(url, because=SinkFull)
    assert city_ids(server, producer.stream) == list(range(1, 201))
    while len(worker.read) < COUNT:
        worker.work(200)
        with contextlib.suppress(RunIncomplete):
            producer.run(url)
    check_got_everything(worker)


def test_a_group_set_back_keeps_what_it_reads_again(producer: Producer, server: Server) -> None:
    """A group that was set back to the start, with tasks still unacknowledged, needs everything from the start."""
    worker = Worker(server, producer.stream, "again")
    url = producer.url(server, maxlen=200)
    producer.fails(url, because=SinkFull)
    ids = worker.take(200)
    worker.acknowledge(ids[:150])
    with server.client() as client:
        client.xgroup_setid(producer.stream, "again", "0")
    producer.fails(url, because=SinkFull)
    assert city_ids(server, producer.stream) == list(range(1, 201))


@pytest.mark.parametrize(("policy", "warns"), [("allkeys-lru", True), ("noeviction", False), ("volatile-lru", False)])
def test_warns_of_eviction(
    producer: Producer, own_server: Server, caplog: pytest.LogCaptureFixture, policy: str, warns: bool
) -> None:
    """A server that may evict the stream is used, with a warning that says so once."""
    with own_server.client() as admin:
        admin.config_set("maxmemory", "100mb")
        admin.config_set("maxmemory-policy", policy)
    with caplog.at_level(logging.WARNING, logger="owm_outbox_backends"):
        producer.check_complete(own_server, producer.run(producer.url(own_server)))
    assert [policy in record.getMessage() for record in caplog.records] == [True] * warns
