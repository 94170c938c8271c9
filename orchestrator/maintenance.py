"""Maintenance: a site in ERROR is an event; the log, a webhook and a command are told of it."""

import subprocess
import threading
import urllib.request
from collections.abc import Mapping
from typing import Annotated, Final

from loguru import logger
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from core.enums import DataSiteStatus
from core.exceptions import (
    AggregationError,
    AuthenticationError,
    CertificateError,
    DataError,
    DataSiteError,
    FederatedLearningError,
    ModelError,
    ProtocolError,
)
from core.jsontext import as_json
from orchestrator.circuit import Standing
from orchestrator.section import Section

_WEBHOOK_S: Final = 10.0
_COMMAND_S: Final = 60.0

_INSPECT: Final[Mapping[type[FederatedLearningError], str]] = {
    AuthenticationError: "the account: `email` and password in the sites file, and 'datasite users "
    "list' at the site",
    CertificateError: "the site's certificate and the `ca_file` of the sites file: 'orchestrator "
    "doctor SITES_FILE'",
    ProtocolError: "what answers at the site's address: 'orchestrator doctor SITES_FILE'",
    AggregationError: "the update that the site sent: its release, its data, its log",
    ModelError: "training at the site: the learning rate, and the site's data",
    DataError: "the site's data: 'datasite data list' there",
    DataSiteError: "the site's log, disk and memory: 'datasite doctor' there",
}
_ELSE: Final = "the site's log, and 'datasite doctor' there"


class Event(TypedDict):
    """What happened at a site; times are ISO 8601 in UTC."""

    event: str
    run: str
    site: str
    at: str
    error: str
    message: str
    inspect: str


def _webhook_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        message = f"{url!r} is no http(s) URL"
        raise ValueError(message)
    return url


class Hooks(Section):
    """The section `maintenance` of an experiment: who is told of a site in ERROR.

    Attributes:
        webhook: A URL to which the event is posted as JSON.
        command: A program and its arguments, which is given the event as JSON on standard input.
    """

    webhook: Annotated[str, AfterValidator(_webhook_url)] | None = None
    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class Maintenance:
    """Listens for sites in ERROR, and passes each on, beside the run: a hook that fails is logged.

    Args:
        hooks: Whom to tell.
        run_id: Named in events.
    """

    def __init__(self, hooks: Hooks, run_id: str) -> None:
        self._hooks = hooks
        self._run_id = run_id

    def __call__(self, site_id: str, standing: Standing) -> None:
        """Be told of a site's standing."""
        if standing.status is not DataSiteStatus.ERROR or standing.error is None:
            return
        event = Event(
            event="site_error",
            run=self._run_id,
            site=site_id,
            at=standing.since.isoformat(timespec="milliseconds"),
            error=type(standing.error).__name__,
            message=str(standing.error),
            inspect=inspection(standing.error),
        )
        logger.bind(site_id=site_id).warning("{}: inspect {}", site_id, event["inspect"])
        if self._hooks == Hooks():
            return
        # No daemon: a run that ends with its site's error still tells of it.
        threading.Thread(target=self._pass_on, args=(event,), name="maintenance").start()

    def _pass_on(self, event: Event) -> None:
        said = as_json(event).encode()
        if self._hooks.webhook is not None:
            try:
                _post(self._hooks.webhook, said)
            except (OSError, ValueError) as exc:
                logger.warning("the maintenance webhook was not told of {}: {}", event["site"], exc)
        if self._hooks.command is not None:
            try:
                subprocess.run(  # noqa: S603 - as the researcher's own file says, without a shell
                    self._hooks.command, input=said, timeout=_COMMAND_S, check=True
                )
            except (OSError, subprocess.SubprocessError) as exc:
                logger.warning("the maintenance command failed for {}: {}", event["site"], exc)


def inspection(error: FederatedLearningError) -> str:
    """Say what somebody should look at after `error`."""
    return next((what for kind, what in _INSPECT.items() if isinstance(error, kind)), _ELSE)


def _post(url: str, content: bytes) -> None:
    request = urllib.request.Request(  # noqa: S310 - http(s) alone, see `_webhook_url`
        url, data=content, headers={"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=_WEBHOOK_S):  # noqa: S310 - likewise
        pass
