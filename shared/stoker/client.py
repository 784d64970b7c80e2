"""The daemon's socket from Python: `Client` for scripts and the CLI, `AsyncClient` for the TUI.

Both raise the errors of `stoker.errors`, rebuilt from the wire; transport failures become `DaemonUnreachable`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from socket import AF_UNIX
from socket import socket as Socket  # noqa: N812
from traceback import walk_tb
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import EventSource
from pydantic import BaseModel, ValidationError

from stoker.errors import DaemonUnreachable, Internal, NotFound, StokerError, from_dict
from stoker.types.base import Resource
from stoker.types.events import Event
from stoker.types.host import Host

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R", bound=Resource)
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
_FOREVER = httpx.Timeout(30.0, read=None)
_EVENTS = httpx.Timeout(30.0, read=60.0)  # the daemon pings every 15 s: a silent stream is a hung daemon


def path_of(*segments: str) -> str:
    """``/v1/`` and *segments*, each quoted, so that a name with odd characters stays one segment.

    Raises `NotFound` for a segment that no resource can have as its name and that would change the path.
    """
    for segment in segments:
        if segment in ("", ".", ".."):
            raise NotFound(f"nothing is named {segment!r}.", "`stoker get KIND` lists what there is.")
    return "/v1/" + "/".join(quote(s, safe="@") for s in segments)


def read_as(kind: type[M], data: Any) -> M:
    """*data*, an answer of the daemon, as *kind*. Raises `Internal` when the two sides' versions don't fit."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _misfit(error) from error


def read_list(kind: type[M], data: Any) -> list[M]:
    """The same for a list of them."""
    if not isinstance(data, list):
        raise _misfit(TypeError(f"expected a list, got {type(data).__name__}"))
    return [read_as(kind, x) for x in data]


def _misfit(error: Exception) -> Internal:
    first = error.errors()[0] if isinstance(error, ValidationError) else None
    where = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
    return Internal(
        f"the daemon's answer can't be understood ({where}).",
        "stoker and stokerd may be of different versions: see `stoker --version` and `stoker get host --json`.",
        code="version-mismatch",
    )


def _raise_for(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        body = response.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict) or "message" not in body:
        body = {"message": f"the daemon answered HTTP {response.status_code} to {response.request.url.path}."}
    raise from_dict(body, response.status_code)


def _decoded(response: httpx.Response) -> Any:
    try:
        return response.json() if response.content else None
    except ValueError as error:
        raise _misfit(error) from error


@contextmanager
def _translated(socket: Path) -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, httpx.StreamError) as error:
        if isinstance(error, httpx.ConnectError):
            _close_sockets(error)
        raise _unreachable(socket, error) from error


def _close_sockets(error: BaseException | None) -> None:
    """Close what httpcore forgets when a connect fails: else Python warns of the socket when it is collected."""
    while error is not None:
        for frame, _ in walk_tb(error.__traceback__):
            for value in frame.f_locals.values():
                if isinstance(value, Socket) and value.family == AF_UNIX:
                    value.close()
        error = error.__cause__ or error.__context__


def _unreachable(socket: Path, error: Exception) -> DaemonUnreachable:
    if isinstance(error, httpx.ReadTimeout):
        return DaemonUnreachable(
            f"the daemon on {socket} takes too long to answer.", "Its log says what it does; it may be overloaded."
        )
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM):
        hint = "You may not use that socket: ask to be let into its group, or become its owner."
    else:
        hint = "Start one with `stokerd`, or name another home with --home or STOKER_HOME."
    why = re.sub(r"^\[Errno \d+\] ", "", str(error)) or type(error).__name__
    return DaemonUnreachable(f"no daemon answers on {socket} ({why}).", hint)


def _event_params(after: int, follow: bool, kind: str | None, name: str | None) -> dict[str, Any]:
    params: dict[str, Any] = {"after": after, "follow": follow}
    return params | {k: v for k, v in (("kind", kind), ("name", name)) if v is not None}


def _log_start(response: httpx.Response, asked: int) -> int | None:
    told = response.headers.get("x-stoker-offset")
    return int(told) if told is not None else asked if asked >= 0 else None


def parse_event(data: str) -> Event:
    """Read an event from an SSE message's data."""
    try:
        return Event.model_validate_json(data)
    except ValidationError as error:
        raise _misfit(error) from error


class Client:
    """Blocking. Use it as a context manager, or close it."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        # verify=False: no TLS on a Unix socket, and loading the CA bundle would cost more than all else at the start.
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket), verify=False), base_url="http://stoker", timeout=_TIMEOUT
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(
        self, method: str, path: str, *, params: dict[str, Any] | None = None, json: Any = None, is_slow: bool = False
    ) -> Any:
        """Do one call and return the decoded JSON answer. Raises `StokerError`.

        *is_slow*: the daemon may copy many gigabytes before it answers, so no time limit is set.
        """
        timeout = _FOREVER if is_slow else _TIMEOUT
        with _translated(self.socket):
            response = self._http.request(method, path, params=params, json=json, timeout=timeout)
        _raise_for(response)
        return _decoded(response)

    def list(self, kind: type[R], **params: Any) -> list[R]:
        """All resources of a kind."""
        return read_list(kind, self.request("GET", path_of(kind.plural), params=params))

    def get(self, kind: type[R], name: str) -> R:
        """One resource. Raises `NotFound`."""
        return read_as(kind, self.request("GET", path_of(kind.plural, name)))

    def host(self) -> Host:
        """The machine and its daemon."""
        return read_as(Host, self.request("GET", "/v1/host"))

    def events(
        self, after: int = 0, *, follow: bool = True, kind: str | None = None, name: str | None = None
    ) -> Generator[Event, None, None]:
        """Events over the id *after*, in order (of one *kind*, *name*); with *follow*, as long as the daemon lives."""
        params = _event_params(after, follow, kind, name)
        with (
            _translated(self.socket),
            self._http.stream("GET", "/v1/events", params=params, timeout=_EVENTS) as response,
        ):
            if not response.is_success:
                response.read()
                _raise_for(response)
            for message in EventSource(response).iter_sse():
                if message.data:  # a ping comes as an empty message
                    yield parse_event(message.data)

    @contextmanager
    def open_log(
        self, kind: str, name: str, *, offset: int = 0, follow: bool = False
    ) -> Iterator[tuple[int | None, Iterator[bytes]]]:
        """A log as `log` gives it, and the offset of its first byte; None if the daemon doesn't tell.

        That is more than *offset* when what stood there is no longer kept. A negative *offset* counts from the end.
        """
        path, params = path_of("logs", kind, name), {"offset": offset, "follow": follow}
        with (
            _translated(self.socket),
            self._http.stream("GET", path, params=params, timeout=_FOREVER) as response,
        ):
            if not response.is_success:
                response.read()
                _raise_for(response)
            yield _log_start(response, offset), response.iter_raw()

    def log(self, kind: str, name: str, *, offset: int = 0, follow: bool = False) -> Generator[bytes, None, None]:
        """The log of a run, a replica or the gateway (both names ``gateway``) from *offset* (bytes) on.

        With *follow*, until whatever writes it has ended.
        """
        with self.open_log(kind, name, offset=offset, follow=follow) as (_, chunks):
            yield from chunks


class AsyncClient:
    """The same for asyncio."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), verify=False),
            base_url="http://stoker",
            timeout=_TIMEOUT,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def request(self, method: str, path: str, *, params: dict[str, Any] | None = None, json: Any = None) -> Any:
        """Do one call and return the decoded JSON answer. Raises `StokerError`."""
        with _translated(self.socket):
            response = await self._http.request(method, path, params=params, json=json)
        _raise_for(response)
        return _decoded(response)

    async def list(self, kind: type[R], **params: Any) -> list[R]:
        """All resources of a kind."""
        return read_list(kind, await self.request("GET", path_of(kind.plural), params=params))

    async def get(self, kind: type[R], name: str) -> R:
        """One resource. Raises `NotFound`."""
        return read_as(kind, await self.request("GET", path_of(kind.plural, name)))

    async def host(self) -> Host:
        """The machine and its daemon."""
        return read_as(Host, await self.request("GET", "/v1/host"))

    async def events(self, after: int = 0, *, kind: str | None = None, name: str | None = None) -> AsyncIterator[Event]:
        """Events over the id *after*, in order, until the connection ends (then raises `DaemonUnreachable`)."""
        async with self._stream("/v1/events", _event_params(after, True, kind, name), _EVENTS) as response:
            async for message in EventSource(response).aiter_sse():
                if message.data:  # a ping comes as an empty message
                    yield parse_event(message.data)
        raise DaemonUnreachable(f"the daemon on {self.socket} closed the stream of events.")

    @asynccontextmanager
    async def open_log(
        self, kind: str, name: str, *, offset: int = 0, follow: bool = False
    ) -> AsyncIterator[tuple[int | None, AsyncIterator[bytes]]]:
        """As `Client.open_log`."""
        params = {"offset": offset, "follow": follow}
        async with self._stream(path_of("logs", kind, name), params, _FOREVER) as response:
            yield _log_start(response, offset), response.aiter_raw()

    @asynccontextmanager
    async def _stream(self, path: str, params: dict[str, Any], timeout: httpx.Timeout) -> AsyncIterator[httpx.Response]:
        with _translated(self.socket):
            async with self._http.stream("GET", path, params=params, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    _raise_for(response)
                yield response


__all__ = ["AsyncClient", "Client", "StokerError", "parse_event", "path_of", "read_as", "read_list"]
