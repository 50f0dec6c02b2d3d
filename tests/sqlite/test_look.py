"""A file that somebody only looks at: in every state and place it shows what is there, and stays as it is."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from owm_outbox import OutboxInvalid, OutboxUnavailable
from owm_outbox.plugins import look_at_outbox
from owm_outbox.testing import Parcel
from owm_outbox_backends.sqlite import SqliteOutbox

from support.commands import SCRIPTS, environment, run

pytestmark = pytest.mark.slow

_OTHER = ["setpriv", "--reuid=54322", "--regid=54322", "--clear-groups"]
_READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'

# What another process does with an outbox in which three parcels wait; it ends when its standard input does.
_HOLDERS = {
    "closed": "outbox.close()",
    "killed": "os.kill(os.getpid(), 9)",
    "open": "print('ready', flush=True); sys.stdin.read()",
    "relay": "with outbox.lock(): print('ready', flush=True); sys.stdin.read()",
    "writer": (
        "conn = outbox.connect(); conn.execute('BEGIN IMMEDIATE'); conn.execute('DELETE FROM outbox_entries'); "
        "print('ready', flush=True); sys.stdin.read()"
    ),
}
_HOLDER = """
import os, sys, uuid
from owm_outbox.testing import Parcel
from owm_outbox_backends.sqlite import SqliteOutbox
outbox = SqliteOutbox(sys.argv[1])
outbox.append([Parcel(uuid.uuid4(), number) for number in range(3)])
outbox.append([Parcel(uuid.uuid4(), 3)])
outbox.reject({4: "too heavy"})
"""

Seen = dict[str, tuple[int, int, int, bytes]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder that other users can enter."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


@contextmanager
def _held(path: Path, how: str) -> Iterator[None]:
    """Make an outbox in another process, and let that one do something meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER + _HOLDERS[how], str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        if how in ("closed", "killed"):
            process.wait(30)
        else:
            assert process.stdout.readline() == b"ready\n"
        yield
        process.stdin.close()
    assert process.returncode == (-signal.SIGKILL if how == "killed" else 0)


def _seen(folder: Path) -> Seen:
    """Return size, modification, owner and content of all that is in a folder."""
    found = {}
    for path in folder.iterdir():
        status = path.lstat()
        found[path.name] = (status.st_size, status.st_mtime_ns, status.st_uid, path.read_bytes())
    return found


def _readable(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o644)


def _status(folder: Path, before: Sequence[str] = (), *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, str(SCRIPTS / "owm-outbox"), "status", "--outbox", f"sqlite:///{folder}/tasks.db", *args],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _let_others_in() -> None:
    """Let other users pass through tox's folder, which it keeps to its owner, to the commands in it."""
    for folder in Path(sys.prefix).parents:
        if folder.name == ".tox":
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)


def _surroundings(name: str, folder: Path) -> list[str]:
    """Return what starts a command as another user, or with the folder read-only."""
    if name == "another user":
        if os.geteuid() != 0:
            pytest.skip("only root can become another user")
        _let_others_in()
        if subprocess.run([*_OTHER, SCRIPTS / "owm-outbox", "--version"], capture_output=True, check=False).returncode:
            pytest.skip("another user cannot read the files of this Python")
        return _OTHER
    if name == "read-only":
        return ["unshare", "-rm", "sh", "-c", _READ_ONLY, str(folder)]
    return []


@pytest.mark.parametrize("place", ["own", "another user", "read-only"])
@pytest.mark.parametrize("state", _HOLDERS)
def test_a_look_shows_what_is_committed_and_changes_nothing(state: str, place: str, folder: Path) -> None:
    """Closed, left by a killed process, beside a relay or in a writer's transaction; name, size, time and content."""
    before = _surroundings(place, folder)
    with _held(folder / "tasks.db", state):
        _readable(folder)
        there = _seen(folder)
        assert (f"{state} log", "tasks.db-wal" in there) == (f"{state} log", state != "closed")
        for args in (("--json",), (), ("--max-age", "1h")):
            done = _status(folder, before, *args)
            assert (done.returncode, done.stderr) == (0, ""), args
        assert done.stdout.startswith("OK: 3 pending, the oldest for "), done.stdout
        assert done.stdout.endswith("s;;3600 dead=1\n")
        assert _seen(folder) == there


def test_root_looks_at_the_outbox_of_a_service(folder: Path) -> None:
    """The owner's rights are as they were: a relay of that user opens it afterwards."""
    if os.geteuid() != 0:
        pytest.skip("only root can look at what is another's only")
    for state in ("closed", "killed"):
        with _held(folder / "tasks.db", state):
            pass
        for path in folder.iterdir():
            os.chown(path, 54322, 54322)
        there = _seen(folder)
        done = _status(folder, (), "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert _seen(folder) == there
        for path in folder.iterdir():
            path.unlink()


def test_a_log_without_its_index_is_read_from_a_copy(folder: Path) -> None:
    """A backup of file and log, read-only, too; the copy is removed afterwards."""
    with _held(folder / "tasks.db", "killed"):
        (folder / "tasks.db-shm").unlink()
    there = _seen(folder)
    outbox = ["--outbox", f"sqlite:///{folder}/tasks.db"]
    for place in ("own", "read-only"):
        done = subprocess.run(
            [*_surroundings(place, folder), str(SCRIPTS / "owm-outbox"), "status", "--max-pending", "3", *outbox],
            env=environment(TMPDIR="/dev/shm"),  # noqa: S108 - where there is room
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("OK: 3 pending")
    assert _seen(folder) == there
    outcome = run("owm-outbox", "status", *outbox, env={"TMPDIR": str(folder)})
    assert outcome.code == 0
    assert _seen(folder) == there


def test_a_look_while_programs_open_and_close_the_file(folder: Path) -> None:
    """Each look shows all that was committed before it, none fails, and no file is left that the owner refuses."""
    path = folder / "tasks.db"
    code = (
        "import sys, uuid\nfrom owm_outbox.testing import Parcel\nfrom owm_outbox_backends.sqlite import SqliteOutbox\n"
        "for number in range(150):\n"
        "    with SqliteOutbox(sys.argv[1]) as outbox: outbox.append([Parcel(uuid.uuid4(), number)])\n"
        "    print(number + 1, flush=True)\n"
    )
    with _held(path, "closed"):
        pass
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=environment())
    looks = 0
    with process:
        last = 3
        while process.poll() is None:
            with look_at_outbox(f"sqlite:///{path}") as outbox:
                pending = outbox.stats().pending
            assert pending >= last
            last = pending
            looks += 1
    assert process.returncode == 0
    assert looks > 10
    with look_at_outbox(f"sqlite:///{path}") as outbox:
        assert outbox.stats().pending == 153
    assert {file.name for file in folder.iterdir()} <= {"tasks.db", "tasks.db-wal", "tasks.db-shm"}


_LOOKING = """
import sys
from owm_outbox.plugins import look_at_outbox

for _ in range(150):
    with look_at_outbox(f"sqlite:///{sys.argv[1]}") as outbox:
        assert outbox.stats().pending == 3
"""
_OPENING = """
import select, sys
from owm_outbox_backends.sqlite import SqliteOutbox

print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    SqliteOutbox(sys.argv[1]).close()
"""


def test_another_user_who_looks_leaves_no_log_behind(folder: Path) -> None:
    """The owner closes the file just as a look begins; the look's user may make files there, and makes none."""
    before = _surroundings("another user", folder)
    path = folder / "tasks.db"
    with _held(path, "closed"):
        _readable(folder)
    folder.chmod(0o777)
    owner = subprocess.Popen(
        [sys.executable, "-c", _OPENING, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert owner.stdout is not None
    with owner:
        assert owner.stdout.readline() == b"ready\n"
        looking = [*before, sys.executable, "-c", _LOOKING, str(path)]
        others = [subprocess.Popen(looking, stderr=subprocess.PIPE, env=environment()) for _ in range(2)]
        failed = [other.communicate(timeout=100)[1] for other in others]
        assert failed == [b"", b""]
        _, errors = owner.communicate(timeout=20)
    assert (owner.returncode, errors) == (0, b"")
    assert {file.stat().st_uid for file in folder.iterdir()} == {os.geteuid()}


def test_tables_of_an_older_version_are_looked_at_and_not_upgraded(folder: Path) -> None:
    """A look is made with a newer version than the one that runs: it does not upgrade what that one still uses."""
    path = folder / "tasks.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(Path(__file__).with_name("version_0_1.sql").read_text("utf-8"))
    there = _seen(folder)
    with look_at_outbox(f"sqlite:///{path}") as outbox:
        assert outbox.stats().pending == 21
        assert len(outbox.runs(5)) == 1
    assert _seen(folder) == there


def test_an_empty_file_is_an_empty_outbox(folder: Path) -> None:
    """Nothing is made in it."""
    (folder / "tasks.db").touch()
    with look_at_outbox(f"sqlite:///{folder}/tasks.db") as outbox:
        assert (outbox.stats().pending, outbox.runs(5)) == (0, ())
    assert (folder / "tasks.db").stat().st_size == 0
    assert len(list(folder.iterdir())) == 1


def _symlink(path: Path) -> None:
    shutil.move(path, path.with_name("real.db"))
    path.symlink_to("real.db")


def _foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA application_id = 7; CREATE TABLE precious (thing);")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('owm_outbox', 'm999_x', 'now')"
        )
        connection.commit()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (Path.unlink, r"cannot open the outbox .*tasks\.db \(No such file"),
        (_symlink, "symbolic link"),
        (_foreign, "another program"),
        (_newer, "newer version"),
        (_fifo, "not a regular file"),
        (lambda path: path.write_text("Dear diary, " * 100), "not an SQLite file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4096]), "damaged"),
    ],
    ids=["missing", "symlink", "foreign", "newer", "fifo", "diary", "cut short"],
)
def test_what_is_not_an_outbox_is_refused(harm: Callable[[Path], object], words: str, folder: Path) -> None:
    """With one line that says what it is, and left as it is."""
    with _held(folder / "tasks.db", "closed"):
        pass
    harm(folder / "tasks.db")
    there = sorted(path.name for path in folder.iterdir())
    with pytest.raises(OutboxInvalid, match=words):
        look_at_outbox(f"sqlite:///{folder}/tasks.db")
    assert sorted(path.name for path in folder.iterdir()) == there


def test_a_file_that_may_not_be_read_is_named(folder: Path) -> None:
    """Another user without rights gets one line and 73; a monitoring system gets UNKNOWN."""
    before = _surroundings("another user", folder)
    with _held(folder / "tasks.db", "killed"):
        there = _seen(folder)
        done = _status(folder, before)
        assert (done.returncode, done.stdout) == (73, "")
        assert done.stderr.count("\n") == 1
        assert "tasks.db cannot be read (Permission denied)" in done.stderr
        watched = _status(folder, before, "--max-age", "1m")
        assert (watched.returncode, watched.stderr) == (3, "")
        assert watched.stdout.startswith("UNKNOWN: ")
        assert _seen(folder) == there


def test_what_is_looked_at_cannot_be_changed(folder: Path) -> None:
    """Every writing method refuses; dead letters can be read."""
    path = folder / "tasks.db"
    with _held(path, "closed"):
        pass
    there = _seen(folder)
    with SqliteOutbox(path, read_only=True) as outbox:
        assert [letter.position for letter in outbox.dead_letters()] == [4]
        assert outbox.id == outbox.id
        for write in (
            lambda: outbox.append([Parcel(uuid.uuid4(), 9)]),
            lambda: outbox.start_run("parcels"),
            lambda: outbox.retry([4]),
            lambda: outbox.drop([4]),
            lambda: outbox.read(0, 10),
            lambda: outbox.connect(),
            lambda: outbox.lock().__enter__(),
        ):
            with pytest.raises(OutboxInvalid, match="to look at it only"):
                write()
    assert _seen(folder) == there


_TOUCHING = """
import os, sys
from owm_outbox import OutboxUnavailable
from owm_outbox_backends.sqlite import SqliteOutbox

path, times = sys.argv[1], int(sys.argv[2])

def touch(event, args):
    global times
    if event == "shutil.copyfile" and times and str(args[0]).endswith("-wal"):
        times -= 1
        os.utime(f"{path}-wal")

sys.addaudithook(touch)
try:
    with SqliteOutbox(path, read_only=True) as outbox:
        print(outbox.stats().pending)
except OutboxUnavailable as error:
    print(error)
"""


@pytest.mark.parametrize(("times", "says"), [("1", "3"), ("99", "tasks.db was changed while it was read: run again")])
def test_a_copy_counts_only_if_the_file_stood_still(times: str, says: str, folder: Path) -> None:
    """One that somebody wrote to meanwhile is made again; if that goes on, it is an outage and not half a state."""
    path = folder / "tasks.db"
    with _held(path, "killed"):
        (folder / "tasks.db-shm").unlink()
    room = {"TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", _TOUCHING, str(path), times], env=environment(**room), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith(says)
    assert sorted(file.name for file in folder.iterdir()) == ["tasks.db", "tasks.db-wal"]


@pytest.mark.parametrize("times", [1, 99])
def test_what_was_read_without_a_lock_counts_only_if_the_file_stood_still(times: int, folder: Path) -> None:
    """The same for a file without a log, which is read in place."""
    path = folder / "tasks.db"
    with _held(path, "closed"):
        pass
    left = times

    def query(conn: sqlite3.Connection) -> int:
        nonlocal left
        if left:
            left -= 1
            os.utime(path)
        return times - left

    with SqliteOutbox(path, read_only=True) as outbox:
        if times == 1:
            assert outbox._db.look(query) == 1
        else:
            with pytest.raises(OutboxUnavailable, match="was changed while it was read: run again"):
                outbox._db.look(query)
    assert left == max(0, times - 20)


def test_a_process_that_has_the_file_open_keeps_its_locks(folder: Path) -> None:
    """A relay that serves a page looks at its own file: what it holds of it stays held, as another process shows."""
    path = folder / "tasks.db"
    with SqliteOutbox(path) as outbox:
        outbox.append([Parcel(uuid.uuid4(), 1)])
        for _ in range(2):
            with look_at_outbox(f"sqlite:///{path}") as look:
                assert look.stats().pending == 1
        # The last program that closes a file folds its log and removes it; this one is not the last.
        other = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA user_version'); db.close()"
        subprocess.run([sys.executable, "-c", other, path], check=True)
        assert Path(f"{path}-wal").stat().st_size > 0
        outbox.append([Parcel(uuid.uuid4(), 2)])
        assert outbox.stats().pending == 2
    with look_at_outbox(f"sqlite:///{path}") as look:
        assert look.stats().pending == 2
        assert not Path(f"{path}-wal").exists()
