"""``owm-outbox run JOB`` and ``owm-producer``: a job, with all its options, through a relay."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import msgspec

from owm_outbox import __version__
from owm_outbox.cli.exits import DATA, EXIT_CODES
from owm_outbox.cli.logs import log_params, set_up_logging
from owm_outbox.cli.stores import default_urls, make_relay, store_params
from owm_outbox.config import FiniteRange, job_params, load_toml, make_options, prefix, secrets
from owm_outbox.errors import OutboxError
from owm_outbox.job import Job
from owm_outbox.outbox import RESUME_WITHIN
from owm_outbox.report import RunReport

__all__ = ["JobCommand", "demo_params", "run_job"]


class JobCommand(click.Command):
    """``run JOB``: its options are the job's, so the job is loaded when they are first needed."""

    def __init__(self, job_name: str, *, extra: Iterable[click.Parameter] = ()) -> None:
        super().__init__(job_name, callback=self._run, epilog=EXIT_CODES)
        self._job_name = job_name
        self._extra = list(extra)
        self._job: type[Job[Any]] | None = None
        self.params = [
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_print_version,
                help="Show the version and exit.",
            )
        ]

    @property
    def job(self) -> type[Job[Any]]:
        """The job's class."""
        if self._job is None:
            from owm_outbox.plugins import load_job  # imports stevedore, which --version does without

            self._job = load_job(self._job_name)
            self._job.name = self._job_name
        return self._job

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the job's options before the first look at the arguments."""
        if "--version" not in args and len(self.params) == 1:
            self._add_params()
        return super().parse_args(ctx, args)

    def _add_params(self) -> None:
        job, env_prefix = self.job, prefix(self._job_name)
        self.help = (job.__doc__ or "").strip().partition("\n\n")[0]
        lines = [f"  {variable}  {text}" for _, variable, text in secrets(job)]
        if lines:
            self.help += "\n\n\b\nFrom the environment only:\n" + "\n".join(lines)
        self.params = [
            *job_params(job),
            *store_params(env_prefix, *default_urls(job, self._job_name)),
            click.Option(
                ["--config"],
                type=click.Path(path_type=Path, dir_okay=False),
                is_eager=True,
                envvar=f"{env_prefix}_CONFIG",
                show_envvar=True,
                callback=self._load_config,
                help=f"TOML file with these options, as api_url = … at the top or below [{self._job_name}].",
            ),
            click.Option(
                ["--resume-within"],
                type=FiniteRange(0),
                default=RESUME_WITHIN.total_seconds(),
                show_default=True,
                envvar=f"{env_prefix}_RESUME_WITHIN",
                show_envvar=True,
                help="Seconds from its start for which an unfinished run is resumed; an older one is closed.",
            ),
            click.Option(["--fresh"], is_flag=True, help="Close an unfinished run, however young, and start anew."),
            click.Option(["--json", "as_json"], is_flag=True, help="Write the run report to stdout."),
            *log_params(),
            *self._extra,
            *self.params,
        ]

    def _load_config(self, ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
        if path is not None:
            flags = {param.opts[0].lstrip("-").replace("-", "_"): str(param.name) for param in self.params}
            known = {flag: False for flag in flags if flag not in ("config", "version", "help")}
            known |= {name: True for name, _, _ in secrets(self.job)}
            given = load_toml(path, self._job_name, known)
            ctx.default_map = {flags[name]: value for name, value in given.items()}
        return path

    def _run(self, **values: Any) -> tuple[int, str]:
        ctx = click.get_current_context()
        set_up_logging(values)
        if values.get("demo"):
            from owm_outbox.demo import demo

            return demo(self.job, ctx, values, run_job)
        _, code, line = run_job(self.job(make_options(self.job, ctx)), values, say_report=True)
        return code, line


def run_job(job: Job[Any], values: dict[str, Any], *, say_report: bool) -> tuple[RunReport | None, int, str]:
    """Run a job with what the command line says; return the report, the exit code and what to say about it."""
    from owm_outbox.plugins import open_outbox, open_sink

    report: RunReport | None = None
    code, line = 0, ""
    with ExitStack() as stack:
        sink = stack.enter_context(open_sink(values["sink"]))  # first: it may be misspelt, and creates nothing
        outbox = stack.enter_context(open_outbox(values["outbox"]))
        relay = make_relay(stack, outbox, sink, values)
        try:
            resume_within = timedelta(seconds=0 if values["fresh"] else values["resume_within"])
            report = relay.run(job, resume_within=resume_within)
        except OutboxError as error:
            report, code, line = error.report, error.exit_code, str(error)
    if report is not None and code == 0 and report.rejected:
        code = DATA
        line = f"complete, but {report.rejected} tasks became dead letters: see owm-outbox dead list"
    if report is not None and code not in (0, DATA):
        line += f" [{report.extracted} tasks extracted, {report.pending} waiting in the outbox]"
    if report is not None and say_report and values["as_json"]:
        click.echo(msgspec.json.encode(report))
    return report, code, line


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"{ctx.info_name} {__version__}")
        ctx.exit()


def demo_params() -> list[click.Parameter]:
    """Return what only ``owm-producer`` takes."""
    return [
        click.Option(
            ["--demo"],
            is_flag=True,
            help="Run against a stand-in Weather Service and an embedded server (extra: demo).",
        ),
        click.Option(
            ["--cities"],
            type=click.Choice(["15000", "5000", "1000", "500"]),
            default="15000",
            show_default=True,
            help="With --demo: cities with more inhabitants than this; 34,006 to 234,908 of them.",
        ),
    ]
