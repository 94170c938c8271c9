"""Whether the site on this machine answers: `python -m datasite.health [URL]`, exit code 0 or 1.

For a container's health check, which runs every few seconds: the standard library alone, without
curl and without the packages of the site. The question is whether the own process answers, so its
certificate, where it has one, is not verified: that is for those who connect, and a site with an
expired one is not helped by a restart.
"""

import http.client
import os
import ssl
import sys
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

_URL: Final = "http://127.0.0.1:8080/api/v2/"
_TIMEOUT_S: Final = 3.0


def status_of(url: str) -> int:
    """Give the HTTP status that `url` answers with; it is not led elsewhere, nor through a proxy.

    Raises:
        OSError: Nobody answers in time.
        http.client.HTTPException: The answer is no HTTP.
        ValueError: It is no http(s) URL.
    """
    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in {"http", "https"} or not host:
        message = "not an http(s) URL"
        raise ValueError(message)
    connection = (
        http.client.HTTPConnection(host, parts.port, timeout=_TIMEOUT_S)
        if parts.scheme == "http"
        else http.client.HTTPSConnection(
            host,
            parts.port,
            timeout=_TIMEOUT_S,
            context=ssl._create_unverified_context(),  # noqa: S323, SLF001  see the module's docstring
        )
    )
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> int:
    """Ask the URL given as argument, else $DATASITE_HEALTH_URL, else port 8080 of this machine."""
    url = (sys.argv[1:2] or [os.environ.get("DATASITE_HEALTH_URL") or _URL])[0]
    try:
        status = status_of(url)
    except (OSError, ValueError, http.client.HTTPException) as exc:
        sys.stderr.write(f"{url}: {str(exc) or type(exc).__name__}\n")
        return 1
    if status != HTTPStatus.OK:
        sys.stderr.write(f"{url}: HTTP {status}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
