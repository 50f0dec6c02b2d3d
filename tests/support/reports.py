"""Reports of runs that did nothing, where a test needs one."""

from __future__ import annotations

from owm_outbox import RunReport

__all__ = ["report_of"]


def report_of(run: str, job: str = "job", *, complete: bool = True) -> RunReport:
    """Make the report of a run."""
    return RunReport(
        run_id=run,
        job=job,
        resumed=False,
        complete=complete,
        expected=None,
        extracted=0,
        duplicates=0,
        delivered=0,
        redelivered=0,
        rejected=0,
        pending=0,
        missing=[],
        seconds=0.0,
    )
