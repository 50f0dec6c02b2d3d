"""What a user does, in surroundings of many kinds: what it says and how it ends is what it is in plain ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import pytest

from owm_outbox.testing import Parcel
from owm_outbox_backends.sqlite import SqliteOutbox

from support import seccomp
from support.commands import SCRIPTS, environment
from support.servers import Server, binaries, free_port, running
from support.streams import city_ids
from support.weather import CountingService, made_up, serving

pytestmark = pytest.mark.slow

COUNT = 250
REASON = "Причина 原因 🌦 \x9b31m \u202egnp.exe"  # with a control character of C1 and a mark of direction


@dataclass(frozen=True)
class Surroundings:
    """What is unlike in plain ones.

    :param before: what starts the command; ``FOLDER`` in it is the one that the command may write to.
    :param env: variables; those with ``None`` are not set.
    :param encoding: of text on stdout.
    :param demo: the exit code of the demo, which needs more than what runs elsewhere.
    :param docstrings: whether Python has them: the help's first sentence is one.
    """

    before: list[str] = field(default_factory=list)
    env: Mapping[str, str | None] = field(default_factory=dict)
    encoding: str = "utf-8"
    demo: int = 0
    docstrings: bool = True


def _sh(line: str) -> list[str]:
    return ["sh", "-c", f'{line} && exec "$@"', "FOLDER"]


# A tree in which everything is read-only except the folder, for as long as the command lives.
_READ_ONLY = (
    'mkdir -p "$0/root" && mount --rbind / "$0/root" && mount -o remount,bind,ro "$0/root"'
    ' && mount --bind "$0" "$0/root$0" && exec chroot "$0/root" sh -c \'cd "$0" && exec "$@"\' "$0" "$@"'
)
_MINIMAL = {"HOME": None, "USER": None, "LOGNAME": None, "TMPDIR": None, "PATH": "/usr/bin:/bin"}
_NOBODY = ["unshare", "--map-user=54321", "--map-group=54321"]

SURROUNDINGS = {
    "LC_ALL=C": Surroundings(env={"LC_ALL": "C"}),
    "ASCII": Surroundings(env={"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "LC_ALL=en_US.ISO-8859-1": Surroundings(env={"LC_ALL": "en_US.ISO-8859-1", "LOCPATH": "FOLDER"}),
    "PYTHONIOENCODING=ascii": Surroundings(env={"PYTHONIOENCODING": "ascii"}),
    "PYTHONIOENCODING=latin-1": Surroundings(env={"PYTHONIOENCODING": "latin-1"}, encoding="latin-1"),
    "PYTHONIOENCODING=utf-16-le": Surroundings(env={"PYTHONIOENCODING": "utf-16-le"}, encoding="utf-16-le"),
    "a user without a name": Surroundings([*_NOBODY]),
    "a user without a name, umask 0777": Surroundings([*_NOBODY, *_sh("umask 0777")]),
    "umask 0": Surroundings(_sh("umask 0")),
    "a minimal environment": Surroundings(env=_MINIMAL),
    "no environment": Surroundings(["env", "-i"]),
    "a home that does not exist": Surroundings(env={"HOME": "/no/such/home"}),
    "a read-only root": Surroundings(["unshare", "-rm", "sh", "-c", _READ_ONLY, "FOLDER"], {"TMPDIR": "FOLDER"}),
    "32 open files": Surroundings(_sh("ulimit -n 32"), demo=78),  # Valkey wants 33
    "a stack of 256 KiB": Surroundings(_sh("ulimit -s 256")),
    "TZ": Surroundings(env={"TZ": "No/Such:Place;"}),
    "TERM and COLUMNS": Surroundings(env={"TERM": "", "COLUMNS": "0", "FORCE_COLOR": "1"}),
    "a current folder that was deleted": Surroundings(_sh('mkdir "$0/gone" && cd "$0/gone" && rmdir "$0/gone"')),
    "SIGINT and SIGHUP ignored": Surroundings(_sh('trap "" INT HUP')),
    "PYTHONDONTWRITEBYTECODE": Surroundings(env={"PYTHONDONTWRITEBYTECODE": "1"}),
    "PYTHONOPTIMIZE=2": Surroundings(env={"PYTHONOPTIMIZE": "2"}, docstrings=False),
    "PYTHONWARNINGS=error": Surroundings(env={"PYTHONWARNINGS": "error"}),
    "python -I": Surroundings([sys.executable, "-I"]),
    "python -X dev": Surroundings([sys.executable, "-X", "dev"]),
}

# What differs from one run to the next.
_VARYING = {
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}": "(id)",
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[,\d]*": "(time)",
    r'"seconds":[\d.e-]+': '"seconds":(s)',
    r"In [\d.]+ s": "In (s)",
    r"(127\.0\.0\.1|localhost):\d+": "(address)",
    r"sqlite:///[^ \n]*owm-demo-\w+": "(demo)",
}


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote, without what differs from run to run."""

    code: int
    out: str
    err: str


class User:
    """Does what users do, in surroundings of one kind."""

    def __init__(self, folder: Path, server: Server, api: CountingService, stream: str) -> None:
        self._folder, self._server, self._api, self._stream = folder, server, api, stream
        with SqliteOutbox(folder / "dead.db") as outbox:
            outbox.append([Parcel(uuid4(), 1)])
            outbox.reject({1: REASON})

    def does_everything(self, around: Surroundings) -> dict[str, Ended]:
        """Run each command; return how it ended."""
        dead = ["--outbox", f"sqlite:///{self._folder}/dead.db"]
        down = f"redis://127.0.0.1:{free_port()}/0?stream=s&retries=0"
        commands = {
            "run": ["owm-producer", *self._run("tasks.db", self._server.url(self._stream))],
            "sink down": ["owm-producer", *self._run("down.db", down)],
            "status": ["owm-outbox", "status", *dead],
            "status --json": ["owm-outbox", "status", "--json", *dead],
            "dead list": ["owm-outbox", "dead", "list", *dead],
            "dead list --json": ["owm-outbox", "dead", "list", "--json", *dead],
            "help": ["owm-producer", "--help"],
            "wrong flag": ["owm-producer", "--no-such-flag"],
            "demo": ["owm-producer", "--demo"],
        }
        return {name: self._ended(around, command) for name, command in commands.items()}

    def _run(self, outbox: str, sink: str) -> list[str]:
        return ["--outbox", f"sqlite:///{self._folder}/{outbox}", "--sink", sink, "--api-url", self._api.url, "--json"]

    def _ended(self, around: Surroundings, command: list[str]) -> Ended:
        done = in_surroundings(around, self._folder, str(SCRIPTS / command[0]), *command[1:])
        encoding = "utf-8" if "--json" in command else around.encoding
        errors = around.env.get("PYTHONIOENCODING") or "utf-8"
        return Ended(
            done.returncode,
            self._without_what_varies(done.stdout.decode(encoding)),
            self._without_what_varies(done.stderr.decode(errors)),
        )

    def _without_what_varies(self, text: str) -> str:
        text = text.replace(str(self._folder), "(folder)").replace(f"'{self._stream}'", "(stream)")
        for varying, shown in _VARYING.items():
            text = re.sub(varying, shown, text)
        return re.sub(r"for \d+ s|\"oldest_seconds\": [\d.]+", "(age)", text)


def in_surroundings(around: Surroundings, folder: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    # What runs the tests may have set PYTHONIOENCODING or PYTHONUTF8, which count more than a locale.
    env = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}
    for name, value in around.env.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value.replace("FOLDER", str(folder))
    before = [str(folder) if part == "FOLDER" else part for part in around.before]
    return subprocess.run(
        [*before, *command], stdin=subprocess.DEVNULL, capture_output=True, env=env, cwd=folder, check=False
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a Valkey for all that is compared."""
    with running(binaries()["valkey"], tmp_path_factory.mktemp("valkey")) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def api() -> Iterator[CountingService]:
    """Serve the cities for all that is compared."""
    with serving(made_up(COUNT)) as service:
        yield service


@pytest.fixture(scope="module")
def plain(server: Server, api: CountingService, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Do everything in plain surroundings."""
    done = User(tmp_path_factory.mktemp("plain"), server, api, "plain").does_everything(Surroundings())
    codes = {name: ended.code for name, ended in done.items()}
    assert codes == dict.fromkeys(done, 0) | {"sink down": 75, "wrong flag": 64}
    assert "Причина 原因 🌦 \\x9b31m \\u202egnp.exe" in done["dead list"].out
    assert "34,006 cities" in done["demo"].out
    return done


def _expected(plain: Ended, around: Surroundings, *, as_json: bool = False) -> Ended:
    if as_json:
        return plain
    out = plain.out.encode(around.encoding, "backslashreplace").decode(around.encoding)
    return Ended(plain.code, out, plain.err)


def _possible(around: Surroundings, folder: Path) -> bool:
    return in_surroundings(around, folder, "true").returncode == 0


def _with_its_locale(around: Surroundings, folder: Path) -> Surroundings:
    """Make the locale, with which stdout is Latin-1; where its sources are not installed, Python has UTF-8 instead."""
    path = folder / "en_US.ISO-8859-1"
    if localedef := shutil.which("localedef"):
        subprocess.run([localedef, "-f", "ISO-8859-1", "-i", "en_US", path], capture_output=True, check=False)
    return replace(around, encoding="latin-1" if (path / "LC_CTYPE").exists() else "utf-8")


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_decide_nothing(
    name: str, plain: dict[str, Ended], server: Server, api: CountingService, stream: str, tmp_path: Path
) -> None:
    """Exit codes, stdout and stderr of what users do are those of plain surroundings, and every task is delivered."""
    around = SURROUNDINGS[name]
    if "unshare" in around.before and not _possible(around, tmp_path):
        pytest.skip("only who may make a user namespace can have such surroundings")
    if "LOCPATH" in around.env:
        around = _with_its_locale(around, tmp_path)
    done = User(tmp_path, server, api, stream).does_everything(around)
    demo = done.pop("demo")
    assert (demo.code, demo.err.count("\n")) == (around.demo, 1 if around.demo else 0), demo
    if not around.demo:
        assert demo == plain["demo"]
    shown = done.pop("help")
    if around.docstrings:
        assert shown == _expected(plain["help"], around)
    else:
        assert shown.out.partition("Options:")[2] == plain["help"].out.partition("Options:")[2]
    for command, ended in done.items():
        assert ended == _expected(plain[command], around, as_json=command.endswith("--json")), command
    assert sorted(city_ids(server, stream)) == list(range(1, COUNT + 1))


def test_the_surroundings_are_what_they_are_called(tmp_path: Path) -> None:
    """A user without a name has none, and a read-only root takes no file, but the folder does."""
    nobody, read_only = SURROUNDINGS["a user without a name"], SURROUNDINGS["a read-only root"]
    if not _possible(nobody, tmp_path) or not _possible(read_only, tmp_path):
        pytest.skip("only who may make a user namespace can have such surroundings")
    asked = in_surroundings(nobody, tmp_path, sys.executable, "-c", "import os, pwd; pwd.getpwuid(os.getuid())")
    assert asked.stderr.endswith(b"KeyError: 'getpwuid(): uid not found: 54321'\n")
    assert b"Read-only file system" in in_surroundings(read_only, tmp_path, "touch", "/file").stderr
    assert in_surroundings(read_only, tmp_path, "touch", str(tmp_path / "file")).returncode == 0


# -- what is too little for the work, but not for saying so


def _ends(
    around: Surroundings, folder: Path, api: CountingService, *args: str, sink: str = "jsonl:lines"
) -> tuple[int, str]:
    command = [*args] or ["owm-producer", "--outbox", "sqlite:///tasks.db", "--sink", sink, "--api-url", api.url]
    done = in_surroundings(around, folder, str(SCRIPTS / command[0]), *command[1:])
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    return done.returncode, lines[-1]


@pytest.mark.skipif(not seccomp.possible(), reason="this kernel cannot be told to refuse")
def test_no_thread_at_all(api: CountingService, tmp_path: Path) -> None:
    """Where not one thread can be started, a run ends with 75 and says which limit to raise, and the demo with 78."""
    around = Surroundings([sys.executable, seccomp.__file__, "threads"])
    assert _ends(around, tmp_path, api) == (
        75,
        "owm-producer: no page can be fetched: can't start new thread; raise the limit of processes "
        "[0 tasks extracted, 0 waiting in the outbox]",
    )
    assert _ends(around, tmp_path, api, "owm-producer", "--demo") == (
        78,
        "owm-producer: the demo's servers did not start (can't start new thread): check TMPDIR, the disk and ulimit -a",
    )


def test_a_limit_of_file_sizes(server: Server, stream: str, tmp_path: Path) -> None:
    """A run that a limit of file sizes stops ends with 75 and names it; without it the next one delivers the rest."""
    limited = Surroundings(_sh("ulimit -f 400"))
    sink = server.url(stream)
    with serving(made_up(20_000)) as api:
        code, line = _ends(limited, tmp_path, api, sink=sink)
        assert code == 75
        assert "check the disk, its quota and ulimit -f, then run again [" in line
        assert 0 < len(city_ids(server, stream)) < 20_000
        done = in_surroundings(
            Surroundings(),
            tmp_path,
            *(str(SCRIPTS / "owm-producer"), "--outbox", "sqlite:///tasks.db", "--sink", sink, "--api-url", api.url),
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert sorted(city_ids(server, stream)) == list(range(1, 20_001))


def test_no_file_can_be_written(api: CountingService, tmp_path: Path) -> None:
    """Where no file can grow at all, a run ends with 75 and the demo with 78, and neither leaves anything behind."""
    nothing = Surroundings(_sh("ulimit -f 0"), {"TMPDIR": "FOLDER"})
    code, line = _ends(nothing, tmp_path, api)
    assert (code, line.partition("(")[2]) == (
        75,
        "disk I/O error): check the disk, its quota and ulimit -f, then run again",
    )
    code, line = _ends(nothing, tmp_path, api, "owm-producer", "--demo")
    assert code == 78
    assert line.startswith("owm-producer: the demo's servers did not start ([Errno 2] No usable temporary directory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (
            ["owm-outbox", "status", "--outbox", "sqlite:///tasks.db"],
            73,
            "owm-outbox: cannot open the outbox tasks.db: the current folder was deleted; give an absolute path",
        ),
        (
            ["owm-outbox", "drain", "--sink", "jsonl:lines"],
            78,
            "owm-outbox: jsonl:lines cannot be written: give a file in a folder that exists, or -",
        ),
        (
            ["owm-outbox", "new", "job", "parcels"],
            78,
            "owm-outbox: cannot make the folder parcels (No such file or directory)",
        ),
        (
            ["owm-outbox", "check", "outbox", "sqlite:///tasks.db"],
            73,
            "owm-outbox: cannot open the outbox tasks.db: the current folder was deleted; give an absolute path",
        ),
    ],
    ids=["status", "drain", "new", "check"],
)
def test_a_relative_path_in_a_folder_that_was_deleted(
    args: list[str], code: int, line: str, api: CountingService, tmp_path: Path
) -> None:
    """What is relative to a folder that no longer exists is a mistake of its own, which the line names."""
    gone = SURROUNDINGS["a current folder that was deleted"]
    assert _ends(gone, tmp_path, api, *args) == (code, line)


def test_what_python_cannot_start_has_no_demo(tmp_path: Path) -> None:
    """Where no further process can be started, the demo ends with 78 and what to do instead."""
    code = "import sys; sys.executable = '/no/such/python'; from owm_outbox.cli import producer; producer()"
    done = in_surroundings(Surroundings(), tmp_path, sys.executable, "-c", code, "--demo")
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        78,
        b"",
        "owm-producer: the demo cannot start its servers (No such file or directory): "
        "run without --demo, with --api-url and --sink\n",
    )
