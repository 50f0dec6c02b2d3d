"""The URL that names a plugin and its options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import msgspec

from owm_outbox.errors import ConfigurationError

__all__ = ["URL", "nearest", "without_password"]


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, or list them all: the end of a sentence about an unknown one."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names)}" if names else "it takes none"


def without_password(text: str) -> str:
    """Return a URL fit for logs and messages: passwords in it, also as options, become ``***``."""
    try:
        parts = urlsplit(text)
        netloc = parts.netloc
        if "@" in netloc:
            user, _, host = netloc.rpartition("@")
            name, colon, _ = user.partition(":")
            netloc = f"{name}{colon}***@{host}" if colon else f"{user}@{host}"
        query = "&".join(
            f"{pair.partition('=')[0]}=***" if "password" in pair.partition("=")[0].lower() else pair
            for pair in parts.query.split("&")
        )
        return _unsplit(parts, netloc, query)
    except ValueError:
        return f"{text.partition(':')[0]}:…"  # cannot be taken apart, so nothing of it is safe to show


def _unsplit(parts: SplitResult, netloc: str, query: str) -> str:
    authority = f"//{netloc}" if netloc or parts.path.startswith("//") else ""
    if not authority and parts.scheme and parts.path.startswith("/"):
        authority = "//"  # sqlite:////tmp/x.db: urlsplit drops the empty authority
    scheme = f"{parts.scheme}:" if parts.scheme else ""
    return f"{scheme}{authority}{parts.path}" + (f"?{query}" if query else "")


class URL:
    """``scheme:rest?option=value``, taken apart. The scheme is the plugin's name, the query its options.

    :param text: as the user gave it.
    :raises ConfigurationError: it has no scheme, or is no URL.
    """

    def __init__(self, text: str) -> None:
        try:
            parts = urlsplit(text)
            self.port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"{without_password(text)!r} is no URL: {error}") from error
        if not parts.scheme:
            raise ConfigurationError(
                f"{without_password(text)!r} has no scheme; write it as PLUGIN:…, "
                "such as sqlite:////tmp/tasks.db or redis://localhost:6379/0"
            )
        self.text = text
        self.scheme = parts.scheme
        self.username = unquote(parts.username) if parts.username is not None else None
        self.password = unquote(parts.password) if parts.password is not None else None
        self.hostname = parts.hostname
        self.path = unquote(parts.path)
        self._parts = parts
        self._query = parse_qsl(parts.query, keep_blank_values=True)

    def __str__(self) -> str:
        """Return the URL without its passwords."""
        return without_password(self.text)

    __repr__ = __str__

    def options(self, **types: Any) -> dict[str, Any]:
        """Return the options that the URL gives, each converted to its type: ``url.options(loft=str, birds=int)``.

        A type is anything msgspec can convert text to: ``int``, ``float``, ``bool``, ``Literal["a", "b"]``,
        ``Annotated[int, Meta(ge=1)]``. Options that the URL does not give are not in the result.

        :raises ConfigurationError: an option is not in ``types``, comes twice, or does not convert; the message
            names the nearest known option.
        """
        given: dict[str, Any] = {}
        for name, value in self._query:
            if name not in types:
                raise ConfigurationError(f"unknown option {name!r} in {self}: {nearest(name, types)}")
            if name in given:
                raise ConfigurationError(f"option {name!r} comes twice in {self}")
            try:
                given[name] = msgspec.convert(value, types[name], strict=False)
            except msgspec.ValidationError as error:
                shown = "***" if "password" in name else repr(value)
                raise ConfigurationError(f"option {name}={shown} in {self}: {error}") from error
        return given

    def without_options(self, *names: str) -> str:
        """Return the URL with these options taken out, the others and any password left in, as a client needs it."""
        query = urlencode([(name, value) for name, value in self._query if name not in names])
        return _unsplit(self._parts, self._parts.netloc, query)
