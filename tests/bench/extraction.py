"""Benchmark, part 1: how fast pages are fetched, next to the ideal and a plain loop. Run with ``tox -e bench``.

The service answers from ready-made bodies, in a process of its own, after the given latency. Ideal is concurrency ÷
latency. The plain loop is what one writes first: one ``requests.Session``, ``.json()``, a dict with a UUID each.
PagedApi does more in the same time: it checks every record, retries, keeps order and a checkpoint, and asks for the
page after the last one.

Each figure is of one run from its start, the first page alone and the last ones included. Where there is latency, a run
makes about as many requests one after another as 8 at once make for 34,006 cities (341 pages), or more.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import selectors
import statistics
import sys
import time
import uuid
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import cast

import requests

from owm_outbox import Run
from owm_outbox.jobs.owm import OwmJob

CITIES_PER_PAGE = 100
ROUNDS = 3
AT_ONCE = (1, 4, 8, 16)
ONE_BY_ONE = {0.0: 1500, 0.005: 200, 0.02: 100, 0.1: 42}  # requests one after another, by latency
MOST_PAGES = 2400


def serve(latency: float, pipe: Connection) -> None:
    """Answer ``/{pages}/cities/?page={page}`` after ``latency`` seconds, as fast as an event loop can."""
    ready = []
    for page in range(MOST_PAGES):
        cities = [
            {
                "city_id": page * CITIES_PER_PAGE + n,
                "name": "Ort",
                "latitude_deg": 47.5,
                "longitude_deg": 8.5 + n / 1000,
            }
            for n in range(CITIES_PER_PAGE)
        ]
        ready.append(json.dumps({"limit": CITIES_PER_PAGE, "cities": cities})[:-1].encode())
    empty = b'{"limit": %d, "cities": []' % CITIES_PER_PAGE

    class Service(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.answer = cast(asyncio.Transport, transport).write
            self.later = asyncio.get_running_loop().call_later

        def data_received(self, head: bytes) -> None:
            pages = int(head.split(b"/", 2)[1])
            page = int(head.partition(b"page=")[2].partition(b"&")[0])
            body = (ready[page] if page < pages else empty) + b', "total_count": %d}' % (pages * CITIES_PER_PAGE)
            data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            if latency:
                self.later(latency, self.answer, data)
            else:
                self.answer(data)

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    # select() wakes at the microsecond; epoll, which asyncio would take, up to a millisecond late: 5 % of 20 ms.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(main())


def _paged(url: str, concurrency: int) -> int:
    job = OwmJob(OwmJob.Options(api_url=url, concurrency=concurrency))
    run = Run(id=str(uuid.uuid4()), job="owm", started_at=datetime.now(UTC))
    count = 0
    for page in job.pages(run):
        count += len(page.tasks)
        run.extracted = count
    return count


def _plain(url: str, pages: int) -> int:
    count = 0
    with requests.Session() as session:
        for page in range(pages):
            answer = session.get(f"{url}/cities/", params={"page": page, "limit": CITIES_PER_PAGE})
            answer.raise_for_status()
            tasks = [{"task_id": str(uuid.uuid4()), "city_id": city["city_id"]} for city in answer.json()["cities"]]
            count += len(tasks)
    return count


def _rate(address: str, latency: float, concurrency: int) -> float:
    """Return pages a second of one run; concurrency 0 is the plain loop."""
    pages = ONE_BY_ONE[latency] * (max(concurrency, 1) if latency else 1)
    pages = min(pages, 1600)
    url = f"{address}/{pages}"
    began = time.perf_counter()
    count = _paged(url, concurrency) if concurrency else _plain(url, pages)
    seconds = time.perf_counter() - began
    assert count == pages * CITIES_PER_PAGE
    return pages / seconds


def main() -> None:
    """Print the table."""
    print(f"Python {sys.version.split()[0]}, {multiprocessing.cpu_count()} cores; pages/s, median of {ROUNDS} rounds")
    print(
        f"{'latency':>8} {'at once':>8} {'pages/s':>9} {'ideal':>9} {'of ideal':>9} {'plain loop':>11} {'of plain':>9}"
    )
    for latency in ONE_BY_ONE:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(latency, theirs), daemon=True)
        process.start()
        address = f"http://127.0.0.1:{ours.recv()}"
        # In turn, so that a machine that slows down or speeds up does so for all of them.
        rates: dict[int, list[float]] = {concurrency: [] for concurrency in (0, *AT_ONCE)}
        for _ in range(ROUNDS):
            for concurrency, found in rates.items():
                found.append(_rate(address, latency, concurrency))
        process.terminate()
        plain = statistics.median(rates.pop(0))
        for concurrency, found in rates.items():
            rate = statistics.median(found)
            ideal = concurrency / latency if latency else None
            print(
                f"{latency * 1000:>5.0f} ms {concurrency:>8} {rate:>9.0f} "
                f"{f'{ideal:.0f}' if ideal else '-':>9} {f'{rate / ideal:.2f}' if ideal else '-':>9} "
                f"{plain:>11.0f} {rate / plain:>9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
