"""What a command's exit code means."""

from __future__ import annotations

__all__ = ["BUG", "CONFIG", "DATA", "EXIT_CODES", "USAGE"]

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
