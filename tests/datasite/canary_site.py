"""A site with the canary in its data, made to fail in every way; run by `test_canary.py`.

    python canary_site.py FOLDER

Everything of the site is below FOLDER/CANARY-7f3a; each reply is written to FOLDER/replies.
"""

import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from canaries import PREPROCESSING, SCHEMA, TEXT, WAYS, write_table
from loguru import logger
from secure_sites import context_of, identity_of, settings_for
from sites import (
    APPROVE,
    BUDGET,
    FEDAVG,
    MODEL,
    PRIVATE,
    RESEARCHER,
    TRAINING,
    encoded,
    in_a_process,
    parameters,
    proposal,
    site_settings,
    train_request,
)
from sites import evaluate_request as evaluation

from core import wire
from core.exceptions import DataError
from core.models import initial_parameters
from core.plans import PlanStatus
from core.secure.context import trained_on
from core.wire import Parcel
from datasite.caller import Caller, Role
from datasite.ledger import DatasetRow, PlanRow
from datasite.private_log import private_log
from datasite.registry import file_sha256
from datasite.secure.participant import Participant
from datasite.site import FactoryDataSite

AUDITOR: Final = Caller(email="auditor@authority.example.com", role=Role.AUDITOR)
FEATURES: Final = 4
"""Load, heat, and one for each of two oils."""


class Scene:
    """The site, and what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.inside = folder / TEXT
        self.replies = folder / "replies"
        self.replies.mkdir()
        self.site = FactoryDataSite(in_a_process)
        self.site.initialize_datasite(site_settings(self.inside, policy=APPROVE, budget=BUDGET))
        file = write_table(self.inside / f"{TEXT}.csv")
        self.site.register_data({"name": "press", "file": file, "schema": SCHEMA})
        self._runs = 0

    @property
    def copy(self) -> Path:
        """The site's own copy of the data."""
        return self.site.registry.find("press").file

    def start(self, model: Mapping[str, Any] = MODEL) -> Any:
        """Give parameters to begin with."""
        return initial_parameters(model, sensors=FEATURES, window_steps=1, seed=0)  # type: ignore[arg-type]

    def plan(self, **changes: object) -> str:
        """Propose a plan that no other scenario has; its id."""
        self._runs += 1
        made = proposal(run_id=f"run-{self._runs}", **changes)
        reply = wire.decode(self.site.handle(encoded(made), RESEARCHER))
        assert reply["kind"] == "plan", reply
        return reply["plan_id"]

    def train(self, *, agreed: Mapping[str, Any] | None = None, **changes: object) -> Parcel:
        """Ask for a round of a plan of its own."""
        settings = {"parameters": self.start(), "preprocessing": PREPROCESSING, **changes}
        plan_id = self.plan(**(agreed or {}))
        return self.site.handle(encoded(train_request(plan_id, **settings)), RESEARCHER)

    def evaluate(self, **changes: object) -> Parcel:
        """Ask for an evaluation of a plan of its own."""
        settings = {"parameters": self.start(), "preprocessing": PREPROCESSING, **changes}
        return self.site.handle(encoded(evaluation(self.plan(), **settings)), RESEARCHER)

    def statistics(self) -> Parcel:
        """Ask for the sums of a plan of its own."""
        request = {"kind": "statistics", "plan_id": self.plan()}
        return self.site.handle(encoded(request), RESEARCHER)

    def all_work(self, name: str) -> None:
        """Ask for each kind of work, and keep the replies."""
        self.keep(f"{name}, train", self.train())
        self.keep(f"{name}, evaluate", self.evaluate())
        self.keep(f"{name}, statistics", self.statistics())

    def ask(self, name: str, message: Mapping[str, Any], caller: Caller = RESEARCHER) -> None:
        """Ask, and keep the reply."""
        self.keep(name, self.site.handle(encoded(message), caller))

    def keep(self, name: str, reply: Parcel) -> None:
        """Write a reply down, outside."""
        said = wire.decode(reply)
        kind = said["error"] if said["kind"] == "failure" else said["kind"]
        (self.replies / f"{name} - {kind}").write_bytes(reply.joined())

    @contextmanager
    def changed(self, change: Callable[[Path], object], *, adopted: bool) -> Iterator[None]:
        """Have the copy changed, and the ledger believe it if `adopted`; then as before."""
        copy = self.copy
        before = copy.read_bytes()
        change(copy)
        if adopted:
            self._adopt(file_sha256(copy))
        try:
            yield
        finally:
            shutil.rmtree(copy, ignore_errors=True)
            copy.write_bytes(before)
            self._adopt(file_sha256(copy))

    def _adopt(self, sha256: str) -> None:
        with self.site.ledger.write() as session:
            session.get_one(DatasetRow, ("press", 1)).sha256 = sha256


def with_cells(**cells: object) -> Callable[[Path], object]:
    """Give a change of the copy by which columns hold something else."""

    def change(copy: Path) -> None:
        table = pd.read_parquet(copy)
        for name, value in cells.items():
            table[name] = value
        table.to_parquet(copy, index=False)

    return change


def becomes(content: bytes) -> Callable[[Path], object]:
    """Give a change of the copy to other bytes."""
    return lambda copy: copy.write_bytes(content)


def changed_data(scene: Scene) -> None:
    """What is in the private folder is no longer what was registered, or cannot be read."""
    half = scene.copy.read_bytes()
    changes: dict[str, Callable[[Path], object]] = {
        "text for numbers": with_cells(load=f"{TEXT} load"),
        "text for a label": with_cells(failure=TEXT),
        "label 2": with_cells(failure=2),
        "another category": with_cells(oil=TEXT),
        "no such column": lambda copy: (
            pd.read_parquet(copy).rename(columns={"load": TEXT}).to_parquet(copy, index=False)
        ),
        "no failure": with_cells(failure=0),
        "cut off": becomes(half[: len(half) // 2]),
        "no Parquet": becomes(TEXT.encode() * 100),
        "empty": becomes(b""),
    }
    for name, change in changes.items():
        with scene.changed(change, adopted=True):
            scene.keep(f"{name}, train", scene.train())
            scene.keep(f"{name}, statistics", scene.statistics())
    for name, change in {
        "changed since": with_cells(heat=1.0),
        "gone": lambda copy: copy.unlink(),
        "a folder": lambda copy: (copy.unlink(), copy.mkdir()),
    }.items():
        with scene.changed(change, adopted=False):
            scene.all_work(name)


def private_rounds(scene: Scene) -> None:
    """With differential privacy: rounds, what they cost, and what is refused."""
    machines = {**PRIVATE, "privacy": {**PRIVATE["privacy"], "unit": "machine"}}
    scene.keep("private, train", scene.train(agreed=PRIVATE))
    scene.keep("private, another unit", scene.train(agreed=machines))
    asked = {"kind": "privacy_account", "plan_id": scene.plan(**PRIVATE), "deadline_s": 60.0}
    scene.ask("private, account", asked)
    scene.ask("private, sums", {"kind": "statistics", "plan_id": asked["plan_id"]})
    for run in range(20):
        scene.keep(f"private, until nothing is left, {run}", scene.train(agreed=PRIVATE))
    with scene.changed(with_cells(load=float("inf")), adopted=True):
        scene.keep("private, not finite", scene.train(agreed=PRIVATE))


def wrong_requests(scene: Scene) -> None:
    """What a researcher asks for does not go with the data or the catalogue."""
    short = {**PREPROCESSING, "mean": [5.0], "scale": [3.0]}
    scene.keep("preprocessing of other sizes", scene.train(preprocessing=short))
    tiny = {**PREPROCESSING, "scale": [1e-300] * FEATURES}
    scene.keep("preprocessing that overflows", scene.train(preprocessing=tiny))
    scene.keep("evaluation, other sizes", scene.evaluate(preprocessing=short))
    scene.keep("parameters of two sensors", scene.train(parameters=parameters()))
    scene.keep("no parameters", scene.train(parameters={}))
    infinite = {name: tensor * float("inf") for name, tensor in scene.start().items()}
    scene.keep("parameters not finite", scene.train(parameters=infinite))
    scene.keep("evaluation, not finite", scene.evaluate(parameters=infinite))
    diverges = TRAINING | {"learning_rate": 1e30, "local_epochs": 3}
    scene.keep("diverges", scene.train(agreed={"training": diverges}, training=diverges))
    lion = TRAINING | {"optimizer": "lion"}
    scene.keep("unknown optimizer", scene.train(agreed={"training": lion}, training=lion))
    options = {"type": "cnn", "options": {"depth": 3}}
    scene.keep("unknown option", scene.train(agreed={"model": options}, model=options))
    for changes in (
        {"model": {"type": "mlp", "options": {}}},
        {"algorithm": {"name": "magic", "hyperparameters": {}}},
        {"dataset": "mill"},
        {"dataset_version": 7},
        {"code_hash": "0" * 64},
        {"privacy_level": "differential_privacy"},
    ):
        scene.ask(f"proposed, {' '.join(changes)}", proposal(**changes))
    mu = {"name": "fedavg", "hyperparameters": {"mu": 1.0}}
    scene.keep("other hyper-parameters", scene.train(agreed={"algorithm": mu}, algorithm=mu))
    everything = {"test": 0.5, "validation": 0.5, "seed": 0}
    scene.keep("nothing to train on", scene.train(agreed={"split": everything}))
    little = {"test": 0.495, "validation": 0.49, "seed": 0}
    scene.keep("few rows to train on", scene.train(agreed={"split": little}))
    endless = TRAINING | {"local_epochs": 10**6}
    scene.keep(
        "deadline", scene.train(agreed={"training": endless}, training=endless, deadline_s=0.5)
    )
    scene.keep("unreadable", scene.site.handle(Parcel.of(b"noise"), RESEARCHER))
    scene.ask("no request", {"kind": "plan", "plan_id": "", "status": "", "reason": ""})
    scene.ask("not for them", {"kind": "audit", "after": 0})


def plans_that_end(scene: Scene) -> None:
    """The consent is gone."""
    revoked = scene.plan()
    scene.site.plans.decide(revoked, PlanStatus.REVOKED, reason="contract ended", by="operator")
    request = train_request(revoked, parameters=scene.start(), preprocessing=PREPROCESSING)
    scene.ask("revoked", request)
    expired = scene.plan()
    with scene.site.ledger.write() as session:
        session.get_one(PlanRow, expired).expires_at = "2020-01-01T00:00:00+00:00"
    scene.ask("expired", {**request, "plan_id": expired})
    scene.ask("unknown plan", {**request, "plan_id": "0" * 64})


def models_of_others(scene: Scene) -> None:
    """A third party's model raises, prints and crashes with the data in its hands."""
    for how, name in enumerate(WAYS):
        model = {"type": "leaky", "options": {"how": how}}
        agreed = {"model": model, "algorithm": FEDAVG}
        reply = scene.train(agreed=agreed, model=model, parameters=scene.start(model))
        scene.keep(f"a model, {name}", reply)


def summed(scene: Scene) -> None:
    """A round under secure aggregation, with two other sites at the same table."""
    peers = ("factory-2", "factory-3")
    roster = {name: identity_of(name).public_key for name in peers}
    settings = settings_for(3, 3)
    settings["roster"] = {**roster, "factory-1": scene.site.describe()["identity_key"]}
    plan_id = scene.plan(privacy_level="secure_aggregation", privacy=settings)
    request = train_request(plan_id, parameters=scene.start(), preprocessing=PREPROCESSING)
    scene.ask("summed, train", request)
    context = context_of(
        settings,
        run_id=scene.site.plans.find(plan_id).proposal["run_id"],
        trained_on=trained_on(request, encoded(request).body_hash),
    )
    others = {name: Participant(name, context, identity_of(name).sign) for name in peers}

    def step(kind: str, **fields: object) -> Any:
        asked = {"plan_id": plan_id, "round_num": 0, "session_id": context.session_id}
        message = {"kind": f"secure_{kind}", **asked, **fields}
        reply = scene.site.handle(encoded(message), RESEARCHER)
        scene.keep(f"summed, {kind}", reply)
        return wire.decode(reply)

    keys = {name: site.keys() for name, site in others.items()}
    keys["factory-1"] = step("keys")["keys"]
    sealed = {name: site.shares(keys) for name, site in others.items()}
    sealed["factory-1"] = step("shares", keys=keys)["sealed"]

    def given(name: str) -> dict[str, str]:
        return {peer: each[name] for peer, each in sealed.items() if peer != name}

    step("mask", sealed=given("factory-1"))
    signed = {}
    for name, site in others.items():
        site.masked(given(name), np.zeros(1, dtype=np.uint64))
        signed[name] = site.confirmed(sorted(keys))
    signed["factory-1"] = step("confirm", survivors=sorted(keys))["signature"]
    step("unmask", confirmations=signed)
    step("unmask", confirmations={})


def failing_disk(scene: Scene) -> None:
    """There is no room, or no ledger, or something else is where files should be."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    plan_id = scene.plan()
    request = train_request(plan_id, parameters=scene.start(), preprocessing=PREPROCESSING)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, most))
    try:
        reply = scene.site.handle(encoded(request), RESEARCHER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    scene.keep("full disk", reply)
    large = {"type": "cnn", "options": {"channels": 128, "blocks": 3}}
    (scene.inside / "state" / "replies").write_text("no folder")
    reply = scene.train(agreed={"model": large}, model=large, parameters=scene.start(large))
    scene.keep("no folder of replies", reply)
    plan_id = scene.plan()
    scene.site.ledger.close()
    for file in (scene.inside / "state").glob("ledger.db*"):
        file.unlink()
    (scene.inside / "state" / "ledger.db").mkdir()
    scene.ask("no ledger", {**request, "plan_id": plan_id})
    scene.ask("no ledger, proposed", proposal())
    scene.ask("no ledger, described", {"kind": "describe"})


def refused_registrations(scene: Scene) -> None:
    """What breaks the contract is refused to the operator, who is told why."""
    for name, changes in {
        "category": {"oil": TEXT},
        "range": {"heat": 8675.309},
        "label": {"failure": TEXT},
    }.items():
        file = write_table(scene.inside / f"{TEXT} {name}.csv", **changes)
        try:
            scene.site.register_data({"name": "broken", "file": file, "schema": SCHEMA})
        except DataError as exc:
            logger.opt(exception=exc).info("{} is refused", name)
        else:
            message = f"{name} was not refused"
            raise AssertionError(message)


def main(folder: Path) -> None:
    """Play every scene."""
    (folder / TEXT).mkdir()
    with private_log(folder / TEXT, site_id="factory-1"):
        scene = Scene(folder)
        refused_registrations(scene)
        scene.ask("described", {"kind": "describe"})
        scene.ask("proposed", proposal())
        scene.all_work("as it should be")
        private_rounds(scene)
        changed_data(scene)
        wrong_requests(scene)
        plans_that_end(scene)
        models_of_others(scene)
        summed(scene)
        for kind in ("audit", "plans"):
            scene.ask(f"{kind} read", {"kind": kind, "after": 0}, AUDITOR)
        failing_disk(scene)
        scene.site.close()
    os.write(1, b"played\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
