"""One shape for every refusal, whoever utters it: a service, the validation of a body, or the router."""

from __future__ import annotations

import errno
import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from stoker.errors import Internal, Invalid, NotFound, StokerError, Unavailable

log = logging.getLogger(__name__)
_SHORTAGES = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EAGAIN}
)


def _answer(error: StokerError, status: int | None = None) -> JSONResponse:
    return JSONResponse(error.as_dict(), status_code=status or error.status)


def install(app: FastAPI) -> None:
    """Teach *app* to answer with ``{"code", "message", "hint", "details"}`` always."""

    @app.exception_handler(StokerError)
    async def _stoker(_request: Request, error: StokerError) -> JSONResponse:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def _validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [{"field": ".".join(map(str, e["loc"][1:])), "message": e["msg"]} for e in error.errors()]
        first = f"{problems[0]['field']}: {problems[0]['message']}" if problems else "it can't be read"
        return _answer(Invalid(f"the request can't be taken: {first}.", "See /openapi.json.", problems=problems))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return _answer(NotFound(f"there is nothing at {request.url.path}.", "See /openapi.json.", code="no-route"))
        sentence = f"{request.method} {request.url.path}: {error.detail}."
        return _answer(Invalid(sentence, "See /openapi.json.", code="bad-request"), error.status_code)

    @app.exception_handler(OSError)
    async def _os(request: Request, error: OSError) -> JSONResponse:
        if error.errno not in _SHORTAGES:
            return await _bug(request, error)
        log.warning("%s %s can't be served: %s", request.method, request.url.path, error)
        sentence = f"{request.method} {request.url.path} can't be served now: {error.strerror}."
        hint = "Free disk space, memory or open files (see `ulimit -n`) of the daemon, then ask again."
        return _answer(Unavailable(sentence, hint, code="host-exhausted"))

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return _answer(
            Internal(f"the daemon failed on {request.method} {request.url.path}: {error!r}.", "See its log.")
        )
