"""Following what goes on while the daemon may stop, be upgraded and come back.

Nothing is missed and nothing shown twice: streams are resumed from the last id, or byte, that was seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from stoker.cli.output import note
from stoker.client import Client
from stoker.errors import DaemonUnreachable, NotFound
from stoker.types.base import Resource
from stoker.types.events import Event

R = TypeVar("R", bound=Resource)
T = TypeVar("T")
PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.2


@dataclass
class Follower:
    """Follows one daemon; an absence over *patience_seconds* raises `DaemonUnreachable`.

    *is_quiet*: says nothing on standard error when it is away and back.
    """

    client: Client
    is_quiet: bool = False
    patience_seconds: float = PATIENCE_SECONDS

    def events(self, after: int, *, kind: str | None = None, name: str | None = None) -> Generator[Event, None, None]:
        """Events over the id *after*, for ever."""
        while True:
            try:
                with closing(self.client.events(after, kind=kind, name=name)) as stream:
                    for event in stream:
                        after = event.id
                        yield event
            except DaemonUnreachable:
                pass
            self._await_daemon()

    def log(self, kind: str, name: str, offset: int, is_over: Callable[[], bool]) -> Generator[bytes, None, None]:
        """The log from byte *offset* on, until it ends and *is_over* agrees: a daemon that stops ends streams too.

        So does a place from which bytes are no longer kept; the next stream begins behind it, and the gap is told.
        """
        has_begun = was_over = False
        while True:
            try:
                with self.client.open_log(kind, name, offset=offset, follow=True) as (start, stream):
                    if has_begun and start is not None and start > offset and not self.is_quiet:
                        note(f"stoker: {start - offset} bytes of this log were dropped before they could be read")
                    has_begun = True
                    offset = begin = offset if start is None else start
                    for chunk in stream:
                        offset += len(chunk)
                        yield chunk
                if was_over and offset == begin:
                    return
                # It may have been written to between the stream's end and this question: then read once more.
                was_over = self.steadily(is_over)
                if not was_over:
                    time.sleep(_PAUSE_SECONDS)
            except DaemonUnreachable:
                self._await_daemon()
            except NotFound:  # a replica is forgotten when it has stopped
                if has_begun:
                    return
                raise

    def until(self, kind: type[R], name: str, is_done: Callable[[R], bool], on_change: Callable[[R], None]) -> R:
        """Wait until the resource *is_done*; *on_change* sees it at first and after each of its events."""
        after = self.client.host().last_event_id  # read before the resource, so that no event falls between
        resource = self.client.get(kind, name)
        on_change(resource)
        if is_done(resource):
            return resource
        with closing(self.events(after, kind=kind.kind, name=name)) as events:
            for _ in events:
                resource = self.steadily(lambda: self.client.get(kind, name))
                on_change(resource)
                if is_done(resource):
                    return resource
        raise AssertionError("events end only by an error")

    def steadily(self, ask: Callable[[], T]) -> T:
        """The answer to *ask*, asked again if the daemon goes away over it."""
        while True:
            try:
                return ask()
            except DaemonUnreachable:
                self._await_daemon()

    def _await_daemon(self) -> None:
        """Return when the daemon answers."""
        deadline = time.monotonic() + self.patience_seconds
        has_told = False
        while True:
            time.sleep(_PAUSE_SECONDS)  # also between two streams of a daemon that ends each at once
            try:
                self.client.host()
            except DaemonUnreachable:
                if time.monotonic() > deadline:
                    raise
                if not has_told and not self.is_quiet:
                    note("stoker: the daemon is away; waiting for it to come back")
                has_told = True
            else:
                if has_told and not self.is_quiet:
                    note("stoker: the daemon is back")
                return
