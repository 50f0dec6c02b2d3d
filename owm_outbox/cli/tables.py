"""Tables for people, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from owm_outbox.errors import printable

__all__ = ["table"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> list[str]:
    """Return the lines of a table, as narrow as its cells allow. A column whose cells are all figures is aligned right.

    :param rows: each with as many cells as the header.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    columns = list(zip(header, *shown, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell.isdigit() or cell == "-" for cell in column[1:]) for column in columns]
    return [
        indent
        + "  ".join(
            cell.rjust(width) if figures else cell.ljust(width)
            for cell, width, figures in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [list(header), *shown]
    ]
