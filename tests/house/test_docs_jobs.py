"""The jobs in docs/job.md that page an API and a table: killed, refused, broken, and each task there once."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

import owm_outbox

from support.commands import Outcome, run, start
from support.servers import Server
from support.streams import length, tasks

DOCS = Path(__file__).parent.parent.parent / "docs"
MODULES = ("invoices", "orders")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def code() -> dict[str, str]:
    """Return the modules that docs/job.md shows."""
    text = (DOCS / "job.md").read_text("utf-8")
    return dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def site(code: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install them."""
    folder, target = tmp_path_factory.mktemp("jobs"), tmp_path_factory.mktemp("site")
    for name in MODULES:
        (folder / f"{name}.py").write_text(code[name])
    jobs = "".join(f"\n    {name} = {name}:{name.title()}Job" for name in MODULES)
    modules = "".join(f"\n    {name}" for name in MODULES)
    (folder / "setup.cfg").write_text(
        f"[metadata]\nname = jobs\nversion = 1.0\n\n[options]\npy_modules ={modules}\n\n"
        f"[options.entry_points]\nowm_outbox.jobs ={jobs}\n"
    )
    (folder / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools"]\n')
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), str(folder)], check=True, capture_output=True)
    return target


def test_they_are_as_short_as_they_claim(code: dict[str, str]) -> None:
    """A job that pages an API fits into 40 lines, one that pages a table into 30."""
    assert len(code["invoices"].splitlines()) <= 40
    assert len(code["orders"].splitlines()) <= 30


def test_they_are_typed(code: dict[str, str], tmp_path: Path) -> None:
    """A team that checks its types finds nothing to mend."""
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(code[name])
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    root = Path(owm_outbox.__file__).parents[1]  # a checkout that is installed as editable is not found by mypy itself
    found = {} if root.name == "site-packages" else {"MYPYPATH": str(root)}
    subprocess.run([*command, *(f"{name}.py" for name in MODULES)], cwd=tmp_path, env=os.environ | found, check=True)


# -- an API


class Billing(ThreadingHTTPServer):
    """Answers ``GET /v2/invoices?offset=&limit=``, after ``seconds``; may be told to give a status."""

    daemon_threads = True

    def __init__(self, count: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.invoices = [
            {
                "number": f"R-{number:05}",
                "due": "2026-12-24",
                "amount": f"{number}.10",
                "customer": {"name": "Café Müller", "country": "DE"},
            }
            for number in range(count)
        ]
        self.seconds = 0.0
        self.status = dict[int, int]()  # by offset
        self.asked: list[int] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Billing

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        offset, limit = int(query["offset"][0]), int(query["limit"][0])
        self.server.asked.append(offset)
        threading.Event().wait(self.server.seconds)
        ends = offset + limit
        following = ends if ends < len(self.server.invoices) else None
        body = json.dumps({"items": self.server.invoices[offset:ends], "next": following}).encode()
        self.send_response(self.server.status.get(offset, 200))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the method it replaces
        """Keep quiet."""


@pytest.fixture
def billing() -> Iterator[Billing]:
    """Serve 3,000 invoices."""
    with Billing(3000) as billing:
        threading.Thread(target=billing.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()
        yield billing
        billing.shutdown()


class Call:
    """Calls of one job, always on the same outbox and stream."""

    def __init__(self, site: Path, folder: Path, sink: str, *args: str) -> None:
        self._env = {"PYTHONPATH": str(site)}
        self._args = ("run", *args, "--outbox", f"sqlite:///{folder}/tasks.db", "--sink", sink, "--json")

    def run(self, *args: str) -> Outcome:
        """Call it."""
        return run("owm-outbox", *self._args, *args, env=self._env)

    def kill(self, server: Server, stream: str, more: int) -> None:
        """Call it, and kill it once this many more tasks are in the stream."""
        wanted = length(server, stream) + more
        process = start("owm-outbox", *self._args, env=self._env)
        with server.client() as client:
            while int(client.xlen(stream)) < wanted and process.poll() is None:
                client.xread({stream: "$"}, block=1000)
        process.kill()
        process.communicate()
        assert process.returncode == -9, "it ended before it was killed"


def test_invoices_killed_three_times_are_there_once_in_order(
    site: Path, billing: Billing, server: Server, stream: str, tmp_path: Path
) -> None:
    """What was in the outbox or the stream when the job was killed is not fetched or sent again."""
    call = Call(site, tmp_path, server.url(stream), "invoices", "--api-url", billing.url)
    billing.seconds = 0.1
    for _ in range(3):
        call.kill(server, stream, 400)
    billing.seconds = 0.0
    last = call.run()
    assert (last.code, last.report["resumed"], last.report["complete"]) == (0, True, True)
    found = tasks(server, stream)
    assert [task["number"] for task in found] == [invoice["number"] for invoice in billing.invoices]
    assert len({task["task_id"] for task in found}) == 3000
    assert found[7] == billing.invoices[7] | {"task_id": found[7]["task_id"]}


def test_invoices_that_cannot_be_fetched_are_resumed(
    site: Path, billing: Billing, server: Server, stream: str, tmp_path: Path
) -> None:
    """A page that fails is named; the next run fetches it alone. A bad invoice is a dead letter, and 65."""
    call = Call(site, tmp_path, server.url(stream), "invoices", "--api-url", billing.url, "--retry-wait", "0.01")
    billing.status[1700] = 500
    billing.invoices[3]["due"] = "soon"
    first = call.run()
    assert (first.code, first.report["missing"], first.report["extracted"]) == (75, [17], 2899)
    billing.status.clear()
    billing.asked.clear()
    second = call.run()
    assert (second.code, billing.asked) == (65, [1700])
    assert len({task["number"] for task in tasks(server, stream)}) == len(tasks(server, stream)) == 2999
    dead = run("owm-outbox", "dead", "list", "--outbox", f"sqlite:///{tmp_path}/tasks.db")
    assert "Invalid RFC3339 encoded date - at `$.due`" in dead.out


@pytest.mark.parametrize(
    ("args", "exit_code", "words"),
    [
        (["--api-url", "http://127.0.0.1:9"], 75, "nothing could be read; run again later"),
        ([], 78, "answered 401 Unauthorized: check the API token"),
        (["--api-url", "ftp://billing"], 78, "--api-url 'ftp://billing' is not valid"),
    ],
    ids=["down", "refused", "bad address"],
)
def test_an_api_that_gives_nothing_is_one_line(
    args: list[str], exit_code: int, words: str, site: Path, billing: Billing, tmp_path: Path
) -> None:
    """As with the main job: what waiting can fix ends with 75, what it cannot with 78."""
    billing.status = {0: 401, 100: 401}
    address = [] if args else ["--api-url", billing.url]
    call = Call(site, tmp_path, f"jsonl:{tmp_path}/out", "invoices", "--retry-wait", "0.01", "--log-level", "error")
    outcome = call.run(*args, *address)
    assert outcome.code == exit_code
    assert words in outcome.line


# -- a table


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Give 50,000 orders."""
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, total REAL)")
        db.executemany("INSERT INTO orders VALUES (?, ?)", ((3 * n, n / 4) for n in range(1, 50_001)))
    return path


def test_orders_killed_three_times_are_there_once_in_order(
    site: Path, database: Path, server: Server, stream: str, tmp_path: Path
) -> None:
    """50,000 rows, three kills: each row is one task, in the order of the table."""
    call = Call(site, tmp_path, server.url(stream), "orders", "--database", str(database))
    for _ in range(3):
        call.kill(server, stream, 5000)
    last = call.run()
    assert (last.code, last.report["resumed"], last.report["complete"]) == (0, True, True)
    assert [task["order_id"] for task in tasks(server, stream)] == [3 * n for n in range(1, 50_001)]


def test_a_table_that_cannot_be_read_is_tried_again(site: Path, database: Path, tmp_path: Path) -> None:
    """A database that is locked, or has no such table yet, ends with 75 and one line."""
    call = Call(site, tmp_path, f"jsonl:{tmp_path}/out", "orders", "--log-level", "error")
    outcome = call.run("--database", str(tmp_path / "other.db"))
    assert (outcome.code, outcome.line) == (
        75,
        "owm-outbox: the database of job 'orders' cannot be read: no such table: orders; run again later "
        "[0 tasks extracted, 0 waiting in the outbox]",
    )
    with closing(sqlite3.connect(database)) as db:
        db.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in call.run("--database", str(database)).line
    assert call.run("--database", str(database)).code == 0


@pytest.mark.parametrize(("job", "option"), [("orders", "database"), ("invoices", "api_url")])
def test_an_option_without_a_default_is_asked_for(job: str, option: str, site: Path, tmp_path: Path) -> None:
    """What has to be given is named with its flag and its variable."""
    outcome = Call(site, tmp_path, f"jsonl:{tmp_path}/out", job).run()
    flag, variable = f"--{option.replace('_', '-')}", f"{job.upper()}_{option.upper()}"
    assert (outcome.code, outcome.out) == (78, "")
    assert outcome.line == f"owm-outbox: job {job!r} needs its option {option!r}: give {flag} or set {variable}"
