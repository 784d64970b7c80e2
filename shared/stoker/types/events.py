"""Events: ordered, durable facts about a resource's change."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from stoker.types.base import Time


class Event(BaseModel):
    """One fact. ``id`` grows by commit order; watchers resume from the last id they saw."""

    id: int
    time: Time
    kind: str = Field(description="the resource's kind, e.g. run")
    name: str = Field(description="the resource's name")
    reason: str = Field(description="one stable CamelCase word, e.g. RunStarted")
    message: str = Field(description="a sentence for people")
    data: dict[str, Any] = Field(default_factory=dict, description="evidence; a resource's `phase` after the change")
