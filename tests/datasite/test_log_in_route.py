"""The route of log-ins, as an ASGI app: what is answered to whom, and when."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, TypeAlias

import httpx
import pytest
from fastapi import Request
from starlette.types import Receive, Scope, Send

from core.exceptions import DataSiteError
from datasite.log_in_route import PATH, REFUSED_AFTER_S, LogInRoute

EMAIL: Final = "researcher@lab.example.com"
PASSWORD: Final = "Researcher-of-the-lab-1"
KEY: Final = b"the key"
REFUSAL: Final = b"refused"

Script: TypeAlias = Callable[[httpx.AsyncClient], Awaitable[list[httpx.Response]]]


class Site:
    """A site with one account, behind the route, and what it wrote down.

    Attributes:
        checking: What a check waits for.
        at_once: How many were checked at once at most.
    """

    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []
        self.checking = threading.Event()
        self.checking.set()
        self.at_once = 0
        self._at_work = 0
        self._counting = threading.Lock()

    def check(self, email: str, password: str) -> tuple[bytes, str | None]:
        """Check a log-in."""
        with self._counting:
            self._at_work += 1
            self.at_once = max(self.at_once, self._at_work)
        self.checking.wait(20)
        with self._counting:
            self._at_work -= 1
        if (email, password) == (EMAIL, PASSWORD):
            return KEY, None
        return REFUSAL, EMAIL if email == EMAIL else ""

    def note(self, email: str, what: str) -> None:
        """Write down a refusal."""
        self.refused.append((email, what))


@pytest.fixture
def site() -> Iterator[Site]:
    """Give a site that checks at once."""
    made = Site()
    yield made
    made.checking.set()


def play(site: Site, script: Script, *, host: str = "192.0.2.1") -> list[httpx.Response]:
    """Run a script of requests against the route; what was answered."""
    route = LogInRoute(site.check, site.note)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await route.answer(Request(scope, receive))
        await response(scope, receive, send)

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, client=(host, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
            return await script(client)

    try:
        return asyncio.run(run())
    finally:
        route.close()


def body(email: str = EMAIL, password: str = PASSWORD) -> bytes:
    """Give a log-in."""
    return json.dumps({"email": email, "password": password}).encode()


def said(*bodies: bytes) -> Script:
    """Say one after the other."""

    async def script(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(PATH, content=each) for each in bodies]

    return script


def test_the_right_password_gives_the_key_at_once(site: Site) -> None:
    """Nothing is written down, and nobody waits for a second."""
    began = time.monotonic()
    [answer] = play(site, said(body()))
    assert (answer.status_code, answer.content) == (200, KEY)
    assert time.monotonic() - began < REFUSED_AFTER_S
    assert site.refused == []


def test_whoever_fails_is_answered_the_same_at_the_same_time(site: Site) -> None:
    """Account or none: status, headers, text, and a second; only the site's log knows more."""
    answers, took_s = [], []
    for email in (EMAIL, "nobody@lab.example.com"):
        began = time.monotonic()
        answers += play(site, said(body(email, "Not-the-password-1")))
        took_s.append(time.monotonic() - began)
    assert {(a.status_code, a.content, str(a.headers)) for a in answers} == {
        (200, REFUSAL, str(answers[0].headers))
    }
    assert min(took_s) >= REFUSED_AFTER_S
    assert site.refused == [(EMAIL, "log-in"), ("", "log-in")]


def test_a_try_within_a_wait_is_refused_unseen(site: Site) -> None:
    """Twelve tries at once: five are checked, the right password among the others is not."""

    async def script(client: httpx.AsyncClient) -> list[httpx.Response]:
        wrong = [client.post(PATH, content=body(password="Wrong-password-1")) for _ in range(11)]
        return await asyncio.gather(*wrong, client.post(PATH, content=body()))

    *_, last = answers = play(site, script)
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 7
    assert (last.status_code, last.headers["retry-after"]) == (429, "1")
    assert last.text == "too many log-ins failed; try again in 1 s"
    assert sorted(site.refused) == [("", "log-in: too many tries")] * 7 + [(EMAIL, "log-in")] * 5


def test_a_flood_is_checked_two_at_a_time_and_has_an_end(site: Site) -> None:
    """64 wait in a row, the others are told to come again: the site's other work goes on."""
    site.checking.clear()

    async def script(client: httpx.AsyncClient) -> list[httpx.Response]:
        flood = [
            asyncio.create_task(client.post(PATH, content=body(f"guess-{n}@lab.example.com")))
            for n in range(100)
        ]
        turned_away = [
            task for task in (await asyncio.wait(flood, timeout=2))[0] if task.result() is not None
        ]
        answers = [task.result() for task in turned_away]
        site.checking.set()
        await asyncio.gather(*flood)
        return answers

    answers = play(site, script)
    assert [answer.status_code for answer in answers] == [503] * 36
    assert {answer.headers["retry-after"] for answer in answers} == {"5"}
    assert site.at_once == 2


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"null", 400),
        (b"[" * 8000, 400),
        (b'{"email": "a@b.example.com"}', 400),
        (b'{"email": 1, "password": "x"}', 400),
        (b'{"email": "a@b.example.com", "password": ["x"]}', 400),
        (b'{"email": "\\ud800@b.example.com", "password": "x"}', 400),
        (b'{"email": "a@b.example.com", "password": "\\ud800"}', 400),
        (b"\xff\xfe", 400),
        (body("a" * 250 + "@b.example.com"), 400),
        (body(password="x" * 10_000), 413),
    ],
    ids=[
        "empty",
        "null",
        "deep",
        "no password",
        "a number",
        "a list",
        "half a character in the e-mail",
        "half a character in the password",
        "no text",
        "a long e-mail",
        "a long password",
    ],
)
def test_what_is_no_log_in_is_not_checked(site: Site, content: bytes, status: int) -> None:
    """It is said what one is, and nothing of what was sent."""
    [answer] = play(site, said(content))
    assert answer.status_code == status
    assert "example.com" not in answer.text
    assert site.at_once == 0


def test_a_body_without_an_end_is_not_read_to_it(site: Site) -> None:
    """After 8 KB it is enough."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1024
            yield b"x" * 1024

    async def script(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(PATH, content=endless())]

    [answer] = play(site, script)
    assert answer.status_code == 413
    assert sent <= 10 * 1024


def test_a_refusal_that_cannot_be_written_down_is_one_all_the_same(site: Site) -> None:
    """A full disk opens no door, and shows nothing."""

    def full(email: str, what: str) -> None:
        raise DataSiteError("the disk is full")

    site.note = full  # type: ignore[method-assign]
    [answer] = play(site, said(body(password="Wrong-password-1")))
    assert (answer.status_code, answer.content) == (200, REFUSAL)
