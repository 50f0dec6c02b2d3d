"""The TOML file: the layer between the defaults and the environment."""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from owm_outbox.cli.options import prefix
from owm_outbox.errors import ConfigurationError
from owm_outbox.url import suggestion

__all__ = ["Key", "config_param", "load_toml", "unread_tables"]


class Key(enum.Enum):
    """What a key of a configuration file is."""

    VALUE = enum.auto()
    LIST = enum.auto()
    SECRET = enum.auto()
    """An option that is read from the environment only."""

    ONE_CALL = enum.auto()
    """A flag that says something of one call, not of a set-up."""


def config_param(
    callback: Callable[[click.Context, click.Parameter, Path | None], Path | None], text: str
) -> click.Option:
    """Return the option that names the file; the callback loads it."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        show_envvar=True,
        callback=callback,
        help=text,
    )


def load_toml(path: Path, job_name: str, known: Mapping[str, Key]) -> dict[str, str | list[str]]:
    """Read a configuration file: keys at the top are for every job, those in the table of the job's name win.

    :param known: what each option is, by name.
    :raises ConfigurationError: the file cannot be read, or has a key that is not an option.
    """
    content = _content(path)
    shared = {key: value for key, value in content.items() if not isinstance(value, dict)}
    own = content.get(job_name, {})
    if not isinstance(own, dict):
        raise ConfigurationError(
            f"{path}: {job_name!r} is the job's table: write [{job_name}] and its options below it"
        )
    values: dict[str, str | list[str]] = {}
    for key, value in {**shared, **own}.items():
        name = key.replace("-", "_")
        match known.get(name):
            case None:
                raise ConfigurationError(f"{path}: unknown key {key!r}: {suggestion(name, _readable(known))}")
            case Key.SECRET:
                raise ConfigurationError(f"{path}: {key!r} is a secret: set {prefix(job_name)}_{name.upper()} instead")
            case Key.ONE_CALL:
                flag = "--" + name.replace("_", "-")
                raise ConfigurationError(f"{path}: {key!r} is for one call, not for every one: give {flag} instead")
            case Key.LIST:
                if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
                    raise ConfigurationError(f'{path}: {key!r} takes a list such as ["a", "b"], not {value!r}')
                values[name] = [str(item) for item in value]
            case _:
                if not isinstance(value, str | int | float):
                    raise ConfigurationError(f"{path}: {key!r} takes a single value, not {value!r}")
                values[name] = str(value)  # as a flag or a variable would give it, so that true is not a number
    return values


def unread_tables(path: Path, jobs: Iterable[str]) -> list[str]:
    """Return a line for each table of the file that is not named as one of the jobs."""
    names = set(jobs)
    return [
        f"{path}: the table [{key}] is not read, as no job of this name is installed: {suggestion(key.lower(), names)}"
        for key, value in _content(path).items()
        if isinstance(value, dict) and key not in names
    ]


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # some editors write a byte order mark
    except OSError as error:
        raise ConfigurationError(f"cannot read {path} ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error


def _readable(known: Mapping[str, Key]) -> list[str]:
    return [name for name, key in known.items() if key is not Key.ONE_CALL]
