"""As many requests at once as allowed, and pages in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from owm_outbox_backends.memory import MemoryOutbox

from support.misbehaving import delivered, ids_in, misbehaving, produce, slow, together
from support.weather import made_up


@pytest.mark.parametrize("concurrency", [1, 4, 8, 16])
def test_never_more_requests_at_once_than_allowed(concurrency: int, out: Path) -> None:
    """Seen from a slow server, there are as many requests at once as allowed and never one more; all cities come."""
    with misbehaving(made_up(6000)) as service:
        service.misbehave(slow(0.03), 0)
        service.misbehave(together(concurrency), *range(1, 1 + concurrency))
        service.misbehave(slow(0.005))
        ending = produce(service, MemoryOutbox(), out, concurrency=concurrency)
        assert service.most_at_once == concurrency
        assert len(service.requests) == 61
    assert ending.code == 0
    assert ids_in(out) == list(range(1, 6001))


def test_pages_are_stored_in_their_order(out: Path) -> None:
    """However the answers overtake each other, tasks are stored and delivered in the order of the pages."""
    with misbehaving(made_up(3000)) as service:
        service.misbehave(slow(0.03), 0)
        service.misbehave(together(8), *range(1, 9))
        service.misbehave(slow(0.02), *range(9, 30, 3))
        assert produce(service, MemoryOutbox(), out, concurrency=8).code == 0
    assert [task["city_id"] for task in delivered(out)] == list(range(1, 3001))
