"""What a job promises of the tasks that it makes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from owm_outbox.entry import Key
from owm_outbox.job import Page
from owm_outbox.outbox import Outbox
from owm_outbox.plugins import open_outbox
from owm_outbox.task import encode
from owm_outbox.testing.job_fixtures import JobFixtures, keys_in, read, some
from owm_outbox.testing.source import Source

__all__ = ["JobTasks"]


class JobTasks(JobFixtures):
    """Each record of the source is one task, or one dead letter."""

    def test_every_key_is_made(self, source: Source, outbox: Outbox) -> None:
        """A whole read stores every key that the source has, and no other one."""
        job = source.open()
        wrong = keys_in(outbox, job, read(job, outbox).run, source)
        assert not wrong, f"when the source was read whole, {wrong}"

    def test_a_key_belongs_to_one_record(self, source: Source, outbox: Outbox) -> None:
        """Two records that differ have two keys: of one key, the second task of a run is dropped."""
        job, first, listed = source.open(), dict[Key, bytes](), Counter(source.keys)

        def look(page: Page[Any], stored: bool) -> None:
            for task in page.tasks:
                key, payload = job.key(task), encode(task)[1]
                assert first.setdefault(key, payload) == payload or listed[key] > 1, (
                    f"two tasks have the key {key!r}, of which the second is dropped: {first[key]!r} and {payload!r}. "
                    "Is the key unique? If the source lists it twice, so must Source.keys"
                )

        read(job, outbox, look=look)

    def test_every_task_has_an_id_of_its_own(self, source: Source, outbox: Outbox) -> None:
        """Every task has a ``task_id``, which no other one has: it is what a worker can tell a repeat by."""
        read(source.open(), outbox)
        ids = Counter(entry.task_id for entry in outbox.read(0, 10**9))
        shared = [task_id for task_id, times in ids.items() if times > 1]
        assert not shared, f"{some(shared)} ids belong to several tasks: make them with run.task_id(key)"

    def test_a_page_holds_what_it_should(self, source: Source, outbox: Outbox) -> None:
        """A page has a sequence of tasks, a checkpoint in bytes, and bad records in bytes, each with a reason."""

        def look(page: Page[Any], stored: bool) -> None:
            for what, value, kind in (
                ("tasks", page.tasks, Sequence),
                ("checkpoint", page.checkpoint, bytes),
                ("expected", page.expected, int),
                *(("missing", number, int) for number in page.missing),
                *(("InvalidRecord.payload", record.payload, bytes) for record in page.invalid),
                *(("InvalidRecord.reason", record.reason, str) for record in page.invalid),
            ):
                named = f"a page has {what}={value!r}, a {type(value).__name__}"
                assert isinstance(value, kind) or (value is None and what in ("checkpoint", "expected")), (
                    f"{named}: give {kind.__name__}"
                )
                assert what != "InvalidRecord.reason" or value, f"{named}: say what is wrong with the record"

        read(source.open(), outbox, look=look)

    def test_a_whole_read_makes_a_complete_run(self, source: Source, outbox: Outbox) -> None:
        """When the source was read whole, no page is missing, and no more keys are expected than it has."""
        problem = read(source.open(), outbox).problem()
        assert problem is None, (
            f"the source was read whole, but the run is incomplete ({problem}): Page.expected must be the number of "
            "distinct keys, bad records among them, and None if the source does not tell it"
        )

    def test_another_run_makes_the_same_keys_with_other_ids(self, source: Source, outbox: Outbox) -> None:
        """The next run, also of the same object, makes every task again, with the same keys and with new ids."""
        job = source.open()
        with open_outbox("memory:") as tomorrow:
            read(job, outbox)
            wrong = keys_in(tomorrow, job, read(job, tomorrow).run, source)
            assert not wrong, f"when an object made its second run, {wrong}"
            ids = {entry.task_id for entry in outbox.read(0, 10**9)}
            same = [entry.task_id for entry in tomorrow.read(0, 10**9) if entry.task_id in ids]
        assert not same, (
            f"{some(same)} task ids are those of the run before: a worker that drops repeats would drop these tasks; "
            "make them with run.task_id(key)"
        )

    def test_task_ids_are_the_same_within_a_run(self, source: Source, outbox: Outbox) -> None:
        """If a page is made again in the same run, its tasks have the ids that they had."""
        ids: dict[Key, set[str]] = defaultdict(set)
        for afresh in (False, True):
            job = source.open()

            def look(page: Page[Any], stored: bool, job: Any = job) -> None:
                for task in page.tasks:
                    ids[job.key(task)].add(str(task.task_id))

            read(job, outbox, afresh=afresh, look=look)
        other = [key for key, found in ids.items() if len(found) > 1]
        assert not other, (
            f"{some(other)} tasks have another id when their page is made again: a worker cannot tell that they are "
            "the same; make ids with run.task_id(key)"
        )

    # records that are not valid

    def test_bad_records_become_dead_letters(self, source: Source, outbox: Outbox, invalid: int) -> None:
        """Each record that is not a valid task is in ``Page.invalid``: not skipped, and not the end of the run."""
        job = source.open()
        run = read(job, outbox).run
        assert run.unusable == invalid, (
            f"the source has {invalid} bad records, and {run.unusable} became dead letters: give each of them as an "
            "InvalidRecord in Page.invalid"
        )

    def test_a_bad_record_is_one_dead_letter(self, source: Source, outbox: Outbox, invalid: int) -> None:
        """A bad record that is read again in the same run is known by its key, or by its bytes."""
        for afresh in (False, True):
            read(source.open(), outbox, afresh=afresh)
        dead = outbox.stats().dead
        assert dead == invalid, (
            f"the source has {invalid} bad records, and after a second read there are {dead} dead letters: give "
            "InvalidRecord the record as it was received, or its key"
        )
