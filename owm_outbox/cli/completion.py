"""Completion in a shell: what click offers, without a word on stderr whatever is wrong."""

from __future__ import annotations

import logging
import os

import click

from owm_outbox.cli.outcome import Outcome
from owm_outbox.errors import ExitCode, OwmOutboxError

__all__ = ["complete"]


def complete(command: click.Command, name: str) -> Outcome | None:
    """Answer a shell that asks for its script, or for what can follow; return ``None`` if it asks nothing.

    It asks through a variable, as click does in all programs: ``_OWM_OUTBOX_COMPLETE=bash_source``.
    """
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    asked = os.environ.get(variable)
    if not asked:
        return None
    from click.shell_completion import shell_complete

    logging.disable()  # what is logged would be written into the line that is being typed
    try:
        failed = shell_complete(command, {}, name, variable, asked)
    except OwmOutboxError:  # such as a job that cannot be loaded: it has nothing to offer
        return Outcome()
    shells = "bash_source, zsh_source or fish_source"
    return Outcome(ExitCode.USAGE, f"{variable}={asked}: write {shells}") if failed else Outcome()
