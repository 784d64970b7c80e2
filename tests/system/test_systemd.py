"""The daemon as a service of a real systemd, by the unit that `stoker install-service` writes."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker.client import Client
from stoker.paths import Home
from stoker.types.serving import Deployment, Replica
from stoker.types.training import Run
from tests import systemd_box
from tests.harness import Stokerd, free_port, wait_for
from tests.system.loop import CHAT, People, add_version, say, serve
from tests.systemd_box import CHECKOUT, SystemdBox

BIN = Path(sys.executable).parent
ALIVE = frozenset({"shim", "child"})
RUN = "{kind: job, name: long, command: [sleep, '3600'], timeout: 2h}"

pytestmark = pytest.mark.skipif(bool(systemd_box.reason_against()), reason=systemd_box.reason_against())


class Service(Stokerd):
    """The daemon in a box: of the default home, which is private there, and seen from here through /proc."""

    def __init__(self, box: SystemdBox, bin: Path = BIN) -> None:
        self.box, self.bin = box, bin
        self.root = box.folder
        self.home = Home(box.path("/var/lib/stoker"), box.path("/run/stoker"))
        self.port = free_port()
        self.process = None
        self.home.root.mkdir(exist_ok=True)
        self.home.config.write_text(f"gateway: {{port: {self.port}}}\n")
        self.client = Client(self.home.socket)

    @property
    def log(self) -> str:
        return self.box.journal("-u", "stokerd.service", "-o", "cat")

    def install(self, *options: str) -> str:
        return self.box.run(self.bin / "stoker", "install-service", *options).stdout

    def start(self) -> None:
        self.box.systemctl("start", "stokerd")

    def close(self) -> None:
        self.client.close()

    def is_up(self) -> bool:
        return self.listens() and bool(self.client.host())

    @property
    def pid(self) -> int:
        """The daemon's, as the inside counts."""
        return int(self.box.shows("stokerd", "MainPID"))

    def children(self) -> dict[str, tuple[int, int]]:
        """Shims and programs that were started and live: their pids, and when they were started."""
        found = {}
        for record in self.home.processes.glob("*/child.json"):
            told: dict[str, Any] = json.loads(record.read_text())
            for role in ALIVE:
                pid = told[role]["pid"]
                if self.box.start_ticks(pid) == told[role]["start_ticks"]:
                    found[f"{record.parent.name} {role}"] = (pid, told[role]["start_ticks"])
        return found

    def load(self, **behaviour: Any) -> dict[str, tuple[int, int]]:
        """Serve a deployment, let a run go on; return the children: two for each of 2 workers, replica and run."""
        add_version(self, "one", **behaviour)
        serve(self)
        self.apply(RUN)
        self.client.request("POST", "/v1/jobs/long/runs", json={})
        self.wait_phase(Run, "long-1", "running")
        return wait_for(lambda: c if len(c := self.children()) == 8 else None, "8 processes")

    def wait_replaced(self, pid: int) -> None:
        """Wait until another process than *pid* is the daemon, and answers."""
        wait_for(lambda: self.pid not in (0, pid), f"the daemon is replaced:\n{self.log}")
        wait_for(lambda: self.box.shows("stokerd", "ActiveState") == "active", f"it is active:\n{self.log}")

    def assert_untouched(self, children: dict[str, tuple[int, int]], of: str = "") -> None:
        """The same processes (whose names begin with *of*) run, and the daemon knows them for what they are."""
        with self.openai() as client:
            assert say(client) == "I am one"
        self.wait_phase(Deployment, "chat", "ready")
        assert self.client.get(Replica, "chat-v1-0").starts == 1
        run = self.client.get(Run, "long-1")
        assert (run.phase, run.attempt) == ("running", 1)
        found = {name: pids for name, pids in self.children().items() if name.startswith(of)}
        assert found == {name: pids for name, pids in children.items() if name.startswith(of)}


@pytest.fixture
def box() -> Iterator[SystemdBox]:
    with SystemdBox() as booted:
        yield booted


@pytest.fixture
def service(box: SystemdBox) -> Iterator[Service]:
    service = Service(box)
    yield service
    service.close()


def test_it_is_active_when_it_answers_and_not_before(service: Service) -> None:
    told = service.install()
    assert "/etc/systemd/system/stokerd.service written" in told
    assert "systemctl enable --now stokerd.service" in told
    service.box.systemctl("start", "--no-block", "stokerd")
    while (state := service.box.shows("stokerd", "ActiveState")) != "active":
        assert state in ("inactive", "activating"), service.log
    assert service.client.host().pid == service.pid
    assert service.box.shows("stokerd", "StatusText") == "serves /run/stoker/stoker.sock"
    # Twice says so; a changed unit is shown, written anew and taken up.
    assert "the unit is as it should be" in service.install()
    unit = service.box.path("/etc/systemd/system/stokerd.service")
    text = unit.read_text()
    unit.write_text(text.replace("WatchdogSec=30", "WatchdogSec=5"))
    told = service.install("--now")
    assert "-WatchdogSec=5" in told
    assert "+WatchdogSec=30" in told
    assert unit.read_text() == text
    assert service.box.shows("stokerd", "UnitFileState") == "enabled"
    assert service.box.shows("stokerd", "NeedDaemonReload") == "no"
    service.wait_event("GatewayReady", "gateway")
    told = json.loads(service.box.run(service.bin / "stoker", "doctor", "--json").stdout)
    levels = {f["name"]: f["level"] for f in told}
    assert [levels[n] for n in ("daemon", "gateway", "systemd")] == ["ok"] * 3, told
    # Nothing of systemd's word with the daemon reaches those that it starts.
    for pid, _ in service.children().values():
        environment = service.box.path(f"/proc/{pid}/environ").read_text()
        assert not [n for n in ("NOTIFY_SOCKET", "WATCHDOG", "LISTEN_", "JOURNAL_STREAM") if n in environment]


def test_a_restart_leaves_runs_replicas_and_streams_as_they_are(service: Service) -> None:
    service.install("--now")
    finish = service.root / "finish"
    children = service.load(hold=str(finish))
    events, pid = service.events(), service.pid
    with (
        service.openai() as client,
        client.stream("POST", "/chat/completions", json={**CHAT, "stream": True}) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        first = next(lines)
        service.box.systemctl("restart", "stokerd")
        assert service.pid not in (0, pid)
        assert service.client.host().pid == service.pid
        finish.touch()
        chunks = [first, *lines]
    assert chunks.pop() == "data: [DONE]"
    assert [json.loads(c[6:])["choices"][0]["delta"]["content"] for c in chunks] == ["I ", "am ", "one "]
    service.assert_untouched(children)
    after = service.events()
    assert after[: len(events)] == events
    assert [e.id for e in after] == list(range(1, len(after) + 1))


def test_a_daemon_that_hangs_or_is_killed_is_replaced_and_its_children_live_on(service: Service) -> None:
    service.install()
    drop_in = service.box.path("/etc/systemd/system/stokerd.service.d/quick.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nWatchdogSec=4\n")
    service.box.systemctl("daemon-reload")
    service.start()
    children = service.load()
    pid = service.pid
    service.box.run("kill", "-KILL", str(pid))
    service.wait_replaced(pid)
    service.assert_untouched(children)
    pid = service.pid
    service.box.run("kill", "-STOP", str(pid))
    service.wait_replaced(pid)
    service.assert_untouched(children)
    assert "Fatal Python error: Aborted" in service.log  # where it hung
    assert service.box.shows("stokerd", "NRestarts") == "2"
    assert "Watchdog timeout" in service.box.journal("-u", "stokerd")


def make_installation(folder: Path, version: str) -> None:
    """An environment with Stoker of another *version*, as `pip install` would leave it; dependencies are borrowed."""
    site = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    if not site.exists():
        site.mkdir(parents=True)
        (folder / "bin").mkdir()
        (folder / "bin" / "python").symlink_to(sys.executable)
        base = Path(sys._base_executable).parent  # type: ignore[attr-defined]
        (folder / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
        (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
        for name, module in (("stoker", "stoker.cli.main"), ("stokerd", "stokerd.main")):
            script = folder / "bin" / name
            script.write_text(f"#!{folder}/bin/python -P\nfrom {module} import main\nmain()\n")
            script.chmod(0o755)
    for source in ("shared/stoker", "daemon/stokerd"):
        name = Path(source).name
        shutil.rmtree(site / name, ignore_errors=True)
        shutil.copytree(CHECKOUT / source, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    package = site / "stoker" / "__init__.py"
    text = package.read_text()
    assert '__version__ = "' in text
    package.write_text(f'{text}\n__version__ = "{version}"\n')


def test_an_upgrade_of_the_package_leaves_servers_and_runs_alone_and_replaces_the_gateway_without_a_gap(
    box: SystemdBox,
) -> None:
    make_installation(box.folder / "v", "7.0.0")
    service = Service(box, box.folder / "v" / "bin")
    with contextlib.closing(service):
        service.install("--now")
        assert f"ExecStart={box.folder}/v/bin/stokerd\n" in box.systemctl("cat", "stokerd")
        children = service.load()
        assert service.client.host().version == "7.0.0"
        former = {name for name in children if name.startswith("gateway-")}

        def is_replaced() -> bool:
            workers = {name for name in service.children() if name.startswith("gateway-")}
            return len(workers) == len(former) and not workers & former

        with People(service) as people:
            make_installation(box.folder / "v", "8.0.0")
            box.systemctl("restart", "stokerd")
            assert service.client.host().version == "8.0.0"
            wait_for(is_replaced, "workers of the new version have taken over from those of the old one")
            asked = people.answers.total()
            wait_for(lambda: people.answers.total() > asked + 20, "people are answered by them")
        assert set(people.answers) == {"I am one"}, "nobody was refused or cut off on the way"
        for kind in ("replica-", "run-"):
            service.assert_untouched(children, kind)


def test_stop_leaves_children_by_design_and_there_is_a_command_that_ends_them(service: Service) -> None:
    service.install("--now")
    children = service.load()
    service.box.systemctl("stop", "stokerd")
    assert service.children() == children
    assert not service.listens()
    with service.openai() as client:
        assert say(client) == "I am one"
    service.start()
    service.assert_untouched(children)
    service.box.systemctl("stop", "stokerd")
    assert f"`{BIN}/stokerd --end`" in service.box.systemctl("cat", "stokerd")
    service.box.run(BIN / "stokerd", "--end")
    assert service.children() == {}


def test_systemd_can_listen_for_the_daemon(service: Service) -> None:
    service.install("--socket")
    service.box.systemctl("enable", "--now", "stokerd.socket")
    assert service.box.shows("stokerd", "ActiveState") == "inactive"
    assert service.client.host().pid == service.pid  # the first caller starts it, and waits for it
    service.wait_event("GatewayReady", "gateway")
    children = service.children()
    service.box.systemctl("stop", "stokerd")
    assert service.home.socket.is_socket()
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(service.home.socket))  # nobody is refused meanwhile
        wait_for(lambda: service.box.shows("stokerd", "ActiveState") == "active", "the caller starts it again")
    pid = service.pid
    service.box.systemctl("restart", "stokerd")
    assert service.client.host().pid == service.pid != pid
    assert service.children() == children
    # From one that listens itself to this, and at boot the daemon doesn't wait for a caller.
    service.box.systemctl("stop", "stokerd.socket", "stokerd.service")
    assert "stokerd.socket is of an earlier --socket" in service.install("--now")
    service.install("--socket", "--now")
    for unit in ("stokerd.socket", "stokerd.service"):
        states = [service.box.shows(unit, name) for name in ("ActiveState", "UnitFileState")]
        assert states == ["active", "enabled"]
    assert service.children() == children


def test_what_is_wrong_is_in_the_journal_with_its_priority_and_is_not_tried_forever(service: Service) -> None:
    service.install("--now")
    service.box.systemctl("stop", "stokerd")
    service.home.config.write_text("gateway: {prot: 1}\n")
    assert service.box.run("systemctl", "start", "stokerd", check=False).returncode != 0
    assert service.box.shows("stokerd", "ActiveState") == "failed"
    assert service.box.shows("stokerd", "ExecMainStatus") == "2"
    told = [json.loads(x) for x in service.box.journal("-u", "stokerd", "-o", "json").splitlines()]
    mine = {e["MESSAGE"]: e["PRIORITY"] for e in told if e.get("SYSLOG_IDENTIFIER") == "stokerd"}
    (served,) = [m for m in mine if " serves /run/stoker/stoker.sock" in m]
    (wrong,) = [m for m in mine if "stoker.yaml:1" in m]
    assert (mine[served], mine[wrong]) == ("6", "3")
    assert served.startswith("stokerd.app: stokerd ")
    # The database of a newer Stoker is no more the service's to mend than its settings are.
    service.home.config.write_text(f"gateway: {{port: {service.port}}}\n")
    change = "import sqlite3; db = sqlite3.connect('/var/lib/stoker/state.db', isolation_level=None); "
    change += "db.execute('UPDATE alembic_version SET version_num = 9999')"
    service.box.run(sys.executable, "-c", change)  # from inside: SQLite doesn't take the path through /proc
    assert service.box.run("systemctl", "start", "stokerd", check=False).returncode != 0
    assert service.box.shows("stokerd", "ActiveState") == "failed"
    assert service.box.shows("stokerd", "ExecMainStatus") == "5"


@pytest.mark.parametrize("options", [[], ["--socket"], ["--home", "/srv/a b%c"]], ids=["plain", "socket", "odd home"])
def test_the_units_are_what_systemd_understands(box: SystemdBox, options: list[str]) -> None:
    told = box.run(BIN / "stoker", "install-service", "--dry-run", "--json", *options)
    paths = []
    for path, text in json.loads(told.stdout)["units"].items():
        paths.append(box.folder / Path(path).name)
        paths[-1].write_text(text)
    verified = box.run("systemd-analyze", "verify", *paths, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_users_have_a_daemon_of_their_own(box: SystemdBox) -> None:
    """In a user's own systemd, without any privilege."""
    home, runtime = box.folder / "home", box.folder / "x"
    config = home / ".local/share/stoker/stoker.yaml"
    mine = {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime)}

    def as_user(*argv: str | Path, check: bool = True) -> str:
        return box.run(
            "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *argv, check=check, **mine
        ).stdout

    if not as_user("sh", "-c", f"exec {BIN}/stoker --version", check=False):
        pytest.skip("this checkout or its Python can't be read by other users")
    config.parent.mkdir(parents=True)
    runtime.mkdir(mode=0o700)
    config.write_text(f"gateway: {{port: {free_port()}}}\n")
    for path in (runtime, home, *home.rglob("*")):
        shutil.chown(path, "nobody", "nogroup")
    box.folder.chmod(0o755)
    manager = box.path("/etc/systemd/system/manager.service")
    manager.write_text(
        "[Service]\nType=notify\nUser=nobody\nGroup=nogroup\nDelegate=yes\nKillMode=mixed\n"
        f"Environment={' '.join(f'{k}={v}' for k, v in mine.items())}\n"
        "ExecStart=/usr/lib/systemd/systemd --user --unit=basic.target\n"
    )
    box.systemctl("daemon-reload")
    box.systemctl("start", "manager")
    told = as_user(BIN / "stoker", "install-service", "--user", "--now")
    assert "loginctl enable-linger" in told
    with contextlib.closing(Client(box.path(runtime / "stoker" / "stoker.sock"))) as client:
        before = client.host()
        assert before.home == str(config.parent)
        as_user("systemctl", "--user", "restart", "stokerd")
        assert client.host().pid != before.pid
