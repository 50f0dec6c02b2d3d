"""Patience: what counts as waiting for a server too long."""

from __future__ import annotations

import socket

import pytest

from owm_outbox_backends.postgresql.patience import Patience


def test_a_wait_within_a_wait_does_not_end_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is waited on is cut, also after an inner block; one that is not is left alone."""
    monkeypatch.setattr(Patience, "longest", -1.0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(0)
        patience = Patience()
        patience.attach(ours.fileno())
        patience.look()
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        with patience.waiting():
            with patience.waiting():
                pass
            patience.look()
            assert theirs.recv(1) == b""
        patience.detach()
