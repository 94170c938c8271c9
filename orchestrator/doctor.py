"""Whether experiments can be run from here: this machine, and each site of a sites file."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from core.checkup import Checkup, Finding, Verdict, fail, ok, room, versions, warn
from core.exceptions import ProtocolError
from core.messages import DescribeRequest, SiteDescription
from core.version import VERSION
from orchestrator.communication.channel import Channel, site_at
from orchestrator.communication.connections import Deadline
from orchestrator.communication.live import PySyftCommunication
from orchestrator.federation import Federation, SiteAddress, load_federation

_PATIENCE_S: Final = 15.0
_LIMIT_S: Final = 60.0
"""Longest for a log-in, in which importing PySyft takes its time."""

_SKEW_S: Final = 5.0
_FAR_OFF_S: Final = 300.0
_WANTED_BYTES: Final = 1 << 30


def examine(sites_file: Path | None, runs: Path) -> list[Finding]:
    """Look at this machine and, where a sites file is given, at each of its sites.

    Args:
        sites_file: The sites to reach; each is asked on its own, so one cannot hide another.
        runs: The folder of the runs.
    """
    checkup = Checkup()
    checkup.check("versions", versions, advice="install the release anew, as README.md says")
    checkup.check("runs", partial(_runs, runs), advice="choose another folder with --runs")
    checkup.check(
        "disk",
        partial(room, runs.absolute(), wanted_bytes=_WANTED_BYTES),
        advice="look at the disk",
    )
    if sites_file is None:
        checkup.skip("sites", "no sites file was given")
        return checkup.findings
    read: list[Federation] = []

    def listed() -> Verdict:
        read.append(load_federation(sites_file))
        return ok(f"{sites_file} names {len(read[0].sites)}")

    checkup.check("sites", listed, advice="correct what it names in the sites file")
    if not read:
        return checkup.findings
    addresses = read[0].sites
    with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
        visits = list(pool.map(_Visit.made, addresses))
    findings = [*checkup.findings, *(each for visit in visits for each in visit.checkup.findings)]
    described = {visit.address.site_id: visit.described for visit in visits if visit.described}
    return [*findings, *_compared(described)]


def _runs(folder: Path) -> Verdict:
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    with tempfile.TemporaryFile(dir=there) as file:
        file.write(b"doctor")
    return ok(f"{folder} can be written" if there == folder else f"{folder} can be made")


class _Visit:
    """The checks of one site; each needs the one before it.

    Args:
        address: Where the site is.

    Attributes:
        described: What the site said of itself; None when it could not be asked.
    """

    def __init__(self, address: SiteAddress) -> None:
        self.address = address
        self.checkup = Checkup()
        self.described: SiteDescription | None = None
        self._communication = PySyftCommunication(connect_s=_PATIENCE_S, call_s=_PATIENCE_S)

    @classmethod
    def made(cls, address: SiteAddress) -> "_Visit":
        """Visit the site."""
        visit = cls(address)
        steps = {
            "reached": (visit._reached, "is it running, and are url, ca_file and firewall right?"),
            "health": (visit._healthy, "see the site's log: it is reached and not well"),
            "log-in": (visit._logged_in, "ask the site's operator for the account's password"),
            "session": (visit._asked, "see the site's log: it lets the account in and no request"),
        }
        try:
            for name, (step, advice) in steps.items():
                title = f"{address.site_id} {name}"
                if not visit.checkup.check(title, step, advice=advice, limit_s=_LIMIT_S):
                    break
        finally:
            visit._communication.disconnect_from_datasite(address.site_id)
        return visit

    def _reached(self) -> Verdict:
        address, begin = self.address, time.perf_counter()
        found = site_at(address.url, timeout_s=_PATIENCE_S, ca_file=address.ca_file)
        if found.name != address.site_id:
            return fail(
                f"{address.url} is {found.name!r}, expected {address.site_id!r}",
                "correct site_id or url in the sites file",
            )
        told = f"{address.url} answers in {_ms(begin)}"
        if address.url.startswith("http://") and not _is_local(address.url):
            return warn(f"{told}, without TLS: the password crosses in the clear", "use https")
        return ok(told)

    def _healthy(self) -> Verdict:
        address = self.address
        with closing(Channel(address.url, address.ca_file)) as channel:
            before = time.time()
            answer = channel.send("GET", "", Deadline(_PATIENCE_S))
            here = (before + time.time()) / 2
        skew_s = abs(_time_in(answer, url=address.url).timestamp() - here)
        told = f"it is well; its clock and this one's differ by {skew_s:.1f} s"
        advice = "set both clocks by NTP: certificates and approvals end by them"
        if skew_s > _FAR_OFF_S:
            return fail(told, advice)
        return warn(told, advice) if skew_s > _SKEW_S else ok(told)

    def _logged_in(self) -> Verdict:
        address = self.address
        self._communication.connect_to_datasite(address.url, address.credentials())
        return ok(f"{address.email} is let in")

    def _asked(self) -> Verdict:
        begin = time.perf_counter()
        self.described = self._describe()
        opened = _ms(begin)
        begin = time.perf_counter()
        self._describe()
        data = ", ".join(dataset["name"] for dataset in self.described["datasets"]) or "none"
        told = f"opened in {opened}, a round trip takes {_ms(begin)}; data: {data}"
        if (there := self.described["version"]) != VERSION:
            return warn(
                f"{told}; it has version {there}, here is {VERSION}",
                "install one release everywhere",
            )
        return ok(told)

    def _describe(self) -> SiteDescription:
        request = DescribeRequest(kind="describe")
        return self._communication.request(request, SiteDescription, self.address.site_id)


def _compared(sites: Mapping[str, SiteDescription]) -> Sequence[Finding]:
    """Compare the training code of the sites that could be asked."""
    if not sites:
        return []
    by_code: dict[str, list[str]] = {}
    for name, site in sites.items():
        by_code.setdefault(site["code_hash"][:12], []).append(name)
    told = "; ".join(f"{code} at {', '.join(names)}" for code, names in by_code.items())
    verdict = (
        ok(told)
        if len(by_code) == 1
        else fail(told, "install one release, and the same models, at all sites of a run")
    )
    return [Finding("training code", verdict)]


def _time_in(answer: bytes, *, url: str) -> datetime:
    try:
        return datetime.fromisoformat(json.loads(answer)["time"]).astimezone(UTC)
    except (ValueError, KeyError, TypeError) as exc:
        message = f"{url}: says not how it is; is it an older release?"
        raise ProtocolError(message) from exc


def _is_local(url: str) -> bool:
    return url.split("://")[1].startswith(("127.", "localhost", "[::1]"))


def _ms(begin: float) -> str:
    return f"{(time.perf_counter() - begin) * 1000:.0f} ms"
