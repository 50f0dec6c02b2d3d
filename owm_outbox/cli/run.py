"""``owm-outbox run JOB`` and ``owm-producer``: a job, with all its options, through a relay."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from owm_outbox import __version__
from owm_outbox.cli.config_file import config_param
from owm_outbox.cli.job_scope import JobScopedCommand, listen, use_config
from owm_outbox.cli.logs import log_params
from owm_outbox.cli.monitors import Monitors
from owm_outbox.cli.options import make_options, prefix, secrets
from owm_outbox.cli.outcome import EXIT_CODES, Outcome
from owm_outbox.cli.relaying import run_job
from owm_outbox.cli.settings import Settings, keys, run_params, switch
from owm_outbox.job import Job

__all__ = ["JobCommand", "demo_params"]


class JobCommand(JobScopedCommand):
    """``run JOB``: its options are the job's, so the job is loaded when they are first needed."""

    def __init__(self, job_name: str, *, extra: Iterable[click.Option] = ()) -> None:
        super().__init__(job_name, epilog=EXIT_CODES)
        self._job_name = job_name
        self._extra = list(extra)
        self.params = [
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                allow_from_autoenv=False,
                callback=_print_version,
                help="Show the version and exit.",
            )
        ]

    @cached_property
    def job(self) -> type[Job[Any]]:
        """The job's class."""
        from owm_outbox.plugins import load_job  # imports stevedore, which --version does without

        return load_job(self._job_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Listen to signals, load the job for its options, and parse."""
        listen(ctx)
        ctx.auto_envvar_prefix = prefix(self._job_name)
        if args != ["--version"]:
            self._add_params()
            ctx.params["job"] = self.job
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Outcome:
        """Run the job, or the demo."""
        values = ctx.params
        settings = Settings(
            outbox=values["outbox"],
            sink=values["sink"],
            batch_size=values["batch_size"],
            wait_for_room=values["wait_for_room"],
            resume_within=timedelta(0) if values["fresh"] else timedelta(seconds=values["resume_within"]),
            as_json=values["as_json"],
        )
        outbox = None if values.get("demo") else settings.outbox
        with Monitors(
            self._job_name,
            outbox,
            metrics_file=values["metrics_file"],
            ping=values["ping"],
            sink=settings.sink if values["traces"] else None,
        ) as monitors:
            if values.get("demo"):
                from owm_outbox.cli.demo import demo

                return monitors.ended(demo(self.job, ctx, settings, monitors.observers))
            job = self.job(make_options(self.job, ctx))
            return monitors.ended(run_job(job, settings, ctx.obj, monitors.observers))

    def _add_params(self) -> None:
        self.help = (self.job.__doc__ or "").strip().partition("\n\n")[0]
        lines = [f"  {variable}  {text}" for _, variable, text in secrets(self.job)]
        if lines:
            self.help += "\n\n\b\nFrom the environment only:\n" + "\n".join(lines)
        self.params = [
            *run_params(self.job),
            config_param(
                self._load_config,
                f"TOML file with these options, as api_url = … at the top or below [{self._job_name}].",
            ),
            *log_params(),
            *self._extra,
            *self.params,
        ]

    def _load_config(self, ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
        if path is not None:
            use_config(ctx, path, self._job_name, keys(self.job, self._extra))
        return path


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"{ctx.info_name} {__version__}")
        ctx.exit()


def demo_params() -> list[click.Option]:
    """Return what only ``owm-producer`` takes."""
    return [
        switch("--demo", text="Run against a stand-in Weather Service and an embedded server (extra: demo)."),
        click.Option(
            ["--cities"],
            type=click.Choice(["15000", "5000", "1000", "500"]),
            default="15000",
            show_default=True,
            allow_from_autoenv=False,
            help="With --demo: cities with more inhabitants than this; 34,006 to 234,908 of them.",
        ),
    ]
