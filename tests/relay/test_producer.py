"""The main job, end to end: a real Weather Service over HTTP, a real outbox file, real servers."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from owm_outbox.cli.weather import City, read_cities

from support.commands import run, run_measured
from support.servers import Server
from support.streams import city_ids, entries, tasks
from support.weather import CountingService, made_up, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real_cities() -> Sequence[City]:
    """Read the 34,006 cities with more than 15,000 inhabitants."""
    return read_cities()


def _tables(outbox_url: str) -> dict[str, int]:
    with sqlite3.connect(outbox_url.removeprefix("sqlite:///")) as db:
        return {"entries": db.execute("SELECT count(*) FROM outbox_entries").fetchone()[0]}


def test_every_city_is_enqueued_exactly_once(
    real_cities: Sequence[City], server: Server, stream: str, outbox_url: str
) -> None:
    """Each of the 34,006 cities is one stream entry of the promised form, and nothing is left in the outbox."""
    with serving(real_cities) as api:
        outcome = run(
            "owm-producer",
            *("--api-url", api.url),
            *("--outbox", outbox_url),
            *("--sink", server.url(stream, maxlen=1_000_000)),
            "--json",
        )
    assert (outcome.code, outcome.err) == (0, "")
    found = {task["city_id"]: task for task in tasks(server, stream)}
    assert len(found) == sum(1 for _ in entries(server, stream)) == len(real_cities) == 34_006
    for city in real_cities:
        task = found[city.city_id]
        assert list(task) == ["task_id", "latitude_deg", "longitude_deg", "city_id"]
        assert (task["latitude_deg"], task["longitude_deg"]) == (city.latitude_deg, city.longitude_deg)
        assert str(uuid.UUID(task["task_id"])) == task["task_id"]
    assert len({task["task_id"] for task in found.values()}) == 34_006
    report = outcome.report
    assert report.pop("seconds") > 0
    assert uuid.UUID(report.pop("run_id"))
    assert report == {
        "job": "owm",
        "resumed": False,
        "complete": True,
        "expected": 34_006,
        "extracted": 34_006,
        "duplicates": 0,
        "delivered": 34_006,
        "redelivered": 0,
        "rejected": 0,
        "pending": 0,
        "missing": [],
        "trimmed": 0,
        "forked": False,
    }
    assert _tables(outbox_url) == {"entries": 0}


def test_each_call_after_a_complete_one_is_a_new_run(server: Server, stream: str, outbox_url: str) -> None:
    """A second call enqueues every city again, under another run and other task ids."""
    args = ("--outbox", outbox_url, "--sink", server.url(stream), "--json")
    with serving(made_up(250)) as api:
        first = run("owm-producer", "--api-url", api.url, *args)
        second = run("owm-producer", "--api-url", api.url, *args)
    assert (first.code, second.code) == (0, 0)
    assert first.report["run_id"] != second.report["run_id"]
    assert not second.report["resumed"]
    assert sorted(city_ids(server, stream)) == sorted(2 * list(range(1, 251)))
    assert len({task["task_id"] for task in tasks(server, stream)}) == 500


def test_memory_does_not_grow_with_the_number_of_cities(
    server: Server, stream: str, outbox_url: str, tmp_path: Path
) -> None:
    """234,908 real cities pass through in less than 96 MiB, each exactly once."""
    with serving(read_cities(500)) as api:
        outcome = run_measured(
            "owm-producer",
            *("--api-url", api.url),
            *("--outbox", outbox_url),
            *("--sink", server.url(stream, maxlen=1_000_000)),
            "--json",
        )
    assert outcome.code == 0, outcome.out
    assert outcome.report["delivered"] == 234_908
    assert outcome.peak_mib < 96
    ids = city_ids(server, stream)
    assert len(ids) == len(set(ids)) == 234_908


def test_a_run_never_trims_what_it_delivered_itself(server: Server, stream: str, outbox_url: str) -> None:
    """With all defaults and no consumer group, 170,391 cities do not fit: nothing is trimmed, and the line says why."""
    with serving(read_cities(1000)) as api:
        args = ("--api-url", api.url, "--outbox", outbox_url, "--json", "--wait-for-room", "0")
        full = run("owm-producer", *args, "--sink", server.url(stream))
        assert full.code == 75
        assert "is full (maxlen 100000)" in full.err.splitlines()[-1]
        assert (full.report["complete"], full.report["trimmed"]) == (False, 0)
        held = city_ids(server, stream)
        assert len(held) == full.report["delivered"] <= 100_000
        assert full.report["pending"] == 170_391 - len(held)
        rest = run("owm-producer", *args, "--sink", server.url(stream, maxlen=200_000))
    assert (rest.code, rest.report["run_id"]) == (0, full.report["run_id"])
    assert sorted(city_ids(server, stream)) == sorted(city.city_id for city in api.cities)


def test_older_runs_make_room_and_are_counted(server: Server, stream: str, outbox_url: str) -> None:
    """Without a group, entries of older runs are trimmed at maxlen, each of them counted in the report."""
    with serving(made_up(700)) as api:
        args = ("--api-url", api.url, "--outbox", outbox_url, "--json", "--sink", server.url(stream, maxlen=1000))
        first, second = run("owm-producer", *args), run("owm-producer", *args)
    assert (first.code, first.report["trimmed"]) == (0, 0)
    assert second.code == 0
    ids = city_ids(server, stream)
    assert ids[-700:] == list(range(1, 701))
    assert second.report["trimmed"] == 1400 - len(ids) > 0
    assert len(ids) <= 1000


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 500, 501])
def test_any_number_of_cities_is_complete(count: int, server: Server, stream: str, outbox_url: str) -> None:
    """No city, one, and numbers around a page and a batch: all complete, none lost, none twice."""
    with serving(made_up(count)) as api:
        outcome = run(
            "owm-producer", "--api-url", api.url, "--outbox", outbox_url, "--sink", server.url(stream), "--json"
        )
    assert outcome.code == 0, outcome.err
    assert outcome.report["complete"] is True
    assert city_ids(server, stream) == list(range(1, count + 1))


def test_pages_are_asked_for_as_documented(server: Server, stream: str, outbox_url: str) -> None:
    """Pages count from 0 with 100 cities each, each is asked for once, and so is the one behind the last."""
    with serving(made_up(250)) as api:
        run("owm-producer", "--api-url", api.url + "/", "--outbox", outbox_url, "--sink", server.url(stream))
        assert sorted(api.requests) == [f"/cities/?page={page}&limit=100" for page in range(4)]
        api.requests.clear()
        args = ("--outbox", outbox_url, "--sink", server.url(stream), "--api-limit", "60")
        run("owm-producer", "--api-url", api.url, *args)
        assert sorted(api.requests) == [f"/cities/?page={page}&limit=60" for page in range(6)]


class _BareHandler(BaseHTTPRequestHandler):
    """Answers with a bare array, as the design allows, and counts pages from 1."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        page = int(self.path.partition("page=")[2].partition("&")[0])
        cities = [
            {"city_id": n, "latitude_deg": 1, "longitude_deg": -2.5, "sister_cities": [1, {"x": None}]}
            for n in range((page - 1) * 100, min(page * 100, 250))
        ]
        body = json.dumps(cities).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the method it replaces
        """Keep quiet."""


@pytest.fixture
def bare_api() -> Iterator[str]:
    """Serve bare arrays."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _BareHandler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


def test_a_bare_array_ends_with_an_empty_page(bare_api: str, server: Server, stream: str, outbox_url: str) -> None:
    """An API without a total is read until a page is empty; unknown fields are ignored; the first page can be 1."""
    args = ("--outbox", outbox_url, "--sink", server.url(stream), "--json", "--first-page", "1")
    outcome = run("owm-producer", "--api-url", bare_api, *args)
    assert outcome.code == 0, outcome.err
    assert city_ids(server, stream) == list(range(250))
    assert outcome.report["expected"] is None


class _CappedService(CountingService):
    """Gives no more than 40 cities a page, whatever is asked for."""

    def answer(self, path: str) -> bytes | None:
        """Cap the limit."""
        return super().answer(path.replace("limit=100", "limit=40"))


def test_an_api_that_caps_its_pages_is_read_to_the_end(server: Server, stream: str, outbox_url: str) -> None:
    """If the API gives fewer cities a page than asked for, it has more pages, and all of them are fetched."""
    api = _CappedService(made_up(250))
    threading.Thread(target=api.serve_forever, daemon=True).start()
    try:
        args = ("--outbox", outbox_url, "--sink", server.url(stream), "--json")
        outcome = run("owm-producer", "--api-url", api.url, *args)
    finally:
        api.shutdown()
        api.server_close()
    assert outcome.code == 0, outcome.err
    assert city_ids(server, stream) == list(range(1, 251))
