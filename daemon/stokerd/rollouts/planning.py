"""What a rollout is planned on: the devices of now, and the traffic of late."""

from __future__ import annotations

import time

from stoker.types.registry import Version
from stoker.types.rollouts import RolloutPlan, RolloutSpec
from stoker.types.serving import AdapterEngine, Deployment, Replica
from stokerd.devices import leases
from stokerd.devices.inventory import Inventory
from stokerd.devices.placement import Leases
from stokerd.rollouts.fit import LateTraffic, fit
from stokerd.store.store import Query, Store
from stokerd.telemetry.metrics import Metrics

_WINDOW_SECONDS = 86400.0  # a day has its quiet hours in it
_MOST_RECORDS = 20_000  # of them; where more came, the newest tell enough


class Planner:
    """Knows what `fit` has to know."""

    def __init__(self, store: Store, inventory: Inventory, metrics: Metrics) -> None:
        self._store = store
        self._inventory = inventory
        self._metrics = metrics

    async def late_traffic(self, deployment: str) -> LateTraffic:
        """What *deployment* was asked lately; nothing where it isn't known. Raises `Unavailable`."""
        present = time.time()
        records = await self._metrics.records(
            deployment, since=present - _WINDOW_SECONDS, arms=["stable", "candidate"], limit=_MOST_RECORDS
        )
        replicas = await self._store.read(lambda q: q.all(Replica, deployment=deployment))
        starts = [r.start_seconds for r in replicas if r.start_seconds is not None]
        hours = (present - records[0].time) / 3600 if records else 0.0
        return LateTraffic(
            requests_per_hour=len(records) / max(hours, 1 / 60) if records else 0.0,
            callers=len({r.caller for r in records if r.caller}),
            hours=hours,
            start_seconds=max(starts, default=None),
        )

    def plan(
        self, query: Query, spec: RolloutSpec, deployment: Deployment, version: Version, traffic: LateTraffic
    ) -> RolloutPlan:
        """Where the candidate would run now, and how the rollout would go."""
        replicas = query.all(Replica, deployment=deployment.name)
        engine = deployment.spec.engine
        others = query.all(Replica, deployment=engine.base) if isinstance(engine, AdapterEngine) else []
        gpus = self._inventory.devices()
        held = leases.taken(query, gpus, deployment.name)

        def planned(among: Leases) -> RolloutPlan:
            return fit(spec, deployment, replicas, version.number, gpus, among, traffic, others)

        plan = planned(held)
        if plan.fits and plan.placement == "swap" and (others_wait := leases.waiting(query, gpus)):
            says = f"{', '.join(others_wait)} waits for devices, and would get those that this swap needs again."
            return plan.model_copy(update={"fits": False, "says": says, "devices": [], "seconds": None})
        if plan.fits:
            return plan
        runs = sorted({lease.owner for held_by in held.values() for lease in held_by if lease.owner.startswith("run/")})
        later = planned({u: [x for x in found if not x.owner.startswith("run/")] for u, found in held.items()})
        if not runs or not later.fits:
            return plan
        waits = f"the candidate waits until what it needs is free: {', '.join(runs)} ends by itself."
        return later.model_copy(update={"says": f"{later.says} For now, {waits}", "devices": [], "seconds": None})
