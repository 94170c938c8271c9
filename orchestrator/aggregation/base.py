"""What all methods of combining share: their options, clipping, and who counted by how much."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from typing_extensions import TypedDict

from core.clipping import clip_factor, shorten
from core.exceptions import AggregationError, ConfigurationError
from core.messages import Parameters
from core.parameters import as_float64, distance, require_updates


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one site brings to a round: already checked to fit, to be finite, `weight` > 0.

    Attributes:
        parameters: The site's, not the delta.
        weight: How many samples it trained on.
        delta_norm: How far they are from what it received, where that is known already.
    """

    site_id: str
    parameters: Parameters
    weight: float
    delta_norm: float | None = None


class SiteShare(TypedDict, total=False):
    """What became of one site's contribution; under secure aggregation nothing is known of it.

    `share` is its part in the result, from 0 to 1; those of a round add up to 1. `delta_norm` is
    the l2 norm of its parameters minus those it received, before clipping; `clip_factor` is what
    clipping multiplied its delta by (1.0: it was short enough).
    """

    share: float
    delta_norm: float
    clip_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The updates of one round as one.

    Attributes:
        parameters: Floating tensors in float64, integer tensors in their own dtype (see
            `core.parameters.cast_like`).
        sites: Who counted, and by how much, by `site_id`.
    """

    parameters: Parameters
    sites: Mapping[str, SiteShare]


class Accumulator(ABC):
    """The contributions of one round, added as they come in, in the order of their sites.

    Args:
        aggregator: Combines them.
        received: What all sites started from.
    """

    def __init__(self, aggregator: "Aggregator", received: Parameters) -> None:
        self._aggregator = aggregator
        self._received = received
        self._told: dict[str, tuple[float, float]] = {}

    def add(self, contribution: Contribution) -> None:
        """Add one; its parameters are not modified."""
        norm = contribution.delta_norm
        if norm is None:
            norm = distance(contribution.parameters, self._received)
        factor = clip_factor(norm, self._aggregator.clip_norm)
        self._told[contribution.site_id] = norm, factor
        self._add(shorten(contribution.parameters, self._received, factor), contribution.weight)

    def combined(self) -> Combined:
        """Give all of them as one.

        Raises:
            AggregationError: They are too few for the method.
        """
        require_updates(len(self._told))
        self._aggregator.require_came(len(self._told))
        parameters, shares = self._combined()
        sites = {
            site_id: SiteShare(share=share, delta_norm=norm, clip_factor=factor)
            for (site_id, (norm, factor)), share in zip(self._told.items(), shares, strict=True)
        }
        return Combined(parameters=parameters, sites=sites)

    @abstractmethod
    def _add(self, point: Parameters, weight: float) -> None:
        """Add parameters that are clipped already."""

    @abstractmethod
    def _combined(self) -> tuple[Parameters, list[float]]:
        """Give the result and each site's share in it, in the order in which they were added."""


class Collected(Accumulator):
    """Keeps every contribution until the last has come, for methods that compare them."""

    def __init__(self, aggregator: "ComparingAggregator", received: Parameters) -> None:
        super().__init__(aggregator, received)
        self._compare = aggregator.compare
        self._points: list[Parameters] = []
        self._weights: list[float] = []

    def _add(self, point: Parameters, weight: float) -> None:
        self._points.append(point)
        self._weights.append(weight)

    def _combined(self) -> tuple[Parameters, list[float]]:
        return self._compare([as_float64(point) for point in self._points], self._weights)


class Aggregator(BaseModel, ABC):
    """One method of combining; its fields are the options that `experiment.yaml` may set.

    Every method keeps these laws: the result has the names and shapes of `received`; the order of
    the contributions does not matter; where one site is enough, one alone and not clipped is that
    site; nothing given is modified. Integer tensors (counters) give their maximum.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: ClassVar[str]
    remedy: ClassVar[str] = ""
    """Which option makes fewer sites enough, as a clause of a sentence; empty if none does."""

    clip_norm: float | None = Field(
        default=None,
        gt=0,
        description="Longest delta of a site (l2 norm, in units of the parameters); a longer one "
        "is scaled down to it before combining. By default none is.",
    )

    @abstractmethod
    def start(self, received: Parameters) -> Accumulator:
        """Begin a round in which all sites started from `received`."""

    def fewest_sites(self) -> int:
        """Give with how many sites the method still does what it promises."""
        return 1

    def require_enough(self, sites: int) -> None:
        """Do nothing when `sites` updates can be combined; for checks before a run starts.

        Raises:
            ConfigurationError: They are too few; the message says what to change.
        """
        if sites < self.fewest_sites():
            raise ConfigurationError(
                f"{self._shortage()}, but a round may have only {sites}: let at least "
                f"{self.fewest_sites()} take part (participants, min_sites)"
                f"{self.remedy and ', ' + self.remedy}, or choose another method"
            )

    def combine(self, contributions: Sequence[Contribution], received: Parameters) -> Combined:
        """Combine the updates of sites that all started from `received`.

        Raises:
            AggregationError: There are fewer than `fewest_sites`.
        """
        round_of = self.start(received)
        for contribution in sorted(contributions, key=lambda contribution: contribution.site_id):
            round_of.add(contribution)
        return round_of.combined()

    def require_came(self, sites: int) -> None:
        """Do nothing when the updates of `sites` sites can be combined.

        Raises:
            AggregationError: They are too few.
        """
        if sites < self.fewest_sites():
            raise AggregationError(
                f"{self._shortage()}, and {sites} sent one: set min_sites to "
                f"{self.fewest_sites()} or choose another method"
            )

    @model_serializer(mode="wrap")
    def _with_method(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {"method": self.method, **handler(self)}

    def _shortage(self) -> str:
        options = self.model_dump(exclude_none=True)
        method = options.pop("method")
        listed = ", ".join(f"{name}={value}" for name, value in options.items())
        named = f"{method} ({listed})" if listed else method
        return f"aggregation {named} needs the updates of {self.fewest_sites()} sites"


class ComparingAggregator(Aggregator):
    """A method that looks at all contributions together."""

    def start(self, received: Parameters) -> Accumulator:
        """See `Aggregator.start`."""
        return Collected(self, received)

    @abstractmethod
    def compare(
        self, points: Sequence[Parameters], weights: Sequence[float]
    ) -> tuple[Parameters, list[float]]:
        """Give the result and each site's share in it.

        `points` are clipped, in float64, at least `fewest_sites`, and in the order of their sites.
        """
