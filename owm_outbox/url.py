"""The URL that names a plugin and its options."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin
from urllib.parse import parse_qsl, unquote, unquote_plus, urlencode, urlsplit

import msgspec

from owm_outbox.errors import ConfigurationError

__all__ = ["URL", "redacted", "suggestion"]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the known one that was probably meant, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names)}" if names else "it takes none"


def redacted(text: str) -> str:
    """Return a URL that is fit for logs and messages: each password in it, also in an option, becomes ``***``.

    The text need not be a valid URL. Where it is not clear what is a password, more is masked rather than less.
    """
    text = _TOKEN.sub(r"\1***@", text, count=1)
    shown, masked = _USERINFO.subn(r"\1***@", text, count=1)
    if not masked:
        shown = _USERINFO_ODD.sub(_masked_odd, text, count=1)
    shown = _NO_PORT.sub(r"\1***", shown, count=1)  # not a number: perhaps a password whose user and @ were forgotten
    address, mark, query = shown.partition("?")
    return address + mark + "&".join(map(_without_secret, query.split("&")))


# scheme:, slashes (without them it is not a scheme but a user's name), a user's name and a colon; then a password up
# to the last @ of the authority, …
_BEFORE = r"^((?:[a-zA-Z][\w+.-]*:(?=/))?/*[^:/?#@]*:)(?!/)"
_USERINFO = re.compile(_BEFORE + r"[^/?#]*@")
_MORE_HOSTS = r"(?:,(?:\[[^\]]*\]|[^:/?#@\[\],]+):\d+)*"
# … or one with characters that should have been escaped; but ports and a path with an @ in it are not a password.
_USERINFO_ODD = re.compile(_BEFORE + rf"(?!\d+{_MORE_HOSTS}[/?#])(.*)@(.*)", re.DOTALL)
_NO_PORT = re.compile(
    r"^((?:[a-zA-Z][\w+.-]*:)?//(?:[^/?#]*@)?+(?:\[[^\]]*\]|[^:/?#@\[]*):)"
    rf"(?!\d*(?:[/?#]|$)|\d+{_MORE_HOSTS}(?:[/?#]|$)).*$",
    re.DOTALL,
)
# In a URL of NATS, a user without a password is a token.
_TOKEN = re.compile(r"^((?:nats|tls):/*)[^:?#@]+@", re.IGNORECASE)


def _masked_odd(found: re.Match[str]) -> str:
    before, hidden, after = found.groups()
    # With a ? before the @, the @ may be in an option, and what follows may be the rest of a password.
    return f"{before}***" if "?" in hidden else f"{before}***@{after}"


def _without_secret(pair: str) -> str:
    name, sign, _ = pair.partition("=")
    return f"{name}{sign}***" if sign and _is_secret(name) else pair


def _is_secret(name: str) -> bool:
    words = re.split(r"[^a-z]+", unquote_plus(name).lower())
    return any("pass" in word or difflib.get_close_matches(word, ["password"], cutoff=0.7) for word in words)


class URL:
    """``scheme:rest?option=value``, taken apart. The scheme is the plugin's name, the query its options.

    :param text: as the user gave it.
    :raises ConfigurationError: it has no scheme, or is not a URL.
    """

    def __init__(self, text: str) -> None:
        try:
            parts = urlsplit(text)
            several = "," in parts.netloc.rpartition("@")[2]  # hosts, each with its port: for a plugin that knows those
            self.port = None if several else parts.port
        except ValueError:  # whose message holds what may be a password
            raise ConfigurationError(
                f"{redacted(text)!r} is not a URL: its host or port is not valid "
                "(in a password, write / ? # @ as %2F %3F %23 %40)"
            ) from None
        if not parts.scheme:
            raise ConfigurationError(
                f"{redacted(text)!r} has no scheme; write it as PLUGIN:…, "
                "such as sqlite:////tmp/tasks.db or redis://localhost:6379/0"
            )
        if parts.fragment or text.endswith("#"):
            raise ConfigurationError(f"{redacted(text)!r} contains a #, which would end the URL: write it as %23")
        if "\0" in unquote(text):
            raise ConfigurationError(f"{redacted(text)!r} contains a null byte: remove it")
        self.text = text
        self.scheme = parts.scheme
        self.username = unquote(parts.username) if parts.username is not None else None
        self.password = unquote(parts.password) if parts.password is not None else None
        self.hostname = parts.hostname
        self._netloc = parts.netloc
        self.path = unquote(parts.path)
        self._query = parse_qsl(parts.query, keep_blank_values=True)

    def __str__(self) -> str:
        """Return the URL without its passwords."""
        return redacted(self.text)

    __repr__ = __str__

    @property
    def query(self) -> dict[str, str]:
        """The options as text, whatever they are; of one that is given twice, the last."""
        return dict(self._query)

    @property
    def hosts(self) -> list[tuple[str, int | None]]:
        """The hosts, each with its port, where there may be several: ``nats://one:4222,two:4222``. ``None``: no port.

        :raises ConfigurationError: one of them has no name, or something else than a port behind its colon.
        """
        return [self._host(part) for part in self._netloc.rpartition("@")[2].split(",")]

    def _host(self, part: str) -> tuple[str, int | None]:
        try:
            found = urlsplit(f"//{part}")
            port = found.port
        except ValueError:  # whose message holds what may be a password
            raise ConfigurationError(f"{self}: one of its hosts has a port that is not valid") from None
        if not found.hostname:
            raise ConfigurationError(f"{self}: one of its hosts has no name; write HOST:PORT,HOST:PORT")
        return found.hostname, port

    def options(self, **types: Any) -> dict[str, Any]:
        """Return the options that the URL gives, each converted to its type: ``url.options(loft=str, birds=int)``.

        A type is anything msgspec can convert text to: ``int``, ``float``, ``bool``, ``Literal["a", "b"]``,
        ``Annotated[int, Meta(ge=1)]``. Options that the URL does not give are not in the result.

        :raises ConfigurationError: an option is not in ``types``, is given twice, or does not convert; the message
            names the option that was probably meant.
        """
        given: dict[str, Any] = {}
        for name, value in self._query:
            if name not in types:
                shown = repr(name) if name in str(self) else "***"  # what looks like one may be part of a password
                raise ConfigurationError(f"unknown option {shown} in {self}: {suggestion(name, types)}")
            if name in given:
                raise ConfigurationError(f"option {name!r} is given twice in {self}: remove one")
            try:
                given[name] = msgspec.convert(value, types[name], strict=False)
            except msgspec.ValidationError as error:
                shown = "***" if _is_secret(name) else repr(value)
                wanted = (
                    f"one of {', '.join(map(str, get_args(types[name])))}" if _is_choice(types[name]) else str(error)
                )
                raise ConfigurationError(f"option {name}={shown} in {self}: {wanted}") from error
        return given

    def without_options(self, *names: str) -> str:
        """Return the URL without these options, but with the others and the password, as a client needs it."""
        query = urlencode([(name, value) for name, value in self._query if name not in names])
        return self.text.partition("?")[0] + (f"?{query}" if query else "")


def _is_choice(kind: Any) -> bool:
    return get_origin(kind) is Literal
