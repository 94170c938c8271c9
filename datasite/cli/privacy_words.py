"""What each privacy level does and what it costs, in plain words for who decides on a plan."""

from typing import TYPE_CHECKING

from datasite.cli.foreign import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from core.messages import PlanProposal
    from core.privacy import Basic, DifferentialPrivacy, SecureAggregation


def privacy_in_words(proposal: "PlanProposal") -> str:
    """Say what the plan's level does, and what it does not."""
    level = proposal["privacy_level"]
    return _WORDS[level](proposal) if level in _WORDS else level


def _none(_proposal: "PlanProposal") -> str:
    return """\
none. Nothing is hidden, clipped or added: rows stay here, but whoever has an update
can try to reconstruct rows from it. Approve this for people you trust.
It costs no privacy budget, for there is none at this level: the limit is that of the rounds."""


def _basic(proposal: "PlanProposal") -> str:
    asked: Basic = proposal["privacy"]  # type: ignore[assignment]
    return f"""\
basic. No formal guarantee: each update is shortened to a change of at most
{asked["clip_norm"]:g} (l2 norm), and nothing is counted over fewer than {asked["minimum_count"]}
rows. Whoever has an update can try to reconstruct rows from it.
It costs no privacy budget, for there is none at this level: the limit is that of the rounds."""


def _differential_privacy(proposal: "PlanProposal") -> str:
    asked: DifferentialPrivacy = proposal["privacy"]  # type: ignore[assignment]
    unit, rounds = asked["unit"], proposal["rounds"]
    cost = f"ε = {asked['epsilon']:g} per {unit} at δ = {asked['delta']:g}, all {rounds} rounds"
    return f"""\
differential_privacy. Whether the model was trained with or without {_WHOSE[unit]}
can hardly be told from what leaves: {cost} together.
Gradients are shortened to {asked["clip_norm"]:g} per {unit}, and secret noise is added here.
The guarantee is for the training part: the two parts for evaluation are counted without noise."""


_WHOSE = {"window": "any one window", "machine": "the windows of any one machine"}


def _secure(proposal: "PlanProposal") -> str:
    asked: SecureAggregation = proposal["privacy"]  # type: ignore[assignment]
    roster = "".join(f"\n  - {plain(name)}: {key}" for name, key in sorted(asked["roster"].items()))
    counted = _COUNTED_BY[asked["weighting"]]
    return f"""\
secure_aggregation. The orchestrator gets the sum of the updates of {asked["threshold"]} to \
{asked["sites_per_round"]} sites of a round,
each counted by {counted}, and no single one. Of this site it learns when it
trained, and for how long. The sum itself is told, and all other sites together can subtract
their own updates from it. What hides this site's are the keys of the others, which the
orchestrator passes on: compare them with what 'datasite identity' prints there.
It costs no privacy budget, for there is none at this level. The roster:{roster}"""


_COUNTED_BY = {
    "samples": "how many windows it trained on",
    "equal": "one",
    "normalised": "its windows over its local steps",
}

_WORDS: "Mapping[str, Callable[[PlanProposal], str]]" = {
    "none": _none,
    "basic": _basic,
    "differential_privacy": _differential_privacy,
    "secure_aggregation": _secure,
}
