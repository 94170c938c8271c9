"""What each privacy level does and what it costs, in plain words for who decides on a plan."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from core.messages import PlanProposal
    from core.privacy import Basic


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


_WORDS: "Mapping[str, Callable[[PlanProposal], str]]" = {"none": _none, "basic": _basic}
