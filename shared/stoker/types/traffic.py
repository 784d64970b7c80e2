"""Single requests as the gateway measured them, and answers that it kept for comparison."""

from __future__ import annotations

from pydantic import Field

from stoker.types.base import Strict, Time


class Request(Strict):
    """One request. Times in seconds, sizes in bytes; TTFT and total count from the request's first byte."""

    time: Time
    deployment: str
    version: int
    arm: str = Field(description="stable, candidate or shadow")
    path: str
    address: str = Field(description="of the replica; empty when none was reached")
    status: int = Field(description="0: no answer")
    is_error: bool = Field(description="status 400 or more, or a broken or stalled answer")
    is_stream: bool
    client_gone: bool = Field(description="the client went away before the end: no error of the arm")
    fell_back: bool = Field(description="stable answered, for want of a healthy replica of the arm chosen")
    finish_reason: str = Field(description="the answer's own word: stop, length, …; empty if it has none")
    ttft_seconds: float | None
    inter_token_seconds: float | None = Field(description="mean gap between pieces of a streamed answer")
    max_gap_seconds: float | None = Field(description="the longest of them")
    total_seconds: float
    queued_seconds: float = Field(description="waited for a replica; part of TTFT and total")
    prompt_tokens: int | None
    completion_tokens: int | None
    request_bytes: int
    response_bytes: int
    caller: str = Field(description="a hash of who called; empty if nothing tells callers apart")
    key: str = Field(description="the API key's id")
    trace: str = Field(description="the trace id of a W3C traceparent")
    is_pinned: bool = Field(default=False, description="the version was asked for by name, as NAME@VERSION")
    lost_version: int = Field(default=0, description="whose replica died with it before stable answered; 0: none")


class Answer(Strict):
    """What one version answered. Times in seconds since the request's first byte."""

    version: int
    status: int
    is_error: bool
    finish_reason: str
    ttft_seconds: float | None
    total_seconds: float
    completion_tokens: int | None
    text: str = Field(description="what it says; the body itself where it has no content")
    is_cut: bool = Field(description="only the beginning of the text was kept")


class AnswerPair(Strict):
    """One request that stable answered to its client, and shadow answered to nobody."""

    time: Time
    deployment: str
    rollout: str
    path: str
    caller: str = Field(description="a hash of who called; empty if nothing tells callers apart")
    question: str = Field(
        default="",
        description="text of the user's last message, or the prompt; a long one without its middle; empty: it has none",
    )
    stable: Answer
    shadow: Answer


class Served(Strict):
    """A time in which a version answered a share of a deployment's requests, as the gateway confirmed it."""

    version: int
    arm: str = Field(description="stable, candidate or shadow")
    percent: float = Field(description="of requests that it answered, or as shadow got copies of")
    whom: str = Field(description="everybody, a share, at most so many callers, targets: in words")
    since: Time
    until: Time | None = Field(description="None: it still does")
    by: str = Field(description="who decided: a user's name, guards, or gateway")
    because: str = ""
    rollout: str = Field(default="", description="in which it was; empty: in none")
