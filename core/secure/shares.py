"""Seeds divided among sites by Shamir's scheme over GF(2^128), and the seals that shares travel in.

A site divides two seeds, that of its masking key and that of its own mask, and gives each site a
share of both in one sealed piece. Nobody but that site opens it (ChaCha20-Poly1305). Its key is of
one sender, one receiver and one list of keys, and seals one piece, so that it needs no nonce.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

SEED_BYTES: Final = 16
_NONCE: Final = bytes(12)


class SharePair(NamedTuple):
    """One site's shares of another's two seeds."""

    masking: bytes
    own_mask: bytes


def divide(seed: bytes, sites: Sequence[str], threshold: int) -> dict[str, bytes]:
    """Give each site its share of `seed`; any `threshold` of them give it back.

    Args:
        seed: 16 bytes.
        sites: Sorted; a site's place is where its share's polynomial is taken.
        threshold: At most as many as there are sites.
    """
    shares = Shamir.split(threshold, len(sites), seed)
    return {site_id: share for site_id, (_, share) in zip(sites, shares, strict=True)}


def combine(shares: Mapping[str, bytes], sites: Sequence[str], threshold: int) -> bytes:
    """Give the seed of which these are `threshold` shares or more; of other shares, any 16 bytes.

    Args:
        shares: By site.
        sites: As they were divided among.
        threshold: As it was divided by.
    """
    places = {site_id: place for place, site_id in enumerate(sites, start=1)}
    chosen = sorted(shares)[:threshold]
    return bytes(Shamir.combine([(places[site_id], shares[site_id]) for site_id in chosen]))


def seal(key: bytes, pair: SharePair) -> str:
    """Give both shares so that only who has `key` can read them, as hexadecimal digits."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, pair.masking + pair.own_mask, None).hex()


def unseal(key: bytes, sealed: str) -> SharePair:
    """Give what was sealed.

    Raises:
        ValueError: It was sealed with another key, or changed since.
    """
    try:
        plain = ChaCha20Poly1305(key).decrypt(_NONCE, bytes.fromhex(sealed), None)
    except InvalidTag as exc:
        message = "it was sealed with another key, or changed since"
        raise ValueError(message) from exc
    return SharePair(plain[:SEED_BYTES], plain[SEED_BYTES:])
