"""An outbox relay: tasks are made durable, delivered in batches, and cleared."""

from owm_outbox.connections import async_driver_connection, driver_connection, kind_of
from owm_outbox.entry import NO_HEADERS, NOTHING, Batch, Entry, Key, Mark, NewEntry
from owm_outbox.errors import (
    ConfigurationError,
    EntriesRejected,
    ExitCode,
    JobError,
    MarkConflict,
    OutboxInvalid,
    OutboxLocked,
    OutboxUnavailable,
    OwmOutboxError,
    SinkFull,
    SinkUnavailable,
    SourceUnavailable,
    Stopped,
    TaskError,
    TryAgainLater,
)
from owm_outbox.job import Job, JobOptions, Page, Secret
from owm_outbox.lane_relay import LaneRelay
from owm_outbox.lanes import Attendance, LanedOutbox, lane_of
from owm_outbox.observer import Observer
from owm_outbox.outbox import MAX_BYTES, RESUME_WITHIN, DeadLetterStore, Outbox, OutboxStats, Stored, may_resume
from owm_outbox.relay import OutboxRelay
from owm_outbox.report import RunIncomplete, RunReport
from owm_outbox.run import MemoryState, Run, RunRecord, StateStore
from owm_outbox.sink import Sink, pause, retried
from owm_outbox.stop import Stop
from owm_outbox.task import DeadLetter, InvalidRecord, encode, new_entries
from owm_outbox.transactional import TransactionalOutbox
from owm_outbox.url import URL

__version__ = "0.1.0"
"""The version of the installed package."""

__all__ = [
    "MAX_BYTES",
    "NOTHING",
    "NO_HEADERS",
    "RESUME_WITHIN",
    "URL",
    "Attendance",
    "Batch",
    "ConfigurationError",
    "DeadLetter",
    "DeadLetterStore",
    "EntriesRejected",
    "Entry",
    "ExitCode",
    "InvalidRecord",
    "Job",
    "JobError",
    "JobOptions",
    "Key",
    "LaneRelay",
    "LanedOutbox",
    "Mark",
    "MarkConflict",
    "MemoryState",
    "NewEntry",
    "Observer",
    "Outbox",
    "OutboxInvalid",
    "OutboxLocked",
    "OutboxRelay",
    "OutboxStats",
    "OutboxUnavailable",
    "OwmOutboxError",
    "Page",
    "Run",
    "RunIncomplete",
    "RunRecord",
    "RunReport",
    "Secret",
    "Sink",
    "SinkFull",
    "SinkUnavailable",
    "SourceUnavailable",
    "StateStore",
    "Stop",
    "Stopped",
    "Stored",
    "TaskError",
    "TransactionalOutbox",
    "TryAgainLater",
    "__version__",
    "async_driver_connection",
    "driver_connection",
    "encode",
    "kind_of",
    "lane_of",
    "may_resume",
    "new_entries",
    "pause",
    "retried",
]
