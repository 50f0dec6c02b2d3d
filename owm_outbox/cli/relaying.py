"""What commands have in common that open an outbox and a sink."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from typing import Any

import click

from owm_outbox.cli.logs import log_params, set_up_logging
from owm_outbox.config import FiniteRange, prefix
from owm_outbox.job import Job
from owm_outbox.outbox import Outbox
from owm_outbox.relay import OutboxRelay
from owm_outbox.report import Observer
from owm_outbox.sink import Sink
from owm_outbox.stop import Stop

__all__ = ["DeliveringCommand", "StoreCommand", "default_urls", "make_relay", "store_params"]


def store_params(env_prefix: str, outbox: str, sink: str | None) -> list[click.Parameter]:
    """Return the options that say where tasks are kept and, with a sink, how they are delivered."""
    params: list[click.Parameter] = [
        click.Option(
            ["--outbox"],
            default=outbox,
            show_default=True,
            envvar=f"{env_prefix}_OUTBOX",
            show_envvar=True,
            metavar="URL",
            help="Where tasks are kept until the sink holds them.",
        )
    ]
    if sink is not None:
        params += [
            click.Option(
                ["--sink"],
                default=sink,
                show_default=True,
                envvar=f"{env_prefix}_SINK",
                show_envvar=True,
                metavar="URL",
                help="Where tasks are delivered to.",
            ),
            click.Option(
                ["--batch-size"],
                type=click.IntRange(1, 100_000),
                default=500,
                show_default=True,
                envvar=f"{env_prefix}_BATCH_SIZE",
                show_envvar=True,
                help="Tasks a batch, at most.",
            ),
            click.Option(
                ["--hold-for"],
                type=FiniteRange(0),
                default=60.0,
                show_default=True,
                envvar=f"{env_prefix}_HOLD_FOR",
                show_envvar=True,
                help="Seconds to wait for room in a full sink.",
            ),
        ]
    return params


def default_urls(job: type[Job[Any]], name: str) -> tuple[str, str]:
    """Return the outbox and the sink of a job for which none is given."""
    return job.default_outbox.format(name=name), job.default_sink.format(name=name)


class StoreCommand(click.Command):
    """A command on an outbox: its variables and defaults are those of the job that ``--job`` names."""

    needs_sink = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the options of the outbox before the first look at the arguments."""
        if not any(param.name == "outbox" for param in self.params):
            name = _value_of("--job", args) or "owm"
            from owm_outbox.plugins import load_job

            job = load_job(name)
            outbox, sink = default_urls(job, name)
            self.params += [
                *store_params(prefix(name), outbox, sink if self.needs_sink else None),
                click.Option(["--job"], default="owm", show_default=True, help="Whose outbox, unless --outbox says."),
                *log_params(),
            ]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Set up the log first."""
        set_up_logging(ctx.params)
        return super().invoke(ctx)


class DeliveringCommand(StoreCommand):
    """A command on an outbox that has a sink, too."""

    needs_sink = True


def _value_of(flag: str, args: list[str]) -> str | None:
    for at, arg in enumerate(args):
        if arg == flag and at + 1 < len(args):
            return args[at + 1]
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
    return None


def make_relay(stack: ExitStack, outbox: Outbox, sink: Sink, values: dict[str, Any]) -> OutboxRelay:
    """Return a relay that signals end, and that shows how far it is."""
    stop = Stop()
    stack.enter_context(stop.on_signals(signal.SIGINT, signal.SIGTERM))
    observers: list[Observer] = []
    if sys.stderr.isatty() and values["log_format"] == "text":
        from owm_outbox.progress import ProgressBar

        observers.append(stack.enter_context(ProgressBar()))
    else:
        from owm_outbox.progress import ProgressLog

        observers.append(ProgressLog())
    return OutboxRelay(
        outbox,
        sink,
        batch_size=values["batch_size"],
        hold_for=values["hold_for"],
        stop=stop,
        observers=observers,
    )
