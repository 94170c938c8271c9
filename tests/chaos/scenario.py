"""What happens to a federation, drawn from a seed."""

import random
import signal
from dataclasses import dataclass, replace
from typing import Any, Final

from proxy import Cut, Mode, Point

SITES: Final = ("factory-1", "factory-2", "factory-3")
ROUNDS: Final = 3

SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "duals": {"algorithm": {"name": "feddyn"}},
    "large-replies": {
        "algorithm": {"name": "scaffold"},
        "model": {"type": "cnn", "options": {"channels": 96, "blocks": 1}},
    },
    "rounded": {"compression": "int8"},
    "signed": {"channel": "signed"},
}
"""Runs that keep something at the sites, store replies in files, or travel otherwise."""

USUAL_PATIENCE_S: Final = 20.0

ORCHESTRATOR: Final = "orchestrator"
TRAINER: Final = "trainer of "


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """A signal, sent when enough has happened.

    Attributes:
        whom: The orchestrator, a site, or the trainer of one.
        number: The signal; what was stopped goes on after `pause_s`.
        watched: The site whose audit log is counted.
        after: So many rows of the run there.
        delay_s: How much later.
        pause_s: Of SIGSTOP.
    """

    whom: str
    number: signal.Signals
    watched: str
    after: int
    delay_s: float = 0.0
    pause_s: float = 0.0

    def __str__(self) -> str:
        """Say what it does."""
        when = f"{self.delay_s:.2f} s after row {self.after} of {self.watched}"
        return f"{self.number.name} to the {self.whom} {when}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All that happens in one run.

    Attributes:
        name: The run's.
        setting: One of `SETTINGS`.
        strikes: In the order in which they come.
        fuse: Who ends at which of its moments; see `moments`.
        cuts: Of the network, by site.
        call_s: How long the orchestrator waits for an answer.
    """

    name: str
    setting: str
    strikes: tuple[Strike, ...] = ()
    fuse: tuple[str, int] | None = None
    cuts: tuple[tuple[str, Cut], ...] = ()
    call_s: float = USUAL_PATIENCE_S

    def again(self, moments_left: int) -> "Scenario":
        """Give the same for a run that had too few moments, beginning with the first again.

        Where the sites stand is written by the clock: runs differ by a few moments.
        """
        assert self.fuse is not None
        whom, moment = self.fuse
        fuse = whom, 1 + (moment - 1) % (moment - moments_left)
        return replace(self, name=f"{self.name}-again", fuse=fuse)

    def __str__(self) -> str:
        """Say what happens."""
        fuse = [f"{self.fuse[0]} ends at its moment {self.fuse[1]}"] if self.fuse else []
        cuts = [f"{site}: {c.mode.value} while {c.point.value}" for site, c in self.cuts]
        return f"{self.name}, {self.setting}: {'; '.join([*fuse, *cuts, *map(str, self.strikes)])}"


ROWS: Final = 3 + 2 * ROUNDS
"""Of a run on each site's audit log: two of the plan, the statistics, two a round."""

_SIGNALS: Final = (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
_PATIENCE_S: Final = 4.0
_BEYOND_PATIENCE_S: Final = 6.0


def at_random(seed: int) -> Scenario:
    """Draw a scenario of one to three strikes."""
    draw = random.Random(seed)  # noqa: S311 - the same in each run
    begin = draw.randint(1, 3)  # a run may be over before what comes late
    strikes = [replace(_strike(draw, begin), delay_s=0.0)]
    for _ in range(draw.choice((0, 0, 1, 2))):
        begin = draw.randint(begin, ROWS - 1)
        strikes.append(_strike(draw, begin))
    is_frozen_long = any(strike.pause_s > _PATIENCE_S for strike in strikes)
    return Scenario(
        name=f"signals-{seed}",
        setting=setting_of(seed),
        strikes=tuple(strikes),
        call_s=_PATIENCE_S if is_frozen_long else USUAL_PATIENCE_S,
    )


def _strike(draw: random.Random, after: int) -> Strike:
    site = draw.choice(SITES)
    whom = draw.choice((ORCHESTRATOR, site, f"{TRAINER}{site}"))
    number = signal.SIGKILL if whom.startswith(TRAINER) else draw.choice(_SIGNALS)
    return Strike(
        whom=whom,
        number=number,
        watched=site,
        after=after,
        delay_s=draw.choice((0.0, draw.uniform(0, 0.3))),
        pause_s=draw.choice((0.3, 1.0, _BEYOND_PATIENCE_S)) if number is signal.SIGSTOP else 0.0,
    )


def setting_of(number: int) -> str:
    """Give the setting of a numbered scenario."""
    return list(SETTINGS)[number % len(SETTINGS)]


def of_the_network(number: int) -> Scenario:
    """Give the scenario of one way to cut at one point."""
    points, modes = list(Point), list(Mode)
    point, mode = points[number % len(points)], modes[number // len(points) % len(modes)]
    cut = Cut(point, mode, request=5 + number % 4)
    return Scenario(
        name=f"network-{point.name}-{mode.name}".lower(),
        setting=setting_of(number),
        cuts=((SITES[number % len(SITES)], cut),),
        call_s=_PATIENCE_S,
    )
