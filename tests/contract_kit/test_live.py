"""The contracts as ``owm-outbox check`` runs them: next to what a URL names, with nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.servers import Server

pytestmark = pytest.mark.slow

LIVE = "owm_outbox.testing.live"


def check(kind: str, url: str, *only: str) -> subprocess.CompletedProcess[str]:
    """Run the contract on a URL, which is given on stdin."""
    return subprocess.run(
        [
            *(sys.executable, "-P", "-m", "pytest", "--pyargs", f"{LIVE}::Test{kind.capitalize()}", *only),
            *("--disable-plugin-autoload", "-p", LIVE, "-p", "no:terminal", "-p", "no:cacheprovider"),
            *("-c", os.devnull),
        ],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        input=url,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_our_sqlite_outbox_passes_next_to_the_real_one(tmp_path: Path) -> None:
    """An outbox is checked in a folder of its own, its failures included; what was not tested is said at the end."""
    done = check("outbox", f"sqlite:///{tmp_path}/tasks.db")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for promise in ("positions are never reused", "a store that fails stores nothing"):
        assert f"  ok    {promise}\n" in done.stdout
    skipped = [line for line in done.stdout.splitlines() if "skipped" in line]
    assert len(skipped) == 1
    assert "Capabilities(settable_clock=False): not tested" in skipped[0]
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_nothing_fails_in_ends_with_a_code_of_its_own() -> None:
    """What cannot be made to fail passes with 65: nobody knows what a failure leaves."""
    done = check("outbox", "memory:")
    assert (done.returncode, done.stderr) == (65, ""), done.stdout
    assert "FAIL" not in done.stdout
    assert "  4 promises were skipped: Capabilities(interruptible=False): not tested" in done.stdout


def test_our_redis_sink_passes_next_to_the_real_stream(server: Server, stream: str) -> None:
    """A Redis sink is checked on a stream of its own, its failures included, and the real one is untouched."""
    with server.client() as client:
        client.xadd(stream, {"data": "{}"})
        done = check("sink", server.url(stream))
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        for promise in ("a send that fails takes all or nothing", "an unreachable sink does not know its mark"):
            assert f"  ok    {promise}\n" in done.stdout
        skipped = [line for line in done.stdout.splitlines() if "skipped" in line]
        assert len(skipped) == 1
        assert skipped[0].startswith("  3 promises were skipped: Capabilities(rejects=False)")
        assert client.keys() == [stream.encode()]
        assert client.xlen(stream) == 1


def test_our_lines_sink_passes_next_to_the_real_file(tmp_path: Path) -> None:
    """Lines are written to a file of their own; what a sink without marks cannot promise is skipped."""
    done = check("sink", f"jsonl:{tmp_path}/tasks")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "Capabilities(holds_mark=False): not tested that a batch is never added twice" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_left_ends_the_check(tmp_path: Path) -> None:
    """When stdout is closed, the check ends with 75: it proves nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "pytest", "--pyargs", f"{LIVE}::TestOutbox"),
            *("--disable-plugin-autoload", "-p", LIVE, "-p", "no:terminal", "-p", "no:cacheprovider"),
            *("-c", os.devnull),
        ],
        input=b"memory:",
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        timeout=100,
    )
    os.close(writer)
    assert done.returncode == 75
