"""API keys: who may use the gateway, and how much."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from stoker.types.base import Name, Resource, Strict


class KeyRequest(Strict):
    """A key to make. A limit of 0 is none."""

    name: Name
    models: list[Name] = Field(default=[], description="deployments that it may use; none named: all")
    requests_per_minute: int = Field(default=0, ge=0)
    tokens_per_minute: int = Field(default=0, ge=0, description="of prompts and answers together")
    in_flight: int = Field(default=0, ge=0, description="requests at the same time, for each worker of the gateway")


class ApiKey(Resource):
    """An API key, kept by its hash alone: its text is told once, when it is made."""

    kind: ClassVar[str] = "key"
    plural: ClassVar[str] = "keys"

    digest: str = Field(description="SHA-256 of its text, in hex")
    models: list[str] = []
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    in_flight: int = 0


class NewKey(Strict):
    """A key that was just made, and its ``text``, which is told nowhere else."""

    key: ApiKey
    text: str
