"""The datasite itself: `handle(request, caller) -> reply`, and what stands behind it.

It knows nothing of PySyft: `datasite.serving` carries the bytes and says who called. One request:

    head -> who may -> what is asked: a description, a decision, work, a secure sum -> reply

Work is `datasite.workshop`'s.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from loguru import logger

from core import wire
from core.codehash import installed_code_hash
from core.configuration import load_yaml, parse
from core.enums import DataSiteStatus
from core.exceptions import DataError, DataSiteError, FederatedLearningError
from core.interfaces import DataSiteInterface, ModelInterface
from core.messages import (
    CancelRequest,
    DatasetDescription,
    Message,
    PlanDecision,
    PlanProposal,
    PlanQuery,
    SiteDescription,
)
from core.models import available_models
from core.oversight_messages import AuditPage, AuditRequest, PlansPage, PlansRequest
from core.schema import DataSchema
from core.version import VERSION
from core.wire import Parcel
from datasite import audit
from datasite.budgets import Budgets
from datasite.caller import SECURE_KINDS, Caller, require_may_ask
from datasite.configuration import SiteConfig
from datasite.consent import WORK, WorkRequest, facts_of
from datasite.failures import as_failure, unexpected
from datasite.identity import Identity
from datasite.ledger import Ledger
from datasite.local_training import LocalTraining
from datasite.offers import require_known, require_offered, require_private
from datasite.oversight import audit_page, plans_page
from datasite.plans import Plans
from datasite.records import OPERATOR, Records
from datasite.registry import Registry
from datasite.release import require_listed
from datasite.replies import Replies
from datasite.secure.door import SecureDoor
from datasite.trainer import Trainer, TrainerProcess
from datasite.training.objectives import available_algorithms
from datasite.workshop import Workshop


def _own_process(config: SiteConfig) -> Trainer:
    return TrainerProcess(site_id=config.site_id, threads=config.training.threads)


class FactoryDataSite(DataSiteInterface):
    """One factory: its registered data, its plans, its trainer and its ledger.

    Args:
        start_trainer: Makes the trainer when the site is initialised; by default a child process.
    """

    config: SiteConfig
    registry: Registry
    plans: Plans
    budgets: Budgets
    ledger: Ledger

    def __init__(self, start_trainer: Callable[[SiteConfig], Trainer] = _own_process) -> None:
        self._start_trainer = start_trainer
        self._workshop: Workshop | None = None
        self._opened = ExitStack()

    def initialize_datasite(self, config: dict[str, Any]) -> None:
        """See `DataSiteInterface`; `config` is the content of a `site.yaml`."""
        self.open(parse(config, SiteConfig, source="site configuration"))

    def open(self, config: SiteConfig) -> None:
        """Open the kept records and start the trainer."""
        self.close()
        require_known(config.policy)
        self.config = config
        records = Records.open(config)
        self._opened.callback(records.ledger.close)
        self.ledger, self.registry = records.ledger, records.registry
        self.plans, self.budgets = records.plans, records.budgets
        self._identity = Identity.open(config.state)
        replies = Replies(self.ledger, config.state / "replies", site_id=config.site_id)
        self._secure = SecureDoor(records, replies, self._identity)
        trainer = self._start_trainer(config)
        self._opened.callback(trainer.close)
        self._workshop = Workshop(records, trainer, replies, self._secure)

    def allocate(self, size_bytes: int) -> bytearray | memoryview:
        """Give memory for a request's body, where the trainer finds it the quickest."""
        return (
            bytearray(size_bytes) if self._workshop is None else self._workshop.allocate(size_bytes)
        )

    def close(self) -> None:
        """End the trainer and close the ledger, as far as they were opened."""
        self._opened.close()
        self._workshop = None

    def register_data(self, data: dict[str, Any]) -> None:
        """See `DataSiteInterface`."""
        missing = {"name", "file", "schema"} - data.keys()
        if missing:
            raise DataError(f"{self.config.site_id}: to register data, also give {sorted(missing)}")
        given = data["schema"]
        schema = (
            parse(given, DataSchema, source="schema")
            if isinstance(given, dict)
            else load_yaml(Path(given), DataSchema)
        )
        self.registry.register(Path(data["file"]), schema, name=data["name"], who=OPERATOR)

    def train_local_model(
        self, global_model: ModelInterface, training_config: dict[str, Any]
    ) -> dict[str, Any]:
        """See `DataSiteInterface`; `training_config` has the fields of `LocalTraining`.

        The site trains on its own behalf: no plan is asked for, and the audit log says so.
        """
        local = parse(training_config, LocalTraining, source="training_config")
        dataset = self.registry.find(local.dataset)
        request = local.request(global_model.get_parameters())
        reply, done = self._open_workshop().train_unasked(dataset, local.split, request)
        if reply["kind"] == "failure":
            raise DataSiteError(reply["message"], site_id=self.config.site_id)
        return cast("dict[str, Any]", wire.decode(done.reply))

    def get_datasite_info(self) -> dict[str, Any]:
        """See `DataSiteInterface`; the fields of `core.messages.SiteDescription`."""
        return cast("dict[str, Any]", self.describe())

    def describe(self) -> SiteDescription:
        """Give what a researcher may know of the site."""
        return SiteDescription(
            kind="site",
            datasite_id=self.config.site_id,
            status=(DataSiteStatus.BUSY if self._is_busy else DataSiteStatus.ONLINE).name,
            version=VERSION,
            code_hash=installed_code_hash(),
            models=available_models(),
            algorithms=available_algorithms(),
            datasets=[
                DatasetDescription(
                    name=dataset.name,
                    version=dataset.version,
                    rows=dataset.rows,
                    schema=dataset.schema.model_dump(mode="json"),
                )
                for dataset in self.registry.current()
            ],
            identity_key=self._identity.public_key,
        )

    def handle(self, request: Parcel, caller: Caller) -> Parcel:
        """Answer one request; what goes wrong is an answer too, a `Failure`.

        What may be told of an error, `datasite.failures` says; the site's own log has the rest.
        """
        try:
            message = wire.peek(request)
        except FederatedLearningError as exc:
            return self._refuse(caller, None, exc)
        try:
            return self._answer(message, request, caller)
        except FederatedLearningError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001 - a factory must answer
            error = unexpected(exc, site_id=self.config.site_id)
        return self._refuse(caller, message, error)

    def _answer(self, message: Message, request: Parcel, caller: Caller) -> Parcel:
        require_may_ask(caller, message["kind"], site_id=self.config.site_id)
        match message["kind"]:
            case "describe":
                return self._told(self.describe())
            case "audit" | "plans":
                return self._told(self._shown(message, caller))
            case "propose" | "plan_status" | "cancel":
                return self._told(self._decision(message, caller))
            case "train" | "evaluate" | "statistics" | "privacy_account":
                return self._open_workshop().answer(message, request, caller)
            case (
                "secure_keys" | "secure_shares" | "secure_mask" | "secure_confirm" | "secure_unmask"
            ):
                return self._secure.answer(message, request, caller)
            case kind:
                raise DataSiteError(f"{self.config.site_id}: a {kind!r} message is no request")

    def _decision(
        self, message: PlanProposal | PlanQuery | CancelRequest, caller: Caller
    ) -> PlanDecision:
        """Say where a plan stands: one that is proposed now, or the caller's own."""
        if message["kind"] == "plan_status":
            return self.plans.query(message["plan_id"], caller).decision()
        if message["kind"] == "cancel":
            return self._cancel(message, caller)
        dataset = self.registry.find(message["dataset"], message["dataset_version"])
        require_offered(message, site_id=self.config.site_id)
        require_private(message, dataset.schema, site_id=self.config.site_id)
        self._secure.require_sound(message)
        return self.plans.propose(message, caller, rows=dataset.rows).decision()

    def _cancel(self, message: CancelRequest, caller: Caller) -> PlanDecision:
        """Stop what the caller's own plan has under way in a round, and write that down."""
        decision = self.plans.query(message["plan_id"], caller).decision()
        stopped = self._open_workshop().call_off(message["plan_id"], message["round_num"])
        detail = {"round_num": message["round_num"], "stopped": stopped}
        self._audit(caller.email, "cancel", message["plan_id"], decision, detail)
        return decision

    @property
    def _is_busy(self) -> bool:
        return self._workshop is not None and self._workshop.is_busy

    def _open_workshop(self) -> Workshop:
        if self._workshop is None:
            raise DataSiteError(f"{self.config.site_id}: the site is closed")
        return self._workshop

    def _told(self, reply: Message) -> Parcel:
        return wire.encode(require_listed(reply, site_id=self.config.site_id))

    def _shown(self, message: AuditRequest | PlansRequest, caller: Caller) -> AuditPage | PlansPage:
        """Give a page of the audit log or of the plans, and write down who read it."""
        page: AuditPage | PlansPage
        after, site_id = message["after"], self.config.site_id
        if message["kind"] == "audit":
            page = audit_page(self.ledger, after=after, site_id=site_id)
        else:
            page = plans_page(self.plans, after=after, site_id=site_id)
        self._audit(caller.email, f"{message['kind']} read", None, page, {"after": after})
        return page

    def _audit(
        self, who: str, action: str, plan_id: str | None, reply: Message, detail: dict[str, Any]
    ) -> None:
        audit.write(self.ledger, audit.answered(who, action, plan_id, reply, detail))

    def _refuse(
        self, caller: Caller, message: Message | None, error: FederatedLearningError
    ) -> Parcel:
        """Write the refusal down and give it as an answer."""
        failure = as_failure(error, site_id=self.config.site_id)
        reply = self._told(failure)
        action = "unreadable request" if message is None else message["kind"]
        plan_id = cast("dict[str, str]", message or {}).get("plan_id")
        try:
            detail = {**self._facts(message, caller), "bytes_out": len(reply)}
            self._audit(caller.email, action, plan_id, failure, detail)
        except DataSiteError as exc:  # a full disk: the caller is answered all the same
            logger.bind(site_id=self.config.site_id).error("no audit row: {}", exc)
        return reply

    def _facts(self, message: Message | None, caller: Caller) -> dict[str, Any]:
        if message is None or message["kind"] not in WORK | SECURE_KINDS:
            return {}
        request = cast("WorkRequest", message)
        plan = self.plans.own(request["plan_id"], caller)
        return {} if plan is None else facts_of(plan, request)
