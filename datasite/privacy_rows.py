"""The ledger's tables of differential privacy: budgets, mechanisms of plans, and what was spent."""

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from datasite.ledger import Table


class BudgetRow(Table):
    """What the operator allows to be told of a dataset, all its versions and plans together."""

    __tablename__ = "privacy_budgets"

    dataset: Mapped[str] = mapped_column(primary_key=True)
    epsilon: Mapped[float]
    delta: Mapped[float]
    unit: Mapped[str]


class MechanismRow(Table):
    """A plan's mechanism, as it was fixed when the plan was first worked on."""

    __tablename__ = "privacy_mechanisms"

    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.plan_id"), primary_key=True)
    units: Mapped[int]
    sample_rate: Mapped[float]
    steps: Mapped[int]
    noise_multiplier: Mapped[float]


class EventRow(Table):
    """A round whose result may have left the site, and what it cost; `dataset` is a name."""

    __tablename__ = "privacy_events"
    __table_args__ = (Index("privacy_events_by_dataset", "dataset"),)

    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[str]
    dataset: Mapped[str]
    data_version: Mapped[int]
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.plan_id"))
    round_num: Mapped[int]
    unit: Mapped[str]
    noise_multiplier: Mapped[float]
    sample_rate: Mapped[float]
    steps: Mapped[int]
