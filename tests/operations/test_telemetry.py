"""Traces: from an application's request over its append to the batch's send, as a receiver of OTLP gets them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from owm_outbox import ConfigurationError
from owm_outbox.operations.telemetry import destination_of

from support.commands import environment, run
from support.servers import Server
from support.weather import made_up, serving

pytestmark = pytest.mark.slow

# What an application does: it brings the SDK, and calls what it wants to call.
SDK = """
from opentelemetry import metrics, propagate, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

tracing = TracerProvider()
tracing.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(tracing)
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
"""


class Receiver:
    """Takes what exporters send."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.spans: list[Span] = []
        self.metrics: dict[str, Any] = {}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Run a receiver of OTLP over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for of_scope in of_resource.scope_spans:
                        found.spans.extend(of_scope.spans)
            else:
                for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    for scope in resource.scope_metrics:
                        found.metrics.update({metric.name: metric for metric in scope.metrics})
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(server.server_address[1])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def attributes(span: Span) -> dict[str, Any]:
    """Return a span's attributes as plain values."""
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


def application(code: str, receiver: Receiver) -> None:
    """Run an application with an SDK, to its end, when the SDK sends what it has."""
    subprocess.run(
        [sys.executable, "-c", SDK + textwrap.dedent(code)],
        env=environment(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_SERVICE_NAME="shop"),
        check=True,
        timeout=60,
    )


def test_from_a_request_to_its_batch(receiver: Receiver, server: Server, stream: str, tmp_path: Path) -> None:
    """Two requests append; the batch that delivers both has a link to each, by what is stored with the tasks."""
    application(
        f"""
        from dataclasses import dataclass
        from uuid import UUID, uuid4
        from owm_outbox import OutboxRelay
        from owm_outbox.operations.telemetry import Telemetry, destination_of
        from owm_outbox.plugins import open_outbox, open_sink

        @dataclass
        class Ship:
            task_id: UUID

        sink_url = {server.url(stream)!r}
        with open_outbox("sqlite:///{tmp_path}/shop.db") as outbox, open_sink(sink_url) as sink:
            for number in range(2):
                with trace.get_tracer("shop").start_as_current_span("POST /orders"):
                    headers = {{}}
                    propagate.inject(headers)
                    outbox.append([Ship(uuid4()), Ship(uuid4())], headers=headers)
            outbox.append([Ship(uuid4())])
            OutboxRelay(outbox, sink, observers=[Telemetry(*destination_of(sink_url))]).drain()
        """,
        receiver,
    )
    requests = {span.span_id: span for span in receiver.spans if span.name == "POST /orders"}
    (sent,) = [span for span in receiver.spans if span.name == f"send {stream}"]
    assert len(requests) == 2
    assert [link.trace_id for link in sent.links] == [requests[link.span_id].trace_id for link in sent.links]
    assert {link.span_id for link in sent.links} == set(requests)
    assert sent.kind == Span.SPAN_KIND_PRODUCER
    assert attributes(sent) == {
        "messaging.system": "redis",
        "messaging.destination.name": stream,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.batch.message_count": 5,
    }
    assert 0 < sent.end_time_unix_nano - sent.start_time_unix_nano < 30 * 10**9
    (point,) = receiver.metrics["messaging.client.sent.messages"].sum.data_points
    assert point.as_int == 5
    (took,) = receiver.metrics["messaging.client.operation.duration"].histogram.data_points
    assert took.count == 1


def test_a_run_is_one_trace(receiver: Receiver, server: Server, stream: str, tmp_path: Path) -> None:
    """The command makes a span of the run, with those of its requests and batches below it; failures are errors."""
    with serving(made_up(250)) as api:
        application(
            f"""
            import sys
            from owm_outbox.cli import producer

            sys.argv = [
                "owm-producer", "--traces", "--api-url", {api.url!r}, "--outbox", "sqlite:///{tmp_path}/t.db",
                "--sink", {server.url(stream)!r}, "--batch-size", "100",
            ]
            producer()
            """,
            receiver,
        )
    (whole,) = [span for span in receiver.spans if span.name == "run owm"]
    inner = [span for span in receiver.spans if span is not whole]
    assert {span.trace_id for span in inner} == {whole.trace_id}
    assert {span.parent_span_id for span in inner} == {whole.span_id}
    requests = [span for span in inner if span.name == "GET"]
    assert len(requests) == 4
    assert {attributes(span)["http.response.status_code"] for span in requests} == {200}
    batches = [span for span in inner if span.name == f"send {stream}"]
    assert sum(attributes(span)["messaging.batch.message_count"] for span in batches) == 250
    found = attributes(whole)
    assert (found["owm_outbox.job"], found["owm_outbox.extracted"], found["owm_outbox.pending"]) == ("owm", 250, 0)
    assert whole.status.code != Status.STATUS_CODE_ERROR


def test_a_run_that_fails_is_an_error(receiver: Receiver, tmp_path: Path) -> None:
    """A source that is down is an error of the run, and of each request."""
    application(
        f"""
        import sys
        from owm_outbox.cli import producer

        sys.argv = [
            "owm-producer", "--traces", "--api-url", "http://127.0.0.1:9", "--retry-wait", "0.01",
            "--outbox", "sqlite:///{tmp_path}/t.db", "--sink", "jsonl:{tmp_path}/out",
        ]
        try:
            producer()
        except SystemExit as end:
            assert end.code == 75
        """,
        receiver,
    )
    (whole,) = [span for span in receiver.spans if span.name == "run owm"]
    requests = [span for span in receiver.spans if span.name == "GET"]
    assert len(requests) == 5
    assert {span.status.code for span in [whole, *requests]} == {Status.STATUS_CODE_ERROR}
    assert {attributes(span)["error.type"] for span in requests} == {"no page"}


def test_without_an_sdk_nothing_happens(tmp_path: Path) -> None:
    """The API alone makes no spans, and the run ends as without them."""
    with serving(made_up(3)) as api:
        args = ("--api-url", api.url, "--outbox", f"sqlite:///{tmp_path}/t.db", "--sink", f"jsonl:{tmp_path}/out")
        done = run("owm-producer", *args, "--traces")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("sink", "found"),
    [
        ("redis://u:p@host:6379/0?stream=tasks&maxlen=3", ("redis", "tasks")),
        ("postgresql://host/db?table=jobs", ("postgresql", "jobs")),
        ("jsonl:/var/tasks.jsonl", ("jsonl", "var/tasks.jsonl")),
        ("jsonl:-", ("jsonl", "-")),
        ("carrier-pigeon:", ("carrier-pigeon", "carrier-pigeon")),
    ],
)
def test_the_name_of_a_destination(sink: str, found: tuple[str, str]) -> None:
    """It is what the sink's own option says, or the path; never a secret."""
    assert destination_of(sink) == found


def test_no_url_has_no_destination() -> None:
    """What is no URL is refused as everywhere."""
    with pytest.raises(ConfigurationError):
        destination_of("nothing")
