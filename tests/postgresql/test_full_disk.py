"""A disk that is really full, under the server."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from owm_outbox import OutboxUnavailable
from owm_outbox.plugins import open_outbox

from support.commands import run
from support.postgres import PostgresServer, postgres_binaries, postgres_folder
from support.postgres_outbox import note

pytestmark = pytest.mark.slow

_LARGE = 1_000_000  # bytes of a task: more than a table has left in its last page


@pytest.fixture
def small_disk() -> Iterator[PostgresServer]:
    """Run a server on a disk of its own, which is small."""
    with postgres_folder() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=256m,mode=0755", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a disk of its own needs the right to mount one, CAP_SYS_ADMIN: {done.stderr.strip()}")
        try:
            server = PostgresServer(postgres_binaries()["postgres-18"], folder, {"fsync": "on"})
            server.make()
            server.start()
            try:
                yield server
            finally:
                server.kill()
        finally:
            subprocess.run(["umount", str(folder)], check=True)


def _fill(disk: Path) -> Path:
    """Write a file that leaves no room on the disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(itertools.repeat(b"\0" * 4096))
    return ballast


def test_a_full_disk_keeps_what_was_stored(small_disk: PostgresServer, tmp_path: Path) -> None:
    """An append is refused with 75 and stores nothing; with room again, all goes on without a restart."""
    with open_outbox(small_disk.url()) as outbox:
        with small_disk.client() as admin:
            admin.execute("SELECT pg_switch_wal()")  # the log has room: what is full is a table
        outbox.append([note("before")])
        ballast = _fill(small_disk.folder)
        for _ in range(3):
            with pytest.raises(OutboxUnavailable, match=r"the disk of .* is full .*: nothing of this call was kept"):
                outbox.append([note("small"), note(os.urandom(_LARGE // 2).hex())])
        done = run("owm-outbox", "status", "--json", "--outbox", small_disk.url())
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out)["pending"] == 1
        ballast.unlink()
        outbox.append([note("after")])
    done = run("owm-outbox", "drain", "--outbox", small_disk.url(), "--sink", f"jsonl:{tmp_path}/out")
    assert (done.code, done.err) == (0, "")
    delivered = [json.loads(line)["text"] for line in (tmp_path / "out").read_text().splitlines()]
    assert delivered == ["before", "after"]
