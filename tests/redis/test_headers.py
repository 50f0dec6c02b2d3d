"""Headers of entries: left out, or fields of their own behind ``data``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import pytest

from owm_outbox import URL, Batch, EntriesRejected, Entry, Mark
from owm_outbox_backends.redis_stream import RedisStreamSink

from support.servers import Server
from support.streams import entries

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "content-type": "application/json"}
ODD = {"": "empty name", "empty value": "", "Zürich": '東京 \0 \n " \\ \u2028 😀', "1": "2", "Data": "x"}


def _batch(*headers: Mapping[str, str], after: Mark | str = "", first: int = 1) -> Batch:
    found = [
        Entry(position, str(uuid.uuid4()), b'{"number":%d}' % position, None, kept)
        for position, kept in enumerate(headers, first)
    ]
    return Batch("box", Mark(after), found, Mark.of(found[-1], "lease"))


def _sink(server: Server, stream: str, **options: object) -> RedisStreamSink:
    return RedisStreamSink.from_url(URL(server.url(stream, **options)))


def _text(fields: Mapping[bytes, bytes]) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in fields.items()]


def test_headers_are_left_out_unless_asked_for(server: Server, stream: str) -> None:
    """The wire format is one field, whatever headers an entry has."""
    with _sink(server, stream) as sink:
        sink.send(_batch(TRACE, ODD | {"data": "x"}))
    assert list(entries(server, stream)) == [{b"data": b'{"number":1}'}, {b"data": b'{"number":2}'}]


def test_headers_are_fields_behind_the_task(server: Server, stream: str) -> None:
    """With headers=fields each header is a field, in its order, whatever text it is; entries without have one field."""
    with _sink(server, stream, headers="fields") as sink:
        sink.send(_batch(TRACE, {}, ODD))
    found = [_text(fields) for fields in entries(server, stream)]
    assert [fields[0] for fields in found] == [("data", f'{{"number":{number}}}') for number in (1, 2, 3)]
    assert [fields[1:] for fields in found] == [list(TRACE.items()), [], list(ODD.items())]


def test_the_mark_is_borne_out_with_headers_and_without(server: Server, stream: str) -> None:
    """The option may change between runs: the mark that one left is held for the other, and lost with the stream."""
    first = _batch(TRACE, TRACE)
    with _sink(server, stream, headers="fields") as sink:
        sink.send(first)
        assert sink.mark("box") == first.mark
    second = _batch(TRACE, after=first.mark, first=3)
    with _sink(server, stream) as sink:
        assert sink.mark("box") == first.mark
        sink.send(second)
    with _sink(server, stream, headers="fields") as sink:
        assert sink.mark("box") == second.mark
        with server.client() as client:
            client.delete(stream)
        assert sink.mark("box") == ""


def test_a_bound_counts_entries_and_not_headers(server: Server, stream: str) -> None:
    """A stream with headers is full at as many entries as one without."""
    with _sink(server, stream, headers="fields", maxlen=4, overflow="trim", groups="a,b") as sink:
        first = _batch(TRACE, {}, TRACE)
        sink.send(first)
        sink.send(_batch({}, TRACE, TRACE, after=first.mark, first=4))
        assert sink.trimmed == 2
    with server.client() as client:
        assert client.xlen(stream) == 4


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"data": "{}"}, "one is called 'data'"),
        ({str(number): "" for number in range(1001)}, "there are 1001 of them"),
        ({"half": "\ud800"}, "UTF-8"),
    ],
    ids=["data", "many", "half a character"],
)
def test_headers_that_cannot_travel(server: Server, stream: str, headers: dict[str, str], reason: str) -> None:
    """Such entries are rejected by their positions, with the reason, and nothing of the batch is taken."""
    with _sink(server, stream, headers="fields") as sink:
        with pytest.raises(EntriesRejected) as caught:
            sink.send(_batch({}, headers, TRACE))
        assert list(caught.value.reasons) == [2]
        assert reason in caught.value.reasons[2]
        assert sink.mark("box") == ""
        sink.send(_batch({str(number): "x" for number in range(1000)}))
    assert [len(fields) for fields in entries(server, stream)] == [1001]


def test_headers_larger_than_the_server_takes(own_server: Server, stream: str) -> None:
    """Headers are measured as payloads are."""
    with own_server.client() as client:
        client.config_set("proto-max-bulk-len", 2**20)
    with _sink(own_server, stream, headers="fields") as sink:
        with pytest.raises(EntriesRejected, match="the server's limit is 1048576"):
            sink.send(_batch({"large": "x" * 2**20}))
        sink.send(_batch({"large": "x" * (2**20 - 100)}))
