"""Outboxes that are wrong about keys, and about records that are not tasks."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from owm_outbox import Key, Mark, NewEntry, Stored
from owm_outbox_backends.memory import MemoryOutbox

from support.contract_kit.registry import caught_by


@caught_by("test_a_key_is_stored_once_per_run")
class StoresDuplicatesOfAPage(MemoryOutbox):
    """Drops a key that it has already, unless it is twice on one page."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        known = {key for id_, key in self._keys if id_ == run}
        kept = [entry for entry in entries if entry.key not in known]
        again = [entry._replace(key=f"again {at}") if entry in kept[:at] else entry for at, entry in enumerate(kept)]
        return super().store(again, run=run, **rest)


@caught_by("test_the_first_task_of_a_key_is_kept")
class KeepsTheLastTaskOfAKey(MemoryOutbox):
    """Writes over what it has, as INSERT OR REPLACE does."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        stored = super().store(entries, run=run, **rest)
        for entry in entries:
            at = self._keys.get((run or "", entry.key))
            if at is not None and entry.reason is None:
                self._rows[at].task_id, self._rows[at].payload = entry.task_id, entry.payload
        return stored


class KeepsKeysOtherwise(MemoryOutbox):
    """Keeps something else than the key."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        return super().store(
            [entry if entry.key is None else entry._replace(key=self.kept(entry.key)) for entry in entries], **rest
        )

    def kept(self, key: Key) -> Key:
        """Return what is kept."""
        return key


@caught_by("test_a_key_is_any_number_or_text")
class TakesKeysForText(KeepsKeysOtherwise):
    """Keeps a key as its text."""

    def kept(self, key: Key) -> Key:
        return str(key)


@caught_by("test_a_key_is_any_number_or_text")
class NormalizesKeys(KeepsKeysOtherwise):
    """Keeps text in Unicode's normal form."""

    def kept(self, key: Key) -> Key:
        return unicodedata.normalize("NFC", key) if isinstance(key, str) else key


@caught_by("test_a_key_is_any_number_or_text")
class StripsKeys(KeepsKeysOtherwise):
    """Drops the blanks at the end of a key, as a column of type CHAR does."""

    def kept(self, key: Key) -> Key:
        return key.rstrip() if isinstance(key, str) else key


@caught_by("test_a_key_is_any_number_or_text")
class HasKeysOf64Bits(KeepsKeysOtherwise):
    """Keeps 64 bits of a number."""

    def kept(self, key: Key) -> Key:
        return (key + 2**63) % 2**64 - 2**63 if isinstance(key, int) else key


@caught_by("test_entries_without_a_key_are_all_stored")
class TakesNoKeyForAKey(KeepsKeysOtherwise):
    """Takes the missing key of an entry for one that the next one has, too."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        if rest.get("run") is None:
            return super().store(entries, **rest)
        return super().store([entry._replace(key=entry.key or "") for entry in entries], **rest)


@caught_by("test_a_key_stays_taken_once_it_is_delivered")
class ForgetsDeliveredKeys(MemoryOutbox):
    """Drops duplicates only until the first one is acknowledged."""

    def acknowledge(self, mark: Mark) -> None:
        super().acknowledge(mark)
        self._keys = {key: at for key, at in self._keys.items() if at > mark.position}


@caught_by("test_another_run_may_use_the_same_keys")
class RemembersKeysForEver(MemoryOutbox):
    """Drops a key that any run has had."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        had = {key for id_, key in self._keys if id_ != run}
        return super().store([entry for entry in entries if entry.key not in had], run=run, **rest)


# records that are not tasks


@caught_by("test_a_record_becomes_a_dead_letter_once")
class StoresRecordsAgain(MemoryOutbox):
    """Counts a record that has no key of its own each time it is received."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        return super().store(
            [
                entry._replace(key=f"{self._last} {at}") if str(entry.key).startswith("sha256:") else entry
                for at, entry in enumerate(entries)
            ],
            **rest,
        )


@caught_by("test_a_record_becomes_a_dead_letter_once")
class ReadsRecords(MemoryOutbox):
    """Stores records that are not tasks as entries."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        return super().store([entry._replace(task_id=entry.task_id or "", reason=None) for entry in entries], **rest)


@caught_by("test_any_key_of_a_record_counts_once")
class TakesZeroForNoKey(MemoryOutbox):
    """Takes the record for its key if that is 0 or empty."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        return super().store([entry._replace(key=entry.key or entry.payload.decode()) for entry in entries], **rest)


@caught_by("test_a_task_replaces_a_record_of_its_key")
class NeverReplaces(MemoryOutbox):
    """Drops a task whose key it has as a record."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        kept = [entry for entry in entries if (run or "", entry.key) not in self._keys]
        stored = super().store(kept, run=run, **rest)
        return stored._replace(duplicates=stored.duplicates + len(entries) - len(kept))


@caught_by("test_a_task_replaces_a_record_of_its_key")
class KeepsWhatIsReplaced(MemoryOutbox):
    """Stores the task, and leaves the dead letter where it is."""

    def _delete(self, positions: Iterable[int]) -> None:
        positions = list(positions)
        letters = {at: self._rows[at] for at in positions if self._rows[at].task_id is None}
        super()._delete(positions)
        for at, row in letters.items():
            self._rows[at] = replace(row, key=None)
        self._rows = dict(sorted(self._rows.items()))


@caught_by("test_a_task_replaces_a_record_of_its_key")
class CountsReplacedAsUnusable(MemoryOutbox):
    """Does not take what is replaced out of the run's figures."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        stored = super().store(entries, run=run, **rest)
        if run is not None:
            known = self._runs[run]
            self._runs[run] = replace(
                known, rejected=known.rejected + stored.replaced, unusable=known.unusable + stored.replaced
            )
        return stored


@caught_by("test_a_task_replaces_a_record_of_the_same_page")
class LooksAtWhatWasThereBefore(MemoryOutbox):
    """Replaces the records of earlier pages, but not those of the same one."""

    def store(self, entries: Sequence[NewEntry], *, run: str | None = None, **rest: Any) -> Stored:
        letters: set[Key | None] = set()
        kept = []
        for entry in entries:
            if entry.reason is not None:
                letters.add(entry.key)
            elif entry.key in letters:
                continue
            kept.append(entry)
        stored = super().store(kept, run=run, **rest)
        return stored._replace(duplicates=stored.duplicates + len(entries) - len(kept))


@caught_by("test_a_record_of_another_run_is_not_replaced")
class ReplacesAcrossRuns(MemoryOutbox):
    """Deletes every record of the key, whichever run it belongs to."""

    def store(self, entries: Sequence[NewEntry], **rest: Any) -> Stored:
        stored = super().store(entries, **rest)
        keys = {entry.key for entry in entries if entry.reason is None}
        self._delete([at for at, row in self._rows.items() if row.task_id is None and row.key in keys])
        return stored
