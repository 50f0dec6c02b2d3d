"""Servers that hang, die, and return with or without their data: what they lost is sent again, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from owm_outbox import SinkUnavailable

from support.producer import BATCH, BATCHES, CALM, COUNT, PATIENT, After, Producer
from support.proxy import FaultProxy
from support.servers import Server, running
from support.streams import city_ids

pytestmark = pytest.mark.slow

Before = Callable[[Server], AbstractContextManager[FaultProxy]]

KEPT = ("--appendonly", "yes", "--appendfsync", "always")


def test_server_paused_and_resumed(producer: Producer, own_server: Server, before: Before) -> None:
    """A server that is stopped with a batch on its way, and continues later, has it once."""
    with before(own_server) as proxy:
        paused = proxy.before_request(own_server.pause, at=3, command="SEND")
        # The client gives that up, and gets no answer to the first words on new connections either.
        resumed = proxy.before_request(own_server.resume, at=6, command="CLIENT")
        producer.check_complete(own_server, producer.run(producer.url(proxy, socket_timeout=0.1)))
    assert (paused.count, resumed.count) == (1, 1)


def test_server_paused_for_good(producer: Producer, own_server: Server, before: Before) -> None:
    """A server that hangs is given up with 75; once it continues, so does the next call."""
    with before(own_server) as proxy:
        proxy.before_request(own_server.pause, at=3, command="SEND")
        producer.fails(producer.url(proxy, retries=1, socket_timeout=0.1), because=SinkUnavailable)
        own_server.resume()
        producer.check_complete(own_server, producer.run(producer.url(proxy)))
    assert proxy.requests["SEND"] >= len(BATCHES)


@pytest.mark.parametrize("moment", ["before the batch", "after the batch"])
def test_server_killed_and_restarted_with_its_data(
    producer: Producer, own_server: Server, before: Before, moment: str
) -> None:
    """A server that is killed just before or just after it took a batch, and keeps its data, gets nothing twice."""
    own_server.restart(*KEPT)
    with before(own_server) as proxy:
        rule = proxy.before_request if moment == "before the batch" else proxy.before_reply
        fault = rule(lambda: own_server.restart(*KEPT), at=3, command="SEND")
        producer.check_complete(own_server, producer.run(producer.url(proxy, **PATIENT)))
    assert fault.count == 1


@pytest.mark.parametrize("moment", ["before the batch", "after the batch"])
def test_server_killed_and_restarted_without_its_data(
    producer: Producer, own_server: Server, before: Before, moment: str
) -> None:
    """A server that comes back empty gets everything of the run again, and the report says how many that were."""
    with before(own_server) as proxy:
        rule = proxy.before_request if moment == "before the batch" else proxy.before_reply
        fault = rule(lambda: own_server.restart(), at=4, command="SEND")
        report = producer.run(producer.url(proxy, **CALM | {"retries": 100}))
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


def test_server_put_back_between_two_calls(
    producer: Producer, own_server: Server, before: Before, tmp_path: Path
) -> None:
    """A server restored from a copy between two calls of an unfinished run gets what it lacks from the second one."""
    with before(own_server) as proxy, own_server.client() as admin:
        proxy.before_reply(admin.save, at=2, command="SEND")
        proxy.before_request(proxy.refuse, at=4, command="SEND")
        proxy.lose_request(at=4, command="SEND")
        producer.fails(producer.url(proxy, retries=0), because=SinkUnavailable)
        assert len(city_ids(own_server, producer.stream)) == 3 * BATCH
        own_server.restart()
        proxy.accept()
        report = producer.run(producer.url(proxy))
    producer.check_complete(own_server, report, redelivered=BATCH)
    assert report.resumed


def test_replica_promoted_with_writes_lost(
    producer: Producer, own_server: Server, before: Before, tmp_path: Path
) -> None:
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


def test_server_comes_up_during_the_run(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """A server that is down at first and there for the final attempts gets everything in the same call."""
    proxy.refuse()
    up = After(proxy.accept, pages=1)
    producer.check_complete(server, producer.run(producer.url(proxy), up))
    assert up.called
