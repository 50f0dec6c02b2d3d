"""What the commands on an outbox have in common: the job whose outbox and variables these are, and a stop."""

from __future__ import annotations

import signal
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click

from owm_outbox.cli.config_file import Key, config_param, load_toml
from owm_outbox.cli.logs import log_params
from owm_outbox.cli.misspelt import warn_of_the_unread
from owm_outbox.cli.options import prefix
from owm_outbox.cli.settings import key_of, keys, outbox_param, sink_params
from owm_outbox.errors import ConfigurationError
from owm_outbox.job import Job
from owm_outbox.stop import Stop

__all__ = ["DeliveringCommand", "JobScopedCommand", "OutboxCommand", "listen", "use_config"]


class JobScopedCommand(click.Command):
    """A command whose variables begin with the prefix of a job, which its context has."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return ``--help``, which has no variable."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.allow_from_autoenv = False
        return option

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and warn of what was misspelt.

        If that fails, find out how the logs are to be written, so that the error is written so, too.
        """
        given = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except (click.UsageError, ConfigurationError):
            tolerant = click.Context(
                self,
                parent=ctx.parent,
                info_name=ctx.info_name,
                auto_envvar_prefix=ctx.auto_envvar_prefix,
                resilient_parsing=True,
                ignore_unknown_options=True,
                allow_extra_args=True,
            )
            tolerant.params.update(ctx.params)
            with tolerant:
                super().parse_args(tolerant, given)
            warn_of_the_unread(ctx)
            raise
        warn_of_the_unread(ctx)
        return rest


class OutboxCommand(JobScopedCommand):
    """A command on an outbox. Its variables and its default are those of the job that ``--job`` names."""

    default_job = "owm"
    default_level = "warning"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            outbox_param(),
            *self.more_params(),
            click.Option(
                ["--job"],
                metavar="NAME",
                default=self.default_job,
                show_default=True,
                is_eager=True,
                callback=_use_job,
                shell_complete=_jobs_that_begin_with,
                allow_from_autoenv=False,
                help="Whose outbox and variables these are.",
            ),
            config_param(_use_config, "TOML file with the options of the job's runs, of which those here are used."),
            *log_params(level=self.default_level),
        ]

    def more_params(self) -> list[click.Option]:
        """Return what a subclass adds."""
        return []

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; until ``--job`` is known, the variables are those of the default job."""
        ctx.auto_envvar_prefix = prefix(self.default_job)
        return super().parse_args(ctx, args)


class DeliveringCommand(OutboxCommand):
    """A command on an outbox that also has a sink, and that a signal asks to stop."""

    def more_params(self) -> list[click.Option]:
        """Add the sink's options."""
        return sink_params()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Listen to signals, then parse."""
        listen(ctx)
        return super().parse_args(ctx, args)


def _jobs_that_begin_with(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from owm_outbox.plugins import job_names

    return [name for name in job_names() if name.startswith(incomplete)]


def _use_job(ctx: click.Context, _: click.Parameter, name: str) -> type[Job[Any]]:
    from owm_outbox.plugins import load_job

    ctx.auto_envvar_prefix = prefix(name)
    job = load_job(name)
    keys(job)  # refuses a job whose options cannot be told from ours
    if ctx.params.get("config") is not None:  # it was given before --job
        _load(ctx, job, ctx.params["config"])
    return job


def _use_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and "job" in ctx.params:
        _load(ctx, ctx.params["job"], path)
    return path


def _load(ctx: click.Context, job: type[Job[Any]], path: Path) -> None:
    # The file's json = true is that of a run's report; what else has no variable here may be an option of the job.
    own = [
        key_of(param)
        for param in ctx.command.params
        if isinstance(param, click.Option) and not param.allow_from_autoenv
    ]
    use_config(ctx, path, job.name, keys(job), but=["json", *own])


def use_config(
    ctx: click.Context, path: Path, job_name: str, known: Mapping[str, Key], *, but: Collection[str] = ()
) -> None:
    """Let what a configuration file says of the command's options be what they are unless they are given.

    :param but: what the command does not take from a file.
    """
    given = load_toml(path, job_name, known)
    names = {key_of(param): str(param.name) for param in ctx.command.params}
    ctx.default_map = {names[key]: value for key, value in given.items() if key in names and key not in but}


def listen(ctx: click.Context) -> None:
    """Let SIGINT and SIGTERM set a stop, ``ctx.obj``, from now on and until the command ends.

    A SIGINT that is ignored stays so: a shell that has no job control starts what ends with ``&`` like this, so that
    Ctrl-C ends the script and not the work in the background.
    """
    stop = Stop()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ctx.with_resource(stop.on_signals(signal.SIGTERM, *([] if ignored else [signal.SIGINT])))
    ctx.obj = stop
