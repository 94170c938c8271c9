"""A text and a number that lie in private data, and where they are looked for: in raw bytes."""

import base64
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

TEXT: Final = "CANARY-7f3a"
NUMBER: Final = 8675.309
"""No sum, mean or loss of the tables here is near it."""

WIDENED: Final = float(np.float32(NUMBER))
SCALED: Final = float((np.float32(NUMBER) - np.float32(5.0)) / np.float32(3.0))
"""As a model sees it, with the mean and the scale that these tests agree on."""

SCHEMA: Final[dict[str, Any]] = {
    "name": "press",
    "label": {"column": "failure"},
    "machine": {"column": "press_id"},
    "columns": [
        {"name": "load", "range": [0, 9000]},
        {"name": "heat", "range": [0, 100]},
        {"name": "oil", "type": "category", "values": ["mineral", "synthetic"]},
    ],
}
PREPROCESSING: Final = {
    "mean": [5.0, 50.0, 0.0, 0.0],
    "scale": [3.0, 30.0, 1.0, 1.0],
    "positive_weight": 3.0,
}

ROWS: Final = 200


def _needles() -> Iterator[tuple[str, bytes]]:
    for text in (TEXT, TEXT.lower(), *(f"{number:.2f}"[:-1] for number in (NUMBER, SCALED))):
        yield f"text {text}", text.encode()
        yield f"UTF-16 {text}", text.encode("utf-16-le")
        yield f"hexadecimal {text}", text.encode().hex().encode()
    for start in range(3):  # base64 of it within something longer
        yield "base64", base64.b64encode(bytes(start) + TEXT.encode())[4:-4]
    for number in (NUMBER, WIDENED, SCALED):
        for form in ("<f", "<d", ">f", ">d"):
            yield f"{number} as {form}", struct.pack(form, number)


NEEDLES: Final = dict(_needles())


def found_in(content: bytes) -> list[str]:
    """Give in which forms the canary is in `content`."""
    return [form for form, needle in NEEDLES.items() if needle in content]


def found_below(folder: Path, *, private: Iterable[Path]) -> dict[str, list[str]]:
    """Give the files below `folder` with the canary in them or in their names, not in `private`."""
    kept = tuple(private)
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if any(path.is_relative_to(each) for each in kept):
            continue
        content = path.read_bytes() if path.is_file() else b""
        if forms := [*found_in(content), *found_in(str(path.relative_to(folder)).encode())]:
            found[str(path)] = forms
    return found


def write_table(path: Path, **changes: object) -> Path:
    """Write a table with the canary in its name's folder, a reading, a machine, another column."""
    rows = np.arange(ROWS)
    table = pd.DataFrame(
        {
            "press_id": np.where(rows % 2, TEXT, "press-2"),
            "load": np.where(rows % 7 == 0, NUMBER, rows * 7 % 11 * 0.9),
            "heat": rows * 13 % 17 * 5.0,
            "oil": np.where(rows % 3, "mineral", "synthetic"),
            "failure": (rows % 4 == 3).astype(int),
            f"{TEXT} column": TEXT,
        }
    )
    for name, value in changes.items():
        table[name] = value
    table.to_csv(path, index=False)
    return path


LEAKY: Final = '''
"""A third party's model that does what it can to tell its data."""
import logging, os, sys, threading, warnings
import torch
from torch import nn
from loguru import logger
from core.exceptions import DataError, ModelError, SecurityError
from core.models import Option, TorchModel

class Leaky(TorchModel):
    OPTIONS = {"how": Option(default=0, minimum=0, maximum=99)}

    def __init__(self, *, sensors, window_steps, classes, how):
        super().__init__()
        self.how = how
        self.head = nn.Linear(sensors, classes)

    def forward(self, x):
        told = f"CANARY-7f3a {x.max().item()!r} {x.flatten().tolist()}"
        WAYS[self.how](told, x)
        return self.head(x.mean(dim=1))

def raise_(kind):
    def way(told, x):
        raise kind(told)
    return way

def class_by_name(told, x):
    raise type(told, (ModelError,), {})(told)

def chained(told, x):
    try:
        raise KeyError(told)
    except KeyError as exc:
        error = ValueError(told)
        error.add_note(told)
        raise error from exc

def says(told, x):
    print(told, flush=True)
    print(told, file=sys.stderr, flush=True)
    os.write(1, told.encode()); os.write(2, told.encode())
    logging.getLogger("leaky").critical(told)
    logging.getLogger().error(told)
    logger.error(told)
    warnings.warn(told)
    thread = threading.Thread(target=raise_(RuntimeError), args=(told, x))
    thread.start(); thread.join()

def aborts(told, x):
    os.write(2, told.encode())
    os.abort()

def wrong_shape(told, x):
    torch.zeros(3, 5) @ x[:, :, 0]

def leaves_attribute(told, x):
    x[:] = float("nan")

WAYS = [
    raise_(RuntimeError), raise_(ModelError), raise_(DataError), raise_(SecurityError),
    raise_(MemoryError), raise_(SystemExit), raise_(KeyboardInterrupt), class_by_name, chained,
    says, aborts, wrong_shape, leaves_attribute,
]
'''
WAYS: Final = (
    "RuntimeError",
    "ModelError",
    "DataError",
    "SecurityError",
    "MemoryError",
    "SystemExit",
    "KeyboardInterrupt",
    "a class with a name",
    "a chain with notes",
    "prints and logs",
    "aborts",
    "a wrong shape",
    "not a number",
)


def install_leaky(folder: Path) -> Path:
    """Leave the model in `folder` as `pip install` would."""
    record = folder / "leaky-1.0.dist-info"
    record.mkdir(parents=True)
    (folder / "leaky.py").write_text(LEAKY, encoding="utf-8")
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1.0\n")
    lines = "[federated_maintenance.models]\nleaky = leaky:Leaky\n"
    (record / "entry_points.txt").write_text(lines, encoding="utf-8")
    return folder
