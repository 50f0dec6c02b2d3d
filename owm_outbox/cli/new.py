"""``owm-outbox new``: writes a small, complete package with a plugin that passes its tests at once."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

import click

from owm_outbox.cli.streams import write_report
from owm_outbox.errors import ConfigurationError

__all__ = ["new"]

_LONGEST = 30
_SUMMARIES = {
    "sink": "A sink for owm_outbox: one line per task in a file.",
    "outbox": "An outbox for owm_outbox: tasks in a database, here an SQLite file.",
    "job": "A job for owm_outbox: numbered messages, page by page.",
}
_GROUPS = {"sink": "sinks", "outbox": "outboxes", "job": "jobs"}


@click.command("new")
@click.argument("kind", type=click.Choice(list(_SUMMARIES)))
@click.argument("name")
@click.pass_context
def new(ctx: click.Context, /, *, kind: str, name: str) -> None:
    """Write a package with a sink, an outbox or a job of your own into the folder NAME.

    It is complete: setup.cfg with the entry point, one class, its tests, README.md and tox.ini. Install it with pip,
    and its tests pass; then change the class into what you need.
    """
    if problem := _problem_with(kind, name):
        raise click.BadParameter(problem, ctx, param_hint="NAME")
    folder = Path(name)
    try:
        folder.mkdir()
    except FileExistsError:
        raise ConfigurationError(
            f"{name} already exists here and was not changed: choose another name or folder"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot make the folder {_shown(folder)} ({error.strerror})") from error
    try:
        for path, text in _files(kind, name).items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)  # made above: half a package is of no use
        raise ConfigurationError(f"cannot write into {_shown(folder)} ({error.strerror})") from error
    write_report(f"wrote {name}/: now cd {name}, pip install -e '.[test]', pytest")


def _shown(folder: Path) -> Path:
    try:
        return folder.absolute()
    except FileNotFoundError:  # the current folder was deleted
        return folder


def _problem_with(kind: str, name: str) -> str | None:
    """Return why a plugin cannot have this name, ``None`` if it can."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > _LONGEST:
        return (
            f"{name!r} cannot be the name of a plugin: use up to {_LONGEST} lowercase letters, digits and single "
            "hyphens, starting with a letter, as in carrier-pigeon."
        )
    module = _module(name)
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        return f"{name!r} is a keyword or a standard module of Python: choose another name."

    import importlib.metadata
    import importlib.util

    group = f"owm_outbox.{_GROUPS[kind]}"
    if importlib.metadata.entry_points(group=group, name=name):
        return f"{kind} {name!r} is already installed (see owm-outbox plugins): choose another name, or uninstall it."
    installed = {_module(found.name.lower()) for found in importlib.metadata.distributions() if found.name}
    if module in installed or importlib.util.find_spec(module) is not None:
        return f"a package {name!r} is already installed: choose another name, or uninstall it."
    return None


def _module(name: str) -> str:
    return name.replace("-", "_")


def _files(kind: str, name: str) -> dict[str, str]:
    """Return the package's files, by path in its folder."""
    from importlib.resources import files
    from string import Template

    module = _module(name)
    stem = "".join(part.capitalize() for part in name.split("-"))
    values = {
        "name": name,
        "module": module,
        "cls": (stem.removesuffix(kind.capitalize()) or stem) + kind.capitalize(),
        "task": f"{stem}Task",
        "env": module.upper(),
        "group": _GROUPS[kind],
        "modules": f"    {module}" if kind == "job" else f"    {module}\n    {module}_scratch",
        "scratch": ""
        if kind == "job"
        else f"owm_outbox.scratch_{_GROUPS[kind]} =\n    {name} = {module}_scratch:scratch\n",
        "summary": _SUMMARIES[kind],
    }
    templates = {
        "setup.cfg": "shared/setup.cfg",
        "pyproject.toml": "shared/pyproject.toml",
        "tox.ini": "shared/tox.ini",
        ".gitignore": "shared/gitignore",
        "README.md": f"{kind}/README.md",
        f"{module}.py": f"{kind}/module.py",
        "tests/conftest.py": "shared/conftest.py",
        f"tests/test_{module}.py": f"{kind}/test.py",
    }
    if kind != "job":
        templates[f"{module}_scratch.py"] = f"{kind}/scratch.py"
    folder = files("owm_outbox.cli") / "templates"
    return {
        path: Template((folder / f"{template}.in").read_text("utf-8")).substitute(values)
        for path, template in templates.items()
    }
