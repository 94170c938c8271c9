"""What every transport shares: messages in, messages out, and the five methods of the contract.

A carrier moves bytes to one site and back; the two transports differ in their carriers only.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar, cast

from core import exceptions, wire
from core.exceptions import (
    CommunicationError,
    ConfigurationError,
    DataSiteError,
    FederatedLearningError,
    ProtocolError,
)
from core.interfaces import CommunicationInterface
from core.messages import ClientUpdate, Failure, Message, Request
from core.wire import Packed, Parcel
from orchestrator.communication.traffic import Traffic

T = TypeVar("T")

_ERRORS: Mapping[str, type[FederatedLearningError]] = {
    name: error
    for name, error in vars(exceptions).items()
    if isinstance(error, type) and issubclass(error, FederatedLearningError)
}

_LOOK_S: Final = 2.0

Admission = Callable[[str, int], None]


def _admit_at_once(_site_id: str, _size_bytes: int) -> None:
    """Do nothing: there is room."""


class Carrier(Protocol):
    """An open way to one site; `site_id` is the name the site gives itself."""

    site_id: str

    def exchange(self, request: Parcel, *, deadline_s: float) -> Parcel:
        """Give the site's answer to `request`.

        Raises:
            CommunicationError: Not reached; `DeadlineError` when the answer takes longer.
        """

    def look(self, *, deadline_s: float) -> None:
        """Find out, at little cost to both sides, whether the site is there.

        Raises:
            CommunicationError: It is not, or `DeadlineError` when it says nothing for so long.
        """

    def close(self) -> None:
        """Let go of the connection."""


class _Sent(threading.local):
    """The models that this thread has sent, by site: no thread trains from what another sent."""

    def __init__(self) -> None:
        self.models: dict[str, Packed] = {}


class SiteCommunication(CommunicationInterface):
    """The contract over carriers.

    Args:
        connect_s: Seconds for a log-in.
        call_s: Seconds for a request that names no deadline of its own.

    Attributes:
        admit: Called before an answer of some size is read, with the site's name and the bytes; it
            returns when there is room for it.
        traffic: What passed between sites and here.
        most_at_once: How many sites are asked at once at most; None for all.
        can_vanish: Whether a site can be gone without a word while nobody asks it anything.
    """

    most_at_once: int | None = None
    can_vanish: bool = True

    def __init__(self, *, connect_s: float = 15.0, call_s: float = 600.0) -> None:
        self.connect_s = connect_s
        self.call_s = call_s
        self.admit: Admission = _admit_at_once
        self.traffic = Traffic()
        self._carriers: dict[str, Carrier] = {}
        self._sent = _Sent()

    @abstractmethod
    def open_carrier(self, url: str, credentials: Mapping[str, str]) -> Carrier:
        """Connect and log in; see `connect_to_datasite` for what it raises."""

    @property
    def connected(self) -> list[str]:
        """Names of the connected sites, sorted."""
        return sorted(self._carriers)

    def connect_to_datasite(self, datasite_url: str, credentials: dict[str, str]) -> bool:
        """See `CommunicationInterface`.

        `credentials` has `email` and `password`, and may have `site_id`, the name that the site
        must then give, and `ca_file`, the path of the authority that vouches for an https site.
        """
        lacking = [name for name in ("email", "password") if not credentials.get(name)]
        if lacking:
            raise ConfigurationError(
                f"{datasite_url}: the credentials lack {' and '.join(lacking)}"
            )
        carrier = self.open_carrier(datasite_url, credentials)
        expected = credentials.get("site_id", carrier.site_id)
        if carrier.site_id != expected:
            carrier.close()
            raise ProtocolError(
                f"{datasite_url} is {carrier.site_id!r}, expected {expected!r}; "
                "correct the sites file",
                site_id=expected,
            )
        before = self._carriers.get(carrier.site_id)
        self._carriers[carrier.site_id] = carrier
        self._sent.models.pop(carrier.site_id, None)
        if before is not None:
            before.close()
        return True

    def send_model(self, model_parameters: dict[str, Any], datasite_id: str) -> bool:
        """See `CommunicationInterface`; what is already `Packed` is not copied."""
        self._carrier(datasite_id)
        if not isinstance(model_parameters, Packed):
            model_parameters = Packed(model_parameters)
        self._sent.models[datasite_id] = model_parameters
        return True

    def request_training(self, training_config: dict[str, Any], datasite_id: str) -> dict[str, Any]:
        """See `CommunicationInterface`; `training_config` has the fields of `TrainRequest`."""
        self._carrier(datasite_id)
        if datasite_id not in self._sent.models:
            raise CommunicationError(
                f"{datasite_id}: no model was sent; call send_model first", site_id=datasite_id
            )
        model = self._sent.models[datasite_id]
        request: dict[str, Any] = {"kind": "train", **training_config, "parameters": model}
        if model.control:
            request["control"] = model.control
        update = self.request(cast("Request", request), ClientUpdate, datasite_id)
        if (update["datasite_id"], update["round_num"]) != (datasite_id, request["round_num"]):
            raise ProtocolError(
                f"{datasite_id}: answered for {update['datasite_id']} in round "
                f"{update['round_num']}, asked was round {request['round_num']}",
                site_id=datasite_id,
            )
        return cast("dict[str, Any]", update)

    def forget_model(self, datasite_id: str) -> None:
        """Let go of the model that this thread has sent to a site, if it has.

        A run's threads ask now this site and now that one: each would hold models of old rounds.
        """
        self._sent.models.pop(datasite_id, None)

    def disconnect_from_datasite(self, datasite_id: str) -> bool:
        """See `CommunicationInterface`."""
        carrier = self._carriers.pop(datasite_id, None)
        self._sent.models.pop(datasite_id, None)
        if carrier is None:
            return False
        carrier.close()
        return True

    def look(self, datasite_id: str) -> None:
        """Do nothing when the connected site is there.

        Raises:
            CommunicationError: It is not, or is not connected; `DeadlineError` when it is silent.
        """
        self._carrier(datasite_id).look(deadline_s=_LOOK_S)

    def request(
        self,
        message: Request,
        reply: type[T],
        datasite_id: str,
        *,
        deadline_s: float | None = None,
    ) -> T:
        """Send `message` and give the answer, which must be of the kind `reply`.

        Without a deadline it is the message's own or, where that has none, `call_s`.

        Raises:
            CommunicationError: Not connected or not reached; `ProtocolError` for another kind.
            FederatedLearningError: What the site answered, as the error it names.
        """
        if deadline_s is None:
            deadline_s = float(cast("dict[str, Any]", message).get("deadline_s", self.call_s))
        reply_parcel = self._carrier(datasite_id).exchange(
            wire.encode(message), deadline_s=deadline_s
        )
        try:
            answer = wire.decode(reply_parcel)
        except ProtocolError as exc:
            raise ProtocolError(f"{datasite_id}: {exc}", site_id=datasite_id) from exc
        if wire.is_kind(answer, Failure):
            raise _as_error(answer, datasite_id)
        if not wire.is_kind(answer, reply):
            raise ProtocolError(
                f"{datasite_id}: answered {_kind(answer)!r} to {message['kind']!r}",
                site_id=datasite_id,
            )
        return answer

    def _carrier(self, datasite_id: str) -> Carrier:
        try:
            return self._carriers[datasite_id]
        except KeyError as exc:
            raise CommunicationError(
                f"not connected to {datasite_id!r}; connected: "
                f"{', '.join(self.connected) or 'none'}",
                site_id=datasite_id,
            ) from exc


def _kind(message: Message) -> str:
    return message["kind"]


def _as_error(failure: Failure, datasite_id: str) -> FederatedLearningError:
    kind = _ERRORS.get(failure["error"], DataSiteError)
    return kind(failure["message"], site_id=datasite_id, round_num=failure.get("round_num"))
