"""The learning rate over the rounds: worked out here, so that a site sees one number a round.

    schedule: cosine
    schedule: {kind: step, every: 10}

A plan holds the highest rate; a site accepts a lower one, and no schedule here exceeds its start.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from core.messages import TrainingSettings
from orchestrator.choices import parse_choice
from orchestrator.section import Section


class Schedule(Section, ABC):
    """What becomes of the learning rate; its fields are the options that an experiment may set.

    Every kind keeps this law: the factor is 1 in round 0, and never more.
    """

    kind: str

    @abstractmethod
    def factor(self, round_num: int, rounds: int) -> float:
        """Give what the rate is multiplied by in round `round_num` of `rounds`, from 0."""


class Constant(Schedule):
    """The same rate in every round."""

    kind: Literal["constant"] = "constant"

    def factor(self, round_num: int, rounds: int) -> float:
        """Give 1."""
        del round_num, rounds
        return 1.0


class Cosine(Schedule):
    """Half a cosine wave from 1 to `final`: slow at both ends.

    Source: Loshchilov and Hutter, ICLR 2017, https://arxiv.org/abs/1608.03983, without restarts.
    """

    kind: Literal["cosine"] = "cosine"
    final: float = Field(default=0.01, gt=0, le=1)

    def factor(self, round_num: int, rounds: int) -> float:
        """Give final + (1 − final) (1 + cos(π t)) / 2, with t from 0 to 1 over the rounds."""
        wave = (1 + math.cos(math.pi * _progress(round_num, rounds))) / 2
        return self.final + (1 - self.final) * wave


class Exponential(Schedule):
    """From 1 to `final`, by the same factor each round."""

    kind: Literal["exponential"] = "exponential"
    final: float = Field(default=0.01, gt=0, le=1)

    def factor(self, round_num: int, rounds: int) -> float:
        """Give final^t, with t from 0 to 1 over the rounds."""
        return float(self.final ** _progress(round_num, rounds))


class Step(Schedule):
    """Times `by` after every `every` rounds."""

    kind: Literal["step"] = "step"
    every: int = Field(ge=1)
    by: float = Field(default=0.5, gt=0, le=1)

    def factor(self, round_num: int, rounds: int) -> float:
        """Give by^⌊round / every⌋."""
        del rounds
        return float(self.by ** (round_num // self.every))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "exponential": Exponential,
    "step": Step,
}


def _chosen(value: object) -> Schedule:
    return parse_choice(value, SCHEDULES, tag="kind", noun="schedule")


ScheduleChoice = Annotated[SerializeAsAny[Schedule], BeforeValidator(_chosen)]
"""In YAML the kind alone, or a mapping of `kind` and its options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTraining:
    """How sites train, round by round.

    Attributes:
        settings: As the plan has them, with the highest learning rate.
        schedule: What becomes of the rate.
        rounds: Of the whole run.
    """

    settings: TrainingSettings
    schedule: Schedule
    rounds: int

    def at(self, round_num: int) -> TrainingSettings:
        """Give the settings of round `round_num`, from 0."""
        settings = self.settings.copy()
        settings["learning_rate"] *= self.schedule.factor(round_num, self.rounds)
        return settings


def _progress(round_num: int, rounds: int) -> float:
    return round_num / (rounds - 1) if rounds > 1 else 0.0
