"""What one session of secure aggregation is bound to: signatures, keys and seeds are of no other.

The paper's signatures cover the keys alone. Here they cover also what the site trained on: an
orchestrator that gives each site another model could choose them so that all but one site's change
is 0, and the sum that one's (Pasquini et al., CCS 2022, https://arxiv.org/abs/2111.07380). Sites
that trained on different models do not take each other's keys.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.privacy import SecureAggregation
from core.secure_messages import Keys

KEY_BYTES: Final = 32
_PURPOSE: Final = "federated-maintenance secure aggregation 1"
_SHARED_BY_ALL: Final = ("round_num", "seed", "model", "algorithm", "training", "preprocessing")


def trained_on(request: Mapping[str, object], body_hash: bytes) -> str:
    """Give the SHA-256 of what all sites are to train on alike.

    Args:
        request: The fields of a `TrainRequest`; of these, what may differ from site to site (its
            plan, its deadline, the state that it builds on) is left out.
        body_hash: The name of its tensors' bytes.
    """
    said = {name: request[name] for name in _SHARED_BY_ALL}
    text = json.dumps([said, body_hash.hex()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Context:
    """One session, as each site has to see it for any two of them to understand each other.

    Attributes:
        run_id: The plan's.
        settings: The plan's, with the roster.
        trained_on: What was trained on, see `trained_on`.
        session_id: Chosen by the orchestrator, anew for each session.
    """

    run_id: str
    settings: SecureAggregation
    round_num: int
    trained_on: str
    session_id: str

    def bound(self, use: str, *parts: str) -> bytes:
        """Give bytes that stand for `parts` in one use in this session, and for nothing else.

        What PySyft signs with the same identity is no JSON.
        """
        return json.dumps([*self._said, use, *parts]).encode()

    @cached_property
    def _said(self) -> list[object]:
        settings = json.dumps(self.settings, sort_keys=True).encode()
        plan = [self.run_id, hashlib.sha256(settings).hexdigest()]
        return [_PURPOSE, *plan, self.round_num, self.trained_on, self.session_id]

    def derive(self, secret: bytes, use: str, *parts: str) -> bytes:
        """Give a key of 32 bytes for one use (HKDF-SHA256, RFC 5869)."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=self.bound(use, *parts)).derive(secret)

    def agreed(self, own: X25519PrivateKey, other: str, use: str, *parts: str) -> bytes:
        """Give the key that the owners of two key pairs both come to (X25519, RFC 7748).

        Raises:
            ValueError: `other` is no public key, or one that gives the secret away.
        """
        public = X25519PublicKey.from_public_bytes(bytes.fromhex(other))
        return self.derive(own.exchange(public), use, *parts)

    def masking_key(self, seed: bytes, site_id: str) -> X25519PrivateKey:
        """Give the private key of a site's masks: who has its seed can make all of them."""
        return X25519PrivateKey.from_private_bytes(self.derive(seed, "masking key", site_id))

    def commitment(self, seed: bytes, site_id: str) -> str:
        """Give what binds a site to the seed of its own mask, and tells nobody of it."""
        return hashlib.sha256(self.bound("own mask's seed", site_id, seed.hex())).hexdigest()

    def advertisement(self, site_id: str, keys: Keys) -> bytes:
        """Give what a site signs of its keys."""
        parts = keys["sharing"], keys["masking"], keys["commitment"]
        return self.bound("advertisement", site_id, *parts)

    def confirmation(self, key_list: str, survivors: Iterable[str]) -> bytes:
        """Give what a site signs of the list of sites whose masked updates are there."""
        return self.bound("survivors", key_list, *sorted(survivors))

    def is_signed(self, site_id: str, message: bytes, signature: str) -> bool:
        """Tell whether a site of the roster has signed `message`."""
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.settings["roster"][site_id]))
        try:
            key.verify(bytes.fromhex(signature), message)
        except InvalidSignature:
            return False
        return True


def public_of(key: X25519PrivateKey) -> str:
    """Give the public half as 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def digest_of(keys: Mapping[str, Keys]) -> str:
    """Give the SHA-256 of a list of keys.

    Sites that were shown different lists cannot open each other's shares.
    """
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()
