"""The contracts as pytest classes: subclass one, give it a fixture, and it says whether your plugin keeps its promises.

For a sink::

    class TestCarrierPigeonSink(SinkContract):
        capabilities = Capabilities(interruptible=True, remote=True)

        @pytest.fixture
        def destination(self, tmp_path):
            loft = tmp_path / "loft"
            return Destination(
                open=lambda: CarrierPigeonSink(loft),
                payloads=lambda: read_payloads(loft),
                interrupt=lambda: full_disk(loft),
                unreachable=lambda: CarrierPigeonSink("/no/such/loft"),
            )

For an outbox::

    class TestDrawerOutbox(OutboxContract):
        capabilities = Capabilities(interruptible=True)

        @pytest.fixture
        def storage(self, tmp_path):
            drawer = tmp_path / "drawer"
            return Storage(open=lambda: DrawerOutbox(drawer), interrupt=lambda: full_disk(drawer))

For a job::

    class TestFleetJob(JobContract):
        @pytest.fixture
        def source(self):
            options = FleetJob.Options(trucks=250)
            return Source(open=lambda: FleetJob(options), keys=range(250))

The names and docstrings of the tests are the specification. What a backend cannot do, its `Capabilities` say: the
tests for it are then skipped, with the reason. Look at these reasons: a sink whose failures are not tested (no
``interruptible``, no ``remote``) may lose tasks and pass all the same. `full_disk`, `cut_requests` and
`lose_replies` are failures that suit many.

What is durable is also killed: some tests fork this process, open the backend in the child, and kill that with SIGKILL
at one call after the other.

So that ``owm-outbox check`` can run a contract against a live URL, register a function in the entry-point group
``owm_outbox.scratch_sinks`` or ``owm_outbox.scratch_outboxes``, under the name of your scheme: it takes the `URL` and
returns a context manager of a `Destination` or a `Storage` next to what the URL names. Without a way to make it fail,
the check ends with 65: it says nothing about failures.

Needs pytest, which this package does not install. Versions follow the package's: a minor one may add tests for what the
docstrings of `Sink` and `Outbox` already say, a new field of `Capabilities` only with a default that asks nothing more
of you.
"""

import pkgutil

import pytest

# Before any of them is imported: so that a failed comparison shows its values.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from owm_outbox.testing.capabilities import Capabilities  # noqa: E402 - see above
from owm_outbox.testing.destination import Destination  # noqa: E402 - see above
from owm_outbox.testing.failures import cut_requests, full_disk, lose_replies  # noqa: E402 - see above
from owm_outbox.testing.job_contract import JobContract  # noqa: E402 - see above
from owm_outbox.testing.outbox_contract import OutboxContract  # noqa: E402 - see above
from owm_outbox.testing.parcels import Parcel, ParcelJob, parcel_batch, parcel_mark  # noqa: E402 - see above
from owm_outbox.testing.sink_contract import SinkContract  # noqa: E402 - see above
from owm_outbox.testing.source import Source  # noqa: E402 - see above
from owm_outbox.testing.storage import Storage  # noqa: E402 - see above

__all__ = [
    "Capabilities",
    "Destination",
    "JobContract",
    "OutboxContract",
    "Parcel",
    "ParcelJob",
    "SinkContract",
    "Source",
    "Storage",
    "cut_requests",
    "full_disk",
    "lose_replies",
    "parcel_batch",
    "parcel_mark",
]
