"""One session of secure aggregation, seen from the orchestrator: it relays, adds up, and unmasks.

It is not asked to be honest: what the sites check of it, `datasite.secure.participant` says.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch

from core.exceptions import AggregationError, FederatedLearningError, ProtocolError
from core.secure.addends import numbers_of
from core.secure.context import Context, digest_of
from core.secure.masks import Vector
from core.secure_messages import (
    Confirmation,
    Keys,
    MaskedUpdate,
    PublicKeys,
    SealedShares,
    SecureReply,
    Unmasking,
)
from core.wire import Packed
from orchestrator.masked_sum import MaskedSum
from orchestrator.round_context import RoundContext

if TYPE_CHECKING:
    from core.messages import Request

R = TypeVar("R", bound=SecureReply)
K = TypeVar("K")


class Session:
    """One run of the five steps; what each gives goes into the next.

    Args:
        run: What stays the same in the run.
        context: What the session is bound to.
        like: The parameters that the sites started from.
        fewest: Fewest sites that make a round.
        lost: Takes in the sites that do not answer, and why.
    """

    def __init__(
        self,
        run: RoundContext,
        context: Context,
        like: Packed,
        fewest: int,
        lost: dict[str, FederatedLearningError],
    ) -> None:
        self._run = run
        self._context = context
        self._numbers = numbers_of(like)
        self._fewest = fewest
        self._lost = lost
        self._keys: Mapping[str, Keys] = {}
        self._sealed: Mapping[str, Mapping[str, str]] = {}
        self._masked: MaskedSum

    @property
    def survivors(self) -> list[str]:
        """The sites that are in the sum."""
        return self._masked.survivors

    def agree(self, site_ids: Sequence[str]) -> None:
        """Pass on keys, and what each site shares with each other."""

        def signed(site_id: str, answer: PublicKeys) -> bool:
            message = self._context.advertisement(site_id, answer["keys"])
            return self._context.is_signed(site_id, message, answer["keys"]["signature"])

        told = self._ask("keys", site_ids, PublicKeys, lambda _site_id: {}, signed, taken=_as_it_is)
        keys = {site_id: told[site_id]["keys"] for site_id in self._allowed(told)}
        self._keys = keys
        self._sealed = self._ask(
            "shares",
            keys,
            SealedShares,
            lambda _site_id: {"keys": keys},
            lambda site_id, answer: answer["sealed"].keys() == keys.keys() - {site_id},
            taken=lambda _site_id, answer: answer["sealed"],
        )

    def add_up(self) -> None:
        """Collect the masked updates."""
        self._masked = MaskedSum(self._context, self._keys, self._numbers)

        def shared_with(site_id: str) -> dict[str, object]:
            sealed = self._sealed.items()
            return {"sealed": {peer: each[site_id] for peer, each in sealed if peer != site_id}}

        def fits(_site_id: str, answer: MaskedUpdate) -> bool:
            tensor = answer["parameters"].get("masked", torch.empty(0))
            return (tuple(tensor.shape), tensor.dtype) == ((self._numbers,), torch.int64)

        def add(site_id: str, answer: MaskedUpdate) -> None:
            numbers = answer["parameters"]["masked"].numpy()
            self._masked.add(site_id, numbers.view(np.uint64))

        self._ask("mask", self._sealed, MaskedUpdate, shared_with, fits, taken=add)

    def opened(self) -> Vector:
        """Have the sites agree on who is in the sum, and open it."""
        survivors, sharing = self.survivors, self._sealed.keys()

        def signed(site_id: str, answer: Confirmation) -> bool:
            message = self._context.confirmation(digest_of(self._keys), survivors)
            return self._context.is_signed(site_id, message, answer["signature"])

        confirmations = self._ask(
            "confirm",
            survivors,
            Confirmation,
            lambda _site_id: {"survivors": survivors},
            signed,
            taken=lambda _site_id, answer: answer["signature"],
        )
        shares = self._ask(
            "unmask",
            confirmations,
            Unmasking,
            lambda _site_id: {"confirmations": confirmations},
            lambda _site_id, answer: answer["shares"].keys() == sharing,
            taken=lambda _site_id, answer: answer["shares"],
        )
        return self._masked.opened(sharing, shares)

    def _ask(
        self,
        step: str,
        site_ids: Iterable[str],
        reply: type[R],
        fields: Callable[[str], Mapping[str, object]],
        fits: Callable[[str, R], bool],
        *,
        taken: Callable[[str, R], K],
    ) -> Mapping[str, K]:
        """Take one step at these sites.

        Args:
            step: Its name in the kind of request.
            site_ids: Whom to ask.
            reply: What they answer with.
            fields: What the request to one site has beside plan, round and session.
            fits: Whether an answer is as it must be; a site whose is not counts as lost.
            taken: See `Fleet.take`.

        Raises:
            AggregationError: Too few are left; it names who was lost at which step, and why.
        """
        round_num = self._context.round_num

        def question(site_id: str) -> R:
            request = {
                "kind": f"secure_{step}",
                "plan_id": self._run.plan_ids[site_id],
                "round_num": round_num,
                "session_id": self._context.session_id,
                **fields(site_id),
            }
            answer = asked(self._run, site_id, request, reply, round_num)
            if not fits(site_id, answer):
                raise ProtocolError(
                    f"{site_id}: what it answered at step {step!r} does not fit what the others "
                    "have; is its plan or its release another?",
                    site_id=site_id,
                )
            return answer

        answers = self._run.fleet.take(site_ids, question, taken)
        for site_id, error in answers.failed.items():
            self._lost[site_id] = error
            error.add_note(f"lost at step {step!r} of secure aggregation")
        self._require_enough(step, len(answers.ok))
        return answers.ok

    def _require_enough(self, step: str, answered: int) -> None:
        """Do nothing while enough are left: before the sum is fixed, as many as the run asks for.

        Raises:
            AggregationError: There are fewer.
        """
        threshold = self._context.settings["threshold"]
        is_fixed = step in {"confirm", "unmask"}
        fewest = threshold if is_fixed else self._fewest
        if answered < fewest:
            reasons = "".join(
                f"\n  {site_id}: {' '.join([str(error), *notes_of(error)])}"
                for site_id, error in sorted(self._lost.items())
            )
            raise AggregationError(
                f"round {self._context.round_num}: {answered} sites answered at step {step!r} of "
                f"secure aggregation, and it takes {fewest} (threshold {threshold}); nothing of "
                f"any update was learned, and the round can be repeated. Lost:{reasons}",
                round_num=self._context.round_num,
            )

    def _allowed(self, told: Mapping[str, PublicKeys]) -> list[str]:
        """Give whose keys go on: all, or those that were in a sum of the round before.

        Raises:
            AggregationError: Of those, some are missing.
        """
        bound = {tuple(sorted(a["bound_to"])) for a in told.values() if "bound_to" in a}
        if not bound:
            return sorted(told)
        only = min(bound)
        missing = sorted(set(only) - told.keys())
        if len(bound) > 1 or missing:
            raise AggregationError(
                f"round {self._context.round_num}: shares were given for the sum of "
                f"{', '.join(only)} before, and sites give none for a sum of others, whose "
                f"difference could be one update; missing: {', '.join(missing) or 'none'}. Resume "
                "when all of them answer",
                round_num=self._context.round_num,
            )
        return list(only)


def asked(
    context: RoundContext,
    site_id: str,
    request: Mapping[str, object],
    reply: type[R],
    round_num: int,
) -> R:
    """Give a site's answer, which is its own and of the round.

    Raises:
        ProtocolError: It is not.
        FederatedLearningError: As the site answered.
    """
    communication = context.fleet.communication
    answer = communication.request(cast("Request", request), reply, site_id)
    if (answer["datasite_id"], answer["round_num"]) != (site_id, round_num):
        raise ProtocolError(
            f"{site_id}: answered for {answer['datasite_id']} in round {answer['round_num']}, "
            f"asked was round {round_num}",
            site_id=site_id,
        )
    return answer


def notes_of(error: BaseException) -> list[str]:
    """Give what was added to an error on its way."""
    return [f"({note})" for note in getattr(error, "__notes__", [])]


def _as_it_is(_site_id: str, answer: R) -> R:
    return answer
