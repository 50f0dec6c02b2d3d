"""The commands. stdout is for data, stderr for everything else; the exit codes are those of sysexits.h."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import click
from click.core import ParameterSource

from owm_outbox.cli.completion import complete
from owm_outbox.cli.logs import set_up_logging, write_left_out, write_line
from owm_outbox.cli.outcome import Outcome
from owm_outbox.cli.streams import forget_what_cannot_be_written, set_up_streams
from owm_outbox.errors import ExitCode, OwmOutboxError, one_line

__all__ = ["main", "producer"]

log = logging.getLogger("owm_outbox")


def main() -> NoReturn:
    """Run ``owm-outbox``."""
    set_up_streams()
    _end_at_once_on_sigterm("owm-outbox")
    from owm_outbox.cli.commands import cli

    _invoke(cli, "owm-outbox")


def producer() -> NoReturn:
    """Run ``owm-producer``, which is ``owm-outbox run owm`` and the demo."""
    set_up_streams()
    _end_at_once_on_sigterm("owm-producer")
    from owm_outbox.cli.run import JobCommand, demo_params

    _invoke(JobCommand("owm", extra=demo_params()), "owm-producer")


def _end_at_once_on_sigterm(name: str) -> None:
    """End with one line and 143 on SIGTERM, as long as no command listens that has something to finish."""

    def end(_: int, __: FrameType | None) -> None:
        with suppress(OSError):  # a closed stderr does not change the outcome
            os.write(2, f"{name}: stopped by SIGTERM\n".encode())
        os._exit(ExitCode.SIGTERM)

    signal.signal(signal.SIGTERM, end)


def _invoke(command: click.Command, name: str) -> NoReturn:
    """Run a command; whatever happens, end with at most one line and a documented exit code."""
    set_up_logging()
    outcome = Outcome()
    try:
        result = complete(command, name)
        if result is None:
            # Not command.main: on SIGINT it writes a line of its own, which need not be JSON where the logs are.
            with command.make_context(name, sys.argv[1:]) as ctx:
                result = command.invoke(ctx)
        if isinstance(result, Outcome):
            outcome = result
    except click.exceptions.Exit as error:  # --help and --version
        outcome = Outcome(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        with suppress(OSError):
            click.echo(error.format_message(), err=True)
        outcome = Outcome(ExitCode.USAGE)
    except click.ClickException as error:
        outcome = _usage(error)
    except OwmOutboxError as error:
        outcome = Outcome(error.exit_code, str(error))
    except KeyboardInterrupt:
        outcome = Outcome(ExitCode.SIGINT, "stopped by SIGINT")
    except Exception as error:
        log.debug("the traceback of what failed", exc_info=True)
        outcome = Outcome(
            ExitCode.BUG,
            f"a bug: {type(error).__name__}: {one_line(str(error))}. "
            "Nothing committed is lost; --log-level debug shows the traceback",
        )
    write_left_out()
    if outcome.line:
        with suppress(OSError):  # a stderr that takes nothing does not change the outcome
            write_line(name, outcome)
    forget_what_cannot_be_written()
    sys.exit(outcome.code)


def _usage(error: click.ClickException) -> Outcome:
    ctx: click.Context | None = getattr(error, "ctx", None)
    param: click.Parameter | None = getattr(error, "param", None)
    line = " ".join(error.format_message().split())
    if ctx is not None and param is not None and param.name is not None:
        source = ctx.get_parameter_source(param.name)
        if source is ParameterSource.ENVIRONMENT:
            variable = param.envvar or f"{ctx.auto_envvar_prefix}_{param.name.upper()}"
            return Outcome(ExitCode.CONFIGURATION, f"{variable} in the environment: {line}")
        if source is ParameterSource.DEFAULT_MAP:
            return Outcome(ExitCode.CONFIGURATION, f"{param.name} in {ctx.params.get('config')}: {line}")
    if not line.endswith((".", "?", "?)")):  # click ends some with a full stop
        line += "."
    return Outcome(ExitCode.USAGE, f"{line} Try {ctx.command_path if ctx else 'owm-outbox'} --help.")
