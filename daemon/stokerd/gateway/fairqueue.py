"""A queue that serves those who wait in turn, however much each of them has in it. Pure.

Everyone has a line. Lines are served one after another, one thing each time (round robin). When there is no more room,
the longest line gives way: who fills the queue can't keep others out of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class FairQueue(Generic[T]):
    """Things that wait, each in the line of somebody. All but iterating and looking for the longest line takes O(1)."""

    __slots__ = ("_count", "_lines")

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, OrderedDict[T, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, who: Hashable, thing: T) -> None:
        """Let a thing, which must not be here yet, wait at the end of *who*'s line."""
        line = self._lines.get(who)
        if line is None:
            line = self._lines[who] = OrderedDict()
        line[thing] = None
        self._count += 1

    def take(self) -> T:
        """The next one, which waits no more. Raises `IndexError` if none waits."""
        if not self._lines:
            raise IndexError("nobody waits")
        who, line = next(iter(self._lines.items()))
        thing, _ = line.popitem(last=False)
        self._count -= 1
        if line:
            self._lines.move_to_end(who)
        else:
            del self._lines[who]
        return thing

    def discard(self, who: Hashable, thing: T) -> None:
        """Let a thing wait no more, if it does."""
        line = self._lines.get(who)
        if line is not None and thing in line:
            del line[thing]
            self._count -= 1
            if not line:
                del self._lines[who]

    def waiting(self, who: Hashable) -> int:
        """How long *who*'s line is."""
        return len(self._lines.get(who, ()))

    def first(self) -> T:
        """The one that is next. Raises `IndexError` if none waits."""
        for line in self._lines.values():
            return next(iter(line))
        raise IndexError("nobody waits")

    def last_of_longest(self) -> tuple[int, T | None]:
        """The length of the longest line, and the thing at its end."""
        line = max(self._lines.values(), key=len, default=None)
        return (len(line), next(reversed(line))) if line else (0, None)

    def __iter__(self) -> Iterator[T]:
        """All, in the order in which they would be served."""
        lines = [iter(line) for line in self._lines.values()]
        while lines:
            left = []
            for line in lines:
                for thing in line:
                    yield thing
                    left.append(line)
                    break
            lines = left


def crowded_out(queues: Iterable[FairQueue[T]], who: Hashable, newcomer: T) -> T:
    """Who is to leave when a *newcomer* of *who* finds no room: one of a longer line, else the newcomer itself."""
    queues = list(queues)
    length, last = max((queue.last_of_longest() for queue in queues), key=lambda found: found[0], default=(0, None))
    mine = sum(queue.waiting(who) for queue in queues)
    return last if last is not None and length > mine + 1 else newcomer
