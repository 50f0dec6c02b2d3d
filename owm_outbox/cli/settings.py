"""What a command that relays was told, and the options that say it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click

from owm_outbox.cli.config_file import Key
from owm_outbox.cli.logs import log_params
from owm_outbox.cli.monitors import monitor_params
from owm_outbox.cli.options import FiniteRange, job_params, prefix, secrets
from owm_outbox.errors import ConfigurationError
from owm_outbox.job import Job
from owm_outbox.outbox import RESUME_WITHIN

__all__ = ["Settings", "key_of", "keys", "outbox_param", "run_params", "sink_params", "switch"]


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


def outbox_param(job: type[Job[Any]] | None = None) -> click.Option:
    """Return the option that says where tasks are kept; without it, the job of the context decides.

    :param job: the job whose default is shown.
    """
    return _url_param("outbox", job, "Where tasks are kept until the sink holds them.")


def sink_params(job: type[Job[Any]] | None = None) -> list[click.Option]:
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


def run_params(job: type[Job[Any]]) -> list[click.Option]:
    """Return the job's options and those of every run, but not those that say where options come from.

    :raises ConfigurationError: the job has an option that every job has already.
    """
    ours = [
        outbox_param(job),
        *sink_params(job),
        click.Option(
            ["--resume-within"],
            type=FiniteRange(0),
            default=RESUME_WITHIN.total_seconds(),
            show_default=True,
            show_envvar=True,
            help="Resume an unfinished run if its last progress is not more seconds ago; else close it.",
        ),
        switch("--fresh", text="Close an unfinished run, however young, and start a new one."),
        switch("--json", "as_json", text="Write the run report to stdout."),
        *monitor_params(),
    ]
    own = job_params(job)
    taken = {"config", "version", "help", "job"}.union(*map(_names, [*ours, *log_params()]))
    for field, names in [*((str(param.name), _names(param)) for param in own), *((s[0], {s[0]}) for s in secrets(job))]:
        if not taken.isdisjoint(names):
            raise ConfigurationError(
                f"job {job.name!r} has an option {field!r}, which is an option of every job: "
                f"rename the field of {job.__module__}.{job.__qualname__}.Options"
            )
        taken |= names
    return [*own, *ours]


def keys(job: type[Job[Any]], extra: Iterable[click.Option] = ()) -> dict[str, Key]:
    """Return what each option of a job's run is to a configuration file, by the name that it has there.

    :param extra: further options of the command.
    """
    found = {name: Key.SECRET for name, _, _ in secrets(job)}
    for param in [*run_params(job), *log_params(), *extra]:
        key = key_of(param)
        if not param.allow_from_autoenv and key != "json":
            found[key] = Key.ONE_CALL
        else:
            found[key] = Key.LIST if param.multiple else Key.VALUE
    return found


def key_of(param: click.Parameter) -> str:
    """Return the name of an option in a configuration file: that of its flag."""
    return param.opts[0].lstrip("-").replace("-", "_")


def _names(param: click.Option) -> set[str]:
    flags = {flag.lstrip("-").replace("-", "_") for flag in [*param.opts, *param.secondary_opts]}
    return flags | {str(param.name)}


def switch(*flags: str, text: str) -> click.Option:
    """Return an option of one call: a flag without a value, and without a variable."""
    return click.Option(flags, is_flag=True, allow_from_autoenv=False, help=text)


def _url_param(name: str, job: type[Job[Any]] | None, text: str) -> click.Option:
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
