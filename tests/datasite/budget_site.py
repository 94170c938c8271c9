"""A site that is killed at each point where a round with differential privacy writes something.

    python budget_site.py FOLDER

For each point a child process opens a site of its own, answers one round, and kills itself there by
SIGKILL. What left the site by then lies in a file. The site is opened again afterwards, and asked
for the same round once more. What was found is printed as JSON, by the names of the points.

Some points are named here; besides, every moment is one at which the round writes a file or ends a
transaction, as chaos counts them, so that none is forgotten.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_int
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chaos"))

from moments import UNLIT, Fuse, lay
from sites import (
    BUDGET,
    PRIVATE,
    RESEARCHER,
    ask,
    encoded,
    inline,
    parameters,
    planned,
    register,
    site_settings,
    train_request,
)

from datasite.ledger import Ledger
from datasite.replies import Replies
from datasite.site import FactoryDataSite
from datasite.statements import Driven
from datasite.trainer import InlineTrainer
from datasite.workshop import Workshop

LARGE: Final = {"type": "cnn", "options": {"channels": 256, "blocks": 2}}
"""Its reply lies in a file beside the ledger."""


def die(*_arguments: object, **_options: object) -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: type, name: str) -> Callable[[], None]:
    """Die where `name` is about to be done."""
    return lambda: setattr(owner, name, die)


def after(owner: type, name: str) -> Callable[[], None]:
    """Die where `name` was just done."""
    done = getattr(owner, name)

    def arm() -> None:
        def then_die(*arguments: object, **options: object) -> None:
            done(*arguments, **options)
            die()

        setattr(owner, name, then_die)

    return arm


def in_transaction(number: int, *, committed: bool) -> Callable[[], None]:
    """Die at the end of the ledger's transaction `number` from now, before or after its commit."""
    transaction = Ledger.transaction

    def arm() -> None:
        begun: list[int] = []

        @contextmanager
        def counted(self: Ledger) -> Iterator[Driven]:
            begun.append(1)
            with transaction(self) as connection:
                yield connection
                if len(begun) == number and not committed:
                    die()
            if len(begun) == number:
                die()

        Ledger.transaction = counted  # type: ignore[method-assign]

    return arm


POINTS: Final[dict[str, Callable[[], None]]] = {
    "the noise is fixed, not committed": in_transaction(1, committed=False),
    "the noise is fixed": in_transaction(1, committed=True),
    "before training": before(Workshop, "_perform"),
    "after training": after(InlineTrainer, "perform"),
    "paid, reply not kept": before(Replies, "keep"),
    "paid, file not on disk": before(os, "fsync"),  # type: ignore[arg-type]
    "paid, file on disk": after(Replies, "_write"),
    "paid and kept, not committed": in_transaction(2, committed=False),
    "paid and kept": in_transaction(2, committed=True),
    "never": lambda: None,
}
"""Where a site dies. The first use of a plan fixes its noise in a transaction of its own."""


def open_site(folder: Path) -> FactoryDataSite:
    """Open the site of `folder`, or open it again."""
    site = FactoryDataSite(inline)
    site.initialize_datasite(site_settings(folder, budget=BUDGET))
    return site


def request(plan_id: str) -> dict[str, Any]:
    """Ask for the first round of the plan."""
    return train_request(plan_id, model=LARGE, parameters=parameters(model=LARGE))


_NEVER: Final = 1 << 30


def answer(folder: Path, arm: Callable[[], None], moment: int = UNLIT) -> None:
    """Answer one round, if the site lives to do it; what left is a file.

    Args:
        folder: The site's.
        arm: Has it die at a point of its own.
        moment: Has it die at one of the round's writes.
    """
    fuse = Fuse(c_int(UNLIT), folder / "moment")
    if moment != UNLIT:
        lay(fuse)
    site = open_site(folder)
    register(site, folder)
    plan_id = planned(site, model=LARGE, **PRIVATE)
    arm()
    fuse.light(moment)
    reply = site.handle(encoded(request(plan_id)), RESEARCHER)
    burned = moment - fuse.left
    fuse.put_out()
    (folder / "left").write_bytes(reply.joined())
    (folder / "moments").write_text(str(burned))


def killed_at(folder: Path, arm: Callable[[], None], moment: int = UNLIT) -> dict[str, Any]:
    """Have a site die, and look at what it kept."""
    folder.mkdir()
    child = os.fork()
    if child == 0:
        answer(folder, arm, moment)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    site = open_site(folder)
    paid = site.budgets.spent
    (plan,) = site.plans.all()
    found: dict[str, Any] = {
        "signal": os.WTERMSIG(status),
        "left": int((folder / "left").exists()),
        "paid": len(paid("press")),
    }
    again = ask(site, request(plan.plan_id))
    found |= {"again": again["kind"], "paid_then": len(paid("press"))}
    site.close()
    return found


def main(folder: Path) -> None:
    """Visit every point."""
    points = {
        name: killed_at(folder / f"point-{number}", arm)
        for number, (name, arm) in enumerate(POINTS.items())
    }
    killed_at(folder / "whole", POINTS["never"], _NEVER)
    moments = {}
    for moment in range(1, 1 + int((folder / "whole" / "moments").read_text())):
        place = folder / f"moment-{moment}"
        found = killed_at(place, POINTS["never"], moment)
        moments[f"{moment}, {(place / 'moment').read_text()}"] = found
    sys.stdout.write(json.dumps({"points": points, "moments": moments}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
