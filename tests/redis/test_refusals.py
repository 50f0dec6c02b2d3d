"""Servers that say no: what passes is waited for, what a person has to change ends with 78 and says what."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import redis

from owm_outbox import ConfigurationError, SinkFull, SinkUnavailable

from support.producer import BATCH, BATCHES, CALM, COUNT, PATIENT, After, Producer
from support.proxy import EVERY, FaultProxy
from support.servers import Server, running
from support.streams import city_ids

pytestmark = pytest.mark.slow

Before = Callable[[Server], AbstractContextManager[FaultProxy]]


def test_out_of_memory_from_the_start(producer: Producer, own_server: Server) -> None:
    """A server without memory takes nothing of a batch: 75, all is kept; with memory the next call delivers it."""
    with own_server.client() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        error = producer.fails(producer.url(own_server), because=SinkFull)
        assert "maxmemory" in str(error)
        assert city_ids(own_server, producer.stream) == []
        assert (producer.stats().pending, producer.stats().dead) == (COUNT, 0)
        admin.config_set("maxmemory", 0)
    producer.check_complete(own_server, producer.run(producer.url(own_server)))
    assert len(producer.fetched) == len(BATCHES)


def test_out_of_memory_for_a_while(producer: Producer, own_server: Server, before: Before) -> None:
    """A server that runs out of memory in the middle is waited for; whole batches are there or not at all."""
    with before(own_server) as proxy, own_server.client() as admin:
        short = After(lambda: admin.config_set("maxmemory", 1), batches=2)
        held: list[int] = []

        def make_room() -> None:
            held.append(len(city_ids(own_server, producer.stream)))
            admin.config_set("maxmemory", 0)

        proxy.before_reply(make_room, at=3, containing=b"OOM")
        producer.check_complete(own_server, producer.run(producer.url(proxy), short, wait_for_room=30))
    assert held == [2 * BATCH]


def test_read_only_until_the_failover_is_over(producer: Producer, own_server: Server, before: Before) -> None:
    """A server that is a replica for a moment is asked again until it is the master."""
    with before(own_server) as proxy, own_server.client() as admin:
        demoted = After(lambda: admin.execute_command("REPLICAOF 127.0.0.1 1"), batches=2)
        promoted = proxy.before_reply(lambda: admin.execute_command("REPLICAOF NO ONE"), at=4, containing=b"READONLY")
        producer.check_complete(own_server, producer.run(producer.url(proxy), demoted))
    assert promoted.count == 1


def test_read_only_for_good(producer: Producer, own_server: Server, before: Before) -> None:
    """A replica that stays one ends the call with 75, and nothing is lost."""
    with before(own_server) as proxy, own_server.client() as admin:
        demoted = After(lambda: admin.execute_command("REPLICAOF 127.0.0.1 1"), batches=2)
        producer.fails(producer.url(proxy), demoted, because=SinkUnavailable)
        assert any("READONLY" in error for error in proxy.errors)
        assert (producer.stats().pending, producer.stats().dead) == (COUNT - 2 * BATCH, 0)
        admin.execute_command("REPLICAOF NO ONE")
        producer.check_complete(own_server, producer.run(producer.url(proxy)))


def test_loading(producer: Producer, own_server: Server, before: Before) -> None:
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
        proxy.before_request(admin.script_flush, at=batch, command="SEND")
        producer.check_complete(server, producer.run(producer.url(proxy)))
    assert any(error.startswith("-NOSCRIPT") for error in proxy.errors)


def test_wrong_type_from_the_start(producer: Producer, server: Server) -> None:
    """A key of another type under the stream's name is bad configuration: 78 before anything is fetched or written."""
    with server.client() as client:
        client.set(producer.stream, "precious")
        error = producer.refuses(producer.url(server), because=ConfigurationError)
        assert "another type" in str(error)
        assert client.get(producer.stream) == b"precious"
        assert producer.fetched == []
        client.delete(producer.stream)
    producer.check_complete(server, producer.run(producer.url(server)))


def test_wrong_type_in_the_middle(producer: Producer, server: Server) -> None:
    """A key of another type that takes the stream's place ends the call with 78; nothing is lost."""
    with server.client() as client:

        def replace() -> None:
            client.rename(producer.stream, "aside")
            client.set(producer.stream, "x")

        producer.fails(producer.url(server), After(replace, batches=3), because=ConfigurationError, code=78)
        assert producer.stats().dead == 0
        client.rename("aside", producer.stream)
    producer.check_complete(server, producer.run(producer.url(server)))


def test_marks_of_a_wrong_type(producer: Producer, server: Server) -> None:
    """A key of another type where the marks are kept is bad configuration, and named."""
    with server.client() as client:
        client.set(producer.marks, "x")
        assert producer.marks in str(producer.refuses(producer.url(server), because=ConfigurationError))
        assert client.exists(producer.stream) == 0
        client.delete(producer.marks)
    producer.check_complete(server, producer.run(producer.url(server)))


@pytest.mark.parametrize("user", ["", ":hush-1@"], ids=["missing", "wrong"])
def test_password_missing_or_wrong(producer: Producer, own_server: Server, before: Before, user: str) -> None:
    """A server that wants another password is no outage: 78 at once, without retries, and no password is told."""
    with before(own_server) as proxy, own_server.client() as admin:
        admin.config_set("requirepass", "hush-2")
        url = producer.url(proxy)
        error = producer.refuses(url.replace("redis://", f"redis://{user}"), because=ConfigurationError)
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

        producer.fails(producer.url(own_server), After(change, batches=3), because=ConfigurationError, code=78)
        assert producer.stats().dead == 0
        admin.config_set("requirepass", "")
    producer.check_complete(own_server, producer.run(producer.url(own_server)))


@pytest.mark.slow
def test_copies_asked_for_and_every_reply_lost_once(
    producer: Producer, own_server: Server, before: Before, tmp_path: Path
) -> None:
    """Waiting for a replica makes no difference to what a lost reply may do: nothing is there twice, also there."""
    with running(own_server.binary, tmp_path / "replica") as replica, before(own_server) as proxy:
        with own_server.client() as master, replica.client() as other:
            master.config_set("repl-diskless-sync-delay", 0)
            other.execute_command("REPLICAOF", "127.0.0.1", own_server.port)
            master.set("mark", 1)
            assert master.execute_command("WAIT", 1, 10_000) == 1
        fault = proxy.lose_reply(at=EVERY, command="SEND", once_each=True)
        producer.check_complete(own_server, producer.run(producer.url(proxy, wait_replicas=1, **CALM)))
        producer.check_once(replica)
    assert fault.count >= len(BATCHES)


def test_disk_of_the_server_full(producer: Producer, own_server: Server, before: Before) -> None:
    """A server that cannot save and so takes no writes (MISCONF) ends the call with 75; later all is delivered."""
    (own_server.folder / "dump.rdb").mkdir()
    with before(own_server) as proxy, own_server.client() as admin:
        admin.config_set("save", "3600 1")

        def fail_to_save() -> None:
            admin.bgsave()
            while admin.info("persistence")["rdb_bgsave_in_progress"]:
                time.sleep(0.01)

        producer.fails(producer.url(proxy), After(fail_to_save, batches=2), because=SinkUnavailable)
        assert any("MISCONF" in error for error in proxy.errors)
        assert (producer.stats().pending, producer.stats().dead) == (COUNT - 2 * BATCH, 0)
        admin.config_set("stop-writes-on-bgsave-error", "no")
        producer.check_complete(own_server, producer.run(producer.url(proxy)))


def test_replicas_missing(producer: Producer, own_server: Server, before: Before) -> None:
    """A server that takes no writes without replicas (NOREPLICAS) ends the call with 75; later all is delivered."""
    with before(own_server) as proxy, own_server.client() as admin:
        lonely = After(lambda: admin.config_set("min-replicas-to-write", 1), batches=2)
        producer.fails(producer.url(proxy), lonely, because=SinkUnavailable)
        assert any("NOREPLICAS" in error for error in proxy.errors)
        assert (producer.stats().pending, producer.stats().dead) == (COUNT - 2 * BATCH, 0)
        admin.config_set("min-replicas-to-write", 0)
        producer.check_complete(own_server, producer.run(producer.url(proxy)))


def test_server_busy_with_a_script(producer: Producer, own_server: Server, before: Before) -> None:
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
        producer.fails(producer.url(proxy, socket_timeout=5), After(keep_busy, batches=2), because=SinkUnavailable)
        assert any("BUSY" in error for error in proxy.errors)
        admin.script_kill()
        endless.join()
        producer.check_complete(own_server, producer.run(producer.url(proxy)))


def test_no_more_clients(producer: Producer, own_server: Server, before: Before) -> None:
    """A server that has all the clients it takes is asked again; once one of them leaves, all is delivered."""
    with before(own_server) as proxy, own_server.client() as admin, own_server.client() as guest:
        guest.ping()
        admin.config_set("maxclients", 2)
        freed = proxy.before_reply(guest.close, at=3, containing=b"max number of clients")
        producer.check_complete(own_server, producer.run(producer.url(proxy)))
    assert freed.count == 1


def test_writes_paused_for_a_failover(producer: Producer, own_server: Server, before: Before) -> None:
    """A server that holds writes back, as before a planned failover, is waited for."""
    with before(own_server) as proxy, own_server.client() as admin:
        paused = After(lambda: admin.execute_command("CLIENT PAUSE 60000 WRITE"), batches=2)
        over = proxy.before_request(lambda: admin.execute_command("CLIENT UNPAUSE"), at=6, command="SEND")
        producer.check_complete(own_server, producer.run(producer.url(proxy, socket_timeout=0.1), paused))
    assert over.count == 1


def test_a_database_that_does_not_exist(producer: Producer, server: Server, proxy: FaultProxy) -> None:
    """A database number that the server does not have is bad configuration: 78 at once, without retries."""
    url = producer.url(proxy).replace("/0?", "/99?")
    assert "does not have this database" in str(producer.refuses(url, because=ConfigurationError))
    assert proxy.connections == 1
