"""The main job, played for real: data, train, register, deploy, serve, roll out, and take a bad version back.

Run it by `make demo`. It starts a private daemon under --home and leaves it running; Ctrl-C before the end stops
everything. A second run takes up what the first one left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from stoker.client import Client
from stoker.errors import DaemonUnreachable, StokerError
from stoker.paths import find_home
from stoker.specs import load_specs
from stoker.types.host import Host
from stoker.types.registry import Model, Version
from stoker.types.rollouts import FINAL_PHASES, Rollout
from stoker.types.serving import Deployment, Replica
from stoker.types.training import ACTIVE_PHASES, DatasetVersion, Run

HERE = Path(__file__).parent
QUESTION = "What is Stoker?"
PROMPTS = (QUESTION, "What is the capital of France?", "Name a colour.", "Who are you?", "Say hello.", "What is 2 + 2?")
DEPLOYMENT = "chat"
console = Console(highlight=False)


class DemoError(Exception):
    """The demo can't go on; the message says why."""


class Progress:
    """A line for each step, with what it takes; rewritten in place on a terminal."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._step = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Status]:
        """One numbered step."""
        self._step += 1
        status = Status(f"{self._step}. {title}")
        yield status
        status.done()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began


class Status:
    """The line of a step that is going on."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._began = time.monotonic()
        self._result = ""
        self._shown = ""
        if not console.is_terminal:
            console.print(title)

    def say(self, text: str) -> None:
        """Show what is going on; without a terminal, a line at the most each 5 seconds."""
        line = f"{self._title} … {text} ({time.monotonic() - self._began:.0f} s)"
        if console.is_terminal:
            width = console.width - 1
            console.file.write("\r" + line[:width].ljust(width))
            console.file.flush()
        elif text != self._shown and int(time.monotonic() - self._began) % 5 == 0:
            console.print(f"   {text}", markup=False, soft_wrap=True)
        self._shown = text

    def result(self, text: str) -> None:
        """What the step brought; shown at its end."""
        self._result = text

    def done(self) -> None:
        """Print the final line."""
        if console.is_terminal:
            console.file.write("\r" + " " * (console.width - 1) + "\r")
        console.print(
            f"✓ {self._title}: {self._result} ({time.monotonic() - self._began:.1f} s)", markup=False, soft_wrap=True
        )


class Traffic:
    """People chatting: *threads* of them, each asking one thing after the other through the gateway."""

    def __init__(self, url: str, threads: int = 2) -> None:
        self._url = url
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(threads)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, person: int) -> None:
        with httpx.Client(base_url=self._url, timeout=120, trust_env=False) as client:
            number = person
            while not self._stop.is_set():
                number += 1
                try:
                    prompt, visitor = PROMPTS[number % len(PROMPTS)], f"visitor-{person}-{number}"
                    ok = bool(chat(client, prompt, max_tokens=12, user=visitor))
                except (httpx.HTTPError, DemoError, ValueError, LookupError):
                    ok = False
                with self._lock:
                    self.answers["ok" if ok else "failed"] += 1


def chat(client: httpx.Client, question: str, *, max_tokens: int = 40, user: str = "demo") -> str:
    """Ask the deployment, streaming as chat programs do, and return the whole answer."""
    body = {
        "model": DEPLOYMENT,
        "user": user,  # who stays with one version throughout a step
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }
    parts = []
    with client.stream("POST", "/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise DemoError(f"HTTP {response.status_code}: {response.read().decode()[:200]}")
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                data = json.loads(line[6:])
                if "error" in data:
                    raise DemoError(str(data["error"]))
                parts += [c["delta"].get("content") or "" for c in data["choices"]]
    return "".join(parts).strip()


class PrivateDaemon:
    """The demo's own stokerd. What it started, and it itself, end with `stop`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._client = Client(find_home(home).socket)

    def host(self) -> Host | None:
        """The host that it tells of; None while it doesn't answer."""
        with contextlib.suppress(DaemonUnreachable):
            return client_host(self._client)
        return None

    def start(self, engine_python: Path) -> None:
        """Start it, unless an earlier demo left it running."""
        if self.host():
            return
        self._home.mkdir(parents=True, exist_ok=True)
        settings = self._home / "stoker.yaml"
        if not settings.exists():
            settings.write_text(
                f"gateway: {{port: {free_port(8700)}}}\n"
                f"training: {{python: {engine_python}}}\n"
                f"serving: {{python: {engine_python}}}\n"
            )
        argv = [Path(sys.executable).with_name("stokerd"), "--home", self._home, "--ephemeral"]
        log = self._home / "stokerd.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.host():
                return
            time.sleep(0.1)
        raise DemoError(f"the daemon did not start: {log.read_text().splitlines()[-1]} (its log: {log})")

    def stop(self) -> bool:
        """End it and everything that it started, whoever started it. False when there was none."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
            return True
        host = self.host()
        if host is None:
            return False
        os.kill(host.pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and Path(f"/proc/{host.pid}").exists():
            time.sleep(0.1)
        return True


def free_port(preferred: int) -> int:
    """*preferred*, or another port that nobody listens on."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise DemoError("no port is free on 127.0.0.1")


def apply(client: Client, name: str) -> None:
    """As `stoker apply -f configs/demo/NAME` does."""
    specs = load_specs((HERE / name).read_text(), str(HERE / name), HERE)
    client.request("POST", "/v1/apply", json={"specs": [s.model_dump(mode="json") for s in specs]})


def register(client: Client, path: Path, alias: str) -> Version:
    """As `stoker register assistant PATH --alias ALIAS` does."""
    body = {"path": str(path), "aliases": [alias]}
    return Version.model_validate(client.request("POST", "/v1/models/assistant/versions", json=body))


def train(client: Client, dataset: DatasetVersion, status: Status) -> Run:
    """Queue a run and show its loss, unless one of the same data has succeeded before."""
    apply(client, "assistant.yaml")
    known = [r for r in client.list(Run, job="tune") if r.dataset_digest == dataset.digest]
    done = [r for r in known if r.phase == "succeeded"]
    usable = done or [r for r in known if r.phase in ACTIVE_PHASES]  # one that Ctrl-C cut off is tried again by itself
    run = usable[-1] if usable else Run.model_validate(client.request("POST", "/v1/jobs/tune/runs", json={}))
    first = last = None
    following = 0
    while True:
        answer = client.request("GET", f"/v1/runs/{run.name}/metrics", params={"after": following, "key": "loss"})
        following = answer["next"]
        for point in answer["points"]:
            first = first or point
            last = point
        if last is not None:
            status.say(f"{run.name}: step {last['step']}, loss {last['value']:.3f}")
        else:
            status.say(f"{run.name}: {run.phase}")
        run = client.get(Run, run.name)
        if run.phase == "succeeded" and not answer["points"]:
            loss = f", loss {first['value']:.2f} → {last['value']:.2f}" if first and last else ""
            status.result(f"{run.name}{loss}{' (done by an earlier demo)' if done else ''}")
            return run
        if run.phase in ("failed", "cancelled"):
            raise DemoError(f"{run.name} {run.phase}: {getattr(run.state, 'message', '')} Its log: {run.folder}/log")
        time.sleep(0.3)


def wait_ready(client: Client, status: Status) -> Deployment:
    """Until the deployment serves."""
    while True:
        deployment = client.get(Deployment, DEPLOYMENT)
        if deployment.phase == "ready" and client_host(client).gateway_phase == "ready":
            return deployment
        if deployment.phase == "failed":
            raise DemoError(f"deployment {DEPLOYMENT} failed: {deployment.message}")
        host = client_host(client)
        if host.gateway_phase == "backing-off":
            raise DemoError(f"the gateway can't start: {host.gateway_message}")
        status.say(f"{deployment.phase} {deployment.message}")
        time.sleep(0.3)


def client_host(client: Client) -> Host:
    """The host."""
    return Host.model_validate(client.request("GET", "/v1/host"))


def roll_out(client: Client, file: str, ending: str, status: Status) -> Rollout:
    """Apply the rollout in *file* and show it until it ends; one that an earlier demo brought to *ending* is taken.

    A rollout's name is its own for ever, so another try, after one that ended otherwise, gets a number.
    """
    spec = next(s for s in load_specs((HERE / file).read_text(), str(HERE / file), HERE) if s.kind == "rollout")
    earlier = [r for r in client.list(Rollout, deployment=spec.deployment) if r.name.startswith(spec.name)]
    usable = [r for r in earlier if r.phase == ending or r.phase not in FINAL_PHASES]
    name = usable[-1].name if usable else f"{spec.name}-{len(earlier) + 1}" if earlier else spec.name
    if not usable:
        body = spec.model_copy(update={"name": name}).model_dump(mode="json")
        client.request("POST", "/v1/apply", json={"specs": [body]})
    while True:
        rollout = client.get(Rollout, name)
        if rollout.phase in FINAL_PHASES:
            return rollout
        if rollout.phase == "paused":
            raise DemoError(f"rollout {name} paused: {getattr(rollout.state, 'because', '')}")
        status.say(progress_of(client, rollout))
        time.sleep(0.2)


def progress_of(client: Client, rollout: Rollout) -> str:
    """What a rollout does now, in half a line."""
    if rollout.phase == "preparing":
        replicas = client.list(Replica, deployment=rollout.deployment)
        states = [r.phase for r in replicas if r.version == rollout.to_version]
        return f"version {rollout.to_version} is {states[0] if states else 'waiting'}"
    step = getattr(rollout.state, "step", None)
    if step is None:
        return rollout.phase
    kind = rollout.spec.steps[step]
    arm = rollout.arms.get("shadow" if kind.type == "shadow" else "candidate")
    seen = f"{arm.requests} of {kind.min_requests} requests, {arm.errors} failed" if arm else "no request yet"
    return f"{kind.type} {kind.percent:g} %: {seen}"


def play(home: Path, engine_python: Path, model: Path, client: Client, progress: Progress) -> list[tuple[str, str]]:
    """Steps 1 to 7. Returns the rows of the summary."""
    rows: list[tuple[str, str]] = []
    with progress.step("snapshot the data") as status:
        body = {"path": str(HERE / "chats.jsonl")}
        dataset = DatasetVersion.model_validate(client.request("POST", "/v1/datasets/chats/versions", json=body))
        status.result(f"{dataset.name}, sha256 {dataset.digest[:12]}")
        rows.append(("data", f"{dataset.name}: {dataset.files} file, {dataset.bytes} bytes, {dataset.digest[:12]}"))

    with progress.step("register the base model") as status:
        model_spec = [s for s in load_specs((HERE / "assistant.yaml").read_text(), "", HERE) if s.kind == "model"]
        client.request("POST", "/v1/apply", json={"specs": [s.model_dump(mode="json") for s in model_spec]})
        status.say("copying weights")
        base = register(client, model, "base")
        status.result(f"{base.name}, {base.bytes / 1e6:.0f} MB, sha256 {base.digest[:12]}")

    with progress.step("train: LoRA on the data") as status:
        run = train(client, dataset, status)
        rows.append(("run", f"{run.name}: params {run.params}"))

    with progress.step("register the tuned model, with its lineage") as status:
        tuned = client.get(Version, run.state.registered)  # type: ignore[union-attr]
        lineage = tuned.lineage
        commit = (lineage.code_commit or "not in git")[:12]
        status.result(f"{tuned.name} from {lineage.run}: code {commit}, data {lineage.dataset_version}, {base.name}")
        rows.append(("lineage", f"{tuned.name} ← {lineage.run} ← {lineage.dataset_version}, {lineage.base_version}"))

    with progress.step("deploy the base version on vLLM") as status:
        gpu = bool(client_host(client).devices)
        apply(client, f"deployment-{'gpu' if gpu else 'cpu'}.yaml")
        deployment = wait_ready(client, status)
        host = client_host(client)
        status.result(f"{DEPLOYMENT} serves version {deployment.version} at {host.gateway}")

    people = Traffic(host.gateway)
    asking = httpx.Client(base_url=host.gateway, timeout=120, trust_env=False)
    with asking, people:
        with progress.step(f"chat through the gateway: {QUESTION!r}") as status:
            status.say("asking")
            before = chat(asking, QUESTION)
            status.result(f"“{before[:90]}”")
        with progress.step("roll out the tuned version") as status:
            good = roll_out(client, "rollout-tuned.yaml", "promoted", status)
            if good.phase != "promoted":
                raise DemoError(f"it was not promoted but {good.phase}: {getattr(good.state, 'because', '')}")
            after = chat(asking, QUESTION)
            failed = people.answers["failed"]
            status.result(f"promoted; “{after[:60]}”; {failed} of {people.answers.total()} requests failed")
            rows.append(("rollout to-tuned", f"{good.phase}; {failed} of {people.answers.total()} requests failed"))
            rows.append(("answer before", before[:100]))
            rows.append(("answer after", after[:100]))
        with progress.step("roll out a bad version (it lost its chat template)") as status:
            broken = home / "bad-model"
            if not broken.exists():
                subprocess.run([engine_python, HERE / "make_bad.py", tuned.folder, broken], check=True)
            register(client, broken, "bad")
            bad = roll_out(client, "rollout-bad.yaml", "rolled-back", status)
            if bad.phase != "rolled-back" or not bad.exposure.errors:
                because = getattr(bad.state, "because", "")
                raise DemoError(f"it was not rolled back for its answers, but is {bad.phase}: {because}")
            milliseconds = "?"
            if bad.verdict_at and bad.restored_at:
                milliseconds = f"{(bad.restored_at - bad.verdict_at).total_seconds() * 1000:.0f}"
            result = (
                f"rolled back by itself after {bad.exposure.errors} bad answers; "
                f"all traffic on version {bad.from_version} {milliseconds} ms after the verdict"
            )
            status.result(result)
            rows.append(("rollout to-bad", result))
            rows.append(("why", getattr(bad.state, "because", "")))
        with progress.step("ask again") as status:
            again = chat(asking, QUESTION)
            status.result(f"“{again[:90]}”")
    versions = client.list(Version, model="assistant")
    aliases = client.get(Model, "assistant").aliases
    rows.append(("versions", ", ".join(f"{v.name} {v.digest[:8]}" for v in versions) + f"; aliases {aliases}"))
    return rows


def summary(home: Path, gateway: str, rows: list[tuple[str, str]], seconds: float) -> None:
    """The closing table."""
    table = Table(title=f"The whole loop, in {seconds:.0f} s", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    table.add_row("everything", str(home))
    table.add_row("OpenAI clients", gateway)
    console.print(table, markup=False)
    stoker = os.path.relpath(Path(sys.executable).with_name("stoker"))
    shown = os.path.relpath(home)
    console.print(f"The daemon goes on. Look at it:   {stoker} --home {shown}", markup=False, soft_wrap=True)
    console.print(f"Chat with it:                     {stoker} --home {shown} chat {DEPLOYMENT}", soft_wrap=True)
    console.print("End it and all that it started:   make demo-stop", soft_wrap=True)


def main() -> int:
    """Play the demo, or stop what an earlier one left running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="home of the private daemon")
    parser.add_argument("--engine", type=Path, help="environment that has vllm and torch")
    parser.add_argument("--model", type=Path, help="folder of the base model")
    parser.add_argument("--stop", action="store_true", help="end the daemon of an earlier demo, and all it started")
    arguments = parser.parse_args()
    home = arguments.home.absolute()
    daemon = PrivateDaemon(home)
    if arguments.stop:
        console.print(
            "the demo's daemon and all that it started have ended." if daemon.stop() else "no demo is running."
        )
        return 0
    engine_python = arguments.engine.absolute() / "bin" / "python"
    if not shutil.which(engine_python):
        console.print(f"there is no interpreter {engine_python}; run `make engine`.")
        return 6
    progress = Progress()
    finished = False
    try:
        daemon.start(engine_python)
        with Client(find_home(home).socket) as client:
            rows = play(home, engine_python, arguments.model.absolute(), client, progress)
            summary(home, client_host(client).gateway, rows, progress.seconds)
        finished = True
        return 0
    except KeyboardInterrupt:
        console.print("\nstopped by Ctrl-C.")
        return 130
    except (DemoError, StokerError, httpx.HTTPError) as error:
        console.print(f"\nthe demo can't go on: {error}", markup=False, soft_wrap=True)
        return 1
    finally:
        if not finished:
            with contextlib.suppress(KeyboardInterrupt):
                daemon.stop()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
