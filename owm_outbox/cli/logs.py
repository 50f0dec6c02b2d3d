"""What goes to stderr: logs, and the one line that says how a command ended."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from owm_outbox.config import wants_json_logs

__all__ = ["log_params", "say", "set_up_logging"]

log = logging.getLogger("owm_outbox")


def log_params() -> list[click.Parameter]:
    """Return the options of every command that logs."""
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


def set_up_logging(values: dict[str, Any]) -> None:
    """Log as these options say."""
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


def say(line: str, code: int) -> None:
    """Write the last line: as a log record where the logs are JSON."""
    handlers = logging.getLogger().handlers
    is_json = any(type(handler.formatter).__name__ == "JsonFormatter" for handler in handlers)
    if not handlers and wants_json_logs(sys.argv):  # it went wrong before the options were understood
        set_up_logging({"log_format": "json", "log_level": "info"})
        is_json = True
    if is_json:
        log.log(logging.ERROR if code else logging.INFO, "%s", line, extra={"exit_code": code})
    else:
        click.echo(line, err=True)
