"""Where runs are kept: a folder each, and one index of all.

    runs/index.db                      status of every run (SQLite)
    runs/RUN/experiment.json           the configuration as it was understood
    runs/RUN/start.safetensors         what it starts from, where that is a file's; see `start`
    runs/RUN/checkpoints/round_000007.safetensors
    runs/RUN/rounds.jsonl              one line a round; exported again by `orchestrator show`
    runs/RUN/results.json, model.safetensors
    runs/RUN/sites.json                where each site stands, while the run goes on and at its end
    runs/RUN/owner, cancel             see `orchestrator.ownership`

A checkpoint appears whole or not at all, after its round's line; so the newest checkpoint always
finds its history complete, and a line beyond it belongs to a round that will be run again.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from sqlalchemy import create_engine, event, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from core.enums import ExperimentStatus
from core.exceptions import ConfigurationError, ExperimentError
from core.files import sync_folder
from core.messages import Parameters, Preprocessing
from orchestrator.circuit import Standing
from orchestrator.configuration import ExperimentConfig
from orchestrator.files import part_of, write_whole
from orchestrator.ownership import Ownership
from orchestrator.start import START_FILE, Start, keep_start, kept_sha256, kept_start, model_file

_CHECKPOINTS_KEPT = 3
_STATE = "state:"
_CONFIG = "experiment.json"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class _Table(DeclarativeBase):
    pass


class RunRow(_Table):
    """One run in the index; `status` is an `ExperimentStatus` name."""

    __tablename__ = "runs"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    status: Mapped[str]
    message: Mapped[str]
    rounds_done: Mapped[int]
    rounds: Mapped[int]
    created_at: Mapped[str]
    updated_at: Mapped[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        next_round: The round to run next.
        parameters: The global parameters before it.
        preprocessing: What was agreed before round 0.
        state: The algorithm's, by its symbol.
        counted: The last round in which each site's update counted.
        best: The parameters of the best round, for early stopping; empty when none are kept.
    """

    next_round: int
    parameters: Parameters
    preprocessing: Preprocessing
    state: Mapping[str, Parameters] = field(default_factory=dict)
    counted: Mapping[str, int] = field(default_factory=dict)
    best: Parameters = field(default_factory=dict)


class RunStore:
    """The runs below one folder.

    Args:
        root: The folder; made when it is not there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ExperimentError(f"runs: {root} cannot be made: {exc.strerror}") from exc
        self._engine = create_engine(f"sqlite:///{root / 'index.db'}", connect_args={"timeout": 30})
        event.listen(self._engine, "connect", _configure)
        with self._session():
            _Table.metadata.create_all(self._engine)

    def create(self, run_id: str, config: ExperimentConfig) -> None:
        """Record a new PENDING run, and keep what it starts from.

        Raises:
            ConfigurationError: `run_id` is no name for a folder, or `model.start` no start.
            ExperimentError: There is one of that id already.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise ConfigurationError(
                f"{run_id!r} is no id for a run: use letters, digits, '.', '_' and '-', at most 128"
            )
        folder = self.folder(run_id)
        with self._session() as session:
            if session.get(RunRow, run_id) is not None or _has_begun(folder):
                raise ExperimentError(f"run {run_id!r} exists already in {self.root}")
            session.add(
                RunRow(
                    run_id=run_id,
                    name=config.name,
                    status=ExperimentStatus.PENDING.name,
                    message="",
                    rounds_done=0,
                    rounds=config.rounds,
                    created_at=_now(),
                    updated_at=_now(),
                )
            )
            session.flush()  # from here on nobody else can take the id
            if config.model.start is not None:
                keep_start(config.model.start, folder)
            write_whole(folder / _CONFIG, config.model_dump_json(indent=2).encode())

    def move(
        self,
        run_id: str,
        status: ExperimentStatus,
        *,
        message: str = "",
        rounds_done: int | None = None,
    ) -> None:
        """Set where the run stands."""
        with self._session() as session:
            row = session.get_one(RunRow, run_id)
            row.status, row.message, row.updated_at = status.name, message, _now()
            if rounds_done is not None:
                row.rounds_done = rounds_done

    def find(self, run_id: str) -> RunRow:
        """Give the run's row in the index.

        Raises:
            ExperimentError: There is no such run.
        """
        with self._session() as session:
            row = session.get(RunRow, run_id)
        if row is None:
            raise ExperimentError(
                f"there is no run {run_id!r} in {self.root}; see 'orchestrator list'"
            )
        return row

    def has(self, run_id: str) -> bool:
        """Tell whether there is such a run."""
        with self._session() as session:
            return session.get(RunRow, run_id) is not None

    def all(self) -> list[RunRow]:
        """Give every run, newest first."""
        with self._session() as session:
            return list(session.scalars(select(RunRow).order_by(RunRow.created_at.desc())))

    def folder(self, run_id: str) -> Path:
        """Give the run's folder."""
        return self.root / run_id

    def config(self, run_id: str) -> ExperimentConfig:
        """Give the run's configuration as it was understood at its start.

        Raises:
            ExperimentError: There is no such run, or its configuration cannot be read any more.
        """
        self.find(run_id)
        path = self.folder(run_id) / _CONFIG
        try:
            return ExperimentConfig.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise ExperimentError(
                f"{path} cannot be read ({type(exc).__name__}); start a new run instead"
            ) from exc

    def start(self, run_id: str) -> Start | None:
        """Give what the run starts from, as it was when the run was recorded; None for its seed.

        Raises:
            ConfigurationError, ExperimentError: As `config` and `kept_start`.
        """
        file = self.config(run_id).model.start
        return None if file is None else kept_start(self.folder(run_id), file)

    def owned(self, run_id: str) -> AbstractContextManager[None]:
        """Own the run for as long as the context lasts; see `Ownership.held`."""
        return self.ownership(run_id).held()

    def ownership(self, run_id: str) -> Ownership:
        """Give who runs the run."""
        return Ownership(run_id, self.folder(run_id))

    def is_orphaned(self, row: RunRow) -> bool:
        """Tell whether a run is said to be RUNNING and nobody runs it: its process has died."""
        is_running = row.status == ExperimentStatus.RUNNING.name
        return is_running and self.ownership(row.run_id).holder() is None

    def append_round(self, run_id: str, record: dict[str, Any]) -> None:
        """Add a round's record to the history, on disk when this returns."""
        path = self.folder(run_id) / "rounds.jsonl"
        try:
            is_new = not path.exists()
            with path.open("ab+") as stream:
                if _is_cut_short(stream):  # else the new record would be lost with the old one
                    stream.write(b"\n")
                stream.write(json.dumps(record).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            if is_new:
                sync_folder(path.parent)
        except OSError as exc:
            raise ExperimentError(f"{path} cannot be written: {exc.strerror}") from exc

    def rounds(self, run_id: str) -> list[dict[str, Any]]:
        """Give the history, one record a round; a line cut short by a crash is left out.

        Of a round that was run twice (a crash fell between its line and its checkpoint) the later
        record counts.
        """
        records: dict[int, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            text = (self.folder(run_id) / "rounds.jsonl").read_text(encoding="utf-8")
            for line in text.splitlines():
                with suppress(ValueError):
                    record = json.loads(line)
                    records[record["round_num"]] = record
        return [records[round_num] for round_num in sorted(records)]

    def save_checkpoint(self, run_id: str, checkpoint: Checkpoint) -> None:
        """Keep `checkpoint`, and drop all but the newest few."""
        folder = self.folder(run_id) / "checkpoints"
        state = {
            "next_round": checkpoint.next_round,
            "preprocessing": checkpoint.preprocessing,
            "counted": dict(checkpoint.counted),
        }
        groups = {"parameters": checkpoint.parameters, "best": checkpoint.best}
        groups |= {f"{_STATE}{symbol}": values for symbol, values in checkpoint.state.items()}
        tensors = {  # a copy each: safetensors refuses tensors that share memory
            f"{group}/{name}": tensor.clone()
            for group, values in groups.items()
            for name, tensor in values.items()
        }
        blob = safetensors.torch.save(tensors, {"state": json.dumps(state)})
        write_whole(folder / f"round_{checkpoint.next_round:06}.safetensors", blob)
        for old in sorted(folder.glob("round_*.safetensors"))[:-_CHECKPOINTS_KEPT]:
            old.unlink()

    def load_checkpoint(self, run_id: str) -> Checkpoint | None:
        """Give the newest checkpoint, or None when the run has not come to one.

        Raises:
            ExperimentError: It cannot be read.
        """
        paths = sorted((self.folder(run_id) / "checkpoints").glob("round_*.safetensors"))
        if not paths:
            return None
        try:
            with safetensors.safe_open(paths[-1], framework="pt") as blob:
                state = json.loads(blob.metadata()["state"])
            groups = _by_group(safetensors.torch.load_file(paths[-1]))
            return Checkpoint(
                next_round=state["next_round"],
                parameters=groups["parameters"],
                preprocessing=state["preprocessing"],
                state={
                    group.removeprefix(_STATE): values
                    for group, values in groups.items()
                    if group.startswith(_STATE)
                },
                counted=state["counted"],
                best=groups.get("best", {}),
            )
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as exc:
            raise ExperimentError(
                f"{paths[-1]} cannot be read ({exc}); delete it to go on from the one before"
            ) from exc

    def save_sites(self, run_id: str, standings: Mapping[str, Standing]) -> None:
        """Keep where each site stands, for `orchestrator show`; a power cut may lose it."""
        told = {
            site_id: {
                "status": standing.status.name,
                "since": standing.since.isoformat(timespec="milliseconds"),
                "message": str(standing.error or ""),
            }
            for site_id, standing in standings.items()
        }
        path = self.folder(run_id) / "sites.json"
        part = part_of(path)
        try:
            part.write_text(json.dumps(told), encoding="utf-8")
            part.replace(path)
        except OSError as exc:
            raise ExperimentError(f"{path} cannot be written: {exc.strerror}") from exc

    def sites(self, run_id: str) -> dict[str, dict[str, str]]:
        """Give where each site stood when that was last written; empty before the first time."""
        try:
            text = (self.folder(run_id) / "sites.json").read_text(encoding="utf-8")
            found: dict[str, dict[str, str]] = json.loads(text)
        except (OSError, ValueError):
            return {}
        return found

    def save_results(
        self,
        run_id: str,
        results: dict[str, Any],
        parameters: Parameters,
        preprocessing: Preprocessing,
    ) -> None:
        """Keep the final results, and the final model with the scaler that belongs to it."""
        folder = self.folder(run_id)
        write_whole(folder / "model.safetensors", model_file(parameters, preprocessing))
        write_whole(folder / "results.json", json.dumps(results, indent=2).encode())

    def results(self, run_id: str) -> dict[str, Any]:
        """Give what is known of the run, whatever its status."""
        row = self.find(run_id)
        path = self.folder(run_id) / "results.json"
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {
            "experiment_id": run_id,
            "name": row.name,
            "folder": str(self.folder(run_id)),
            "rounds_planned": row.rounds,
            "start": self._started_from(run_id),
            **saved,
            "status": row.status,
            "message": row.message,
            "orphaned": self.is_orphaned(row),
            "sites": self.sites(run_id),
            "rounds": self.rounds(run_id),
        }

    def _started_from(self, run_id: str) -> dict[str, str] | None:
        """Give `file` and `sha256` of what the run starts from; None for its seed, or unknown."""
        with suppress(ExperimentError):
            file = self.config(run_id).model.start
            if file is not None:
                return {"file": str(file), "sha256": kept_sha256(self.folder(run_id))}
        return None

    @contextmanager
    def _session(self) -> Iterator[Session]:
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
        except SQLAlchemyError as exc:
            cause = getattr(exc, "orig", None) or exc
            raise ExperimentError(f"{self.root / 'index.db'} cannot be used: {cause}") from exc


def _has_begun(folder: Path) -> bool:
    """Tell whether more is there than what a crash may leave of a new run."""
    written = {path.name for path in folder.iterdir()} if folder.exists() else set()
    first = (folder / START_FILE, folder / _CONFIG)
    return not written <= {name for path in first for name in (path.name, part_of(path).name)}


def _by_group(tensors: Parameters) -> dict[str, Parameters]:
    groups: dict[str, Parameters] = {}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def _is_cut_short(stream: BinaryIO) -> bool:
    """Tell whether a crash left the last line of `stream` unfinished."""
    if stream.seek(0, os.SEEK_END) == 0:
        return False
    stream.seek(-1, os.SEEK_END)
    return stream.read(1) != b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _configure(connection: Any, _record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's hook
    connection.execute("PRAGMA journal_mode=WAL")
