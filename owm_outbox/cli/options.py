"""Turns a job's ``Options`` into command-line options, and what a user gave into one frozen object.

Layers: default < TOML file < environment < flag. Nothing behind the command line reads the environment.
"""

from __future__ import annotations

import enum
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource
from msgspec import inspect as shapes

from owm_outbox.errors import ConfigurationError
from owm_outbox.job import Job
from owm_outbox.url import suggestion, redacted

__all__ = ["FiniteRange", "job_params", "load_toml", "make_options", "prefix", "secrets", "wants_json_logs"]


class FiniteRange(click.FloatRange):
    """A number in a range; NaN, which is in all of them, is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Turn text into a number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def prefix(job_name: str) -> str:
    """Return what a job's environment variables begin with: ``NIGHT_FLEET`` for ``night-fleet``."""
    return job_name.upper().replace("-", "_").replace(".", "_")


def job_params(job: type[Job[Any]]) -> list[click.Parameter]:
    """Return a click option for each field of the job's ``Options`` that is not a secret."""
    return [_param(field, prefix(job.name)) for field in _fields(job) if not _meta(field).get("secret")]


def secrets(job: type[Job[Any]]) -> list[tuple[str, str, str]]:
    """Return field, environment variable and help of each option that is read from the environment only."""
    return [
        (field.name, f"{prefix(job.name)}_{field.name.upper()}", _meta(field).get("description", ""))
        for field in _fields(job)
        if _meta(field).get("secret")
    ]


def make_options(job: type[Job[Any]], ctx: click.Context) -> Any:
    """Build the job's ``Options`` from what click collected and from the secrets in the environment.

    :raises ConfigurationError: a value does not fit its field.
    """
    values = {field.name: ctx.params[field.name] for field in _fields(job) if ctx.params.get(field.name) is not None}
    for name, variable, _ in secrets(job):
        if os.environ.get(variable):
            values[name] = os.environ[variable]
    try:
        return msgspec.convert(values, job.Options, strict=False)
    except msgspec.ValidationError as error:
        what, _, name = str(error).rstrip("`").partition(" - at `$")
        name = name.removeprefix(".")
        if not name:  # from the Options' own check, whose message begins with the name
            name, _, what = what.partition(" ")
        if "matching regex" in what:  # no answer for a person; the option's description says what is wanted
            what = next((_meta(field).get("description", what) for field in _fields(job) if field.name == name), what)
        shown = f" {redacted(values[name])!r}" if isinstance(ctx.params.get(name), str) else ""
        raise ConfigurationError(f"{_where(name, prefix(job.name), ctx)}{shown} does not fit: {what}") from error


def wants_json_logs(args: Sequence[str]) -> bool:
    """Tell whether ``--log-format json`` was asked for, when the arguments make no sense otherwise."""
    for at, arg in enumerate(args):
        if arg.startswith("--log-format"):
            return arg.endswith("=json") or args[at + 1 : at + 2] == ["json"]
    return os.environ.get("OWM_LOG_FORMAT") == "json"


def load_toml(path: Path, job_name: str, known: Mapping[str, bool]) -> dict[str, Any]:
    """Read a configuration file: keys at the top are for every job, those in the table of the job's name win.

    :param known: the options' names; true for those that a file must not hold.
    :raises ConfigurationError: the file cannot be read, or has a key that is no option.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path} ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from error
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
        values[name] = str(value)  # as a flag or a variable would give it, so that true is no number
    return values


def _where(name: str, env_prefix: str, ctx: click.Context) -> str:
    source = ctx.get_parameter_source(name)
    if source is ParameterSource.COMMANDLINE:
        return "--" + name.replace("_", "-")
    if source is ParameterSource.DEFAULT_MAP:
        return f"{name} in {ctx.params.get('config')}"
    return f"{env_prefix}_{name.upper()}"


def _fields(job: type[Job[Any]]) -> tuple[shapes.Field, ...]:
    info = shapes.type_info(job.Options)
    if not isinstance(info, shapes.StructType | shapes.DataclassType):
        raise ConfigurationError(
            f"{job.__module__}.{job.__qualname__}.Options must be a JobOptions, a msgspec Struct or a dataclass"
        )
    return tuple(info.fields)


def _meta(field: shapes.Field) -> dict[str, Any]:
    """Collect an annotation's description and extra, from the field and from within ``X | None``."""
    found: dict[str, Any] = {}
    todo = [field.type]
    while todo:
        kind = todo.pop()
        if isinstance(kind, shapes.Metadata):
            found = {**(kind.extra_json_schema or {}), **(kind.extra or {}), **found}
            todo.append(kind.type)
        elif isinstance(kind, shapes.UnionType):
            todo += kind.types
    return found


def _param(field: shapes.Field, env_prefix: str) -> click.Option:
    kind = _plain(field.type)
    default = None if field.default is msgspec.NODEFAULT else field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    if isinstance(default, enum.Enum):
        default = default.value
    flag = "--" + field.name.replace("_", "-")
    return click.Option(
        [f"{flag}/--no-{flag[2:]}" if isinstance(kind, shapes.BoolType) else flag, field.name],
        type=_click_type(kind),
        default=default,
        required=field.required,
        help=_meta(field).get("description"),
        envvar=f"{env_prefix}_{field.name.upper()}",
        show_envvar=True,
        show_default=default is not None,
    )


def _plain(kind: shapes.Type) -> shapes.Type:
    while True:
        if isinstance(kind, shapes.Metadata):
            kind = kind.type
        elif isinstance(kind, shapes.UnionType):
            kind = next(one for one in kind.types if not isinstance(one, shapes.NoneType))
        else:
            return kind


def _click_type(kind: shapes.Type) -> click.ParamType[Any]:
    match kind:
        case shapes.BoolType():
            return click.BOOL
        case shapes.IntType() | shapes.FloatType():
            make: Any = click.IntRange if isinstance(kind, shapes.IntType) else FiniteRange
            low, high = (kind.ge if kind.gt is None else kind.gt), (kind.le if kind.lt is None else kind.lt)
            ranged: click.ParamType[Any] = make(low, high, min_open=kind.gt is not None, max_open=kind.lt is not None)
            return ranged
        case shapes.LiteralType() | shapes.EnumType():
            values = kind.values if isinstance(kind, shapes.LiteralType) else [one.value for one in kind.cls]
            return click.Choice([str(value) for value in values])
    return click.STRING
