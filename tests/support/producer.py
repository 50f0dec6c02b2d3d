"""A job with a real outbox, relay and Redis sink, to see what happens when something goes wrong between them."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import (
    URL,
    Batch,
    Job,
    Key,
    Observer,
    OutboxRelay,
    OutboxStats,
    OwmOutboxError,
    Page,
    Run,
    RunIncomplete,
    RunReport,
    SinkUnavailable,
)
from owm_outbox.plugins import open_sink
from owm_outbox_backends.redis_stream import RedisStreamSink
from owm_outbox_backends.sqlite import SqliteOutbox

from support.proxy import FaultProxy
from support.servers import Server
from support.streams import tasks

COUNT, BATCH = 500, 100
BATCHES = range(1, COUNT // BATCH + 1)
FAST = {"retries": 8, "backoff_base": 0.01, "backoff_cap": 0.05, "socket_timeout": 0.3}
PATIENT = FAST | {"retries": 100}
CALM = FAST | {"socket_timeout": 10}  # where a slow machine's timeout would change what is counted


@dataclasses.dataclass
class City:
    """A task, about as large as those of the OWM producer."""

    task_id: uuid.UUID
    city_id: int
    latitude_deg: float = 47.366669
    longitude_deg: float = 8.55


class Cities(Job[City]):
    """Yields the cities 1 to ``COUNT`` in pages of one batch each, and remembers which pages were fetched."""

    name = "cities"

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[int] = []

    def key(self, task: City) -> Key:
        """Tell cities apart by their ids."""
        return task.city_id

    def pages(self, run: Run) -> Iterator[Page[City]]:
        """Yield what follows the checkpoint."""
        for page in range(int(run.checkpoint or 0), len(BATCHES)):
            self.fetched.append(page)
            numbers = range(page * BATCH + 1, (page + 1) * BATCH + 1)
            yield Page([City(run.task_id(n), n) for n in numbers], str(page + 1).encode(), expected=COUNT)


class After(Observer):
    """Calls a function once, after the n-th batch was delivered or the n-th page stored."""

    def __init__(self, call: Callable[[], object], *, batches: int = 0, pages: int = 0) -> None:
        self._call = call
        self._batches = batches
        self._pages = pages
        self.called = False
        self.failure: Exception | None = None

    def batch_delivered(self, batch: Batch) -> None:
        """Count a batch."""
        self._batches -= 1
        if self._batches == 0:
            self._do()

    def page_stored(self, run: Run, page: Page[Any], new: int) -> None:
        """Count a page."""
        self._pages -= 1
        if self._pages == 0:
            self._do()

    def _do(self) -> None:
        self.called = True
        try:
            self._call()
        except Exception as error:  # a relay logs what an observer raises; here it must end the test
            self.failure = error


class Each(Observer):
    """Takes the next step after each batch that was delivered; one that fails must end the test."""

    def __init__(self, steps: Iterator[object]) -> None:
        self._steps = steps
        self.taken = 0
        self.failure: Exception | None = None

    def batch_delivered(self, batch: Batch) -> None:
        """Take a step."""
        try:
            next(self._steps, None)
            self.taken += 1
        except Exception as error:  # a relay logs what an observer raises
            self.failure = error


class Producer:
    """A job, an outbox file and the name of a stream."""

    def __init__(self, path: Path, stream: str) -> None:
        self.path = path
        self.stream = stream
        self.job = Cities()

    @property
    def fetched(self) -> list[int]:
        """The pages that were fetched so far, by any call."""
        return self.job.fetched

    @property
    def marks(self) -> str:
        """The hash in which the sink keeps its marks."""
        return f"{{{self.stream}}}:positions"

    def url(self, server: Server | FaultProxy, **options: object) -> str:
        """Name the test's stream on this server."""
        query = "".join(f"&{name}={value}" for name, value in (FAST | options).items())
        return f"redis://{server.address}/0?stream={self.stream}{query}"

    def sink(self, server: Server | FaultProxy, **options: object) -> RedisStreamSink:
        """Make a sink of its own."""
        return RedisStreamSink.from_url(URL(self.url(server, **options)))

    @contextlib.contextmanager
    def relay(
        self, url: str, *observers: Observer, wait_for_room: float = 0, batch_size: int = BATCH
    ) -> Iterator[OutboxRelay]:
        """Open outbox and sink, and put a relay between them."""
        with open_sink(url) as sink, SqliteOutbox(self.path) as outbox:
            yield OutboxRelay(outbox, sink, batch_size=batch_size, wait_for_room=wait_for_room, observers=observers)
        for observer in observers:
            if isinstance(observer, After | Each) and observer.failure is not None:
                raise observer.failure

    def run(self, url: str, *observers: Observer, wait_for_room: float = 0) -> RunReport:
        """Run the job as one call of a process of its own would."""
        with self.relay(url, *observers, wait_for_room=wait_for_room) as relay:
            return relay.run(self.job)

    def fails(
        self, url: str, *observers: Observer, because: type[OwmOutboxError], code: int = 75, wait_for_room: float = 0
    ) -> OwmOutboxError:
        """Run the job, whose run must be left incomplete because of this kind of error; return that error."""
        with self.relay(url, *observers, wait_for_room=wait_for_room) as relay:
            with pytest.raises(RunIncomplete) as caught:
                relay.run(self.job)
            cause = caught.value.__cause__
            assert isinstance(cause, because), repr(cause)
            assert caught.value.exit_code == code, caught.value
            assert not caught.value.report.complete
        return cause

    def refuses(self, url: str, *, because: type[OwmOutboxError]) -> OwmOutboxError:
        """Run the job, which must be refused with this kind of error before a run is started; return that error."""
        with self.relay(url) as relay, pytest.raises(because) as caught:
            relay.run(self.job)
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
        assert (report.forked, report.trimmed) == (False, 0)
        with SqliteOutbox(self.path) as outbox:
            assert (outbox.stats().pending, outbox.stats().dead, list(outbox.read(0, 1))) == (0, 0, [])

    def check_once(self, server: Server) -> None:
        """Check that every task is in the stream exactly once."""
        found = tasks(server, self.stream)
        assert sorted(task["city_id"] for task in found) == list(range(1, COUNT + 1))
        assert len({task["task_id"] for task in found}) == COUNT

    def fill(self, server: Server) -> None:
        """Fill the outbox while the sink is down."""
        with FaultProxy("127.0.0.1", server.port) as proxy:
            proxy.refuse()
            self.fails(self.url(proxy, retries=0), because=SinkUnavailable)
        assert self.stats().pending == COUNT
