"""What goes to stderr: logs, and the one line that says how a command ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TextIO

import click
from click.core import ParameterSource

from owm_outbox.cli.log_records import Context, RateLimit
from owm_outbox.cli.outcome import Outcome
from owm_outbox.errors import one_line, printable

__all__ = ["are_json", "log_params", "set_up_logging", "write_left_out", "write_line"]

log = logging.getLogger("owm_outbox")

_limit = RateLimit()

_FIRST_LEVEL = "warning"
_LEVELS = ["debug", "info", "warning", "error"]
_FORMATS = ["text", "json"]


def log_params(*, envvars: tuple[str, str] | None = None, level: str = _FIRST_LEVEL) -> list[click.Option]:
    """Return the two options that say what is logged and how; each takes effect as soon as it is parsed.

    So an error in what is parsed after them is already written as they say.

    :param envvars: the variables of level and format; ``None``: the job's prefix, and the option's name.
    :param level: what is logged unless this command or the group that it belongs to is told otherwise.
    """
    level_var, form = envvars or (None, None)
    return [
        _log_option("--log-level", _LEVELS, level, level_var, _set_level, "What to log to stderr."),
        _log_option(
            "--log-format", _FORMATS, "text", form, _set_format, "How to log: as text, or as one JSON object per line."
        ),
    ]


def _log_option(
    flag: str, values: list[str], default: str, envvar: str | None, effect: Callable[[str], None], text: str
) -> click.Option:
    def apply(ctx: click.Context, param: click.Parameter, value: str) -> None:
        given, of_group = (one.get_parameter_source(str(param.name)) for one in (ctx, ctx.find_root()))
        # Most defaults are in effect already; none counts more than what the group of commands was told.
        if given is not ParameterSource.DEFAULT or of_group is ParameterSource.DEFAULT:
            effect(value)

    return click.Option(
        [flag],
        type=click.Choice(values),
        is_eager=True,
        expose_value=False,
        callback=apply,
        envvar=envvar,
        show_envvar=True,
        default=default,
        show_default=True,
        help=text,
    )


def set_up_logging() -> None:
    """Log warnings as text until an option says otherwise."""
    logging.getLogger().setLevel(logging.WARNING)  # of other packages only what matters
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings repeat, with tracebacks, what is said here
    _set_format("text")
    _set_level(_FIRST_LEVEL)


def are_json() -> bool:
    """Return whether logs are JSON."""
    return any(isinstance(handler, _JsonHandler) for handler in logging.getLogger().handlers)


def write_left_out() -> None:
    """Say what was left out, because too many records were of one kind."""
    for name, level, text in _limit.left_out():
        logging.getLogger(name).log(level, "%s", text)


def write_line(name: str, outcome: Outcome) -> None:
    """Write the line that a command ends with: as a log record where the logs are JSON."""
    line = f"{name}: {outcome.line}"
    if are_json():
        log.log(logging.ERROR if outcome.code else logging.INFO, "%s", line, extra={"exit_code": int(outcome.code)})
    else:
        click.echo(printable(line), err=True)


def _set_level(level: str) -> None:
    for name in ("owm_outbox", "owm_outbox_backends"):
        logging.getLogger(name).setLevel(level.upper())


def _set_format(form: str) -> None:
    handler: logging.Handler
    if form == "json":
        from pythonjsonlogger.json import JsonFormatter

        handler = _JsonHandler()
        handler.setFormatter(JsonFormatter("{asctime}{levelname}{name}{message}", style="{"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLineFormatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(Context())
    handler.addFilter(_limit)
    logging.getLogger().handlers[:] = [handler]


class _OneLineFormatter(logging.Formatter):
    """Writes one line per record, whatever other packages log; a traceback, which is asked for, has its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of the method it replaces
        return printable(one_line(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name of the method it replaces
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


class _JsonHandler(logging.StreamHandler[TextIO]):
    """Writes one JSON object per line to stderr."""
