"""What is said of many requests in few numbers, always from single requests: averages of averages say nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from stoker.types.rollouts import ArmStats


class Answered(Protocol):
    """What sums need of a request, as `stokerd.gateway.wire.Record` has it."""

    @property
    def is_error(self) -> bool: ...  # noqa: D102
    @property
    def client_gone(self) -> bool: ...  # noqa: D102
    @property
    def ttft_seconds(self) -> float | None: ...  # noqa: D102
    @property
    def inter_token_seconds(self) -> float | None: ...  # noqa: D102
    @property
    def total_seconds(self) -> float: ...  # noqa: D102


def quantile(values: Iterable[float], q: float) -> float | None:
    """The *q* quantile (0 to 1) of *values*, in any order; None when there are none.

    Between two values it goes straight from one to the other (R's type 7, NumPy's default).
    """
    return quantile_of_sorted(sorted(values), q)


def quantile_of_sorted(values: Sequence[float], q: float) -> float | None:
    """`quantile` of values that are in order already."""
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile is between 0 and 1, not {q}")
    if not values:
        return None
    place = q * (len(values) - 1)
    below = math.floor(place)
    low, high = values[below], values[min(below + 1, len(values) - 1)]
    return min(max(low + (high - low) * (place - below), low), high)


def arm_stats(records: Iterable[Answered]) -> ArmStats:
    """Sum up an arm's requests.

    Latencies (seconds) are those of answers that were no error: a refusal is quick, and would flatter the arm that
    fails. A request whose client went away counts with its first token, but not with its total, which the client chose.
    Callers are counted where requests have a ``caller``: each anonymous one (empty) counts as one.
    """
    requests = errors = anonymous = 0
    callers: set[str] = set()
    ttft: list[float] = []
    inter_token: list[float] = []
    total: list[float] = []
    for record in records:
        requests += 1
        caller = getattr(record, "caller", None)
        if caller:
            callers.add(caller)
        elif caller is not None:
            anonymous += 1
        if record.is_error:
            errors += 1
            continue
        if record.ttft_seconds is not None:
            ttft.append(record.ttft_seconds)
        if record.inter_token_seconds is not None:
            inter_token.append(record.inter_token_seconds)
        if not record.client_gone:
            total.append(record.total_seconds)
    ttft.sort()
    inter_token.sort()
    total.sort()
    return ArmStats(
        requests=requests,
        errors=errors,
        callers=len(callers) + anonymous,
        ttft_p50=quantile_of_sorted(ttft, 0.5),
        ttft_p90=quantile_of_sorted(ttft, 0.9),
        ttft_p99=quantile_of_sorted(ttft, 0.99),
        inter_token_p50=quantile_of_sorted(inter_token, 0.5),
        inter_token_p90=quantile_of_sorted(inter_token, 0.9),
        inter_token_p99=quantile_of_sorted(inter_token, 0.99),
        total_p50=quantile_of_sorted(total, 0.5),
        total_p90=quantile_of_sorted(total, 0.9),
        total_p99=quantile_of_sorted(total, 0.99),
    )
