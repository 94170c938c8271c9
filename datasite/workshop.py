"""Where a site works: each request in its turn, stopped when need be, kept before it is answered.

plan -> its turn -> answered already? -> trainer -> release -> ledger -> reply
"""

from functools import partial
from time import monotonic
from typing import Final, NamedTuple, cast

from loguru import logger

from core import wire
from core.codehash import installed_code_hash
from core.messages import Message, SplitSettings, TrainRequest
from core.privacy import PrivacySettings, is_private, smallest_group
from core.privacy_messages import PrivacyAccount
from core.wire import Parcel
from datasite import audit
from datasite.caller import Caller
from datasite.consent import Consent, DataRequest, Grant, WorkRequest
from datasite.entries import summary, worked
from datasite.fields import METRICS, PRIVATE_METRICS
from datasite.plans import Plan
from datasite.private_rounds import PrivateRounds
from datasite.records import OPERATOR, Records
from datasite.registry import Dataset
from datasite.release import Terms, released, require_listed
from datasite.replies import Answers, Replies
from datasite.secure.door import SecureDoor
from datasite.secure.terms import settings_of
from datasite.states import NOTHING, States
from datasite.trainer import Trainer, Watch, unwatched
from datasite.training.work import Assignment, Done, Job
from datasite.under_way import UnderWay

_PAUSE_S: Final = 1.0
"""Between two lines about rounds of one plan in the site's log."""


class _Task(NamedTuple):
    """What a plan comes to: the trainer's job, and what its replies are held to."""

    job: Job
    terms: Terms


class Workshop:
    """Does the work of one site.

    Args:
        records: The site's.
        trainer: Does the fitting and the counting.
        replies: The site's stored replies.
        secure: Takes part in the sums of its plans.
    """

    def __init__(
        self, records: Records, trainer: Trainer, replies: Replies, secure: SecureDoor
    ) -> None:
        site_id = records.config.site_id
        self._site_id = site_id
        self._config = records.config
        self._ledger = records.ledger
        self._registry = records.registry
        self._trainer = trainer
        self._replies = replies
        self._secure = secure
        self._consent = Consent(records)
        self._private = PrivateRounds(records.budgets, site_id=site_id)
        self._states = States(records.ledger, site_id=site_id)
        self._under_way = UnderWay(site_id=site_id)
        self._logged = "", 0.0
        self._last: tuple[Plan, Dataset, _Task] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is worked on."""
        return self._under_way.is_busy

    def answer(self, message: WorkRequest, request: Parcel, caller: Caller) -> Parcel:
        """Work on a request, or give the stored reply when this very one was answered before.

        Raises:
            SecurityError: The caller's plan does not cover it, or the data are not what they were.
            SiteBusyError: Others had the trainer for as long as the request may take.
            CalledOffError: Nobody waits for it any more.
            DataSiteError: The work was not done, or cannot be kept.
        """
        grant = self._consent.grant(message, caller)
        job, terms = self._task_of(grant)
        with self._under_way.turn(message, self._allowed_s(message)) as turn:

            def watch() -> None:
                turn.require_wanted()
                self._consent.require_standing(grant)

            if turn.has_waited:
                watch()
            mechanism = self._private.mechanism(grant, partial(self._counted, job, watch))
            if message["kind"] == "privacy_account":
                return self._told(grant, caller, self._private.account(grant, mechanism))
            if message["kind"] == "train":
                if mechanism is not None:
                    job = job.copy()
                    job["mechanism"] = mechanism
                return self._train(grant, terms, Assignment(job, request), caller, watch)
            self._consent.begin(grant)
            reply, done = self._perform(Assignment(job, request), terms, message, watch)
            with self._consent.conclude(grant, reply) as connection:
                audit.append(connection, worked(grant, caller, reply, done))
            return done.reply

    def train_unasked(
        self, dataset: Dataset, split: SplitSettings, request: TrainRequest
    ) -> tuple[Message, Done]:
        """Train on the site's own behalf: no plan is asked for, and the audit log says so.

        Raises:
            SiteBusyError: Others had the trainer for as long as the request may take.
            DataSiteError: The work was not done.
        """
        with self._under_way.turn(None, request["deadline_s"]):
            job, terms = self._task(dataset, split, None)
            assignment = Assignment(job, wire.encode(request))
            reply, done = self._perform(assignment, terms, request, unwatched)
        facts = {
            "dataset": dataset.name,
            "data_version": dataset.version,
            "code_hash": installed_code_hash(),
            "bytes_out": 0,
        }
        entry = audit.answered(OPERATOR, "train locally", None, reply, facts)
        audit.write(self._ledger, entry)
        return reply, done

    def call_off(self, plan_id: str, round_num: int) -> int:
        """Stop what is under way in a round of a plan; how many requests that were."""
        return self._under_way.call_off(plan_id, round_num)

    def allocate(self, size_bytes: int) -> bytearray | memoryview:
        """Give memory for a request's body, where the trainer finds it the quickest."""
        return self._trainer.allocate(size_bytes)

    def _train(
        self, grant: Grant, terms: Terms, asked: Assignment, caller: Caller, watch: Watch
    ) -> Parcel:
        message = cast("TrainRequest", grant.request)
        plan_id, round_num = grant.plan.plan_id, message["round_num"]
        name = asked.request.name
        answers = Answers(plan_id=plan_id, round_num=round_num, kind="train", request=name)
        secure = settings_of(grant.plan.proposal)
        is_kept = secure is None or self._secure.is_kept(answers)
        stored = self._replies.find(answers)
        if stored is not None and is_kept:
            return stored
        self._consent.begin(grant)
        mechanism = asked.job.get("mechanism")
        self._private.require_room(grant, mechanism)
        assignment = asked._replace(state=self._state(grant.plan, message))
        reply, done = self._perform(assignment, terms, message, watch)
        kept = None
        if secure is not None and reply["kind"] == "update":
            kept = self._secure.kept(secure, asked.request, done.reply)
            done = done._replace(reply=kept.reply)
        with self._consent.conclude(grant, reply) as connection:
            if kept is not None:
                self._secure.keep(connection, answers, kept)
            if reply["kind"] == "update":
                self._private.pay(connection, grant, mechanism, round_num)
                is_paid = mechanism is not None
                self._replies.keep(connection, answers, done.reply, is_paid=is_paid)
                if done.state:
                    follows = message.get("state_round", NOTHING)
                    self._states.keep(connection, plan_id, round_num, done.state, follows=follows)
            audit.append(connection, worked(grant, caller, reply, done))
        self._log(plan_id, round_num, reply)
        return done.reply

    def _told(self, grant: Grant, caller: Caller, account: PrivacyAccount) -> Parcel:
        """Give the answer to who asks for a plan's account, written down."""
        kind, plan_id = grant.request["kind"], grant.plan.plan_id
        entry = audit.answered(caller.email, kind, plan_id, account, grant.facts)
        audit.write(self._ledger, entry)
        return wire.encode(require_listed(account, site_id=self._site_id))

    def _log(self, plan_id: str, round_num: int, reply: Message) -> None:
        """Say how a round went; of short rounds of one plan, no more than one a second.

        Nobody reads more, each has its row in the audit log, and a line takes a tenth of a short
        round's time.
        """
        plan_before, begin = self._logged
        if reply["kind"] == "update" and plan_id == plan_before and monotonic() < begin + _PAUSE_S:
            return
        self._logged = plan_id, monotonic()
        logger.bind(site_id=self._site_id, round_num=round_num).info(
            "round {}: {}", round_num, summary(reply)
        )

    def _counted(self, job: Job, watch: Watch, request: Parcel) -> Parcel:
        """Have the trainer count, for the site itself."""
        assignment, deadline_s = Assignment(job, request), self._config.training.deadline_s
        return self._trainer.perform(assignment, deadline_s=deadline_s, watch=watch).reply

    def _state(self, plan: Plan, message: TrainRequest) -> bytes:
        """Give what the site keeps for the plan's algorithm, as the request counts on it."""
        if "state_round" not in message:
            return b""
        return self._states.find(plan.plan_id, message["state_round"])

    def _perform(
        self, assignment: Assignment, terms: Terms, message: DataRequest, watch: Watch
    ) -> tuple[Message, Done]:
        """Have the trainer do it; what may leave the site. Called in its turn."""
        deadline_s = self._allowed_s(message)
        done = self._trainer.perform(assignment, deadline_s=deadline_s, watch=watch)
        reply, parcel = released(done.reply, terms, message)
        return reply, done._replace(reply=parcel)

    def _allowed_s(self, message: WorkRequest) -> float:
        """Give how long the request may take: the caller's deadline, within the site's own."""
        most_s = self._config.training.deadline_s
        return most_s if message["kind"] == "statistics" else min(most_s, message["deadline_s"])

    def _task_of(self, grant: Grant) -> _Task:
        """Give the task of a plan, the same object as long as nothing has changed."""
        agreed = grant.plan.proposal
        plan, dataset, task = self._last or (None, None, None)
        if task is None or plan is not grant.plan or dataset is not grant.dataset:
            task = self._task(grant.dataset, agreed["split"], agreed.get("privacy"))
            self._last = grant.plan, grant.dataset, task
        return task

    def _task(
        self, dataset: Dataset, split: SplitSettings, privacy: PrivacySettings | None
    ) -> _Task:
        drift = {} if is_private(privacy) else self._registry.drift(dataset)
        job = Job(
            site_id=self._site_id,
            file=str(dataset.file),
            sha256=dataset.sha256,
            schema=dataset.schema.model_dump(mode="json"),
            split=split,
            drift=drift,
            privacy=privacy,
        )
        terms = Terms(
            site_id=self._site_id,
            minimum_count=max(self._config.release.minimum_count, smallest_group(privacy)),
            schema=dataset.schema,
            drift=drift,
            metrics=PRIVATE_METRICS if is_private(privacy) else METRICS,
        )
        return _Task(job, terms)
