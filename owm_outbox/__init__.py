"""An outbox relay: tasks are made durable, delivered in batches, and cleared."""

from owm_outbox.errors import (
    ApiUnavailable,
    ConfigurationError,
    EntriesRejected,
    JobError,
    OutboxError,
    OutboxLocked,
    OutboxUnavailable,
    OutboxUnusable,
    PositionConflict,
    RunIncomplete,
    SinkFull,
    SinkUnavailable,
    Stopped,
    TaskError,
    TryAgainLater,
)
from owm_outbox.job import Job, JobOptions, Notes, Page, Run, Secret
from owm_outbox.outbox import RESUME_WITHIN, DeadLetterStore, Outbox, OutboxStats, RunSummary
from owm_outbox.relay import OutboxRelay
from owm_outbox.report import Observer, RunReport
from owm_outbox.sink import Place, Sink
from owm_outbox.stop import Stop
from owm_outbox.task import Batch, DeadLetter, Entry, Key, Rejected, encode
from owm_outbox.url import URL

__version__ = "0.1.0"

__all__ = [
    "RESUME_WITHIN",
    "URL",
    "ApiUnavailable",
    "Batch",
    "ConfigurationError",
    "DeadLetter",
    "DeadLetterStore",
    "EntriesRejected",
    "Entry",
    "Job",
    "JobError",
    "JobOptions",
    "Key",
    "Notes",
    "Observer",
    "Outbox",
    "OutboxError",
    "OutboxLocked",
    "OutboxRelay",
    "OutboxStats",
    "OutboxUnavailable",
    "OutboxUnusable",
    "Page",
    "Place",
    "PositionConflict",
    "Rejected",
    "Run",
    "RunIncomplete",
    "RunReport",
    "RunSummary",
    "Secret",
    "Sink",
    "SinkFull",
    "SinkUnavailable",
    "Stop",
    "Stopped",
    "TaskError",
    "TryAgainLater",
    "__version__",
    "encode",
]
