from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.fairqueue import FairQueue, crowded_out

ACTS = st.lists(st.tuples(st.sampled_from(["put", "take", "drop"]), st.sampled_from("abc"), st.integers(0, 30)))


@given(ACTS)
def test_it_behaves_as_lines_served_in_turn(acts: list[tuple[str, str, int]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    model: list[tuple[str, list[tuple[str, int]]]] = []  # lines in the order of their turns
    for act, who, number in acts:
        thing = (who, number)
        line = next((line for name, line in model if name == who), None)
        if act == "put" and (line is None or thing not in line):
            queue.put(who, thing)
            if line is None:
                model.append((who, [thing]))
            else:
                line.append(thing)
        elif act == "take" and model:
            name, first = model.pop(0)
            assert queue.first() == first[0]
            assert queue.take() == first.pop(0)
            if first:
                model.append((name, first))
        elif act == "drop":
            queue.discard(who, thing)
            if line is not None and thing in line:
                line.remove(thing)
            model = [(name, line) for name, line in model if line]
        assert len(queue) == sum(len(line) for _, line in model)
        assert {name: queue.waiting(name) for name in "abc"} == {
            name: sum(len(line) for n, line in model if n == name) for name in "abc"
        }
    order = list(queue)
    assert order == [queue.take() for _ in range(len(queue))]
    for ask in (queue.take, queue.first):
        with pytest.raises(IndexError):
            ask()


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 20), min_size=1))
def test_as_long_as_someone_waits_nobody_is_served_twice_more_than_another(waiting: dict[str, int]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for who, count in waiting.items():
        for number in range(count):
            queue.put(who, (who, number))
    served: Counter[str] = Counter()
    while queue:
        served[queue.take()[0]] += 1
        left = [who for who in waiting if served[who] < waiting[who]]
        if left:
            assert max(served.values()) - min(served[who] for who in left) <= 1


def test_who_fills_the_queue_gives_way_to_others() -> None:
    one: FairQueue[str] = FairQueue()
    two: FairQueue[str] = FairQueue()
    for number in range(4):
        one.put("greedy", f"g{number}")
    two.put("modest", "m0")
    assert crowded_out([one, two], "new", "n0") == "g3"
    assert crowded_out([one, two], "modest", "m1") == "g3"
    assert crowded_out([one, two], "greedy", "g4") == "g4"
    two.put("modest", "m1")
    two.put("modest", "m2")
    assert crowded_out([one, two], "modest", "m3") == "m3", "an equal share is no reason"
    assert crowded_out([FairQueue[str]()], "new", "n") == "n"
