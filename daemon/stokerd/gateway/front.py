"""The public surface: which path means what, who may use it, and which arm a request goes to."""

from __future__ import annotations

import asyncio
import math
import time
from random import random
from time import monotonic

import msgspec

from stokerd.gateway.bodies import BadBody, read_body
from stokerd.gateway.call import Call
from stokerd.gateway.client_exchange import ClientExchange
from stokerd.gateway.gateway import Gateway
from stokerd.gateway.http1 import error_body
from stokerd.gateway.keys import KeyRefused
from stokerd.gateway.request import Request
from stokerd.gateway.routing import ArmPlan, Plan
from stokerd.gateway.server import Connection
from stokerd.gateway.shadow_exchange import ShadowExchange
from stokerd.gateway.shadows import Pair
from stokerd.gateway.surface import ENDPOINTS, Endpoint, Shape
from stokerd.gateway.wire import Key

_MODELS = b"/v1/models"
_NAMES_TOLD = 20


class Front:
    """Handles clients' requests. `handle` is what a `Server` wants."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def handle(self, client: Connection, request: Request) -> None:
        """Answer, or set an exchange to work."""
        endpoint = ENDPOINTS.get(request.target) or ENDPOINTS.get(request.path)
        if endpoint is not None:
            if request.method == b"POST":
                self._infer(client, request, endpoint)
            else:
                _refuse_method(client, b"POST", endpoint.shape)
        else:
            self._answer(client, request)

    def abandon_shadows(self) -> None:
        """Break all copies off."""
        for shadow in list(self._gateway.shadows):
            shadow.abandon()

    # Inference.

    def _infer(self, client: Connection, request: Request, endpoint: Endpoint) -> None:
        gateway, sender = self._gateway, request.sender
        keyring = gateway.keyring
        try:
            key = sender.key_of(keyring)
            asked = read_body(endpoint, request.noted.get(b"content-type", b""), request.body)
            found = gateway.table.find(asked.model)
            if found is None:
                _refuse(client, 404, self._unknown(asked.model, key), "model_not_found", "model", endpoint.shape)
                return
            plan, pinned = found
            if key is not None:
                keyring.admit(key, plan.deployment, request.started)
        except BadBody as error:
            _refuse(client, 400, str(error), "invalid_body", None, endpoint.shape)
            return
        except KeyRefused as refused:
            _refuse_key(client, refused, endpoint.shape)
            return
        call = Call(request, endpoint, asked, key)
        request.body = b""
        if pinned is None:
            arm = plan.assign(call, gateway.callers)
            fallback = plan.fallback(arm)
        else:
            arm, fallback = pinned, None
        exchange = ClientExchange(gateway, call, plan, arm, fallback, client, keyring)
        client.work = exchange
        if plan.shadow is not None and pinned is None and random() * 100 < plan.shadow.weight:
            self._copy(plan, plan.shadow, call, exchange if arm is plan.stable else None)
        exchange.start()

    def _copy(self, plan: Plan, shadow: ArmPlan, call: Call, exchange: ClientExchange | None) -> None:
        """Send a copy to the shadow, as soon as the client's own request is on its way, if there is room for it."""
        pair = None
        if plan.keeps_shadow and exchange is not None:
            pair = self._gateway.pairs.open(
                time=time.time() - (monotonic() - call.started),
                deployment=plan.deployment,
                rollout=plan.salt.decode(),
                path=call.endpoint.path,
                caller=call.caller_name,
            )
            exchange.side = pair.stable
        asyncio.get_running_loop().call_soon(self._mirror, plan, shadow, call.copy(), pair)

    def _mirror(self, plan: Plan, shadow: ArmPlan, call: Call, pair: Pair | None) -> None:
        limits, shadows = self._gateway.limits, self._gateway.shadows
        held = sum(copy.body_bytes for copy in shadows)
        has_room = len(shadows) < limits.shadow_in_flight and held + len(call.body) <= limits.shadow_bytes
        if has_room and not plan.waiting():
            if pair is not None and not call.endpoint.multipart:
                pair.ask(call.body)
            ShadowExchange(self._gateway, call, plan, shadow, pair.shadow if pair is not None else None).start()
        elif pair is not None:
            pair.drop()

    def _names(self, key: Key | None) -> list[str]:
        """The models that a key may use."""
        table = self._gateway.table
        if key is None or not key.models:
            return list(table.names)
        return sorted(name for plan in table.plans if plan.deployment in key.models for name in plan.names)

    def _unknown(self, model: str, key: Key | None) -> str:
        names = self._names(key)
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
        else:
            self._tell_models(client, request, path)

    def _tell_models(self, client: Connection, request: Request, path: bytes) -> None:
        try:
            key = request.sender.key_of(self._gateway.keyring)
        except KeyRefused as refused:
            _refuse_key(client, refused, "openai")
            return
        if path == _MODELS:
            models = [self._model(name) for name in self._names(key)]
            client.reply(200, msgspec.json.encode({"object": "list", "data": models}))
            return
        name = path[len(_MODELS) + 1 :].decode("latin-1")
        found = self._gateway.table.find(name)
        if found is None or (key is not None and key.models and found[0].deployment not in key.models):
            _refuse(client, 404, self._unknown(name, key), "model_not_found", "model")
        else:
            client.reply(200, msgspec.json.encode(self._model(name)))

    def _model(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._gateway.adopted_at, "owned_by": "stoker"}


def _refuse(
    client: Connection, status: int, message: str, code: str, param: str | None = None, shape: Shape = "openai"
) -> None:
    client.reply(status, error_body(message, "invalid_request_error", code, param, shape=shape))


def _refuse_key(client: Connection, refused: KeyRefused, shape: Shape) -> None:
    body = error_body(str(refused), refused.kind, refused.code, shape=shape)
    extra: tuple[bytes, ...] = ()
    if refused.status == 401:
        extra = (b"www-authenticate: Bearer",)
    elif refused.retry_after:
        extra = (b"retry-after: %d" % math.ceil(refused.retry_after),)
    client.reply(refused.status, body, extra=extra)


def _refuse_method(client: Connection, allowed: bytes, shape: Shape = "openai") -> None:
    message = f"Only {allowed.decode()} is served here."
    body = error_body(message, "invalid_request_error", "method_not_allowed", shape=shape)
    client.reply(405, body, extra=(b"allow: " + allowed,))
