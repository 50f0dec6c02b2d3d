"""Writes the public API as one page: ``python tests/support/api_page.py > docs/api.md``."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import owm_outbox
from owm_outbox import paging, plugins, testing

HEAD = """# The public API

Everything that examples and plugins need. Made from the code by `python tests/support/api_page.py > docs/api.md`; the
docstrings say more.
"""


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _signature(thing: object) -> str:
    try:
        text = str(inspect.signature(thing))  # type: ignore[arg-type]  # what has none raises
    except (TypeError, ValueError):
        return ""
    text = re.sub(r"<function <lambda> at 0x\w+>|<built-in function \w+>", "…", text)
    # Pythons differ in whether they name typing.
    return text.replace("'", "").replace("owm_outbox.", "").replace("typing.", "")


def _entries(module: ModuleType) -> list[str]:
    return [line for name in module.__all__ for line in _lines(name, getattr(module, name))]


def _lines(name: str, thing: object) -> list[str]:
    if not inspect.isclass(thing):
        return [f"- `{name}{_signature(thing)}`: {_first_line(thing)}" if inspect.isfunction(thing) else f"- `{name}`"]
    if issubclass(thing, BaseException):
        return [f"- `{name}` (exit code {getattr(thing, 'exit_code', '-')}): {_first_line(thing)}"]
    members = [
        (attribute, getattr(thing, attribute))
        for attribute, member in vars(thing).items()
        if not attribute.startswith(("_", "test_")) and (inspect.isfunction(member) or isinstance(member, classmethod))
    ]
    return [
        f"- `{name}{_signature(thing)}`: {_first_line(thing)}",
        *(f"  - `.{attribute}{_signature(member)}`: {_first_line(member)}" for attribute, member in members),
    ]


def page() -> str:
    """Return the page."""
    modules = (owm_outbox, plugins, paging, testing)
    chapters = [
        f"## {module.__name__}\n\n{_first_line(module)}\n\n" + "\n".join(_entries(module)) for module in modules
    ]
    return "\n\n".join([HEAD.strip(), *chapters]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
