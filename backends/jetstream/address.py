"""Where servers of NATS are, and who we are to them: what the URL of a sink says, and the files that it names."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import nkeys

from owm_outbox import URL, ConfigurationError

__all__ = ["Address"]

_FILES = ("ca_file", "cert_file", "key_file")


@dataclass(frozen=True)
class Address:
    """Where the servers are, and who we are to them.

    :param where: for messages, without a secret.
    :param hosts: tried in this order.
    :param tls: ``None`` for a connection without it.
    :param certified: whether we have a certificate of our own.
    :param who: as ``nats.connect`` takes it; never shown.
    :param timeout: seconds for each exchange.
    :param rights: what the user must be allowed to do, for a message.
    """

    where: str
    hosts: tuple[tuple[str, int], ...]
    tls: ssl.SSLContext | None = field(repr=False)
    certified: bool
    who: Mapping[str, Any] = field(repr=False)
    timeout: float
    rights: str = ""

    OPTIONS: ClassVar = ("ca_file", "cert_file", "key_file", "creds", "nkey", "timeout")

    @classmethod
    def of(cls, url: URL, given: Mapping[str, Any]) -> Address:
        """Read what a URL says; files are looked at, but nothing is connected to.

        :param given: of `OPTIONS`, what the URL has.
        :raises ConfigurationError: a host, a file or a combination that cannot work.
        """
        where = str(url).partition("?")[0]
        try:
            tls, who = _tls(url, given), _who(url, given)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from error
        return cls(where, _hosts(url), tls, "cert_file" in given, who, given.get("timeout", 5.0))


def _hosts(url: URL) -> tuple[tuple[str, int], ...]:
    found = []
    for text in urlsplit(url.text).netloc.rpartition("@")[2].split(","):
        try:
            part = urlsplit(f"//{text}")
            host, port = part.hostname, part.port
        except ValueError:
            raise ConfigurationError(f"{url}: {text!r} is not a host and a port") from None
        if not host or port == 0 or any(sign.isspace() for sign in host):
            raise ConfigurationError(f"{url}: {text!r} is not a host; write {url.scheme}://host:4222/STREAM?subject=…")
        found.append((host, port or 4222))
    return tuple(found)


def _tls(url: URL, given: Mapping[str, Any]) -> ssl.SSLContext | None:
    files = {name: given[name] for name in _FILES if name in given}
    if url.scheme != "tls":
        if files:
            raise ConfigurationError(f"{next(iter(files))}= is for TLS: write tls://")
        return None
    for name, path in files.items():
        _read(name, path)
    if "key_file" in files and "cert_file" not in files:
        raise ConfigurationError("key_file= needs cert_file=, too")
    try:
        context = ssl.create_default_context(cafile=files.get("ca_file"))
    except ssl.SSLError:
        raise ConfigurationError(f"ca_file={files['ca_file']} has no certificate in PEM form") from None
    if "cert_file" in files:
        _load_own(context, files["cert_file"], files.get("key_file"))
    return context


def _load_own(context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    def ask() -> str:  # OpenSSL would ask at the terminal, and wait
        raise ConfigurationError(f"the key in {key_file or cert_file} is encrypted: give one without a password")

    try:
        context.load_cert_chain(cert_file, key_file, ask)
    except ssl.SSLError:
        raise ConfigurationError(
            f"no certificate with its key, in PEM form, can be read from {cert_file} and {key_file or cert_file}"
        ) from None


def _who(url: URL, given: Mapping[str, Any]) -> dict[str, Any]:
    ways = [name for name in ("creds", "nkey") if name in given] + ["a user or token"] * bool(url.username)
    if len(ways) > 1:
        raise ConfigurationError(f"{ways[0]}= and {ways[1]} are two ways to say who we are: remove one")
    if "creds" in given:
        text = _read("creds", given["creds"])
        if b"BEGIN NATS USER JWT" not in text or b"BEGIN USER NKEY SEED" not in text:
            raise ConfigurationError(f"creds={given['creds']} is not a file of credentials, as nsc writes it")
        return {"user_credentials": given["creds"]}
    if "nkey" in given:
        seed = bytearray(_read("nkey", given["nkey"]).strip())
        try:
            nkeys.from_seed(seed).wipe()
        except Exception:  # nkeys raises whatever its parts do, and the text may hold the seed
            raise ConfigurationError(f"nkey={given['nkey']} has no seed of a user in it (SU…)") from None
        return {"nkeys_seed": given["nkey"]}
    if url.password is not None:
        return {"user": url.username, "password": url.password}
    return {"token": url.username} if url.username else {}


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{name}={path}: {error.strerror}") from error
