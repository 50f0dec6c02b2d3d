"""The contracts on all of these backends, for a pytest of its own: ``Kit…`` per honest base and per broken backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owm_outbox import Page, Run, Sink
from owm_outbox.testing import (
    Capabilities,
    Destination,
    JobContract,
    OutboxContract,
    SinkContract,
    Source,
    Storage,
    full_disk,
)
from owm_outbox_backends.memory import MemoryOutbox
from owm_outbox_backends.postgresql import PostgresqlOutbox

from support.contract_kit import (  # noqa: F401 - each registers its broken backends
    broken_at_size,
    broken_batches,
    broken_by_kills,
    broken_entries,
    broken_jobs,
    broken_keys,
    broken_letters,
    broken_marks,
    broken_order,
    broken_refusals,
    broken_runs,
    broken_sharing,
    broken_together,
    broken_when_down,
)
from support.contract_kit.catalogue import KEYS, Catalogue, CatalogueJob, NamelessJob, Ware
from support.contract_kit.ledger import LedgerSink, ledger_payloads, lose_ledger
from support.contract_kit.lines import LinesSink
from support.contract_kit.outboxes import Clock, HastySqliteOutbox, within
from support.contract_kit.registry import CAUGHT_BY
from support.contract_kit.shelf import POISON, HonestSink, Shelf
from support.postgres import PostgresServer, postgres_binaries, postgres_running
from support.postgres_outbox import place_on

__all__ = ["BROKEN", "HONEST", "WHOLE", "kit_of"]


class KitShelfContract(SinkContract):
    """The contract of a sink on a shelf: in memory."""

    capabilities = Capabilities(durable=False, bounded=True, rejects=True, interruptible=True, remote=True)
    patience = 2.0
    backend: type[HonestSink] = HonestSink

    @pytest.fixture
    def shelf(self) -> Shelf:
        """Give an empty shelf."""
        return Shelf()

    @pytest.fixture
    def destination(self, shelf: Shelf) -> Destination:
        """Deliver to the shelf."""

        def fill() -> None:
            shelf.payloads += [b"{}"] * 10
            shelf.capacity = len(shelf.payloads) + 20

        return Destination(
            open=lambda: self.backend(shelf),
            payloads=lambda: shelf.payloads,
            fill=fill,
            poison=POISON,
            interrupt=shelf.breaking,
            unreachable=lambda: self.backend(Shelf(reachable=False)),
        )


class KitLedgerContract(SinkContract):
    """The contract of a sink in a database."""

    capabilities = Capabilities(remote=True, notices_loss=True)
    settling = 0.1
    backend: type[LedgerSink] = LedgerSink

    @pytest.fixture
    def destination(self, tmp_path: Path) -> Destination:
        """Deliver to the database."""
        path = tmp_path / "ledger.db"

        def unreachable() -> Sink:
            return self.backend(tmp_path / "unmounted" / "ledger.db")

        return Destination(
            open=lambda: self.backend(path),
            payloads=lambda: ledger_payloads(path),
            unreachable=unreachable,
            lose=lambda: lose_ledger(path),
        )


class KitLinesContract(SinkContract):
    """The contract of a sink that holds no marks: in a file."""

    capabilities = Capabilities(holds_mark=False, interruptible=True, remote=True)
    backend: type[LinesSink] = LinesSink

    @pytest.fixture
    def destination(self, tmp_path: Path) -> Destination:
        """Deliver to the file."""
        path = tmp_path / "lines"
        return Destination(
            open=lambda: self.backend(path),
            payloads=lambda: path.read_bytes().splitlines() if path.exists() else [],
            interrupt=lambda: full_disk(path),
            unreachable=lambda: self.backend(tmp_path / "unmounted" / "lines"),
        )


class _WithAClock(OutboxContract):
    """An outbox whose clock can be set."""

    @pytest.fixture
    def clock(self) -> Clock:
        """Give the clock that the outbox goes by."""
        return Clock()


class KitSqliteContract(_WithAClock):
    """The contract of an outbox in a file."""

    capabilities = Capabilities(interruptible=True, settable_clock=True, transactions=True)
    backend: type[HastySqliteOutbox] = HastySqliteOutbox

    @pytest.fixture
    def storage(self, tmp_path: Path, clock: Clock) -> Storage:
        """Open the same file each time; leave no room for its WAL."""
        return Storage(
            open=lambda: self.backend(tmp_path / "tasks.db", clock.now),
            interrupt=lambda: full_disk(tmp_path / "tasks.db-wal"),
            transaction=lambda: within(tmp_path / "tasks.db"),
            turn_clock=clock.turn,
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Run a server."""
    with postgres_running(postgres_binaries()["postgres-18"]) as server:
        yield server


class KitPostgresqlContract(OutboxContract):
    """The contract of an outbox on a server."""

    capabilities = Capabilities(transactions=True)
    backend: type[PostgresqlOutbox] = PostgresqlOutbox

    @pytest.fixture
    def storage(self, postgres: PostgresServer) -> Iterator[Storage]:
        """Open the same tables each time."""
        with place_on(postgres) as place:
            yield Storage(open=lambda: self.backend(postgres.url(), table=place.table), transaction=place.begin)


class KitMemoryContract(_WithAClock):
    """The contract of an outbox in memory."""

    capabilities = Capabilities(durable=False, settable_clock=True)
    backend: type[MemoryOutbox] = MemoryOutbox

    @pytest.fixture
    def storage(self, clock: Clock) -> Storage:
        """Give the same object each time."""
        outbox = self.backend(now=clock.now)
        return Storage(open=lambda: outbox, turn_clock=clock.turn)


class KitCatalogueContract(JobContract):
    """The contract of a job that reads a catalogue."""

    patience = 1.0
    backend: type[CatalogueJob] = CatalogueJob

    @pytest.fixture
    def source(self) -> Source:
        """Read from the catalogue."""
        catalogue = Catalogue()
        return Source(lambda: self.backend(catalogue), KEYS, invalid=2, failing=catalogue.failing)


class KitNamelessContract(KitCatalogueContract):
    """The contract of a job without keys."""

    backend: type[CatalogueJob] = NamelessJob


class KitWithoutSource(JobContract):
    """A subclass whose author forgot the fixture."""


class KitOfNoTrouble(KitSqliteContract):
    """An outbox that can be interrupted by nobody, but says so."""

    @pytest.fixture
    def storage(self, tmp_path: Path, clock: Clock) -> Storage:
        """Open a file."""
        return Storage(open=lambda: self.backend(tmp_path / "tasks.db", clock.now))


class KitOfALittleSource(KitCatalogueContract):
    """A source of one page, without bad records, that nobody can make fail."""

    @pytest.fixture
    def source(self) -> Source:
        """Read three wares, of which there is one page."""
        catalogue = Catalogue([{"number": n, "name": "ware"} for n in range(3)])

        class OnePage(CatalogueJob):
            def pages(self, run: Run) -> Iterator[Page[Ware]]:
                yield self.page(run, self.read(run, 0), 3)

        return Source(lambda: OnePage(catalogue), range(3))


class KitWithoutDestination(SinkContract):
    """A subclass whose author forgot the fixture."""


class KitWithoutStorage(OutboxContract):
    """A subclass whose author forgot the fixture."""


class KitOfLittle(KitShelfContract):
    """A sink that says it can do nothing special."""

    capabilities = Capabilities(durable=False, holds_mark=False)


class KitOfEmptyPromises(KitLedgerContract):
    """A sink that says it can do what its destination has nothing for."""

    capabilities = Capabilities(durable=False, bounded=True, rejects=True, interruptible=True)


HONEST: list[Any] = [
    KitShelfContract,
    KitLedgerContract,
    KitLinesContract,
    KitSqliteContract,
    KitMemoryContract,
    KitNamelessContract,
    KitCatalogueContract,
]


def kit_of(backend: type) -> type:
    """Return the honest kit for what a broken backend is made of."""
    # The whole contract runs on PostgreSQL in its own room.
    kit: type = next(kit for kit in (*HONEST, KitPostgresqlContract) if issubclass(backend, kit.backend))
    return kit


WHOLE = {
    kit.__name__: kit
    for kit in (
        *HONEST,
        KitWithoutDestination,
        KitWithoutStorage,
        KitWithoutSource,
        KitOfLittle,
        KitOfALittleSource,
        KitOfEmptyPromises,
    )
}
BROKEN = {
    f"Kit{backend.__name__}": type(
        f"Kit{backend.__name__}", (kit_of(backend),), {"backend": backend, "__module__": __name__}
    )
    for backend in CAUGHT_BY
}
globals().update(BROKEN)  # for pytest to collect
