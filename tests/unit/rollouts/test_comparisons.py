from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import NotFound
from stoker.types.base import now
from stoker.types.rollouts import Preparing, Rollout, RolloutSpec
from stokerd.gateway.wire import PairedAnswer, ShadowPair
from stokerd.rollouts import comparisons as comparisons_module
from stokerd.rollouts.comparisons import QUESTIONS_AT_ONCE, Comparisons, Servers
from stokerd.rollouts.verdict import Pair
from stokerd.telemetry.metrics import Metrics
from tests.harness import DEADLINE

BEGAN = 1000.0
Reply = tuple[int, object]


class Model:
    """A server of embeddings and chat on a Unix socket, that remembers what it was asked."""

    def __init__(self, path: Path, answer: Callable[[str, dict[str, Any]], Awaitable[Reply]]) -> None:
        self.address = f"unix:{path}"
        self.asked: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._path = path
        self._answer = answer

    async def __aenter__(self) -> Model:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = next(
                int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")
            )
            body = json.loads(await reader.readexactly(size))
            self.asked.append(body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                status, said = await self._answer(head.split(" ")[1], body)
            finally:
                self._at_once -= 1
            sent = said if isinstance(said, bytes) else json.dumps(said).encode()
            writer.write(
                f"HTTP/1.1 {status} X\r\nContent-Length: {len(sent)}\r\nConnection: close\r\n\r\n".encode() + sent
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def embeds(path: str, body: dict[str, Any]) -> Reply:
    """Texts of the same first letter point the same way."""
    assert path == "/v1/embeddings"
    rows = [
        {"index": i, "embedding": [1.0, 0.0] if text[0] == "a" else [0.6, 0.8]} for i, text in enumerate(body["input"])
    ]
    return 200, {"data": rows}


def chat(word: str) -> Reply:
    return 200, {"choices": [{"message": {"content": word}}]}


async def likes_the_longer(path: str, body: dict[str, Any]) -> Reply:
    assert path == "/v1/chat/completions"
    content = body["messages"][-1]["content"]
    first, second = (content.split(f"<{which}>")[1].split(f"</{which}>")[0] for which in ("first", "second"))
    return chat("same" if len(first) == len(second) else "first" if len(first) > len(second) else "second")


async def likes_the_first(path: str, body: dict[str, Any]) -> Reply:
    return chat("first")


def pair(
    seq: int, stable: str, shadow: str, *, caller: str = "", time: float | None = None, **fields: Any
) -> ShadowPair:
    answer = PairedAnswer(6, 200, False, "stop", 0.1, 1.0, 3, stable, False)
    other = replace(answer, version=7, text=shadow, **fields)
    moment = BEGAN + seq if time is None else time
    return ShadowPair(seq, moment, "chat", "r", "/v1/chat/completions", caller or f"caller-{seq}", answer, other)


def rollout(**fields: Any) -> Rollout:
    described = {"kind": "rollout", "name": "r", "deployment": "chat", "to": 7, "keep_answers": True, **fields}
    spec = RolloutSpec.model_validate(described)
    return Rollout(name="r", spec=spec, deployment="chat", from_version=6, to_version=7, state=Preparing(since=now()))


class World(AsyncExitStack):
    """Metrics in a file, models, and comparisons of what is in the one by the others."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__()
        self.folder = folder
        self.metrics = Metrics(folder / "metrics.db", max_age_seconds=1e12, max_bytes=10**9, reserve_bytes=0)
        self.callback(self.metrics.close)
        self.addresses: dict[str, list[str]] = {}
        self.names: dict[str, str] = {}
        self.news = asyncio.Event()
        self.comparisons = Comparisons(self.metrics, self._servers, self.news.set, **{"retry_seconds": 0.0, **settings})
        self.push_async_callback(self.comparisons.close)

    async def _servers(self, deployment: str) -> Servers:
        if deployment not in self.addresses:
            raise NotFound(f"There is no deployment named '{deployment}'.")
        return Servers(self.addresses[deployment], self.names.get(deployment, deployment))

    async def serve(self, name: str, answer: Callable[[str, dict[str, Any]], Awaitable[Reply]]) -> Model:
        model = await self.enter_async_context(Model(self.folder / f"{name}-{len(self.addresses)}", answer))
        self.addresses.setdefault(name, []).append(model.address)
        return model

    async def answered(self, *pairs: ShadowPair) -> None:
        await self.metrics.write_pairs("e", pairs)

    async def until(
        self, about: Rollout, is_there: Callable[[Sequence[Pair]], object], since: float = 0
    ) -> Sequence[Pair]:
        """Look again at each news, and now and then, until what is found fits."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self.news.clear()
                found = await self.comparisons.look(about, since)
                if is_there(found):
                    return found
                try:
                    await asyncio.wait_for(self.news.wait(), 0.02)
                except TimeoutError:
                    continue

    async def compared(self, about: Rollout, count: int, since: float = 0) -> Sequence[Pair]:
        return await self.until(about, lambda found: len(found) >= count, since)

    async def complained(self, about: Rollout) -> str:
        await self.until(about, lambda _: self.comparisons.problem(about.name))
        return self.comparisons.problem(about.name)


def test_answers_are_compared_by_their_words(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            await world.answered(
                pair(1, "yes", "yes", caller="ann"), pair(2, "yes", "no"), pair(3, "yes", "", is_error=True, status=500)
            )
            assert list(await world.compared(rollout(), 3)) == [
                Pair("ann", True, 1.0, None),
                Pair("caller-2", False, 0.0, None),
                Pair("caller-3", False, 0.0, None),
            ]
            assert world.comparisons.problem("r") == ""

    asyncio.run(work())


def test_looking_never_waits(tmp_path: Path) -> None:
    async def hangs(path: str, body: dict[str, Any]) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async def work() -> None:
        async with World(tmp_path) as world:
            await world.serve("embedder", hangs)
            await world.answered(pair(1, "yes", "no"))
            for _ in range(3):
                assert await world.comparisons.look(rollout(embeddings="embedder"), 0) == ()

    asyncio.run(work())


def test_what_comes_later_is_compared_too_and_once(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            await world.answered(pair(1, "yes", "yes"))
            await world.compared(rollout(), 1)
            await world.answered(pair(1, "yes", "yes"), pair(3, "yes", "yes"))
            await world.compared(rollout(), 2)
            await world.answered(pair(2, "yes", "yes"))  # of an earlier request, whose answer took longer
            found = await world.compared(rollout(), 3)
            assert [each.caller for each in found] == ["caller-1", "caller-3", "caller-2"]

    asyncio.run(work())


def test_an_answer_that_took_very_long_makes_nothing_count_twice(tmp_path: Path) -> None:
    """How far back is read depends on how long answers take; what was known of earlier ones is forgotten by then."""

    async def work() -> None:
        async with World(tmp_path) as world:
            await world.answered(*(pair(i, "yes", "yes") for i in range(1, 101)))
            await world.compared(rollout(), 100)
            late = pair(101, "yes", "yes")
            await world.answered(replace(late, stable=replace(late.stable, total_seconds=25.0)))
            await world.compared(rollout(), 101)
            await world.answered(pair(102, "yes", "yes"))
            found = await world.compared(rollout(), 102)
            assert len({each.caller for each in found}) == 102

    asyncio.run(work())


def test_a_new_step_begins_with_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            await world.answered(*(pair(i, "yes", "yes") for i in range(1, 11)))
            assert len(await world.compared(rollout(), 10)) == 10
            assert len(await world.comparisons.look(rollout(), BEGAN + 8)) == 3
            assert len(await world.comparisons.look(rollout(), BEGAN + 50)) == 0
            assert len(await world.compared(rollout(), 5, since=BEGAN + 6)) == 5  # and a clock that was set back

    asyncio.run(work())


def test_pairs_whose_stable_answer_failed_are_no_measure(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            failed = pair(1, "busy", "yes")
            await world.answered(replace(failed, stable=replace(failed.stable, is_error=True)), pair(2, "a", "a"))
            assert [each.caller for each in await world.compared(rollout(), 1)] == ["caller-2"]

    asyncio.run(work())


def test_likeness_is_by_the_embeddings_of_a_deployment_where_the_spec_names_one(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            model = await world.serve("embedder", embeds)
            await world.answered(pair(1, "apple", "an apple"), pair(2, "apple", "pear"), pair(3, "pear", "pear"))
            found = await world.compared(rollout(embeddings="embedder"), 3)
            assert [each.likeness for each in found] == pytest.approx([1.0, 0.6, 1.0])
            assert [each.is_same for each in found] == [False, False, True]
            assert len(model.asked) == 2  # what is the same is alike
            body = next(body for body in model.asked if "pear" in body["input"])
            assert (body["model"], body["input"]) == ("embedder", ["apple", "pear"])

    asyncio.run(work())


def test_pairs_wait_for_embeddings_whose_deployment_is_away(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            about = rollout(embeddings="embedder")
            await world.answered(pair(1, "apple", "pear"))
            assert await world.complained(about) == "embeddings of embedder: There is no deployment named 'embedder'."
            world.addresses["embedder"] = []
            await world.until(about, lambda _: "no replica of it is ready" in world.comparisons.problem("r"))
            del world.addresses["embedder"]
            await world.serve("embedder", embeds)
            (found,) = await world.compared(about, 1)
            assert found.likeness == pytest.approx(0.6)
            assert world.comparisons.problem("r") == ""

    asyncio.run(work())


@pytest.mark.parametrize(
    ("reply", "problem", "questions"),
    [
        ((500, {"error": "broken"}), "it answered HTTP 500", 3),  # it may be better the next time
        ((400, {"error": "too long"}), "it answered HTTP 400", 1),
        ((200, b"<html>"), "it answered no JSON", 1),
        ((200, {"data": []}), "the answer holds no embeddings", 1),
        ((200, {"data": [{"index": 0, "embedding": [1, 2]}]}), "it answered 1 embeddings for 2 texts", 1),
        ((200, b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}'), "no number", 1),
    ],
)
def test_a_pair_that_the_embedder_fails_on_holds_up_no_others(
    tmp_path: Path, reply: Reply, problem: str, questions: int
) -> None:
    async def fails_on_one(path: str, body: dict[str, Any]) -> Reply:
        return reply if "poison" in body["input"] else await embeds(path, body)

    async def work() -> None:
        async with World(tmp_path) as world:
            model = await world.serve("embedder", fails_on_one)
            about = rollout(embeddings="embedder")
            await world.answered(pair(1, "poison", "apple"))
            assert problem in await world.complained(about)
            await world.answered(pair(2, "apple", "pear"))
            assert [each.caller for each in await world.compared(about, 1)] == ["caller-2"]
            assert sum("poison" in body["input"] for body in model.asked) == questions
            assert world.comparisons.problem("r") == ""

    asyncio.run(work())


def test_a_judge_says_which_answer_is_better(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            model = await world.serve("judge", likes_the_longer)
            await world.answered(
                pair(1, "short", "longer"), pair(2, "longer", "short"), pair(3, "one", "two"), pair(4, "same", "same"),
                pair(5, "well", "", is_error=True, status=500),
            )  # fmt: skip
            found = await world.compared(rollout(judge={"deployment": "judge"}), 5)
            assert [each.judged for each in found] == ["better", "worse", "same", "same", "worse"]
            assert len(model.asked) == 6  # both orders, of those that need a judge
            assert all(body["temperature"] == 0 and body["model"] == "judge" for body in model.asked)

    asyncio.run(work())


def test_a_judge_is_shown_what_was_asked(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            model = await world.serve("judge", likes_the_longer)
            await world.answered(replace(pair(1, "Paris", "It is Lyon"), question="What is France's capital?"))
            await world.compared(rollout(judge={"deployment": "judge"}), 1)
            assert len(model.asked) == 2
            for body in model.asked:
                assert "<request>\nWhat is France's capital?\n</request>" in body["messages"][0]["content"]

    asyncio.run(work())


def test_a_deployment_is_asked_by_the_name_that_its_servers_know_it_by(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            judge, embedder = await world.serve("judge", likes_the_longer), await world.serve("embedder", embeds)
            world.names = {"judge": "judge-v3"}
            await world.answered(pair(1, "apple", "pear"))
            await world.compared(rollout(embeddings="embedder", judge={"deployment": "judge"}), 1)
            assert {body["model"] for body in judge.asked} == {"judge-v3"}
            assert {body["model"] for body in embedder.asked} == {"embedder"}

    asyncio.run(work())


def test_a_judge_who_prefers_a_place_prefers_nobody(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            await world.serve("judge", likes_the_first)
            await world.answered(pair(1, "one", "two"))
            (found,) = await world.compared(rollout(judge={"deployment": "judge"}), 1)
            assert found.judged == "same"

    asyncio.run(work())


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (chat("I can't decide."), 'judge judge: it said "I can\'t decide." instead of first, second or same.'),
        ((400, {}), "judge judge: it answered HTTP 400: {}."),
        ((503, {}), "judge judge: it answered HTTP 503: {}."),
    ],
)
def test_pairs_stay_unjudged_where_the_judge_fails_and_are_compared_all_the_same(
    tmp_path: Path, reply: Reply, problem: str
) -> None:
    async def fails(path: str, body: dict[str, Any]) -> Reply:
        return reply

    async def work() -> None:
        async with World(tmp_path) as world:
            await world.serve("judge", fails)
            await world.answered(pair(1, "yes", "no"), pair(2, "yes", "no"))
            about = rollout(judge={"deployment": "judge"})
            found = await world.compared(about, 2)
            assert [(each.likeness, each.judged) for each in found] == [(0.0, None), (0.0, None)]
            assert world.comparisons.problem("r") == problem
            await world.answered(pair(3, "yes", "yes"), pair(4, "yes", "", is_error=True))
            found = await world.compared(about, 4)  # else these alone would make its verdict
            assert [each.judged for each in found[2:]] == [None, None]

    asyncio.run(work())


def test_a_judge_that_is_away_is_left_alone_for_a_while(tmp_path: Path) -> None:
    async def busy(path: str, body: dict[str, Any]) -> Reply:
        return 503, {}

    async def work() -> None:
        async with World(tmp_path, retry_seconds=3600) as world:
            model = await world.serve("judge", busy)
            await world.answered(*(pair(i, "yes", "no") for i in range(1, 41)))
            await world.compared(rollout(judge={"deployment": "judge"}), 40)
            assert len(model.asked) <= QUESTIONS_AT_ONCE

    asyncio.run(work())


def test_only_a_share_is_judged_where_the_spec_says_so(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            await world.serve("judge", likes_the_longer)
            await world.answered(*(pair(i, "yes", "yes" if i % 2 else "no") for i in range(1, 201)))
            found = await world.compared(rollout(judge={"deployment": "judge", "percent": 25}), 200)
            judged = [each.judged for each in found if each.judged is not None]
            assert 30 <= len(judged) <= 70
            assert 0.3 < judged.count("same") / len(judged) < 0.7  # those that need no judge weigh no more

    asyncio.run(work())


def test_few_questions_are_asked_at_once_and_of_each_replica_in_turn(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            models = [await world.serve("embedder", embeds)]
            models.append(await world.enter_async_context(Model(tmp_path / "second", embeds)))
            world.addresses["embedder"].append(models[1].address)
            await world.answered(*(pair(i, "apple", "pear") for i in range(1, 41)))
            await world.compared(rollout(embeddings="embedder"), 40)
            assert [len(model.asked) for model in models] == [20, 20]
            assert max(model.most_at_once for model in models) <= QUESTIONS_AT_ONCE

    asyncio.run(work())


def test_no_more_than_so_many_pairs_of_a_step_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            await world.answered(*(pair(i, "yes", "yes") for i in range(1, 21)))
            before = await world.compared(rollout(), 10)
            await world.answered(*(pair(i, "yes", "no") for i in range(21, 31)))
            for _ in range(3):
                assert await world.comparisons.look(rollout(), 0) == before

    monkeypatch.setattr(comparisons_module, "MOST_PAIRS", 10)
    asyncio.run(work())


def test_that_answers_cannot_be_read_is_told(tmp_path: Path) -> None:
    async def work() -> None:
        async with World(tmp_path) as world:
            await world.answered(pair(1, "yes", "yes"))
            world.metrics.close()
            assert await world.complained(rollout())

    asyncio.run(work())


def test_what_is_over_is_forgotten_and_its_questions_end(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def hangs(path: str, body: dict[str, Any]) -> Reply:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def work() -> None:
        async with World(tmp_path) as world:
            await world.serve("judge", hangs)
            await world.answered(pair(1, "yes", "no"))
            await world.comparisons.look(rollout(judge={"deployment": "judge"}), 0)
            async with asyncio.timeout(DEADLINE):
                await asked.wait()
            world.comparisons.keep_only(["r"])
            world.comparisons.keep_only([])
            await world.comparisons.close()
            assert [task for task in asyncio.all_tasks() if task.get_name().startswith("comparisons")] == []
            assert world.comparisons.problem("r") == ""

    asyncio.run(work())
