"""A canary lies in a live site's data: nothing that leaves the process has it, by any way out.

`tests/datasite/test_canary.py` plays every failure; here some of them go over the whole way, from
PySyft's server and its trainer to a researcher and an auditor, and all that went is looked through.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import psutil
import pytest
import torch
import yaml
from canaries import PREPROCESSING, SCHEMA, TEXT, WAYS, found_below, found_in
from canaries import install_leaky as install
from canaries import write_table as write_canaries
from live_site import AUDITOR, RESEARCHER, SITE, LiveSite, password_of
from sites import proposal, train_request
from wiretap import Wiretap, tapped

from core.exceptions import DataSiteError, FederatedLearningError, SecurityError
from core.messages import (
    AuditPage,
    AuditRequest,
    ClientUpdate,
    DescribeRequest,
    Message,
    PlanDecision,
    PlanProposal,
    PlansPage,
    PlansRequest,
    SensorStatistics,
    SiteDescription,
    StatisticsRequest,
    TrainRequest,
)
from orchestrator.communication.live import PySyftCommunication
from orchestrator.configuration import ChannelKind
from orchestrator.testbed.processes import run_datasite

pytestmark = pytest.mark.live

ROOT: Final = Path(__file__).resolve().parents[2]
PARAMETERS: Final = {"head.weight": torch.zeros(2, 4), "head.bias": torch.zeros(2)}
"""Of the leaky model, over the four features of the table."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """Give a live site with the canary in its data, and the leaky model installed."""
    packages = install(tmp_path_factory.mktemp("packages"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{packages}")
        made = LiveSite(tmp_path_factory.mktemp("canary"))
        schema = made.folder / "press.yaml"
        schema.write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")
        private = made.folder / TEXT
        private.mkdir()
        file = write_canaries(private / f"{TEXT}.csv")
        options = ("--schema", str(schema), "--name", "press", "-c", str(made.config))
        run_datasite("data", "register", str(file), *options)
        made.start()
        yield made
        made.end()


@pytest.fixture(scope="module")
def line(site: LiveSite) -> Iterator[Wiretap]:
    """Give a wiretap in front of the site, through which everything goes."""
    with tapped(site.url) as wiretap:
        yield wiretap


def connected(line: Wiretap, email: str, channel: ChannelKind) -> PySyftCommunication:
    """Log in through the wiretap."""
    made = PySyftCommunication(channel=channel, connect_s=20, call_s=60)
    made.connect_to_datasite(line.url, {"email": email, "password": password_of(email)})
    return made


class Researcher:
    """Proposes a plan of its own for each way to fail, and works under it."""

    def __init__(self, line: Wiretap, channel: ChannelKind) -> None:
        self._line = connected(line, RESEARCHER, channel)
        self._channel = channel.value
        self._site = self._ask(DescribeRequest(kind="describe"), SiteDescription)
        self._runs = 0

    def plan(self, how: int) -> str:
        """Propose a run of the leaky model; the plan's id."""
        self._runs += 1
        changes: Mapping[str, Any] = {
            "run_id": f"{self._channel}-{self._runs}",
            "model": {"type": "leaky", "options": {"how": how}},
            "code_hash": self._site["code_hash"],
        }
        made = cast("PlanProposal", proposal(**changes))
        return self._ask(made, PlanDecision)["plan_id"]

    def train(self, how: int) -> ClientUpdate:
        """Have the leaky model trained."""
        request = train_request(
            self.plan(how),
            model={"type": "leaky", "options": {"how": how}},
            preprocessing=PREPROCESSING,
            parameters=PARAMETERS,
        )
        return self._ask(cast("TrainRequest", request), ClientUpdate)

    def statistics(self) -> SensorStatistics:
        """Ask for the sums."""
        request = StatisticsRequest(kind="statistics", plan_id=self.plan(0))
        return self._ask(request, SensorStatistics)

    def _ask(self, message: Message, kind: type[Any]) -> Any:
        return self._line.request(cast("Any", message), kind, SITE)


@pytest.mark.parametrize("channel", list(ChannelKind), ids=lambda channel: channel.value)
def test_nothing_that_leaves_a_live_site_has_the_canary(
    site: LiveSite, line: Wiretap, channel: ChannelKind
) -> None:
    """Answers on the wire, errors, its output, its processes' arguments, and files outside."""
    researcher = Researcher(line, channel)
    errors: list[str] = []
    for name in ("RuntimeError", "ModelError", "a class with a name", "aborts"):
        with pytest.raises(FederatedLearningError) as told:
            researcher.train(WAYS.index(name))
        errors.append(f"{told.value!r} {told.value.__cause__!r}")
    assert researcher.train(WAYS.index("prints and logs"))["num_samples"] == 120
    assert researcher.statistics()["count"] == 200
    with changed(site), pytest.raises(SecurityError, match="changed on disk"):
        researcher.statistics()
    read_all(line, channel)
    assert [form for error in errors for form in found_in(error.encode())] == []
    heard = [part for a in line.answers for part in (a.content, str(a.headers).encode())]
    assert len(heard) > 20
    assert [form for part in heard for form in found_in(part)] == []
    assert found_in(b"".join(processes(site))) == []
    assert found_below(site.folder, private=[site.state, site.folder / TEXT]) == {}
    assert found_in((site.state / "private.log").read_bytes()) != []


@contextmanager
def changed(site: LiveSite) -> Iterator[None]:
    """Have the site's own copy of the data changed in secret."""
    (copy,) = site.state.rglob("*.parquet")
    before = copy.read_bytes()
    copy.write_bytes(before + TEXT.encode())
    try:
        yield
    finally:
        copy.write_bytes(before)


def read_all(line: Wiretap, channel: ChannelKind) -> None:
    """Read what an auditor may."""
    auditor = connected(line, AUDITOR, channel)
    page = auditor.request(AuditRequest(kind="audit", after=0), AuditPage, SITE)
    assert {"train", "statistics"} <= {row["action"] for row in page["rows"]}
    plans = auditor.request(PlansRequest(kind="plans", after=0), PlansPage, SITE)
    assert plans["total"] > 0
    with pytest.raises((SecurityError, DataSiteError)):
        auditor.request(StatisticsRequest(kind="statistics", plan_id=""), SensorStatistics, SITE)


def processes(site: LiveSite) -> Iterator[bytes]:
    """Give the arguments and the environment of the site's process and of its trainer."""
    (parent,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if str(site.config) in (process.info["cmdline"] or [])
        and "serve" in process.info["cmdline"]
    )
    family = [parent, *parent.children(recursive=True)]
    assert len(family) > 1
    for process in family:
        yield "\0".join(process.cmdline()).encode()
        yield Path(f"/proc/{process.pid}/environ").read_bytes()
        yield Path(f"/proc/{process.pid}/comm").read_bytes()
