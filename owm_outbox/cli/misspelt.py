"""Warnings of what the user said and nobody reads: variables and tables whose names are misspelt."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from owm_outbox.cli.config_file import Key, unread_tables
from owm_outbox.cli.options import prefix
from owm_outbox.cli.settings import keys
from owm_outbox.job import Job

__all__ = ["misspelt_variables", "warn_of_the_unread"]

log = logging.getLogger("owm_outbox")

_OURS = "OWM_OUTBOX_"
_OUR_VARIABLES = ("OWM_OUTBOX_LOG_LEVEL", "OWM_OUTBOX_LOG_FORMAT")

# What Kubernetes sets in each pod for a service whose name begins as the job's does: OWM_SINK_PORT_6379_TCP, …
_OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_.+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")


def warn_of_the_unread(ctx: click.Context) -> None:
    """Log a warning for each table of the configuration file and each variable that is probably misspelt."""
    from owm_outbox.plugins import job_names

    job: type[Job[Any]] | None = ctx.params.get("job")
    if job is None or ctx.resilient_parsing:
        return
    jobs = job_names()
    config: Path | None = ctx.params.get("config")
    lines = [] if config is None else unread_tables(config, jobs)
    for line in [*lines, *misspelt_variables(job, jobs, os.environ)]:
        log.warning("%s", line)


def misspelt_variables(job: type[Job[Any]], jobs: list[str], environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each variable that begins as the job's do, is none of them, and nearly one.

    One that is not close to any may be another program's: a job may well be named ``http``.
    """
    own = f"{prefix(job.name)}_"
    found = keys(job)
    known = {f"{own}{name.upper()}": name for name, key in found.items() if key is not Key.ONE_CALL}
    known |= dict.fromkeys([f"{own}CONFIG", *_OUR_VARIABLES], "")
    useless = {f"{own}{name.upper()}": name for name, key in found.items() if key is Key.ONE_CALL or name == "json"}
    others = tuple(f"{prefix(name)}_" for name in jobs if name != job.name and prefix(name).startswith(own))
    for variable in sorted(environ):
        if variable in useless:
            yield f"{variable} in the environment has no effect: give --{useless[variable].replace('_', '-')}"
            continue
        begin = next((begin for begin in (own, _OURS) if variable.startswith(begin)), None)
        if begin is None or variable in known or variable.startswith(others) or _is_of_kubernetes(variable, environ):
            continue
        rests = [name.removeprefix(begin) for name in known if name.startswith(begin)]
        for rest in difflib.get_close_matches(variable.removeprefix(begin), rests, n=1):
            yield f"{variable} in the environment is not read: did you mean {begin}{rest}?"


def _is_of_kubernetes(variable: str, environ: Mapping[str, str]) -> bool:
    return bool(_OF_KUBERNETES.search(variable)) or (variable.endswith("_PORT") and "://" in environ[variable])
