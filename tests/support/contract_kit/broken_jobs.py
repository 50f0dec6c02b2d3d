"""Jobs that break a promise each."""
# ruff: noqa: D102 - what the methods of a broken job do is in the docstring of its class

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from owm_outbox import InvalidRecord, Key, Page, Run, SourceUnavailable

from support.contract_kit.catalogue import CatalogueJob, NamelessJob, Record, Ware
from support.contract_kit.registry import caught_by

# tasks and keys


@caught_by("test_every_key_is_made", "3 (21, 22, 23) of the source's 21 keys were never made")
class LeavesOutTheLastPage(CatalogueJob):
    """Takes a page that is not full for the end."""

    def pages(self, run: Run) -> Iterator[Page[Ware]]:
        return (page for page in super().pages(run) if len(page.tasks) + len(page.invalid) == 5)


@caught_by("test_every_key_is_made", "are not the source's")
class KeysByHash(CatalogueJob):
    """Makes keys with hash(), which is another one in each process."""

    def key(self, task: Ware) -> Key:
        return hash(task.name)


@caught_by("test_every_key_is_made", "a float: return an int or a str")
class KeysAreFloats(CatalogueJob):
    """Reads numbers as JavaScript does."""

    def key(self, task: Ware) -> Key:
        return float(task.number)  # type: ignore[return-value]  # which is what is wrong


@caught_by("test_a_key_belongs_to_one_record", "two tasks have the key 'ware 1', of which the second is dropped")
class KeysByAPrefix(CatalogueJob):
    """Cuts the key at six characters, so that ten wares have the same one."""

    def key(self, task: Ware) -> Key:
        return task.name[:6]


@caught_by("test_every_task_has_an_id_of_its_own", "ids belong to several tasks")
class OneIdPerPage(CatalogueJob):
    """Makes one id for all tasks of a page."""

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        page = super().page(run, records, after)
        return replace(page, tasks=[replace(task, task_id=run.task_id(after)) for task in page.tasks])


@caught_by("test_every_task_has_an_id_of_its_own", "has no task_id: give it one, such as run.task_id(key)")
class TasksWithoutAnId(CatalogueJob):
    """Leaves ids to somebody else."""

    def task(self, run: Run, record: Record) -> Ware:
        return replace(super().task(run, record), task_id=None)  # type: ignore[arg-type]  # which is what is wrong


@caught_by("test_every_key_is_made", "cannot be encoded as JSON")
class TasksThatJsonCannotCarry(CatalogueJob):
    """Puts an object of the source's driver into its tasks."""

    def task(self, run: Run, record: Record) -> Ware:
        return replace(super().task(run, record), name=threading.Lock())  # type: ignore[arg-type]  # which is what is wrong


@caught_by("test_a_page_holds_what_it_should", "a page has checkpoint='5', a str: give bytes")
class CheckpointsAreText(CatalogueJob):
    """Forgets to encode its checkpoint."""

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        return replace(super().page(run, records, after), checkpoint=str(after))  # type: ignore[arg-type]  # which is what is wrong


@caught_by("test_a_page_holds_what_it_should", "a generator: give Sequence")
class TasksAreMadeOnce(CatalogueJob):
    """Gives a page a generator of tasks, of which whoever looks first leaves nothing to the next."""

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        page = super().page(run, records, after)
        return replace(page, tasks=(task for task in page.tasks))  # type: ignore[arg-type]  # which is what is wrong


@caught_by("test_a_page_holds_what_it_should", "say what is wrong with the record")
class RejectsWithoutWords(CatalogueJob):
    """Does not say why a record is not a task."""

    def invalid(self, record: Record) -> InvalidRecord:
        return replace(super().invalid(record), reason="")


@caught_by("test_a_whole_read_makes_a_complete_run", "expected 24 distinct tasks, got 23")
class ExpectsWhatIsListed(CatalogueJob):
    """Takes the number of rows for that of keys, so that its run is never complete."""

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        return replace(super().page(run, records, after), expected=len(self.catalogue.records))


@caught_by("test_a_whole_read_makes_a_complete_run", "1 page could not be fetched (5)")
class MissesThePageBeyondTheEnd(CatalogueJob):
    """Takes the empty page at the end for one that could not be read."""

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        return replace(super().page(run, records, after), missing=() if records else [5])


@caught_by("test_another_run_makes_the_same_keys_with_other_ids", "when an object made its second run")
class ReadsOnce(CatalogueJob):
    """Keeps its place in the object, which in a service lives as long as the process."""

    at: int | None = None

    def start(self, run: Run) -> int:
        return super().start(run) if self.at is None else self.at

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        self.at = after
        return super().page(run, records, after)


@caught_by("test_another_run_makes_the_same_keys_with_other_ids", "when an object made its second run")
class KeysCountOn(CatalogueJob):
    """Numbers its tasks with a counter of the process."""

    counts: ClassVar[dict[str, Iterator[int]]] = {}
    made: ClassVar[dict[uuid.UUID, int]] = {}

    def key(self, task: Ware) -> Key:
        if task.task_id not in self.made:
            before = {number for number in self.made.values() if number >= 1000}
            self.made[task.task_id] = task.number if len(self.made) < 21 else 1000 + len(before)
        return self.made[task.task_id]


@caught_by("test_another_run_makes_the_same_keys_with_other_ids", "a worker that drops repeats would drop these tasks")
class IdsForEver(CatalogueJob):
    """Makes the id from the number alone: tomorrow's task has today's."""

    def task(self, run: Run, record: Record) -> Ware:
        return replace(super().task(run, record), task_id=uuid.uuid5(uuid.NAMESPACE_OID, str(record["number"])))


@caught_by("test_task_ids_are_the_same_within_a_run", "21 (1, 2, 3, …) tasks have another id")
class IdsByChance(CatalogueJob):
    """Makes a new id each time."""

    def task(self, run: Run, record: Record) -> Ware:
        return replace(super().task(run, record), task_id=uuid.uuid4())


# bad records


@caught_by("test_bad_records_become_dead_letters", "2 bad records, and 0 became dead letters")
class SkipsBadRecords(CatalogueJob):
    """Logs what is wrong, at best."""

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        return replace(super().page(run, records, after), invalid=(), expected=None)


@caught_by("test_bad_records_become_dead_letters", "failed at")
class StumblesOverBadRecords(CatalogueJob):
    """Takes every record for a ware."""

    def is_ware(self, record: Record) -> bool:
        assert record["name"], "a ware has a name"
        return True


@caught_by("test_bad_records_become_dead_letters", "2 bad records, and 1 became dead letters")
class BadRecordsShareAKey(CatalogueJob):
    """Gives all bad records of a run the same key."""

    def invalid(self, record: Record) -> InvalidRecord:
        return replace(super().invalid(record), key="bad")


@caught_by("test_a_bad_record_is_one_dead_letter", "after a second read there are 4 dead letters")
class StampsBadRecords(NamelessJob):
    """Adds to a bad record when it was read."""

    times = itertools.count()

    def invalid(self, record: Record) -> InvalidRecord:
        return super().invalid({**record, "read_at": next(self.times)})


# a run that is interrupted


@caught_by("test_another_object_continues_after_each_page", "4 (6, 7, 8, …) of the source's 21 keys were never made")
class CheckpointsRunAhead(CatalogueJob):
    """Gives each page the checkpoint of the one that it has fetched meanwhile."""

    def pages(self, run: Run) -> Iterator[Page[Ware]]:
        pages = list(super().pages(run))
        for page, following in itertools.pairwise(pages):
            yield replace(page, checkpoint=following.checkpoint)
        yield pages[-1]


@caught_by("test_another_object_continues_after_each_page", "ValueError: invalid literal for int()")
class CannotContinueAtTheEnd(CatalogueJob):
    """Writes a word into the last checkpoint, which it cannot read."""

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        page = super().page(run, records, after)
        return page if records else replace(page, checkpoint=b"end")


@caught_by("test_another_object_continues_after_each_page", "when another object continued, the run was incomplete")
class ExpectsWhatIsLeft(CatalogueJob):
    """Counts what comes after the checkpoint on top of all that it has."""

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        page = super().page(run, records, after)
        return replace(page, expected=23 + (run.accounted if run.resumed else 0)) if after == 24 else page


@caught_by("test_a_page_that_was_not_stored_is_made_again", "only its checkpoint tells, not run.state")
class KeepsItsPlaceInTheState(CatalogueJob):
    """Writes down how far it is before its page is stored."""

    def start(self, run: Run) -> int:
        return int(run.state.get(run.id) or 0)

    def page(self, run: Run, records: Sequence[Record], after: int) -> Page[Ware]:
        run.state.set(run.id, str(after).encode())
        return super().page(run, records, after)


@caught_by("test_another_process_continues_after_each_kill", "what the next one needs must not be kept in memory")
class KeepsRecordsInMemory(CatalogueJob):
    """Reads two pages at once, and keeps the second one for the next call in the same process."""

    left: ClassVar[dict[str, list[Record]]] = {}

    def pages(self, run: Run) -> Iterator[Page[Ware]]:
        at, left = self.start(run), self.left.pop(f"{run.id} {run.checkpoint!r}", None)
        if left is not None:
            yield self.page(run, left, at)
        while records := self.read(run, at):
            following = self.read(run, at + len(records))
            at += len(records) + len(following)
            self.left[f"{run.id} {str(at).encode()!r}"] = following
            yield self.page(run, records, at)
            yield self.page(run, following, at)


# a source that fails


@caught_by("test_a_source_that_fails_does_not_look_complete", "the job ended as if that were all")
class TakesAFailureForTheEnd(NamelessJob):
    """Ends where it cannot read on."""

    def read(self, run: Run, at: int) -> list[Record]:
        try:
            return super().read(run, at)
        except SourceUnavailable:
            return []


@caught_by("test_a_source_that_fails_does_not_look_complete", "raise SourceUnavailable instead (job 'wares' failed at")
class LeaksTheSourcesError(CatalogueJob):
    """Lets the driver's error out: it is taken for a mistake in the job."""

    def read(self, run: Run, at: int) -> list[Record]:
        return self.catalogue.read(at)


@caught_by("test_a_run_continues_once_its_source_is_back", "a checkpoint must not go past what could not be read")
class GoesPastAFailure(NamelessJob):
    """Stores where to continue before it says that the page could not be read."""

    def pages(self, run: Run) -> Iterator[Page[Ware]]:
        at = self.start(run)
        while True:
            try:
                records = self.read(run, at)
            except SourceUnavailable:
                yield Page([], str(at + 5).encode())
                raise
            if not records:
                return
            at += len(records)
            yield self.page(run, records, at)


@caught_by(
    "test_a_run_continues_once_its_source_is_back", "the run incomplete: job 'wares': 1 page could not be fetched"
)
class NeverForgetsAFailure(NamelessJob):
    """Names a page as missing for as long as the run lasts, also when it was read after all."""

    def pages(self, run: Run) -> Iterator[Page[Ware]]:
        at, missing = self.start(run), run.state.get(run.id) is not None
        while True:
            try:
                records = self.read(run, at)
            except SourceUnavailable:
                run.state.set(run.id, b"failed")
                raise
            yield replace(self.page(run, records, at + len(records)), missing=[1] if missing else ())
            if not records:
                return
            at += len(records)


# its surroundings


@caught_by("test_a_stop_ends_it_in_time", "wait with run.stop.wait(seconds) instead of time.sleep")
class SleepsBetweenPages(CatalogueJob):
    """Rests for a while after each page."""

    rests = False

    def read(self, run: Run, at: int) -> list[Record]:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        ):
            time.sleep(60)  # only where a stop is tested: the other tests need not wait
        return super().read(run, at)


@caught_by("test_a_stop_ends_it_in_time_while_its_source_is_away", "stopped after 0 pages, the job did not end within")
class SleepsBetweenItsAttempts(CatalogueJob):
    """Tries again for an hour, without listening."""

    def read(self, run: Run, at: int) -> list[Record]:
        for _ in range(60):
            try:
                return super().read(run, at)
            except SourceUnavailable:
                time.sleep(60)
        return super().read(run, at)


@caught_by("test_it_can_be_closed_after_any_page", "generator ignored GeneratorExit): yield nothing then")
class YieldsWhenItIsClosed(CatalogueJob):
    """Yields what it has left when it is closed."""

    def pages(self, run: Run) -> Iterator[Page[Ware]]:
        try:
            yield from super().pages(run)
        finally:
            yield Page([])


@caught_by("test_it_can_be_closed_after_any_page", "its thread 'reads-ahead' is still at work")
class LeavesItsThread(CatalogueJob):
    """Reads ahead in a thread that nobody ends."""

    def pages(self, run: Run) -> Iterator[Page[Ware]]:
        for page in super().pages(run):
            threading.Thread(target=threading.Event().wait, args=[8], name="reads-ahead", daemon=True).start()
            yield page


@caught_by("test_only_its_options_decide", "reads WARES_REGION from the environment: make it an option of the job")
class ReadsTheEnvironment(CatalogueJob):
    """Has an option that no --help shows."""

    def read(self, run: Run, at: int) -> list[Record]:
        return super().read(run, at) if os.environ.get("WARES_REGION", "north") else []


@caught_by("test_only_its_options_decide", "the job changes the default timeout of sockets")
class SetsTheDefaultTimeout(CatalogueJob):
    """Gives all sockets of the process a timeout."""

    def read(self, run: Run, at: int) -> list[Record]:
        socket.setdefaulttimeout(30.0)
        return super().read(run, at)


@caught_by("test_only_its_options_decide", "the job changes the current directory, signal handlers")
class ActsAsIfAlone(CatalogueJob):
    """Goes to a folder of its own, and catches signals."""

    def pages(self, run: Run) -> Iterator[Page[Ware]]:
        os.chdir("/")
        signal.signal(signal.SIGTERM, self.end)
        return super().pages(run)

    def end(self, *_: Any) -> None:
        """Pay no heed."""
