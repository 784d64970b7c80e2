"""Files that are not as they were left, and names that somebody else has taken: said, set aside, or left alone."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from stoker.errors import Conflict, StokerError
from stoker.types.serving import Deployment
from stoker.types.training import Job, Run
from stokerd.store import migrate
from tests.harness import STOKERD, Stokerd, wait_for
from tests.system.faults import census
from tests.system.faults.callers import Callers, ask
from tests.system.faults.jobs import job, start_run
from tests.system.faults.scene import Scene
from tests.system.loop import add_version, deployment

OLD_DATABASES = Path(__file__).parents[2] / "data"
QUICK = "restart: {limit: 100, backoff: 0.1s, backoff_cap: 0.5s, healthy_after: 0.5s}"


@pytest.fixture(scope="module")
def world(shared_scene: Scene) -> Scene:
    """One server of chat."""
    add_version(shared_scene, "one")
    shared_scene.apply(deployment(extra=QUICK))
    shared_scene.wait_phase(Deployment, "chat", "ready")
    shared_scene.wait_event("GatewayReady", "gateway")
    return shared_scene


@pytest.fixture
def bystander() -> Iterator[int]:
    """A process of somebody else: the leader of its own session. Ended afterwards."""
    process = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True, env={}, cwd="/")
    yield process.pid
    process.kill()
    process.wait()


def refuses_to_start(home: Path) -> tuple[int, str]:
    """The exit code of a daemon that can't start there, and what it said."""
    done = subprocess.run([STOKERD, "--home", home], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_a_recorded_pid_that_now_is_another_programs_is_never_signalled(
    world: Scene, shared: Scene, bystander: int
) -> None:
    """A server, a run and the gateway end while the daemon is away, their shims too, and their pids are given anew."""
    shared.apply(job("sleep 1000", "replaced"))
    start_run(shared, "replaced")
    shared.pid_of("run-replaced-1-1")
    processes = ["run-replaced-1-1", shared.process_of("chat-v1-0"), *shared.gateway_processes()]
    shared.kill()
    for found in census.look(shared.root):
        shared.kill_pid(found.pid)
    wait_for(lambda: not census.look(shared.root), "all are dead")
    for process in processes:
        record = shared.home.processes / process / "child.json"
        child = json.loads(record.read_text())
        for who in ("child", "shim"):
            child[who]["pid"] = bystander
        record.write_text(json.dumps(child))
        (record.parent / "stop.json").write_text('{"deadline": 0}')
    shared.start()
    shared.wait_phase(Run, "replaced-1", "failed", "lost")
    shared.wait_phase(Deployment, "chat", "ready")
    wait_for(lambda: shared.client.host().gateway_phase == "ready", "the gateway serves")
    assert census.lives(bystander)


def takes(squatter: socket.socket, port: int) -> bool:
    try:
        squatter.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def test_a_port_that_somebody_else_has_is_said_and_taken_when_it_is_free(world: Scene, shared: Scene) -> None:
    workers = [shared.pid_of(process) for process in shared.gateway_processes()]
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.kill()  # so that none is started again before the port is taken
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        wait_for(lambda: takes(squatter, shared.port), "the port is free: all threads of the gateway are dead")
        squatter.listen()
        shared.start()
        wait_for(lambda: "taken" in shared.client.host().gateway_message, "the daemon says that the port is taken")
        host = shared.client.host()
        assert host.gateway_phase == "backing-off"
        assert str(shared.port) in host.gateway_message
    wait_for(lambda: shared.client.host().gateway_phase == "ready", "the gateway takes the port when it is free")
    with shared.openai() as client:
        assert ask(client) == "I am one"


def damage(database: Path) -> None:
    """Spoil it with its write-ahead log, from which SQLite could mend it as long as the log has every page."""
    for path in (database, database.with_name(f"{database.name}-wal")):
        path.write_bytes(b"damaged " * 4096)


def test_a_damaged_metrics_db_is_set_aside_and_telemetry_goes_on(world: Scene, shared: Scene) -> None:
    wait_for(lambda: shared.client.request("GET", "/v1/series", params={"name": "host.*"}), "telemetry is kept")
    shared.kill()
    damage(shared.home.metrics_db)
    shared.start()
    wait_for(lambda: shared.client.request("GET", "/v1/series", params={"name": "host.*"}), "telemetry goes on")
    assert list(shared.root.glob("metrics.db.corrupt-*"))


def test_a_table_of_open_files_that_is_full_loses_nothing(world: Scene, shared: Scene) -> None:
    """A run is wanted while no file can be opened; it is done when they can."""
    assert shared.process is not None
    pid = shared.process.pid
    shared.apply(job("exit 0", "files"))
    shared.client.host()  # over a connection that stays open
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    run = ""
    with Callers(shared) as callers:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, before[1]))
        try:
            try:
                run = start_run(shared, "files")
            except StokerError as error:
                assert error.code != "internal", error  # refused in so many words
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(shared.home.socket))  # waits in the backlog
                callers.hear(30)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        wait_for(shared.is_up, "it answers again")
        run = run or start_run(shared, "files")
        shared.wait_phase(Run, run, "succeeded")
    callers.assert_heard_only("I am one")


@pytest.fixture
def quiet() -> Iterator[Stokerd]:
    """A daemon with a job, killed."""
    with Stokerd() as daemon:
        daemon.wait_event("GatewayReady", "gateway")
        daemon.terminate()
        daemon.start()  # which makes a backup
        daemon.apply("{kind: job, name: newest, command: [x]}")
        daemon.kill()
        yield daemon


def content(database: Path) -> dict[str, bytes]:
    """What is in the database and in its write-ahead log, which a kill has left."""
    files = (database, database.with_name(f"{database.name}-wal"))
    assert all(file.stat().st_size for file in files)
    return {file.name: file.read_bytes() for file in files}


def move_aside(database: Path, said: str) -> None:
    """Do what the hint says."""
    hint = said.partition("Move ")[2].split()
    for path in sorted(database.parent.glob(f"{database.name}*")):
        if str(path) in {word.rstrip(",;") for word in hint}:
            path.rename(path.with_name(f"damaged-{path.name}"))


def test_a_damaged_state_db_is_refused_and_the_newest_backup_named_and_good(quiet: Stokerd) -> None:
    home = quiet.home
    whole = home.state_db.read_bytes()
    home.state_db.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    damaged = content(home.state_db)
    code, said = refuses_to_start(quiet.root)
    newest = max(home.backups.glob("state-*.db"))
    assert (code, said.count("\n")) == (6, 1), said
    assert str(newest) in said
    assert content(home.state_db) == damaged
    move_aside(home.state_db, said)
    shutil.copy(newest, home.state_db)
    quiet.start()
    assert quiet.client.list(Job) == []  # newer than the backup


def test_what_a_kill_left_in_the_write_ahead_log_does_no_harm_to_a_backup_in_its_place(quiet: Stokerd) -> None:
    """The log belongs to the damaged file: whoever follows the hint moves it aside, too."""
    home = quiet.home
    log = home.state_db.with_name("state.db-wal")
    assert log.stat().st_size > 0
    size = home.state_db.stat().st_size
    with home.state_db.open("r+b") as file:
        file.write(b"\xff" * size)
    code, said = refuses_to_start(quiet.root)
    assert code == 6, said
    move_aside(home.state_db, said)
    assert not log.exists()
    shutil.copy(max(home.backups.glob("state-*.db")), home.state_db)
    quiet.start()
    with closing(sqlite3.connect(home.state_db)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ids = [e.id for e in quiet.events()]
    assert ids == list(range(1, len(ids) + 1))


def test_a_newer_schema_is_refused_and_left_alone(quiet: Stokerd) -> None:
    with closing(sqlite3.connect(quiet.home.state_db)) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
        db.commit()
        before = content(quiet.home.state_db)
    for name, kept in before.items():  # closing has moved the log into the database, which a kill doesn't
        (quiet.root / name).write_bytes(kept)
    code, said = refuses_to_start(quiet.root)
    assert (code, said.count("\n")) == (Conflict.exit_code, 1), said
    assert "9999" in said
    assert content(quiet.home.state_db) == before
    with closing(sqlite3.connect(quiet.home.state_db)) as db:
        db.execute("UPDATE alembic_version SET version_num = (SELECT ?)", (newest_revision(),))
        db.commit()
    quiet.start()
    assert [j.name for j in quiet.client.list(Job)] == ["newest"]


@pytest.mark.parametrize("dump", sorted(OLD_DATABASES.glob("state-*.sql")), ids=lambda p: p.stem)
def test_a_database_of_an_earlier_schema_is_upgraded_and_its_events_go_on(dump: Path) -> None:
    daemon = Stokerd()
    with closing(sqlite3.connect(daemon.home.state_db)) as db, db:
        db.executescript(dump.read_text())
        (before,) = db.execute("SELECT max(id) FROM event").fetchone()
    with daemon:
        daemon.wait_event("GatewayReady", "gateway", after=before)
        assert [e.id for e in daemon.events()][:before] == list(range(1, before + 1))
        (backup,) = daemon.home.backups.glob("state-*.db")
        assert backup.stem.endswith(dump.stem.removeprefix("state-"))
        daemon.kill()
        daemon.start()
        assert daemon.client.host().last_event_id > before


def newest_revision() -> str:
    return max(p.name[:4] for p in Path(migrate.__file__).with_name("migrations").glob("versions/0*.py"))
