"""Who may do what at a live site, with PySyft's own client and with ours: every cell of a table.

What is refused is refused by an answer that says so, and stands on the audit log.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar, cast

import pytest
import syft as sy
from live_site import (
    AUDITOR,
    OPERATOR,
    RESEARCHER,
    RIVAL,
    SITE,
    LiveSite,
    password_of,
    signed_call,
)
from secure_sites import settings_for
from sites import PRIVATE, evaluate_request, proposal, train_request
from syft.server.credentials import SyftSigningKey
from syft.service.response import SyftError
from syft.service.user.user_roles import ServiceRole
from syft.types.errors import SyftException

from core import wire
from core.exceptions import SecurityError
from core.messages import (
    ClientUpdate,
    DescribeRequest,
    EvaluationReport,
    Failure,
    Message,
    PlanDecision,
    PlanProposal,
    PlanQuery,
    PrivacyAccount,
    PrivacyRequest,
    SensorStatistics,
    SiteDescription,
    StatisticsRequest,
)
from core.oversight_messages import AuditPage, AuditRequest, PlansPage, PlansRequest
from core.pysyft_patches import REFUSED
from core.secure_messages import PublicKeys, SecureKeysRequest, Trained
from core.wire import Parcel
from datasite.caller import Role
from datasite.refusals import STRANGER
from orchestrator.communication.base import Carrier
from orchestrator.communication.channel import Channel
from orchestrator.communication.connections import Deadline
from orchestrator.communication.live import PySyftCommunication
from orchestrator.communication.pysyft import PySyftCarrier
from orchestrator.communication.session import SessionCarrier
from orchestrator.testbed.processes import run_datasite

pytestmark = pytest.mark.live

DISABLED: Final = "disabled@lab.example.com"
FORGETFUL: Final = "forgetful@lab.example.com"
NEW: Final = "new@lab.example.com"
_DEADLINE_S: Final = 30.0

ACTORS: Final = {
    "operator": OPERATOR,
    "auditor": AUDITOR,
    "researcher": RESEARCHER,
    "another researcher": RIVAL,
    "disabled researcher": DISABLED,
    "guest": "",
    "wrong password": FORGETFUL,
}
"""Who acts, and by which e-mail the audit log knows them."""

T = TypeVar("T")


class Stranger(PySyftCommunication):
    """Our client, with a key that no log-in gave."""

    def open_carrier(self, url: str, credentials: Mapping[str, str]) -> Carrier:
        """Sign with a key of one's own."""
        channel = Channel(url)
        site = channel.identify(Deadline(_DEADLINE_S))
        return SessionCarrier(PySyftCarrier(channel, site, SyftSigningKey.generate()))


class Scene:
    """A live site, and all actors before it with both clients.

    Attributes:
        site: The site.
        plan_id: Of the researcher's plan, which is approved.
        private_id: Of another of theirs, with differential privacy.
        outsiders_refused: How many cells were refused to who was not logged in.
    """

    def __init__(self, site: LiveSite) -> None:
        self.site = site
        self.outsiders_refused = 0
        with site.door() as door:
            for email in (DISABLED, FORGETFUL):
                password = password_of(email)
                door.create_user(email=email, name=email, password=password, role=Role.RESEARCHER)
        known = {name: email for name, email in ACTORS.items() if name not in _NOT_LOGGED_IN}
        self._notebooks = {name: site.notebook(email) for name, email in known.items()}
        self._notebooks["guest"] = sy.login_as_guest(url=site.url)
        self._ours = {name: self.log_in(email) for name, email in known.items()}
        self._ours["guest"] = Stranger()
        self._ours["guest"].connect_to_datasite(
            site.url, {"email": RESEARCHER, "password": password_of(RESEARCHER)}
        )
        self._ours["disabled researcher"].request(DESCRIBE, SiteDescription, SITE)  # in a session
        self.plan_id = self.ours("researcher", PROPOSAL, PlanDecision)["plan_id"]
        self.private_id = self.ours("researcher", PRIVATE_PROPOSAL, PlanDecision)["plan_id"]
        self.sum_id = self._trained_for_a_sum()
        operator = self._notebooks["operator"]
        asset = operator.datasets["press"].assets[0]
        self.rows_id = asset.action_id
        self.rival_id = signed_call(operator, "user.search", email=RIVAL).value[0].id
        with site.door() as door:
            door.disable_user(DISABLED)

    def log_in(self, email: str, password: str = "") -> PySyftCommunication:
        """Log in with our client."""
        made = PySyftCommunication(connect_s=_DEADLINE_S, call_s=_DEADLINE_S)
        password = password or password_of(email)
        made.connect_to_datasite(self.site.url, {"email": email, "password": password})
        return made

    def begin_a_sum(self) -> SecureKeysRequest:
        """Give the first step of secure aggregation under the researcher's plan of it."""
        return SecureKeysRequest(
            kind="secure_keys", plan_id=self.sum_id, round_num=0, session_id="5" * 32
        )

    def _trained_for_a_sum(self) -> str:
        """Have the researcher train under secure aggregation; the plan's id."""
        settings = settings_for(3, 3)
        settings["roster"][SITE] = self.ours("researcher", DESCRIBE, SiteDescription)[
            "identity_key"
        ]
        level = "secure_aggregation"
        asked = cast("PlanProposal", proposal(run_id="sum", privacy_level=level, privacy=settings))
        plan_id = self.ours("researcher", asked, PlanDecision)["plan_id"]
        self.ours("researcher", train_request(plan_id), Trained)
        return plan_id

    def ours(self, actor: str, message: Any, reply: type[T]) -> T:
        """Send a message with our client."""
        if actor == "wrong password":
            self.log_in(FORGETFUL, _WRONG)
        return self._ours[actor].request(message, reply, SITE)

    def notebook(self, actor: str, path: str, **kwargs: object) -> Any:
        """Send a signed call with PySyft's own client; what was answered.

        Raises:
            SecurityError: It was refused.
        """
        try:
            if actor == "wrong password":
                sy.login(url=self.site.url, email=FORGETFUL, password=_WRONG)
            answer = signed_call(self._notebooks[actor], path, **kwargs)
        except SyftException as exc:
            raise _as_refusal(exc.public_message) from exc
        except AttributeError as exc:  # which is how PySyft's client takes HTTP 429 to a log-in
            if "code 429" not in str(exc.__context__):
                raise
            raise SecurityError("too many log-ins failed") from exc
        if isinstance(answer, SyftError):
            raise _as_refusal(answer.message)
        return answer.value

    def in_a_notebook(self, actor: str, message: object, reply: type[T]) -> T:
        """Send one of our messages with PySyft's own client."""
        request = {"x": wire.encode(cast("Message", message)).joined()}
        answer = self.notebook(actor, "federation.handle", request=request)
        told = wire.decode(Parcel.of(answer["x"]))
        if wire.is_kind(told, Failure):
            raise SecurityError(told["message"])
        assert wire.is_kind(told, reply)
        return told


def _as_refusal(message: str) -> Exception:
    """Give a `SecurityError` for what says that it is a refusal, and else what fails the test."""
    return SecurityError(message) if message.startswith(REFUSED) else AssertionError(message)


_WRONG: Final = "Not-the-password-1"
_NOT_LOGGED_IN: Final = frozenset({"guest", "wrong password"})

DESCRIBE: Final = DescribeRequest(kind="describe")
PROPOSAL: Final = cast("PlanProposal", proposal())
PRIVATE_PROPOSAL: Final = cast("PlanProposal", proposal(run_id="private", **PRIVATE))
AUDIT: Final = AuditRequest(kind="audit", after=0)
PLANS: Final = PlansRequest(kind="plans", after=0)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Give one live site for the whole table."""
    site = LiveSite(tmp_path_factory.mktemp("roles"))
    site.register()
    site.start()
    try:
        yield Scene(site)
    finally:
        site.end()


def log_in_to_a_notebook(scene: Scene, actor: str) -> None:
    """Log in with PySyft's own client, or take what it gives a guest."""
    if actor == "guest":
        scene.notebook("guest", "user.get_current_user")
    elif actor == "wrong password":
        scene.notebook(actor, "")
    else:
        try:
            scene.site.notebook(ACTORS[actor])
        except SyftException as exc:
            raise _as_refusal(exc.public_message) from exc


def log_in_with_ours(scene: Scene, actor: str) -> None:
    """Log in with our client; a guest has an e-mail that nobody knows."""
    email = ACTORS[actor] or "nobody@lab.example.com"
    scene.log_in(email, _WRONG if actor == "wrong password" else password_of(email))


def say(message: Callable[[Scene], object], reply: type) -> Callable[[Scene, str], object]:
    """Give the action of sending a message with our client."""
    return lambda scene, actor: scene.ours(actor, message(scene), reply)


def say_in_a_notebook(
    message: Callable[[Scene], object], reply: type
) -> Callable[[Scene, str], object]:
    """Give the action of sending a message with PySyft's own client."""
    return lambda scene, actor: scene.in_a_notebook(actor, message(scene), reply)


def call(path: str, **kwargs: Callable[[Scene], object]) -> Callable[[Scene, str], object]:
    """Give the action of calling PySyft's API."""
    return lambda scene, actor: scene.notebook(
        actor, path, **{name: value(scene) for name, value in kwargs.items()}
    )


def open_an_account(scene: Scene, actor: str) -> None:
    """Open an account for oneself to have."""
    password = password_of(NEW)
    scene.notebook(
        actor,
        "user.create",
        email=NEW,
        name="New",
        password=password,
        password_verify=password,
        role=ServiceRole.ADMIN,
    )


EVERYBODY: Final = {"operator", "auditor", "researcher", "another researcher"}
RESEARCHERS: Final = {"researcher", "another researcher"}
NOBODY: Final[set[str]] = set()

Action = Callable[[Scene, str], object]

TABLE: Final[dict[str, tuple[set[str], Action]]] = {
    # What PySyft's own client can ask for.
    "notebook: log in": (EVERYBODY, log_in_to_a_notebook),
    "notebook: list datasets": (EVERYBODY, call("dataset.get_all")),
    "notebook: see the own account": (EVERYBODY, call("user.get_current_user")),
    "notebook: look at a mock": (
        {"operator", *RESEARCHERS},
        call("action.get_mock", uid=lambda scene: scene.rows_id),
    ),
    "notebook: read private rows": (
        {"operator"},
        call("action.get", uid=lambda scene: scene.rows_id),
    ),
    "notebook: list accounts": ({"operator"}, call("user.get_all")),
    "notebook: open an account": ({"operator"}, open_an_account),
    "notebook: rename another": (
        {"operator", "another researcher"},
        call("user.update", uid=lambda scene: scene.rival_id, name=lambda _: "Renamed"),
    ),
    "notebook: rise in role": (
        {"operator"},
        call("user.update", uid=lambda scene: scene.rival_id, role=lambda _: "DATA_SCIENTIST"),
    ),
    "notebook: submit code": (NOBODY, call("code.submit")),
    "notebook: approve code": (NOBODY, call("request.apply")),
    "notebook: add an endpoint": (NOBODY, call("api.add")),
    "notebook: read job logs": (NOBODY, call("log.get")),
    "notebook: change settings": (NOBODY, call("settings.update")),
    "notebook: describe the site": (
        EVERYBODY,
        say_in_a_notebook(lambda _: DESCRIBE, SiteDescription),
    ),
    "notebook: read the audit log": (
        {"operator", "auditor"},
        say_in_a_notebook(lambda _: AUDIT, AuditPage),
    ),
    "notebook: propose a plan": (
        {"operator", *RESEARCHERS},
        say_in_a_notebook(lambda _: PROPOSAL, PlanDecision),
    ),
    # What ours does, in sessions.
    "ours: log in": (EVERYBODY, log_in_with_ours),
    "ours: describe the site": (EVERYBODY, say(lambda _: DESCRIBE, SiteDescription)),
    "ours: propose a plan": (
        {"operator", *RESEARCHERS},
        say(lambda _: PROPOSAL, PlanDecision),
    ),
    "ours: ask for the researcher's plan": (
        {"researcher"},
        say(lambda scene: PlanQuery(kind="plan_status", plan_id=scene.plan_id), PlanDecision),
    ),
    "ours: sum the researcher's data": (
        {"researcher"},
        say(
            lambda scene: StatisticsRequest(kind="statistics", plan_id=scene.plan_id),
            SensorStatistics,
        ),
    ),
    "ours: ask what the researcher's plan costs": (
        {"researcher"},
        say(
            lambda scene: PrivacyRequest(
                kind="privacy_account", plan_id=scene.private_id, deadline_s=60.0
            ),
            PrivacyAccount,
        ),
    ),
    "ours: train under the researcher's private plan": (
        {"researcher"},
        say(lambda scene: train_request(scene.private_id), ClientUpdate),
    ),
    "ours: train under the researcher's plan": (
        {"researcher"},
        say(lambda scene: train_request(scene.plan_id), ClientUpdate),
    ),
    "ours: evaluate under the researcher's plan": (
        {"researcher"},
        say(lambda scene: evaluate_request(scene.plan_id), EvaluationReport),
    ),
    "ours: begin a sum under the researcher's plan": (
        {"researcher"},
        say(lambda scene: scene.begin_a_sum(), PublicKeys),
    ),
    "ours: read the audit log": ({"operator", "auditor"}, say(lambda _: AUDIT, AuditPage)),
    "ours: read the plans": ({"operator", "auditor"}, say(lambda _: PLANS, PlansPage)),
}
"""What can be asked for, and who may; all others are refused."""


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("action", TABLE)
def test_what_is_allowed_is_done_and_all_else_refused(
    scene: Scene, action: str, actor: str
) -> None:
    """A refusal is told as one, by an answer, and is on the audit log."""
    allowed, act = TABLE[action]
    if actor in allowed:
        act(scene, actor)
        return
    who, before = ACTORS[actor], scene.site.refusals_of(ACTORS[actor])
    with pytest.raises(SecurityError):
        act(scene, actor)
    if actor in _NOT_LOGGED_IN:  # together with others, within a minute: see the last test
        scene.outsiders_refused += 1
    else:
        assert scene.site.refusals_of(who) > before


def test_the_refusals_of_outsiders_are_counted_on_the_log(scene: Scene) -> None:
    """They come in any number: few rows tell of them all, and the chain of them is whole."""
    scene.site.end()
    outsiders = (STRANGER, FORGETFUL)
    assert sum(map(scene.site.refusals_of, outsiders)) >= scene.outsiders_refused
    rows = [row for row in scene.site.audit() if row["who"] == STRANGER]
    assert 1 <= len(rows) < 10
    assert "as they were written" in run_datasite("audit", "verify", "-c", str(scene.site.config))


def test_no_cell_ended_in_a_traceback(scene: Scene) -> None:
    """Nor is a password, or a number of a row, in what the site had to say."""
    for path in (scene.site.log, scene.site.state / "private.log"):
        log = path.read_text(encoding="utf-8")
        assert "Traceback" not in log
        assert "Password-of" not in log
