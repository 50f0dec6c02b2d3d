"""``owm-producer --demo``: the real job against a stand-in Weather Service and an embedded Valkey."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource

from owm_outbox.cli.options import make_options
from owm_outbox.cli.outcome import Outcome, count
from owm_outbox.cli.relaying import run_job
from owm_outbox.cli.settings import Settings
from owm_outbox.cli.streams import write_report
from owm_outbox.entry import Batch
from owm_outbox.errors import ConfigurationError
from owm_outbox.job import Job
from owm_outbox.observer import Observer
from owm_outbox.report import RunReport
from owm_outbox.stop import Stop
from owm_outbox.url import URL

__all__ = ["demo"]


def demo(job: type[Job[Any]], ctx: click.Context, settings: Settings, observers: Iterable[Observer] = ()) -> Outcome:
    """Start what is missing, run the job, and show what it did. A stop ends it between these steps."""
    stop: Stop = ctx.obj
    first = _FirstTasks()
    embedded = ctx.get_parameter_source("sink") is ParameterSource.DEFAULT
    with _stand_ins(ctx.params["cities"], valkey=embedded) as found:
        stop.check()
        if embedded:
            sink = f"{found['sink']}/0?stream=owm-ingestion-stream&maxlen=1000000"
            settings = dataclasses.replace(settings, sink=sink)
        if ctx.get_parameter_source("outbox") is ParameterSource.DEFAULT:
            settings = dataclasses.replace(settings, outbox=f"sqlite:///{found['folder']}/tasks.db")
        api_url = found["api"]
        outcome = run_job(job(make_options(job, ctx, api_url=api_url)), settings, stop, [first, *observers])
    if outcome.report is not None and not settings.as_json:
        _show(outcome.report, api_url, settings, first.payloads, embedded=embedded)
    return outcome


class _FirstTasks(Observer):
    """Keeps the first three tasks that the sink came to hold."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def batch_delivered(self, batch: Batch) -> None:
        self.payloads += [entry.payload for entry in batch.entries[: 3 - len(self.payloads)]]


@contextmanager
def _stand_ins(population: str, *, valkey: bool) -> Iterator[dict[str, str]]:
    try:
        process = subprocess.Popen(  # noqa: S603 - a module of this package
            [sys.executable, "-P", "-m", "owm_outbox.cli.stand_ins", "--cities", population, *["--valkey"] * valkey],
            stdin=subprocess.PIPE,  # its end of file tells the child that this process has ended, however it did
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that Ctrl-C reaches this process alone
        )
    except OSError as error:
        raise ConfigurationError(
            f"the demo cannot start its servers ({error.strerror}): run without --demo, with --api-url and --sink"
        ) from error
    try:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        found = json.loads(process.stdout.readline() or "{}")
        if not found:
            assert process.stderr is not None  # noqa: S101 - for the type checker
            found["problem"] = process.stderr.read().strip().rpartition("\n")[2]
        if "problem" in found:
            raise ConfigurationError(found["problem"])
        yield found
    finally:
        process.communicate()  # closes its stdin, and waits until it has cleaned up


def _show(report: RunReport, api_url: str, settings: Settings, payloads: list[bytes], *, embedded: bool) -> None:
    sink = URL(settings.sink)
    lines = [
        f"The Weather Service at {api_url} (a stand-in) has {report.expected or 0:,} cities.",
        f"In {report.seconds:.1f} s the job stored {report.extracted:,} tasks in {URL(settings.outbox)}",
        f"and delivered {report.delivered:,} to {sink}{' (an embedded Valkey)' if embedded else ''}.",
        f"Duplicates {report.duplicates}, rejected {report.rejected}, left in the outbox {report.pending}: "
        f"{'complete' if report.complete else 'NOT complete'}, run {report.run_id}.",
    ]
    if payloads:
        lines += ["", f"The first {count(len(payloads), 'task')}, as the sink has them:"]
        lines += [f"  {payload.decode()}" for payload in payloads]
    lines += [
        "",
        "Cities: GeoNames (geonames.org), CC BY 4.0.",
        "",
        "What to type next:",
        "  owm-producer --api-url http://your-service:8000 --sink 'redis://your-redis:6379/0?stream=your-stream'",
        "  owm-producer --demo --cities 500          234,908 cities",
        "  owm-producer --demo --sink jsonl:-        the tasks as lines on stdout",
        "  owm-outbox plugins                        what is installed",
    ]
    write_report("\n".join(lines))
