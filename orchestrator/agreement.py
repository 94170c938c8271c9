"""What orchestrator and sites agree on before round 0: the data, the plan, the preprocessing."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from core.exceptions import ConfigurationError, DataError, PlanError, WaitExpiredError
from core.messages import (
    AlgorithmSpec,
    DatasetDescription,
    DescribeRequest,
    ModelSpec,
    PlanDecision,
    PlanProposal,
    PlanQuery,
    Preprocessing,
    SensorStatistics,
    SiteDescription,
    SplitSettings,
    StatisticsRequest,
)
from core.plans import PlanStatus
from core.privacy import SecureAggregation
from core.schema import DataSchema
from orchestrator.communication.base import SiteCommunication
from orchestrator.configuration import ClassWeight, ExperimentConfig
from orchestrator.fleet import Answers, Fleet
from orchestrator.privacy import plan_settings
from orchestrator.travel import Travel

_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the sites offered, and the plans they approved; a site that joins later adds its own.

    Attributes:
        schema: The same at every site.
        plan_ids: The approved plan of each site.
        rows: Rows that each site has registered; no update can rest on more.
        secure: What the plans allow of secure aggregation; None at another level.
    """

    schema: DataSchema
    plan_ids: dict[str, str]
    rows: dict[str, int]
    secure: SecureAggregation | None = None


def describe_sites(fleet: Fleet, site_ids: Sequence[str]) -> Answers[SiteDescription]:
    """Ask the sites what they are and offer."""
    return fleet.ask(site_ids, partial(describe, fleet.communication))


def describe(communication: SiteCommunication, site_id: str) -> SiteDescription:
    """Ask one site what it is and offers."""
    return communication.request(DescribeRequest(kind="describe"), SiteDescription, site_id)


def find_dataset(site: SiteDescription, name: str) -> DatasetDescription:
    """Give the dataset `name` of the site.

    Raises:
        DataError: The site has none of that name.
    """
    for dataset in site["datasets"]:
        if dataset["name"] == name:
            return dataset
    known = ", ".join(dataset["name"] for dataset in site["datasets"]) or "none"
    raise DataError(
        f"{site['datasite_id']}: has no dataset {name!r}; it has: {known}. Its operator registers "
        f"one with 'datasite data register FILE --schema SCHEMA --name {name}'",
        site_id=site["datasite_id"],
    )


def require_alike(sites: Mapping[str, SiteDescription], dataset: str) -> DataSchema:
    """Give the one schema that all sites have for `dataset`.

    Raises:
        DataError: They differ in their schemas.
        ConfigurationError: They differ in the training code that is installed.
    """
    first, *others = (sites[name] for name in sorted(sites))
    for site in others:
        require_like(site, first, dataset)
    return DataSchema.model_validate(find_dataset(first, dataset)["schema"])


def require_like(site: SiteDescription, example: SiteDescription, dataset: str) -> None:
    """Do nothing when `site` has the schema of `example` for `dataset`, and the same code.

    Raises:
        DataError: They differ in their schemas.
        ConfigurationError: They differ in the training code that is installed.
    """
    name, other = site["datasite_id"], example["datasite_id"]
    if find_dataset(site, dataset)["schema"] != find_dataset(example, dataset)["schema"]:
        raise DataError(
            f"{name}: its schema of {dataset!r} differs from that of {other}; "
            "register the data with one schema at every site",
            site_id=name,
        )
    if site["code_hash"] != example["code_hash"]:
        raise ConfigurationError(
            f"{name} runs other training code ({site['code_hash'][:12]}) than {other} "
            f"({example['code_hash'][:12]}); install the same release at both",
            site_id=name,
        )


def model_spec(config: ExperimentConfig) -> ModelSpec:
    """Give the model as messages name it."""
    return ModelSpec(type=config.model.type, options=config.model.options)


def split_settings(config: ExperimentConfig) -> SplitSettings:
    """Give the split as messages hold it; without a seed of its own it has the run's."""
    seed = config.seed if config.split.seed is None else config.split.seed
    return SplitSettings(test=config.split.test, validation=config.split.validation, seed=seed)


def propose(
    fleet: Fleet,
    sites: Mapping[str, SiteDescription],
    config: ExperimentConfig,
    algorithm: AlgorithmSpec,
    *,
    run_id: str,
    secure: SecureAggregation | None = None,
) -> Answers[PlanDecision]:
    """Propose the run to each site; the same run again is the same plan."""

    def propose_to(site_id: str) -> PlanDecision:
        proposal = proposal_to(sites[site_id], config, algorithm, run_id=run_id, secure=secure)
        return fleet.communication.request(proposal, PlanDecision, site_id)

    return fleet.ask(sites, propose_to)


def proposal_to(
    site: SiteDescription,
    config: ExperimentConfig,
    algorithm: AlgorithmSpec,
    *,
    run_id: str,
    secure: SecureAggregation | None,
) -> PlanProposal:
    """Give the plan of the run for one site.

    Raises:
        DataError: It has no such dataset.
    """
    return PlanProposal(
        kind="propose",
        run_id=run_id,
        dataset=config.dataset,
        dataset_version=find_dataset(site, config.dataset)["version"],
        model=model_spec(config),
        algorithm=algorithm,
        training=config.training_settings(),
        split=split_settings(config),
        privacy_level=config.privacy.level,
        rounds=config.rounds,
        code_hash=site["code_hash"],
        **Travel(config.compression).form,
        **plan_settings(config.privacy, secure),
    )


def require_approved(decision: PlanDecision, site_id: str) -> str:
    """Give the id of a plan that is approved.

    Raises:
        PlanError: It is not, and why.
    """
    if decision["status"] != PlanStatus.APPROVED.name:
        raise PlanError(
            f"{site_id}: plan {decision['plan_id'][:12]} is {decision['status']}: "
            f"{decision['reason']}",
            site_id=site_id,
        )
    return decision["plan_id"]


def wait_for_approval(
    fleet: Fleet,
    proposed: Mapping[str, PlanDecision],
    *,
    limit_s: float,
    waiting: Callable[[Sequence[str]], None],
) -> Answers[PlanDecision]:
    """Ask until every plan is decided or `limit_s` has passed; `waiting` is told for whom.

    Denied plans, and those that nobody decided in time, come back as failures.
    """
    begin = time.monotonic()

    def decided(site_id: str) -> PlanDecision:
        decision = proposed[site_id]
        while decision["status"] == PlanStatus.WAITING.name:
            if time.monotonic() - begin > limit_s:
                raise WaitExpiredError(
                    f"{site_id}: its operator did not decide on plan {decision['plan_id'][:12]} "
                    f"within {limit_s:g} s; 'datasite plans approve {decision['plan_id'][:12]}' "
                    "there, then 'orchestrator resume'",
                    site_id=site_id,
                )
            fleet.halt.wait(_POLL_S)
            query = PlanQuery(kind="plan_status", plan_id=decision["plan_id"])
            decision = fleet.communication.request(query, PlanDecision, site_id)
        require_approved(decision, site_id)
        return decision

    undecided = [s for s, d in proposed.items() if d["status"] == PlanStatus.WAITING.name]
    if undecided:
        waiting(sorted(undecided))
    return fleet.ask(proposed, decided)


def collect_statistics(
    fleet: Fleet, plan_ids: Mapping[str, str], participants: Sequence[str]
) -> Answers[SensorStatistics]:
    """Ask the participants for the sums over their rows."""

    def statistics(site_id: str) -> SensorStatistics:
        request = StatisticsRequest(kind="statistics", plan_id=plan_ids[site_id])
        return fleet.communication.request(request, SensorStatistics, site_id)

    return fleet.ask(participants, statistics)


def agree_on_preprocessing(
    statistics: Sequence[SensorStatistics], weighting: ClassWeight
) -> Preprocessing:
    """Give one scaler and one class weight from the sites' sums.

    `mean` and `scale` are mean and standard deviation over all rows of the participants; a
    feature that never varies is only shifted.

    Raises:
        DataError: A site's sums do not fit the others', there are no rows, or rows of one label
            only, from which no class weight follows.
    """
    _require_fitting(statistics)
    count = sum(site["count"] for site in statistics)
    negatives, positives = (
        sum(site["label_counts"][label] for site in statistics) for label in (0, 1)
    )
    totals = [math.fsum(column) for column in zip(*(s["total"] for s in statistics), strict=True)]
    squares = [
        math.fsum(column)
        for column in zip(*(site["total_of_squares"] for site in statistics), strict=True)
    ]
    mean = [total / count for total in totals]
    variance = [square / count - m * m for square, m in zip(squares, mean, strict=True)]
    if weighting is ClassWeight.NONE:
        ratio = 1.0
    elif negatives and positives:
        ratio = negatives / positives
    else:
        raise DataError(
            f"{positives} failures among {negatives + positives} training windows of all sites: no "
            f"class weight follows from that; set training.positive_weight to none"
        )
    return Preprocessing(
        mean=mean,
        scale=[
            math.sqrt(v) if v > 1e-12 * max(1.0, m * m) else 1.0
            for v, m in zip(variance, mean, strict=True)
        ],
        positive_weight=positive_weight(weighting, ratio),
    )


def positive_weight(weighting: ClassWeight, ratio: float) -> float:
    """Give what a failure weighs where there are `ratio` non-failures for each."""
    return {
        ClassWeight.NONE: 1.0,
        ClassWeight.SQRT: math.sqrt(ratio),
        ClassWeight.BALANCED: ratio,
    }[weighting]


def _require_fitting(statistics: Sequence[SensorStatistics]) -> None:
    features = len(statistics[0]["total"])
    for site in statistics:
        numbers = (site["total"], site["total_of_squares"], site["label_counts"])
        lengths = [len(each) for each in numbers]
        if lengths != [features, features, 2] or not site["count"]:
            raise DataError(
                f"{site['datasite_id']}: its statistics are over {site['count']} rows and have "
                f"{lengths} numbers, expected {[features, features, 2]} over at least one row",
                site_id=site["datasite_id"],
            )
