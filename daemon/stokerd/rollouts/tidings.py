"""What is told of a rollout: the sentences of its events, and who gets which version since when."""

from __future__ import annotations

from stoker.types.rollouts import (
    FINAL_PHASES,
    Aborted,
    Paused,
    Preparing,
    Promoted,
    Promoting,
    Returning,
    RolledBack,
    RollingBack,
    Rollout,
    RolloutState,
    Stepping,
)
from stoker.types.serving import ArmName, ArmShare, Deployment
from stoker.words import span
from stokerd.rollouts.machine import Split, split, whom
from stokerd.store.store import Transaction

REASONS: dict[type, str] = {
    Preparing: "RolloutPreparing",
    Stepping: "RolloutStepped",
    Paused: "RolloutPaused",
    Promoting: "RolloutPromoting",
    Promoted: "RolloutPromoted",
    Returning: "RolloutReturning",
    RollingBack: "RolloutRollingBack",
    RolledBack: "RolloutRolledBack",
    Aborted: "RolloutAborted",
}
"""The reason of the event that a rollout came into a state."""


def sentence(rollout: Rollout, state: RolloutState) -> str:
    """What the event of coming into *state* says."""
    name, to, stable = rollout.name, rollout.to_version, rollout.from_version
    match state:
        case Preparing():
            return f"{name}: version {to} is being prepared."
        case Stepping(step=step):
            kind = rollout.spec.steps[step]
            return f"{name}: step {step + 1} of {len(rollout.spec.steps)}: {kind.words} for version {to}."
        case Paused(because=because, exposure=exposure):
            rest = f"; version {to} is a shadow now" if exposure == "shadow" else ""
            return f"{name}: paused: {because}{rest}."
        case Promoting():
            return f"{name}: all traffic goes to version {to}."
        case Promoted(because=because) if because:
            return f"{name}: version {to} serves on: {because}."
        case Promoted(warm_until=warm_until):
            warm = f"; version {stable} stands by for {span(rollout.spec.keep_warm)}" if warm_until else ""
            return f"{name}: version {to} is promoted{warm}."
        case Returning(because=because):
            return f"{name}: back to version {stable} as soon as it is ready: {because}."
        case RollingBack(because=because):
            return f"{name}: all traffic goes back to version {stable}: {because}"
        case RolledBack(because=because):
            return f"{name}: version {stable} serves as before: {because}"
        case Aborted(because=because):
            return f"{name}: aborted: {because}"


def tell_traffic(tx: Transaction, rollout: Rollout) -> None:
    """Record who gets what, as the gateway confirmed it for the present state of *rollout*, if that is news."""
    deployment, current = tx.find(Deployment, rollout.deployment), tx.find(Rollout, rollout.name)
    if deployment is None or current is None or current.state != rollout.state or not is_news(current, deployment):
        return
    deployment.shares = shares = _shares(rollout, deployment)
    because = getattr(rollout.state, "because", "")
    tx.save(
        deployment,
        "TrafficMoved",
        f"{deployment.name}: {'; '.join(f'version {s.version} answers {s.whom}' for s in shares)}.",
        arms=[s.model_dump(mode="json", exclude={"whom"}) for s in shares],
        whom={s.arm: s.whom for s in shares},
        rollout=rollout.name,
        by=rollout.led_by or "guards",
        because=because,
    )


def is_news(rollout: Rollout, deployment: Deployment) -> bool:
    """Whether the traffic in the present state of *rollout* is another than was last told."""
    if (deployment.rollout or rollout.name) != rollout.name:
        return False
    return _shares(rollout, deployment) != (deployment.shares or _usual(deployment))


def is_told(deployment: Deployment) -> bool:
    """Whether the last that was told of its traffic is what it is like outside of rollouts."""
    return not deployment.shares or deployment.shares == _usual(deployment)


def _shares(rollout: Rollout, deployment: Deployment) -> list[ArmShare]:
    if rollout.phase in FINAL_PHASES:
        return _usual(deployment)
    divided: Split = split(rollout.spec, rollout.state, is_swap=rollout.is_swap)
    words = whom(rollout.spec, divided)
    arms: list[tuple[ArmName, int, float]] = [
        ("stable", rollout.from_version, divided.stable),
        ("candidate", rollout.to_version, divided.candidate),
        ("shadow", rollout.to_version, divided.shadow),
    ]
    return [ArmShare(arm=a, version=v, percent=p, whom=words[a]) for a, v, p in arms if a in words]


def _usual(deployment: Deployment) -> list[ArmShare]:
    return [ArmShare(arm="stable", version=deployment.version, percent=100.0, whom="everybody")]
