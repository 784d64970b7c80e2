"""A worker of the gateway: ``python -m stokerd.gateway --listen HOST:PORT --control SOCKET --table-file FILE``.

Any number of them may listen on one port; they share the folder ``--state``. One that is to take the place of others
names what they are asked at, ``--take-over SOCKET.hand``: it gets their listening sockets, and they drain and end.

Exits with 0 after SIGTERM or SIGINT, or after another worker took over, once what was in flight is answered (a second
signal, or `Limits.drain_seconds`, cuts that short); 2 if the command line is wrong; 6 if a place to listen or the
certificate can't be had, with one sentence on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
from dataclasses import fields, replace
from pathlib import Path

import uvloop

from stokerd.gateway.gateway import say
from stokerd.gateway.handover import path_beside
from stokerd.gateway.limits import Limits
from stokerd.gateway.sockets import Unavailable, release_path
from stokerd.gateway.tls import Certificate
from stokerd.gateway.worker import Options, Places, Worker

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
    parser = argparse.ArgumentParser(prog="python -m stokerd.gateway", description="A worker of Stoker's gateway.")
    parser.add_argument("--listen", type=parse_listen, default=("127.0.0.1", 8700), metavar="HOST:PORT")
    parser.add_argument("--control", type=Path, required=True, metavar="SOCKET", help="where the daemon speaks to it")
    parser.add_argument("--table-file", type=Path, required=True, metavar="FILE", help="keeps the last route table")
    parser.add_argument(
        "--state", type=Path, metavar="FOLDER", help="what all workers share; the table file's folder without it"
    )
    parser.add_argument(
        "--take-over", type=Path, action="append", default=[], metavar="SOCKET", help="of a worker to be replaced"
    )
    parser.add_argument(
        "--await-table",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="take no client before the daemon's first table",
    )
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM; HTTPS is served then, and no HTTP")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM; where the certificate's file has no key")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER", help="see limits.py")
    arguments = parser.parse_args(argv)
    if arguments.tls_key and not arguments.tls_certificate:
        parser.error("--tls-key needs --tls-certificate")
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
        options = _options(arguments)
        places = Places(options)
    except Unavailable as error:
        say(str(error))
        return EXIT_UNAVAILABLE
    paths = [(path, path.stat().st_ino) for path in (options.control, path_beside(options.control))]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(options, places))
    except Unavailable as error:
        say(str(error))
        return EXIT_UNAVAILABLE
    finally:
        for path, inode in paths:
            release_path(path, inode)
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    certificate = None
    if arguments.tls_certificate is not None:
        certificate = Certificate(arguments.tls_certificate, arguments.tls_key or arguments.tls_certificate)
    host, port = arguments.listen
    return Options(
        host,
        port,
        arguments.control,
        arguments.table_file,
        arguments.state or arguments.table_file.absolute().parent,
        tuple(arguments.take_over),
        arguments.await_table,
        certificate,
        arguments.limits,
    )


async def _work(options: Options, places: Places) -> None:
    await Worker(options, places).run()


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
