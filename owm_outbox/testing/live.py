"""What ``owm-outbox check`` runs with pytest: the contracts against a scratch place beside a live URL.

The URL comes on stdin, so that a password in it is in no list of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import click
import pytest

from owm_outbox.outbox import DeadLetterStore, Outbox
from owm_outbox.plugins import outbox_class, sink_class
from owm_outbox.sink import Place
from owm_outbox.testing import Capabilities, OutboxContract, SinkContract
from owm_outbox.url import URL

__all__ = ["TestOutbox", "TestSink"]

_url = URL(sys.stdin.read().strip() or "memory:")


class TestSink(SinkContract):
    """The contract of a sink, on a live URL."""

    @pytest.fixture
    def place(self) -> Iterator[Place]:
        """Give the sink's own scratch place."""
        with sink_class(_url.scheme).scratch(_url) as place:
            with place.open() as sink:
                tracks = sink.position("check") is not None
            self.__class__.capabilities = Capabilities(
                tracks_position=tracks, bounded=place.fill is not None, rejects=place.poison is not None
            )
            yield place


class TestOutbox(OutboxContract):
    """The contract of an outbox, on a live URL."""

    @pytest.fixture
    def open_outbox(self) -> Iterator[Callable[[], Outbox]]:
        """Give the outbox's own scratch place."""
        cls = outbox_class(_url.scheme)
        with cls.scratch(_url) as open_outbox:
            with open_outbox() as first, open_outbox() as second:
                durable = first is not second
            self.__class__.capabilities = Capabilities(durable=durable, dead_letters=issubclass(cls, DeadLetterStore))
            yield open_outbox


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print one line a promise; for a broken one also what pytest saw."""
    try:
        _print(report)
    except BrokenPipeError:
        pytest.exit("whatever read our output is gone", returncode=75)


def _print(report: pytest.TestReport) -> None:
    promise = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        click.echo(f"  -     {promise} ({reason.removeprefix('Skipped: ')})")
    elif report.failed:
        lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        click.echo(f"  FAIL  {promise}")
        for line in lines[:5]:
            click.echo(f"          {line[1:].strip()}")
    elif report.when == "call":
        click.echo(f"  ok    {promise}")
