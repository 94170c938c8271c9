"""SCAFFOLD: control variates c_k of the sites, whose mean c the server keeps, cancel their drift.

    x ← x + (η_g/|S|) Σ_{k∈S} (y_k − x),   c ← c + (1/N) Σ_{k∈S} (c_k⁺ − c_k)

Karimireddy et al., ICML 2020, https://arxiv.org/abs/1910.06378, algorithm 1; N counts all sites, S
those of the round. As all start at 0, c is (1/N) Σ_k c_k after every round.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

from pydantic import Field

from core.enums import AggregationMethod, PrivacyLevel
from core.exceptions import AggregationError, ModelError
from core.messages import ClientUpdate, Parameters, TrainingSettings
from core.parameters import (
    add,
    cast_like,
    difference,
    require_finite,
    require_same_layout,
    scale,
    zeros_like,
)
from orchestrator.algorithms.base import Algorithm, AlgorithmSettings, Gathered, Step


class ScaffoldSettings(AlgorithmSettings):
    """The server's step."""

    name: Literal["scaffold"] = "scaffold"
    server_learning_rate: float = Field(default=1.0, gt=0, description="η_g, the server's rate")


class Scaffold(Algorithm):
    """Stochastic controlled averaging; the state is `c`."""

    Settings = ScaffoldSettings
    objective = "scaffold"
    default_aggregation = AggregationMethod.SIMPLE_AVERAGE.value
    only_aggregation = (
        "its control variates are plain means over the sites; choose simple_average (its default) "
        "or another algorithm"
    )
    needs = "sgd without momentum"
    proven_under_dp = False
    keeps_site_state = True

    @classmethod
    def refusals(cls, settings: AlgorithmSettings, training: TrainingSettings) -> list[str]:
        """See `Algorithm.refusals`."""
        refused = super().refusals(settings, training)
        if training["optimizer"] != "sgd" or training["momentum"]:
            refused.append(
                "training.optimizer: scaffold's control variates are means of gradients, which "
                "only plain sgd shows; choose sgd with momentum 0, or another algorithm"
            )
        return refused

    @classmethod
    def privacy_refusals(cls, settings: AlgorithmSettings, level: PrivacyLevel) -> list[str]:
        """See `Algorithm.privacy_refusals`."""
        if level is not PrivacyLevel.SECURE_AGGREGATION:
            return super().privacy_refusals(settings, level)
        return [
            (
                "privacy.level: scaffold under secure_aggregation: sites send the change of their "
                "control variates beside the update, which is not masked; choose fedavg, fedprox, "
                "feddyn, fednova, fedavgm or fedadam"
            )
        ]

    def initial_state(self, parameters: Parameters) -> Mapping[str, Parameters]:
        """Give c = 0."""
        return {"c": zeros_like(parameters)}

    def configure_client_training(self, round_num: int) -> dict[str, Any]:
        """See `FederatedAlgorithmInterface`; sites also get c."""
        return {**super().configure_client_training(round_num), "control": self.sent_beside()}

    def sent_beside(self) -> Parameters:
        """See `Algorithm.sent_beside`: c."""
        return cast_like(self.state["c"], self._control_layout())

    def require_valid(self, update: ClientUpdate) -> float:
        """See `Algorithm.require_valid`; the change of c_k must fit as well."""
        delta_norm = super().require_valid(update)
        site_id = update["datasite_id"]
        try:
            control = update.get("control", {})
            require_same_layout(control, self._control_layout(), whose=f"{site_id}: control")
            require_finite(control, whose=f"{site_id}: control")
        except ModelError as exc:
            raise AggregationError(str(exc), site_id=site_id) from exc
        return delta_norm

    def _step(self, gathered: Gathered) -> Step:
        rate = cast("ScaffoldSettings", self.settings).server_learning_rate
        combined = gathered.combined()
        change = difference(combined.parameters, self.parameters)
        moved = add(self.parameters, scale(change, rate))
        c = add(self.state["c"], scale(gathered.control, 1 / self.num_sites))
        parameters = self.as_global({**combined.parameters, **moved})
        return Step(parameters=parameters, state={"c": c}, sites=combined.sites)

    def _control_layout(self) -> Parameters:
        return {name: t for name, t in self.parameters.items() if t.is_floating_point()}
