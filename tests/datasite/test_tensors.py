"""Windows are put together from their rows when they are asked for, and take no memory before."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from core.messages import Preprocessing, SplitSettings
from core.schema import DataSchema
from datasite.data.features import gather_features, make_features
from datasite.data.windows import cut_parts
from datasite.training.tensors import Tensors, prepare, standardise

SPLIT = SplitSettings(test=0.2, validation=0.2, seed=1)
PREPROCESSING: Preprocessing = {"mean": [3.0, 0.1], "scale": [7.0, 0.3], "positive_weight": 1.0}


def schema_of(window_steps: int) -> DataSchema:
    """Give machines with a clock and two sensors."""
    return DataSchema.model_validate(
        {
            "name": "press",
            "label": {"column": "failure"},
            "machine": {"column": "machine"},
            "time": {"column": "minute"},
            "window_steps": window_steps,
            "columns": [{"name": "row", "range": [0, 999]}, {"name": "x", "range": [-9, 9]}],
        }
    )


def table() -> pd.DataFrame:
    """Give 5 machines of 40 rows, in no order."""
    row = np.random.default_rng(0).permutation(200)
    return pd.DataFrame(
        {
            "machine": [f"m{number // 40}" for number in row],
            "minute": (row % 40).astype(float),
            "row": row.astype(float),
            "x": np.sin(row),
            "failure": row % 2,
        }
    )


def test_windows_are_what_they_are_when_all_are_copied() -> None:
    """Standardised row by row or window by window: the same, to the bit."""
    for steps in (1, 4):
        rows = make_features(table(), schema_of(steps))
        parts = cut_parts(rows, schema_of(steps), SPLIT, "factory-1")
        prepared = prepare(rows, schema_of(steps), SPLIT, PREPROCESSING, site_id="factory-1")
        for name, data in prepared.items():
            part = getattr(parts, name)
            # as it was done when every window was a copy of its rows
            windows = (part.x - np.array(PREPROCESSING["mean"])) / np.array(PREPROCESSING["scale"])
            found = data.windows(data.starts)
            assert found.is_contiguous()
            assert torch.equal(found, torch.from_numpy(windows.astype(np.float32)))
            assert data.labels.tolist() == part.y.tolist()
            assert (data.sensors, data.window_steps) == (2, steps)


def test_windows_come_in_the_order_that_is_asked_for() -> None:
    """Any of them, and one twice."""
    rows = torch.arange(12.0).reshape(6, 2)
    none = torch.zeros(5, dtype=torch.int64)
    data = Tensors(rows=rows, starts=torch.arange(5), labels=none, machines=none, window_steps=2)
    assert data.windows(torch.tensor([4, 0, 4])).tolist() == [
        [[8, 9], [10, 11]],
        [[0, 1], [2, 3]],
        [[8, 9], [10, 11]],
    ]


def test_windows_that_are_there_already_are_taken() -> None:
    """Each is found again, though none overlaps another."""
    inputs = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    data = Tensors.of(inputs, torch.arange(5) % 2)
    assert torch.equal(data.windows(data.starts), inputs)


def test_a_table_in_chunks_has_the_features_of_the_whole() -> None:
    """Machines are numbered by name, and rows ordered by time, whatever chunk they come in."""
    whole = make_features(table(), schema_of(4))
    chunks = (table()[begin : begin + 33] for begin in range(0, 200, 33))
    found = gather_features(chunks, schema_of(4), rows=200)
    for name in ("x", "y", "machine", "position"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))


def test_rows_are_standardised_in_float64() -> None:
    """In pieces as at once: large values with a small spread keep their digits."""
    x = (np.arange(200_000, dtype=np.float32).reshape(-1, 2) % 1000) + 1e5
    preprocessing: Preprocessing = {
        "mean": [100_000.5, 100_500.25],
        "scale": [0.3, 0.7],
        "positive_weight": 1.0,
    }
    expected = (x - np.array(preprocessing["mean"])) / np.array(preprocessing["scale"])
    assert np.array_equal(standardise(x, preprocessing), expected.astype(np.float32))


LARGE = """
import resource, sys
sys.path[:0] = {path!r}
import numpy as np
from test_tensors import PREPROCESSING, SPLIT, schema_of
from datasite.data.features import FeatureRows
from datasite.data.statistics import describe_rows
from datasite.training.tensors import prepare

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def rows_of(count):
    number = np.arange(count)
    x = np.random.default_rng(0).random((count, 2), dtype=np.float32)
    return FeatureRows(x=x, y=number % 2, machine=number // 100_000, position=number)

def use(rows):
    describe_rows(rows, "factory-1")
    data = prepare(rows, schema_of(100), SPLIT, PREPROCESSING, site_id="factory-1")["train"]
    data.windows(data.starts[:64])

use(rows_of(1_000))
rows = rows_of(1_000_000)
before = peak()
use(rows)
print(peak() - before)
"""


def test_windows_of_a_hundred_rows_take_no_hundredfold_memory() -> None:
    """A million rows of two numbers are 8 MB; their windows of 100, copied, would be 800 MB."""
    tests = Path(__file__).resolve().parent
    script = LARGE.format(path=[str(tests), str(tests.parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) < 200e6
