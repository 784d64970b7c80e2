"""Which paths the gateway serves: each that vLLM serves with a ``"model"`` in the request. Pure.

Left out on purpose: what has no model to go by (``/v1/responses/{id}``, which one replica alone remembers), websockets
(``/v1/realtime``), and whatever administers an engine (``/v1/load_lora_adapter``, ``/sleep``, ``/invocations``, …).
A test compares this list with the routes of the vLLM that is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal["openai", "anthropic"]
"""Whose API a path belongs to: how its errors look, and where its body has what."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A POST path. ``multipart``: its body is a form with a file, not JSON."""

    path: str
    shape: Shape
    multipart: bool = False


_JSON = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/chat/completions/batch",
    "/v2/embed",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/score",
    "/v1/score",
    "/generative_scoring",
    "/v1/systemone",
    "/pooling",
    "/classify",
    "/tokenize",
    "/detokenize",
    "/inference/v1/generate",
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/v1/responses/render",
    "/v1/chat/completions/derender",
    "/v1/completions/derender",
    "/cohere/v2/chat",
    "/cohere/v2/chat/render",
)
_ANTHROPIC = ("/v1/messages", "/v1/messages/count_tokens", "/v1/messages/render")
_FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")

ENDPOINTS: dict[bytes, Endpoint] = {
    endpoint.path.encode(): endpoint
    for endpoint in (
        *(Endpoint(path, "openai") for path in _JSON),
        *(Endpoint(path, "anthropic") for path in _ANTHROPIC),
        *(Endpoint(path, "openai", multipart=True) for path in _FORMS),
    )
}
"""POST paths, by their bytes."""
