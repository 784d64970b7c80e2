"""What all resources share."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$")
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?$")
_UNIT_BYTES = {
    **{prefix: 1000**n for n, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}i": 1024**n for n, prefix in enumerate("KMGT", 1)},
}
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)


def _duration(value: Any) -> Any:
    """Take ``30``, ``30s``, ``5m``, ``1.5h``, ``250ms`` or ``2d`` as seconds."""
    if isinstance(value, str):
        match = _DURATION.match(value.strip())
        if not match:
            raise ValueError("expected a duration such as 30s, 5m, 1.5h or 2d")
        return float(match[1]) * _UNIT_SECONDS[match[2]]
    return value


def _size(value: Any) -> Any:
    """Take ``1048576``, ``512MiB``, ``20GiB``, ``1.5Gi`` or ``20GB`` as bytes."""
    if isinstance(value, str):
        match = _SIZE.match(value.strip())
        if not match:
            raise ValueError("expected a size such as 512MiB, 20GiB or 20GB")
        return int(float(match[1]) * (_UNIT_BYTES[match[2]] if match[2] else 1))
    return value


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Name = Annotated[str, Field(pattern=NAME_PATTERN, description="lower-case letters, digits, '.', '_' and '-'")]
Seconds = Annotated[float, BeforeValidator(_duration), Field(ge=0)]
"""A duration; specs may say ``30s``, ``5m``, ``1.5h``; it is kept in seconds."""
Bytes = Annotated[int, BeforeValidator(_size), Field(ge=0)]
"""A size; specs may say ``512MiB``, ``20GiB``, ``20GB``; it is kept in bytes."""
Time = Annotated[datetime, AfterValidator(_utc)]


class Strict(BaseModel):
    """A model that refuses fields it doesn't know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Spec(Strict):
    """What a person writes: the wanted side of a resource."""


class State(Strict):
    """One variant of a resource's observed side; ``phase`` tells which."""


class Resource(BaseModel):
    """A thing with a kind and a name that the daemon keeps."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: ClassVar[str]
    plural: ClassVar[str]

    name: str
    created_at: Time = Field(default_factory=now)
