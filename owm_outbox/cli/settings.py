"""What a command that relays was told, and the options that say it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click

from owm_outbox.cli.options import FiniteRange, prefix
from owm_outbox.errors import ConfigurationError
from owm_outbox.job import Job
from owm_outbox.outbox import RESUME_WITHIN

__all__ = ["Settings", "outbox_param", "sink_params", "switch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a command that relays was told: all layers resolved, once and for all.

    :param outbox: its URL.
    :param sink: its URL.
    :param wait_for_room: seconds.
    :param resume_within: zero closes an unfinished run, however young.
    :param as_json: whether the report goes to stdout.
    """

    outbox: str
    sink: str
    batch_size: int
    wait_for_room: float
    resume_within: timedelta = RESUME_WITHIN
    as_json: bool = False


def outbox_param(job: type[Job[Any]] | None = None) -> click.Parameter:
    """Return the option that says where tasks are kept; without it, the job of the context decides.

    :param job: the job whose default is shown.
    """
    return _url_param("outbox", job, "Where tasks are kept until the sink holds them.")


def sink_params(job: type[Job[Any]] | None = None) -> list[click.Parameter]:
    """Return the options that say where and how tasks are delivered; see `outbox_param`."""
    return [
        _url_param("sink", job, "Where tasks are delivered to."),
        click.Option(
            ["--batch-size"],
            type=click.IntRange(1, 100_000),
            default=500,
            show_default=True,
            show_envvar=True,
            help="Tasks per batch, at most.",
        ),
        click.Option(
            ["--wait-for-room"],
            type=FiniteRange(0),
            default=60.0,
            show_default=True,
            show_envvar=True,
            help="Seconds to wait for room in a full sink.",
        ),
    ]


def switch(*flags: str, text: str) -> click.Option:
    """Return an option of one call: a flag without a value, and without a variable."""
    return click.Option(flags, is_flag=True, allow_from_autoenv=False, help=text)


def _url_param(name: str, job: type[Job[Any]] | None, text: str) -> click.Parameter:
    return click.Option(
        [f"--{name}"],
        default=None if job is None else getattr(job, f"default_{name}"),
        show_default="the job's own" if job is None else True,
        show_envvar=True,
        metavar="URL",
        callback=_or_the_job_s_own,
        help=text,
    )


def _or_the_job_s_own(ctx: click.Context, param: click.Parameter, url: str | None) -> str:
    if url is not None:
        return url
    job: type[Job[Any]] = ctx.params["job"]
    default: str | None = getattr(job, f"default_{param.name}")
    if default is None:
        raise ConfigurationError(
            f"job {job.name!r} has no default {param.name}: "
            f"give --{param.name} or set {prefix(job.name)}_{str(param.name).upper()}"
        )
    return default
