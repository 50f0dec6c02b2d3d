"""The contract of a job as tests."""

from __future__ import annotations

from owm_outbox.testing.job_resuming import JobResuming
from owm_outbox.testing.job_surroundings import JobSurroundings
from owm_outbox.testing.job_tasks import JobTasks

__all__ = ["JobContract"]


class JobContract(JobTasks, JobResuming, JobSurroundings):
    """What `owm_outbox.Job` promises. Give it a fixture ``source``."""
