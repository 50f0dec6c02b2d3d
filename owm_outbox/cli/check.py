"""``owm-outbox check``: the contract kit, run against a scratch destination next to a live one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import click

from owm_outbox.cli.outcome import Outcome
from owm_outbox.cli.streams import write_data
from owm_outbox.errors import ConfigurationError, ExitCode, printable
from owm_outbox.url import URL

__all__ = ["check"]

_LIVE = "owm_outbox.testing.live"

_EXIT_CODES = """\b
Exit codes:
  0    every promise is kept
  65   all that was tested is kept; how it fails was not tested, as the plugin
       gives no way to make it fail
  70   a promise is broken
  73   an outbox cannot be made next to this one
  75   it cannot be tested now
  78   bad configuration: unknown plugin, bad URL or option, no pytest
"""


@click.command("check", epilog=_EXIT_CODES)
@click.argument("kind", type=click.Choice(["sink", "outbox"]))
@click.argument("url")
def check(*, kind: str, url: str) -> Outcome:
    """Run the contract of a sink or an outbox against a live URL.

    Everything is written to a scratch destination next to the real one, and removed afterwards.
    """
    from owm_outbox.plugins import scratch_outbox, scratch_sink

    parsed = URL(url)
    scratch = (scratch_sink if kind == "sink" else scratch_outbox)(parsed.scheme)
    with scratch(parsed):
        pass  # whatever is wrong with the URL is said here, once, and not by each test
    if importlib.util.find_spec("pytest") is None:
        raise ConfigurationError("check needs pytest: pip install 'owm-outbox[test]'")
    write_data(printable(str(parsed)))
    done = subprocess.run(  # noqa: S603 - pytest, on a module of this package
        [
            *(sys.executable, "-P", "-m", "pytest", "--pyargs", f"{_LIVE}::Test{kind.capitalize()}"),
            *("--disable-plugin-autoload", "-p", _LIVE, "-p", "no:terminal", "-p", "no:cacheprovider"),
            *("-c", os.devnull),
        ],
        input=url.encode(),  # not as an argument: a password in it would be in the list of processes
        check=False,
    )
    if done.returncode == 0:
        return Outcome()
    if done.returncode == ExitCode.UNTESTED:
        ways = "interrupt and unreachable" if kind == "sink" else "interrupt"
        return Outcome(
            ExitCode.UNTESTED,
            f"this {kind} keeps what was tested, but how it fails was not: {parsed}. Its author can give the scratch "
            f"{kind} {ways}, see owm_outbox.testing",
        )
    if done.returncode == ExitCode.TRY_AGAIN_LATER:
        return Outcome(ExitCode.TRY_AGAIN_LATER, "stdout was closed by the reader, or cannot be written")
    return Outcome(ExitCode.BUG, f"this {kind} does not keep its contract: {parsed}")
