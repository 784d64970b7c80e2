"""Asks a replica for a real inference: a server that answers ``/health`` alone may still be unable to serve."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from stokerd.serving.engines.base import Probe

TIMEOUT_SECONDS = 60.0


def client_for(address: str, *, timeout: float = TIMEOUT_SECONDS) -> httpx.AsyncClient:
    """An HTTP client of the server at *address* (``unix:PATH`` or ``HOST:PORT``).

    It never speaks TLS, so no certificates are loaded for it, which would take longer than all else that it does.
    """
    if address.startswith("unix:"):
        transport = httpx.AsyncHTTPTransport(uds=address.removeprefix("unix:"), verify=False)
        return httpx.AsyncClient(transport=transport, base_url="http://replica", timeout=timeout)
    return httpx.AsyncClient(base_url=f"http://{address}", timeout=timeout, trust_env=False, verify=False)


async def answers(address: str, probes: Sequence[Probe]) -> tuple[bool, str]:
    """Whether one of *probes* was answered with 200, and else what came instead."""
    said = ""
    try:
        async with client_for(address) as client:
            for probe in probes:
                response = await client.post(probe.path, json=probe.body)
                if response.status_code == 200:
                    return True, ""
                said = f"{probe.path} answered HTTP {response.status_code}: {response.text[:200]}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return False, f"no answer yet ({type(error).__name__})"
    return False, said
