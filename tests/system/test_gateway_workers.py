"""The gateway's workers under a real daemon: how they are replaced, and that none holds up the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from stoker.types.serving import CommandEngine, Deployment, DeploymentSpec
from stokerd.config import DaemonConfig
from stokerd.gateway.wire import ShadowPair
from stokerd.processes.environment import inherited
from stokerd.processes.states import Alive, Command
from stokerd.processes.supervisor import Supervisor
from stokerd.reconciler import Reconciler
from stokerd.serving.gateway import PROCESS_PREFIX, GatewayLink
from stokerd.store.migrate import migrate
from stokerd.store.store import Store
from stokerd.telemetry.metrics import Metrics
from tests.harness import DEADLINE, Stokerd, wait_for
from tests.system.certificates import certificate, needs_openssl
from tests.system.loop import People, add_version, asking, deployment
from tests.system.upstream import Knockers

SERVER = """
import signal, socket, sys, time
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", int(sys.argv[1])))
sock.listen()
def end(*_):
    sock.close()
    time.sleep(3)  # something is in flight
    sys.exit()
signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
"""


@pytest.fixture
def daemon() -> Iterator[Stokerd]:
    with Stokerd() as running:
        running.wait_event("GatewayReady", "gateway")
        wait_for(lambda: len(workers(running)) == 2 and at_rest(running), "both workers serve")
        yield running


def workers(daemon: Stokerd) -> dict[str, int]:
    """The pids of the gateway's processes by their ids, former ones included."""
    supervisor = Supervisor(daemon.home.processes)
    try:
        found = {p: supervisor.observe(p) for p in supervisor.ids() if p.startswith(PROCESS_PREFIX)}
    finally:
        supervisor.close()
    return {p: o.pid for p, o in found.items() if isinstance(o, Alive) and o.pid is not None}


def at_rest(daemon: Stokerd) -> bool:
    host = daemon.client.host()
    return (host.gateway_phase, host.gateway_message) == ("ready", "")


def restart(daemon: Stokerd, change: Callable[[str], str]) -> None:
    """Have the daemon start again with changed settings."""
    daemon.kill()
    daemon.home.config.write_text(change(daemon.home.config.read_text()))
    daemon.start()


def wait_replaced(daemon: Stokerd, before: set[str], count: int) -> None:
    """Wait until *count* others serve, and those *before* are gone."""
    wait_for(lambda: not before & set(workers(daemon)), "the former workers are gone")
    wait_for(lambda: len(workers(daemon)) == count and at_rest(daemon), "the new workers serve")


def test_changed_settings_replace_all_workers_without_a_refused_connection(daemon: Stokerd) -> None:
    before = set(workers(daemon))
    with Knockers(("127.0.0.1", daemon.port)) as knockers:
        knockers.more(100)
        restart(daemon, lambda text: text.replace("serving: {", "serving: {first_byte_timeout: 500, "))
        wait_replaced(daemon, before, 2)
        knockers.more(100)
    assert set(knockers.heard) == {"200"}, knockers.heard
    assert "taken over" in (daemon.home.gateway / "log").read_text()
    assert "taken over" in (daemon.home.gateway / "log-1").read_text()
    assert sorted(path.name for path in daemon.home.sockets.iterdir()) == sorted(
        f"{p.replace('w2-', '')}.sock{suffix}" for p in workers(daemon) for suffix in ("", ".hand")
    )


@needs_openssl
def test_workers_with_a_certificate_are_replaced_without_a_refused_or_broken_connection(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "one")
    trust = ssl.create_default_context(cafile=str(cert))
    settings = f"tls_certificate: {cert}, tls_key: {key}}}\n"
    with Stokerd() as daemon:
        restart(daemon, lambda text: text.replace("}\n", f", {settings}", 1))
        wait_for(lambda: len(workers(daemon)) == 2 and at_rest(daemon), "both workers serve")
        assert daemon.client.host().gateway.startswith("https://")
        go = tmp_path / "go"
        add_version(daemon, "one", until=str(go))
        daemon.apply(deployment())
        wait_for(lambda: daemon.client.request("GET", "/v1/deployments/chat")["phase"] == "ready", "it serves")
        url, before = f"https://127.0.0.1:{daemon.port}/v1", set(workers(daemon))
        body = {"model": "chat", "stream": True, **asking()}
        with (
            Knockers(("127.0.0.1", daemon.port), trust=trust) as knockers,
            httpx.Client(verify=trust, timeout=DEADLINE) as client,
            client.stream("POST", f"{url}/chat/completions", json=body) as stream,
        ):
            lines = stream.iter_lines()
            next(lines)
            knockers.more(30)
            restart(daemon, lambda text: text.replace("serving: {", "serving: {first_byte_timeout: 500, "))
            wait_for(lambda: set(workers(daemon)) - before, "new workers serve")
            knockers.more(30)
            go.touch()
            assert "data: [DONE]" in list(lines), "a stream that began before goes on to its end"
            wait_replaced(daemon, before, 2)
            knockers.more(30)
        assert set(knockers.heard) == {"200"}, knockers.heard


def test_another_number_of_workers_refuses_nobody_either(daemon: Stokerd) -> None:
    with Knockers(("127.0.0.1", daemon.port)) as knockers:
        knockers.more(100)
        for count in (1, 3):
            before = set(workers(daemon))
            restart(daemon, lambda _, count=count: f"gateway: {{port: {daemon.port}, workers: {count}}}\n")  # type: ignore[misc]
            wait_replaced(daemon, before, count)
            knockers.more(100)
    assert set(knockers.heard) == {"200"}, knockers.heard


def test_new_workers_that_cannot_serve_leave_the_former_ones_alone(daemon: Stokerd) -> None:
    before = workers(daemon)
    settings = f"gateway: {{port: {daemon.port}, tls_certificate: none.pem}}\n"
    restart(daemon, lambda _: settings)
    failed = daemon.wait_event("GatewayFailed", "gateway")
    assert "none.pem" in failed.message
    wait_for(lambda: "former ones" in daemon.client.host().gateway_message, "it is said who serves")
    assert daemon.client.host().gateway_phase == "ready"
    with daemon.openai() as client:
        assert client.get("/models").status_code == 200
    add_version(daemon, "one")
    daemon.apply(deployment())
    daemon.wait_phase(Deployment, "chat", "ready")
    with daemon.openai() as client:  # they follow the table as ever
        assert [m["id"] for m in client.get("/models").json()["data"]] == ["chat"]
    assert {p: pid for p, pid in workers(daemon).items() if p in before} == before


def test_the_answers_of_a_shadow_reach_the_daemon_from_all_workers(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    add_version(daemon, "two")
    daemon.apply(deployment())
    daemon.wait_phase(Deployment, "chat", "ready")
    steps = "[{type: shadow, percent: 100, min_requests: 1000000, max_duration: 3600s}]"
    daemon.apply(
        f"{{kind: rollout, name: r, deployment: chat, to: two, steps: {steps}, guards: [], keep_answers: true}}"
    )
    daemon.wait_event("RolloutStepped", "r")
    with People(daemon) as people:
        wait_for(lambda: people.answers.total() > 20, "people are answered")

        def pairs() -> list[ShadowPair]:
            metrics = Metrics(daemon.home.metrics_db, max_age_seconds=86400, max_bytes=1 << 30)
            try:
                return asyncio.run(metrics.pairs("r", since=0.0, limit=1000))
            finally:
                metrics.close()

        kept = wait_for(lambda: found if len(found := pairs()) > 5 else None, "pairs are kept")
    assert {(pair.stable.text, pair.shadow.text) for pair in kept} == {("I am one", "I am two")}
    assert all(pair.question.startswith("Hi ") for pair in kept)
    assert len({pair.question for pair in kept}) > 1


def test_a_gateway_of_the_first_version_is_replaced(daemon: Stokerd) -> None:
    daemon.kill()
    supervisor = Supervisor(daemon.home.processes)
    for process in supervisor.ids():
        supervisor.stop(process, 1.0)
    wait_for(lambda: not workers(daemon), "the workers end")
    for process in supervisor.ids():
        supervisor.forget(process)
    old = f"{PROCESS_PREFIX}0123abcd"
    argv = (sys.executable, "-c", SERVER, str(daemon.port))
    supervisor.start(old, Command(argv, str(daemon.root), inherited(os.environ), str(daemon.root / "old.log")))
    wait_for(lambda: isinstance(supervisor.observe(old), Alive), "the old one runs")
    supervisor.close()
    daemon.start()
    wait_for(lambda: len(workers(daemon)) == 2 and at_rest(daemon), "the new ones serve")
    with daemon.openai() as client:
        assert client.get("/models").status_code == 200
    wait_for(lambda: not (daemon.home.processes / old).exists(), "nothing is left of the old one")


@contextlib.asynccontextmanager
async def linked(daemon: Stokerd) -> AsyncIterator[tuple[GatewayLink, Store]]:
    """The daemon's own part for the gateway, in here, in place of a daemon that ended."""
    migrate(daemon.home.state_db, daemon.home.backups)
    with contextlib.ExitStack() as stack:
        store = Store(daemon.home.state_db)
        stack.callback(store.close)
        metrics = Metrics(daemon.home.metrics_db, max_age_seconds=86400, max_bytes=1 << 30)
        stack.callback(metrics.close)
        supervisor = Supervisor(daemon.home.processes)
        stack.callback(supervisor.close)
        supervisor.adopt()
        config = DaemonConfig.model_validate({"gateway": {"port": daemon.port}})
        link = GatewayLink(daemon.home, config.gateway, config.serving.first_byte_timeout, store, supervisor, metrics)
        running = asyncio.gather(link.run(), Reconciler("gateway", link.step).run())
        try:
            await _until(lambda: link.phase == "ready" and not link.message and link.acknowledged is not None)
            yield link, store
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await link.close()


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not is_so():  # noqa: ASYNC110 (another process does it)
            await asyncio.sleep(0.01)


def a_deployment(name: str) -> Deployment:
    engine = CommandEngine(type="command", command=["x"])
    spec = DeploymentSpec(kind="deployment", name=name, model="m", version=1, engine=engine)
    return Deployment(name=name, spec=spec, version=1)


async def models(port: int) -> int:
    """How many models a worker, any of them, knows of."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return len((await client.get(f"http://127.0.0.1:{port}/v1/models")).json()["data"])


def test_a_worker_that_hangs_or_is_dead_holds_up_no_other(daemon: Stokerd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stokerd.serving.gateway._PUSH_SECONDS", PATIENCE_SECONDS)
    daemon.terminate()
    asyncio.run(_hold_up(daemon))


PATIENCE_SECONDS = 4.0  # much, to be told from a machine that is slow; the worker itself is asked for 5
SOON_SECONDS = 3.0


async def _hold_up(daemon: Stokerd) -> None:
    async with linked(daemon) as (link, store):
        pids = list(workers(daemon).values())
        control = sorted(daemon.home.sockets.glob("gateway-0-*.sock"))[0]
        transport = httpx.AsyncHTTPTransport(uds=str(control))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as worker:

            async def known() -> int:
                return int((await worker.get("/state")).json()["table_version"])

            os.kill(pids[1], signal.SIGSTOP)
            try:
                for number in range(3):
                    before = await known()
                    await store.write(lambda tx, n=number: tx.save(a_deployment(f"d{n}"), "Made", "made"))  # type: ignore[misc]
                    begin = time.monotonic()
                    push = asyncio.create_task(link.push())
                    while await known() == before:  # noqa: ASYNC110 (another process does it)
                        await asyncio.sleep(0.001)
                    took = time.monotonic() - begin
                    with pytest.raises(httpx.HTTPError, match="worker 1"):
                        await push
                    assert took < SOON_SECONDS
                    assert number == 0 or time.monotonic() - begin < SOON_SECONDS, "it knows then"
                    assert link.acknowledged is None
            finally:
                os.kill(pids[1], signal.SIGCONT)
            await _until(lambda: link.acknowledged is not None)
            os.kill(pids[1], signal.SIGKILL)
            await store.write(lambda tx: tx.save(a_deployment("last"), "Made", "made"))
            before = await known()
            begin = time.monotonic()
            with contextlib.suppress(httpx.HTTPError):
                await link.push()
            assert time.monotonic() - begin < SOON_SECONDS
            assert await known() > before
            await _until(lambda: link.acknowledged is not None and not link.message)
            table = json.loads((daemon.home.gateway / "routes.json").read_text())
            assert len(table["routes"]) == 4
            assert await models(daemon.port) == 4
