"""TLS to Redis: what is wrong with the files that a URL names, and which of OpenSSL's errors no retry fixes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from owm_outbox import ConfigurationError

__all__ = ["check_tls", "other_protocol", "refusal", "tls_problem", "unasked"]

_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")  # how OpenSSL finds a certificate in a folder

# What OpenSSL reports where a connection was merely lost, or the other side failed for once.
_PASSING = ("EOF", "INTERNAL_ERROR", "USER_CANCEL", "BAD_RECORD_MAC", "DECRYPT", "CLOSE_NOTIFY", "SHUTDOWN")

# By a part of OpenSSL's reason: what to change. The first that fits.
_ADVICE = {
    "CERTIFICATE_REQUIRED": "the server wants a certificate of ours: set ssl_certfile= and ssl_keyfile=",
    "UNKNOWN_CA": "the server does not know who signed our certificate: set another ssl_certfile=",
    "CERTIFICATE_EXPIRED": "our certificate has expired: renew the one that ssl_certfile= names",
    "CERTIFICATE_REVOKED": "our certificate was revoked: renew the one that ssl_certfile= names",
    "ALERT_BAD_CERTIFICATE": "the server does not accept our certificate: set another ssl_certfile=",
    "ALERT_HANDSHAKE_FAILURE": "the server may want a certificate of ours, or other ciphers: "
    "set ssl_certfile= and ssl_keyfile=, or ssl_ciphers=",
    "ALERT_PROTOCOL_VERSION": "the server speaks another version of TLS",
    "WRONG_VERSION_NUMBER": "this port does not speak TLS: write redis://, or another port",
    "RECORD_LAYER_FAILURE": "this port does not speak TLS: write redis://, or another port",
}
# By X.509's code: what to change where the server's certificate is not accepted.
_VERIFICATION = {
    9: "it is not valid yet: check the clock of this machine",
    10: "renew it on the server",
    62: "write the host in the URL as the certificate has it",
    64: "write the host in the URL as the certificate has it",
}


def check_tls(settings: Mapping[str, Any]) -> ssl.SSLContext:
    """Load what the options name, as a connection will; return it.

    :param settings: redis-py's, by name.
    :raises ConfigurationError: a file or folder is missing or of another kind; the message names it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_certs := settings.get("ssl_ca_certs"):
        with _named("ssl_ca_certs", ca_certs, "it has no certificate in PEM form"):
            context.load_verify_locations(cafile=ca_certs)
    if ca_path := settings.get("ssl_ca_path"):
        with _named("ssl_ca_path", ca_path, "it cannot be read"):
            if not any(_HASHED.fullmatch(name) for name in os.listdir(ca_path)):
                raise ConfigurationError(
                    f"ssl_ca_path={ca_path}: no certificate in it has the name that OpenSSL looks for: "
                    "run openssl rehash on it, or set ssl_ca_certs= to a file"
                )
    if ca_data := settings.get("ssl_ca_data"):
        with _named("ssl_ca_data", "…", "it is not a certificate in PEM form"):
            context.load_verify_locations(cadata=ca_data)
    if ciphers := settings.get("ssl_ciphers"):
        with _named("ssl_ciphers", ciphers, "OpenSSL knows none of these"):
            context.set_ciphers(ciphers)
    _check_own_certificate(context, settings)
    return context


def _check_own_certificate(context: ssl.SSLContext, settings: Mapping[str, Any]) -> None:
    certfile, keyfile = settings.get("ssl_certfile"), settings.get("ssl_keyfile")
    password = settings.get("ssl_password")
    if keyfile and not certfile:
        raise ConfigurationError("ssl_keyfile= needs ssl_certfile=, too")
    if not certfile:
        return
    for option, path in (("ssl_certfile", certfile), ("ssl_keyfile", keyfile)):
        if path:
            with _named(option, path, "it cannot be read"):
                Path(path).read_bytes()

    def ask() -> str:  # without a password OpenSSL would ask at the terminal, and wait
        if password is None:
            raise ConfigurationError(f"the key in {keyfile or certfile} is encrypted: set ssl_password=")
        return str(password)

    try:
        context.load_cert_chain(certfile, keyfile, ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            what = f"the key in {keyfile or certfile} does not belong to the certificate in {certfile}"
        elif password is not None:
            what = f"the key in {keyfile or certfile} cannot be read with this ssl_password="
        else:
            what = f"no certificate with its key, in PEM form, can be read from {certfile} and {keyfile or certfile}"
        raise ConfigurationError(what) from error


@contextmanager
def _named(option: str, value: str, otherwise: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise ConfigurationError(f"{option}={value}: {otherwise}") from error
    except OSError as error:
        raise ConfigurationError(f"{option}={value}: {error.strerror or otherwise}") from error


def tls_problem(error: BaseException) -> str | None:
    """Say what to change if an error of OpenSSL, which no retry fixes, is what led to this one."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    if found is None or any(word in (found.reason or "EOF") for word in _PASSING):
        return None
    if isinstance(found, ssl.SSLCertVerificationError):
        advice = _VERIFICATION.get(found.verify_code, "set ssl_ca_certs= to a file with the authority that signed it")
        return f"the server's certificate is not accepted ({found.verify_message.rstrip('.')}): {advice}"
    advice = next((text for part, text in _ADVICE.items() if part in found.reason), "check the ssl_ options")
    return f"no TLS connection ({found.reason}): {advice}"


def other_protocol(host: str, port: int, *, tls: bool, seconds: float) -> str | None:
    """Say what to write instead if a port that does not answer would answer without TLS, or with it.

    Nothing secret is sent.

    :param tls: what it was tried with.
    """
    with contextlib.suppress(OSError), socket.create_connection((host, port), seconds) as sock:
        if tls:
            sock.sendall(b"PING\r\n")
            if sock.recv(16).startswith((b"+PONG", b"-NOAUTH", b"-ERR", b"-NOPERM", b"-LOADING", b"-DENIED")):
                return "this port does not speak TLS: write redis://, or another port"
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            context.wrap_socket(sock).close()
        except ssl.SSLError as error:
            if "ALERT" not in (error.reason or ""):
                return None
        return "this port speaks TLS: write rediss://, or another port"
    return None


def refusal(host: str, port: int, context: ssl.SSLContext, *, seconds: float) -> str | None:
    """Say what to change if a server with TLS refuses us after the handshake.

    In TLS 1.3 a client is done with the handshake before the server has looked at its certificate. What it sends then
    may meet a connection that is closed already, and the alert that says why is never read. Nothing is sent here.

    :param context: with our certificate, if there is one. The server's, which was accepted, is not verified again.
    """
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), seconds) as sock, context.wrap_socket(sock) as inside:
            inside.recv(1)
    except ssl.SSLError as error:
        return tls_problem(error)
    except OSError:  # it says nothing, or is not there any more
        return None
    return None


def unasked(host: str, port: int, *, seconds: float) -> str:
    """Return the line that a server sends before it was asked anything; empty if it sends none."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), seconds) as sock:
        return sock.recv(256).decode(errors="replace").partition("\r")[0]
    return ""
