"""``owm-outbox``: all its commands."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import click
import msgspec

from owm_outbox import __version__
from owm_outbox.cli.exits import BUG, EXIT_CODES
from owm_outbox.cli.outbox import dead, drain, status
from owm_outbox.cli.run import JobCommand
from owm_outbox.errors import ConfigurationError
from owm_outbox.url import URL

__all__ = ["cli"]


class _Commands(click.Group):
    """The commands; ``new`` comes with templates and is loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "new"])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "new":
            from owm_outbox.scaffold import new

            return new
        return super().get_command(ctx, name)


@click.group(cls=_Commands, epilog=EXIT_CODES)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Outbox relay: tasks are made durable, delivered in batches, and cleared."""


class _Jobs(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            names = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"Missing JOB, which one to run ({names}).", ctx)
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


cli.add_command(_Jobs("run", help="Run a job: run JOB --help shows its options.", subcommand_metavar="JOB [OPTIONS]"))


@cli.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show_plugins(*, as_json: bool) -> None:
    """Show what is installed: outboxes, sinks and jobs, and where they come from."""
    from owm_outbox.plugins import plugins

    found = list(plugins())
    if as_json:
        for plugin in found:
            click.echo(msgspec.json.encode(plugin))
        return
    names = max((len(plugin.name) for plugin in found), default=0)
    origins = max((len(plugin.distribution) for plugin in found), default=0)
    for plugin in found:
        text = plugin.summary if plugin.problem is None else f"BROKEN: {plugin.problem}"
        click.echo(f"{plugin.kind:6}  {plugin.name:{names}}  {plugin.distribution:{origins}}  {text}")


@cli.command("check")
@click.argument("kind", type=click.Choice(["sink", "outbox"]))
@click.argument("url")
def check(*, kind: str, url: str) -> tuple[int, str]:
    """Run the contract of a sink or an outbox against a live URL, in a scratch place beside the real one."""
    from owm_outbox.plugins import outbox_class, sink_class

    parsed = URL(url)
    scratch = (
        sink_class(parsed.scheme).scratch(parsed) if kind == "sink" else outbox_class(parsed.scheme).scratch(parsed)
    )
    with scratch:
        pass  # whatever is wrong with the URL shows here, once, and not for each promise
    if importlib.util.find_spec("pytest") is None:
        raise ConfigurationError("check needs pytest: pip install 'owm-outbox[test]'")
    click.echo(f"{parsed}")
    sys.stdout.flush()
    module = "owm_outbox.live_check"
    done = subprocess.run(  # noqa: S603 - pytest, on a module of ours
        [
            *(sys.executable, "-P", "-m", "pytest", "--pyargs", f"{module}::Test{kind.capitalize()}"),
            *(
                "--disable-plugin-autoload",
                "-p",
                module,
                "-p",
                "no:terminal",
                "-p",
                "no:cacheprovider",
                "-c",
                os.devnull,
            ),
        ],
        input=url.encode(),  # not as an argument: a password in it would be in the list of processes
        check=False,
    )
    if done.returncode == 0:
        return 0, ""
    if done.returncode == 75:
        return 75, "whatever read our output is gone"
    return BUG, f"this {kind} does not keep its contract: {parsed}"


for command in (status, drain, dead):
    cli.add_command(command)
