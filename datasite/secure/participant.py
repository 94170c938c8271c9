"""One site in one session: five steps, each once and in this order, or a `SecurityError`.

    keys -> shares -> masked -> confirmed -> unmasked

What the orchestrator relays is not believed. Keys are signed by the identities of the roster that
the operator approved; shares are sealed by the sites for each other; each list of sites is part of
the one before it, and none is shorter than the threshold t.

Why nobody gets both kinds of share of one site, which would show its update. A site gives one share
for each peer: of its own mask when it stands in the list of survivors, else of its masking key. It
does so for one list in a session, and only when t sites have signed the same. Of n sites let c do
whatever the orchestrator wants, and sign two lists. To confirm both takes 2t signatures, and there
are (n − c) + 2c = n + c. So there is one list when 2t > n + c: with t = ⌊2n/3⌋ + 1 for every
c < n/3. For each peer the honest sites then give shares of one kind alone, and of the other kind
there are c shares at most, fewer than t. With t = ⌊n/2⌋ + 1 it holds for c = 0 alone: a single
site on the side of an orchestrator that lies breaks it.

The same holds for two sessions of one round: a site that has given its shares for one list gives
none for another, in no session, or the difference of two sums would be one site's update.
"""

import secrets
from collections.abc import Callable, Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from core.exceptions import SecurityError
from core.secure.context import Context, digest_of, public_of
from core.secure.masks import Vector, add_mask, sign_of
from core.secure.shares import SEED_BYTES, SharePair, divide, seal, unseal
from core.secure_messages import Keys

Sign = Callable[[bytes], bytes]

_STEPS = ("keys", "shares", "masked", "confirmed", "unmasked", "nothing more")


class Participant:
    """One site in one session; its secrets are gone with it.

    Args:
        site_id: The site, one of the roster.
        context: What the session is bound to.
        sign: Signs as the site's identity.
        bound_to: The survivors that the site gave shares for in an earlier session of the round;
            None when it gave none.
    """

    def __init__(
        self,
        site_id: str,
        context: Context,
        sign: Sign,
        bound_to: Collection[str] | None = None,
    ) -> None:
        self._site_id = site_id
        self._context = context
        self._sign = sign
        self._bound_to = None if bound_to is None else frozenset(bound_to)
        self._done = 0
        self._masking_seed = secrets.token_bytes(SEED_BYTES)
        self._own_seed = secrets.token_bytes(SEED_BYTES)
        self._masking = context.masking_key(self._masking_seed, site_id)
        self._sharing = X25519PrivateKey.generate()
        self._own_keys: Keys | None = None
        self._keys: Mapping[str, Keys] = {}
        self._list = ""
        self._pairs: dict[str, SharePair] = {}
        self._survivors: frozenset[str] = frozenset()

    def keys(self) -> Keys:
        """Give the session's public keys, signed."""
        self._advance("keys")
        keys = Keys(
            sharing=public_of(self._sharing),
            masking=public_of(self._masking),
            commitment=self._context.commitment(self._own_seed, self._site_id),
            signature="",
        )
        keys["signature"] = self._sign(self._context.advertisement(self._site_id, keys)).hex()
        self._own_keys = keys
        return keys

    def shares(self, keys: Mapping[str, Keys]) -> dict[str, str]:
        """Give for each other site a share of both seeds, which it alone can open."""
        self._advance("shares")
        self._require_list(keys.keys(), self._context.settings["roster"].keys(), "keys")
        if keys[self._site_id] != self._own_keys:
            raise self._refusal("the keys that stand for this site are not its own")
        for site_id, theirs in keys.items():
            message = self._context.advertisement(site_id, theirs)
            if not self._context.is_signed(site_id, message, theirs["signature"]):
                raise self._refusal(
                    f"the keys of {site_id} are not signed by its identity for this session: they "
                    "were changed, or it has another plan, or trained on another model"
                )
        self._keys, self._list = keys, digest_of(keys)
        sites, threshold = sorted(keys), self._context.settings["threshold"]
        masking, own_mask = (
            divide(seed, sites, threshold) for seed in (self._masking_seed, self._own_seed)
        )
        pairs = {site_id: SharePair(masking[site_id], own_mask[site_id]) for site_id in sites}
        self._pairs = {self._site_id: pairs.pop(self._site_id)}
        return {peer: seal(self._seal_key(self._site_id, peer), pairs[peer]) for peer in pairs}

    def masked(self, sealed: Mapping[str, str], addend: Vector) -> Vector:
        """Give the addend under the masks shared with those whose shares these are, and its own.

        Args:
            sealed: What each other site has shared with this one.
            addend: Of the site's update.
        """
        self._advance("masked")
        self._require_list({*sealed, self._site_id}, self._keys.keys(), "shares")
        for peer, piece in sealed.items():
            if peer == self._site_id:
                raise self._refusal("a site shares nothing with itself")
            try:
                self._pairs[peer] = unseal(self._seal_key(peer, self._site_id), piece)
            except ValueError as exc:
                raise self._refusal(
                    f"the shares of {peer} cannot be opened: they are of another session, or "
                    "it was shown other keys"
                ) from exc
        masked = addend.copy()
        add_mask(masked, self._context.derive(self._own_seed, "own mask", self._site_id))
        for peer in sealed:
            key = self._agreed(self._masking, self._keys[peer]["masking"], peer, "mask")
            add_mask(masked, key, sign_of(self._site_id, peer))
        return masked

    def confirmed(self, survivors: Collection[str]) -> str:
        """Give the signature of the one list of survivors that the site agrees to."""
        self._advance("confirmed")
        listed = frozenset(survivors)
        if len(listed) != len(survivors):
            raise self._refusal("the list of survivors names a site twice")
        self._require_list(listed, self._pairs.keys(), "masked updates")
        if self._bound_to is not None and listed != self._bound_to:
            raise self._refusal(
                "its update was counted in a sum of this round before, with "
                f"{', '.join(sorted(self._bound_to))}; in a sum of others, the difference of the "
                "two could be one site's update"
            )
        self._survivors = listed
        return self._sign(self._context.confirmation(self._list, listed)).hex()

    def unmasked(self, confirmations: Mapping[str, str]) -> dict[str, str]:
        """Give one share for each site: of its own mask, or of its masking key if it was lost."""
        self._advance("unmasked")
        self._require_list({*confirmations, self._site_id}, self._survivors, "confirmations")
        message = self._context.confirmation(self._list, self._survivors)
        for site_id, signature in confirmations.items():
            if not self._context.is_signed(site_id, message, signature):
                raise self._refusal(
                    f"{site_id} has not signed the list of survivors that this site confirmed"
                )
        if len(confirmations) < self._context.settings["threshold"]:
            raise self._refusal(f"only {len(confirmations)} sites confirmed the list of survivors")
        return {
            site_id: (pair.own_mask if site_id in self._survivors else pair.masking).hex()
            for site_id, pair in self._pairs.items()
        }

    @property
    def survivors(self) -> frozenset[str]:
        """The list that the site has confirmed."""
        return self._survivors

    def _seal_key(self, sender: str, receiver: str) -> bytes:
        peer = receiver if sender == self._site_id else sender
        public = self._keys[peer]["sharing"]
        return self._agreed(self._sharing, public, peer, "shares", self._list, sender, receiver)

    def _agreed(self, own: X25519PrivateKey, public: str, peer: str, *use: str) -> bytes:
        """Give a key shared with a peer; without parts it is of the pair, in either order."""
        parts = use[1:] or tuple(sorted((self._site_id, peer)))
        try:
            return self._context.agreed(own, public, use[0], *parts)
        except ValueError as exc:
            raise self._refusal(f"{peer} has a public key that is none") from exc

    def _require_list(self, found: Collection[str], known: Collection[str], what: str) -> None:
        """Do nothing when a list of sites may follow the one before it."""
        settings = self._context.settings
        if self._site_id not in found:
            raise self._refusal(f"it does not stand in the list of {what} itself")
        strangers = sorted(set(found) - set(known))
        if strangers:
            raise self._refusal(
                f"the list of {what} names {', '.join(strangers)}, not in the list before it"
            )
        if not settings["threshold"] <= len(found) <= settings["sites_per_round"]:
            raise self._refusal(
                f"the list of {what} has {len(found)} sites; the plan has "
                f"{settings['threshold']} to {settings['sites_per_round']}"
            )

    def _advance(self, step: str) -> None:
        expected = _STEPS[self._done]
        if step != expected:
            raise self._refusal(f"{step!r} was asked for, and due is {expected!r}, each once")
        self._done += 1

    def _refusal(self, why: str) -> SecurityError:
        """Give the error of a session that goes no further: what follows a refusal is refused."""
        self._done = len(_STEPS) - 1
        return SecurityError(
            f"{self._site_id}: secure aggregation of round {self._context.round_num}: {why}",
            site_id=self._site_id,
            round_num=self._context.round_num,
        )
