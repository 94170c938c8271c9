"""What every `CommunicationInterface` promises, for each transport.

A transport under contract is a `Line` to one and the same scripted site, called in memory or served
by PySyft in a process of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from scripted import SITE, ScriptedSite
from site_process import SiteProcess

from core import (
    CommunicationError,
    CommunicationInterface,
    ConfigurationError,
    DataSiteError,
    SecurityError,
    wire,
)
from core.exceptions import AuthenticationError, PlanError, ProtocolError
from core.messages import ClientUpdate, DescribeRequest, Message, PlanDecision, PlanQuery
from datasite.caller import Role
from orchestrator.communication.base import SiteCommunication
from orchestrator.communication.live import PySyftCommunication
from orchestrator.communication.memory import MemoryCommunication
from orchestrator.configuration import ChannelKind

GOOD = {"email": "researcher@lab.example.com", "password": "Researcher-of-the-lab-1"}

CONFIG: dict[str, Any] = {
    "plan_id": "0" * 64,
    "round_num": 2,
    "seed": 7,
    "model": {"type": "cnn", "options": {}},
    "algorithm": {"name": "fedavg", "hyperparameters": {}},
    "training": {
        "local_epochs": 1,
        "batch_size": 8,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "gradient_clip": None,
        "focal_gamma": 0.0,
    },
    "preprocessing": {"mean": [0.0], "scale": [1.0], "positive_weight": 1.0},
    "deadline_s": 20.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A transport, and a site at its other end.

    Attributes:
        communication: The transport, with no connection yet.
        url: Where the site is.
        nowhere: A URL of the same kind behind which there is nothing.
        good: Credentials that the site takes.
        bad: Credentials that it refuses.
        site: The site.
    """

    communication: SiteCommunication
    url: str
    nowhere: str
    good: dict[str, str]
    bad: dict[str, str]
    site: ScriptedSite

    def connect(self, **changes: str) -> bool:
        """Log in with the good credentials."""
        return self.communication.connect_to_datasite(self.url, {**self.good, **changes})


@pytest.fixture
def memory_line(tmp_path: Path) -> Line:
    """Give a line within this process."""
    site = ScriptedSite(tmp_path)
    return Line(
        communication=MemoryCommunication(
            {SITE: site}, passwords={GOOD["email"]: GOOD["password"]}
        ),
        url=f"memory://{SITE}",
        nowhere="memory://factory-99",
        good=GOOD,
        bad={**GOOD, "password": "Not-the-password-1"},
        site=site,
    )


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteProcess]:
    """Serve the scripted site by PySyft, with one researcher's account."""
    folder = tmp_path_factory.mktemp("scripted")
    script = Path(__file__).resolve().parents[1] / "scripted.py"
    site = SiteProcess(folder / "state", folder / "site.log", script)
    site.start()
    with site.door() as door:
        door.create_user(
            email=GOOD["email"], name="R", password=GOOD["password"], role=Role.RESEARCHER
        )
    yield site
    site.end()


@pytest.fixture
def session_line(served: SiteProcess) -> Iterator[Line]:
    """Give a line over PySyft, in sessions."""
    yield from live_line(served, ChannelKind.SESSION)


@pytest.fixture
def signed_line(served: SiteProcess) -> Iterator[Line]:
    """Give a line over PySyft, of signed calls."""
    yield from live_line(served, ChannelKind.SIGNED)


def live_line(served: SiteProcess, channel: ChannelKind) -> Iterator[Line]:
    """Give a line over PySyft, closed afterwards."""
    communication = PySyftCommunication(channel=channel, connect_s=20)
    yield Line(
        communication=communication,
        url=served.url,
        nowhere="http://127.0.0.1:1",
        good=GOOD,
        bad={**GOOD, "password": "Not-the-password-1"},
        site=ScriptedSite(served.state),
    )
    for site_id in communication.connected:
        communication.disconnect_from_datasite(site_id)


@pytest.fixture(
    params=[
        "memory_line",
        pytest.param("session_line", marks=pytest.mark.live),
        pytest.param("signed_line", marks=pytest.mark.live),
    ]
)
def line(request: pytest.FixtureRequest) -> Line:
    """One transport after the other."""
    found: Line = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def connected(line: Line) -> Line:
    """Give a line that is logged in."""
    line.connect()
    return line


def weights(*values: float) -> dict[str, torch.Tensor]:
    """Give parameters of one tensor."""
    return {"w": torch.tensor(values)}


def test_it_keeps_the_interface(line: Line) -> None:
    """It is what the specification names, and connected to nothing."""
    assert isinstance(line.communication, CommunicationInterface)
    assert line.communication.connected == []


def test_connecting_gives_true(line: Line) -> None:
    """The site is known by the name that it gives itself."""
    assert line.connect() is True
    assert line.communication.connected == [SITE]


def test_the_site_learns_who_calls(connected: Line) -> None:
    """Plans are approved for an account."""
    connected.communication.send_model(weights(1.0), SITE)
    connected.communication.request_training(CONFIG, SITE)
    assert connected.site.callers == [connected.good["email"]]


def test_connecting_again_replaces_the_connection(connected: Line) -> None:
    """There is still one, and it works."""
    assert connected.connect() is True
    assert connected.communication.connected == [SITE]
    connected.communication.send_model(weights(1.0), SITE)
    assert connected.communication.request_training(CONFIG, SITE)["num_samples"] == 3


def test_a_refused_log_in_is_an_authentication_error(line: Line) -> None:
    """It says who was refused, never the password, and is not worth another try."""
    with pytest.raises(AuthenticationError, match=line.bad["email"]) as caught:
        line.communication.connect_to_datasite(line.url, line.bad)
    assert line.bad["password"] not in str(caught.value)
    assert isinstance(caught.value, CommunicationError)
    assert isinstance(caught.value, SecurityError)
    assert not caught.value.retryable
    assert line.communication.connected == []


@pytest.mark.parametrize("lacking", ["email", "password"])
def test_credentials_that_lack_something_are_a_configuration_error(
    line: Line, lacking: str
) -> None:
    """The error names what is missing; nobody is asked."""
    given = {name: value for name, value in line.good.items() if name != lacking}
    with pytest.raises(ConfigurationError, match=f"credentials lack {lacking}"):
        line.communication.connect_to_datasite(line.url, given)
    with pytest.raises(ConfigurationError, match=f"credentials lack {lacking}"):
        line.connect(**{lacking: ""})


def test_a_site_that_is_not_there_is_a_communication_error(line: Line) -> None:
    """It may be there later, so another try may help."""
    with pytest.raises(CommunicationError) as caught:
        line.communication.connect_to_datasite(line.nowhere, line.good)
    assert not isinstance(caught.value, AuthenticationError)
    assert caught.value.retryable


def test_a_site_under_another_name_is_refused(line: Line) -> None:
    """The sites file says who is expected there."""
    with pytest.raises(CommunicationError, match="'factory-1', expected 'factory-2'") as caught:
        line.connect(site_id="factory-2")
    assert caught.value.site_id == "factory-2"
    assert line.communication.connected == []


def test_the_expected_name_is_let_in(line: Line) -> None:
    """Naming the site changes nothing when it is the one."""
    assert line.connect(site_id=SITE) is True


def test_training_gives_the_update_of_the_model_last_sent(connected: Line) -> None:
    """The site adds one to what it gets; the second model sent counts."""
    assert connected.communication.send_model(weights(100.0), SITE) is True
    assert connected.communication.send_model(weights(1.0, 2.0), SITE) is True
    update = connected.communication.request_training(CONFIG, SITE)
    assert update["parameters"]["w"].tolist() == [2.0, 3.0]
    assert {name: update[name] for name in ("datasite_id", "round_num", "num_samples")} == {
        "datasite_id": SITE,
        "round_num": 2,
        "num_samples": 3,
    }
    assert {"num_steps", "metrics"} <= update.keys()


def test_a_model_sent_is_held_as_it_was(connected: Line) -> None:
    """Training on with the tensors afterwards changes nothing of what was sent."""
    sent = weights(1.0)
    connected.communication.send_model(sent, SITE)
    sent["w"].add_(100)
    sent["more"] = torch.zeros(1)
    update = connected.communication.request_training(CONFIG, SITE)
    assert {name: t.tolist() for name, t in update["parameters"].items()} == {"w": [2.0]}


def test_a_model_that_was_forgotten_must_be_sent_again(connected: Line) -> None:
    """A run lets go of each, lest its threads hold the models of old rounds."""
    connected.communication.send_model(weights(1.0), SITE)
    connected.communication.forget_model(SITE)
    connected.communication.forget_model(SITE)
    with pytest.raises(CommunicationError, match="call send_model first"):
        connected.communication.request_training(CONFIG, SITE)


def test_asking_twice_sends_the_same_model(connected: Line) -> None:
    """A retry needs no second `send_model`, and leaves the configuration alone."""
    connected.communication.send_model(weights(1.0), SITE)
    config = dict(CONFIG)
    first = connected.communication.request_training(config, SITE)
    again = connected.communication.request_training(config, SITE)
    assert torch.equal(first["parameters"]["w"], again["parameters"]["w"])
    assert config == CONFIG


def test_training_without_a_model_is_a_communication_error(connected: Line) -> None:
    """The error says which call is missing."""
    with pytest.raises(CommunicationError, match="call send_model first") as caught:
        connected.communication.request_training(CONFIG, SITE)
    assert caught.value.site_id == SITE


@pytest.mark.parametrize("call", ["send_model", "request_training"])
def test_without_a_connection_nothing_is_sent(line: Line, call: str) -> None:
    """The error names the site, and those that are connected."""
    argument = weights(1.0) if call == "send_model" else CONFIG
    with pytest.raises(CommunicationError, match="not connected to 'factory-1'") as caught:
        getattr(line.communication, call)(argument, SITE)
    assert caught.value.site_id == SITE


def test_disconnecting_gives_true_once(connected: Line) -> None:
    """False says that there was nothing to end."""
    assert connected.communication.disconnect_from_datasite(SITE) is True
    assert connected.communication.disconnect_from_datasite(SITE) is False
    assert connected.communication.disconnect_from_datasite("factory-99") is False
    assert connected.communication.connected == []


def test_a_new_connection_has_no_model_from_the_old_one(connected: Line) -> None:
    """What was sent went with the connection."""
    connected.communication.send_model(weights(1.0), SITE)
    connected.communication.disconnect_from_datasite(SITE)
    connected.connect()
    with pytest.raises(CommunicationError, match="no model was sent"):
        connected.communication.request_training(CONFIG, SITE)


FAILURE: dict[str, Any] = {"kind": "failure", "message": "said by the site", "datasite_id": SITE}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("PlanError", PlanError), ("DataSiteError", DataSiteError), ("NoSuchError", DataSiteError)],
)
def test_a_failure_is_raised_as_the_error_it_names(
    connected: Line, name: str, kind: type[Exception]
) -> None:
    """A name that this side does not know is the site's error all the same."""
    connected.site.will_answer(cast("Message", {**FAILURE, "error": name, "round_num": 2}))
    connected.communication.send_model(weights(1.0), SITE)
    with pytest.raises(kind, match=r"^said by the site$") as caught:
        connected.communication.request_training(CONFIG, SITE)
    assert type(caught.value) is kind
    assert (caught.value.site_id, caught.value.round_num) == (SITE, 2)


def test_a_site_cannot_blame_another(connected: Line) -> None:
    """An error is the site's that was asked, whatever the answer says."""
    failure = {**FAILURE, "error": "DataSiteError", "datasite_id": "factory-2"}
    connected.site.will_answer(cast("Message", failure))
    with pytest.raises(DataSiteError) as caught:
        connected.communication.request(DescribeRequest(kind="describe"), PlanDecision, SITE)
    assert caught.value.site_id == SITE


@pytest.mark.parametrize(
    "changes", [{"datasite_id": "factory-2"}, {"round_num": 1}], ids=["site", "round"]
)
def test_an_update_for_another_site_or_round_is_refused(
    connected: Line, changes: dict[str, Any]
) -> None:
    """An old answer must not be averaged in as a new one."""
    update = {
        "kind": "update",
        "datasite_id": SITE,
        "round_num": 2,
        "num_samples": 1,
        "num_steps": 1,
        "metrics": {},
        "parameters": weights(1.0),
        **changes,
    }
    connected.site.will_answer(cast("Message", update))
    connected.communication.send_model(weights(1.0), SITE)
    with pytest.raises(ProtocolError, match="asked was round 2") as caught:
        connected.communication.request_training(CONFIG, SITE)
    assert caught.value.site_id == SITE


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"not a message", "factory-1: not a message"),
        (
            wire.encode(DescribeRequest(kind="describe")).joined(),
            "answered 'describe' to 'plan_status'",
        ),
    ],
    ids=["noise", "other kind"],
)
def test_an_answer_that_cannot_be_read_is_a_protocol_error(
    connected: Line, answer: bytes, said: str
) -> None:
    """It names the site, and asking again is of no use."""
    connected.site.will_answer(answer)
    query = PlanQuery(kind="plan_status", plan_id="abc")
    with pytest.raises(ProtocolError, match=said) as caught:
        connected.communication.request(query, ClientUpdate, SITE)
    assert caught.value.site_id == SITE
    assert not caught.value.retryable
