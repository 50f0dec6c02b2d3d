"""What a command ends with: its exit code, and the line that says why."""

from __future__ import annotations

from dataclasses import dataclass

from owm_outbox.errors import ExitCode
from owm_outbox.report import RunReport

__all__ = ["EXIT_CODES", "Outcome", "count"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. One that returns nothing ended well and has nothing to say.

    :param line: for stderr; empty if there is nothing to say.
    :param report: of the run, if there was one.
    """

    code: int = ExitCode.COMPLETE
    line: str = ""
    report: RunReport | None = None


def count(number: int, noun: str) -> str:
    """Return ``1 task`` or ``2 tasks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


EXIT_CODES = """\b
Exit codes:
  0    complete: every task is in the sink and the local records are cleared
  64   wrong usage
  65   complete, but some tasks became dead letters (see owm-outbox dead list);
       or checked, but not how it fails
  70   a bug, in the job or in this program
  73   the outbox cannot be created, belongs to another program or is damaged
  75   try again later: API or sink down, sink full, outbox in use, incomplete
  78   bad configuration: unknown plugin, bad URL or option
  130  stopped by SIGINT
  143  stopped by SIGTERM
"""
