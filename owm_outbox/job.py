"""What a team writes: a job, which produces tasks page by page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec

from owm_outbox.entry import Key
from owm_outbox.run import Run
from owm_outbox.task import InvalidRecord

__all__ = ["Job", "JobOptions", "Page", "Secret"]

T = TypeVar("T")

Secret = Annotated[str, msgspec.Meta(extra={"secret": True})]
"""The type of an option that is read from the environment only, and never printed."""


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A job's options: each field becomes a CLI option, an environment variable and a key of the TOML file.

    Help and bounds are the field's annotation::

        class Options(JobOptions, frozen=True):
            depot: Annotated[str, Meta(description="which depot")] = "north"
            trucks: Annotated[int, Meta(ge=1, description="how many trucks")] = 3

    For a job named ``fleet`` these are ``--depot`` and ``FLEET_DEPOT``, ``--trucks`` and ``FLEET_TRUCKS``.
    """

    def __repr__(self) -> str:  # an option may be a secret, so no value is shown
        return f"{type(self).__name__}(…)"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """The tasks of one step of a job, committed together with the checkpoint from which a resumed run continues.

    :param tasks: any number, also none.
    :param checkpoint: opaque to all but the job; a later call finds it as ``run.checkpoint``. ``None`` leaves the last
        one, so a resumed run asks for this page again. The source's last page needs one too, which says that it was it.
    :param invalid: records that are not valid tasks; they become dead letters in the same commit.
    :param expected: how many distinct keys the source has, where it says so and may end too early without an error;
        leave it out elsewhere. The newest figure counts, ``None`` leaves the last one, ``run.accounted`` withdraws it.
        A run with fewer is incomplete, and the next call reads all of it once more, without a checkpoint.
    :param missing: numbers of the pages that could not be fetched so far; if the last page names any, the run is
        incomplete.
    :param pages: how many of the source's pages these are, for whoever shows how far a run is.
    """

    tasks: Sequence[T]
    checkpoint: bytes | None = None
    invalid: Sequence[InvalidRecord] = ()
    expected: int | None = None
    missing: Sequence[int] = ()
    pages: int = 1


class Job(ABC, Generic[T]):
    """Produces tasks. Subclass it, name it in the entry-point group ``owm_outbox.jobs``, and ``owm-outbox run`` has it.

    A job never sends and never stores: it yields pages, and the relay commits each before it asks for the next. So
    what ``pages`` sees in ``run`` after a ``yield`` is durable.
    """

    name: ClassVar[str]
    """The entry point's name; in capitals the prefix of the environment variables."""

    default_outbox: ClassVar[str | None] = None
    default_sink: ClassVar[str | None] = None
    """Used when neither flag, environment nor file gives one; ``None``: one must be given."""

    Options: ClassVar[type[JobOptions]] = JobOptions
    """The class of the job's options; none by default."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options

    @abstractmethod
    def pages(self, run: Run) -> Iterator[Page[T]]:
        """Yield the pages that come after ``run.checkpoint``, in any number; the end says that all were tried.

        Everything before the checkpoint is already in the outbox. A page that repeats keys is harmless.

        :raises SourceUnavailable: the source cannot be read now; the run ends incomplete, and the next one resumes it.
        """

    def key(self, task: T) -> Key:
        """Return what makes two tasks of one run the same; the second one is dropped. By default the ``task_id``."""
        return str(task.task_id)  # type: ignore[attr-defined]  # every task has one, see encode()
