"""Benchmark, part 2: how fast each style of paging is, next to the ideal. Run with ``tox -e bench``.

The service answers each page after 20 ms. Where pages have numbers or offsets, four are fetched at once; where each
names the next one, they can only come one by one, so the ideal is one per 20 ms.
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
from urllib.parse import parse_qs, urlsplit

from owm_outbox import Run

from support.styles import CHAINED, STYLES, StyledJob

PAGES, PER_PAGE, LATENCY, AT_ONCE, ROUNDS = 150, 100, 0.02, 4, 3


def _answer(target: str) -> bytes:
    """Return the answer in all styles at once: each reads what it knows."""
    query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
    begins = int(query["p"]) * PER_PAGE if "p" in query else int(query.get("skip") or query.get("after") or 0)
    end = min(begins + PER_PAGE, PAGES * PER_PAGE)
    items = [{"city_id": number, "latitude_deg": 47.5, "name": "Ort"} for number in range(begins, end)]
    following = None if end == PAGES * PER_PAGE else str(end)
    link = f'Link: </cities/?after={following}&take={PER_PAGE}>; rel="next"\r\n' if following else ""
    body = json.dumps({"items": items, "next": following}).encode()
    return f"HTTP/1.1 200 OK\r\n{link}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _serve(pipe: Connection) -> None:
    class Service(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.answer = cast(asyncio.Transport, transport).write
            self.later = asyncio.get_running_loop().call_later

        def data_received(self, head: bytes) -> None:
            self.later(LATENCY, self.answer, _answer(head.split(b" ", 2)[1].decode()))

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    # select() wakes at the microsecond; epoll, which asyncio would take, up to a millisecond late: 5 % of 20 ms.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(main())


def _rate(url: str, kind: str) -> float:
    """Return pages per second of one run."""
    job = StyledJob(StyledJob.Options(api_url=url, concurrency=AT_ONCE), STYLES[kind])
    run = Run(id=str(uuid.uuid4()), job="styled", started_at=datetime.now(UTC))
    began = time.perf_counter()
    for page in job.pages(run):
        run.extracted += len(page.tasks)
    seconds = time.perf_counter() - began
    assert run.extracted == PAGES * PER_PAGE, f"{kind}: {run.extracted}"
    return PAGES / seconds


def main() -> None:
    """Print the table."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    rates: dict[str, list[float]] = {kind: [] for kind in STYLES}
    for _ in range(ROUNDS):
        for kind, found in rates.items():
            found.append(_rate(url, kind))
    process.terminate()
    print(f"Python {sys.version.split()[0]}, {multiprocessing.cpu_count()} cores; 20 ms; median of {ROUNDS} rounds")
    print(f"{'style':>14} {'at once':>8} {'pages/s':>9} {'ideal':>7} {'of ideal':>9}")
    for kind, found in rates.items():
        at_once = 1 if kind in CHAINED else AT_ONCE
        rate, ideal = statistics.median(found), at_once / LATENCY
        print(f"{kind:>14} {at_once:>8} {rate:>9.0f} {ideal:>7.0f} {rate / ideal:>9.2f}")


if __name__ == "__main__":
    main()
