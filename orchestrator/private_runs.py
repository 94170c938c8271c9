"""Runs with differential privacy: what they cost at each site, told before and after each round.

No statistics are asked for. What preprocessing needs stands in the schema, which says nothing of
the rows; what the noise is, and what can be paid for, each site says in its account.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from core.accounting import Event, epsilon, epsilon_of_group
from core.exceptions import PrivacyBudgetError
from core.messages import Preprocessing
from core.privacy_messages import PrivacyAccount, PrivacyRequest
from orchestrator.agreement import positive_weight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from core.schema import DataSchema
    from orchestrator.configuration import ClassWeight, ExperimentConfig
    from orchestrator.fleet import Answers, Fleet


def preprocessing_of(schema: DataSchema, weighting: ClassWeight) -> Preprocessing:
    """Give scaler and class weight from the schema alone.

    A feature is scaled by the middle and a quarter of where it usually lies or, where the schema
    does not say, as if its values lay evenly in their range: by the middle and (hi − lo)/√12. Of a
    category, whose features are 0 or 1, the scale is ½: the largest deviation that they can have.
    The class weight comes from `label.rate`.
    """
    categories = {f"{column.name}={value}" for column in schema.columns for value in column.values}
    rate = schema.label.rate
    spans = [
        (*bounds, math.sqrt(12)) if usual is None else (*usual, 4.0)
        for bounds, usual in zip(schema.ranges, schema.usual, strict=True)
    ]
    return Preprocessing(
        mean=[(low + high) / 2 for low, high, _ in spans],
        scale=[
            0.5 if feature in categories else (high - low) / deviations
            for feature, (low, high, deviations) in zip(schema.features, spans, strict=True)
        ],
        positive_weight=positive_weight(weighting, (1 - rate) / rate),
    )


def ask_accounts(
    fleet: Fleet,
    plan_ids: Mapping[str, str],
    participants: Sequence[str],
    config: ExperimentConfig,
) -> Answers[PrivacyAccount]:
    """Ask the participants what the run costs; one whose budget is too small for it failed."""

    def account(site_id: str) -> PrivacyAccount:
        request = PrivacyRequest(
            kind="privacy_account", plan_id=plan_ids[site_id], deadline_s=config.limits.call_s
        )
        told = fleet.communication.request(request, PrivacyAccount, site_id)
        left, trained = told["rounds_left"], told["rounds_trained"]
        if left + trained < config.rounds:
            raise PrivacyBudgetError(
                f"{site_id}: its privacy budget allows {left} more rounds of this run, which has "
                f"{config.rounds - trained} to go; run fewer rounds, ask for a smaller "
                "privacy.epsilon, or have its operator decide on more by 'datasite budget set "
                f"{config.dataset}'. With min_sites the run goes on without it",
                site_id=site_id,
            )
        return told

    return fleet.ask(participants, account)


class RunLedger:
    """What a run has cost at each site so far.

    Args:
        accounts: As the sites told before the first of these rounds.
        rounds: The records of the rounds that were run before.
    """

    def __init__(
        self, accounts: Mapping[str, PrivacyAccount], rounds: Sequence[Mapping[str, Any]]
    ) -> None:
        self._accounts = accounts
        answered = Counter(site_id for record in rounds for site_id in record["sites"])
        # A site may have paid for a round whose answer was lost.
        self._trained = {
            site_id: max(answered[site_id], account["rounds_trained"])
            for site_id, account in accounts.items()
        }

    def after(self, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Count a round's sites; what the run has cost then."""
        for site_id in self._trained.keys() & record["sites"].keys():
            account = self._accounts[site_id]
            most = account["rounds_trained"] + account["rounds_left"]
            self._trained[site_id] = min(most, self._trained[site_id] + 1)
        return self.so_far()

    def so_far(self) -> dict[str, dict[str, Any]]:
        """Give by site what the run has cost: `epsilon` at `delta` for one `unit`."""
        return {
            site_id: {
                "epsilon": _cost(account, self._trained[site_id]),
                "delta": account["delta"],
                "unit": account["unit"],
            }
            for site_id, account in self._accounts.items()
        }


def in_words(accounts: Mapping[str, PrivacyAccount]) -> list[str]:
    """Say what a run costs at each site, and how many rounds the budgets allow."""
    return [line for site_id, account in accounts.items() for line in _account(site_id, account)]


def spent_in_words(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what a run has cost, by its last round's record; nothing where that has no cost."""
    spent = rounds[-1].get("privacy", {}) if rounds else {}
    return [
        f"{site_id}: ε = {cost['epsilon']:.3f} per {cost['unit']} at δ = {cost['delta']:g} spent "
        "by this run"
        for site_id, cost in spent.items()
    ]


def _account(site_id: str, account: PrivacyAccount) -> list[str]:
    unit, budget = account["unit"], account.get("budget")
    rounds = account["rounds_trained"] + account["rounds_left"]
    whole = (
        f"{site_id}: ε = {account['epsilon']:g} per {unit} at δ = {account['delta']:g} for the "
        f"whole run; noise σ = {account['noise_multiplier']:.3f}, {account['steps']} steps a round "
        f"on {account['units']:,} {unit}s"
    )
    lines = [whole]
    if budget is None:
        lines.append(f"{site_id}: no budget: its data are the researcher's own")
    else:
        lines.append(
            f"{site_id}: of the dataset's budget ε = {budget['epsilon']:g} per {unit} at δ = "
            f"{budget['delta']:g}, {budget['spent']:.3f} are spent; it allows "
            f"{account['rounds_left']} more rounds of this run"
        )
    windows = account["windows_per_reading"]
    if unit == "window" and windows > 1:
        events = [_event(account, rounds)]
        reading = epsilon_of_group(events, account["delta"], windows)
        says = "" if math.isfinite(reading) else ", which promises nothing"
        lines.append(
            f"{site_id}: one reading lies in up to {windows} windows; for one reading it is "
            f"ε = {reading:.4g} at δ = {account['delta']:g}{says}"
        )
    return lines


def _cost(account: PrivacyAccount, rounds: int) -> float:
    return epsilon([_event(account, rounds)], account["delta"])


def _event(account: PrivacyAccount, rounds: int) -> Event:
    steps = account["steps"] * rounds
    return Event(account["noise_multiplier"], account["sample_rate"], steps)
