"""Streams that would lose tasks are refused; full ones say for how much they have room."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from owm_outbox import ConfigurationError, EntriesRejected, MarkConflict, SinkFull
from owm_outbox.plugins import open_sink
from owm_outbox.testing import parcel_batch
from owm_outbox_backends.jetstream.sink import mark_subject

from support.nats import NatsServer, running

pytestmark = [pytest.mark.slow]


def _says(nats: NatsServer) -> str:
    with pytest.raises(ConfigurationError) as caught, open_sink(nats.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(parcel_batch("box", 0, 3))
    return str(caught.value)


@pytest.fixture
def bare(shared_nats: NatsServer) -> Iterator[NatsServer]:
    """Give the shared server, on which a test makes its own stream TASKS."""
    yield shared_nats
    shared_nats.remove("TASKS")


# -- refused


def test_a_stream_that_does_not_exist(shared_nats: NatsServer) -> None:
    """The message has the command and the configuration that make it, and these do."""
    said = _says(shared_nats)
    assert said.endswith("nats stream add TASKS --config FILE")
    config = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert "error" not in shared_nats.api("STREAM.CREATE.TASKS", config)
    try:
        with open_sink(shared_nats.url("TASKS", "tasks", retries=0)) as sink:
            sink.send(parcel_batch("box", 0, 3))
    finally:
        shared_nats.remove("TASKS")


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"subjects": ["tasks"]}, "add 'tasks.mark.*' to its subjects"),
        ({"subjects": ["tasks.*.*"]}, "add 'tasks' to its subjects"),
        ({"allow_atomic": False}, "set allow_atomic"),
        ({"allow_rollup_hdrs": False}, "set allow_rollup_hdrs"),
        ({"retention": "interest"}, "set retention to workqueue or limits"),
        ({"max_age": 3_600_000_000_000}, "set max_age to 0"),
        ({"max_msgs_per_subject": 1000}, "set max_msgs_per_subject to -1"),
        ({"max_msgs_per_subject": 1000, "discard_new_per_subject": True}, "set max_msgs_per_subject to -1"),
        ({"retention": "limits", "discard": "old"}, "set discard to new, and max_bytes"),
        ({"max_bytes": -1}, "set discard to new, and max_bytes"),
        ({"no_ack": True}, "unset no_ack"),
        ({"subject_transform": {"src": "tasks", "dest": "tasks.mark.x"}}, "remove subject_transform"),
    ],
    ids=str,
)
def test_a_stream_that_would_lose_tasks_or_marks(bare: NatsServer, changed: Mapping[str, Any], advice: str) -> None:
    """What has to be changed is said before anything is sent."""
    bare.make("TASKS", "tasks", **changed)
    assert advice in _says(bare)
    assert bare.api("STREAM.INFO.TASKS")["state"]["messages"] == 0


def test_a_sealed_stream(bare: NatsServer) -> None:
    """A stream may be sealed at any time."""
    bare.make("TASKS", "tasks", retention="limits")
    config = bare.api("STREAM.INFO.TASKS")["config"]
    bare.api("STREAM.UPDATE.TASKS", {**config, "sealed": True})
    assert "it is sealed: name another one" in _says(bare)


def test_a_mirror(bare: NatsServer) -> None:
    """A mirror takes no messages."""
    bare.make("ORIGIN", "tasks", retention="limits")
    try:
        mirror = {"subjects": None, "mirror": {"name": "ORIGIN"}, "allow_rollup_hdrs": False, "allow_atomic": False}
        bare.make("TASKS", "tasks", retention="limits", **mirror)
        assert "it is a mirror" in _says(bare)
    finally:
        bare.remove("ORIGIN")


@pytest.mark.parametrize(
    "changed",
    [
        {"subjects": ["tasks", "tasks.>"]},
        {"retention": "limits"},
        {"storage": "memory"},
        {"deny_delete": True},
        {"compression": "s2"},
        {"allow_msg_ttl": True},
    ],
    ids=str,
)
def test_a_stream_that_suits(bare: NatsServer, changed: Mapping[str, Any]) -> None:
    """Streams may differ in what does no harm."""
    bare.make("TASKS", "tasks", **changed)
    first, second = parcel_batch("box", 0, 3), parcel_batch("box", 3, 2)
    with open_sink(bare.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(first)
        sink.send(second)
        assert sink.mark("box") == second.mark
    assert bare.api("STREAM.INFO.TASKS")["state"]["messages"] == 5 + 1


def test_a_stream_that_is_changed_meanwhile(bare: NatsServer) -> None:
    """What is changed while a sink is connected is said at the next batch, of which nothing is taken."""
    bare.make("TASKS", "tasks")
    config = bare.api("STREAM.INFO.TASKS")["config"]
    with open_sink(bare.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(parcel_batch("box", 0, 3))
        assert "error" not in bare.api("STREAM.UPDATE.TASKS", {**config, "allow_atomic": False})
        with pytest.raises(ConfigurationError, match="set allow_atomic on the stream"):
            sink.send(parcel_batch("box", 3, 3))
        bare.api("STREAM.UPDATE.TASKS", config)
        sink.send(parcel_batch("box", 3, 3))
        bare.remove("TASKS")
        with pytest.raises(ConfigurationError, match="the stream does not exist any more"):
            sink.send(parcel_batch("box", 6, 3))


def test_lanes_share_a_stream(bare: NatsServer) -> None:
    """One stream for all lanes, with a subject and marks for each, and one consumer of all tasks."""
    bare.make("TASKS", "tasks", subjects=["tasks.*", "tasks.*.mark.*"])
    _consumer(bare, filter_subject="tasks.*")
    for lane in range(3):
        with open_sink(bare.url("TASKS", f"tasks.{lane}", retries=0)) as sink:
            sink.send(batch := parcel_batch("box", 0, 3))
            assert sink.mark("box") == batch.mark
    assert len(bare.do(lambda client: _take(client, 9))) == 9
    assert bare.api("STREAM.INFO.TASKS")["state"]["messages"] == 3


# -- consumers and marks


def _consumer(nats: NatsServer, **config: Any) -> None:
    config = {"durable_name": "workers", "ack_policy": "explicit"} | config
    reply = nats.api("CONSUMER.DURABLE.CREATE.TASKS.workers", {"stream_name": "TASKS", "config": config})
    assert "error" not in reply, reply


@pytest.mark.parametrize("filters", [{}, {"filter_subject": "tasks.>"}, {"filter_subjects": ["tasks", "*.mark.b"]}])
def test_a_consumer_that_would_take_marks(nats: NatsServer, filters: Mapping[str, Any]) -> None:
    """In a work queue, a consumer that takes marks for tasks would remove them: it is named."""
    _consumer(nats, **filters)
    assert "the consumer 'workers' of the stream 'TASKS' also takes marks" in _says(nats)


def test_a_consumer_that_comes_later_and_takes_the_mark(nats: NatsServer) -> None:
    """A mark that a consumer took is not taken for a stream that was lost: nothing is sent twice."""
    with open_sink(nats.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(parcel_batch("box", 0, 3))
        _consumer(nats)
        nats.do(lambda client: _take(client, 4))
        with pytest.raises(ConfigurationError, match="also takes marks"):
            sink.send(parcel_batch("box", 3, 3))


def test_a_consumer_of_the_subject_never_sees_a_mark(nats: NatsServer) -> None:
    """A consumer that filters by the subject takes tasks out one by one; the mark stays."""
    _consumer(nats, filter_subject="tasks")
    batch = parcel_batch("box", 0, 3)
    with open_sink(nats.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(batch)
        assert nats.do(lambda client: _take(client, 3)) == [entry.payload for entry in batch.entries]
        assert sink.mark("box") == batch.mark
        sink.send(parcel_batch("box", 3, 3))
    assert nats.api("STREAM.INFO.TASKS")["state"]["messages"] == 3 + 1


async def _take(client: Client, count: int) -> list[bytes]:
    """Take and acknowledge messages, as a worker does."""
    workers = await client.jetstream().pull_subscribe_bind("workers", "TASKS")
    messages = await workers.fetch(count, timeout=10)
    for message in messages:
        await message.ack_sync()
    return [message.data for message in messages]


@pytest.mark.parametrize("outbox_id", ["a.b", "a*", ">", "Ä 1", "tasks"])
def test_the_mark_of_any_outbox_has_a_subject(outbox_id: str, nats: NatsServer) -> None:
    """What a subject cannot hold is escaped; a mark is one token below the subject's."""
    batch = parcel_batch(outbox_id, 0, 1)
    with open_sink(nats.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(batch)
    (mark,) = nats.messages("TASKS", mark_subject("tasks", outbox_id))
    assert mark.data.decode() == batch.mark
    assert mark_subject("tasks", outbox_id).count(".") == 2


# -- full


@pytest.mark.parametrize("limit", [{"max_msgs": 1000}, {"max_bytes": 200_000}], ids=str)
def test_a_full_stream_takes_what_it_has_room_for(bare: NatsServer, limit: Mapping[str, Any]) -> None:
    """The room that is named is there, to the last entry; nothing of what is refused is held."""
    bare.make("TASKS", "tasks", **limit)
    with open_sink(bare.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(parcel_batch("box", 0, 300))
        position = 300
        with pytest.raises(SinkFull, match=r"is full \(maximum") as full:
            sink.send(parcel_batch("box", position, 900))
        room = full.value.room
        before = bare.api("STREAM.INFO.TASKS")["state"]["messages"]
        assert 0 < room < 900
        with pytest.raises(SinkFull):
            sink.send(parcel_batch("box", position, room + (1 if "max_msgs" in limit else 3)))
        assert bare.api("STREAM.INFO.TASKS")["state"]["messages"] == before
        sink.send(parcel_batch("box", position, room))
        with pytest.raises(SinkFull) as last:
            sink.send(parcel_batch("box", position + room, 5))
        assert last.value.room <= 1


def test_a_server_that_has_less_room_than_tasks_come(tmp_path: Path) -> None:
    """What the server has in all is set aside for streams with max_bytes: a batch is refused as a whole."""
    with running(tmp_path, "jetstream { max_file_store: 1000000 }\n") as server:
        server.make("TASKS", "tasks", max_bytes=900_000)
        with open_sink(server.url("TASKS", "tasks", retries=0)) as sink:
            for sent in range(0, 3500, 500):
                sink.send(parcel_batch("box", sent, 500))
            with pytest.raises(SinkFull) as full:
                sink.send(parcel_batch("box", 3500, 500))
        assert 0 < full.value.room < 500
        assert len(server.payloads("TASKS", "tasks")) == 3500


def test_a_batch_of_more_messages_than_the_server_takes(nats: NatsServer) -> None:
    """A server takes 1,000 messages at once, of which one is the mark: known after the first such batch."""
    with open_sink(nats.url("TASKS", "tasks", retries=0)) as sink:
        for _ in range(2):
            with pytest.raises(SinkFull, match="the server takes 999 entries per batch") as caught:
                sink.send(parcel_batch("box", 0, 1000))
            assert caught.value.room == 999
        sink.send(parcel_batch("box", 0, 999))
    assert len(nats.payloads("TASKS", "tasks")) == 999


def test_a_server_that_takes_more(own_nats: NatsServer) -> None:
    """The number is a setting of the server's; the sink does not need to know it."""
    own_nats.config = "jetstream { limits { batch { max_msgs: 6000 } } }\n"
    own_nats.restart()
    with open_sink(own_nats.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(parcel_batch("box", 0, 5999))
        with pytest.raises(SinkFull) as caught:
            sink.send(parcel_batch("box", 5999, 6000))
        assert caught.value.room == 5999


# -- too large, and headers


@pytest.mark.parametrize("limit", [1024 * 1024, 5000], ids=["max_payload", "max_msg_size"])
def test_an_entry_that_is_too_large(bare: NatsServer, limit: int) -> None:
    """To the byte: with its headers, a message has as many bytes as server and stream take, or one more."""
    bare.make("TASKS", "tasks", **({"max_msg_size": limit} if limit < 2**20 else {}))
    batch = parcel_batch("box", 0, 3)
    (position, reason), size = _reason(bare, batch, 2 * limit), 2 * limit
    assert position == 2
    assert f"the limit is {limit}" in reason
    overhead = int(reason.split("it has ")[1].split()[0]) - size
    assert _reason(bare, batch, limit - overhead + 1)[0] == 2
    _send(bare, batch, limit - overhead)
    assert [len(payload) for payload in bare.payloads("TASKS", "tasks")][1] == limit - overhead


def _send(nats: NatsServer, batch: Any, size: int) -> None:
    first, second, third = batch.entries
    entries = (first, second._replace(payload=b"x" * size, headers={"traceparent": "00-1"}), third)
    with open_sink(nats.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(type(batch)(batch.outbox_id, batch.after, entries, batch.mark))


def _reason(nats: NatsServer, batch: Any, size: int) -> tuple[int, str]:
    with pytest.raises(EntriesRejected) as caught:
        _send(nats, batch, size)
    (found,) = caught.value.reasons.items()
    return found


def test_headers_travel(nats: NatsServer) -> None:
    """Headers stay as they are; what a message cannot hold, or what would be an order, is in Owm-Headers."""
    plain = {"traceparent": "00-4bf9-01", "Content-Type": "application/json; charset=utf-8", "baggage": "a=%20b"}
    others = {
        "x": "",
        "y": "two\r\nNats-Rollup: all",
        "z": " ends ",
        "ü": "ä",
        "a:b": "c",
        "nats-rollup": "all",
        "Nats-Msg-Id": "1",
        "owm-headers": "{}",
    }
    entry = parcel_batch("box", 0, 1).entries[0]._replace(headers=plain | others)
    batch = parcel_batch("box", 0, 1)
    with open_sink(nats.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(type(batch)("box", batch.after, (entry,), batch.mark))
        sink.send(parcel_batch("box", 1, 1))
    first, second = nats.messages("TASKS", "tasks")
    assert {name: value for name, value in first.headers.items() if not name.startswith("Nats-")} == {
        **plain,
        "Owm-Headers": json.dumps(others),
    }
    assert json.loads(first.headers["Owm-Headers"]) == others
    assert not [name for name in second.headers if not name.startswith("Nats-")]


# -- lost


def test_a_stream_that_was_purged_of_tasks_only(nats: NatsServer) -> None:
    """Who purges one subject takes its tasks out by hand: the mark stays, and nothing is sent again."""
    batch = parcel_batch("box", 0, 3)
    with open_sink(nats.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(batch)
        nats.api("STREAM.PURGE.TASKS", {"filter": "tasks"})
        assert sink.mark("box") == batch.mark


def test_a_stream_that_was_made_from_scratch(nats: NatsServer) -> None:
    """A new stream of the same name holds no mark."""
    batch = parcel_batch("box", 0, 3)
    with open_sink(nats.url("TASKS", "tasks", retries=0)) as sink:
        sink.send(batch)
        nats.remove("TASKS")
        nats.make("TASKS", "tasks")
        with pytest.raises(MarkConflict) as conflict:
            sink.send(parcel_batch("box", 3, 3))
        assert conflict.value.held == ""


# -- URLs


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nats://h:4222/TASKS", "needs subject=NAME"),
        ("nats://h:4222/?subject=tasks", "the path is the name of a stream"),
        ("nats://h:4222/A.B?subject=tasks", "the path is the name of a stream"),
        ("nats://h:4222/A/B?subject=tasks", "the path is the name of a stream"),
        ("nats:///TASKS?subject=tasks", "is not a host"),
        ("nats://h:1,/TASKS?subject=tasks", "is not a host"),
        ("nats://h:1,g:99999/TASKS?subject=tasks", "is not a host and a port"),
        ("nats://h:0/TASKS?subject=tasks", "is not a host"),
        *(
            (f"nats://h/TASKS?subject={subject}", "is not a subject to publish to")
            for subject in ("tasks.*", "%3E", "a..b", "a.", ".a", "a%20b", "$JS.API", "tasks.%3E")
        ),
        ("nats://h/TASKS?subject=tasks&timeout=0", "timeout"),
        ("nats://h/TASKS?subject=tasks&stream=x", "unknown option 'stream'"),
        ("nats://h/TASKS?subject=tasks&ca_file=/x", "ca_file= is for TLS: write tls://"),
        ("nats://ada:p@h/TASKS?subject=tasks&nkey=/x", "two ways to say who we are"),
        ("nats://h/TASKS?subject=tasks&creds=/x&nkey=/x", "two ways to say who we are"),
        ("nats://h/TASKS?subject=tasks&nkey=/none", "nkey=/none: No such file or directory"),
        ("nats://h/TASKS?subject=tasks&nkey=/etc/hostname", "has no seed of a user in it"),
        ("nats://h/TASKS?subject=tasks&creds=/etc/hostname", "is not a file of credentials"),
    ],
)
def test_a_url_that_cannot_work(url: str, words: str) -> None:
    """What is wrong with a URL is said before anything is connected to, in one line."""
    with pytest.raises(ConfigurationError) as caught:
        open_sink(url)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sink_that_was_interrupted_can_be_used_again(own_nats: NatsServer) -> None:
    """Ctrl+C ends an exchange; the next one does not read its answer."""
    batch = parcel_batch("box", 0, 3)
    interruption = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with open_sink(own_nats.url("TASKS", "tasks", retries=0, timeout=30)) as sink:
        assert sink.mark("box") == ""
        own_nats.pause()
        interruption.start()
        with pytest.raises(KeyboardInterrupt):
            sink.send(batch)
        own_nats.resume()
        interruption.join()
        if sink.mark("box") == "":
            sink.send(batch)
        assert sink.mark("box") == batch.mark
    assert len(own_nats.payloads("TASKS", "tasks")) == 3
