"""Metrics in a file, for node_exporter's textfile collector: what a cron job leaves behind when it has ended."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from owm_outbox.operations.metrics import Metrics

__all__ = ["write_textfile"]

log = logging.getLogger("owm_outbox.metrics")

_GROWS = ("counter", "histogram")
_KEPT = "owm_outbox_last_success_timestamp_seconds"  # by a call that does not succeed


def write_textfile(path: Path, metrics: Metrics, job: str) -> None:
    """Write the metrics of a call that has ended, added to those that the file has from earlier calls.

    Counters and histograms go on from where they were, so that ``increase()`` sees every call. The time of the last
    success stays until there is another one. The file is replaced in one step, and readable by everybody.

    :param job: becomes the label ``outbox_job``: a collector reads the files of all jobs of a machine.
    :raises OSError: the file cannot be written.
    """
    registry = CollectorRegistry()
    registry.register(_Together(metrics, _earlier(path), job))
    text = generate_latest(registry)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # a collector reads what ends with .prom
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _earlier(path: Path) -> Mapping[str, Metric]:
    """Return what the file has, by name; nothing, with a warning, if it cannot be read."""
    try:
        return {family.name: family for family in text_string_to_metric_families(path.read_text("utf-8"))}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, so its counters begin anew: %s", path, error)
        return {}


class _Together(Collector):
    """The metrics of this call, added to those of earlier ones."""

    def __init__(self, metrics: Metrics, earlier: Mapping[str, Metric], job: str) -> None:
        self._metrics = metrics
        self._earlier = earlier
        self._job = job

    def collect(self) -> Iterator[Metric]:
        """Yield each family, with the label of the job."""
        names = set()
        for family in self._metrics.registry.collect():
            names.add(family.name)
            yield self._added(family, self._earlier.get(family.name) if family.type in _GROWS else None)
        if _KEPT in self._earlier and _KEPT not in names:
            yield self._added(self._earlier[_KEPT], None)

    def _added(self, family: Metric, earlier: Metric | None) -> Metric:
        values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for source in (earlier, family):
            for sample in source.samples if source is not None else ():
                if not sample.name.endswith("_created"):
                    series = sample.name, tuple(sorted({**sample.labels, "outbox_job": self._job}.items()))
                    values[series] = values.get(series, 0) + sample.value
        result = Metric(family.name, family.documentation, family.type)
        for (name, labels), value in values.items():
            result.add_sample(name, dict(labels), value)
        return result
