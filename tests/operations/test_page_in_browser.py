"""The page in a real browser: nothing is loaded, nothing overflows, all of it can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owm_outbox.operations.page import page

from support.browser import Browser, chromium, running_browser
from support.views import VIEWS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="there is no Chromium"),
]

# The contrast of each text with what is behind it, by the formula of WCAG 2.
_CONTRASTS = """
(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const found = parse(getComputedStyle(node).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || ['TITLE', 'DESC'].includes(parent.tagName.toUpperCase())) continue;
    const style = getComputedStyle(parent);
    const front = light(parse(parent.closest('svg') ? style.fill : style.color)), back = light(behind(parent));
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    found.push([contrast, parseFloat(style.fontSize), node.data.trim()]);
  }
  return found;
})()
"""

_TOO_FAR_RIGHT = """
[...document.querySelectorAll('body *')]
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5 && !e.closest('thead'))
  .map(e => e.outerHTML.slice(0, 99))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run a Chromium."""
    program = chromium()
    assert program is not None
    with running_browser(program) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a page for each state."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for state, view in VIEWS.items():
        found[state] = folder / f"{state.replace(' ', '-')}.html"
        found[state].write_text(page(view), "utf-8")
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 720, 900, 1280])
@pytest.mark.parametrize("state", VIEWS)
def test_it_is_readable(state: str, width: int, dark: bool, browser: Browser, pages: dict[str, Path]) -> None:
    """One request, that for the page; no word on the console; nothing wider than the screen; contrast 4.5 at least."""
    browser.show(pages[state], width=width, dark=dark)
    contrasts: list[tuple[float, float, str]] = browser.evaluate(_CONTRASTS)
    assert len(contrasts) > 15
    assert not [one for one in contrasts if one[0] < 4.5]
    assert not [one for one in contrasts if one[1] < 12]
    scrolls = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert (browser.evaluate("innerWidth"), browser.evaluate(scrolls)) == (width, 0)
    assert browser.evaluate(_TOO_FAR_RIGHT) == []
    shade = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(shade) < 60) if dark else (min(shade) > 200)
    requests = [event["request"]["url"] for name, event in browser.events if name == "Network.requestWillBeSent"]
    assert requests == [pages[state].as_uri()]
    words = [event for name, event in browser.events if name in ("Runtime.consoleAPICalled", "Log.entryAdded")]
    assert words == []
    assert not [event for name, event in browser.events if name == "Runtime.exceptionThrown"]


@pytest.mark.parametrize("width", [400, 1280])
def test_a_screen_reader_is_told_of_tables_and_the_plot(width: int, browser: Browser, pages: dict[str, Path]) -> None:
    """Headings, tables with headers, and the plot with its description, also where CSS shows a table as a list."""
    browser.show(pages["dead letters"], width=width)
    nodes: list[dict[str, Any]] = browser.do("Accessibility.getFullAXTree")["nodes"]
    roles = [node["role"]["value"] for node in nodes if not node.get("ignored")]
    named = {
        (node["role"]["value"], node.get("name", {}).get("value")): node.get("description", {}).get("value")
        for node in nodes
        if not node.get("ignored")
    }
    assert roles.count("heading") == 5
    assert roles.count("table") == 2
    assert roles.count("row") == (1 + 3) + (1 + 20)
    assert roles.count("columnheader") == 8 + 5
    assert roles.count("cell") == 3 * 8 + 20 * 5
    assert ("table", "Dead letters") in named
    plots = [name for role, name in named if role in ("img", "image")]
    assert len(plots) == 1
    assert "Tasks delivered per minute" in str(plots[0])
    assert "Tasks delivered in 37 minutes: 29" in str(plots[0])
