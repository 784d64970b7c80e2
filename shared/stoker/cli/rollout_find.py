"""Which rollout is meant: by its own name, by its deployment's, by what it brought."""

from __future__ import annotations

from stoker.client import Client
from stoker.errors import Conflict, NotFound
from stoker.types.rollouts import Promoted, Rollout
from stoker.types.serving import Deployment


def find_rollout(client: Client, name: str, *, is_active: bool = False) -> Rollout:
    """The rollout of that name, or of the deployment of that name: the one that goes on, else the newest.

    Raises `NotFound`, or `Conflict` when the deployment has none (with *is_active*: none that goes on).
    """
    try:
        return client.get(Rollout, name)
    except NotFound:
        pass
    try:
        deployment = client.get(Deployment, name)
    except NotFound:
        raise NotFound(
            f"there is no rollout and no deployment named {name!r}.", "`stoker get rollouts` lists what there is."
        ) from None
    if deployment.rollout is not None:
        return client.get(Rollout, deployment.rollout)
    past = client.list(Rollout, deployment=name)
    if is_active or not past:
        more = f"; `stoker rollout back {name}` takes back the one that was promoted last" if past else ""
        raise Conflict(
            f"deployment {name} is in no rollout{' now' if past else ''}.",
            f"Start one with `stoker rollout start {name} --to VERSION`{more}.",
            code="no-rollout",
        )
    return max(past, key=lambda r: r.created_at)


def promoted(client: Client, deployment: Deployment) -> Rollout:
    """The rollout that brought what *deployment* serves. Raises `Conflict` if none did, or one goes on."""
    name, version = deployment.name, deployment.version
    if deployment.rollout is not None:
        raise _going_on(client.get(Rollout, deployment.rollout))
    found = [
        (rollout.state.finished_at, rollout)
        for rollout in client.list(Rollout, deployment=name)
        if isinstance(rollout.state, Promoted) and rollout.to_version == version
    ]
    if not found:
        raise Conflict(
            f"no rollout brought version {version} to deployment {name}: nothing says what it served before.",
            f"`stoker deployment history {name}` may; `stoker rollout start {name} --to VERSION` brings any version.",
            code="no-rollout",
        )
    return max(found, key=lambda x: x[0])[1]


def _going_on(rollout: Rollout) -> Conflict:
    name = rollout.deployment
    if rollout.phase in ("rolling-back", "returning"):
        hint = f"It goes back to version {rollout.from_version} already: `stoker rollout watch {name}` follows it."
    else:
        hint = f"`stoker rollout abort {name}` gives all traffic back to version {rollout.from_version}."
    return Conflict(
        f"deployment {name} is in rollout {rollout.name} now ({rollout.phase}).", hint, code="rollout-active"
    )


def to_take_back(client: Client, name: str) -> Rollout:
    """The rollout of that name; or of that deployment, the one that goes on, else the one that was promoted last.

    Raises `NotFound` or `Conflict`.
    """
    try:
        return find_rollout(client, name, is_active=True)
    except Conflict:  # the deployment is in none now
        return promoted(client, client.get(Deployment, name))


def free_name(client: Client, deployment: str) -> str:
    """A name for the next rollout of *deployment*: ``chat-3``."""
    taken = {r.name for r in client.list(Rollout)}
    stem = deployment[:56]
    return next(n for i in range(1, len(taken) + 2) if (n := f"{stem}-{i}") not in taken)


def refuse_known(client: Client, name: str) -> None:
    """Raises `Conflict` if there is one: a spec applied again changes nothing, but a user means to start something."""
    try:
        known = client.get(Rollout, name)
    except NotFound:
        return
    raise Conflict(f"there is a rollout {name} already ({known.phase}).", "Give this one another --name.")
