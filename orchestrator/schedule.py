"""The learning rate over the rounds: worked out here, so that a site sees one number a round.

A plan holds the highest rate; a site accepts a lower one, and no schedule here exceeds its start.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from core.messages import TrainingSettings


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Constant(_Strict):
    """The same rate in every round."""

    kind: Literal["constant"] = "constant"

    def factor(self, round_num: int, rounds: int) -> float:
        """Give 1."""
        del round_num, rounds
        return 1.0


class Cosine(_Strict):
    """Half a cosine wave from 1 to `final`: slow at both ends.

    Source: Loshchilov and Hutter, ICLR 2017, https://arxiv.org/abs/1608.03983, without restarts.
    """

    kind: Literal["cosine"] = "cosine"
    final: float = Field(default=0.01, gt=0, le=1)

    def factor(self, round_num: int, rounds: int) -> float:
        """Give final + (1 − final) (1 + cos(π t)) / 2, with t from 0 to 1 over the rounds."""
        wave = (1 + math.cos(math.pi * _progress(round_num, rounds))) / 2
        return self.final + (1 - self.final) * wave


class Exponential(_Strict):
    """From 1 to `final`, by the same factor each round."""

    kind: Literal["exponential"] = "exponential"
    final: float = Field(default=0.01, gt=0, le=1)

    def factor(self, round_num: int, rounds: int) -> float:
        """Give final^t, with t from 0 to 1 over the rounds."""
        return float(self.final ** _progress(round_num, rounds))


class Step(_Strict):
    """Times `by` after every `every` rounds."""

    kind: Literal["step"] = "step"
    every: int = Field(ge=1)
    by: float = Field(default=0.5, gt=0, le=1)

    def factor(self, round_num: int, rounds: int) -> float:
        """Give by^⌊round / every⌋."""
        del rounds
        return float(self.by ** (round_num // self.every))


def _named(value: Any) -> Any:  # noqa: ANN401 - a YAML value, judged by the field's type
    return {"kind": value} if isinstance(value, str) else value


Schedule = Annotated[
    Constant | Cosine | Exponential | Step, Field(discriminator="kind"), BeforeValidator(_named)
]
"""In YAML the kind alone, as `cosine`, or with its settings, as `{kind: step, every: 10}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTraining:
    """How sites train, round by round.

    Attributes:
        settings: As the plan has them, with the highest learning rate.
        schedule: What becomes of the rate.
        rounds: Of the whole run.
    """

    settings: TrainingSettings
    schedule: Constant | Cosine | Exponential | Step
    rounds: int

    def at(self, round_num: int) -> TrainingSettings:
        """Give the settings of round `round_num`, from 0."""
        settings = self.settings.copy()
        settings["learning_rate"] *= self.schedule.factor(round_num, self.rounds)
        return settings


def _progress(round_num: int, rounds: int) -> float:
    return round_num / (rounds - 1) if rounds > 1 else 0.0
