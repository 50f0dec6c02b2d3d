"""A pooler between a relay and PostgreSQL: by transactions it is refused, by sessions it works."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from owm_outbox import ConfigurationError
from owm_outbox_backends.postgresql import PostgresqlOutbox

from support.commands import run
from support.postgres import PostgresServer, postgres_folder
from support.postgres_outbox import Place, note
from support.servers import free_port

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")]


@contextlib.contextmanager
def _pooler(server: PostgresServer, mode: str) -> Iterator[str]:
    """Run pgbouncer with this ``pool_mode``, and give the URL of the database behind it."""
    port = free_port()
    with postgres_folder() as folder:
        users = folder / "users"
        users.write_text(f'"postgres" "{server.password}"\n')
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = {mode}\nignore_startup_parameters = extra_float_digits,options\n"
        )
        for path in (users, settings):
            path.chmod(0o644)
        process = subprocess.Popen(
            [str(PGBOUNCER), str(settings)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            user="nobody" if os.geteuid() == 0 else None,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if b"process up" in line:
                break
        else:
            raise RuntimeError(f"pgbouncer did not start with {Path(settings).read_text()}")
        try:
            yield f"postgresql://postgres:{server.password}@127.0.0.1:{port}/postgres"
        finally:
            process.kill()
            process.communicate()


def test_a_pooler_by_transactions_is_refused(place: Place, tmp_path: Path) -> None:
    """A lock of a session would be anybody's there: the relay ends with 78 and what to do; appends work."""
    with _pooler(place.server, "transaction") as url:
        with PostgresqlOutbox(url, table=place.table) as outbox:
            outbox.append([note("a")])
            with psycopg.connect(url) as connection:
                outbox.append([note("b")], connection=connection)
            with pytest.raises(ConfigurationError, match="pool_mode = transaction"), outbox.lock():
                pytest.fail("it is not safe")
        done = run(
            "owm-outbox",
            "drain",
            "--outbox",
            f"{url}?table={place.table}",
            "--sink",
            f"jsonl:{tmp_path}/out",
            "--log-level",
            "error",
        )
        assert done.code == 78
        assert "is behind a pooler that changes the server between transactions" in done.line
        assert place.server.password not in done.err
    with place.open() as outbox:
        assert outbox.stats().pending == 2


def test_a_pooler_by_sessions_is_fine(place: Place, tmp_path: Path) -> None:
    """There each session has a server of its own for as long as it lasts."""
    with _pooler(place.server, "session") as url:
        with PostgresqlOutbox(url, table=place.table) as outbox:
            outbox.append([note("a")])
        done = run(
            "owm-outbox",
            "drain",
            "--outbox",
            f"{url}?table={place.table}",
            "--sink",
            f"jsonl:{tmp_path}/out",
            "--log-level",
            "error",
        )
        assert (done.code, done.err) == (0, "")
    assert len((tmp_path / "out").read_text().splitlines()) == 1
