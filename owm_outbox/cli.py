"""The commands. stdout is for data, stderr for everything else; the exit codes are those of sysexits.h."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
import msgspec
from click.core import ParameterSource

from owm_outbox import __version__
from owm_outbox.config import FiniteRange, job_params, load_toml, make_options, prefix, secrets, wants_json_logs
from owm_outbox.errors import ConfigurationError, OutboxError
from owm_outbox.job import Job
from owm_outbox.outbox import RESUME_WITHIN, DeadLetterStore, Outbox, OutboxStats
from owm_outbox.relay import OutboxRelay
from owm_outbox.report import Observer, RunReport
from owm_outbox.sink import Sink
from owm_outbox.stop import Stop
from owm_outbox.url import URL

__all__ = ["main", "producer"]

log = logging.getLogger("owm_outbox")

USAGE, DATA, BUG, CONFIG = 64, 65, 70, 78

EXIT_CODES = """\b
Exit codes:
  0    complete: every task is in the sink and the local records are cleared
  64   wrong usage
  65   complete, but some tasks became dead letters (see owm-outbox dead list)
  70   a bug
  73   the outbox cannot be created, is not ours or is damaged
  75   try again later: API or sink down, sink full, outbox in use, incomplete
  78   bad configuration: unknown plugin, bad URL or option
  130  stopped by SIGINT        143  stopped by SIGTERM
"""


def main() -> NoReturn:
    """Run ``owm-outbox``."""
    _invoke(cli, "owm-outbox")


def producer() -> NoReturn:
    """Run ``owm-producer``, which is ``owm-outbox run owm`` and the demo."""
    _invoke(JobCommand("owm", extra=_demo_params()), "owm-producer")


def _invoke(command: click.Command, name: str) -> NoReturn:
    """Run a command; whatever happens, end with one line and a documented exit code."""
    code, line = 0, ""
    # Until a relay listens for it: one line and 143 also for who stops us while we still start.
    signal.signal(signal.SIGTERM, _stop_early)
    try:
        result = command.main(prog_name=name, standalone_mode=False)
        code, line = result if isinstance(result, tuple) else (result or 0, "")
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = USAGE
    except click.ClickException as error:
        code, line = _usage(error)
    except OutboxError as error:
        code, line = error.exit_code, str(error)
    except _StoppedEarlyError:
        code, line = 128 + signal.SIGTERM, "stopped by SIGTERM"
    except (KeyboardInterrupt, click.Abort):
        code, line = 128 + signal.SIGINT, "stopped by SIGINT"
    except (BrokenPipeError, SystemExit):  # click turns the first into the second
        code, line = 75, "whatever read our output is gone"
        sys.stdout = None  # or Python complains once more when it flushes it at exit
    except Exception as error:
        log.debug("this is where it happened", exc_info=True)
        code = BUG
        line = f"a bug: {type(error).__name__}: {error}. Nothing committed is lost; --log-level debug shows where"
    if line:
        _say(f"{name}: {line}", code)
    sys.exit(code)


class _StoppedEarlyError(BaseException):
    """Raised by a signal while we still start: no Exception, or the import of a plugin would be blamed for it."""


def _stop_early(signum: int, _: FrameType | None) -> NoReturn:
    raise _StoppedEarlyError


def _usage(error: click.ClickException) -> tuple[int, str]:
    ctx: click.Context | None = getattr(error, "ctx", None)
    param: click.Parameter | None = getattr(error, "param", None)
    line = " ".join(error.format_message().split())
    if ctx is not None and param is not None and param.name is not None:
        source = ctx.get_parameter_source(param.name)
        if source is ParameterSource.ENVIRONMENT:
            return CONFIG, f"{param.envvar} in the environment: {line}"
        if source is ParameterSource.DEFAULT_MAP:
            return CONFIG, f"{param.name} in {ctx.params.get('config')}: {line}"
    return USAGE, f"{line} Try {ctx.command_path if ctx else 'owm-outbox'} --help."


def _say(line: str, code: int) -> None:
    """Write the last line: as a log record where the logs are JSON."""
    handlers = logging.getLogger().handlers
    is_json = any(type(handler.formatter).__name__ == "JsonFormatter" for handler in handlers)
    if not handlers and wants_json_logs(sys.argv):  # it went wrong before the options were understood
        _set_up_logging({"log_format": "json", "log_level": "info"})
        is_json = True
    if is_json:
        log.log(logging.ERROR if code else logging.INFO, "%s", line, extra={"exit_code": code})
    else:
        click.echo(line, err=True)


# -- options that several commands share


def _log_params() -> list[click.Parameter]:
    levels = ["debug", "info", "warning", "error"]
    return [
        click.Option(
            ["--log-level"],
            type=click.Choice(levels),
            default="warning",
            show_default=True,
            envvar="OWM_LOG_LEVEL",
            show_envvar=True,
            help="What to log to stderr.",
        ),
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            envvar="OWM_LOG_FORMAT",
            show_envvar=True,
            help="How to log.",
        ),
    ]


def _store_params(env_prefix: str, outbox: str, sink: str | None) -> list[click.Parameter]:
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


def _defaults(job: type[Job[Any]], name: str) -> tuple[str, str]:
    return job.default_outbox.format(name=name), job.default_sink.format(name=name)


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
            *_store_params(env_prefix, *_defaults(job, self._job_name)),
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
            *_log_params(),
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
        _set_up_logging(values)
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
        relay = _relay(stack, outbox, sink, values)
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


def _relay(stack: ExitStack, outbox: Outbox, sink: Sink, values: dict[str, Any]) -> OutboxRelay:
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


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"{ctx.info_name} {__version__}")
        ctx.exit()


def _set_up_logging(values: dict[str, Any]) -> None:
    handler = logging.StreamHandler()
    if values["log_format"] == "json":
        from pythonjsonlogger.json import JsonFormatter

        handler.setFormatter(JsonFormatter("{asctime}{levelname}{name}{message}", style="{"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # of other packages only what matters
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings come with tracebacks; we say what fails
    for name in ("owm_outbox", "owm_outbox_backends"):
        logging.getLogger(name).setLevel(values["log_level"].upper())


def _demo_params() -> list[click.Parameter]:
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


# -- owm-outbox


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


class _StoreCommand(click.Command):
    """A command on an outbox: its variables and defaults are those of the job that ``--job`` names."""

    needs_sink = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not any(param.name == "outbox" for param in self.params):
            name = _value_of("--job", args) or "owm"
            from owm_outbox.plugins import load_job

            job = load_job(name)
            outbox, sink = _defaults(job, name)
            self.params += [
                *_store_params(prefix(name), outbox, sink if self.needs_sink else None),
                click.Option(["--job"], default="owm", show_default=True, help="Whose outbox, unless --outbox says."),
                *_log_params(),
            ]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        _set_up_logging(ctx.params)
        return super().invoke(ctx)


class _DeliveringCommand(_StoreCommand):
    needs_sink = True


def _value_of(flag: str, args: list[str]) -> str | None:
    for at, arg in enumerate(args):
        if arg == flag and at + 1 < len(args):
            return args[at + 1]
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
    return None


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


@cli.command("status", cls=_StoreCommand)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(*, as_json: bool, outbox: str, **_: Any) -> None:
    """Show what an outbox holds: pending tasks, the oldest one's age, dead letters, the last runs."""
    with _opened(outbox) as box:
        stats = box.stats()
    click.echo(_status_json(stats) if as_json else _status_text(outbox, stats))


@cli.command("drain", cls=_DeliveringCommand)
@click.option("--json", "as_json", is_flag=True, help="Write what was delivered to stdout.")
def drain(*, as_json: bool, outbox: str, sink: str, **values: Any) -> None:
    """Deliver what is in the outbox; extract nothing."""
    from owm_outbox.plugins import open_sink

    with ExitStack() as stack:
        target = stack.enter_context(open_sink(sink))
        box = stack.enter_context(_opened(outbox))
        delivered = _relay(stack, box, target, values).drain()
        pending = box.stats().pending
    if as_json:
        click.echo(json.dumps({"delivered": delivered, "pending": pending}))


@cli.group("dead")
def dead() -> None:
    """Look at dead letters, retry or drop them."""


@dead.command("list", cls=_StoreCommand)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def dead_list(*, as_json: bool, outbox: str, **_: Any) -> None:
    """Show each dead letter: its position, when, why, and its payload."""
    with _opened(outbox) as box:
        for letter in _letters(box, outbox).dead_letters():
            payload = letter.payload.decode(errors="replace")
            if as_json:
                fields = {
                    "position": letter.position,
                    "task_id": letter.task_id,
                    "rejected_at": letter.rejected_at.isoformat(timespec="seconds"),
                    "reason": letter.reason,
                    "payload": payload,
                }
                click.echo(json.dumps(fields, ensure_ascii=False))
            else:
                shown = payload if len(payload) <= 500 else f"{payload[:500]}… ({len(letter.payload)} bytes)"
                kind = letter.task_id or "no task"
                click.echo(f"{letter.position}  {letter.rejected_at:%Y-%m-%d %H:%M:%S} UTC  {kind}  {letter.reason}")
                click.echo(f"    {shown}")


@dead.command("retry", cls=_StoreCommand)
@click.argument("positions", nargs=-1, type=int)
@click.option("--all", "everything", is_flag=True, help="All of them.")
def dead_retry(*, positions: tuple[int, ...], everything: bool, outbox: str, **_: Any) -> tuple[int, str]:
    """Make dead letters pending again; the next run or drain sends them."""
    return _on_letters(outbox, positions, everything, lambda box, wanted: box.retry(wanted), "will be sent again")


@dead.command("drop", cls=_StoreCommand)
@click.argument("positions", nargs=-1, type=int)
@click.option("--all", "everything", is_flag=True, help="All of them.")
def dead_drop(*, positions: tuple[int, ...], everything: bool, outbox: str, **_: Any) -> tuple[int, str]:
    """Delete dead letters for good."""
    return _on_letters(outbox, positions, everything, lambda box, wanted: box.drop(wanted), "dropped")


def _on_letters(
    url: str,
    positions: tuple[int, ...],
    everything: bool,
    action: Callable[[DeadLetterStore, Iterable[int]], int],
    done: str,
) -> tuple[int, str]:
    if bool(positions) == everything:
        raise click.UsageError("Give positions as dead list shows them, or --all.", click.get_current_context())
    with _opened(url) as box, box.lock():
        letters = _letters(box, url)
        wanted = [letter.position for letter in letters.dead_letters()] if everything else list(positions)
        count = action(letters, wanted)
    click.echo(f"{count} {done}")
    if count < len(set(wanted)):
        return (
            DATA,
            f"{len(set(wanted)) - count} of them are no dead letters, or never became a task: see dead list",
        )
    return 0, ""


@contextmanager
def _opened(url: str) -> Iterator[Outbox]:
    from owm_outbox.plugins import open_outbox

    with open_outbox(url, create=False) as box:
        yield box


def _letters(box: Outbox, url: str) -> DeadLetterStore:
    if not isinstance(box, DeadLetterStore):
        raise ConfigurationError(f"{URL(url)}: this kind of outbox keeps no list of dead letters")
    return box


def _age(since: datetime | None) -> float | None:
    return None if since is None else round((datetime.now(UTC) - since).total_seconds(), 1)


def _status_json(stats: OutboxStats) -> str:
    return json.dumps(
        {
            "pending": stats.pending,
            "oldest_seconds": _age(stats.oldest),
            "dead": stats.dead,
            "acknowledged": stats.acknowledged,
            "last_position": stats.last_position,
            "runs": [
                {
                    "run_id": run.id,
                    "job": run.job,
                    "state": run.state,
                    "started_at": run.started_at.isoformat(timespec="seconds"),
                    "finished_at": None if run.finished_at is None else run.finished_at.isoformat(timespec="seconds"),
                    "extracted": run.extracted,
                    "rejected": run.rejected,
                    "report": None if run.report is None else json.loads(run.report),
                }
                for run in stats.runs
            ],
        }
    )


def _status_text(url: str, stats: OutboxStats) -> str:
    age = _age(stats.oldest)
    lines = [
        f"outbox   {URL(url)}",
        f"pending  {stats.pending}" + ("" if age is None else f", the oldest for {age:.0f} s"),
        f"dead     {stats.dead}",
        "runs" if stats.runs else "runs     none yet",
    ]
    lines += [
        f"  {run.started_at:%Y-%m-%d %H:%M:%S} UTC  {run.job}  {run.id}  {run.state:10}  "
        f"{run.extracted} tasks, {run.rejected} rejected"
        for run in stats.runs
    ]
    return "\n".join(lines)
