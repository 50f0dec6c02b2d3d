"""Whose progress a mark speaks of, as a table."""

from __future__ import annotations

import pytest

from owm_outbox import NOTHING, Entry, Mark
from owm_outbox.history import Standing, standing

LEASES = ("aaaa", "bbbb")
ENTRIES = {position: Entry(position, f"task-{position}", b"{}") for position in (4, 5, 6, 9)}


@pytest.mark.parametrize(
    ("held", "acknowledged", "expected"),
    [
        # nothing was sent yet
        ("", "", Standing.SAME),
        ("4 aaaa task-4", "", Standing.AHEAD),
        ("", "3 -", Standing.SAME),
        ("5 bbbb task-5", "3 -", Standing.AHEAD),
        # the usual
        ("5 aaaa task-5", "5 aaaa task-5", Standing.SAME),
        ("5 aaaa task-5", "3 aaaa task-3", Standing.AHEAD),
        ("5 bbbb task-5", "3 aaaa task-3", Standing.AHEAD),
        ("2 aaaa task-2", "3 aaaa task-3", Standing.BEHIND),
        ("2 aaaa task-2", "3 bbbb task-3", Standing.BEHIND),
        ("", "3 bbbb task-3", Standing.BEHIND),
        # restored from a backup: another one sent under a lease that this one never had
        ("9 cccc task-9", "3 aaaa task-3", Standing.FOREIGN),
        ("5 cccc task-5", "3 aaaa task-3", Standing.FOREIGN),
        ("3 cccc task-3", "3 aaaa task-3", Standing.FOREIGN),
        ("2 cccc task-2", "3 aaaa task-3", Standing.FOREIGN),
        ("5 cccc task-5", "", Standing.FOREIGN),
        # restored from a backup that was made during the very session that went on
        ("9 aaaa another", "3 aaaa task-3", Standing.FOREIGN),
        ("8 aaaa task-8", "3 aaaa task-3", Standing.FOREIGN),
        ("70 aaaa task-70", "3 aaaa task-3", Standing.FOREIGN),
        ("3 aaaa another", "3 aaaa task-3", Standing.FOREIGN),
        # marks of version 0.1 are only positions
        ("3", "3", Standing.SAME),
        ("5", "3", Standing.AHEAD),
        ("2", "3", Standing.BEHIND),
        ("", "3", Standing.BEHIND),
        ("8", "3", Standing.FOREIGN),
        ("5 aaaa task-5", "3", Standing.AHEAD),
        ("5 cccc task-5", "3", Standing.FOREIGN),
        ("5", "3 aaaa task-3", Standing.FOREIGN),
    ],
)
def test_where_a_mark_stands(held: str, acknowledged: str, expected: Standing) -> None:
    """A sink's mark counts only where the outbox knows its lease, and the task at its position."""
    assert standing(Mark(held), Mark(acknowledged), LEASES, ENTRIES.get) is expected


@pytest.mark.parametrize("text", ["x", "-1 aaaa task", "12x aaaa task", " 5", "5.0", "five aaaa t"])
def test_what_is_not_a_mark_is_an_error(text: str) -> None:
    """Another program wrote it: it is not taken for anything."""
    with pytest.raises(ValueError, match="not a mark"):
        standing(Mark(text), Mark("3 aaaa task-3"), LEASES, ENTRIES.get)


def test_a_mark_has_its_parts() -> None:
    """It is text, made of a position, a lease and a task id, which may itself hold blanks."""
    mark = Mark.of(Entry(12, "a b  c", b"{}"), "beef")
    assert (mark, mark.position, mark.lease, mark.task_id) == ("12 beef a b  c", 12, "beef", "a b  c")
    assert (NOTHING.position, NOTHING.lease, NOTHING.task_id) == (0, "", "")
    assert (Mark("7").position, Mark("7").lease, Mark("7").task_id) == (7, "", "")
