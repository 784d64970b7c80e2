"""Which version served a name, to whom, when, and by whose decision: read from the events. Pure.

Serving begins when the deployment first has a replica that answers, and what is said of traffic after that begins when
the gateway confirmed it. It is interrupted while the servers are given up, and ends when the deployment is deleted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stoker.types.events import Event
from stoker.types.traffic import Served

_VERSION = re.compile(r"(?:@| serves version )(\d+)\b")  # as the messages of a Stoker said it that wrote no data
_CREATED = "the deployment was created"


@dataclass(frozen=True, slots=True)
class _Share:
    """What an arm has of the traffic. Equal ones are one row, whoever decided it anew."""

    arm: str
    version: int
    percent: float
    whom: str


@dataclass(frozen=True, slots=True)
class _Decision:
    by: str
    because: str
    rollout: str = ""


def served(events: Sequence[Event], deployment: str) -> list[Served]:
    """Each time in which an arm, its version, its share and those who got it stayed the same; newest last.

    *events* are in the order of their ids; those of other resources are passed over.
    """
    ledger = _Ledger()
    for event in events:
        if event.kind == "deployment" and event.name == deployment:
            ledger.take(event)
    return ledger.rows


class _Ledger:
    """The rows so far, and which of them are open."""

    def __init__(self) -> None:
        self.rows: list[Served] = []
        self._open: dict[_Share, int] = {}
        self._wanted: dict[_Share, _Decision] = {}
        self._is_serving = False
        self._is_given_up = False
        self._is_told = False

    def take(self, event: Event) -> None:
        """Add what *event* says."""
        match event.reason:
            case "DeploymentCreated":
                self._end(event.time)
                self._all_to(_version(event), _Decision(_text(event, "by"), _CREATED))
            case "DeploymentReady" | "DeploymentDegraded":  # degraded: some of its replicas answer
                self._is_serving, self._is_given_up = True, False
            case "DeploymentFailed":
                self._is_given_up = True
            case "DeploymentServes" if not self._is_told:  # before it was written when the gateway had confirmed it
                self._all_to(_version(event), _Decision(_text(event, "by"), event.message))
            case "TrafficMoved":
                self._is_told = True
                decision = _Decision(_text(event, "by"), _text(event, "because"), _text(event, "rollout"))
                self._want(dict.fromkeys(_shares(event), decision))
            case "DeploymentDeleting" | "DeploymentDeleted":
                self._end(event.time)
            case _:
                return
        self._bring_up_to(event.time)

    def _all_to(self, version: int | None, decision: _Decision) -> None:
        if version is not None:
            self._want({_Share("stable", version, 100.0, "everybody"): decision})

    def _want(self, shares: dict[_Share, _Decision]) -> None:
        """What goes on as it was keeps the decision that began it."""
        self._wanted = {share: self._wanted.get(share, decision) for share, decision in shares.items()}

    def _end(self, moment: datetime) -> None:
        self._wanted = {}
        self._bring_up_to(moment)
        self._is_serving = self._is_given_up = self._is_told = False

    def _bring_up_to(self, moment: datetime) -> None:
        """Close the rows of what isn't any more, and open those of what is new."""
        has_stable = any(share.arm == "stable" for share in self._wanted)  # in a swap, it is the candidate that failed
        gone = ("stable" if has_stable else "candidate") if self._is_given_up else ""
        present = {s: decision for s, decision in self._wanted.items() if self._is_serving and s.arm != gone}
        for share in [share for share in self._open if share not in present]:
            row = self.rows[self._open[share]]
            until = max(moment, row.since)  # the clock may have been set back
            self.rows[self._open.pop(share)] = row.model_copy(update={"until": until})
        for share, decision in present.items():
            if share not in self._open:
                self._open[share] = len(self.rows)
                self.rows.append(
                    Served(
                        version=share.version,
                        arm=share.arm,
                        percent=share.percent,
                        whom=share.whom,
                        since=moment,
                        until=None,
                        by=decision.by,
                        because=decision.because,
                        rollout=decision.rollout,
                    )
                )


def _shares(event: Event) -> list[_Share]:
    """The arms that get something: a share of requests, or (of none by weight) those who are named."""
    words: dict[str, str] = event.data.get("whom") or {}
    arms: list[dict[str, Any]] = event.data.get("arms") or []
    return [
        _Share(arm["arm"], int(arm["version"]), float(arm["percent"]), words.get(arm["arm"], _usual(arm)))
        for arm in arms
        if arm["percent"] or words.get(arm["arm"])
    ]


def _usual(arm: dict[str, Any]) -> str:
    percent = arm["percent"]
    if arm["arm"] == "shadow":
        return f"nobody: copies of {percent:g} % of requests"
    return "everybody" if percent >= 100 else f"{percent:g} % of callers"


def _version(event: Event) -> int | None:
    version = event.data.get("version")
    if version is None and (said := _VERSION.search(event.message)):
        version = said[1]
    return None if version is None else int(version)


def _text(event: Event, key: str) -> str:
    return str(event.data.get(key) or "")
