"""What a run starts from when that is not drawn from its seed: the parameters of a file.

The file is read once, when the run is recorded, and kept in the run's folder byte for byte. What
becomes of it afterwards changes nothing: a run that goes on looks at what was kept.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Self

import safetensors
import safetensors.torch
import torch
from pydantic import Field, ValidationError, model_validator

from core.exceptions import ConfigurationError, ExperimentError, ModelError
from core.messages import Preprocessing
from core.parameters import require_same_layout
from orchestrator.files import write_whole
from orchestrator.section import Section

if TYPE_CHECKING:
    from pathlib import Path

    from core.messages import Parameters
    from core.models import TorchModel

START_FILE: Final = "start.safetensors"
"""The copy in the run's folder."""

_SCALER: Final = "scaler"
_LENGTH_BYTES: Final = 8
_EXAMPLE: Final = "name a model that a run has left, runs/RUN/model.safetensors"


class Scaler(Section):
    """What a model's inputs were scaled by: (x - mean) / scale, feature by feature."""

    mean: tuple[float, ...]
    scale: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _is_of_one_length(self) -> Self:
        if len(self.mean) != len(self.scale):
            message = f"{len(self.mean)} means and {len(self.scale)} scales"
            raise ValueError(message)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The parameters that a run starts from.

    Attributes:
        file: Where they came from, for messages.
        parameters: Finite, and of whatever layout the file has.
        scaler: Of the data that they were fitted to; None where the file does not say.
    """

    file: Path
    parameters: Parameters
    scaler: Scaler | None

    def fill(self, model: TorchModel) -> None:
        """Give `model` these parameters.

        Raises:
            ConfigurationError: They are those of another model; it names the tensor.
        """
        expected = model.get_parameters()
        try:
            require_same_layout(self.parameters, expected, whose=f"model.start: {self.file}")
        except ModelError as exc:
            raise ConfigurationError(
                f"{exc}; give model.type and model.options as they were when it was trained, or "
                "leave model.start out"
            ) from exc
        model.set_parameters(self.parameters)

    def scaled(self, agreed: Preprocessing) -> Preprocessing:
        """Give `agreed` with the scaler that belongs to these parameters, where the file has one.

        Raises:
            ConfigurationError: It is for another number of features.
        """
        if self.scaler is None:
            return agreed
        ours, theirs = len(self.scaler.mean), len(agreed["mean"])
        if ours != theirs:
            raise ConfigurationError(
                f"model.start: {self.file} scales {ours} features, the data have {theirs}; "
                "was it trained on data of another schema?"
            )
        return Preprocessing(
            mean=list(self.scaler.mean),
            scale=list(self.scaler.scale),
            positive_weight=agreed["positive_weight"],
        )


def model_file(parameters: Parameters, preprocessing: Preprocessing) -> bytes:
    """Give the safetensors file of a trained model, with the scaler that belongs to it."""
    scaler = Scaler(mean=tuple(preprocessing["mean"]), scale=tuple(preprocessing["scale"]))
    blob: bytes = safetensors.torch.save(parameters, {_SCALER: scaler.model_dump_json()})
    return blob


def keep_start(file: Path, folder: Path) -> None:
    """Keep the start that `file` has, if it is one, in a run's folder.

    Raises:
        ConfigurationError: It cannot be read, is no safetensors file, or has a number that is not
            finite.
        ExperimentError: The folder cannot be written.
    """
    try:
        blob = file.read_bytes()
    except OSError as exc:
        raise ConfigurationError(
            f"model.start: {file} cannot be read: {exc.strerror}; {_EXAMPLE}"
        ) from exc
    _read(blob, file)
    write_whole(folder / START_FILE, blob)


def kept_start(folder: Path, file: Path) -> Start:
    """Give the start that `keep_start` has kept of `file`.

    Raises:
        ConfigurationError: It is no start any more.
        ExperimentError: It cannot be read.
    """
    return _read(_kept(folder), file)


def kept_sha256(folder: Path) -> str:
    """Give the SHA-256 of the file that was kept, which is that of the file it came from.

    Raises:
        ExperimentError: It cannot be read.
    """
    return hashlib.sha256(_kept(folder)).hexdigest()


def _kept(folder: Path) -> bytes:
    path = folder / START_FILE
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ExperimentError(
            f"{path} cannot be read: {exc.strerror}; start a new run instead"
        ) from exc


def _read(blob: bytes, file: Path) -> Start:
    try:
        parameters = safetensors.torch.load(blob)
    except (safetensors.SafetensorError, ValueError) as exc:
        raise ConfigurationError(
            f"model.start: {file} is no safetensors file ({exc}); {_EXAMPLE}"
        ) from exc
    for name, tensor in parameters.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigurationError(
                f"model.start: {file}: {name!r} holds values that are not finite; {_EXAMPLE}"
            )
    return Start(file=file, parameters=parameters, scaler=_scaler(blob, file))


def _scaler(blob: bytes, file: Path) -> Scaler | None:
    """Give what the header says of scaling; safetensors' own reader of it wants a path."""
    size_bytes = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    header = json.loads(blob[_LENGTH_BYTES : _LENGTH_BYTES + size_bytes])
    said = header.get("__metadata__", {}).get(_SCALER)
    if said is None:
        return None
    try:
        return Scaler.model_validate_json(said)
    except ValidationError as exc:
        raise ConfigurationError(
            f"model.start: {file}: what it says of its scaler is not (mean, scale) of finite "
            f"numbers, with scales above 0; {_EXAMPLE}"
        ) from exc
