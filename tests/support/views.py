"""Views of outboxes in every state that a page shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from owm_outbox.operations.figures import RunFigures
from owm_outbox.operations.view import LaneView, LetterView, View

__all__ = ["HOSTILE", "NOW", "VIEWS"]

NOW = datetime(2026, 11, 27, 9, 30, 5, tzinfo=UTC)
HOSTILE = "<script>alert('x')</script> & \"quoted\"\x1b[31m \u202egnp.exe </title><img src=x onerror=alert(1)>"

_SINK = "redis://owm:***@redis.internal:6379/0?stream=owm-ingestion-stream"
_OUTBOX = "sqlite:////var/lib/owm/tasks.db"
_BUSY = [0, 0, 12, 480, 500, 500, 430, 380, 500, 500, 0, 0] * 5
_GAPS: list[int | None] = [None] * 22 + [3, 1, None, 0, 7, 12, 0, 0, 2, 4] + [0] * 28


def _run(number: int, state: str = "complete", **more: object) -> RunFigures:
    began = NOW - timedelta(hours=number, minutes=27)
    figures: dict[str, object] = {
        "id": f"0f3e1b5c-0000-4000-8000-{number:012}",
        "job": "owm",
        "state": state,
        "started_at": began,
        "finished_at": None if state == "open" else began + timedelta(seconds=38.2 + number),
        "seconds": 38.2 + number,
        "expected": 34_006,
        "extracted": 34_006,
        "duplicates": 0,
        "delivered": 34_006,
        "rejected": 0,
    }
    return RunFigures(**{**figures, **more})  # type: ignore[arg-type]  # as the dataclass has them


VIEWS = {
    "empty": View(outbox=_OUTBOX, now=NOW, pending=0, dead=0),
    "healthy": View(
        outbox=_OUTBOX,
        sink=_SINK,
        now=NOW,
        pending=212,
        oldest=3.2,
        dead=0,
        runs=[_run(number) for number in range(6)],
        throughput=_BUSY,
    ),
    "sink down": View(
        outbox=_OUTBOX,
        sink=_SINK,
        now=NOW,
        pending=34_218,
        oldest=7_512,
        dead=0,
        runs=[_run(0, "open", delivered=0), *(_run(number) for number in range(1, 6))],
        throughput=[*_BUSY[:25], *[0] * 35],
        problem="redis.internal:6379 cannot be reached (Connection refused)",
    ),
    "dead letters": View(
        outbox=_OUTBOX,
        sink=_SINK,
        now=NOW,
        pending=0,
        dead=57,
        runs=[
            _run(0, rejected=2, extracted=34_004),
            _run(1, "incomplete", extracted=21_300, delivered=21_300, missing=tuple(range(213, 341)), duplicates=14),
            _run(2, "open", job="night-fleet", expected=None, extracted=890, rejected=55, delivered=None),
        ],
        letters=[
            LetterView(4_101, "latitude_deg 91.0 is beyond 90", 12, 1_650, is_task=False),
            LetterView(4_102, HOSTILE, 1, 1_650, is_task=True),
            LetterView(70_213, "the payload has 33,554,433 bytes, more than 32 MiB " * 4, 1, 90_000, is_task=True),
            LetterView(70_214, "кириллица, العربية, עברית, 漢字 🌦", 3, 90_000, is_task=True),
            *(LetterView(80_000 + n, f"parcel {n}: no such depot", 1, 100 + n, is_task=True) for n in range(16)),
        ],
        throughput=_GAPS,
    ),
    "lanes": View(
        outbox="postgresql://owm:***@db-1.internal:5432,db-2.internal:5432/jobs?sslmode=verify-full&lanes=8",
        sink="redis://owm:***@redis.internal:6379/0?stream=orders-{lane}",
        now=NOW,
        pending=1_940,
        oldest=1_020,
        dead=0,
        lanes=[
            LaneView(
                n, 0 if n % 3 else 640, None if n % 3 else 1_020, 0, "" if n == 5 else f"relay-{n % 2}, pid {71 + n}"
            )
            for n in range(8)
        ],
        throughput=[*_BUSY],
    ),
}
