"""`stoker chat`: what any OpenAI client does, from the command line."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import typer
from httpx_sse import EventSource, SSEError

from stoker.cli import output
from stoker.cli.human import latency
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.errors import Invalid, StokerError, Unavailable, from_dict

app = verb_app()
_TIMEOUT = httpx.Timeout(30.0, read=600.0, connect=5.0)


@app.command(
    epilog=examples(
        'stoker chat chat "What is the capital of France?"',
        "stoker chat chat                        # a conversation; Ctrl-D ends it",
        "git diff | stoker chat chat --system 'Write a commit message for this.'",
        "stoker chat chat@2 hello --json         # version 2, whatever its share of traffic",
    )
)
def chat(
    context: typer.Context,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="A deployment, or deployment@version.")],
    message: Annotated[
        list[str] | None, typer.Argument(metavar="[MESSAGE]", help="What to say; without it, standard input.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system message before it.")] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Same id, same arm of a rollout. Default: a new one.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0, max=2.0, help="0 is greedy.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="STOKER_API_KEY", metavar="KEY", help="If the gateway asks for one."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Talk to a deployment through the gateway.

    With a MESSAGE, or text on standard input, one answer is printed as it comes. On a terminal without a MESSAGE a
    conversation opens. With --json the answer is one JSON object with its timings in seconds.
    """
    with connect(context, home) as client:
        base = client.host().gateway
    settings = {"max_tokens": max_tokens, "temperature": temperature}
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    # No proxies from the environment: the gateway is a neighbour, mostly on loopback.
    # Without TLS no CA bundle either, which takes longer to load than everything else.
    is_tls = base.startswith("https:")
    with httpx.Client(timeout=_TIMEOUT, headers=headers, trust_env=False, verify=is_tls) as http:
        talk = Talk(http, base, deployment, session or uuid.uuid4().hex, settings)
        if system:
            talk.messages.append({"role": "system", "content": system})
        if message:
            _say_once(talk, " ".join(message), as_json=as_json)
        elif not sys.stdin.isatty():
            _say_once(talk, sys.stdin.read(), as_json=as_json)
        elif as_json:
            raise Invalid("--json takes a MESSAGE or standard input.", "See `stoker chat --help`.", code="usage")
        else:
            _converse(talk)


@dataclass
class Talk:
    """A conversation with one deployment; each answer joins its messages."""

    http: httpx.Client
    base: str
    deployment: str
    session: str
    settings: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    def say(self, text: str) -> Iterator[str]:
        """The pieces of the answer to *text*; afterwards ``last`` has its model, usage and timings (seconds).

        Raises `StokerError` for a refusal, `Unavailable` when the gateway or its answer breaks off.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        body = {
            "model": self.deployment,
            "messages": asked,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{k: v for k, v in self.settings.items() if v is not None},
        }
        said: list[str] = []
        began = time.perf_counter()
        self.last = {"model": self.deployment, "arm": None, "version": None}
        self.last |= {"usage": None, "finish_reason": None, "ttft_seconds": None, "total_seconds": None}
        try:
            with self.http.stream(
                "POST", f"{self.base}/chat/completions", json=body, headers={"x-stoker-session": self.session}
            ) as response:
                if not response.is_success:
                    response.read()
                    raise _refused(response)
                self.last["arm"] = response.headers.get("x-stoker-arm")
                self.last["version"] = response.headers.get("x-stoker-version")
                for piece in self._pieces(response):
                    if self.last["ttft_seconds"] is None:
                        self.last["ttft_seconds"] = time.perf_counter() - began
                    said.append(piece)
                    yield piece
        except (httpx.TransportError, httpx.InvalidURL, SSEError) as error:
            what = "broke off" if said else "can't be had"
            raise Unavailable(
                f"the answer of {self.deployment} {what} ({error or type(error).__name__}); gateway {self.base}.",
                "`stoker status` says how the gateway and the deployment are.",
                code="gateway-unreachable",
            ) from error
        self.last["total_seconds"] = time.perf_counter() - began
        self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]

    def _pieces(self, response: httpx.Response) -> Iterator[str]:
        for event in EventSource(response).iter_sse():
            if not event.data:  # a ping
                continue
            if event.data == "[DONE]":
                return
            chunk = _object(event.data)
            if "error" in chunk:
                raise _error_of(chunk, 502)
            self.last["model"] = chunk.get("model") or self.last["model"]
            self.last["usage"] = chunk.get("usage") or self.last["usage"]
            for choice in chunk.get("choices") or []:
                self.last["finish_reason"] = choice.get("finish_reason") or self.last["finish_reason"]
                if content := (choice.get("delta") or {}).get("content"):
                    yield str(content)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Unavailable(f"the engine sent what is no answer: {text[:80]!r}.", code="bad-answer")
    return value


def _refused(response: httpx.Response) -> StokerError:
    try:
        body = response.json()
    except ValueError:
        body = None
    return _error_of(body if isinstance(body, dict) else {}, response.status_code)


def _error_of(body: dict[str, Any], status: int) -> StokerError:
    """OpenAI's ``{"error": {"message", "code"}}`` as one of ours."""
    error = body.get("error", body)
    error = error if isinstance(error, dict) else {"message": str(error)}
    message = str(error.get("message") or f"the gateway answered HTTP {status}.")
    code = error.get("code") or error.get("type")
    told = {"message": message, "hint": str(error.get("hint") or ""), "code": code if isinstance(code, str) else None}
    return from_dict(told, 503 if status in (429, 500, 502, 504) else status)


def _say_once(talk: Talk, text: str, *, as_json: bool) -> None:
    if not text.strip():
        raise Invalid("there is nothing to say.", "Give a MESSAGE, or text on standard input.", code="usage")
    if as_json:
        answer = "".join(talk.say(text))
        output.print_json({"message": answer, **talk.last})
        return
    for piece in talk.say(text):
        output.write(piece)
    output.write("\n")


def _converse(talk: Talk) -> None:
    """Read, answer, again; Ctrl-D or /exit ends it, Ctrl-C stops an answer."""
    import readline  # noqa: F401  line editing and history for input()

    output.note(f"{talk.deployment} via {talk.base}; Ctrl-D or /exit ends, /new forgets what was said.")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            output.write("\n")
            return
        if text == "/exit":
            return
        if text == "/new":
            talk.messages = [m for m in talk.messages if m["role"] == "system"]
        elif text:
            _answer(talk, text)


def _answer(talk: Talk, text: str) -> None:
    try:
        for piece in talk.say(text):
            output.write(piece)
        first, total = (latency(talk.last[k]) for k in ("ttft_seconds", "total_seconds"))
        who = " ".join(f"{k} {talk.last[k]}," for k in ("arm", "version") if talk.last[k])
        output.note(f"\n({who}{' ' if who else ''}first token after {first}, whole answer after {total})")
    except KeyboardInterrupt:
        output.note("\n(stopped)")
    except StokerError as error:
        output.note(f"error: {error}")
