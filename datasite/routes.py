"""The routes that PySyft's clients need, over HTTP, and none of PySyft's others."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from core.exceptions import ProtocolError
from datasite import log_in_route
from datasite.log_in_route import LogInRoute

if TYPE_CHECKING:
    from datasite.server import PySyftSite

_CALL: Final = ("POST", "/api/v2/api_call")
_BINARY: Final = "application/octet-stream"

_LARGEST_CALL_BYTES: Final = 1 << 30
"""A call is read whole before anybody knows who sent it, so a stranger could fill the memory."""


class Routes:
    """Every route of a site but that of sessions.

    Signed calls and log-ins go ahead of the others, whose framework costs as much as a call, and
    reads a body of any length.

    Args:
        site: Answers the calls.
        log_ins: Answers log-ins.
    """

    def __init__(self, site: "PySyftSite", log_ins: LogInRoute) -> None:
        self._site = site
        self._others = FastAPI(openapi_url=None)
        self._others.include_router(_others(site))
        self._answers = {
            _CALL: self._call,
            ("POST", log_in_route.PATH): log_ins.answer,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        answer = (
            self._answers.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        )
        if answer is None:
            await self._others(scope, receive, send)
        else:
            response = await answer(Request(scope, receive))
            await response(scope, receive, send)

    async def _call(self, request: Request) -> Response:
        blob = await _body(request)
        if blob is None:
            return Response(f"a call has at most {_LARGEST_CALL_BYTES} bytes", status_code=413)
        try:
            reply = await run_in_threadpool(self._site.call, blob)
        except ProtocolError as exc:
            return Response(str(exc), status_code=400)
        return Response(reply, media_type=_BINARY)


async def _body(request: Request) -> bytes | None:
    """Give the request's body; None when it is too large, of which no more is read."""
    chunks = []
    size_bytes = 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size_bytes += len(chunk)
        if size_bytes > _LARGEST_CALL_BYTES:
            return None
    return b"".join(chunks)


def _others(site: "PySyftSite") -> APIRouter:
    """Give the routes that PySyft's clients need, and none of its others.

    Left out are sign-up, password reset by token, and the streams that forward to other servers.
    """
    router = APIRouter(prefix="/api/v2")

    @router.get("/")
    async def healthy() -> dict[str, str]:
        return {"status": "ok", "time": datetime.now(tz=UTC).isoformat()}

    @router.get("/metadata")
    def metadata() -> dict[str, object]:
        return site.metadata()

    @router.get("/api")
    def api(verify_key: str, communication_protocol: str) -> Response:
        digits = communication_protocol.isdecimal()
        try:
            signatures = site.api(
                verify_key, int(communication_protocol) if digits else communication_protocol
            )
        except ValueError as exc:
            raise HTTPException(400, "the key or the protocol is not readable") from exc
        if signatures is None:
            raise HTTPException(403, "no guests here; log in with an account of this site")
        return Response(signatures, media_type=_BINARY)

    return router
