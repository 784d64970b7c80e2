"""The gateway's process: ``python -m stokerd.gateway --listen HOST:PORT --control SOCKET --table-file FILE``.

Exits with 0 after SIGTERM or SIGINT, once what was in flight is answered (a second signal, or `Limits.drain_seconds`,
cuts that short); 2 if the command line is wrong; 6 if a place to listen can't be had, with one sentence on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import secrets
import signal
import socket
import sys
from dataclasses import fields, replace
from pathlib import Path
from time import monotonic

import uvloop

from stokerd.gateway import tablefile
from stokerd.gateway.control import Control
from stokerd.gateway.front import Front
from stokerd.gateway.gateway import Gateway, say
from stokerd.gateway.limits import Limits
from stokerd.gateway.server import Server
from stokerd.gateway.sockets import LOOPBACK, Unavailable, release_path, take_address, take_path
from stokerd.gateway.wire import RouteTable

EXIT_USAGE = 2
EXIT_UNAVAILABLE = 6


def parse_listen(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT`` (loopback)."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HOST:PORT, e.g. 127.0.0.1:8700")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def parse_limits(pairs: list[str]) -> Limits:
    """Read ``NAME=NUMBER`` pairs over the defaults. Raises `ValueError` naming the pair."""
    names = {field.name: field.type for field in fields(Limits)}
    values: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in names:
            raise ValueError(f"--limit {pair}: there is no limit {name!r}; there are {', '.join(names)}")
        try:
            values[name] = int(text) if names[name] == "int" else float(text)
        except ValueError as error:
            raise ValueError(f"--limit {pair}: expected a number after the =") from error
        if values[name] < 0:
            raise ValueError(f"--limit {pair}: expected a number from 0 on")
    return replace(Limits(), **values)  # type: ignore[arg-type]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; exits with 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m stokerd.gateway", description="Stoker's OpenAI-compatible gateway."
    )
    parser.add_argument("--listen", type=parse_listen, default=("127.0.0.1", 8700), metavar="HOST:PORT")
    parser.add_argument("--control", type=Path, required=True, metavar="SOCKET", help="where the daemon speaks to it")
    parser.add_argument("--table-file", type=Path, required=True, metavar="FILE", help="keeps the last route table")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER", help="see limits.py")
    arguments = parser.parse_args(argv)
    try:
        arguments.limits = parse_limits(arguments.limit)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run until a signal; returns the exit code."""
    arguments = parse_arguments(argv)
    _raise_file_limit()
    try:
        front_socket = take_address(*arguments.listen)
        control_socket = take_path(arguments.control)
    except Unavailable as error:
        say(str(error))
        return EXIT_UNAVAILABLE
    inode = arguments.control.stat().st_ino
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(front_socket, control_socket, arguments))
    finally:
        release_path(arguments.control, inode)
    return 0


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _load_table(path: Path) -> RouteTable:
    try:
        table = tablefile.load(path)
    except (OSError, ValueError, RecursionError) as error:
        say(f"the route table in {path} can't be read ({error}); it serves nothing until the daemon sends another.")
        table = None
    return table or RouteTable(version=0)


async def serve(front_socket: socket.socket, control_socket: socket.socket, arguments: argparse.Namespace) -> None:
    """Serve on both sockets until a signal, then drain."""
    loop = asyncio.get_running_loop()
    limits: Limits = arguments.limits
    stop = _stop_on_signals(loop)
    gateway = Gateway(secrets.token_hex(8), _load_table(arguments.table_file), limits)
    front = Front(gateway)
    clients = Server(front.handle, limits)
    host, port = front_socket.getsockname()[:2]
    listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    control = Control(gateway, arguments.table_file, clients, listen)
    daemon = Server(control.handle, limits)
    if not host.startswith(LOOPBACK):
        say(f"warning: {listen} can be reached from other machines, and no key is asked for.")
    listener = await loop.create_server(clients.connect, sock=front_socket)
    control_listener = await loop.create_unix_server(daemon.connect, sock=control_socket)
    sweeper = loop.create_task(_sweep((gateway, clients, daemon), limits.sweep_seconds))
    gc.collect()
    gc.freeze()  # what is here now stays: the collector needn't look at it again while streams wait
    say(f"serving http://{listen}, control {arguments.control}, route table {gateway.table.version}")
    await stop.get()
    say(f"draining: {len(gateway.exchanges)} requests in flight")
    listener.close()
    front.abandon_shadows()
    clients.drain()
    await _first_of(clients.is_empty.wait(), stop.get(), limits.drain_seconds)
    sweeper.cancel()
    for server in (clients, daemon):
        server.abort()
    control_listener.close()
    await gateway.close()
    await asyncio.gather(sweeper, return_exceptions=True)
    say("stopped")


def _stop_on_signals(loop: asyncio.AbstractEventLoop) -> asyncio.Queue[int]:
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    return signals


async def _first_of(empty: object, stop: object, seconds: float) -> None:
    tasks = [asyncio.ensure_future(waiting) for waiting in (empty, stop)]  # type: ignore[call-overload]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _sweep(swept: tuple[Gateway | Server, ...], every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        now = monotonic()
        for part in swept:
            part.sweep(now)


if __name__ == "__main__":
    sys.exit(main())
