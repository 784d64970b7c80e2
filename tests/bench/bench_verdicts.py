"""How often verdicts are wrong, and how soon they are right: ``python tests/bench/bench_verdicts.py [--rollouts N]``.

Rollouts are simulated request by request (`tests.bench.verdicts.world`: correlated callers, heavy tails, load that
comes and goes), and judged by the product's own `Sample` and `judge_all` again and again as they grow: at first after
each ten requests, later whenever there are a tenth more. Candidates without a fault (A/A) get 5, 25 and 50 % of
callers in turn, as in the default canary steps. The same requests are judged by what others do
(`tests.bench.verdicts.rivals`), and by the product's hard trips. That says what guards see in so many requests if
nothing ever passes.

A step passes long before, so whole rollouts follow (`tests.bench.verdicts.ladder`): the product's default steps from
the first to the end of the time in which the old version stands by. Of each version it is counted how they end:
promoted, rolled back by guards or by a trip, or held for a person.

Prints tables, and last one line of JSON. 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from stoker.types.guards import Fail, Guard  # noqa: I001
from stoker.types.rollouts import DEFAULT_GUARDS, DEFAULT_STEPS, RolloutSpec
from stokerd.rollouts.sample import Sample
from stokerd.rollouts.verdict import judge_all
from tests.bench.verdicts.ladder import Ending, ending, rollout_spec, tripped
from tests.bench.verdicts.rivals import (
    mann_whitney_at_the_end,
    median_detection,
    t_test_each_minute,
    thresholds_each_minute,
    usual_averages,
)
from tests.bench.verdicts.world import Effect, Request, requests

ALPHA = 0.05
AA_REQUESTS = 2000
SHARES = (0.05, 0.25, 0.5)
GUARDS = (
    Guard(metric="error_rate", limit=0.002),
    *(guard for guard in DEFAULT_GUARDS if guard.metric != "error_rate"),
    Guard(metric="inter_token", quantile=0.5, limit=1.05),
    Guard(metric="inter_token", quantile=0.95, limit=1.25),
)
"""The default guards on latencies, and stricter ones, without which the regressions below would be within limits."""
AT_LIMIT = tuple(guard.model_copy(update={"limit": 0.0 if guard.metric == "error_rate" else 1.0}) for guard in GUARDS)
"""Nothing is allowed: then a candidate without a fault is just at every limit, where false alarms are most likely."""
NO_FAULT = Effect("none")


class Regression(NamedTuple):
    """What a candidate suffers from, and how many requests of both arms there are to see it."""

    words: str
    effect: Effect
    requests: int
    is_allowed: bool = False
    """It is within the limits of the default guards, so that they are right to pass it."""


REGRESSIONS = (
    Regression("inter-token +20 %", Effect("inter_token", slower=1.2), 8000, is_allowed=True),
    Regression("errors +1 point", Effect("errors", errors=0.01), 30000, is_allowed=True),
    Regression("heavier tail, same median", Effect("tail", tail=2.5), 8000),
    Regression("collapse of 1 caller in 10", Effect("collapse", collapsed=0.1), 8000),
)
WORSE = (
    Regression("inter-token +40 %", Effect("inter_token_40", slower=1.4), 8000),
    Regression("errors +4 points", Effect("errors_4", errors=0.04), 8000),
)
"""Beyond what the default guards allow; only whole rollouts are simulated of these."""


class Ladder(NamedTuple):
    """Whole rollouts of that spec, of a version without a fault and of each regression."""

    words: str
    spec: RolloutSpec
    regressions: tuple[Regression, ...]
    is_strict: bool = False
    """None of the regressions is within its limits."""


_HOURS_OF_PROOF = 4.0
LADDERS = {
    "strict": Ladder("default steps, the six guards above", rollout_spec(GUARDS), REGRESSIONS, is_strict=True),
    "default": Ladder("default steps, default guards", rollout_spec(DEFAULT_GUARDS), (*REGRESSIONS, *WORSE)),
    "proof": Ladder(
        f"the last default step alone, for up to {_HOURS_OF_PROOF:g} h, default guards with proof: true",
        rollout_spec(
            [guard.model_copy(update={"proof": True}) for guard in DEFAULT_GUARDS],
            [DEFAULT_STEPS[-1].model_copy(update={"max_duration": 3600 * _HOURS_OF_PROOF})],
        ),
        (*REGRESSIONS, *WORSE),
    ),
}


def stoker(found: Sequence[Request], guards: Sequence[Guard], alpha: float) -> int | None:
    """After how many requests a guard failed; None: none did."""
    stable, candidate = Sample("v6"), Sample("v7")
    next_look = 10
    for seen, request in enumerate(found, 1):
        (candidate if request.is_candidate else stable).add(request)  # type: ignore[arg-type]  # a stand-in of Record
        if seen >= next_look or seen == len(found):
            next_look = seen + max(10, seen // 10)
            readings = judge_all(guards, stable, candidate, alpha)
            if any(isinstance(reading.verdict, Fail) for reading in readings):
                return seen
    return None


@lru_cache
def _usual() -> list[float]:
    return usual_averages(requests(10**9, 20000, 0.5, NO_FAULT))


JUDGES: dict[str, Callable[[Sequence[Request]], int | None]] = {
    "Stoker": lambda found: stoker(found, GUARDS, ALPHA),
    "Stoker's hard trips": tripped,
    "t-test, each minute": lambda found: t_test_each_minute(found, ALPHA),
    "Mann-Whitney at the end (Kayenta)": mann_whitney_at_the_end,
    "thresholds, 5 failed checks (Flagger)": lambda found: thresholds_each_minute(found, _usual(), 5),
}


def rollout(index: int, *, seed: int, count: int, effect: Effect, shares: Sequence[float]) -> list[int | None]:
    """Simulate one, and let all judge it."""
    found = requests(seed * 1_000_003 + index, count, shares[index % len(shares)], effect)
    return [judge(found) for judge in JUDGES.values()]


def rollout_at_limit(index: int, *, seed: int) -> int | None:
    """One without a fault, for which nothing is allowed."""
    found = requests(seed * 1_000_003 + 500_000 + index, AA_REQUESTS, SHARES[index % len(SHARES)], NO_FAULT)
    return stoker(found, AT_LIMIT, ALPHA)


def share(found: Sequence[int | None]) -> float:
    """Of rollouts that were rolled back."""
    return sum(n is not None for n in found) / len(found)


def run(rollouts: int, seed: int, jobs: int) -> dict[str, Any]:
    """All rollouts, and what came out of them; *rollouts* without a fault, and a fortieth of it of each regression."""
    few = max(2, rollouts // 40)
    with ProcessPoolExecutor(jobs) as pool:
        simulate = partial(rollout, seed=seed, count=AA_REQUESTS, effect=NO_FAULT, shares=SHARES)
        alike = list(zip(*pool.map(simulate, range(rollouts), chunksize=10), strict=True))
        at_limit = list(pool.map(partial(rollout_at_limit, seed=seed), range(rollouts // 5), chunksize=10))
        worse = {}
        for regression in REGRESSIONS:
            simulate = partial(
                rollout, seed=seed + 1, count=regression.requests, effect=regression.effect, shares=(0.5,)
            )
            worse[regression.effect.name] = list(zip(*pool.map(simulate, range(few)), strict=True))
    figures: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(JUDGES):
        figures[name] = {
            "false_rollback_rate": round(share(alike[place]), 4),
            "power": {
                effect: {"detected": round(share(found[place]), 3), "median_requests": median_detection(found[place])}
                for effect, found in worse.items()
            },
        }
    ours, trips = figures.pop("Stoker"), figures.pop("Stoker's hard trips")
    return {
        "aa_rollouts": rollouts,
        "alpha": ALPHA,
        **ours,
        "at_limit": {"rollouts": len(at_limit), "false_rollback_rate": round(share(at_limit), 4)},
        "regression_rollouts": few,
        "hard_trips": trips,
        "others": figures,
    }


def run_ladder(ladder: Ladder, endings: int, seed: int, jobs: int) -> dict[str, Any]:
    """How whole rollouts end, by effect; *endings* of each regression, four times as many without a fault."""
    seeds = range(seed * 1_000_003, seed * 1_000_003 + 4 * endings)
    effects = {NO_FAULT: seeds} | {regression.effect: seeds[:endings] for regression in ladder.regressions}
    with ProcessPoolExecutor(jobs) as pool:
        found = {
            effect.name: ended(list(pool.map(partial(ending, spec=ladder.spec, effect=effect), some)))
            for effect, some in effects.items()
        }
    bad = [r.effect.name for r in ladder.regressions if ladder.is_strict or not r.is_allowed]
    good = found[NO_FAULT.name]
    return {
        "false_rollback_rate": round(good["guards"] + good["trip"], 4),
        "false_promotion_rate": {effect: found[effect]["promoted"] for effect in bad},
        "endings": found,
    }


def ended(found: Sequence[Ending]) -> dict[str, Any]:
    """The shares of all ways to end, and the median of minutes of those that were promoted or rolled back."""
    ways = Counter(each.what for each in found)
    shares = {way: round(ways[way] / len(found), 4) for way in ("promoted", "held", "guards", "trip")}
    minutes = {
        f"{name}_minutes": round(median(seconds) / 60, 1) if seconds else None
        for name, seconds in {
            "promoted": [each.seconds for each in found if each.what == "promoted"],
            "rolled_back": [each.seconds for each in found if each.what in ("guards", "trip")],
        }.items()
    }
    return {"rollouts": len(found), **shares, **minutes}


def table_of_endings(ladder: Ladder, found: dict[str, dict[str, Any]]) -> str:
    """How the rollouts of a ladder ended, in Markdown."""
    lines = [
        "| | rollouts | promoted | held | rolled back by guards | by a trip | minutes to the way back |",
        "|---" * 7 + "|",
    ]
    words = {NO_FAULT.name: "no fault (A/A)"}
    for regression in ladder.regressions:
        is_allowed = regression.is_allowed and not ladder.is_strict
        words[regression.effect.name] = regression.words + (" (within the limits)" if is_allowed else "")
    for effect, row in found.items():
        shares = " | ".join(f"{100 * row[way]:.1f} %" for way in ("promoted", "held", "guards", "trip"))
        minutes = row["rolled_back_minutes"]
        told = "" if minutes is None else f"{minutes:.0f}"
        lines.append(f"| {words[effect]} | {row['rollouts']} | {shares} | {told} |")
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """What was seen in so many requests if nothing ever passed, in Markdown."""
    heads = [f"{r.words} (of {r.requests:,}, if it never passed)" for r in REGRESSIONS]
    lines = ["| | rolled back, A/A | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    rows = {"Stoker's guards": result, "Stoker's hard trips": result["hard_trips"], **result["others"]}
    for name, row in rows.items():
        cells = [f"{100 * row['false_rollback_rate']:.2f} %"]
        for power in row["power"].values():
            median = power["median_requests"]
            cells.append(f"{100 * power['detected']:.0f} %" + (f", median {median:,}" if median else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def look_seconds() -> float:
    """CPU seconds of a look at 50,000 requests of either arm, 50 of them new, with the default guards: the median."""
    arms = Sample("v6"), Sample("v7")
    stream = iter(requests(0, 100_500, 0.5, NO_FAULT))
    for request in islice(stream, 100_000):
        arms[request.is_candidate].add(request)  # type: ignore[arg-type]  # a stand-in of Record
    looks = []
    for _ in range(5):
        for request in islice(stream, 100):
            arms[request.is_candidate].add(request)  # type: ignore[arg-type]  # a stand-in of Record
        began = time.process_time()
        judge_all(DEFAULT_GUARDS, *arms, ALPHA)
        looks.append(time.process_time() - began)
    return sorted(looks)[2]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rollouts", type=int, default=2000, help="without a fault (a fortieth of each regression)")
    parser.add_argument("--endings", type=int, default=30, help="whole rollouts of each regression (A/A: 4 times)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    began = time.monotonic()
    result = run(options.rollouts, options.seed, options.jobs)
    at_limit = result["at_limit"]
    print(
        f"{result['aa_rollouts']:,} rollouts of {AA_REQUESTS:,} requests without a fault, "
        f"{result['regression_rollouts']} of each regression; alpha {ALPHA:g}; requests are those of both arms\n"
    )
    print(table(result))
    print(
        f"\nStoker where nothing is allowed (limits of 1.0 and 0 points): {100 * at_limit['false_rollback_rate']:.2f} %"
        f" of {at_limit['rollouts']} rollouts. {time.monotonic() - began:.0f} s, {options.jobs} processes\n"
    )
    ladders = {}
    for name, ladder in LADDERS.items():
        ladders[name] = found = run_ladder(ladder, options.endings, options.seed, options.jobs)
        print(
            f"Whole rollouts, {ladder.words}: {100 * found['false_rollback_rate']:.1f} % false rollbacks\n\n"
            f"{table_of_endings(ladder, found['endings'])}\n",
            flush=True,
        )
    result |= {"false_promotion_rate": ladders["strict"]["false_promotion_rate"], "rollouts": ladders}
    look = look_seconds()
    print(f"A look at 50,000 requests of either arm, 50 of them new: {1000 * look:.0f} ms of CPU.\n")
    print(json.dumps(result | {"look_ms": round(1000 * look, 1)}))


if __name__ == "__main__":
    main()
