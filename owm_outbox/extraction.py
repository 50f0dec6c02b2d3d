"""One call's way from a job to the outbox."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from owm_outbox.errors import JobError, OwmOutboxError, TryAgainLater
from owm_outbox.job import Job, Page
from owm_outbox.outbox import Outbox
from owm_outbox.run import Run

__all__ = ["Extraction"]


class Extraction:
    """One call's way from a job to the outbox."""

    def __init__(self, job: Job[Any], run: Run) -> None:
        self.run = run
        self.missing: Sequence[int] = ()
        self._job = job
        self._short = f"short:{run.job}"

    def pages(self) -> Generator[Page[Any]]:
        """Yield the job's pages.

        :raises JobError: the job raised an error of its own, or yielded something else.
        :raises Stopped: a stop was asked for; also where the job swallowed it.
        """
        name = self.run.job
        pages = None
        try:
            self._begin_again_if_short()
            pages = iter(self._job.pages(self.run))
            while True:
                page = next(pages, None)
                self.run.stop.check()
                if page is None:
                    self._note_whether_short()
                    return
                if not isinstance(page, Page):
                    raise JobError(f"job {name!r} yielded a {type(page).__name__}, not a Page")
                yield page
        except OwmOutboxError:
            self.run.stop.check()
            raise
        except Exception as error:
            self.run.stop.check()
            raise _job_error(self._job, error) from error
        finally:
            close = getattr(pages, "close", None)  # an iterator need not be a generator
            if close is not None:
                close()

    def store(self, page: Page[Any], outbox: Outbox) -> int:
        """Commit a page with its checkpoint, and return how many of its tasks were new.

        :raises JobError: the job's ``key`` raised an error of its own.
        """
        run = self.run
        try:
            stored = outbox.append(
                page.tasks,
                key=self._job.key,
                run=run.id,
                checkpoint=page.checkpoint,
                invalid=page.invalid,
                expected=page.expected,
            )
        except OwmOutboxError:
            raise
        except Exception as error:  # of Job.key, or of tasks that are made while they are stored
            raise _job_error(self._job, error) from error
        run.extracted += stored.new
        run.duplicates += stored.duplicates
        run.rejected += stored.rejected - stored.replaced
        run.unusable += stored.rejected - stored.replaced
        run.checkpoint = run.checkpoint if page.checkpoint is None else page.checkpoint
        run.expected = run.expected if page.expected is None else page.expected
        self.missing = page.missing
        return stored.new

    def problem(self) -> TryAgainLater | None:
        """Say what the run lacks, although all its pages were tried."""
        run, missing = self.run, self.missing
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
            pages = "1 page" if len(missing) == 1 else f"{len(missing)} pages"
            return TryAgainLater(
                f"job {run.job!r}: {pages} could not be fetched ({shown}); the next run retries only those"
            )
        if self._is_short:
            return TryAgainLater(
                f"job {run.job!r}: expected {run.expected} distinct tasks, got {run.accounted}; "
                "the next run reads all of it once more"
            )
        return None

    @property
    def _is_short(self) -> bool:
        return self.run.expected is not None and self.run.accounted < self.run.expected

    def _note_whether_short(self) -> None:
        """Let the next call begin without a checkpoint if pages are over too early: what lies before may be cut short.

        It also asks the source anew how many there are: a row may have been deleted after the job had counted it.
        """
        if self._is_short and not self.missing:
            self.run.state.set(self._short, self.run.id.encode())

    def _begin_again_if_short(self) -> None:
        """Forget the checkpoint, once: if this call is interrupted, the next one continues where it was."""
        if self.run.state.get(self._short) == self.run.id.encode():
            self.run.state.set(self._short, b"")
            self.run.checkpoint = None  # what is stored already is not stored again


def _job_error(job: Job[Any], error: Exception) -> JobError:
    return JobError(f"job {job.name!r} failed at {_where(error, job)}: {type(error).__name__}: {error}")


def _where(error: BaseException, job: Job[Any]) -> str:
    """Name the line that failed: the innermost one of the job's package, not that of a library which it calls."""
    package = type(job).__module__.partition(".")[0]
    at = error.__traceback__
    found = others = "an unknown line"
    while at is not None:
        line = f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
        of = at.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        found = line if of == package else found
        others = line if of != "owm_outbox" else others
        at = at.tb_next
    return others if found == "an unknown line" else found
