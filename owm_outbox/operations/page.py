"""A page for a browser that shows how an outbox does: one document, without scripts and without anything to load."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from html import escape
from importlib import resources
from string import Template

from owm_outbox.errors import one_line, printable
from owm_outbox.operations.figures import RunFigures, age, duration, seconds_since
from owm_outbox.operations.plot import plot, summary
from owm_outbox.operations.view import Finding, View, findings, view_of

__all__ = ["View", "page", "view_of"]

_FULL_BAR = 128  # pixels, of the run with the most tasks
_NONE = "\N{EN DASH}"


def page(view: View) -> str:
    """Return the HTML document that shows a view; readable at any width, in light and dark, without colours.

    Whatever it shows is escaped: no text of a task, a job or a server is markup or turns what follows around.
    """
    wrong = findings(view)
    state = "1 thing is wrong" if len(wrong) == 1 else f"{len(wrong)} things are wrong" if wrong else "All is well"
    return _template().substitute(
        title=f"{state}: {_plain(view.outbox)}",
        heading="Outbox",
        mood="bad" if wrong else "good",
        state=f"{'✗' if wrong else '✓'} {state}",
        facts="\n".join(_facts(view)),
        sections="\n".join(
            [
                *([_section("What is wrong, and what to type next", _wrong(wrong), kind="wrong")] if wrong else []),
                _figures(view),
                _section("Delivered in the last hour", _throughput(view)),
                *([_section("Lanes", _lanes(view))] if view.lanes else []),
                _section("The last runs", _runs(view)),
                _section("Dead letters", _letters(view)),
            ]
        ),
        version=_text(view.version),
    )


@cache
def _template() -> Template:
    return Template(resources.files(__package__).joinpath("page.html.in").read_text("utf-8"))


def _text(value: str) -> str:
    """Return what was written by others, so that it is shown and nothing else."""
    return f"<bdi>{_plain(value)}</bdi>"


def _plain(value: str) -> str:
    return escape(printable(one_line(value)))


def _section(title: str, content: str, *, kind: str = "") -> str:
    name = title.split(",")[0].lower().replace(" ", "-")
    mark = f' class="{kind}"' if kind else ""
    return f'<section{mark} aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{content}\n</section>'


def _facts(view: View) -> Iterator[str]:
    yield f"<dt>Outbox</dt><dd><code>{_text(view.outbox)}</code></dd>"
    if view.sink:
        yield f"<dt>Sink</dt><dd><code>{_text(view.sink)}</code></dd>"
    yield (
        f'<dt>As of</dt><dd><time datetime="{view.now.isoformat(timespec="seconds")}">'
        f"{view.now:%Y-%m-%d %H:%M:%S %Z}</time></dd>"
    )


def _wrong(wrong: Sequence[Finding]) -> str:
    items = "".join(
        f"<li><p>{_text(finding.what)}</p>{''.join(map(_command, finding.commands))}</li>" for finding in wrong
    )
    hidden = any("***" in word for finding in wrong for command in finding.commands for word in command)
    note = '<p class="quiet">*** stands for what is secret.</p>' if hidden else ""
    return f"<ol>{items}</ol>{note}"


def _command(words: Sequence[str]) -> str:
    shown = " ".join(f"<span>{_plain(shlex.quote(word))}</span>" for word in words)
    return f"<pre><code>{shown}</code></pre>"


def _figures(view: View) -> str:
    known = [count for count in view.throughput if count is not None]
    late = view.oldest is not None and view.oldest > view.max_age
    minutes = "in the last hour" if len(known) == 60 else f"in {len(known)} of the last 60 minutes"
    cells = [
        _figure("Pending", f"{view.pending:,}", "not yet in the sink"),
        _figure(
            "Oldest pending",
            _NONE if view.oldest is None else age(view.oldest),
            f"too old: over {age(view.max_age)}" if late else "",
            kind=" late",
        ),
        _figure("Dead letters", f"{view.dead:,}", "rejected for good"),
        _figure("Delivered", f"{sum(known):,}" if known else _NONE, minutes if known else "not measured"),
    ]
    return f'<dl class="figures">{"".join(cells)}</dl>'


def _figure(name: str, value: str, note: str, *, kind: str = "") -> str:
    return f'<div><dt>{name}</dt><dd>{value}</dd><dd class="note{kind}">{note}</dd></div>'


def _throughput(view: View) -> str:
    if not any(count is not None for count in view.throughput):
        return (
            '<p class="quiet">Not measured. The page that a relay serves has it: '
            "<code>owm-outbox relay --http 127.0.0.1:9108</code></p>"
        )
    return f'{plot(view.throughput)}\n<p class="quiet">{summary(view.throughput)}</p>'


def _lanes(view: View) -> str:
    held = any(lane.holder for lane in view.lanes)
    header = ["Lane", "Pending", "Oldest", "Dead letters", *(["Held by"] if held else [])]
    rows = [
        [
            str(lane.number),
            f"{lane.pending:,}",
            _NONE if lane.oldest is None else age(lane.oldest),
            f"{lane.dead:,}",
            *([_text(lane.holder or "nobody")] if held else []),
        ]
        for lane in view.lanes
    ]
    return _table("Lanes", header, rows, figures={1, 3}, wide={4})


def _runs(view: View) -> str:
    if not view.runs:
        return '<p class="quiet">None yet.</p>'
    most = max(map(_total, view.runs))
    rows = [
        [
            f"{age(seconds_since(run.started_at, view.now))} ago",
            _text(run.job),
            duration(run.seconds),
            _share(run, most),
            f"{run.extracted:,}",
            f"{run.rejected:,}",
            f"{run.duplicates:,}",
            f"{'✓' if run.state == 'complete' else '…' if run.state == 'open' else '✗'} {run.outcome}",
        ]
        for run in view.runs
    ]
    header = ["Started", "Job", "Took", "Stored", "Tasks", "Rejected", "Duplicates", "Outcome"]
    table = _table("The last runs", header, rows, figures={4, 5, 6}, wide={1, 7})
    keys = [
        ("bar", 3, "stored"),
        *([("rejected", 6, "rejected")] if any(run.rejected for run in view.runs) else []),
        *([("rest", 3, "the source said that it has more")] if any(map(_lacks, view.runs)) else []),
    ]
    legend = "".join(
        f'<span><svg class="share" aria-hidden="true" width="21" height="18"><rect class="{kind}" x=".5" y="{y}.5" '
        f'width="20" height="11" rx="2"/></svg>{text}</span>'
        for kind, y, text in keys
    )
    return f'{table}\n<p class="quiet key">{legend}</p>' if len(keys) > 1 else table


def _lacks(run: RunFigures) -> bool:
    return _total(run) > run.extracted + run.rejected


def _total(run: RunFigures) -> int:
    return max(run.expected or 0, run.extracted + run.rejected, 1)


def _share(run: RunFigures, most: int) -> str:
    """Return a bar as long as the run was large, for the eye only: the figures are next to it."""
    scale = _FULL_BAR / most
    stored = run.extracted * scale
    parts = []
    if _lacks(run):
        parts.append(_bar("rest", 0.5, 3.5, _total(run) * scale - 1, 11))
    parts.append(_bar("bar", 0, 3, stored, 12))
    if run.rejected:
        width = max(run.rejected * scale, 4)
        parts.append(_bar("rejected", max(stored - width, 0), 8, width, 10))
    return f'<svg class="share" aria-hidden="true" width="{_FULL_BAR + 1}" height="20">{"".join(parts)}</svg>'


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{max(width, 1):.1f}" height="{height}" rx="2"/>'


def _letters(view: View) -> str:
    if not view.dead:
        return '<p class="quiet">None.</p>'
    rows = [
        [
            str(letter.position),
            f"{age(letter.rejected)} ago",
            str(letter.times),
            "a task" if letter.is_task else "never a task",
            _text(letter.reason),
        ]
        for letter in view.letters
    ]
    shown = _table("Dead letters", ["Position", "Rejected", "Times", "What", "Reason"], rows, figures={2}, wide={4})
    more = view.dead - len(view.letters)
    if more > 0:
        shown += f'\n<p class="quiet">And {more:,} more: <code>owm-outbox dead list</code> shows all.</p>'
    return shown


def _table(
    name: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, figures: Collection[int], wide: Collection[int]
) -> str:
    """Return a table of cells that are HTML. Its roles are written out: where it is narrow, CSS makes it a list.

    :param figures: the columns that are aligned right.
    :param wide: those whose lines may be broken. The last column has a line of its own in the list.
    """
    kinds = [
        " ".join(kind for kind, has in (("n", figures), ("w", wide), ("all", [len(header) - 1])) if column in has)
        for column in range(len(header))
    ]
    head = "".join(
        f'<th role="columnheader" scope="col" class="{kind}">{title}</th>'
        for title, kind in zip(header, kinds, strict=True)
    )
    body = "\n".join(
        '<tr role="row">'
        + "".join(
            f'<td role="cell" data-label="{title}" class="{kind}">{cell}</td>'
            for title, kind, cell in zip(header, kinds, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<table role="table" aria-label="{name}"><thead role="rowgroup"><tr role="row">{head}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{body}\n</tbody></table>'
    )
