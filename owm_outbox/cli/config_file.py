"""The TOML file: the layer between the defaults and the environment."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from owm_outbox.cli.options import prefix
from owm_outbox.errors import ConfigurationError
from owm_outbox.url import suggestion

__all__ = ["load_toml"]


def load_toml(path: Path, job_name: str, known: Mapping[str, bool]) -> dict[str, str]:
    """Read a configuration file: keys at the top are for every job, those in the table of the job's name win.

    :param known: the options' names; true for those that a file must not hold.
    :raises ConfigurationError: the file cannot be read, or has a key that is not an option.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path} ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
    shared = {key: value for key, value in content.items() if not isinstance(value, dict)}
    own = content.get(job_name, {})
    if not isinstance(own, dict):
        raise ConfigurationError(
            f"{path}: {job_name!r} is the job's table: write [{job_name}] and its options below it"
        )
    values = {}
    for key, value in {**shared, **own}.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigurationError(f"{path}: unknown key {key!r}: {suggestion(name, known)}")
        if known[name]:
            raise ConfigurationError(f"{path}: {key!r} is a secret: set {prefix(job_name)}_{name.upper()} instead")
        if not isinstance(value, str | int | float):
            raise ConfigurationError(f"{path}: {key!r} takes a single value, not {value!r}")
        values[name] = str(value)  # as a flag or a variable would give it, so that true is not a number
    return values
