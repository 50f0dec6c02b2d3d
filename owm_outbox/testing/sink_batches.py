"""What a sink promises of a batch."""

from __future__ import annotations

from owm_outbox.entry import Entry
from owm_outbox.sink import Sink
from owm_outbox.testing.destination import Destination
from owm_outbox.testing.parcels import batch_of, deliver, parcel_batch, parcel_batches, payloads
from owm_outbox.testing.sink_fixtures import SinkFixtures

__all__ = ["SinkBatches"]

_ENTRIES = 5_000
_PAYLOAD = 16 * 1024


def _heavy(entry: Entry, size: int) -> Entry:
    return entry._replace(payload=entry.payload[:-1] + b', "contents": "' + b"x" * size + b'"}')


class SinkBatches(SinkFixtures):
    """Batches of all sizes are held whole."""

    def test_a_batch_is_held_whole_and_in_order(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """When send returns, every entry of the batch is there, once, in order, byte for byte."""
        batch = parcel_batch(outbox_id, 0, 7)
        sink.send(batch)
        assert list(destination.payloads()) == payloads(batch)

    def test_batches_follow_each_other(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """Batches are held in the order in which they were sent, with nothing between, twice or missing."""
        batches = parcel_batches(outbox_id, 5, 5, 5)
        for batch in batches:
            sink.send(batch)
        assert list(destination.payloads()) == payloads(*batches)

    def test_a_batch_of_one_is_held(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """A batch may be a single entry."""
        batch = parcel_batch(outbox_id, 0, 1)
        sink.send(batch)
        assert list(destination.payloads()) == payloads(batch)

    def test_batches_of_the_usual_size_are_held(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """A relay sends 500 entries per batch unless it is told otherwise: each of them is there."""
        batches = parcel_batches(outbox_id, 500, 500)
        for batch in batches:
            sink.send(batch)
        held = list(destination.payloads())
        assert len(held) == 1000, f"two batches of 500 entries were sent, but {len(held)} entries are held"
        assert held == payloads(*batches), "entries are held in another order, or changed"

    def test_batches_of_many_entries_are_held(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """A relay may be told to send thousands of entries per batch: each of them is there, and stays there."""
        batches = parcel_batches(outbox_id, _ENTRIES, _ENTRIES)
        for batch in batches:
            deliver(sink, batch)
        held = list(destination.payloads())
        assert len(held) == 2 * _ENTRIES, (
            f"two batches of {_ENTRIES} entries were sent, but {len(held)} entries are held"
        )
        assert held == payloads(*batches), "entries are held in another order, or changed"

    def test_the_largest_batch_is_held(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """A batch of large tasks has up to 8 MiB of payload: all of it is there."""
        heavy = [_heavy(entry, _PAYLOAD - 200) for entry in parcel_batch(outbox_id, 0, 512).entries]
        sink.send(batch_of(outbox_id, 0, heavy))
        held = list(destination.payloads())
        assert len(held) == len(heavy)
        assert all(payload == entry.payload for payload, entry in zip(held, heavy, strict=True)), "a payload changed"

    def test_a_large_payload_is_held_whole(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """A payload of 64 KiB is the same afterwards."""
        heavy = _heavy(parcel_batch(outbox_id, 0, 1).entries[0], 64 * 1024)
        sink.send(batch_of(outbox_id, 0, [heavy]))
        (held,) = destination.payloads()
        assert len(held) == len(heavy.payload)
        assert held == heavy.payload

    def test_positions_may_have_gaps(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """Positions of a batch need not be consecutive, nor start right after the last one: dead letters leave gaps."""
        whole = parcel_batch(outbox_id, 0, 9).entries
        first = batch_of(outbox_id, 0, [whole[1], whole[4]])
        second = batch_of(outbox_id, 5, [whole[6], whole[8]])
        sink.send(first)
        sink.send(second)
        assert list(destination.payloads()) == payloads(first, second)

    def test_the_same_task_at_two_positions_is_held_twice(
        self, destination: Destination, sink: Sink, outbox_id: str
    ) -> None:
        """An application may append a task twice: only the mark says what is a repeat."""
        entry = parcel_batch(outbox_id, 0, 1).entries[0]
        sink.send(batch_of(outbox_id, 0, [entry, entry._replace(position=2)]))
        sink.send(batch_of(outbox_id, 2, [entry._replace(position=3)]))
        assert list(destination.payloads()) == [entry.payload] * 3

    def test_a_key_and_headers_change_no_payload(self, destination: Destination, sink: Sink, outbox_id: str) -> None:
        """Whatever a sink makes of an entry's key and headers, the payload stays as it is."""
        plain = parcel_batch(outbox_id, 0, 4).entries
        keys = (None, 0, -1, "Ä 東京 '\"")
        entries = [
            entry._replace(key=key, headers={"traceparent": "00-ä'\"\n", "x": ""})
            for entry, key in zip(plain, keys, strict=True)
        ]
        sink.send(batch_of(outbox_id, 0, entries))
        assert list(destination.payloads()) == [entry.payload for entry in plain]
