"""The plot of what was delivered in the last hour, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["plot", "summary"]

# Pixels; across, all is in per cent, so that the plot is as wide as its place while its texts keep their size.
_TOP, _HEIGHT = 34, 120
_BOTTOM = _TOP + _HEIGHT


def plot(counts: Sequence[int | None]) -> str:
    """Return a bar chart of a number per minute, the newest last; ``None`` is hatched.

    :param counts: at least one.
    """
    top = _round_up(max((count for count in counts if count is not None), default=0))
    width = 100 / len(counts)
    parts = [
        f'<svg class="plot" role="img" width="100%" height="{_BOTTOM + 42}" aria-labelledby="plot-title plot-desc">',
        '<title id="plot-title">Tasks delivered per minute</title>',
        f'<desc id="plot-desc">{summary(counts)}</desc>',
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line class="hatch" x1="0" y1="0" x2="0" y2="6"/></pattern></defs>',
        '<text class="axis" x="0" y="12">tasks per minute</text>',
    ]
    for share in (0, 0.5, 1):
        y = _BOTTOM - share * _HEIGHT
        parts.append(f'<line class="grid" x1="0" y1="{y:g}" x2="100%" y2="{y:g}"/>')
    for index, count in enumerate(counts):
        x = index * width
        if count is None:
            parts.append(f'<rect class="unknown" x="{x:.3f}%" y="{_TOP}" width="{width:.3f}%" height="{_HEIGHT}"/>')
        elif count:
            height = max(1.0, count / top * _HEIGHT)
            parts.append(
                f'<rect class="bar" x="{x + width * 0.1:.3f}%" y="{_BOTTOM - height:.1f}" width="{width * 0.8:.3f}%" '
                f'height="{height:.1f}"/>'
            )
    for share in (0.5, 1):
        y = _BOTTOM - share * _HEIGHT
        parts.append(f'<text class="axis halo" x="0" y="{y - 4:g}">{_figure(top * share)}</text>')
    ticks = ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end"))
    for share, anchor in ticks:
        ago = round(len(counts) * (1 - share))
        text = str(ago) if ago else "now"
        parts.append(f'<text class="axis" x="{share:.0%}" y="{_BOTTOM + 18}" text-anchor="{anchor}">{text}</text>')
    parts.append(f'<text class="axis" x="50%" y="{_BOTTOM + 36}" text-anchor="middle">minutes ago</text>')
    return "".join([*parts, "</svg>"])


def summary(counts: Sequence[int | None]) -> str:
    """Say in words what the plot shows."""
    known = [count for count in counts if count is not None]
    if not known:
        return f"Nobody measured in the last {len(counts)} minutes."
    most, minutes = max(known), "1 minute" if len(known) == 1 else f"{len(known)} minutes"
    text = f"Tasks delivered in {minutes}: {sum(known):,}; at most {most:,} in one of them."
    gaps = len(counts) - len(known)
    if gaps:
        text += f" Nobody measured in {gaps} of the last {len(counts)} minutes: hatched."
    return text


def _round_up(most: int) -> int:
    """Return a round number, at least 2, that an axis may end with."""
    scale = 1
    while True:
        for step in (2, 4, 6, 10):
            if most <= step * scale:
                return step * scale
        scale *= 10


def _figure(number: float) -> str:
    return f"{number:,.0f}"
