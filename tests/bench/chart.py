"""Draws what the benchmarks wrote to ``BENCH_RESULTS``: ``python tests/bench/chart.py results.json chart.svg``."""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

_LABELS, _BARS, _ROW, _GAP = 300, 420, 22, 34

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .title { font-weight: 600 }
.limit { fill: #8a8f98 } .ours { fill: #2563eb }
@media (prefers-color-scheme: dark) { text { fill: #e5e7eb } .ours { fill: #60a5fa } }
"""


def chart(tables: list[dict[str, object]]) -> str:
    """Return an SVG with a group of bars for each table; each bar is as long as its share of the group's largest."""
    y, drawn = 10, []
    for table in tables:
        medians = table["medians"]
        assert isinstance(medians, dict)
        most = max(medians.values())
        y += 18
        drawn.append(f'<text class="title" x="0" y="{y}">{escape(str(table["title"]))}</text>')
        for name, rate in medians.items():
            y += _ROW
            width = _BARS * rate / most
            kind = "ours" if name.startswith(("append", "send", "drain")) else "limit"
            drawn.append(f'<text x="0" y="{y}">{escape(name)}</text>')
            drawn.append(f'<rect class="{kind}" x="{_LABELS}" y="{y - 13}" width="{width:.1f}" height="16" rx="2"/>')
            drawn.append(f'<text x="{_LABELS + width + 6:.1f}" y="{y}">{rate:,.0f}</text>')
        y += _GAP - 18
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LABELS + _BARS + 90} {y}" role="img">'
        f"<title>Tasks per second, each group in one run; ours in blue</title><style>{_STYLE}</style>"
        + "".join(drawn)
        + "</svg>\n"
    )


if __name__ == "__main__":
    lines = Path(sys.argv[1]).read_text("utf-8").splitlines()
    Path(sys.argv[2]).write_text(chart([json.loads(line) for line in lines]), "utf-8")
