"""Simulated sites: a request in, a reply out, as `datasite.site` answers it.

    decode -> plan -> trainer -> reply

What a real site does for its operator is left out: ledger, audit log, policy, release, publishing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core import wire
from core.codehash import installed_code_hash
from core.enums import DataSiteStatus, PrivacyLevel
from core.exceptions import DataError, DataSiteError, FederatedLearningError, PlanError
from core.messages import DatasetDescription, PlanDecision, SiteDescription
from core.models import available_models
from core.plans import PlanStatus
from core.privacy import is_private
from core.privacy_messages import PrivacyAccount, PrivacyRequest
from core.version import VERSION
from datasite.bounds import excess_of, plan_refusal, require_installed_code
from datasite.consent import WorkRequest, is_of_a_round
from datasite.failures import as_failure, unexpected
from datasite.mechanism import Mechanism, mechanism_of, privately
from datasite.offers import require_offered, require_private
from datasite.plans import plan_id_of
from datasite.private_rounds import account_of, not_private, require_no_sums, units_told
from datasite.simulation.data import ROOM_BYTES, SiteData, SiteFile
from datasite.simulation.states import StateFiles
from datasite.states import NOTHING
from datasite.training.objectives import available_algorithms
from datasite.training.work import Assignment, Job, Worker, perform

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from core.messages import Message, PlanProposal, Preprocessing, SplitSettings
    from core.privacy import PrivacySettings
    from core.schema import DataSchema
    from core.wire import Parcel
    from datasite.data.features import FeatureRows
    from datasite.training.tensors import Tensors

_VERSION = 1
"""Of the dataset: a simulated site has one, which cannot change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What simulated sites are made of; it can go to another process.

    Attributes:
        dataset: The name under which each site has its data.
        schema: Which all of them keep.
        files: Where each site's data lie.
        states: Folder for what sites keep from round to round.
        room_bytes: What all sites may keep of their data in memory together.
    """

    dataset: str
    schema: DataSchema
    files: Mapping[str, SiteFile]
    states: Path
    room_bytes: int = ROOM_BYTES

    @classmethod
    def of(
        cls, *, dataset: str, schema: DataSchema, files: Mapping[str, Path], states: Path
    ) -> Setup:
        """Make simulated sites of the data as they are now.

        Raises:
            DataError: A file cannot be read.
        """
        named = {site_id: SiteFile.at(path, site_id=site_id) for site_id, path in files.items()}
        return cls(dataset=dataset, schema=schema, files=named, states=states)


class SimulatedSites:
    """Sites that do one piece of work at a time, all together; the caller sees to that.

    Args:
        setup: What they are made of.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._data = SiteData(setup.files, setup.schema, room_bytes=setup.room_bytes)
        self._worker = _Worker(self._data)
        self._states = StateFiles(setup.states)
        self._schema = setup.schema.model_dump(mode="json")
        self._proposals: dict[str, PlanProposal] = {}
        self._approved: dict[tuple[str, str], str] = {}
        self._mechanisms: dict[tuple[str, str], Mechanism] = {}

    def handle(self, site_id: str, request: Parcel, email: str) -> Parcel:
        """Answer as the site `site_id`, asked by `email`; what goes wrong is an answer too."""
        try:
            return self._answer(site_id, wire.peek(request), request, email)
        except FederatedLearningError as exc:
            exc.outside = str(exc)  # nothing is kept back: the data are the researcher's own
            error = exc
        except Exception as exc:  # noqa: BLE001 - as a factory, a simulated one must answer
            error = unexpected(exc, site_id=site_id)
        return wire.encode(as_failure(error, site_id=site_id))

    def _answer(self, site_id: str, message: Message, request: Parcel, email: str) -> Parcel:
        match message["kind"]:
            case "describe":
                return wire.encode(self._describe(site_id))
            case "propose":
                return wire.encode(self._approve(site_id, message, email))
            case "plan_status":
                self._agreed(site_id, message["plan_id"], email)
                return wire.encode(_approval(message["plan_id"]))
            case "train" | "evaluate" | "statistics" | "privacy_account":
                return self._work(site_id, message, request, email)
            case kind:
                raise DataSiteError(f"{site_id}: a {kind!r} message is no request")

    def _describe(self, site_id: str) -> SiteDescription:
        return SiteDescription(
            kind="site",
            datasite_id=site_id,
            status=DataSiteStatus.ONLINE.name,
            version=VERSION,
            code_hash=installed_code_hash(),
            models=available_models(),
            algorithms=available_algorithms(),
            datasets=[
                DatasetDescription(
                    name=self._setup.dataset,
                    version=_VERSION,
                    rows=self._data.count_rows(site_id),
                    schema=self._schema,
                )
            ],
        )

    def _approve(self, site_id: str, proposal: PlanProposal, email: str) -> PlanDecision:
        if (proposal["dataset"], proposal["dataset_version"]) != (self._setup.dataset, _VERSION):
            raise DataError(
                f"{site_id}: the dataset {proposal['dataset']} (version "
                f"{proposal['dataset_version']}) is not registered here; registered: "
                f"{self._setup.dataset} (version {_VERSION})",
                site_id=site_id,
            )
        require_offered(proposal, site_id=site_id)
        require_private(proposal, self._setup.schema, site_id=site_id)
        if proposal["privacy_level"] == PrivacyLevel.SECURE_AGGREGATION.value:
            raise PlanError(
                f"{site_id}: a simulated site has no identity for secure aggregation; choose none",
                site_id=site_id,
            )
        require_installed_code(proposal["code_hash"], site_id=site_id)
        plan_id = plan_id_of(proposal, email)
        self._proposals.setdefault(plan_id, proposal)  # one for all sites
        self._approved[site_id, plan_id] = email
        return _approval(plan_id)

    def _agreed(self, site_id: str, plan_id: str, email: str) -> PlanProposal:
        """Give what the site agreed to; as `Plans.query`, the same text for whatever it is not."""
        if self._approved.get((site_id, plan_id)) != email:
            raise PlanError(
                f"{site_id}: {email} has proposed no plan {plan_id[:12]!r} here", site_id=site_id
            )
        return self._proposals[plan_id]

    def _work(
        self,
        site_id: str,
        message: WorkRequest,
        request: Parcel,
        email: str,
    ) -> Parcel:
        plan_id = message["plan_id"]
        agreed = self._agreed(site_id, plan_id, email)
        if is_of_a_round(message) and (excess := excess_of(message, agreed)):
            raise plan_refusal(site_id, plan_id, excess)
        job = self._job(site_id, agreed["split"], agreed.get("privacy"))
        if message["kind"] == "privacy_account":
            return wire.encode(self._account(job, plan_id, agreed))
        if is_private(job["privacy"]):
            require_no_sums(message, site_id=site_id)
            job["mechanism"] = self._mechanism(job, plan_id, agreed)
        if message["kind"] != "train":
            return perform(self._worker, Assignment(job, request)).reply
        state = b""
        if "state_round" in message:
            state = self._states.find(site_id, plan_id, message["state_round"])
        done = perform(self._worker, Assignment(job, request, state))
        if done.state:
            follows = message.get("state_round", NOTHING)
            self._states.keep(site_id, plan_id, message["round_num"], done.state, follows=follows)
        return done.reply

    def _mechanism(self, job: Job, plan_id: str, agreed: PlanProposal) -> Mechanism:
        """Give the plan's mechanism at a site, which follows from its data alone."""
        key, settings = (job["site_id"], plan_id), privately(agreed)
        if settings is None:
            raise not_private(*key)
        if key not in self._mechanisms:
            request = PrivacyRequest(kind="privacy_account", plan_id=plan_id, deadline_s=1.0)
            units = units_told(perform(self._worker, Assignment(job, wire.encode(request))).reply)
            self._mechanisms[key] = mechanism_of(agreed, settings, units)
        return self._mechanisms[key]

    def _account(self, job: Job, plan_id: str, agreed: PlanProposal) -> PrivacyAccount:
        """Give what the plan costs; there is no budget, for the data are the researcher's own."""
        mechanism = self._mechanism(job, plan_id, agreed)
        return account_of(
            agreed,
            mechanism,
            self._setup.schema,
            site_id=job["site_id"],
            trained=0,
            left=agreed["rounds"],
        )

    def _job(self, site_id: str, split: SplitSettings, privacy: PrivacySettings | None) -> Job:
        file = self._setup.files[site_id]
        return Job(
            site_id=site_id,
            file=str(file.path),
            sha256=file.sha256,
            schema=self._schema,
            split=split,
            drift={},
            privacy=privacy,
        )


class _Worker(Worker):
    """A trainer that takes its data from the room that all simulated sites share."""

    def __init__(self, data: SiteData) -> None:
        super().__init__()
        self._data = data

    def _standardised(self, job: Job, name: str, preprocessing: Preprocessing) -> Tensors:
        return self._data.part(job["site_id"], name, job["split"], preprocessing)

    def _features(self, job: Job) -> FeatureRows:
        return self._data.features(job["site_id"])


def _approval(plan_id: str) -> PlanDecision:
    return PlanDecision(
        kind="plan",
        plan_id=plan_id,
        status=PlanStatus.APPROVED.name,
        reason="a simulated site approves every plan",
    )
