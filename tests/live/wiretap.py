"""Somebody between orchestrator and site: hears all, and may say again or change what was said."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import httpx

_OWN: Final = {"connection", "content-length", "date", "host", "server", "transfer-encoding"}
"""Headers of one connection, which are not passed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheard:
    """A request or an answer on its way.

    Attributes:
        path: Of the request.
        headers: By their names in small letters.
        content: What follows them.
        status: Of the answer; 0 for a request.
    """

    path: str
    headers: dict[str, str]
    content: bytes
    status: int = 0


class Wiretap:
    """An HTTP proxy in front of one site, without TLS.

    Attributes:
        url: Where callers take it for the site.
        requests: What was asked through it.
        answers: What was answered.
        change: Gives the answer that a caller gets for one that came.
    """

    def __init__(self, site_url: str, url: str) -> None:
        self.url = url
        self.requests: list[Overheard] = []
        self.answers: list[Overheard] = []
        self.change: Callable[[Overheard], Overheard] = lambda answer: answer
        self._client = httpx.Client(base_url=site_url, trust_env=False, timeout=60)

    def count(self, path: str) -> int:
        """Give how often something was asked of a path."""
        return sum(request.path == path for request in self.requests)

    def forget(self) -> None:
        """Forget what was heard."""
        self.requests.clear()
        self.answers.clear()

    def say(self, request: Overheard) -> Overheard:
        """Send a request to the site, and give its answer."""
        method = "POST" if request.content else "GET"
        found = self._client.request(
            method, request.path, headers=request.headers, content=request.content
        )
        return Overheard(
            path=request.path,
            headers=_kept(found.headers.multi_items()),
            content=found.content,
            status=found.status_code,
        )

    def pass_on(self, request: Overheard) -> Overheard:
        """Hear a request and its answer; give what the caller gets."""
        self.requests.append(request)
        answer = self.say(request)
        self.answers.append(answer)
        return self.change(answer)

    def close(self) -> None:
        """Let go of the site."""
        self._client.close()


@contextmanager
def tapped(site_url: str) -> Iterator[Wiretap]:
    """Put a wiretap in front of a site."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            request = Overheard(
                path=self.path,
                headers=_kept(self.headers.items()),
                content=self.rfile.read(length),
            )
            answer = wiretap.pass_on(request)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST  # noqa: N815 - the name that the class looks for

        def log_message(self, *_said: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        wiretap = Wiretap(site_url, f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield wiretap
        finally:
            server.shutdown()
            wiretap.close()


def _kept(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers if name.lower() not in _OWN}
