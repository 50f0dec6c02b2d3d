"""What ``owm-outbox check`` runs with pytest: the contracts against a scratch destination next to a live URL.

The URL is read from stdin, so that a password in it is in no list of processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from owm_outbox.errors import ExitCode, printable
from owm_outbox.outbox import DeadLetterStore
from owm_outbox.plugins import outbox_class, scratch_outbox, scratch_sink
from owm_outbox.testing.capabilities import Capabilities
from owm_outbox.testing.destination import Destination
from owm_outbox.testing.outbox_contract import OutboxContract
from owm_outbox.testing.sink_contract import SinkContract
from owm_outbox.testing.storage import Storage
from owm_outbox.url import URL

__all__ = ["TestOutbox", "TestSink"]

_url = URL(sys.stdin.read().strip() or "memory:")
_FAILURES = ("Capabilities(interruptible=False)", "Capabilities(remote=False)")
_untested: dict[str, int] = {}  # how many tests were skipped, by reason


class TestSink(SinkContract):
    """The contract of a sink, on a live URL."""

    @pytest.fixture
    def destination(self) -> Iterator[Destination]:
        """Give a scratch destination; what it can do follows from what it has."""
        with scratch_sink(_url.scheme)(_url) as destination:
            with destination.open() as sink:
                holds_mark = sink.mark("check") is not None
            type(self).capabilities = Capabilities(
                holds_mark=holds_mark,
                bounded=destination.fill is not None,
                rejects=destination.poison is not None,
                interruptible=destination.interrupt is not None,
                remote=destination.unreachable is not None,
                notices_loss=destination.lose is not None,
            )
            yield destination

    @pytest.fixture(autouse=True)
    def _capabilities_first(self, destination: Destination) -> None:
        """Know what the destination can do before a test asks for it."""


class TestOutbox(OutboxContract):
    """The contract of an outbox, on a live URL."""

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        """Give a scratch outbox; what it can do follows from what it has."""
        cls = outbox_class(_url.scheme)
        with scratch_outbox(_url.scheme)(_url) as storage:
            with storage.open() as first, storage.open() as second:
                durable = first is not second
            type(self).capabilities = Capabilities(
                durable=durable,
                dead_letters=issubclass(cls, DeadLetterStore),
                interruptible=storage.interrupt is not None,
                settable_clock=storage.turn_clock is not None,
                transactions=storage.transaction is not None,
            )
            yield storage

    @pytest.fixture(autouse=True)
    def _capabilities_first(self, storage: Storage) -> None:
        """Know what the outbox can do before a test asks for it."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print one line per promise; for a broken one also what pytest saw."""
    with _stdout():
        _print(report)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Say what was not tested: to pass means little where failures were left out, and so the exit code is another."""
    with _stdout():
        for reason, count in _untested.items():
            _write(f"  {count} {'promise was' if count == 1 else 'promises were'} skipped: {reason}")
    if exitstatus == pytest.ExitCode.OK and any(reason.startswith(_FAILURES) for reason in _untested):
        session.exitstatus = ExitCode.UNTESTED


@contextmanager
def _stdout() -> Iterator[None]:
    try:
        yield
    except OSError:  # its reader left, or it is full
        pytest.exit("stdout cannot be written", returncode=ExitCode.TRY_AGAIN_LATER)


def _print(report: pytest.TestReport) -> None:
    promise = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        reason = reason.removeprefix("Skipped: ")
        _untested[reason] = _untested.get(reason, 0) + 1
        _write(f"  -     {promise} ({reason})")
    elif report.failed:
        lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        _write(f"  FAIL  {promise}")
        for line in lines[:5]:
            _write(f"          {line[1:].strip()}")
    elif report.when == "call":
        _write(f"  ok    {promise}")


def _write(line: str) -> None:
    """Write a line past Python's buffer: pytest flushes that at its end, and would then end with 1."""
    os.write(1, f"{printable(line)}\n".encode())
