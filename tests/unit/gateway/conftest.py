from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.upstream import GatewayProcess, Replica


@pytest.fixture(scope="session")
def running_gateway() -> Iterator[GatewayProcess]:
    limits = ["eject_seconds=0.2", "body_bytes=2000000", "header_bytes=16384", "shadow_in_flight=3"]
    limits += ["upstream_idle_seconds=600", "stale_seconds=600"]  # a replica here may be slow to close its connection
    with GatewayProcess(*limits) as gateway:
        yield gateway


@pytest.fixture
def gateway(running_gateway: GatewayProcess) -> GatewayProcess:
    """The one gateway of these tests, with no records left from the test before."""
    running_gateway.forget()
    return running_gateway


@pytest.fixture(scope="session")
def running_replica() -> Iterator[Replica]:
    with Replica(1) as replica:
        yield replica


@pytest.fixture
def replica(running_replica: Replica) -> Replica:
    running_replica.seen.clear()
    return running_replica
