"""The messages of secure aggregation; `core.messages` has the rules and the union of all.

A site trains first, and says no more than that it has. Then come five quick requests, the answers
to each of which the orchestrator hands on with the next. A `session_id` is chosen anew for each
run of them. The paper's consistency check is `secure_confirm`.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

import torch
from pydantic import Field, with_config
from typing_extensions import TypedDict

from core.fields import STRICT, Count, Text
from core.privacy import SITE_KEY

_MOST_SITES = 1000

Tensors = dict[str, torch.Tensor]
SessionId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Key = Annotated[str, Field(pattern=SITE_KEY)]
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Share = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
SealedPair = Annotated[str, Field(pattern=r"^[0-9a-f]{96}$")]
Names = Annotated[list[Text], Field(max_length=_MOST_SITES)]


@with_config(STRICT)
class Trained(TypedDict):
    """Answer to a `TrainRequest` under secure aggregation: the update is kept at the site.

    `metrics` has `fit_s` alone.
    """

    kind: Literal["trained"]
    datasite_id: str
    round_num: Count
    metrics: dict[str, float]


@with_config(STRICT)
class Keys(TypedDict):
    """What a site has others know of its secrets of one session.

    `sharing` and `masking` are X25519 public keys. `commitment` binds it to the seed of its own
    mask. `signature` is its identity's, over the three and all that the session is bound to (see
    `core.secure.context`).
    """

    sharing: Key
    masking: Key
    commitment: Key
    signature: Signature


@with_config(STRICT)
class SecureKeysRequest(TypedDict):
    """Begin a session over the update of a round; an earlier session of the plan ends."""

    kind: Literal["secure_keys"]
    plan_id: Text
    round_num: Count
    session_id: SessionId


@with_config(STRICT)
class PublicKeys(TypedDict):
    """Answer to `SecureKeysRequest`.

    `bound_to` names the sites in whose sum the site has let its update of this round be counted
    before; it does so again in the sum of the same sites alone.
    """

    kind: Literal["public_keys"]
    datasite_id: str
    round_num: Count
    keys: Keys
    bound_to: NotRequired[Names]


@with_config(STRICT)
class SecureSharesRequest(TypedDict):
    """Share your seeds out among the sites whose keys these are, your own among them."""

    kind: Literal["secure_shares"]
    plan_id: Text
    round_num: Count
    session_id: SessionId
    keys: Annotated[dict[Text, Keys], Field(max_length=_MOST_SITES)]


@with_config(STRICT)
class SealedShares(TypedDict):
    """Answer to `SecureSharesRequest`: for each other site, what it alone can open."""

    kind: Literal["sealed_shares"]
    datasite_id: str
    round_num: Count
    sealed: Annotated[dict[Text, SealedPair], Field(max_length=_MOST_SITES)]


@with_config(STRICT)
class SecureMaskRequest(TypedDict):
    """Send your masked update; `sealed` has what each other site has shared with you."""

    kind: Literal["secure_mask"]
    plan_id: Text
    round_num: Count
    session_id: SessionId
    sealed: Annotated[dict[Text, SealedPair], Field(max_length=_MOST_SITES)]


@with_config(STRICT)
class MaskedUpdate(TypedDict):
    """Answer to `SecureMaskRequest`.

    `parameters` has one tensor, `masked`, of int64 (see `core.secure.addends` for what it adds up
    to).
    """

    kind: Literal["masked_update"]
    datasite_id: str
    round_num: Count
    parameters: Tensors


@with_config(STRICT)
class SecureConfirmRequest(TypedDict):
    """Confirm that the masked updates of these sites, and of no others, are there."""

    kind: Literal["secure_confirm"]
    plan_id: Text
    round_num: Count
    session_id: SessionId
    survivors: Names


@with_config(STRICT)
class Confirmation(TypedDict):
    """Answer to `SecureConfirmRequest`: the signature of that list, the only one that is given."""

    kind: Literal["confirmation"]
    datasite_id: str
    round_num: Count
    signature: Signature


@with_config(STRICT)
class SecureUnmaskRequest(TypedDict):
    """Give your shares: of the survivors' own masks, and of the masking keys of the others.

    `confirmations` has the signatures of the list that the site itself has confirmed.
    """

    kind: Literal["secure_unmask"]
    plan_id: Text
    round_num: Count
    session_id: SessionId
    confirmations: Annotated[dict[Text, Signature], Field(max_length=_MOST_SITES)]


@with_config(STRICT)
class Unmasking(TypedDict):
    """Answer to `SecureUnmaskRequest`: one share for each site, of one kind or of the other."""

    kind: Literal["unmasking"]
    datasite_id: str
    round_num: Count
    shares: Annotated[dict[Text, Share], Field(max_length=_MOST_SITES)]


SecureRequest = (
    SecureKeysRequest
    | SecureSharesRequest
    | SecureMaskRequest
    | SecureConfirmRequest
    | SecureUnmaskRequest
)
SecureReply = Trained | PublicKeys | SealedShares | MaskedUpdate | Confirmation | Unmasking
