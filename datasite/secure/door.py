"""The requests of secure aggregation at a site: plan, session, step, audit row, answer."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, TypedDict, cast

import numpy as np
import torch

from core import wire
from core.exceptions import DataSiteError, PlanError, SecurityError
from core.messages import ClientUpdate, Message, Parameters, PlanProposal, TrainRequest
from core.models import model_layout
from core.privacy import SecureAggregation
from core.secure.addends import Trained as Facts
from core.secure.addends import addend_of, amount_of, numbers_of
from core.secure.context import Context, trained_on
from core.secure.masks import Vector
from core.secure_messages import (
    Confirmation,
    MaskedUpdate,
    PublicKeys,
    SealedShares,
    SecureKeysRequest,
    SecureMaskRequest,
    SecureRequest,
    Trained,
    Unmasking,
)
from core.wire import Parcel
from datasite import audit
from datasite.caller import Caller
from datasite.consent import facts_of
from datasite.identity import Identity
from datasite.plans import Plan
from datasite.records import Records
from datasite.release import require_listed, require_mask
from datasite.replies import Answers, Replies
from datasite.secure.keeping import Keeping
from datasite.secure.participant import Participant
from datasite.secure.terms import require_sound, settings_of
from datasite.statements import Executes
from datasite.usage import Usage

_PLANS_KEPT: Final = 8
"""Whose sessions are in memory: of those that were asked about last."""


class _Who(TypedDict):
    """What every answer begins with."""

    datasite_id: str
    round_num: int


@dataclass(slots=True, kw_only=True)
class _Session:
    session_id: str
    answers: Answers
    participant: Participant
    bound_to: list[str] | None
    answered: dict[str, tuple[str, Parcel]] = field(default_factory=dict)
    """By kind of request, its name and the answer: what is asked again is answered again."""

    @property
    def round_num(self) -> int:
        return self.answers["round_num"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What becomes of a training's update: the answer, and what stays here."""

    reply: Parcel
    trained_on: str
    addend: Vector


class SecureDoor:
    """Takes part in the sums of the site's plans.

    Args:
        records: The site's.
        replies: Its stored replies.
        identity: Its identity.
    """

    def __init__(self, records: Records, replies: Replies, identity: Identity) -> None:
        self._config = records.config
        self._site_id = records.config.site_id
        self._ledger = records.ledger
        self._plans = records.plans
        self._registry = records.registry
        self._identity = identity
        self._keeping = Keeping(records.ledger, replies, site_id=self._site_id)
        self._usage = Usage(records.ledger, site_id=self._site_id)
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._turn = threading.Lock()

    def require_sound(self, proposal: PlanProposal) -> None:
        """Do nothing when the site would take part in the sums that are proposed, if there are any.

        Raises:
            PlanError: It would not.
        """
        require_sound(
            proposal,
            self._config.secure_aggregation,
            site_id=self._site_id,
            own_key=self._identity.public_key,
        )

    def is_kept(self, answers: Answers) -> bool:
        """Tell whether the update that a training request came to is still here.

        Raises:
            SecurityError: Another one of the round is in a sum already.
        """
        self._keeping.require_free(answers)
        return self._keeping.addend(answers) is not None

    def kept(self, settings: SecureAggregation, request: Parcel, reply: Parcel) -> Kept:
        """Give what is kept of a training's update, and what is answered instead of it.

        Raises:
            DataSiteError: The update is beyond the plan's ranges.
        """
        asked = cast("TrainRequest", wire.decode(request))
        update = cast("ClientUpdate", wire.decode(reply))
        weighting = settings["weighting"]
        facts = Facts(
            samples=update["num_samples"],
            steps=update["num_steps"],
            loss=update["metrics"]["train_loss"],
            amount=amount_of(update["num_steps"], weighting, asked["training"], asked["algorithm"]),
        )
        addend = addend_of(
            update["parameters"], asked["parameters"], facts, settings, site_id=self._site_id
        )
        told = Trained(
            kind="trained",
            datasite_id=self._site_id,
            round_num=asked["round_num"],
            metrics={"fit_s": update["metrics"]["fit_s"]},
        )
        return Kept(
            reply=wire.encode(require_listed(told, site_id=self._site_id)),
            trained_on=trained_on(asked, request.body_hash),
            addend=addend,
        )

    def keep(self, connection: Executes, answers: Answers, kept: Kept) -> None:
        """Store what stays of an update within the caller's transaction."""
        self._keeping.keep(connection, answers, trained_on=kept.trained_on, addend=kept.addend)

    def answer(self, message: SecureRequest, request: Parcel, caller: Caller) -> Parcel:
        """Take one step.

        Raises:
            SecurityError: The plan, the session or the step does not allow it.
            DataSiteError: There is no update of the round.
        """
        plan = self._plans.require_approved(message["plan_id"], caller)
        settings = self._settings(plan, message["round_num"])
        with self._turn:
            if message["kind"] == "secure_keys":
                self._begin(plan, settings, message, request)
            session = self._session(message)
            name, stored = session.answered.get(message["kind"], ("", None))
            if stored is not None and name == request.name:
                self._plans.require_standing(plan.plan_id)
                return stored
            reply = self._step(session, message)
            parcel = wire.encode(reply)
            require_listed(wire.peek(parcel), site_id=self._site_id)
            if reply["kind"] == "masked_update":
                require_mask(parcel, numbers_of(self._layout(plan)), site_id=self._site_id)
            self._conclude(plan, session, message, parcel, caller)
            session.answered[message["kind"]] = request.name, parcel
            return parcel

    def _begin(
        self, plan: Plan, settings: SecureAggregation, message: SecureKeysRequest, request: Parcel
    ) -> None:
        """Put a new session in place of the plan's last one, unless it is asked for again."""
        before = self._sessions.get(plan.plan_id)
        if before is not None and before.answered.get("secure_keys", ("",))[0] == request.name:
            return
        if before is not None and before.session_id == message["session_id"]:
            raise self._refusal(message, "its session has begun already, in another way")
        self._usage.require_session(plan)
        held = self._keeping.require_held(plan.plan_id, message["round_num"])
        context = Context(
            run_id=plan.proposal["run_id"],
            settings=settings,
            round_num=message["round_num"],
            trained_on=held.trained_on,
            session_id=message["session_id"],
        )
        participant = Participant(self._site_id, context, self._identity.sign, held.bound_to)
        self._sessions[plan.plan_id] = _Session(
            session_id=message["session_id"],
            answers=Answers(
                plan_id=plan.plan_id,
                round_num=message["round_num"],
                kind="train",
                request=held.request,
            ),
            participant=participant,
            bound_to=held.bound_to,
        )
        self._sessions.move_to_end(plan.plan_id)
        if len(self._sessions) > _PLANS_KEPT:
            self._sessions.popitem(last=False)

    def _session(self, message: SecureRequest) -> _Session:
        session = self._sessions.get(message["plan_id"])
        asked = message["session_id"], message["round_num"]
        if session is None or (session.session_id, session.round_num) != asked:
            raise self._refusal(
                message,
                "there is no such session: another has begun since, or the site was started anew",
            )
        return session

    def _step(self, session: _Session, message: SecureRequest) -> Message:
        who = _Who(datasite_id=self._site_id, round_num=session.round_num)
        participant = session.participant
        match message["kind"]:
            case "secure_keys":
                return self._advertised(session, who)
            case "secure_shares":
                sealed = participant.shares(message["keys"])
                return SealedShares(kind="sealed_shares", sealed=sealed, **who)
            case "secure_mask":
                return self._masked(session, message)
            case "secure_confirm":
                signature = participant.confirmed(message["survivors"])
                session.answered.pop("secure_mask", None)  # it is there, and it is large
                return Confirmation(kind="confirmation", signature=signature, **who)
            case "secure_unmask":
                shares = participant.unmasked(message["confirmations"])
                return Unmasking(kind="unmasking", shares=shares, **who)

    @staticmethod
    def _advertised(session: _Session, who: _Who) -> PublicKeys:
        reply = PublicKeys(
            kind="public_keys",
            datasite_id=who["datasite_id"],
            round_num=who["round_num"],
            keys=session.participant.keys(),
        )
        if session.bound_to is not None:
            reply["bound_to"] = session.bound_to
        return reply

    def _masked(self, session: _Session, message: SecureMaskRequest) -> MaskedUpdate:
        addend = self._keeping.addend(session.answers)
        if addend is None:
            raise DataSiteError(
                f"{self._site_id}: its update of round {session.round_num} is not kept any more; "
                "send the train request again",
                site_id=self._site_id,
                round_num=session.round_num,
            )
        masked = session.participant.masked(message["sealed"], addend)
        return MaskedUpdate(
            kind="masked_update",
            datasite_id=self._site_id,
            round_num=session.round_num,
            parameters={"masked": torch.from_numpy(masked.view(np.int64))},
        )

    def _conclude(
        self, plan: Plan, session: _Session, message: SecureRequest, parcel: Parcel, caller: Caller
    ) -> None:
        """Write the step down before its answer leaves, while the plan stands."""
        facts = facts_of(plan, message)
        detail = {**facts, "session": session.session_id, "bytes_out": len(parcel)}
        entry = audit.Entry(
            who=caller.email, action=message["kind"], plan_id=plan.plan_id, detail=detail
        )
        with self._ledger.transaction() as connection:
            self._plans.require_standing(plan.plan_id, connection)
            if message["kind"] == "secure_unmask":
                self._keeping.bind(connection, session.answers, session.participant.survivors)
            audit.append(connection, entry)
        if message["kind"] == "secure_keys":
            self._usage.note_session(plan.plan_id)

    def _settings(self, plan: Plan, round_num: int) -> SecureAggregation:
        """Give the plan's settings, when the site takes part in its sums still."""
        settings = settings_of(plan.proposal)
        if settings is None or round_num >= plan.proposal["rounds"]:
            raise PlanError(
                f"{self._site_id}: plan {plan.plan_id[:12]} allows no secure aggregation of round "
                f"{round_num}",
                site_id=self._site_id,
            )
        self.require_sound(plan.proposal)
        if self._site_id not in settings["roster"]:
            raise PlanError(
                f"{self._site_id}: does not stand in the roster of plan {plan.plan_id[:12]}",
                site_id=self._site_id,
            )
        return settings

    def _layout(self, plan: Plan) -> Parameters:
        agreed = plan.proposal
        schema = self._registry.find(agreed["dataset"], agreed["dataset_version"]).schema
        return model_layout(
            agreed["model"], sensors=len(schema.features), window_steps=schema.window_steps
        )

    def _refusal(self, message: SecureRequest, why: str) -> SecurityError:
        return SecurityError(
            f"{self._site_id}: secure aggregation of round {message['round_num']}: {why}",
            site_id=self._site_id,
            round_num=message["round_num"],
        )
