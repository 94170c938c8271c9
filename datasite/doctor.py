"""Whether a site can do its work: its file, its folder, its machine, and itself where it runs."""

import http.client
import os
import socket
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import psutil
from loguru import logger
from sqlalchemy import func, select, text

from core import wire
from core.certificates import hosts_in, read_certificates
from core.checkup import Checkup, Finding, Verdict, fail, ok, room, versions, warn
from core.codehash import installed_code_hash
from core.exceptions import DataSiteError
from core.schema import Column, DataSchema, Label
from datasite import audit
from datasite.certificates import SiteTls
from datasite.configuration import (
    SiteConfig,
    load_site_config,
    password_of,
    require_private,
    secret_files,
)
from datasite.health import status_of
from datasite.identity import require_strong_password
from datasite.ledger import AuditRow
from datasite.operator_door import OperatorDoor
from datasite.records import Records
from datasite.registry import Dataset, file_sha256

_MEMORY_BYTES: Final = 800_000_000
"""What a site takes, its trainer included."""

_TRAINER_S: Final = 150.0
_DATA_S: Final = 600.0
_SOON_DAYS: Final = 30
_SKEW_S: Final = 2.0
_GB: Final = 1e9
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not listened on
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


def examine(file: Path) -> list[Finding]:
    """Look at the site of a `site.yaml` and at this machine; nothing is changed.

    A site that was never started, or does not run, is not thereby ill.
    """
    checkup = Checkup()
    logger.disable("datasite")  # what it would log is among the findings
    try:
        _examine(checkup, file)
    finally:
        logger.enable("datasite")
    return checkup.findings


def _examine(checkup: Checkup, file: Path) -> None:
    checkup.check("versions", versions, advice="install the release anew, as README.md says")
    checkup.check(
        "code", lambda: ok(f"training code {installed_code_hash()[:16]}"), advice="install anew"
    )
    read: list[SiteConfig] = []

    def configured() -> Verdict:
        read.append(load_site_config(file))
        return ok(f"{file} is {read[0].site_id}'s")

    checkup.check("site.yaml", configured, advice="correct what it names in site.yaml")
    if read:
        _examine_site(checkup, read[0])
    else:
        checkup.skip("all else", "it needs site.yaml")


def _examine_site(checkup: Checkup, config: SiteConfig) -> None:
    checks = {
        "permissions": (_permissions, "run the chmod or chown it names, as the site's account"),
        "passwords": (_passwords, "write a better one into its file, or set its variable"),
        "tls": (_tls, "see deploy/README.md, TLS"),
        "disk": (_disk, "look at the disk of the state folder"),
        "memory": (_memory, "look at the machine's memory"),
        "clock": (_clock, "set the clock by NTP, and look at the disk's server if it has one"),
        "port": (_port, "end what listens there, or choose another listen.port"),
    }
    for name, (look, advice) in checks.items():
        checkup.check(name, partial(look, config), advice=advice)
    checkup.check(
        "ledger",
        partial(_ledger, config),
        advice="stop the site and restore its last backup: datasite restore",
        limit_s=_DATA_S,
    )
    _examine_data(checkup, config)
    checkup.check(
        "trainer",
        partial(_trainer, config),
        advice="see what it wrote to standard error; is memory left, and is torch installed whole?",
        limit_s=_TRAINER_S,
    )


def _has_state(config: SiteConfig) -> bool:
    return (config.state / "ledger.db").exists()


def _permissions(config: SiteConfig) -> Verdict:
    require_private(config)
    secrets = len(secret_files(config))
    if not config.state.exists():
        return ok(f"{config.state} will be made at the first start; {secrets} secret file(s)")
    return ok(f"{config.state} and {secrets} secret file(s) are this account's alone")


def _passwords(config: SiteConfig) -> Verdict:
    accounts = config.accounts()
    for entry, account in accounts.items():
        require_strong_password(password_of(account, entry=entry), email=account.email)
    return ok(f"{len(accounts)} in site.yaml, each of them strong")


def _tls(config: SiteConfig) -> Verdict:
    tls = config.listen.tls
    if tls is None:
        if config.listen.host in _LOOPBACK:
            return ok("none, and only this machine reaches the site")
        return warn(
            f"none, and {config.listen.host} lets others in: passwords cross in the clear",
            "set listen.tls, or see that the network carries it encrypted",
        )
    opened = SiteTls(certificate=tls.certificate, key=tls.key)
    hosts = ", ".join(hosts_in(read_certificates(tls.certificate)[0].extensions)) or "no host"
    days = (opened.valid_until - datetime.now(tz=UTC)).days
    told = f"{tls.certificate} is for {hosts}, valid for {days} more days"
    if days < _SOON_DAYS:
        return warn(told, "have the same request signed again; see deploy/README.md, Renewal")
    return ok(told)


def _disk(config: SiteConfig) -> Verdict:
    kept = sum(path.stat().st_size for path in config.state.rglob("*") if path.is_file())
    verdict = room(config.state, wanted_bytes=max(kept, 1 << 30))
    return Verdict(
        verdict.outcome, f"{verdict.found}; the state takes {kept / _GB:.2f} GB", verdict.advice
    )


def _memory(config: SiteConfig) -> Verdict:
    free = psutil.virtual_memory().available
    if (limit := _container_limit_bytes()) is not None:
        free = min(free, limit)
    told = f"{free / _GB:.1f} GB are free"
    with _door(config) as door:
        is_running = door.is_running()
    if free < _MEMORY_BYTES and not is_running:
        return warn(f"{told}; a site takes {_MEMORY_BYTES / _GB:.1f} GB", "give it more memory")
    return ok(told)


def _container_limit_bytes() -> int | None:
    """Give what a control group leaves free; None without one that limits."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        return None if limit.strip() == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return None


def _clock(config: SiteConfig) -> Verdict:
    now = datetime.now(tz=UTC)
    there = next(each for each in (config.state, *config.state.parents) if each.exists())
    with tempfile.TemporaryFile(dir=there) as file:
        skew_s = abs(os.fstat(file.fileno()).st_mtime - time.time())
    if skew_s > _SKEW_S:
        return warn(
            f"the disk's clock and this machine's differ by {skew_s:.0f} s",
            "set both by NTP",
        )
    installed = datetime.fromtimestamp(Path(__file__).stat().st_mtime, tz=UTC)
    newest = _newest_entry(config)
    for what, then in (
        ("this software was installed", installed),
        ("the newest audit row", newest),
    ):
        if then is not None and now < then - timedelta(seconds=_SKEW_S):
            return fail(
                f"it is {now:%Y-%m-%d %H:%M:%S} UTC here, before {what} ({then:%Y-%m-%d %H:%M:%S})",
                "set the clock by NTP",
            )
    return ok(f"it is {now:%Y-%m-%d %H:%M:%S} UTC")


def _newest_entry(config: SiteConfig) -> datetime | None:
    if not _has_state(config):
        return None
    with closing(Records.open(config).ledger) as ledger, ledger.read() as session:
        at = session.scalar(select(func.max(AuditRow.at)))
    return None if at is None else datetime.fromisoformat(at)


def _door(config: SiteConfig) -> OperatorDoor:
    return OperatorDoor(site_id=config.site_id, state=config.state)


def _port(config: SiteConfig) -> Verdict:
    listen = config.listen
    with _door(config) as door:
        if door.is_running():
            return _running(config, door)
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        socket.create_server((listen.host, listen.port), family=family).close()
    except OSError as exc:
        return fail(
            f"{listen.host}:{listen.port} cannot be listened on, and the site does not run: "
            f"{exc.strerror}",
            "end what listens there, or choose another listen.port; a site that is just starting "
            "has it too",
        )
    return ok(f"{listen.host}:{listen.port} is free; the site does not run")


def _running(config: SiteConfig, door: OperatorDoor) -> Verdict:
    """Look at the site where it runs: its routes first, which answer soon or not at all."""
    listen = config.listen
    host = _EVERYWHERE.get(listen.host, listen.host)
    host = f"[{host}]" if ":" in host else host
    url = f"{'http' if listen.tls is None else 'https'}://{host}:{listen.port}/api/v2/"
    advice = "see its log; if it is frozen, end it and start it again"
    try:
        status = status_of(url)
    except (OSError, http.client.HTTPException) as exc:
        return fail(f"the site runs and does not answer at {url}: {exc}", advice)
    if status != http.HTTPStatus.OK:
        return fail(f"the site runs and answers HTTP {status} at {url}", advice)
    told = door.status()
    return ok(f"the site runs and answers on {told['url']}, {told['status']}")


def _ledger(config: SiteConfig) -> Verdict:
    if not _has_state(config):
        return ok("none yet; it is made at the first start")
    with closing(Records.open(config).ledger) as ledger, ledger.read() as session:
        quick = session.scalar(text("PRAGMA quick_check(1)"))
        if quick != "ok":
            raise DataSiteError(f"{config.state / 'ledger.db'} is damaged: {quick}")
        head = audit.verify(audit.written(session))
    return ok(f"whole; {head.count} audit rows up to {head.sha256[:16]}")


def _examine_data(checkup: Checkup, config: SiteConfig) -> None:
    found: list[Dataset] = []

    def listed() -> Verdict:
        if _has_state(config):
            records = Records.open(config)
            with closing(records.ledger):
                found.extend(records.registry.versions())
        return ok(", ".join(dict.fromkeys(d.name for d in found)) or "none is registered")

    checkup.check("data", listed, advice="mend the ledger first")
    for dataset in found:
        checkup.check(
            f"data {dataset.name}",
            partial(_dataset, dataset),
            advice="restore the last backup, or remove the dataset and register its file again",
            limit_s=_DATA_S,
        )


def _dataset(dataset: Dataset) -> Verdict:
    from datasite.data.table import load_table  # noqa: PLC0415 - pandas, for this alone

    if not dataset.file.exists():
        raise DataSiteError(f"version {dataset.version}: {dataset.file} is not there")
    if file_sha256(dataset.file) != dataset.sha256:
        raise DataSiteError(f"version {dataset.version}: {dataset.file} was changed")
    rows = len(load_table(dataset.file, dataset.schema))
    return ok(f"version {dataset.version}: {rows:,} rows as registered, and within its contract")


_TINY: Final = DataSchema(
    name="doctor",
    label=Label(column="failure"),
    columns=(Column(name="load", range=(0.0, 1.0)),),
)


def _trainer(config: SiteConfig) -> Verdict:
    """Have a trainer of its own count a table that says nothing, beside the site's."""
    from datasite.data.mock import make_mock  # noqa: PLC0415 - pandas and torch, for this alone
    from datasite.trainer import TrainerProcess, unwatched  # noqa: PLC0415
    from datasite.training.work import Assignment, Job  # noqa: PLC0415

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "doctor.parquet")
        make_mock(_TINY).to_parquet(file, index=False)
        job = Job(
            site_id=config.site_id,
            file=str(file),
            sha256=file_sha256(file),
            schema=_TINY.model_dump(mode="json"),
            split={"test": 0.2, "validation": 0.2, "seed": 0},
            drift={},
            privacy=None,
        )
        request = wire.encode({"kind": "statistics", "plan_id": "doctor"})
        threads = config.training.threads
        with closing(TrainerProcess(site_id=config.site_id, threads=threads)) as trainer:
            assignment = Assignment(job, request)
            done = trainer.perform(assignment, deadline_s=_TRAINER_S, watch=unwatched)
    answer = cast("dict[str, Any]", wire.decode(done.reply))
    if answer["kind"] == "failure":
        raise DataSiteError(str(answer["message"]))
    return ok(f"started and answered in {time.perf_counter() - begin:.1f} s")
