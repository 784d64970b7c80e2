"""Where the kernel would be: a transport that keeps what is written, and holds whoever writes to the rules."""

from __future__ import annotations

import asyncio

from stokerd.gateway.outbox import Outbox


class Memory(asyncio.Transport):
    """One end of a connection. What is written after its end is a bug of the writer."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.has_ended = False
        """`write_eof` was called: nothing more comes from us, the peer may go on."""
        self.is_aborted = False
        """`abort` was called: the loop tells its protocol the end next, whatever the peer does."""
        self._is_closing = False
        self._is_reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.has_ended, "written after the end"
        assert not self._is_closing, "written after close"
        self.written += data

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = self.is_aborted = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert not self._is_closing, "ended after close"
        self.has_ended = True

    def is_reading(self) -> bool:
        return self._is_reading and not self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True

    def get_write_buffer_size(self) -> int:
        return 0


class AtOnce(Outbox):
    """An outbox that holds nothing back, since no loop runs here."""

    __slots__ = ()

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        transport.write(data)
