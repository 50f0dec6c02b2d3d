"""Finds outboxes, sinks and jobs by name. The only module that imports stevedore."""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from stevedore.driver import DriverManager
from stevedore.exception import MultipleMatches, NoMatches

from owm_outbox.errors import ConfigurationError, one_line
from owm_outbox.job import Job
from owm_outbox.outbox import Outbox
from owm_outbox.sink import Sink
from owm_outbox.url import URL, suggestion

__all__ = [
    "Plugin",
    "job_names",
    "load_job",
    "look_at_outbox",
    "open_outbox",
    "open_sink",
    "outbox_class",
    "plugins",
    "scratch_outbox",
    "scratch_sink",
    "sink_class",
]

C = TypeVar("C")

Scratch = Callable[[URL], AbstractContextManager[Any]]
"""Makes a scratch destination next to the one that a URL names; see `owm_outbox.testing`."""

_GROUPS: dict[str, type] = {
    "owm_outbox.outboxes": Outbox,
    "owm_outbox.sinks": Sink,
    "owm_outbox.jobs": Job,
}


@dataclass(frozen=True, slots=True)
class Plugin:
    """One installed entry point.

    :param kind: ``outbox``, ``sink`` or ``job``.
    :param distribution: name and version of the package that it belongs to.
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

    :raises ConfigurationError: there is no such plugin, or it does not load.
    """
    return _load_class("owm_outbox.outboxes", name, Outbox)  # type: ignore[type-abstract]  # a subclass comes back


def sink_class(name: str) -> type[Sink]:
    """Return the sink class of this name.

    :raises ConfigurationError: there is no such plugin, or it does not load.
    """
    return _load_class("owm_outbox.sinks", name, Sink)  # type: ignore[type-abstract]  # a subclass comes back


def load_job(name: str) -> type[Job[Any]]:
    """Return the job class of this name.

    :raises ConfigurationError: there is no such plugin, it does not load, or its class has another name.
    """
    return _load_class("owm_outbox.jobs", name, Job)  # type: ignore[type-abstract]  # a subclass comes back


def open_outbox(url: str, *, create: bool = True) -> Outbox:
    """Open the outbox that a URL names: its scheme is the plugin, its query the options.

    :param create: whether one that does not exist is made.
    :raises ConfigurationError: there is no such plugin, or it does not load; an option is wrong.
    :raises OutboxInvalid: see `Outbox.from_url`.
    """
    parsed = URL(url)
    return outbox_class(parsed.scheme).from_url(parsed, create=create)


def look_at_outbox(url: str) -> Outbox:
    """Open the outbox that a URL names to look at it only; see `Outbox.look_at`.

    :raises ConfigurationError: see ``open_outbox``; so does OutboxInvalid.
    """
    parsed = URL(url)
    return outbox_class(parsed.scheme).look_at(parsed)


def open_sink(url: str) -> Sink:
    """Make the sink that a URL names: its scheme is the plugin, its query the options.

    :raises ConfigurationError: there is no such plugin, or it does not load; an option is wrong.
    """
    parsed = URL(url)
    return sink_class(parsed.scheme).from_url(parsed)


def scratch_outbox(scheme: str) -> Scratch:
    """Return the function that makes a scratch outbox for the contract kit: ``with make(url) as open_outbox``.

    :raises ConfigurationError: none is registered for this kind of outbox, or it does not load.
    """
    return _load_scratch("owm_outbox.scratch_outboxes", scheme, "outbox")


def scratch_sink(scheme: str) -> Scratch:
    """Return the function that makes a scratch destination for the contract kit: ``with make(url) as destination``.

    :raises ConfigurationError: none is registered for this kind of sink, or it does not load.
    """
    return _load_scratch("owm_outbox.scratch_sinks", scheme, "sink")


def job_names() -> list[str]:
    """Return the names of all installed jobs, without loading any."""
    return sorted({point.name for point in _entry_points("owm_outbox.jobs")})


def plugins() -> Iterator[Plugin]:
    """Yield all installed plugins by kind and name; a broken one is among them, with its problem."""
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


# -- within


class _Driver(DriverManager[Any]):
    """A driver manager that reads the entry points each time.

    The cache on disk can hide a plugin that was installed a moment ago, and is written below the home directory,
    which a cron job need not have.
    """

    def list_entry_points(self) -> list[importlib.metadata.EntryPoint]:
        return _entry_points(self.namespace)


def _load_class(group: str, name: str, contract: type[C]) -> type[C]:
    kind = contract.__name__.lower()
    names = {point.name for point in _entry_points(group)}
    if name not in names:
        raise ConfigurationError(
            f"no {kind} named {name!r} is installed: {suggestion(name, names)} (see owm-outbox plugins)"
        )
    point, cls = _load(group, name, kind)
    return _checked(point, group, cls, contract)


def _load_scratch(group: str, scheme: str, kind: str) -> Scratch:
    if scheme not in {point.name for point in _entry_points(group)}:
        raise ConfigurationError(
            f"{scheme}: this kind of {kind} cannot be checked without touching the real one: "
            "run its contract test instead"
        )
    _, make = _load(group, scheme, f"scratch {kind}")
    function: Scratch = make
    return function


def _load(group: str, name: str, kind: str) -> tuple[importlib.metadata.EntryPoint, Any]:
    """Load an entry point that exists."""
    failed: list[tuple[importlib.metadata.EntryPoint, BaseException]] = []
    try:
        with _silent_stevedore():
            manager = _Driver(
                group, name, on_load_failure_callback=lambda _, point, error: failed.append((point, error))
            )
    except MultipleMatches:
        owners = " and ".join(sorted({_origin(point) for point in _entry_points(group) if point.name == name}))
        raise ConfigurationError(f"{kind} {name!r} is installed by {owners}: uninstall all but one") from None
    except NoMatches:
        point, error = failed[0]
        raise ConfigurationError(_import_problem(point, error)) from error
    extension = manager.extensions[0]
    return extension.entry_point, extension.plugin


@contextmanager
def _silent_stevedore() -> Iterator[None]:
    """Keep stevedore from logging what becomes a ConfigurationError, which also says what to do."""
    logger = logging.getLogger("stevedore")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _checked(point: importlib.metadata.EntryPoint, group: str, cls: Any, contract: type[C]) -> type[C]:
    origin = f"{point.name!r} of {_origin(point)} ({point.value})"
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise ConfigurationError(
            f"{origin} is not a subclass of owm_outbox.{contract.__name__}: fix the entry point in group {group}"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise ConfigurationError(f"{origin} does not define {missing}")
    if issubclass(cls, Job) and getattr(cls, "name", None) != point.name:
        found = f"has the name {cls.name!r}" if hasattr(cls, "name") else "does not define a name"
        raise ConfigurationError(f"{origin} {found}: write name = {point.name!r} in its class")
    return cls


def _entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
    # The same entry point can be seen twice, in a checkout and in site-packages.
    return list({(p.name, p.value): p for p in importlib.metadata.entry_points(group=group)}.values())


def _origin(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _import_problem(point: importlib.metadata.EntryPoint, error: BaseException) -> str:
    fix = "reinstall or upgrade it"
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        if missing != point.module.partition(".")[0]:
            package = point.dist.name if point.dist else "its package"
            fix = f"install {missing!r}, or the extra of {package} that includes it"
    what = one_line(f"{type(error).__name__}: {error}")
    return f"{point.name!r} of {_origin(point)} cannot be imported ({what}): {fix}"
