"""Sinks that are wrong about marks."""
# ruff: noqa: D102 - what the methods of a broken backend do is in the docstring of its class

from __future__ import annotations

import sqlite3
import unicodedata
from contextlib import suppress
from dataclasses import replace

from owm_outbox import Batch, Mark, MarkConflict

from support.contract_kit.ledger import LedgerSink
from support.contract_kit.registry import caught_by
from support.contract_kit.shelf import HonestSink


@caught_by("test_the_mark_of_an_unknown_outbox_is_empty_or_untold")
class CannotTell(HonestSink):
    """Says None, though its capabilities say that it holds marks."""

    def mark(self, outbox_id: str) -> str | None:
        return None


@caught_by("test_the_mark_of_an_unknown_outbox_is_empty_or_untold")
class TakesNothingForZero(HonestSink):
    """Says "0" for an outbox that it has not heard of."""

    def mark(self, outbox_id: str) -> str | None:
        return super().mark(outbox_id) or "0"


@caught_by("test_the_mark_is_there_with_the_batch")
class MarksAreOneBehind(HonestSink):
    """Holds the mark that the batch started from."""

    def mark(self, outbox_id: str) -> str | None:
        return self.shelf.marks.get(f"before {outbox_id}", "")

    def move(self, batch: Batch) -> None:
        super().move(batch)
        self.shelf.marks[f"before {batch.outbox_id}"] = batch.after


@caught_by("test_the_mark_is_there_with_the_batch")
class TellsThePositionOnly(HonestSink):
    """Stores the position instead of the mark."""

    def move(self, batch: Batch) -> None:
        self.shelf.marks[batch.outbox_id] = str(batch.mark.position)


@caught_by("test_the_mark_is_there_with_the_batch")
class TellsBytes(HonestSink):
    """Returns the mark as bytes."""

    def mark(self, outbox_id: str) -> str | None:
        return (super().mark(outbox_id) or "").encode()  # type: ignore[return-value]  # which is what is wrong


class _StoresOtherwise(HonestSink):
    """Stores something else than the mark it was given, and compares with that."""

    def stored(self, mark: str) -> str:
        """Return what is stored."""
        return mark

    def refuse_conflict(self, batch: Batch) -> None:
        held = self.held(batch.outbox_id)
        if held != self.stored(batch.after):
            raise MarkConflict(held)

    def move(self, batch: Batch) -> None:
        self.shelf.marks[batch.outbox_id] = self.stored(batch.mark)


@caught_by("test_a_mark_is_returned_exactly")
class StripsMarks(_StoresOtherwise):
    """Drops the blanks at the end of a mark, as a column of type CHAR does."""

    def stored(self, mark: str) -> str:
        return mark.rstrip(" ")


@caught_by("test_a_mark_is_returned_exactly")
class CutsMarks(_StoresOtherwise):
    """Keeps 255 characters of a mark."""

    def stored(self, mark: str) -> str:
        return mark[:255]


@caught_by("test_a_mark_is_returned_exactly")
class KeepsMarksInOneLine(_StoresOtherwise):
    """Writes marks into lines of a file."""

    def stored(self, mark: str) -> str:
        return mark.partition("\n")[0]


@caught_by("test_a_mark_is_returned_exactly")
class KeepsMarksAsAscii(_StoresOtherwise):
    """Replaces what is not ASCII."""

    def stored(self, mark: str) -> str:
        return mark.encode("ascii", errors="replace").decode()


@caught_by("test_a_mark_is_returned_exactly")
class TakesMarksApart(_StoresOtherwise):
    """Keeps position, lease and task in three columns."""

    def stored(self, mark: str) -> str:
        return " ".join([*mark.split(), "", ""][:3]).strip()


class _ComparesOtherwise(HonestSink):
    """Compares something else than the marks themselves."""

    def compared(self, mark: str) -> object:
        """Return what is compared."""
        return mark

    def refuse_conflict(self, batch: Batch) -> None:
        held = self.held(batch.outbox_id)
        if self.compared(held) != self.compared(batch.after):
            raise MarkConflict(held)


@caught_by("test_marks_that_differ_in_a_trifle_differ")
class ComparesWithoutCase(_ComparesOtherwise):
    """Compares marks as a case-insensitive collation does."""

    def compared(self, mark: str) -> object:
        return mark.casefold()


@caught_by("test_marks_that_differ_in_a_trifle_differ")
class ComparesWithoutBlanksAtTheEnd(_ComparesOtherwise):
    """Compares marks as databases compare CHAR."""

    def compared(self, mark: str) -> object:
        return mark.rstrip()


@caught_by("test_marks_that_differ_in_a_trifle_differ")
class ComparesWithoutAccents(_ComparesOtherwise):
    """Compares marks as an accent-insensitive collation does."""

    def compared(self, mark: str) -> object:
        return unicodedata.normalize("NFD", mark).encode("ascii", errors="ignore")


@caught_by("test_marks_that_differ_in_a_trifle_differ")
class ComparesNumbers(_ComparesOtherwise):
    """Compares marks that look like numbers as Lua and JavaScript do."""

    def compared(self, mark: str) -> object:
        return float(mark) if mark.isdecimal() else mark


@caught_by("test_marks_that_differ_in_a_trifle_differ")
class ComparesAPrefix(_ComparesOtherwise):
    """Compares as much of a mark as its index holds."""

    def compared(self, mark: str) -> object:
        return mark[:1000]


@caught_by("test_a_batch_sent_again_is_refused_whole")
class IgnoresTheMark(HonestSink):
    """Takes everything."""

    def refuse_conflict(self, batch: Batch) -> None:
        pass


@caught_by("test_a_batch_sent_again_is_refused_whole")
class MisreportsTheHeldMark(HonestSink):
    """Names the start of the batch, not what it holds."""

    def refuse_conflict(self, batch: Batch) -> None:
        with suppress(MarkConflict):
            return super().refuse_conflict(batch)
        raise MarkConflict(batch.after)


@caught_by("test_a_batch_sent_again_is_refused_whole")
class NamesTheBatchItRefuses(HonestSink):
    """Names the mark of the batch, so that the relay takes it for delivered."""

    def refuse_conflict(self, batch: Batch) -> None:
        with suppress(MarkConflict):
            return super().refuse_conflict(batch)
        raise MarkConflict("" if self.held(batch.outbox_id) == batch.mark else batch.mark)


@caught_by("test_a_batch_sent_again_is_refused_whole")
class TakesRepeatsInSilence(HonestSink):
    """Adds nothing twice, but does not say so: the relay would not learn where it stands."""

    def send(self, batch: Batch) -> None:
        if batch.mark.position > Mark(self.held(batch.outbox_id)).position:
            super().send(batch)


@caught_by("test_an_overlapping_batch_is_refused_whole")
class TakesWhatIsNewInABatch(HonestSink):
    """Takes the part of a batch that lies beyond the held position."""

    def send(self, batch: Batch) -> None:
        held = Mark(self.held(batch.outbox_id))
        new = [entry for entry in batch.entries if entry.position > held.position]
        overlaps = batch.after.position < held.position and new
        super().send(replace(batch, after=held, entries=new) if overlaps else batch)


@caught_by("test_a_batch_from_the_future_is_refused_whole")
class LeavesHoles(HonestSink):
    """Refuses what it holds already, and nothing else."""

    def refuse_conflict(self, batch: Batch) -> None:
        held = Mark(self.held(batch.outbox_id))
        if batch.after.position < held.position:
            raise MarkConflict(held)


@caught_by("test_a_batch_from_the_future_is_refused_whole")
class BelievesTheFirstBatch(LedgerSink):
    """Where it holds nothing yet, takes a batch with any start, as an UPDATE that found no row and inserts one."""

    def refuse_conflict(self, connection: sqlite3.Connection, batch: Batch) -> None:
        if self.held(connection, batch.outbox_id):
            super().refuse_conflict(connection, batch)


@caught_by("test_a_batch_of_another_history_is_refused_whole")
class ComparesPositionsOnly(_ComparesOtherwise):
    """Stores the whole mark, but compares the position alone."""

    def compared(self, mark: str) -> object:
        return mark.partition(" ")[0]


@caught_by("test_a_mark_may_go_back")
class OrdersMarks(HonestSink):
    """Knows that positions only grow, and refuses a mark that is lower than the held one."""

    def refuse_conflict(self, batch: Batch) -> None:
        super().refuse_conflict(batch)
        if batch.mark.position <= batch.after.position:
            raise MarkConflict(batch.after)


@caught_by("test_after_a_conflict_the_right_batch_is_taken")
class StaysInConflict(HonestSink):
    """After a conflict, an object refuses everything, as in a transaction that nobody rolled back."""

    conflict: MarkConflict | None = None

    def refuse_conflict(self, batch: Batch) -> None:
        if self.conflict is not None:
            raise self.conflict
        try:
            super().refuse_conflict(batch)
        except MarkConflict as error:
            self.conflict = error
            raise


@caught_by("test_after_a_conflict_the_right_batch_is_taken")
class LeavesATransactionOpen(LedgerSink):
    """Does not roll back after a conflict, so that its next BEGIN fails."""

    def send(self, batch: Batch) -> None:
        with self.connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            self.refuse_conflict(connection, batch)
            self.insert(connection, batch)
            self.move(connection, batch)
            connection.execute("COMMIT")


@caught_by("test_outboxes_do_not_mix")
class HasOneMarkForAll(HonestSink):
    """Keeps one mark, whichever outbox it belongs to."""

    def send(self, batch: Batch) -> None:
        super().send(replace(batch, outbox_id="all"))

    def held(self, outbox_id: str) -> str:
        return super().held("all")


@caught_by("test_outboxes_of_similar_ids_do_not_mix")
class TakesIdsForFileNames(HonestSink):
    """Keeps marks in files named after the outbox, without what a file name cannot have."""

    def send(self, batch: Batch) -> None:
        super().send(replace(batch, outbox_id=batch.outbox_id.replace("/", "_")))

    def mark(self, outbox_id: str) -> str | None:
        return super().mark(outbox_id.replace("/", "_"))


@caught_by("test_outboxes_of_similar_ids_do_not_mix")
class ComparesIdsWithoutCase(LedgerSink):
    """Keeps marks in a table whose ids are compared without case."""

    def send(self, batch: Batch) -> None:
        super().send(replace(batch, outbox_id=batch.outbox_id.lower()))

    def mark(self, outbox_id: str) -> str:
        return super().mark(outbox_id.lower())


@caught_by("test_a_mark_whose_entries_were_lost_is_not_held")
class KeepsTheMarkOfWhatWasLost(LedgerSink):
    """Looks at the mark alone: when somebody empties the table, the relay takes everything for delivered."""

    def held(self, connection: sqlite3.Connection, outbox_id: str) -> str:
        row = connection.execute("SELECT mark FROM marks WHERE outbox_id = ?", (outbox_id,)).fetchone()
        return str(row[0]) if row else ""


@caught_by("test_a_mark_whose_entries_were_lost_is_not_held")
class NoticesALossOnlyWhenAsked(KeepsTheMarkOfWhatWasLost):
    """Looks for the entries in ``mark``, but not in ``send``."""

    def mark(self, outbox_id: str) -> str:
        with self.connected() as connection:
            return LedgerSink.held(self, connection, outbox_id)
