"""The standard streams: closed, full, without a reader, or in a locale that lacks our characters.

Where a command does something, that decides how it ends, whether or not the report of it can be written. Where a
command only shows something, and nobody can read it, it has to be run again.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any

import click

from owm_outbox.errors import TryAgainLater

__all__ = ["OutputLost", "forget_what_cannot_be_written", "set_up_streams", "write_bytes", "write_data", "write_report"]

log = logging.getLogger("owm_outbox")


class OutputLost(TryAgainLater):
    """Stdout takes nothing."""


def set_up_streams() -> None:
    """Make the standard streams safe to use, in whatever state they were handed over.

    The numbers of those that are closed are taken: a database or a connection that got one of them could be written to
    by whatever writes to a standard stream. They stay unusable. Characters that a locale lacks are written as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number else os.O_WRONLY)  # takes the lowest number that is free
    if sys.stdout is not None:
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Stdout(1, "wb", closefd=False)),
            encoding=sys.stdout.encoding,
            errors="backslashreplace",
            line_buffering=sys.stdout.isatty(),
        )
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


class _Stdout(io.FileIO):
    """Standard output, whose errors are told from those of any other file."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise OutputLost("stdout was closed by the reader") from error
        except OSError as error:
            raise OutputLost(f"stdout cannot be written ({error.strerror})") from error


def write_data(data: str | bytes) -> None:
    """Write a line of what a command was asked for: text as the locale has it, bytes as they are.

    :raises OutputLost: stdout takes nothing.
    """
    if sys.stdout is None:
        raise OutputLost("stdout is closed")
    click.echo(data)


def write_bytes(data: bytes) -> None:
    """Write bytes and nothing else.

    :raises OutputLost: stdout takes nothing.
    """
    if sys.stdout is None:
        raise OutputLost("stdout is closed")
    click.echo(data, nl=False)


def write_report(data: str | bytes, *, instead: str = "") -> None:
    """Write what a command did. If that fails, a warning says so, and where to find it instead."""
    try:
        write_data(data)
    except OutputLost as error:
        log.warning("the report is lost: %s%s", error, f"; {instead}" if instead else "")


def forget_what_cannot_be_written() -> None:
    """Flush the standard streams now: Python would end with 120 if it could not do so at exit."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError, OutputLost):  # full, its reader left, or closed
            setattr(sys, name, None)
