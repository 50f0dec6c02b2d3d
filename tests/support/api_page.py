"""Writes the public API as one page: ``python tests/support/api_page.py > docs/api.md``."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import itertools
import pkgutil
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, ForwardRef

import msgspec

import owm_outbox
from owm_outbox import JobOptions, paging, plugins, testing
from owm_outbox_backends import jsonl, memory, redis_stream, sqlite

HEAD = """# The public API

Everything that jobs, services and plugins need. Made from the code by `python tests/support/api_page.py > docs/api.md`;
the docstrings say more. A test holds this page against the code.
"""

_CODES_OF_THE_OBJECT = {"RunIncomplete": "that of its cause", "Stopped": "128 plus the signal"}


def page() -> str:
    """Return the page."""
    modules = (owm_outbox, plugins, paging, testing, sqlite, memory, redis_stream, jsonl)
    chapters = [
        f"## {module.__name__}\n\n{_first_line(module)}\n\n" + "\n".join(_entries(module)) for module in modules
    ]
    return "\n\n".join([HEAD.strip(), *chapters]) + "\n"


def _entries(module: ModuleType) -> Iterator[str]:
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing):
            yield from _class_lines(name, thing)
        elif inspect.isfunction(thing):
            yield f"- `{name}{_signature(thing)}`: {_first_line(thing)}"
        else:
            text = _constant_docs(module).get(name, "")
            if text or not module.__name__.startswith("owm_outbox_backends"):
                yield f"- `{name}`" + (f": {text}" if text else "")


def _class_lines(name: str, cls: type) -> Iterator[str]:
    if issubclass(cls, BaseException):
        code = _CODES_OF_THE_OBJECT.get(name) or int(getattr(cls, "exit_code", 70))
        yield f"- `{name}` (exit code {code}): {_first_line(cls)}"
    elif issubclass(cls, enum.Enum):
        yield f"- `{name}`: {_first_line(cls)}"
        yield from (f"  - `.{member.name}` = {member.value}" for member in cls)
    else:
        yield f"- `{name}{_signature(cls)}`: {_first_line(cls)}"
        yield from (_member_line(cls, attribute, member) for attribute, member in _members(cls))


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield what a class adds to its contract, or takes in another form than its contract does."""
    for attribute, member in vars(cls).items():
        if attribute.startswith(("_", "test_")) or not isinstance(member, FunctionType | classmethod | property):
            continue
        inherited = next((vars(base)[attribute] for base in cls.__mro__[1:] if attribute in vars(base)), None)
        if inherited is None or (isinstance(member, FunctionType) and _signature(inherited) != _signature(member)):
            yield attribute, member


def _member_line(cls: type, attribute: str, member: Any) -> str:
    shown = "" if isinstance(member, property) else _signature(getattr(cls, attribute))
    return f"  - `.{attribute}{shown}`: {_first_line(member)}"


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _signature(thing: Any) -> str:
    if inspect.isclass(thing) and issubclass(thing, JobOptions):
        fields = [(field.name, field.default) for field in msgspec.structs.fields(thing)]
        shown = [name if default is msgspec.NODEFAULT else f"{name}={default!r}" for name, default in fields]
        return f"({', '.join(['*', *shown] if shown else [])})"
    if hasattr(thing, "_fields"):  # a NamedTuple: Pythons differ in how they show its annotations
        return f"({', '.join(f'{name}: {_plain(thing.__annotations__[name])}' for name in thing._fields)})"
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    shown, keywords_only = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords_only:
            shown.append("*")
            keywords_only = True
        keywords_only |= parameter.kind is parameter.VAR_POSITIONAL
        shown.append(_shown(parameter))
    result = "" if inspect.isclass(thing) else f" -> {_plain(signature.return_annotation)}"
    return f"({', '.join(shown)}){result}"


def _shown(parameter: inspect.Parameter) -> str:
    stars = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
    known = "" if parameter.annotation is parameter.empty else f": {_plain(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return f"{stars}{parameter.name}{known}"
    default = parameter.default
    return f"{parameter.name}{known} = {'…' if callable(default) or '<' in repr(default) else repr(default)}"


def _plain(annotation: Any) -> str:
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    text = inspect.formatannotation(annotation) if not isinstance(annotation, str) else annotation
    return text.replace("owm_outbox.", "").replace("typing.", "")  # Pythons differ in whether they name these


def _constant_docs(module: ModuleType) -> dict[str, str]:
    """Return the first line of the text below each constant, in the module or in the modules of the package."""
    found: dict[str, str] = {}
    sources = [module]
    if hasattr(module, "__path__"):
        names = [info.name for info in pkgutil.iter_modules(module.__path__) if not info.ispkg]
        sources += [importlib.import_module(f"{module.__name__}.{name}") for name in names if name != "live"]
    for source in sources:
        body = ast.parse(inspect.getsource(source)).body
        for node, below in itertools.pairwise(body):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[target.id] = str(below.value.value).partition("\n")[0]
    return found


if __name__ == "__main__":
    print(page(), end="")
