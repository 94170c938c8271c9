"""What both PySyft edges need and PySyft 0.9.5 does not give: two corrections, two conventions.

Only `datasite.pysyft` and `orchestrator.communication.pysyft` import this module; importing it
applies the corrections, once, for the whole process.
"""

from typing import Any, Final
from urllib.parse import urlsplit

from capnp.lib.capnp import KjException
from syft.client.api import SyftAPICall
from syft.serde.deserialize import _deserialize
from syft.serde.recursive import recursive_scheme
from syft.types.server_url import ServerURL

REFUSED: Final = "Refused by this site: "
"""How the message of every refusal begins.

PySyft's error values carry a text and no kind. A site puts this in front of each refusal, so that
a carrier can tell one (`SecurityError`) from a failure (`DataSiteError`).
"""

_TYPE_NAME_WORDS: Final = 1 << 20


def _short_call(call: SyftAPICall) -> str:
    return f"SyftAPICall({call.path})"


# PySyft formats each call for a log line even when nothing is logged, and the stock text holds all
# arguments: megabytes of parameters rendered as text, a tenth of the time of a large call.
SyftAPICall.__repr__ = _short_call
SyftAPICall.__str__ = _short_call


def _server_url(_cls: type[ServerURL], url: str | ServerURL) -> ServerURL:
    """Read `url` without forcing port 443 on https, as the stock parser does."""
    if isinstance(url, ServerURL):
        return url
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return ServerURL(
        protocol=parts.scheme,
        host_or_ip=parts.hostname,
        port=parts.port or (443 if parts.scheme == "https" else 80),
        path=parts.path,
        query=parts.query,
    )


# `https://site:9443` otherwise becomes port 443, also on every copy of the address.
ServerURL.from_url = classmethod(_server_url)


def deserialize_only(blob: bytes, *expected: str) -> Any:  # noqa: ANN401  PySyft is untyped
    """Decode `blob` if its outermost type is one of `expected`, by PySyft's names for them.

    PySyft builds whatever type a message names. Looking first keeps all but what belongs here
    from being built out of what a stranger sent.

    Raises:
        ValueError: `blob` is no PySyft message, or one of another type.
    """
    try:
        with recursive_scheme.from_bytes(
            blob, traversal_limit_in_words=_TYPE_NAME_WORDS
        ) as message:
            name = message.canonicalName
        if name in expected:
            return _deserialize(blob, from_bytes=True)
    except (KjException, AttributeError, KeyError, TypeError) as exc:
        raise ValueError("no PySyft message") from exc
    wrong_type = f"a PySyft {name!r} where one of {expected} belongs"
    raise ValueError(wrong_type)
