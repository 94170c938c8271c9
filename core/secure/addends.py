"""An update as whole numbers of the ring, and the sum of several as an update again.

A site's addend is c_k (w_k − w), number by number in the order of the tensors' names, and behind it
the scalars of `SCALARS`. c_k is by what the plan weighs: samples, 1, or samples over what the local
steps amount to. Each number x is the whole number nearest to x · 2^f, where f is the largest for
which the sum of all sites fits into 62 bits, whatever they send within their ranges; so no sum
leaves the ring. From a sum of m sites the mean change is exact but for

    |error of each number| ≤ m · 2^-(f+1) / Σ c_k,

and the rounding of float64. A site refuses to add what is beyond its range.
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch

from core.exceptions import ConfigurationError, DataSiteError
from core.messages import AlgorithmSpec, Parameters, TrainingSettings
from core.normalising import normaliser
from core.parameters import require_finite, require_same_layout
from core.privacy import SecureAggregation, Weighting
from core.secure.masks import Vector

SCALARS: Final = ("weight", "samples", "steps", "loss", "effective")
"""c_k; samples; steps; samples · training loss; samples · what the steps amount to."""

_BITS: Final = 62
_FEWEST_BITS: Final = 16
_MOST_BITS: Final = 52

_MOST_STEPS: Final = 2.0**32
_MOST_LOSS: Final = 2.0**16
_MOST_AMOUNT: Final = 2.0**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a site did in a round.

    Attributes:
        amount: ‖a_k‖₁, see `core.normalising`; 1 where nothing is normalised.
        loss: Mean over the last epoch.
    """

    samples: int
    steps: int
    loss: float
    amount: float


class Ranges(NamedTuple):
    """What no site's numbers are beyond."""

    change: float
    weight: float
    samples: float
    steps: float
    loss: float
    effective: float

    @classmethod
    def of(cls, settings: SecureAggregation) -> "Ranges":
        """Give those of a plan; `change` is that of c_k (w_k − w)."""
        samples = float(settings["max_samples"])
        weight = 1.0 if settings["weighting"] == "equal" else samples
        return cls(
            change=weight * settings["max_change"],
            weight=weight,
            samples=samples,
            steps=_MOST_STEPS,
            loss=samples * _MOST_LOSS,
            effective=samples * _MOST_AMOUNT,
        )


def fraction_bits(settings: SecureAggregation) -> dict[str, int]:
    """Give f for each of the `Ranges`."""
    sites, whole = settings["sites_per_round"], {"samples", "steps"}
    ranges = Ranges.of(settings)._asdict()
    # frexp gives e with sites · range < 2^e: so 62 - e bits are left behind the point.
    found = {name: _BITS - math.frexp(sites * most)[1] for name, most in ranges.items()}
    return {name: 0 if name in whole else min(f, _MOST_BITS) for name, f in found.items()}


def require_room(settings: SecureAggregation) -> None:
    """Do nothing when the plan's ranges leave enough bits for fractions.

    Raises:
        ConfigurationError: They do not; it says what to change.
    """
    bits = fraction_bits(settings)
    fewest = min(bits["change"], bits["weight"])
    if fewest < _FEWEST_BITS or min(bits.values()) < 0:
        raise ConfigurationError(
            f"privacy: a sum of {settings['sites_per_round']} sites of max_samples "
            f"{settings['max_samples']} and max_change {settings['max_change']:g} leaves {fewest} "
            f"bits for fractions, fewer than {_FEWEST_BITS}; lower one of them"
        )


def error_bound(settings: SecureAggregation, *, sites: int, weight: float) -> float:
    """Give how far a number of the mean change is from the exact one at most; see the module."""
    return float(sites * 2.0 ** -(fraction_bits(settings)["change"] + 1) / weight)


def weight_of(trained: Trained, weighting: Weighting) -> float:
    """Give c_k."""
    by = {"samples": float(trained.samples), "equal": 1.0}
    return by.get(weighting, trained.samples / trained.amount)


def amount_of(
    steps: int, weighting: Weighting, training: TrainingSettings, algorithm: AlgorithmSpec
) -> float:
    """Give what `steps` local steps, really done, amount to; 1 where nothing is normalised."""
    if weighting != "normalised":
        return 1.0
    eta_mu = training["learning_rate"] * algorithm["hyperparameters"]["mu"]
    return normaliser(steps, momentum=training["momentum"], eta_mu=eta_mu)


def numbers_of(layout: Parameters) -> int:
    """Give how many numbers the addend of a model has."""
    return sum(tensor.numel() for tensor in layout.values()) + len(SCALARS)


def addend_of(
    fitted: Parameters,
    received: Parameters,
    trained: Trained,
    settings: SecureAggregation,
    *,
    site_id: str,
) -> Vector:
    """Give what a site adds to the sum of a round, before it is masked.

    Raises:
        ModelError: The parameters do not fit, or are not finite.
        DataSiteError: A number is beyond the plan's range, or the model has integer tensors.
    """
    require_same_layout(fitted, received, whose=site_id)
    require_finite(fitted, whose=site_id)
    require_floating(received, site_id=site_id)
    ranges, bits = Ranges.of(settings), fraction_bits(settings)
    weight = _rounded(weight_of(trained, settings["weighting"]), bits["weight"])
    scalars = {
        "weight": weight,
        "samples": float(trained.samples),
        "steps": float(trained.steps),
        "loss": trained.samples * trained.loss,
        "effective": trained.samples * trained.amount,
    }
    for name, value in scalars.items():
        _require_within(name, value, getattr(ranges, name), site_id)
    addend = np.empty(numbers_of(received), dtype=np.int64)
    begin = 0
    for name in sorted(received):
        change = (fitted[name].double() - received[name].double()).numpy().reshape(-1)
        largest = float(np.abs(change).max(initial=0.0))
        _require_within("change", largest, settings["max_change"], site_id)
        addend[begin : begin + change.size] = np.rint(np.ldexp(change * weight, bits["change"]))
        begin += change.size
    addend[begin:] = [round(math.ldexp(value, bits[name])) for name, value in scalars.items()]
    return addend.view(np.uint64)


def require_floating(parameters: Parameters, *, site_id: str) -> None:
    """Do nothing when a sum can be made of all tensors.

    Raises:
        DataSiteError: Some are of whole numbers, of which the largest is taken and no sum.
    """
    whole = sorted(n for n, tensor in parameters.items() if not tensor.is_floating_point())
    if whole:
        raise DataSiteError(
            f"{site_id}: the model has tensors of whole numbers ({', '.join(whole)}), of which the "
            "largest is taken: a sum under masks cannot tell it. Choose a model without, or "
            "another privacy level",
            site_id=site_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """What several sites did together.

    Attributes:
        weight: Σ c_k.
        loss: Σ samples · loss.
        effective: Σ samples · amount.
        change: The mean change Σ c_k (w_k − w) / Σ c_k, in float64, by tensor.
    """

    weight: float
    samples: int
    steps: int
    loss: float
    effective: float
    change: Parameters


def as_sum(total: Vector, like: Parameters, settings: SecureAggregation) -> Sum:
    """Give what the sum of addends says.

    Args:
        total: The sum, without masks.
        like: The parameters that all started from.
        settings: The plan's.

    Raises:
        ValueError: It is no sum of addends: the weight is not above 0, or the length is another.
    """
    numbers, bits = total.view(np.int64), fraction_bits(settings)
    found = {
        name: math.ldexp(int(value), -bits[name])
        for name, value in zip(SCALARS, numbers[-len(SCALARS) :], strict=True)
    }
    if len(numbers) != numbers_of(like) or found["weight"] <= 0:
        message = f"{len(numbers)} numbers of weight {found['weight']:g} are no sum of updates"
        raise ValueError(message)
    change: Parameters = {}
    begin = 0
    for name in sorted(like):
        end = begin + like[name].numel()
        mean = np.ldexp(numbers[begin:end].astype(np.float64), -bits["change"]) / found["weight"]
        change[name] = torch.from_numpy(mean).reshape(like[name].shape)
        begin = end
    return Sum(
        weight=found["weight"],
        samples=int(found["samples"]),
        steps=int(found["steps"]),
        loss=found["loss"],
        effective=found["effective"],
        change=change,
    )


def _rounded(value: float, bits: int) -> float:
    """Give the number that the ring has for `value`: the change is multiplied by what is sent."""
    return math.ldexp(round(math.ldexp(value, bits)), -bits)


def _require_within(what: str, value: float, most: float, site_id: str) -> None:
    if not 0.0 <= value <= most:
        raise DataSiteError(
            f"{site_id}: of its update, {_WORDS[what]} is {value:g}, and the plan allows 0 to "
            f"{most:g}; {_REMEDIES[what]}",
            site_id=site_id,
        )


_WORDS: Final = {
    "change": "the largest change of a parameter",
    "weight": "the weight",
    "samples": "the number of samples",
    "steps": "the number of steps",
    "loss": "the training loss times the samples",
    "effective": "what its steps amount to, times the samples,",
}
_REMEDIES: Final = {
    "change": "raise privacy.max_change, or lower training.learning_rate",
    "weight": "raise privacy.max_samples",
    "samples": "raise privacy.max_samples",
    "steps": "train less in a round",
    "loss": "training diverged: lower training.learning_rate",
    "effective": "train less in a round",
}
