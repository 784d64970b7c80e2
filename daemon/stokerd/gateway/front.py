"""The OpenAI surface: which path means what, and which arm a request goes to."""

from __future__ import annotations

import asyncio
from random import random

import msgspec

from stokerd.gateway.bodies import BadBody, read_model, with_model
from stokerd.gateway.exchange import Call, ClientExchange, ShadowExchange
from stokerd.gateway.gateway import Gateway
from stokerd.gateway.http1 import error_body
from stokerd.gateway.request import Request
from stokerd.gateway.routing import Plan, caller_key, pick_arm, share_of
from stokerd.gateway.server import Connection
from stokerd.gateway.wire import Arm

INFERENCE = {
    path.encode(): path for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
}
_MODELS = b"/v1/models"
_NAMES_TOLD = 20


class Front:
    """Handles clients' requests. `handle` is what a `Server` wants."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._shadows: set[ShadowExchange] = set()

    def handle(self, client: Connection, request: Request) -> None:
        """Answer, or set an exchange to work."""
        path = INFERENCE.get(request.path)
        if path is not None:
            if request.method == b"POST":
                self._infer(client, request, path)
            else:
                _refuse_method(client, b"POST")
        else:
            self._answer(client, request)

    def abandon_shadows(self) -> None:
        """Break all copies off."""
        for shadow in list(self._shadows):
            shadow.abandon()

    # Inference.

    def _infer(self, client: Connection, request: Request, path: str) -> None:
        gateway = self._gateway
        try:
            model, user = read_model(request.body)
            found = gateway.table.find(model)
            if found is None:
                _refuse(client, 404, self._unknown(model), "model_not_found", "model")
                return
            plan, pinned = found
            body = request.body if pinned is None else with_model(request.body, plan.deployment)
        except BadBody as error:
            _refuse(client, 400, str(error), "invalid_body")
            return
        call = Call(request, path, body, plan.deployment, gateway.table.version)
        request.body = b""
        arm = pinned or _arm_for(plan, request, user)
        fallback = plan.stable if arm is not plan.stable and pinned is None else None
        exchange = ClientExchange(gateway, call, arm, fallback, client)
        client.work = exchange
        exchange.start()
        shadow = plan.shadow
        if shadow is not None and pinned is None and random() * 100 < shadow.weight:
            asyncio.get_running_loop().call_soon(self._mirror, call, shadow)

    def _mirror(self, call: Call, arm: Arm) -> None:
        limits, shadows = self._gateway.limits, self._shadows
        held = sum(shadow.body_bytes for shadow in shadows)
        if len(shadows) < limits.shadow_in_flight and held + len(call.body) <= limits.shadow_bytes:
            ShadowExchange(self._gateway, call, arm, shadows).start()

    def _unknown(self, model: str) -> str:
        names = self._gateway.table.names
        more = f" and {len(names) - _NAMES_TOLD} more" if len(names) > _NAMES_TOLD else ""
        known = f"Known models: {', '.join(names[:_NAMES_TOLD])}{more}." if names else "No model is deployed."
        asked = model[:100].encode("utf-8", "replace").decode()  # JSON can name half a character: a lone surrogate
        return f"The model '{asked}' does not exist. {known}"

    # What the gateway answers by itself.

    def _answer(self, client: Connection, request: Request) -> None:
        path = request.path
        if path != b"/health" and path != _MODELS and not path.startswith(_MODELS + b"/"):
            _refuse(client, 404, f"Nothing is served at {path.decode('latin-1')[:200]}.", "unknown_path")
        elif request.method not in (b"GET", b"HEAD"):
            _refuse_method(client, b"GET, HEAD")
        elif path == b"/health":
            client.reply(200, b'{"status":"ok"}')
        elif path == _MODELS:
            models = [self._model(name) for name in self._gateway.table.names]
            client.reply(200, msgspec.json.encode({"object": "list", "data": models}))
        else:
            name = path[len(_MODELS) + 1 :].decode("latin-1")
            if self._gateway.table.find(name) is None:
                _refuse(client, 404, self._unknown(name), "model_not_found", "model")
            else:
                client.reply(200, msgspec.json.encode(self._model(name)))

    def _model(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._gateway.adopted_at, "owned_by": "stoker"}


def _arm_for(plan: Plan, request: Request, user: str | None) -> Arm:
    if len(plan.shares) == 1:
        return plan.shares[0][1]
    key = caller_key(request.noted.get(b"x-stoker-session"), user, request.noted.get(b"authorization"))
    return pick_arm(plan, random() if key is None else share_of(plan.salt, key))


def _refuse(client: Connection, status: int, message: str, code: str, param: str | None = None) -> None:
    client.reply(status, error_body(message, "invalid_request_error", code, param))


def _refuse_method(client: Connection, allowed: bytes) -> None:
    message = f"Only {allowed.decode()} is served here."
    body = error_body(message, "invalid_request_error", "method_not_allowed")
    client.reply(405, body, extra=(b"allow: " + allowed,))
