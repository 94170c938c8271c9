"""The route by which accounts log in: the same answer, at the same time, whoever fails.

    POST /api/v2/login   {"email", "password"}
    200                  the account's signing key, or PySyft's error value: one for every reason
    400, 413             no such object; larger than any
    429                  too many tries failed, see `datasite.log_ins`; Retry-After says the seconds
    503                  too many are being checked; Retry-After likewise

A password costs a quarter of a second of a core to check, so two are checked at once and the others
wait in a row that has an end. A refusal is given a second after it was asked for, however long it
took to find: neither its text nor its time tells whether the account exists.
"""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from loguru import logger
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from core.exceptions import FederatedLearningError
from datasite.log_ins import LogInLimits

PATH: Final = "/api/v2/login"

REFUSED_AFTER_S: Final = 1.0
_BODY_S: Final = 10.0
_CLOSE: Final = {"Connection": "close"}
"""What is left of a request that was not read to its end must not be taken for the next."""

_AT_ONCE: Final = 2
_MOST_WAITING: Final = 64
_BUSY_S: Final = 5

_LARGEST_BYTES: Final = 8192
_LONGEST_EMAIL: Final = 254
"""Of RFC 5321; a longer one has no account."""

CheckLogIn = Callable[[str, str], tuple[bytes, str | None]]
"""E-mail and password in; the answer, and None where it is the key, else whom to write down."""


class LogInRoute:
    """Answers log-ins.

    Args:
        check: Checks an e-mail and a password; takes as long whether or not there is an account.
        on_refused: Told of each refusal: the account's e-mail ("" where there is none), the way in.
    """

    def __init__(self, check: CheckLogIn, on_refused: Callable[[str, str], None]) -> None:
        self._check = check
        self._on_refused = on_refused
        self._limits = LogInLimits()
        self._checking = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        # One that is at work beside the answer: what it costs to write down who was refused is not
        # the same for an account as for a stranger.
        self._notes = ThreadPoolExecutor(1, thread_name_prefix="log-in-notes")

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_BODY_S):
                email, password = _credentials_in(await _body(request))
        except OverflowError:
            return Response(f"a log-in has at most {_LARGEST_BYTES} bytes", 413, _CLOSE)
        except ValueError:
            return Response('a log-in is {"email": "...", "password": "..."}, in JSON', 400, _CLOSE)
        except TimeoutError:
            return Response("the request came in too slowly", 408, _CLOSE)
        except ClientDisconnect:
            return Response(status_code=400)
        if self._waiting >= _MOST_WAITING:
            return _later(503, "too many log-ins at once", _BUSY_S)
        self._waiting += 1
        try:
            async with self._checking:
                return await self._checked(email, password, request, began)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Write down what is left to be."""
        self._notes.shutdown()

    async def _checked(self, email: str, password: str, request: Request, began: float) -> Response:
        host = request.client.host if request.client else ""
        wait_s = self._limits.begin(email, host)
        if wait_s:
            self._note("", "log-in: too many tries")
            return _later(429, "too many log-ins failed", wait_s)
        content, refused = await run_in_threadpool(self._check, email, password)
        if refused is None:
            self._limits.succeed(email, host)
        else:
            self._note(refused, "log-in")
        return _Timed(content, began + REFUSED_AFTER_S if refused is not None else began)

    def _note(self, email: str, what: str) -> None:
        self._notes.submit(self._write_down, email, what)

    def _write_down(self, email: str, what: str) -> None:
        try:
            self._on_refused(email, what)
        except FederatedLearningError as exc:  # a full disk: it is refused all the same
            logger.error("no audit row: {}", exc)


class _Timed(Response):
    """An answer that does not leave before its time; nobody else waits for it."""

    def __init__(self, content: bytes, leaves_at: float) -> None:
        super().__init__(content, media_type="application/octet-stream")
        self._leaves_at = leaves_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(self._leaves_at - asyncio.get_running_loop().time())
        await super().__call__(scope, receive, send)


async def _body(request: Request) -> bytes:
    """Give the request's body.

    Raises:
        OverflowError: It is too large; no more of it is read.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_BYTES:
            raise OverflowError
    return bytes(body)


def _credentials_in(body: bytes) -> tuple[str, str]:
    """Give e-mail and password.

    Raises:
        ValueError: They are not there as texts that could be written down.
    """
    try:
        given = json.loads(body)
        email, password = given["email"], given["password"]
        is_readable = len(str.encode(email)) <= _LONGEST_EMAIL and bool(str.encode(password))
    except (KeyError, TypeError, RecursionError) as exc:  # of texts alone, and no half characters
        raise ValueError("not an object with both") from exc
    if not is_readable:
        raise ValueError("an e-mail of no such length, or an empty password")
    return email, password


def _later(status: int, why: str, wait_s: int) -> Response:
    text = f"{why}; try again in {wait_s} s"
    return Response(text, status, {"Retry-After": str(wait_s)}, "text/plain")
