"""Turns a job's ``Options`` into command-line options, and what the user gave into one frozen object.

Layers: default < TOML file < environment < flag. Nothing behind the command line reads the environment.
"""

from __future__ import annotations

import enum
import math
import os
from typing import Any

import click
import msgspec
from click.core import ParameterSource
from msgspec import inspect as shapes

from owm_outbox.errors import ConfigurationError
from owm_outbox.job import Job
from owm_outbox.url import redacted

__all__ = ["FiniteRange", "ListOption", "job_params", "make_options", "prefix", "secrets"]


class FiniteRange(click.FloatRange):
    """A finite number in a range. click takes NaN to be in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Turn text into a number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def prefix(job_name: str) -> str:
    """Return what a job's environment variables begin with: ``NIGHT_FLEET`` for ``night-fleet``."""
    return job_name.upper().replace("-", "_").replace(".", "_")


def job_params(job: type[Job[Any]]) -> list[click.Option]:
    """Return a click option for each field of the job's ``Options`` that is not a secret.

    Its variable is the context's ``auto_envvar_prefix``, which is the job's, and the name of the field.
    """
    return [_param(field) for field in _fields(job) if not _meta(field).get("secret")]


def secrets(job: type[Job[Any]]) -> list[tuple[str, str, str]]:
    """Return field, environment variable and help of each option that is read from the environment only."""
    return [
        (field.name, f"{prefix(job.name)}_{field.name.upper()}", _meta(field).get("description", ""))
        for field in _fields(job)
        if _meta(field).get("secret")
    ]


def make_options(job: type[Job[Any]], ctx: click.Context, **instead: Any) -> Any:
    """Build the job's ``Options`` from what click collected and from the secrets in the environment.

    :param instead: values that replace what was collected.
    :raises ConfigurationError: a value does not fit its field, or one that has no default is missing.
    """
    values = {field.name: ctx.params[field.name] for field in _fields(job) if _is_given(field.name, ctx)}
    for name, variable, _ in secrets(job):
        if os.environ.get(variable):
            values[name] = os.environ[variable]
    values |= instead
    for field in _fields(job):
        if field.required and field.name not in values:
            flag, variable = f"--{field.name.replace('_', '-')}", f"{prefix(job.name)}_{field.name.upper()}"
            ways = f"set {variable}" if _meta(field).get("secret") else f"give {flag} or set {variable}"
            raise ConfigurationError(f"job {job.name!r} needs its option {field.name!r}: {ways}")
    try:
        return msgspec.convert(values, job.Options, strict=False)
    except msgspec.ValidationError as error:
        what, _, name = str(error).rstrip("`").partition(" - at `$")
        name = name.removeprefix(".")
        problem = "is not valid: "
        if not name:  # from the Options' own check, whose message begins with the name
            name, _, what = what.partition(" ")
            problem = ""
        name = name.partition("[")[0]  # of a list, an item of which does not fit
        if "matching regex" in what:  # a person cannot read that; the option's description says what is wanted
            what = next((_meta(field).get("description", what) for field in _fields(job) if field.name == name), what)
        shown = f" {redacted(values[name])!r}" if isinstance(ctx.params.get(name), str) else ""
        raise ConfigurationError(f"{_where(name, prefix(job.name), ctx)}{shown} {problem}{what}") from error


def _is_given(name: str, ctx: click.Context) -> bool:
    value = ctx.params.get(name)
    if value == () and ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
        return False  # click's word for no list at all; an empty one is given as such
    return value is not None


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


def _param(field: shapes.Field) -> click.Option:
    kind = _plain(field.type)
    default = None if field.default is msgspec.NODEFAULT else field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    if isinstance(default, enum.Enum):
        default = default.value
    flag = "--" + field.name.replace("_", "-")
    text = _meta(field).get("description", "")
    item = _item(kind)
    if item is not None:
        default = None if default is None else tuple(default)
        text = f"{text} (repeat the flag for several; in the variable, put commas between them)".strip()
    return (click.Option if item is None else ListOption)(
        [f"{flag}/--no-{flag[2:]}" if isinstance(kind, shapes.BoolType) else flag, field.name],
        type=_click_type(kind if item is None else item),
        multiple=item is not None,
        default=default,
        required=field.required,
        help=text or None,
        show_envvar=True,
        show_default=bool(default) if item is not None else default is not None,
    )


class ListOption(click.Option):
    """A flag that is given once per item; its variable has commas between them, where click has blanks."""

    def value_from_envvar(self, ctx: click.Context) -> tuple[str, ...] | None:
        """Split the variable; an empty one counts as not set."""
        text = self.resolve_envvar_value(ctx)
        return None if text is None else tuple(item.strip() for item in text.split(",") if item.strip())


def _plain(kind: shapes.Type) -> shapes.Type:
    while True:
        if isinstance(kind, shapes.Metadata):
            kind = kind.type
        elif isinstance(kind, shapes.UnionType):
            kind = next(one for one in kind.types if not isinstance(one, shapes.NoneType))
        else:
            return kind


def _item(kind: shapes.Type) -> shapes.Type | None:
    """Return what a list is of, ``None`` for what is not a list."""
    if isinstance(kind, shapes.ListType | shapes.VarTupleType | shapes.SetType | shapes.FrozenSetType):
        return _plain(kind.item_type)
    return None


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
