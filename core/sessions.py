"""The arithmetic of a session: what site and orchestrator both compute, and nobody else can.

A session is opened by a signed PySyft call, in which each side sends half of an X25519 exchange.
From the shared secret HKDF-SHA256 derives one key for each direction, bound to everything both
sides know of each other: the two PySyft keys that signed call and answer, both halves, and the
session's name. The key itself is never sent. Each message then carries an HMAC-SHA256 over its
counter, its head and the hash of its body.

    Sources: RFC 7748 (X25519), RFC 5869 (HKDF), RFC 2104 (HMAC).
"""

import hmac
import secrets
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PUBLIC_BYTES: Final = 32
"""Length of one half of the exchange."""

_KEY_BYTES: Final = 32
_PURPOSE: Final = b"federated-maintenance session 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parties:
    """Who opens a session with whom; all of it goes into the keys.

    Attributes:
        session_id: The session's name, chosen by the site.
        caller_key: The PySyft verify key of the account that opens it, as text.
        site_key: That of the site.
        caller_public: The caller's half of the exchange, 32 bytes.
        site_public: The site's half.
    """

    session_id: str
    caller_key: str
    site_key: str
    caller_public: bytes
    site_public: bytes


@dataclass(frozen=True, slots=True, repr=False)
class SessionKeys:
    """The two keys of a session, 32 bytes each."""

    request: bytes
    reply: bytes


def new_half() -> X25519PrivateKey:
    """Give a new secret; its public half is what is sent."""
    return X25519PrivateKey.generate()


def new_session_id() -> str:
    """Give a name that nobody guesses: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def derive_keys(own: X25519PrivateKey, other_public: bytes, parties: Parties) -> SessionKeys:
    """Give the session's keys; both sides come to the same.

    Raises:
        ValueError: `other_public` is no half of an exchange, or one that gives the secret away.
    """
    shared = own.exchange(X25519PublicKey.from_public_bytes(other_public))
    bound = _joined(
        _PURPOSE,
        parties.session_id.encode(),
        parties.caller_key.encode(),
        parties.site_key.encode(),
        parties.caller_public,
        parties.site_public,
    )
    derived = HKDF(hashes.SHA256(), 2 * _KEY_BYTES, salt=None, info=bound).derive(shared)
    return SessionKeys(derived[:_KEY_BYTES], derived[_KEY_BYTES:])


def tag(key: bytes, *, counter: int, head: bytes, body_hash: bytes) -> str:
    """Give the HMAC of one message, as hexadecimal digits."""
    return hmac.digest(key, _joined(counter.to_bytes(8, "big"), head, body_hash), "sha256").hex()


def is_tag(given: str, key: bytes, *, counter: int, head: bytes, body_hash: bytes) -> bool:
    """Tell whether `given` is the message's HMAC, in a time that does not tell how nearly."""
    expected = tag(key, counter=counter, head=head, body_hash=body_hash)
    return hmac.compare_digest(given.encode(), expected.encode())


def _joined(*parts: bytes) -> bytes:
    """Join parts so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
