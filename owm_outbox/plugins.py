"""Finds outboxes, sinks and jobs by name. The only module that imports stevedore."""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from stevedore.driver import DriverManager
from stevedore.exception import MultipleMatches, NoMatches
from stevedore.extension import ExtensionManager

from owm_outbox.errors import ConfigurationError
from owm_outbox.job import Job
from owm_outbox.outbox import Outbox
from owm_outbox.sink import Sink
from owm_outbox.url import URL, suggestion

__all__ = ["Plugin", "job_names", "load_job", "open_outbox", "open_sink", "outbox_class", "plugins", "sink_class"]

C = TypeVar("C")

_GROUPS: dict[str, type] = {
    "owm_outbox.outboxes": Outbox,
    "owm_outbox.sinks": Sink,
    "owm_outbox.jobs": Job,
}


@dataclass(frozen=True, slots=True)
class Plugin:
    """One installed entry point.

    :param kind: ``outbox``, ``sink`` or ``job``.
    :param distribution: name and version of the package it comes from.
    :param summary: the first line of its docstring, empty if it cannot be loaded.
    :param problem: why it cannot be loaded, ``None`` if it can.
    """

    kind: str
    name: str
    distribution: str
    summary: str
    problem: str | None


def outbox_class(name: str) -> type[Outbox]:
    """Return the outbox class of this name.

    :raises ConfigurationError: no such plugin, or it does not load.
    """
    return _load("owm_outbox.outboxes", name, Outbox)  # type: ignore[type-abstract]  # a subclass comes back


def sink_class(name: str) -> type[Sink]:
    """Return the sink class of this name.

    :raises ConfigurationError: no such plugin, or it does not load.
    """
    return _load("owm_outbox.sinks", name, Sink)  # type: ignore[type-abstract]  # a subclass comes back


def open_outbox(url: str, *, create: bool = True) -> Outbox:
    """Open the outbox that a URL names: its scheme is the plugin, its query the options.

    :param create: whether one that does not exist is made.

    :raises ConfigurationError: no such plugin, or it does not load; a bad option.
    :raises OutboxUnusable: see `Outbox.from_url`.
    """
    parsed = URL(url)
    return outbox_class(parsed.scheme).from_url(parsed, create=create)


def open_sink(url: str) -> Sink:
    """Make the sink that a URL names: its scheme is the plugin, its query the options.

    :raises ConfigurationError: no such plugin, or it does not load; a bad option.
    """
    parsed = URL(url)
    return sink_class(parsed.scheme).from_url(parsed)


def job_names() -> list[str]:
    """Return the names of all installed jobs, without loading any."""
    return sorted({point.name for point in _entry_points("owm_outbox.jobs")})


def load_job(name: str) -> type[Job[Any]]:
    """Return the job class of this name.

    :raises ConfigurationError: no such plugin, or it does not load.
    """
    return _load("owm_outbox.jobs", name, Job)  # type: ignore[type-abstract]  # a subclass comes back


def plugins() -> Iterator[Plugin]:
    """Yield all installed plugins by kind and name; one that is broken is among them and says why."""
    for group, contract in _GROUPS.items():
        for point in sorted(_entry_points(group), key=lambda point: point.name):
            kind = contract.__name__.lower()
            try:
                cls: type = _checked(point, group, point.load(), contract)
                summary, problem = (inspect.getdoc(cls) or "").partition("\n")[0], None
            except ConfigurationError as error:
                summary, problem = "", str(error)
            except Exception as error:
                summary, problem = "", _import_problem(point, error)
            yield Plugin(kind, point.name, _origin(point), summary, problem)


def _load(group: str, name: str, contract: type[C]) -> type[C]:
    # Read afresh: stevedore's cache on disk can hide a plugin that was installed a moment ago, and would write below
    # the home directory, which a cron job need not have.
    points = _entry_points(group)
    ExtensionManager.ENTRY_POINT_CACHE[group] = points
    names = {point.name for point in points}
    if name not in names:
        raise ConfigurationError(
            f"no {contract.__name__.lower()} named {name!r} is installed: {suggestion(name, names)} "
            "(see owm-outbox plugins)"
        )
    failed: list[tuple[importlib.metadata.EntryPoint, BaseException]] = []
    try:
        manager: DriverManager[Any] = DriverManager(
            group, name, on_load_failure_callback=lambda _, point, error: failed.append((point, error))
        )
    except MultipleMatches:
        owners = " and ".join(sorted({_origin(point) for point in points if point.name == name}))
        raise ConfigurationError(
            f"{contract.__name__.lower()} {name!r} comes from {owners}: uninstall all but one"
        ) from None
    except NoMatches:
        point, error = failed[0]
        raise ConfigurationError(_import_problem(point, error)) from error
    extension = manager.extensions[0]
    return _checked(extension.entry_point, group, extension.plugin, contract)


def _checked(point: importlib.metadata.EntryPoint, group: str, cls: Any, contract: type[C]) -> type[C]:
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise ConfigurationError(
            f"{point.name!r} of {_origin(point)} ({point.value}) is no subclass of owm_outbox.{contract.__name__}: "
            f"mend the entry point in group {group}"
        )
    if inspect.isabstract(cls):
        lacking = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise ConfigurationError(f"{point.name!r} of {_origin(point)} ({point.value}) does not define {lacking}")
    return cls


def _entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
    # The same entry point can be seen twice, in a checkout and in site-packages.
    return list({(p.name, p.value): p for p in importlib.metadata.entry_points(group=group)}.values())


def _origin(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _import_problem(point: importlib.metadata.EntryPoint, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and not point.module.startswith(error.name):
        mend = f"install {error.name!r}, or the extra of {point.dist.name if point.dist else 'it'} that brings it"
    else:
        mend = "reinstall or upgrade it"
    return f"{point.name!r} of {_origin(point)} cannot be imported ({type(error).__name__}: {error}): {mend}"
