"""What is only there with an extra, or an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from owm_outbox.errors import ConfigurationError
from owm_outbox.observer import Observer
from owm_outbox.outbox import OutboxStats

if TYPE_CHECKING:
    from owm_outbox.operations.metrics import Metrics

__all__ = ["metrics", "telemetry"]


def metrics(look: Callable[[], OutboxStats] | None, *, relays: bool = False) -> Metrics:
    """Return what counts; see `Metrics`.

    :raises ConfigurationError: the extra ``metrics`` is not installed.
    """
    try:
        from owm_outbox.operations.metrics import Metrics
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"metrics need their extra: pip install 'owm_outbox[metrics]' ({error})") from error
    return Metrics(look, relays=relays)


def telemetry(sink: str) -> Observer:
    """Return what makes spans.

    :param sink: its URL.
    :raises ConfigurationError: the extra ``otel`` is not installed.
    """
    try:
        from owm_outbox.operations.telemetry import Telemetry, destination_of
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"traces need their extra: pip install 'owm_outbox[otel]' ({error})") from error
    return Telemetry(*destination_of(sink))
