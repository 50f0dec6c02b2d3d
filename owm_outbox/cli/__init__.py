"""The commands. stdout is for data, stderr for everything else; the exit codes are those of sysexits.h."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import NoReturn

import click
from click.core import ParameterSource

from owm_outbox.cli.exits import BUG, CONFIG, USAGE
from owm_outbox.cli.logs import say
from owm_outbox.errors import OutboxError

__all__ = ["main", "producer"]

log = logging.getLogger("owm_outbox")


def main() -> NoReturn:
    """Run ``owm-outbox``."""
    from owm_outbox.cli.commands import cli

    _invoke(cli, "owm-outbox")


def producer() -> NoReturn:
    """Run ``owm-producer``, which is ``owm-outbox run owm`` and the demo."""
    from owm_outbox.cli.run import JobCommand, demo_params

    _invoke(JobCommand("owm", extra=demo_params()), "owm-producer")


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
        say(f"{name}: {line}", code)
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
