"""A federation in one process: the same messages, codec and sites, carried by function calls."""

from collections.abc import Callable, Mapping

from core.exceptions import AuthenticationError, CommunicationError
from core.wire import Parcel
from orchestrator.communication.base import Carrier, SiteCommunication
from orchestrator.communication.traffic import Traffic

Handler = Callable[[Parcel, str], Parcel]
"""A site: a request and the caller's e-mail in, a reply out."""


class MemoryCarrier:
    """Calls a site's handler as one account.

    Args:
        site_id: The site's name.
        handle: The site.
        email: Who calls.
        traffic: Counts what would pass if the site were elsewhere.
    """

    def __init__(self, site_id: str, handle: Handler, email: str, traffic: Traffic) -> None:
        self.site_id = site_id
        self._handle = handle
        self._email = email
        self._traffic = traffic

    def exchange(self, request: Parcel, *, deadline_s: float) -> Parcel:
        """See `Carrier.exchange`; nothing can be late in memory."""
        del deadline_s
        reply = self._handle(request, self._email)
        self._traffic.add(sent=len(request), received=len(reply))
        return reply

    def look(self, *, deadline_s: float) -> None:
        """See `Carrier.look`; what is in memory is there."""
        del deadline_s

    def close(self) -> None:
        """See `Carrier.close`."""


class MemoryCommunication(SiteCommunication):
    """Reaches sites by name, as `memory://factory-1`.

    Args:
        sites: Handlers by site name.
        passwords: Accounts that may log in, the same at every site; none means that anybody may.
    """

    can_vanish = False

    def __init__(
        self, sites: Mapping[str, Handler], *, passwords: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self._sites = sites
        self._passwords = passwords

    def open_carrier(self, url: str, credentials: Mapping[str, str]) -> Carrier:
        """See `SiteCommunication.open_carrier`."""
        site_id = url.removeprefix("memory://").rstrip("/")
        if site_id not in self._sites:
            raise CommunicationError(
                f"{url}: there is no such site; there are: {', '.join(sorted(self._sites))}",
                site_id=site_id,
            )
        email = credentials["email"]
        if self._passwords is not None and self._passwords.get(email) != credentials["password"]:
            raise AuthenticationError(
                f"{site_id}: log-in as {email} refused; check the account with the site's operator",
                site_id=site_id,
            )
        return MemoryCarrier(site_id, self._sites[site_id], email, self.traffic)
