"""A round that the site trains on its own behalf: no plan is asked for."""

from pydantic import BaseModel, ConfigDict

from core.fields import Count, Positive
from core.messages import (
    AlgorithmSpec,
    ModelSpec,
    Parameters,
    Preprocessing,
    SplitSettings,
    TrainingSettings,
    TrainRequest,
)


class LocalTraining(BaseModel):
    """What `FactoryDataSite.train_local_model` takes: a round of the site's own training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    split: SplitSettings
    round_num: Count = 0
    seed: Count = 0
    model: ModelSpec
    algorithm: AlgorithmSpec
    training: TrainingSettings
    preprocessing: Preprocessing
    deadline_s: Positive = 3600.0

    def request(self, parameters: Parameters) -> TrainRequest:
        """Give the request that asks for it, from `parameters` on."""
        return TrainRequest(
            kind="train",
            plan_id="",
            round_num=self.round_num,
            seed=self.seed,
            model=self.model,
            algorithm=self.algorithm,
            training=self.training,
            preprocessing=self.preprocessing,
            deadline_s=self.deadline_s,
            parameters=parameters,
        )
