"""``owm-outbox``: all its commands."""

from __future__ import annotations

import click
import msgspec

from owm_outbox import __version__
from owm_outbox.cli.check import check
from owm_outbox.cli.dead import dead
from owm_outbox.cli.logs import log_params
from owm_outbox.cli.outbox import drain, schema
from owm_outbox.cli.outcome import EXIT_CODES
from owm_outbox.cli.relay import relay
from owm_outbox.cli.run import JobCommand
from owm_outbox.cli.runs import runs
from owm_outbox.cli.status import status
from owm_outbox.cli.streams import write_data
from owm_outbox.errors import printable

__all__ = ["cli"]


class _Commands(click.Group):
    """The commands; ``new`` has templates and is loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "new"])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "new":
            from owm_outbox.cli.new import new

            return new
        return super().get_command(ctx, name)


@click.group(
    cls=_Commands, epilog=EXIT_CODES, params=log_params(envvars=("OWM_OUTBOX_LOG_LEVEL", "OWM_OUTBOX_LOG_FORMAT"))
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Outbox relay: tasks are made durable, delivered in batches, and cleared."""


class _Jobs(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            names = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"Missing argument JOB: name one of {names}.", ctx)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        from owm_outbox.plugins import job_names

        return job_names()

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return JobCommand(name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from owm_outbox.plugins import plugins

        with formatter.section("Jobs"):
            formatter.write_dl([(job.name, job.summary or str(job.problem)) for job in plugins() if job.kind == "job"])


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def show_plugins(*, as_json: bool) -> None:
    """Show what is installed: outboxes, sinks and jobs, and the packages that they belong to."""
    from owm_outbox.plugins import plugins

    found = list(plugins())
    if as_json:
        for plugin in found:
            write_data(msgspec.json.encode(plugin))
        return
    names = max((len(plugin.name) for plugin in found), default=0)
    origins = max((len(plugin.distribution) for plugin in found), default=0)
    for plugin in found:
        text = plugin.summary if plugin.problem is None else f"BROKEN: {plugin.problem}"
        write_data(printable(f"{plugin.kind:6}  {plugin.name:{names}}  {plugin.distribution:{origins}}  {text}"))


cli.add_command(_Jobs("run", help="Run a job: run JOB --help shows its options.", subcommand_metavar="JOB [OPTIONS]"))
for command in (status, runs, drain, relay, dead, show_plugins, check, schema):
    cli.add_command(command)
