"""What both PySyft edges need and PySyft 0.9.5 does not give: three corrections, two conventions.

Only `datasite.pysyft` and `orchestrator.communication.pysyft` import this module; importing it
applies the corrections, once, for the whole process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import capnp
from capnp.lib.capnp import KjException
from syft.client.api import SyftAPICall
from syft.serde import recursive
from syft.serde.deserialize import _deserialize
from syft.types.server_url import ServerURL
from syft.types.syft_object_registry import SyftObjectRegistry

REFUSED: Final = "Refused by this site: "
"""How the message of every refusal begins.

PySyft's error values carry a text and no kind. A site puts this in front of each refusal, so that
a carrier can tell one (`SecurityError`) from a failure (`DataSiteError`).
"""

_SCHEME: Final = capnp.load(str(Path(__file__).with_name("recursive_serde.capnp"))).RecursiveSerde
_SPARE_WORDS: Final = 1024
_BUILT: ContextVar[frozenset[str] | None] = ContextVar("built", default=None)
"""The types that may be built just now; None for all."""


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


class _Said:
    """One message of PySyft's serialisation, as it is taken apart: under PySyft's own names."""

    def __init__(self, message: Any) -> None:  # noqa: ANN401  Cap'n Proto's reader
        self.canonicalName = _text(message.canonicalName)
        self.version = message.version
        self.fieldsName = [_text(name) for name in message.fieldsName]
        self.fieldsData = message.fieldsData
        self.nonrecursiveBlob = message.nonrecursiveBlob


def _text(data: bytes) -> str:
    if data and not data.endswith(b"\0"):
        message = "a text without its end"
        raise ValueError(message)
    return data[:-1].decode()


@contextmanager
def _read(blob: bytes) -> Iterator[_Said]:
    """Take a message apart; what it says of itself is read once, and cannot be more than it is."""
    limit = 2 * (len(blob) // 8) + _SPARE_WORDS
    with _SCHEME.from_bytes(blob, traversal_limit_in_words=limit) as message:
        yield _Said(message)


def _object_of(blob: bytes) -> Any:  # noqa: ANN401  PySyft is untyped
    built = _BUILT.get()
    with _read(blob) as said:
        if built is not None and said.canonicalName not in built:
            wrong_type = f"a PySyft {said.canonicalName!r} has no place here"
            raise ValueError(wrong_type)
        if not SyftObjectRegistry.has_serde_class(said.canonicalName, said.version):
            unknown = f"PySyft has no {said.canonicalName!r} of version {said.version}"
            raise ValueError(unknown)
        return recursive.rs_proto2object(said)


# pycapnp 2.0.0 ends the process (a segmentation fault) over a text whose last byte is neither zero
# nor ASCII: one byte by a stranger took a site down. As data, the same bytes are read without harm.
# PySyft also sets no limit to what a message of few bytes may claim to hold.
recursive.rs_bytes2object = _object_of


def deserialize_only(blob: bytes, *expected: str, parts: frozenset[str] | None = None) -> Any:  # noqa: ANN401
    """Decode `blob` if its outermost type is one of `expected`, by PySyft's names for them.

    PySyft builds whatever types a message names. Looking first keeps all but what belongs here
    from being built out of what a stranger sent.

    Args:
        blob: The message.
        expected: What it may be.
        parts: What it may consist of; None for anything.

    Raises:
        ValueError: `blob` is no PySyft message, or one of another type.
    """
    try:
        with _read(blob) as said:
            name = said.canonicalName
        if name in expected:
            token = _BUILT.set(None if parts is None else parts.union(expected))
            try:
                return _deserialize(blob, from_bytes=True)
            finally:
                _BUILT.reset(token)
    except (KjException, AttributeError, KeyError, TypeError) as exc:
        raise ValueError("no PySyft message") from exc
    wrong_type = f"a PySyft {name!r} where one of {expected} belongs"
    raise ValueError(wrong_type)
