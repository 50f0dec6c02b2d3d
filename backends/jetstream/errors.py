"""What errors of a server of NATS, of nats-py and of OpenSSL mean for the relay."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl

from nats import errors

from owm_outbox import ConfigurationError, OwmOutboxError, SinkUnavailable

from .address import Address

__all__ = ["JetStreamError", "meaning"]

_PROBE = 0.5  # seconds

# By words in what a server answers to who we say we are: what waiting does not fix.
_REFUSED = ("authorization violation", "authentication expired", "authentication revoked", "authorization failed")
# What OpenSSL reports where a connection was merely lost.
_LOST = ("EOF", "INTERNAL_ERROR", "USER_CANCEL", "CLOSE_NOTIFY", "SHUTDOWN")


class JetStreamError(Exception):
    """The server refused a request.

    :param code: the ``err_code`` of the answer.
    """

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code
        self.description = description


async def meaning(
    error: Exception, address: Address, host: str = "", port: int = 0, *, jetstream: bool = True
) -> OwmOutboxError:
    """Say what an error means for the relay.

    :param host: where no connection could be made; empty once there was one.
    :param jetstream: whether the server says that it has JetStream.
    """
    where = address.where if len(address.hosts) == 1 or not host else f"{address.where} ({host}:{port})"
    text = str(error).removeprefix("nats: ") or type(error).__name__
    if isinstance(error, OwmOutboxError):
        return ConfigurationError(f"{where}: {error}")
    if "permissions violation" in text:
        return ConfigurationError(f"{where}: the user lacks a right ({text}): let it {address.rights}")
    if any(words in text.lower() for words in _REFUSED):
        return ConfigurationError(
            f"{where}: the server refuses us ({text}): check user, password, token, creds= or nkey="
        )
    if isinstance(error, ssl.SSLError) and (advice := _tls_advice(error)):
        return ConfigurationError(f"{where}: {advice}")
    if isinstance(error, errors.NoRespondersError) and not jetstream:
        return ConfigurationError(f"{where}: JetStream is not enabled on the server: enable it, or use another one")
    if host and (found := await asyncio.get_running_loop().run_in_executor(None, _mistake, address, host, port)):
        return ConfigurationError(f"{where}: {found}")
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        text = f"no answer within {address.timeout:g} s"
    return SinkUnavailable(f"{where} cannot be used now ({text}); try again later")


def _tls_advice(error: ssl.SSLError) -> str | None:
    """Say what to change where no retry fixes an error of OpenSSL."""
    reason = error.reason or "EOF"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the server's certificate is not accepted ({error.verify_message.rstrip('.')}): "
            "set ca_file= to the authority that signed it, and write the host as the certificate has it"
        )
    if any(word in reason for word in _LOST):
        return None
    return (
        f"no TLS connection ({reason}): the server may want another certificate of ours: see cert_file= and key_file="
    )


def _mistake(address: Address, host: str, port: int) -> str | None:
    """Say what to change, where what listens there lets nobody in, and nats-py does not get to read why.

    A server of NATS speaks first; what speaks otherwise, or only when asked, is not one. And in TLS 1.3 a client is
    done with the handshake before the server has looked at its certificate: what it sends then may meet a connection
    that is closed already.
    """
    with contextlib.suppress(OSError), socket.create_connection((host, port), _PROBE) as sock:
        try:
            said = sock.recv(64)
        except TimeoutError:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            said = sock.recv(64)
        if said and not re.match(rb"INFO |-ERR ", said):
            return "what answers there is not a NATS server: check host and port"
        while said and not said.endswith(b"\r\n"):
            said = sock.recv(4096)
        if said and address.tls and address.certified:
            return _refused_certificate(address.tls, sock, host)
    return None


def _refused_certificate(context: ssl.SSLContext, sock: socket.socket, host: str) -> str | None:
    try:
        with context.wrap_socket(sock, server_hostname=host) as inside:
            inside.recv(1)
    except ssl.SSLError as error:
        return _tls_advice(error)
    return None
